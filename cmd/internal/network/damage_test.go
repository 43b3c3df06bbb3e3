package network

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"github.com/ebnet/ebnet/loader"
)

const pageBytes = 4096

// bigState makes a state with trees of several pages, and returns what is in it and how the file was
// before the last change.
func bigState(t *testing.T) (dir string, f *fake, good, before []byte, dump []string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "state")
	f = newFake()
	h := openFake(t, dir, f)
	preparePolicy(t, h, f)
	for i := range 40 {
		ns := fmt.Sprint("n", i)
		f.space(ns, uint64(1000+i))
		must(t)(h.Connect(ConnectRequest{Network: DefaultNetwork, NetNS: ns, Ports: specs(t, fmt.Sprintf("%d:80", 2000+i))}))
	}
	path := filepath.Join(dir, stateFile)
	before = mustReadFile(t, path)
	must(t)(nil, h.Disconnect("n20"))
	dump = dumpState(t, h)
	must(t)(nil, h.Close())
	return dir, f, mustReadFile(t, path), before, dump
}

func mustReadFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// inUse is how much of the file the header speaks of.
func inUse(b []byte) int {
	meta := b[pageHeader:]
	if other := b[pageBytes+pageHeader:]; binary.NativeEndian.Uint64(other[48:]) > binary.NativeEndian.Uint64(meta[48:]) {
		meta = other
	}
	return int(binary.NativeEndian.Uint64(meta[40:])) * pageBytes
}

// damages are ways in which a file goes bad.
func damages(good, before []byte) map[string][]byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	garbage := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return b
	}
	used := inUse(good)
	all := map[string][]byte{
		"empty":               {},
		"one byte":            {0},
		"text":                []byte("hello\n"),
		"zeros":               make([]byte, len(good)),
		"garbage":             garbage(len(good)),
		"first half zeros":    append(make([]byte, used/2), good[used/2:]...),
		"headers and garbage": append(bytes.Clone(good[:2*pageBytes]), garbage(len(good)-2*pageBytes)...),
	}
	for at := pageBytes; at < used; at += pageBytes {
		all[fmt.Sprint("cut at page ", at/pageBytes)] = good[:at]
	}
	for range 40 {
		at := rnd.IntN(used)
		all[fmt.Sprint("cut at byte ", at)] = good[:at]
	}
	at := func(page int, content []byte) []byte {
		b := bytes.Clone(good)
		copy(b[page*pageBytes:(page+1)*pageBytes], content)
		return b
	}
	for page := range used / pageBytes {
		all[fmt.Sprintf("page %d zeros", page)] = at(page, make([]byte, pageBytes))
		all[fmt.Sprintf("page %d garbage", page)] = at(page, garbage(pageBytes))
		all[fmt.Sprintf("page %d cut", page)] = at(page, append(bytes.Clone(good[page*pageBytes:][:512]), make([]byte, pageBytes-512)...))
		all[fmt.Sprintf("page %d of before", page)] = at(page, before[page*pageBytes:])
		other := rnd.IntN(used / pageBytes)
		all[fmt.Sprintf("page %d like %d", page, other)] = at(page, good[other*pageBytes:])
		for i := range 12 {
			b := bytes.Clone(good)
			where := page*pageBytes + rnd.IntN(pageBytes)
			if i < 4 { // its header and first elements
				where = page*pageBytes + rnd.IntN(64)
			}
			b[where] ^= 1 << rnd.IntN(8)
			all[fmt.Sprintf("bit %d of byte %d", b[where]^good[where], where)] = b
		}
	}
	return all
}

