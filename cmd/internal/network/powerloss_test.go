package network

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Power can fail at any moment. What is on the disk then is what was synchronised, and any part of what was
// written since, in any order, by sectors of 512 bytes; names appear, change and go in their order, but nothing
// says how many of them have. So verbs are run under strace, and each such disk is made of what it shows.

// powerVerbs are run one after the other, each in a process of its own.
var powerVerbs = []struct {
	name string
	do   func(t *testing.T, h *Host) error
}{
	{"up", func(t *testing.T, h *Host) error { return nil }},
	{"network create", func(t *testing.T, h *Host) error {
		_, err := h.CreateNetwork(NetworkRequest{Name: "web", ICC: true, Masquerade: true})
		return err
	}},
	{"connect", func(t *testing.T, h *Host) error {
		_, err := h.Connect(ConnectRequest{Network: DefaultNetwork, NetNS: "w1", Ports: specs(t, "8080:80")})
		return err
	}},
	{"connect another", func(t *testing.T, h *Host) error {
		_, err := h.Connect(ConnectRequest{Network: "web", NetNS: "w2"})
		return err
	}},
	{"expose", func(t *testing.T, h *Host) error {
		_, err := h.Expose("w1", specs(t, "1000-1100:1000-1100", "32769:53/udp"), nil)
		return err
	}},
	{"unexpose", func(t *testing.T, h *Host) error { _, err := h.Unexpose("w1", nil); return err }},
	{"disconnect", func(t *testing.T, h *Host) error { return h.Disconnect("w1") }},
	{"network rm --force", func(t *testing.T, h *Host) error { return h.RemoveNetwork("web", true) }},
	{"down --purge", func(t *testing.T, h *Host) error { return h.Down(true) }},
}

const powerEnv = "EBNET_TEST_POWER" // the verb's index and the directory, for the process that is traced

func TestPowerLoss(t *testing.T) {
	if index, dir, ok := strings.Cut(os.Getenv(powerEnv), " "); ok {
		powerVerb(t, index, dir)
		return
	}
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("SKIP: needs strace (Debian package strace)")
	}
	testDisks(t, filepath.Join(t.TempDir(), "state"), len(powerVerbs))
	t.Run("migration", func(t *testing.T) {
		dir := t.TempDir()
		unpack(t, "schema-1.db.gz", filepath.Join(dir, stateFile))
		testDisks(t, dir, 1)
	})
}

// powerVerb is what the traced process does.
func powerVerb(t *testing.T, index, dir string) {
	i, err := strconv.Atoi(index)
	must(t)(nil, err)
	h, err := open(Options{StateDir: dir}, ReadWrite, newFake(), time.Second)
	must(t)(nil, err)
	must(t)(h.Up(UpRequest{}))
	must(t)(nil, powerVerbs[i].do(t, h))
	must(t)(nil, h.Close())
}

// testDisks runs the first verbs.
func testDisks(t *testing.T, dir string, verbs int) {
	disks, states := 0, map[string]bool{}
	for i := range verbs {
		d := diskOf(t, dir)
		trace := filepath.Join(t.TempDir(), "trace")
		cmd := exec.Command("strace", "-f", "-qq", "-y", "-xx", "-s", "1048576", "-o", trace, "-e",
			"trace=openat,write,pwrite64,fdatasync,fsync,rename,renameat,renameat2,unlinkat,unlink,rmdir,ftruncate,fallocate,copy_file_range,sendfile,link,linkat",
			os.Args[0], "-test.run=^TestPowerLoss$")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s", powerEnv, i, dir))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", powerVerbs[i].name, err, out)
		}
		ops := readTrace(t, string(mustReadFile(t, trace)), dir)
		if len(ops) < 4 {
			t.Fatalf("%s: %d operations in\n%s", powerVerbs[i].name, len(ops), mustReadFile(t, trace))
		}
		for n, op := range ops {
			op(d)
			disks += d.fail(t, fmt.Sprintf("%s, after operation %d of %d", powerVerbs[i].name, n+1, len(ops)), states)
			if t.Failed() {
				return
			}
		}
		if all, synced := d.now(t, allWritten), d.now(t, onlySynced); all != synced {
			t.Errorf("%s: it has ended, and is not on the disk:\n%s\n%s", powerVerbs[i].name, all, synced)
		}
		d.same(t, dir)
	}
	t.Logf("%d disks, with %d states on them", disks, len(states))
}

// inode is a file: what of it is safe, and what was written since.
type inode struct {
	safe []byte
	ops  []func([]byte, writeMode) []byte
}

