package e2e

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/tests/netlab"
)

// privilege is a row of docs/privileges.md.
type privilege struct {
	command string
	caps    []string // as CAP_…
}

var allCaps = []string{"CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON", "CAP_SYS_ADMIN"}

var (
	privilegeRow = regexp.MustCompile("(?m)^\\| `ebnet ([^`]*)` \\| ([^|]*) \\|")
	capName      = regexp.MustCompile("`(CAP_\\w+)`")
)

func readPrivileges(t *testing.T) (all []privilege) {
	t.Helper()
	text, err := os.ReadFile("../../docs/privileges.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range privilegeRow.FindAllStringSubmatch(string(text), -1) {
		p := privilege{command: row[1]}
		for _, m := range capName.FindAllStringSubmatch(row[2], -1) {
			p.caps = append(p.caps, m[1])
		}
		all = append(all, p)
	}
	return all
}

// arguments of the documented commands; each finds what the one before it has left.
func privilegeArgs(l *netlab.Lab, box string) map[string]string {
	return map[string]string{
		"up":             "up --uplink " + netlab.UplinkLink,
		"network create": "network create web",
		"connect":        "connect default " + box + " --name a -p 8080:80",
		"expose":         "expose a 8081:81",
		"unexpose":       "unexpose a",
		"disconnect":     "disconnect a",
		"run":            "run --network default -- true",
		"network rm":     "network rm web",
	}
}

// TestPrivilegedLeast holds each command to the capabilities that are documented for it.
func TestPrivilegedLeast(t *testing.T) {
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Fatal("setpriv is not installed: run tests/install-deps.sh test")
	}
	if b, err := os.ReadFile("/proc/sys/kernel/unprivileged_bpf_disabled"); err == nil && strings.TrimSpace(string(b)) == "0" {
		t.Skip("SKIP: here everybody may load programs: kernel.unprivileged_bpf_disabled is 0")
	}
	t.Run("root", func(t *testing.T) { testLeast(t, 0) })
	t.Run("user", func(t *testing.T) { testLeast(t, 12321) })
}

func testLeast(t *testing.T, uid int) {
	l := netlab.New(t)
	box := l.Container(t, "a").Name
	bin := openLab(t, l, uid)
	run := func(caps []string, args string) netlab.Result {
		t.Helper()
		return l.Host.Try(t, l.Host.Env, slices.Concat(withCaps(uid, caps), []string{bin}, l.Host.Command(strings.Fields(args)...)[1:])...)
	}
	state := func() map[string]string {
		t.Helper()
		all := map[string]string{"links": fmt.Sprint(l.Host.Links(t)), "pins": fmt.Sprint(l.Host.Pins(t))}
		for _, noun := range []string{"-o json network ls", "-o json endpoint ls", "-o json ports"} {
			r := run(allCaps, noun)
			if r.Code != 0 {
				t.Fatal(r)
			}
			all[noun] = r.Stdout
		}
		return all
	}
	args := privilegeArgs(l, box)
	privileges := readPrivileges(t)
	if len(privileges) < 15 {
		t.Fatalf("docs/privileges.md lists %v", privileges)
	}
	for _, p := range privileges {
		line := p.command
		if more, ok := args[p.command]; ok {
			line = more
		}
		before := state()
		for _, without := range p.caps {
			if slices.Contains(p.caps, "CAP_SYS_ADMIN") && (without == "CAP_BPF" || without == "CAP_PERFMON") {
				continue // are in it
			}
			r := run(slices.DeleteFunc(slices.Clone(p.caps), func(c string) bool { return c == without }), line)
			if r.Code != 3 || !strings.Contains(r.Stderr, without+" is missing") || strings.Contains(r.Stderr, "goroutine") {
				t.Errorf("without %s: %v", without, r)
			}
			if now := state(); !maps.Equal(now, before) {
				t.Errorf("%s without %s has left\n%v\nwas\n%v", line, without, now, before)
			}
		}
		if r := run(p.caps, line); r.Code != 0 {
			t.Errorf("with %v: %v", p.caps, r)
		}
		if p.command == "up" || p.command == "expose" {
			checkModes(t, l, uid)
		}
	}
}