// TestDamage damages the file in many ways. A state that opens all the same is the very one that it was, and
// can be written; what does not open is refused with the way out. The file stays as it is.
func TestDamage(t *testing.T) {
	dir, f, good, before, want := bigState(t)
	path := filepath.Join(dir, stateFile)
	saved := mustReadFile(t, path+copySuffix)
	refused, all := 0, damages(good, before)
	for name, bad := range all {
		if err := errors.Join(os.WriteFile(path, bad, 0o600), os.WriteFile(path+copySuffix, saved, 0o600)); err != nil {
			t.Fatal(err)
		}
		start, allocated := time.Now(), allocations()
		err := use(dir, f)
		if took, n := time.Since(start), allocations()-allocated; took > 5*time.Second || n > 64<<20 {
			t.Errorf("%s: took %s and %d bytes", name, took, n)
		}
		if now := mustReadFile(t, path); !bytes.Equal(now, bad) {
			t.Errorf("%s: the file was changed", name)
		}
		if err != nil {
			refused++
			checkRefusal(t, name, err)
			if _, err := open(Options{StateDir: dir}, ReadWrite, f, time.Second); !errors.Is(err, errCorrupt) {
				t.Errorf("%s: to be written, it opens: %v", name, err)
			}
			continue
		}
		h := openFake(t, dir, f)
		if d := cmp.Diff(want, dumpState(t, h)); d != "" {
			t.Errorf("%s: not noticed (-want +have):\n%s", name, d)
		}
		must(t)(h.CreateNetwork(NetworkRequest{Name: "more", Masquerade: true}))
		must(t)(nil, h.Close())
		if err := use(dir, f); err != nil {
			t.Errorf("%s: opened, written, and then: %v", name, err)
		}
	}
	t.Logf("%d of %d damages were noticed, the others were where nothing is", refused, len(all))
}

func allocations() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

func checkRefusal(t *testing.T, name string, err error) {
	t.Helper()
	if ExitCode(err) != 1 || !errors.Is(err, errCorrupt) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "runtime error") ||
		!strings.Contains(Hint(err), "ebnet up") {
		t.Errorf("%s: exit code %d, hint %q: %v", name, ExitCode(err), Hint(err), err)
	}
}

// TestForeignFile puts what is no file in the state's place.
func TestForeignFile(t *testing.T) {
	for name, put := range map[string]func(path string) error{
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"link": func(path string) error {
			return errors.Join(os.WriteFile(path+".other", []byte("mine"), 0o600), os.Symlink(path+".other", path))
		},
		"dangling link": func(path string) error { return os.Symlink(path+".nowhere", path) },
		"fifo":          func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"device": func(path string) error {
			if os.Geteuid() != 0 {
				return nil
			}
			return syscall.Mknod(path, syscall.S_IFCHR|0o600, 1<<8|5) // zero
		},
		"socket": func(path string) error { return syscall.Mknod(path, syscall.S_IFSOCK|0o600, 0) },
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, stateFile)
		must(t)(nil, put(path))
		was, err := os.Lstat(path)
		if err != nil {
			t.Logf("SKIP: %s: needs root", name)
			continue
		}
		for _, access := range []Access{ReadOnly, ReadWrite} {
			_, err := open(Options{StateDir: dir}, access, newFake(), time.Second)
			if err == nil {
				t.Fatalf("%s: it opens", name)
			}
			checkRefusal(t, name, err)
		}
		if now, err := os.Lstat(path); err != nil || now.Mode() != was.Mode() || !os.SameFile(now, was) {
			t.Errorf("%s: it was replaced", name)
		}
	}
}

