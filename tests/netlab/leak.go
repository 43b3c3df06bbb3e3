package netlab

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/pin"
)

// goneLimit is how long the kernel may take to free what nothing refers to.
const goneLimit = 15 * time.Second

// object is an eBPF object; the kernel gives no id twice while the lab lives.
type object struct {
	kind string // "program", "map" or "link"
	id   uint32
}

// Remember notes the eBPF objects that are pinned now, so that their end can
// be checked later without regard to what others run on the machine.
func (h *Host) Remember(tb testing.TB) {
	tb.Helper()
	for _, path := range h.Pins(tb) {
		for _, o := range identify(tb, path) {
			h.seen[o] = true
		}
	}
}

// Pinned tells which eBPF object each pin stands for, as "KIND ID" by path.
func (h *Host) Pinned(tb testing.TB) map[string]string {
	tb.Helper()
	pinned := make(map[string]string)
	for _, path := range h.Pins(tb) {
		for _, o := range identify(tb, path) {
			pinned[path] += fmt.Sprintf("%s %d ", o.kind, o.id)
		}
	}
	return pinned
}

// identify returns the object pinned at path, with a link its program too.
func identify(tb testing.TB, path string) []object {
	tb.Helper()
	pinned, err := pin.Load(path, nil)
	if err != nil {
		tb.Errorf("read pin %s: %v", path, err)
		return nil
	}
	defer pinned.Close()
	var objects []object
	switch p := pinned.(type) {
	case *ebpf.Program:
		var info *ebpf.ProgramInfo
		if info, err = p.Info(); err == nil {
			id, _ := info.ID()
			objects = append(objects, object{"program", uint32(id)})
			maps, _ := info.MapIDs() // not all of them have pins
			for _, id := range maps {
				objects = append(objects, object{"map", uint32(id)})
			}
		}
	case *ebpf.Map:
		var info *ebpf.MapInfo
		if info, err = p.Info(); err == nil {
			id, _ := info.ID()
			objects = append(objects, object{"map", uint32(id)})
		}
	case link.Link:
		var info *link.Info
		if info, err = p.Info(); err == nil {
			objects = append(objects, object{"link", uint32(info.ID)}, object{"program", uint32(info.Program)})
		}
	}
	if err != nil {
		tb.Errorf("read pin %s: %v", path, err)
	}
	return objects
}

// Pins lists the files in the host's bpf file system, but for the listings that
// the kernel itself puts into the root of one.
func (h *Host) Pins(tb testing.TB) []string {
	tb.Helper()
	var pins []string
	root := filepath.Dir(h.BPFFS) // the mount point, unless ebnet made its own
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		byKernel := (filepath.Dir(path) == root || filepath.Dir(path) == h.BPFFS) && strings.HasSuffix(path, ".debug")
		if err == nil && !d.IsDir() && !byKernel {
			pins = append(pins, path)
		}
		return err
	})
	if err != nil {
		tb.Fatalf("list pins: %v", err)
	}
	return pins
}

// alive reports whether the kernel still has the object.
func (o object) alive() bool {
	var err error
	switch o.kind {
	case "program":
		var p *ebpf.Program
		if p, err = ebpf.NewProgramFromID(ebpf.ProgramID(o.id)); err == nil {
			p.Close()
		}
	case "map":
		var m *ebpf.Map
		if m, err = ebpf.NewMapFromID(ebpf.MapID(o.id)); err == nil {
			m.Close()
		}
	case "link":
		var l link.Link
		if l, err = link.NewFromID(link.ID(o.id)); err == nil {
			l.Close()
		}
	}
	return !errors.Is(err, os.ErrNotExist)
}

// CheckGone fails the test unless the host is as it was before ebnet: to be
// called after ebnet down --purge.
func (l *Lab) CheckGone(tb testing.TB) {
	tb.Helper()
	if pins := l.Host.Pins(tb); len(pins) > 0 {
		tb.Errorf("pins left: %v", pins)
	}
	if links := l.Host.Links(tb); !maps.Equal(links, l.firstLinks) {
		tb.Errorf("links of the host are %v, were %v before ebnet", links, l.firstLinks)
	}
	for _, hook := range []string{"ingress", "egress"} {
		r := l.Host.Try(tb, nil, "tc", "filter", "show", "dev", UplinkLink, hook)
		if strings.Contains(r.Stdout, "bpf") {
			tb.Errorf("tc filter left at %s of the uplink: %s", hook, r.Stdout)
		}
	}
	if entries, err := os.ReadDir(l.Host.State); err == nil {
		for _, e := range entries {
			if e.Name() != "lock" { // removing a lock file is a race
				tb.Errorf("left in the state directory: %s", e.Name())
			}
		}
	}
	l.checkProcesses(tb)
	for end := time.Now().Add(goneLimit); ; time.Sleep(50 * time.Millisecond) {
		maps.DeleteFunc(l.Host.seen, func(o object, _ bool) bool { return !o.alive() })
		if len(l.Host.seen) == 0 {
			return
		}
		if time.Now().After(end) {
			tb.Errorf("eBPF objects left: %v", l.Host.seen)
			return
		}
	}
}

// checkProcesses finds processes that name the lab's directory: ebnet does, in
// its flags.
func (l *Lab) checkProcesses(tb testing.TB) {
	tb.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		tb.Fatal(err)
	}
	for _, file := range files {
		line, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(line), l.dir) {
			tb.Errorf("process left: %s", strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
}

// checkLeftovers is for after the lab itself is gone.
func (l *Lab) checkLeftovers(tb testing.TB) {
	names, err := filepath.Glob(filepath.Join(netnsDir, l.Name+"*"))
	if err != nil || len(names) > 0 {
		tb.Errorf("namespaces left: %v (%v)", names, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), l.Name) {
		tb.Errorf("a mount of the lab is left (%v):\n%s", err, mounts)
	}
}

// batch runs lines of ip(8) commands in one process.
func batch(lines string) error {
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(lines)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip -batch: %w: %s", err, out)
	}
	return nil
}