// TestPrivilegedMount: where no bpf file system is mounted, mounting one takes CAP_SYS_ADMIN, and nothing is left without.
func TestPrivilegedMount(t *testing.T) {
	l := netlab.New(t)
	bpffs := filepath.Join(t.TempDir(), "pins")
	up := []string{netlab.Binary(), "--state", l.Host.State, "--bpffs", bpffs, "--cgroup", l.Host.Cgroup, "up", "--uplink", netlab.UplinkLink}
	r := l.Host.Try(t, nil, append(withCaps(0, allCaps[:3]), up...)...)
	if r.Code != 3 || !strings.Contains(r.Stderr, "CAP_SYS_ADMIN is missing") {
		t.Errorf("%v", r)
	}
	for _, path := range []string{bpffs, l.Host.State} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is left", path)
		}
	}
	r = l.Host.Try(t, nil, append(withCaps(0, allCaps), up...)...)
	if r.Code != 0 {
		t.Errorf("%v", r)
	}
	if r := l.Host.TryEbnet(t, "--bpffs", bpffs, "down", "--purge"); r.Code != 0 {
		t.Error(r)
	}
}

// withCaps is the beginning of a command line that runs as uid with these capabilities and no others.
func withCaps(uid int, caps []string) []string {
	set := "-all"
	for _, c := range caps {
		set += ",+" + strings.ToLower(strings.TrimPrefix(c, "CAP_"))
	}
	if uid == 0 {
		return []string{"setpriv", "--bounding-set", set, "--inh-caps", "-all"}
	}
	id := fmt.Sprint(uid)
	return []string{"setpriv", "--reuid", id, "--regid", id, "--clear-groups", "--inh-caps", set, "--ambient-caps", set}
}

// openLab makes the lab's directories those of the user, and returns a copy of the binary that it can run.
func openLab(t *testing.T, l *netlab.Lab, uid int) (bin string) {
	t.Helper()
	if uid == 0 {
		return netlab.Binary()
	}
	dir, err := os.MkdirTemp("", filepath.Base(l.Name)+"-user-")
	if err != nil {
		t.Fatal(err)
	}
	bpffs, wasState, wasBPFFS := filepath.Join(dir, "bpf"), l.Host.State, l.Host.BPFFS
	bin, l.Host.State, l.Host.BPFFS = filepath.Join(dir, "ebnet"), filepath.Join(dir, "state"), filepath.Join(bpffs, "ebnet")
	content, err := os.ReadFile(netlab.Binary())
	if err := errors.Join(err, os.Chmod(dir, 0o755), os.WriteFile(bin, content, 0o755), os.Mkdir(l.Host.State, 0o700), os.Mkdir(bpffs, 0o755),
		unix.Mount("bpf", bpffs, "bpf", 0, "mode=0755"), os.Mkdir(l.Host.BPFFS, 0o700), os.Chown(l.Host.State, uid, uid), os.Chown(l.Host.BPFFS, uid, uid)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // before the lab looks whether all is gone
		down := l.Host.Try(t, l.Host.Env, slices.Concat(withCaps(uid, allCaps), []string{bin}, l.Host.Command("down", "--purge")[1:])...)
		if down.Code != 0 {
			t.Error(down)
		}
		if pins := l.Host.Pins(t); len(pins) > 0 {
			t.Errorf("left: %v", pins)
		}
		if err := errors.Join(unix.Unmount(bpffs, 0), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
		l.Host.State, l.Host.BPFFS = wasState, wasBPFFS
	})
	return bin
}

