package network

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
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
	must(t)(nil, h.Close())
	for name, want := range map[string]os.FileMode{"": 0o700, stateFile: 0o600, "lock": 0o600, stateFile + copySuffix: 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%q: %v, %v", name, info.Mode(), err)
		}
	}
	h = openFake(t, dir, newFake())
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