// TestCopyAndRestore: the copy is what the last command left, and comes back by --restore.
func TestCopyAndRestore(t *testing.T) {
	dir, f, good, _, want := bigState(t)
	path := filepath.Join(dir, stateFile)
	saved := mustReadFile(t, path+copySuffix)
	if !bytes.Equal(saved, good[:len(saved)]) || len(saved) != inUse(good) {
		t.Fatal("the copy is another state")
	}
	o := Options{StateDir: dir}
	_, err := Restore(o)
	wantKind(t, err, ErrConflict)

	// Damaged.
	must(t)(nil, os.WriteFile(path, good[:pageBytes], 0o600))
	err = use(dir, f)
	if err == nil || !strings.Contains(Hint(err), "--restore") || !strings.Contains(Hint(err), "ago)") {
		t.Errorf("%v, hint %q", err, Hint(err))
	}
	if aside, err := Restore(Options{StateDir: dir, DryRun: true}); err != nil || aside != "" || use(dir, f) == nil {
		t.Errorf("a dry run: %q, %v", aside, err)
	}
	aside, err := Restore(o)
	if err != nil || !bytes.Equal(mustReadFile(t, aside), good[:pageBytes]) {
		t.Fatalf("%q, %v", aside, err)
	}
	h := openFake(t, dir, f)
	if d := cmp.Diff(want, dumpState(t, h)); d != "" {
		t.Errorf("restored (-want +have):\n%s", d)
	}
	must(t)(h.Up(UpRequest{}))
	checkConsistent(t, h, f)

	// The copy is older than what the kernel has.
	must(t)(nil, h.Disconnect("n3"))
	must(t)(h.Connect(ConnectRequest{Network: DefaultNetwork, NetNS: "w3", Ports: specs(t, "3000:80")}))
	must(t)(nil, h.Close())
	must(t)(nil, os.WriteFile(path+copySuffix, saved, 0o600))
	must(t)(nil, os.WriteFile(path, nil, 0o600))
	again, err := Restore(o)
	if err != nil || again == aside {
		t.Fatalf("%q, %v", again, err)
	}
	h = openFake(t, dir, f)
	must(t)(h.Up(UpRequest{}))
	must(t)(nil, h.Down(false)) // closes the port that is not recorded any more
	must(t)(h.Up(UpRequest{}))
	checkConsistent(t, h, f)
	if _, err := h.Endpoint("n3"); err != nil {
		t.Error(err)
	}
	_, err = h.Endpoint("w3")
	wantKind(t, err, ErrNotFound)
	must(t)(nil, h.Close())

	// Lost, and with a copy that is no good.
	must(t)(nil, os.Remove(path))
	for _, access := range []Access{ReadOnly, ReadWrite} {
		if _, err := open(o, access, f, time.Second); err == nil || ExitCode(err) != 1 || !strings.Contains(Hint(err), "--restore") {
			t.Errorf("lost: %v, hint %q", err, Hint(err))
		}
	}
	saved = mustReadFile(t, path+copySuffix)
	must(t)(nil, os.WriteFile(path+copySuffix, saved[:len(saved)-1], 0o600))
	if _, err := Restore(o); ExitCode(err) != 1 || !strings.Contains(err.Error(), copySuffix) {
		t.Errorf("with a damaged copy: %v", err)
	}
	must(t)(nil, os.WriteFile(path+copySuffix, saved, 0o600))
	if aside, err := Restore(o); err != nil || aside != "" {
		t.Errorf("%q, %v", aside, err)
	}
	h = openFake(t, dir, f)
	must(t)(nil, h.Down(true))
	must(t)(nil, h.Close())
	for _, e := range mustReadDir(t, dir) {
		if !strings.Contains(e.Name(), damagedSuffix) {
			t.Errorf("purge left %s", e.Name())
		}
	}
}

// TestCopyFails: a verb does not fail for its copy, and the next one makes it.
func TestCopyFails(t *testing.T) {
	dir := t.TempDir()
	f := newFake()
	h := openFake(t, dir, f)
	must(t)(h.CreateNetwork(NetworkRequest{Name: "web", Masquerade: true}))
	must(t)(nil, h.Close())
	path := filepath.Join(dir, stateFile)
	blocker := path + copySuffix + freshSuffix
	must(t)(nil, os.MkdirAll(filepath.Join(blocker, "x"), 0o700))
	var warned []string
	h = openFake(t, dir, f, func(o *Options) { o.Warn = func(s string) { warned = append(warned, s) } })
	must(t)(h.CreateNetwork(NetworkRequest{Name: "more", Masquerade: true}))
	must(t)(nil, h.Close())
	if len(warned) != 1 || !strings.Contains(warned[0], "older than the state") {
		t.Errorf("warnings: %q", warned)
	}
	find := func() (found bool) {
		h, err := open(Options{StateDir: dir}, ReadOnly, f, time.Second)
		must(t)(nil, err)
		d, err := h.Examine()
		must(t)(nil, err)
		for _, i := range d.Items {
			found = found || i.Check == "state"
		}
		must(t)(nil, h.Close())
		return found
	}
	if !find() {
		t.Error("doctor does not tell of an old copy")
	}
	must(t)(nil, os.RemoveAll(blocker))
	must(t)(nil, openFake(t, dir, f).Close())
	if find() {
		t.Error("no verb has made the copy anew")
	}
}