// checkModes looks at everything that ebnet has made.
func checkModes(t *testing.T, l *netlab.Lab, uid int) {
	t.Helper()
	for _, root := range []string{l.Host.State, l.Host.BPFFS} {
		if err := filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
			if err != nil {
				return err
			}
			want := os.FileMode(0o600)
			if info.IsDir() {
				want = 0o700
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil || info.Mode().Perm() != want || int(st.Uid) != uid {
				t.Errorf("%s: mode %v of user %d, want %v of %d (%v)", path, info.Mode(), st.Uid, want, uid, err)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
}

// TestPrivilegedUmask: the modes are those whatever the umask.
func TestPrivilegedUmask(t *testing.T) {
	for _, umask := range []string{"0", "0777"} {
		l := netlab.New(t)
		box := l.Container(t, "a").Name
		for _, args := range []string{"up --uplink " + netlab.UplinkLink, "connect default " + box + " --name a -p 8080:80"} {
			r := l.Host.Try(t, l.Host.Env, "sh", "-c", "umask "+umask+"; exec "+strings.Join(l.Host.Command(strings.Fields(args)...), " "))
			if r.Code != 0 {
				t.Fatal(r)
			}
		}
		checkModes(t, l, 0)
	}
}

// TestPrivilegedLinks: no link of another user is followed, whatever path it is in, and no file behind one is
// written or made.
func TestPrivilegedLinks(t *testing.T) {
	l := netlab.New(t)
	box := l.Container(t, "a")
	l.Host.Up(t, "--uplink", netlab.UplinkLink)
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	const secret = "root:x:0:0\n"
	check := func(what string) {
		t.Helper()
		if b, err := os.ReadFile(victim); string(b) != secret || err != nil {
			t.Fatalf("%s: the victim's file is %q (%v)", what, b, err)
		}
	}
	mallory := filepath.Join(dir, "mallory")
	link := func(target, name string) string {
		t.Helper()
		path := filepath.Join(mallory, name)
		if err := errors.Join(os.Symlink(target, path), os.Lchown(path, 12345, 12345)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := errors.Join(os.WriteFile(victim, []byte(secret), 0o600), os.Mkdir(mallory, 0o755), os.Chown(mallory, 12345, 12345),
		os.Mkdir(filepath.Join(dir, "private"), 0o700)); err != nil {
		t.Fatal(err)
	}
	toFile, toDir := link(victim, "file"), link(filepath.Join(dir, "private"), "dir")
	toNS := link(filepath.Join("/run/netns", box.Name), "ns")
	empty := filepath.Join(mallory, "state")
	if err := errors.Join(os.Mkdir(empty, 0o700), os.Chown(empty, 12345, 12345)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"--state", toDir, "network", "create", "x"},
		{"--state", toDir + "/deeper", "network", "create", "x"},
		{"--state", empty, "network", "create", "x"},
		{"--bpffs", toDir, "up"},
		{"--cgroup", toDir, "up"},
		{"up", "-f", toFile},
		{"metrics", "--output-file", toDir + "/metrics"},
		{"connect", "default", toNS},
	} {
		r := l.Host.TryEbnet(t, args...)
		if r.Code == 0 || !strings.Contains(r.Stderr, "user 12345") {
			t.Errorf("%v", r)
		}
		check(strings.Join(args, " "))
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "private")); err != nil || len(entries) > 0 {
		t.Errorf("behind a link there is now %v (%v)", entries, err)
	}
	// In a place of its name: replaced, and what it leads to stays.
	if r := l.Host.TryEbnet(t, "metrics", "--output-file", toFile); r.Code != 0 {
		t.Error(r)
	}
	check("metrics")

	// Where the state's own files are, which nobody but root could do.
	for _, name := range []string{"lock", "ebnet.db.new", "ebnet.db.bak.new", "ebnet.db.bak"} {
		state := filepath.Join(t.TempDir(), "state")
		if err := errors.Join(os.Mkdir(state, 0o700), os.Symlink(victim, filepath.Join(state, name))); err != nil {
			t.Fatal(err)
		}
		l.Host.TryEbnet(t, "--state", state, "--bpffs", filepath.Join(filepath.Dir(l.Host.BPFFS), "other"), "network", "create", "x")
		check(name)
	}
	hard := filepath.Join(t.TempDir(), "state")
	if err := errors.Join(os.Mkdir(hard, 0o700), os.Link(victim, filepath.Join(hard, "lock"))); err != nil {
		t.Skipf("SKIP the rest: %v", err)
	}
	if r := l.Host.TryEbnet(t, "--state", hard, "network", "create", "x"); r.Code != 1 {
		t.Errorf("a lock with another name: %v", r)
	}
	check("hard link")
}
