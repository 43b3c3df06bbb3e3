package network

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

func mustReadDir(t *testing.T, dir string) []os.DirEntry {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return entries
}

func TestReadOnlyCreatesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	h, err := open(Options{StateDir: dir}, ReadOnly, newFake(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := h.Status(); err != nil || s.Up || s.Kernel == "" {
		t.Errorf("status: %+v, %v", s, err)
	}
	if ns, err := h.Networks(); err != nil || len(ns) != 0 || ns == nil {
		t.Errorf("networks: %v, %v", ns, err)
	}
	must(t)(h.Flows(FlowFilter{}))
	must(t)(nil, h.Close())
	must(t)(nil, h.Close())
	if _, err := os.Stat(dir); err == nil {
		t.Error("the directory exists")
	}
}

func TestFailedVerbLeavesNoState(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	h := openFake(t, dir, newFake())
	_, err := h.Connect(ConnectRequest{Network: "nope", NetNS: "w1"})
	wantKind(t, err, ErrNotFound)
	wantKind(t, h.RemoveNetwork("nope", false), ErrNotFound)
	must(t)(nil, h.Close())
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("left: %v", mustReadDir(t, dir))
	}
}

func TestPermissions(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	h := openFake(t, dir, newFake())
	must(t)(h.CreateNetwork(NetworkRequest{Name: "web", Masquerade: true}))
	for name, want := range map[string]os.FileMode{"": 0o700, stateFile: 0o600, "lock": 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%q: %v, %v", name, info.Mode(), err)
		}
	}
	must(t)(nil, h.Down(true))
	must(t)(nil, h.Close())
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("purge left %v", mustReadDir(t, dir))
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	f := newFake()
	h := openFake(t, dir, f)
	must(t)(h.CreateNetwork(NetworkRequest{Name: "web", Masquerade: true}))
	for _, access := range []Access{ReadOnly, ReadWrite} {
		_, err := open(Options{StateDir: dir}, access, f, 50*time.Millisecond)
		if wantKind(t, err, ErrConflict); err == nil || !strings.Contains(err.Error(), filepath.Base(os.Args[0])) {
			t.Errorf("the error does not name who holds the lock: %v", err)
		}
	}
	closed := make(chan error)
	go func() {
		time.Sleep(50 * time.Millisecond)
		closed <- h.Close()
	}()
	again, err := open(Options{StateDir: dir}, ReadWrite, f, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	must(t)(nil, <-closed)
	must(t)(again.Network("web"))
	// Who waits while the state is purged begins anew.
	waiting := make(chan error)
	go func() {
		h, err := open(Options{StateDir: dir}, ReadWrite, f, 5*time.Second)
		if err == nil {
			_, err = h.CreateNetwork(NetworkRequest{Name: "new", Masquerade: true})
			_ = h.Close()
		}
		waiting <- err
	}()
	time.Sleep(50 * time.Millisecond)
	must(t)(nil, again.Down(true))
	must(t)(nil, again.Close())
	must(t)(nil, <-waiting)
	ro, err := open(Options{StateDir: dir}, ReadOnly, f, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	if ns, err := ro.Networks(); err != nil || len(ns) != 1 || ns[0].Name != "new" {
		t.Errorf("%v, %v", ns, err)
	}
}

func TestSchema(t *testing.T) {
	dir := t.TempDir()
	h := openFake(t, dir, newFake())
	must(t)(h.CreateNetwork(NetworkRequest{Name: "web", Masquerade: true}))
	schema := func(h *Host, version string) {
		t.Helper()
		must(t)(nil, h.state.update(func(t *tx) error { return t.Bucket(metaBucket).Put([]byte("schema"), []byte(version)) }))
	}
	schema(h, "1") // read, and written as what it is now
	must(t)(nil, h.Close())
	h = openFake(t, dir, newFake())
	must(t)(h.CreateNetwork(NetworkRequest{Name: "back", Masquerade: true}))
	must(t)(nil, h.state.view(func(tx *tx) error {
		if v := string(tx.Bucket(metaBucket).Get([]byte("schema"))); v != "2" {
			t.Errorf("schema %s", v)
		}
		return nil
	}))
	schema(h, "3")
	must(t)(nil, h.Close())
	_, err := open(Options{StateDir: dir}, ReadOnly, newFake(), time.Second)
	wantKind(t, err, ErrUnsupported)

	other := filepath.Join(t.TempDir(), stateFile)
	db, err := bbolt.Open(other, 0o600, nil)
	must(t)(nil, err)
	must(t)(nil, db.Close())
	_, err = open(Options{StateDir: filepath.Dir(other)}, ReadOnly, newFake(), time.Second)
	wantKind(t, err, ErrFailed)
}

// TestDamaged damages the file in many ways. Some are invisible; the others must
// be one clear error, and none may be a crash or a change of the file.
func TestDamaged(t *testing.T) {
	dir := t.TempDir()
	f := newFake()
	h := openFake(t, dir, f)
	prepareTwo(t, h, f)
	must(t)(nil, h.Close())
	path := filepath.Join(dir, stateFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damages := map[string]func([]byte) []byte{
		"empty":     func([]byte) []byte { return nil },
		"text":      func([]byte) []byte { return []byte("hello\n") },
		"zeros":     func(b []byte) []byte { return make([]byte, len(b)) },
		"truncated": func(b []byte) []byte { return b[:5*4096] },
		"two pages": func(b []byte) []byte { return b[:8192] },
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 60 {
		damages[fmt.Sprint("random ", i)] = func(b []byte) []byte {
			b = bytes.Clone(b)
			at := 8192 + rnd.IntN(len(b)/2)
			for j := range min(600, len(b)-at) {
				b[at+j] = byte(rnd.Uint32())
			}
			return b
		}
	}
	refused := 0
	for name, damage := range damages {
		bad := damage(good)
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		err := use(dir, f)
		if err != nil {
			refused++
			if ExitCode(err) != 1 || strings.Contains(err.Error(), "\n") || Hint(err) == "" {
				t.Errorf("%s: exit code %d, hint %q: %v", name, ExitCode(err), Hint(err), err)
			}
		} else if !strings.HasPrefix(name, "random") {
			t.Errorf("%s: not noticed", name)
		}
		if now, _ := os.ReadFile(path); !bytes.Equal(now, bad) {
			t.Errorf("%s: the file was changed", name)
		}
	}
	t.Logf("%d of %d damages were noticed", refused, len(damages))
}

// use reads everything there is.
func use(dir string, f *fake) error {
	h, err := open(Options{StateDir: dir}, ReadOnly, f, time.Second)
	if err != nil {
		return err
	}
	defer h.Close()
	if _, err := h.Networks(); err != nil {
		return err
	}
	if _, err := h.Endpoints(""); err != nil {
		return err
	}
	if _, err := h.Ports(""); err != nil {
		return err
	}
	_, err = h.Status()
	return err
}