// unpack writes a file of testdata to path.
func unpack(t *testing.T, name, path string) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(mustReadFile(t, filepath.Join("testdata", name))))
	must(t)(nil, err)
	b, err := io.ReadAll(z)
	must(t)(nil, err)
	must(t)(nil, os.WriteFile(path, b, 0o600))
	return b
}

// TestMigration opens a file that an ebnet of schema 1 has written, with two endpoints.
func TestMigration(t *testing.T) {
	dir, f := t.TempDir(), newFake()
	path := filepath.Join(dir, stateFile)
	old := unpack(t, "schema-1.db.gz", path)
	for _, o := range []Options{{StateDir: dir}, {StateDir: dir, DryRun: true}} {
		h, err := open(o, map[bool]Access{false: ReadOnly, true: ReadWrite}[o.DryRun], f, time.Second)
		must(t)(nil, err)
		if es, err := h.Endpoints(""); err != nil || len(es) != 2 {
			t.Errorf("%v, %v", es, err)
		}
		must(t)(nil, h.Close())
		if !bytes.Equal(mustReadFile(t, path), old) {
			t.Fatal("who only reads has changed the file")
		}
	}
	if len(mustReadDir(t, dir)) != 1 {
		t.Errorf("reading left %v", mustReadDir(t, dir))
	}
	h := openFake(t, dir, f, func(o *Options) { o.Version = "v9" })
	must(t)(h.Up(UpRequest{}))
	checkConsistent(t, h, f)
	if ports, err := h.Ports("w1"); err != nil || len(ports) != 2 {
		t.Errorf("%v, %v", ports, err)
	}
	must(t)(nil, h.Close())
	m, err := (&state{dir: dir}).verify(path)
	if err != nil || m.schema != schemaVersion || m.writer != "v9" || !m.summed() {
		t.Errorf("%+v, %v", m, err)
	}
	if kept := mustReadFile(t, path+schemaSuffix+"1"); !bytes.Equal(kept, old[:len(kept)]) || len(kept) != inUse(old) {
		t.Error("the file of the old schema was not kept")
	}
}

// seal writes into the state what no ebnet would, as one that means it.
func forge(t *testing.T, dir string, fn func(*tx) error) {
	t.Helper()
	h := openFake(t, dir, newFake())
	must(t)(nil, h.state.update(func(t *tx) error {
		if err := fn(t); err != nil {
			return err
		}
		schema := bytes.Clone(t.Bucket(metaBucket).Get(schemaKey))
		sum, err := t.sum()
		if err != nil || string(schema) == "" {
			return err
		}
		return t.Bucket(metaBucket).Put(sumKey, binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, uint64(t.ID())), sum))
	}))
	must(t)(nil, h.Close())
}

// TestNewerSchema: going back to an ebnet that cannot read the state is refused, and what to do is said.
func TestNewerSchema(t *testing.T) {
	dir := t.TempDir()
	h := openFake(t, dir, newFake())
	must(t)(h.CreateNetwork(NetworkRequest{Name: "web", Masquerade: true}))
	must(t)(nil, h.Close())
	forge(t, dir, func(t *tx) error {
		return errors.Join(t.Bucket(metaBucket).Put(schemaKey, []byte("3")), t.Bucket(metaBucket).Put(writerKey, []byte("v1.2.3")))
	})
	before := mustReadFile(t, filepath.Join(dir, stateFile))
	for _, access := range []Access{ReadOnly, ReadWrite} {
		_, err := open(Options{StateDir: dir}, access, newFake(), time.Second)
		wantKind(t, err, ErrUnsupported)
		if err == nil || !strings.Contains(err.Error(), "ebnet v1.2.3") || !strings.Contains(Hint(err), ".schema-2") {
			t.Errorf("%v, hint %q", err, Hint(err))
		}
	}
	_, err := Restore(Options{StateDir: dir})
	wantKind(t, err, ErrUnsupported)
	if !bytes.Equal(before, mustReadFile(t, filepath.Join(dir, stateFile))) {
		t.Error("the file was changed")
	}
}

