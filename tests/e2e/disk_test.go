package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/tests/netlab"
)

// smallDisk gives the lab's state a disk of its own.
func smallDisk(t *testing.T, l *netlab.Lab, size string) {
	t.Helper()
	if err := os.MkdirAll(l.Host.State, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("ebnet-test", l.Host.State, "tmpfs", 0, "mode=0700,size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(l.Host.State, 0); err != nil {
			t.Error(err)
		}
	})
}

// fill leaves no room on the disk, and returns what makes some again.
func fill(t *testing.T, dir string) (release func()) {
	t.Helper()
	path := filepath.Join(dir, "filling")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{1 << 16, 4096} {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// everything is what the nouns and the kernel say.
func everything(t *testing.T, h *netlab.Host) map[string]string {
	t.Helper()
	all := map[string]string{"links": fmt.Sprint(h.Links(t)), "pins": fmt.Sprint(h.Pinned(t))}
	for _, noun := range []string{"network ls", "endpoint ls", "ports"} {
		all[noun] = h.Ebnet(t, strings.Fields("-o json "+noun)...)
	}
	var s struct {
		Incomplete []string `json:"incomplete"`
	}
	h.JSON(t, &s, "status")
	all["incomplete"] = fmt.Sprint(s.Incomplete)
	return all
}

// refusesState runs verbs, each of which must fail with the state's error and change nothing.
func refusesState(t *testing.T, h *netlab.Host, why string, verbs []string) {
	t.Helper()
	before := everything(t, h)
	for _, verb := range verbs {
		r := h.TryEbnet(t, strings.Fields(verb)...)
		if r.Code != 1 || !strings.Contains(r.Stderr, "ebnet: state "+h.State) || !strings.Contains(r.Stderr, why) ||
			len(strings.Split(strings.TrimSpace(r.Stderr), "\n")) != 2 {
			t.Errorf("%v", r)
		}
		if now := everything(t, h); !maps.Equal(now, before) {
			t.Errorf("after %s there is\n%v\nwas\n%v", verb, now, before)
		}
	}
}

// withoutRoom makes the state's file no longer than its pages in use: the copy is as long as that.
func withoutRoom(t *testing.T, h *netlab.Host) {
	t.Helper()
	path := filepath.Join(h.State, "ebnet.db")
	info, err := os.Stat(path + ".bak")
	if err == nil {
		err = os.Truncate(path, info.Size())
	}
	if err != nil {
		t.Fatal(err)
	}
}

var diskVerbs = []string{
	"up --uplink up0 --fast-path=off", "network create more", "network rm spare", "connect default %s --name w2", "expose w1 8081:81",
	"unexpose w1", "disconnect w1",
}

// TestPrivilegedFullDisk: a verb that has no room to write what it is about to do does nothing; one that has
// begun can end. The nouns work.
func TestPrivilegedFullDisk(t *testing.T) {
	l := netlab.New(t)
	boxes := l.Containers(t, "w1", "w2")
	smallDisk(t, l, "2m")
	release := fill(t, l.Host.State)
	r := l.Host.TryEbnet(t, "up", "--uplink", netlab.UplinkLink)
	if r.Code != 1 || !strings.Contains(r.Stderr, "no space left on device") {
		t.Errorf("the first up: %v", r)
	}
	if pins := l.Host.Pins(t); len(pins) > 0 {
		t.Errorf("the first up left %v", pins)
	}
	release()
	l.Host.Up(t, "--uplink", netlab.UplinkLink)
	l.Host.Ebnet(t, "network", "create", "spare")
	boxes[0].Connect(t, "default", "-p", "8080:80")

	// What was laid by is enough for every verb, but not for another copy.
	release = fill(t, l.Host.State)
	r = l.Host.TryEbnet(t, "expose", "w1", "8082:82")
	if r.Code != 0 || !strings.Contains(r.Stderr, "warning: the copy of the state") {
		t.Errorf("on a full disk, with room in the file: %v", r)
	}
	var d struct {
		Items []struct{ Check string }
	}
	if err := json.Unmarshal([]byte(l.Host.TryEbnet(t, "-o", "json", "doctor").Stdout), &d); err != nil || len(d.Items) != 1 || d.Items[0].Check != "state" {
		t.Errorf("doctor: %+v, %v", d, err)
	}
	release()
	l.Host.Up(t)

	withoutRoom(t, l.Host)
	release = fill(t, l.Host.State)
	verbs := append([]string{}, diskVerbs...)
	for i, v := range verbs {
		if strings.Contains(v, "%s") {
			verbs[i] = fmt.Sprintf(v, boxes[1].Name)
		}
	}
	refusesState(t, l.Host, "no space left on device", verbs)
	release()
	for _, verb := range verbs {
		l.Host.Ebnet(t, strings.Fields(verb)...)
	}
	l.Host.Ebnet(t, "doctor")
}

// TestPrivilegedReadOnlyDisk: nothing changes there, the nouns work.
func TestPrivilegedReadOnlyDisk(t *testing.T) {
	l := netlab.New(t)
	boxes := l.Containers(t, "w1", "w2")
	smallDisk(t, l, "2m")
	l.Host.Up(t, "--uplink", netlab.UplinkLink)
	l.Host.Ebnet(t, "network", "create", "spare")
	boxes[0].Connect(t, "default", "-p", "8080:80")
	remount := func(dir string, flags uintptr) {
		t.Helper()
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	verbs := append([]string{"down", "down --purge"}, diskVerbs...)
	for i, v := range verbs {
		if strings.Contains(v, "%s") {
			verbs[i] = fmt.Sprintf(v, boxes[1].Name)
		}
	}
	remount(l.Host.State, unix.MS_RDONLY)
	refusesState(t, l.Host, "read-only file system", verbs)
	if out := l.Host.Ebnet(t, "--dry-run", "disconnect", "w1"); out == "" {
		t.Error("a dry run shows nothing")
	}
	l.Host.Ebnet(t, "doctor")
	remount(l.Host.State, 0)

	// And where the datapath is pinned.
	before := everything(t, l.Host)
	bpffs := filepath.Dir(l.Host.BPFFS)
	remount(bpffs, unix.MS_RDONLY)
	for _, verb := range []string{"connect default " + boxes[1].Name + " --name w2", "network create more", "up --uplink up0 --fast-path=off", "status"} {
		r := l.Host.TryEbnet(t, strings.Fields(verb)...)
		if r.Code != 1 || !strings.Contains(r.Stderr, "read-only file system") {
			t.Errorf("with bpffs read-only: %v", r)
		}
	}
	remount(bpffs, 0)
	if now := everything(t, l.Host); !maps.Equal(now, before) {
		t.Errorf("with bpffs read-only, verbs have left\n%v\nwas\n%v", now, before)
	}
	l.Host.Up(t)
	for _, verb := range verbs[2:] {
		l.Host.Ebnet(t, strings.Fields(verb)...)
	}
}

// TestPrivilegedDamagedState: commands refuse a damaged state and say what brings it back, which does, and
// the host with it.
func TestPrivilegedDamagedState(t *testing.T) {
	l := netlab.New(t)
	boxes := l.Containers(t, "w1", "w2")
	l.Host.Up(t, "--uplink", netlab.UplinkLink)
	boxes[0].Connect(t, "default", "-p", "8080:80")
	path := filepath.Join(l.Host.State, "ebnet.db")
	older, err := os.ReadFile(path + ".bak")
	if err != nil {
		t.Fatal(err)
	}
	want := l.Host.Ebnet(t, "-o", "json", "endpoint", "ls")
	boxes[1].Connect(t, "default", "-p", "8081:81")
	damaged := bytes.Repeat([]byte{0xA5}, 3*4096)
	for i, content := range [][]byte{damaged, nil} { // once with a copy of before
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if err := os.WriteFile(path+".bak", older, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, command := range []string{"up", "ports", "status", "connect default " + boxes[1].Name, "down", "doctor", "metrics"} {
			r := l.Host.TryEbnet(t, strings.Fields(command)...)
			if r.Code != 1 || !strings.Contains(r.Stderr, "damaged") || !strings.Contains(r.Stderr, "ebnet up --restore") {
				t.Errorf("%v", r)
			}
		}
		r := l.Host.TryEbnet(t, "up", "--restore")
		aside := path + ".damaged-1"
		if kept, err := os.ReadFile(aside); r.Code != 0 || !strings.Contains(r.Stderr, aside) || err != nil || !bytes.Equal(kept, content) {
			t.Fatalf("%v, %v", r, err)
		}
		if now := l.Host.Ebnet(t, "-o", "json", "endpoint", "ls"); now != want {
			t.Errorf("there is\n%s\nwant\n%s", now, want)
		}
		if links := l.Host.Links(t); len(links) != 4 { // lo, up0, the bridge, the endpoint's
			t.Errorf("links of the host: %v", links)
		}
		if err := os.Remove(aside); err != nil {
			t.Fatal(err)
		}
	}
	if r := l.Host.TryEbnet(t, "up", "--restore"); r.Code != 4 {
		t.Errorf("what is not damaged: %v", r)
	}
}