// writeMode says which of 8 sectors of an operation reach the disk.
type writeMode func() bool

func allWritten() bool { return true }
func onlySynced() bool { return false }

func (i *inode) content(mode writeMode) []byte {
	b := bytes.Clone(i.safe)
	for _, op := range i.ops {
		b = op(b, mode)
	}
	return b
}

// disk is the state's directory.
type disk struct {
	safe, names map[string]*inode
	renames     []func(map[string]*inode) // since safe
	read        map[[32]byte]string       // states that were read already, by what was on the disk
}

func diskOf(t *testing.T, dir string) *disk {
	d := &disk{safe: map[string]*inode{}, read: map[[32]byte]string{}}
	for _, e := range mustReadDir(t, dir) {
		d.safe[e.Name()] = &inode{safe: mustReadFile(t, filepath.Join(dir, e.Name()))}
	}
	d.names = maps.Clone(d.safe)
	return d
}

func (d *disk) rename(fn func(map[string]*inode)) {
	d.renames = append(d.renames, fn)
	fn(d.names)
}

// same checks that the trace told everything.
func (d *disk) same(t *testing.T, dir string) {
	t.Helper()
	for name, i := range d.names {
		if have, err := os.ReadFile(filepath.Join(dir, name)); name != "lock" && (err != nil || !bytes.Equal(have, i.content(allWritten))) {
			t.Fatalf("%s is not what was traced (%v)", name, err)
		}
	}
	if entries := mustReadDir(t, dir); len(entries) > 0 && len(entries) != len(d.names) {
		t.Fatalf("the directory has %v, traced were %v", entries, slices.Sorted(maps.Keys(d.names)))
	}
}

// now is the state on the disk if all, or nothing, of what is not synchronised were written.
func (d *disk) now(t *testing.T, mode writeMode) string {
	t.Helper()
	names := d.names
	if !mode() {
		names = d.safe
	}
	return d.state(t, names, mode)
}

// fail makes the disks that a failure of power may leave now.
func (d *disk) fail(t *testing.T, when string, states map[string]bool) (disks int) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(3, uint64(len(when))))
	before, after := d.now(t, onlySynced), d.now(t, allWritten)
	states[after] = true
	names := maps.Clone(d.safe)
	for n := 0; n <= len(d.renames); n++ {
		if n > 0 {
			d.renames[n-1](names)
		}
		for _, share := range []int{0, 4, 4, 4, 1, 7, 8} { // eighths of the sectors that are written
			have := d.state(t, names, func() bool { return rnd.IntN(8) < share })
			disks++
			if have != before && have != after {
				t.Errorf("%s: there is\n%s\nand neither, as before,\n%s\nnor\n%s", when, have, before, after)
				return disks
			}
		}
	}
	return disks
}

// state opens the state in files and returns all that it says.
func (d *disk) state(t *testing.T, files map[string]*inode, mode writeMode) string {
	t.Helper()
	contents := map[string][]byte{}
	sum := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if name != "lock" && !strings.HasSuffix(name, freshSuffix) { // of no meaning to who reads
			contents[name] = files[name].content(mode)
			fmt.Fprintf(sum, "%s %d ", name, len(contents[name]))
			_, _ = sum.Write(contents[name])
		}
	}
	key := [32]byte(sum.Sum(nil))
	if _, ok := d.read[key]; !ok {
		d.read[key] = readState(t, contents)
	}
	return d.read[key]
}

func readState(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	defer os.RemoveAll(dir)
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := &state{dir: dir}
	if _, err := s.verify(s.copyPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "the copy: " + err.Error()
	}
	if len(files) == 0 {
		return "nothing"
	}
	h, err := open(Options{StateDir: dir}, ReadOnly, newFake(), time.Second)
	if err != nil {
		return err.Error()
	}
	defer h.Close()
	return strings.Join(dumpState(t, h), "\n")
}

var (
	traceLine = regexp.MustCompile(`^(\d+) +(.*)$`)
	traceCall = regexp.MustCompile(`^(\w+)\((.*)\) += (-?\d+)`)
	traceFD   = regexp.MustCompile(`^\d+<(.*?)>(?:, (.*))?$`)
	traceText = regexp.MustCompile(`"((?:\\x[0-9a-f]{2})*)"`)
)