// TestOlderWriter: an ebnet without checksums may write in between; what it writes is believed if
// its records go together.
func TestOlderWriter(t *testing.T) {
	dir, f := t.TempDir(), newFake()
	h := openFake(t, dir, f)
	prepareTwo(t, h, f)
	must(t)(nil, h.Close())
	path := filepath.Join(dir, stateFile)
	write := func(fn func(*tx) error) {
		db, err := bbolt.Open(path, 0o600, nil)
		must(t)(nil, err)
		must(t)(nil, db.Update(func(b *bbolt.Tx) error { return fn(&tx{b}) }))
		must(t)(nil, db.Close())
	}
	write(func(t *tx) error { return t.Bucket(metaBucket).Delete(writerKey) })
	must(t)(nil, use(dir, f))
	write(func(t *tx) error { return t.Bucket(slotsBucket).Delete(numberKey(1)) })
	checkRefusal(t, "a slot is missing", use(dir, f))
}

// TestForged writes records that no ebnet writes. Those that are impossible are refused where they are read, the
// others are found by doctor.
func TestForged(t *testing.T) {
	endpoint := func(change func(*endpointRecord)) func(*tx) error {
		return func(t *tx) error {
			e, err := t.endpoint("w1")
			if err == nil {
				key := []byte(e.Name)
				change(e)
				err = put(t, endpointsBucket, key, e)
			}
			return err
		}
	}
	net := func(change func(*networkRecord)) func(*tx) error {
		return func(t *tx) error {
			n, err := t.network(DefaultNetwork)
			if err == nil {
				change(n)
				err = put(t, networksBucket, []byte(DefaultNetwork), n)
			}
			return err
		}
	}
	port := func(change func(*portRecord)) func(*tx) error {
		return func(t *tx) error {
			ports, err := t.portsOf("w1")
			if err == nil {
				key := ports[0].key()
				change(ports[0])
				err = put(t, portsBucket, key[:], ports[0])
			}
			return err
		}
	}
	for name, c := range map[string]struct {
		forge   func(*tx) error
		refused bool
	}{
		"name with a slash":      {endpoint(func(e *endpointRecord) { e.Name = "../w1" }), true},
		"name with NUL":          {endpoint(func(e *endpointRecord) { e.Network = "de\x00fault" }), true},
		"device with a slash":    {endpoint(func(e *endpointRecord) { e.IfName = "../eth0" }), true},
		"long device":            {endpoint(func(e *endpointRecord) { e.HostIfName = "abcdefghijklmnopq" }), true},
		"slot too high":          {endpoint(func(e *endpointRecord) { e.Slot = loader.MaxSlots }), true},
		"slot 0":                 {endpoint(func(e *endpointRecord) { e.Slot = 0 }), true},
		"no address":             {endpoint(func(e *endpointRecord) { e.IP = netip.Addr{} }), true},
		"relative path":          {endpoint(func(e *endpointRecord) { e.NSPath = "ns" }), true},
		"path upwards":           {endpoint(func(e *endpointRecord) { e.NSPath = "/run/../etc/passwd" }), true},
		"no MAC":                 {endpoint(func(e *endpointRecord) { e.MAC = "" }), true},
		"status":                 {endpoint(func(e *endpointRecord) { e.Status = "done" }), true},
		"index":                  {endpoint(func(e *endpointRecord) { e.Ifindex = -1 }), true},
		"address outside":        {endpoint(func(e *endpointRecord) { e.IP = netip.MustParseAddr("10.1.2.3") }), false},
		"address not leased":     {endpoint(func(e *endpointRecord) { e.IP = netip.MustParseAddr("172.18.9.9") }), false},
		"network not there":      {endpoint(func(e *endpointRecord) { e.Network = "none" }), false},
		"slot of another":        {endpoint(func(e *endpointRecord) { e.Slot = 2 }), false},
		"name of another":        {endpoint(func(e *endpointRecord) { e.Name = "w9" }), false},
		"no subnet":              {net(func(n *networkRecord) { n.Subnets = nil }), true},
		"gateway elsewhere":      {net(func(n *networkRecord) { n.Gateways[0] = netip.MustParseAddr("10.0.0.1") }), true},
		"subnet with host bits":  {net(func(n *networkRecord) { n.Subnets[0] = netip.MustParsePrefix("172.18.0.9/16") }), true},
		"bridge":                 {net(func(n *networkRecord) { n.Bridge = "a/b" }), true},
		"mode":                   {net(func(n *networkRecord) { n.Mode = "bridge" }), true},
		"id":                     {net(func(n *networkRecord) { n.ID = loader.MaxNetworks }), true},
		"port of nobody":         {port(func(p *portRecord) { p.Endpoint = "w8" }), false},
		"port of no protocol":    {port(func(p *portRecord) { p.Protocol = 1 }), true},
		"ports beyond the last":  {port(func(p *portRecord) { p.Count = 65000 }), true},
		"ports of negative size": {port(func(p *portRecord) { p.Count = -1 }), true},
		"no JSON":                {func(t *tx) error { return t.Bucket(endpointsBucket).Put([]byte("w1"), []byte("{")) }, true},
		"no host":                {func(t *tx) error { return t.Bucket(metaBucket).Delete([]byte("host")) }, true},
		"uplink":                 {func(t *tx) error { return t.putHost(hostRecord{Uplinks: []string{"a/b"}}) }, true},
		"no addresses":           {func(t *tx) error { return t.Bucket(ipamBucket).DeleteBucket([]byte(DefaultNetwork)) }, false},
		"members of nothing":     {func(t *tx) error { return t.Bucket(membersBucket).Put([]byte("x\x00y"), nil) }, false},
		"slot of nothing":        {func(t *tx) error { return t.Bucket(slotsBucket).Put(numberKey(99), []byte("w1")) }, false},
		"ports of nothing":       {func(t *tx) error { return t.Bucket(portsOfBucket).Put([]byte("w9\x00x"), nil) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir, f := t.TempDir(), newFake()
			h := openFake(t, dir, f)
			prepareTwo(t, h, f)
			must(t)(nil, h.Close())
			forge(t, dir, c.forge)
			if err := use(dir, f); c.refused != (err != nil) {
				t.Fatalf("%v", err)
			} else if err != nil {
				checkRefusal(t, name, err)
				return
			}
			h = openFake(t, dir, f)
			d, err := h.Examine()
			must(t)(nil, err)
			for _, i := range d.Items {
				if i.Check == "state" && strings.Contains(i.What, stateFile+": ") {
					return
				}
			}
			t.Errorf("doctor does not see it: %+v", d.Items)
		})
	}
}

// FuzzImage gives the reader any bytes behind headers that are right: it must return, and what it
// accepts bbolt must be able to read.
func FuzzImage(f *testing.F) {
	z, err := gzip.NewReader(bytes.NewReader(func() []byte { b, _ := os.ReadFile("testdata/schema-1.db.gz"); return b }()))
	if err != nil {
		f.Fatal(err)
	}
	good, err := io.ReadAll(z)
	if err != nil {
		f.Fatal(err)
	}
	used := inUse(good)
	f.Add(uint16(0), good[:80])
	for at := 2 * pageBytes; at < used; at += pageBytes {
		f.Add(uint16(at), good[at:at+64])
		f.Add(uint16(at+8), []byte{1, 0, 1})
		f.Add(uint16(at+10), []byte{255, 255, 255, 255})
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, at uint16, with []byte) {
		b := bytes.Clone(good[:used])
		if int(at) < len(b) {
			copy(b[at:], with)
		}
		for _, page := range []int{0, pageBytes} { // with checksums that are right
			meta := b[page+pageHeader:]
			sum := fnv.New64a()
			_, _ = sum.Write(meta[:metaSum])
			binary.NativeEndian.PutUint64(meta[metaSum:], sum.Sum64())
		}
		path := filepath.Join(dir, stateFile)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := openRegular(path)
		if err != nil {
			t.Fatal(err)
		}
		_, err = readImage(file)
		_ = file.Close()
		if err != nil {
			return
		}
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
		if err != nil {
			t.Fatalf("accepted, but: %v", err)
		}
		defer db.Close()
		if err := db.View(func(b *bbolt.Tx) error {
			_, err := (&tx{b}).sum()
			return err
		}); err != nil {
			t.Errorf("accepted, but: %v", err)
		}
	})
}