// readTrace returns what was done in dir, by what strace has written.
func readTrace(t *testing.T, trace, dir string) (ops []func(*disk)) {
	t.Helper()
	unfinished := map[string]string{}
	for line := range strings.Lines(trace) {
		m := traceLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		pid, text := m[1], m[2]
		if begun, ok := strings.CutSuffix(text, "<unfinished ...>"); ok {
			unfinished[pid] = strings.TrimSpace(begun)
			continue
		}
		if strings.HasPrefix(text, "<... ") {
			_, rest, _ := strings.Cut(text, " resumed>")
			text = unfinished[pid] + rest
		}
		if c := traceCall.FindStringSubmatch(text); c != nil && !strings.HasPrefix(c[3], "-") {
			if op := readCall(t, c[1], c[2], c[3], dir); op != nil {
				ops = append(ops, op)
			}
		}
	}
	return ops
}

// unhex reads text as strace writes it with -xx.
func unhex(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(text, `\x`, ""))
	if err != nil {
		t.Fatalf("strace: %v", err)
	}
	return b
}

// within returns the name of a file in dir; "." is dir itself.
func within(dir, path string) (string, bool) {
	name, err := filepath.Rel(dir, path)
	return name, err == nil && !strings.Contains(name, "/") && name != ".."
}

func readCall(t *testing.T, call, args, result, dir string) func(*disk) {
	t.Helper()
	var texts [][]byte
	for _, m := range traceText.FindAllStringSubmatch(args, -1) {
		texts = append(texts, unhex(t, m[1]))
	}
	path, rest := "", ""
	if m := traceFD.FindStringSubmatch(args); m != nil {
		path, rest = m[1], m[2]
		if strings.HasPrefix(path, `\x`) {
			path = string(unhex(t, path))
		}
	}
	last := rest[strings.LastIndex(rest, " ")+1:]
	name, ours := within(dir, path)
	switch call {
	case "openat":
		name, ours := within(dir, string(texts[0]))
		if !ours || !strings.Contains(args, "O_CREAT") {
			return nil
		}
		return func(d *disk) {
			if d.names[name] == nil {
				i := &inode{}
				d.rename(func(names map[string]*inode) { names[name] = i })
			}
		}
	case "rename", "renameat", "renameat2":
		from, ours := within(dir, string(texts[0]))
		to, _ := within(dir, string(texts[1]))
		if !ours {
			return nil
		}
		return func(d *disk) {
			d.rename(func(names map[string]*inode) {
				names[to] = names[from]
				delete(names, from)
			})
		}
	case "unlink", "unlinkat":
		name, ours := within(dir, string(texts[0]))
		if !ours || name == "." {
			return nil
		}
		return func(d *disk) { d.rename(func(names map[string]*inode) { delete(names, name) }) }
	}
	if !ours {
		return nil
	}
	switch call {
	case "fsync", "fdatasync":
		if name == "." {
			return func(d *disk) { d.safe, d.renames = maps.Clone(d.names), nil }
		}
		return func(d *disk) {
			i := d.names[name]
			i.safe, i.ops = i.content(allWritten), nil
		}
	case "write", "pwrite64", "ftruncate":
		at, err := strconv.Atoi(last)
		if err != nil {
			t.Fatalf("strace: %s(%.200s)", call, args)
		}
		return func(d *disk) {
			i := d.names[name]
			switch {
			case i == nil:
				t.Fatalf("%s of %s, which is not there", call, name)
			case call == "ftruncate":
				i.ops = append(i.ops, func(b []byte, mode writeMode) []byte {
					if !mode() {
						return b
					}
					return slices.Grow(b, max(0, at-len(b)))[:at]
				})
			default:
				if call == "write" { // one after the other
					at = len(i.content(allWritten))
				}
				data := texts[0]
				if strconv.Itoa(len(data)) != result {
					t.Fatalf("strace: %s of %d bytes, has %d", call, len(data), at)
				}
				i.ops = append(i.ops, func(b []byte, mode writeMode) []byte { return writeSectors(b, at, data, mode) })
			}
		}
	}
	if name != "." {
		t.Fatalf("unforeseen: %s(%.200s)", call, args)
	}
	return nil
}

// writeSectors writes those sectors of data that mode says.
func writeSectors(b []byte, at int, data []byte, mode writeMode) []byte {
	const sector = 512
	for from := 0; from < len(data); from += sector {
		if part := data[from:min(from+sector, len(data))]; mode() {
			if end := at + from + len(part); end > len(b) {
				b = append(b, make([]byte, end-len(b))...)
			}
			copy(b[at+from:], part)
		}
	}
	return b
}
