package netlab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// What a person with a root shell and bpftool can do to ebnet's objects in the kernel. All of it finds them by
// their pins.

// pins returns the pins that match below ebnet's directory, of which there must be some.
func (h *Host) pins(tb testing.TB, pattern string) []string {
	tb.Helper()
	found, err := filepath.Glob(filepath.Join(h.BPFFS, "v*", pattern))
	if err != nil || len(found) == 0 {
		tb.Fatalf("no pins %s: %v", pattern, err)
	}
	return found
}

// PinNames returns the names of what is pinned in one of ebnet's directories: maps, progs or links.
func (h *Host) PinNames(tb testing.TB, dir string) (names []string) {
	tb.Helper()
	for _, path := range h.pins(tb, dir+"/*") {
		names = append(names, filepath.Base(path))
	}
	return names
}

// Unpin removes the pins that match, as "links/from_container-*".
func (h *Host) Unpin(tb testing.TB, pattern string) {
	tb.Helper()
	h.Remember(tb)
	for _, path := range h.pins(tb, pattern) {
		if err := os.RemoveAll(path); err != nil {
			tb.Fatal(err)
		}
	}
}

// DetachLinks ends the links whose pins match, as "bpftool link detach" does; the pins stay.
func (h *Host) DetachLinks(tb testing.TB, pattern string) {
	tb.Helper()
	for _, path := range h.pins(tb, pattern) {
		l, err := link.LoadPinnedLink(path, nil)
		if err == nil {
			err = errors.Join(l.Detach(), l.Close())
		}
		if err != nil {
			tb.Fatalf("detach %s: %v", path, err)
		}
	}
}

// Map is one of ebnet's maps, with keys and values as bytes.
type Map struct {
	m  *ebpf.Map
	tb testing.TB
}

// Map opens a map; it is closed when the test ends.
func (h *Host) Map(tb testing.TB, name string) *Map {
	tb.Helper()
	h.Remember(tb)
	m, err := ebpf.LoadPinnedMap(h.pins(tb, "maps/"+name)[0], nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { m.Close() })
	return &Map{m, tb}
}

// Entries calls yield for each entry that is not all zero; it may change the map.
func (m *Map) Entries(yield func(key, value []byte)) (n int) {
	m.tb.Helper()
	type entry struct{ key, value []byte }
	var all []entry
	var key, value []byte
	it := m.m.Iterate()
	for it.Next(&key, &value) {
		for _, b := range value {
			if b != 0 {
				all = append(all, entry{append([]byte{}, key...), append([]byte{}, value...)})
				break
			}
		}
	}
	if err := it.Err(); err != nil {
		m.tb.Fatalf("read %v: %v", m.m, err)
	}
	for _, e := range all {
		yield(e.key, e.value)
	}
	return len(all)
}

// Put writes an entry.
func (m *Map) Put(key, value []byte) {
	m.tb.Helper()
	if err := m.m.Put(key, value); err != nil {
		m.tb.Fatalf("write %v: %v", m.m, err)
	}
}

// Delete deletes an entry; one of an array becomes zero.
func (m *Map) Delete(key []byte) {
	m.tb.Helper()
	err := m.m.Delete(key)
	if m.m.Type() == ebpf.Array {
		err = m.m.Put(key, make([]byte, m.m.ValueSize()))
	}
	if err != nil {
		m.tb.Fatalf("delete from %v: %v", m.m, err)
	}
}

// Zero returns a value of the map's size.
func (m *Map) Zero() []byte { return make([]byte, m.m.ValueSize()) }

// RemountBPF unmounts the host's bpf file system, with all that is pinned in it, and mounts an empty one,
// as a reboot does.
func (l *Lab) RemountBPF(tb testing.TB) {
	tb.Helper()
	l.Host.Remember(tb)
	dir := filepath.Join(l.dir, "bpf")
	if err := unmount(dir); err != nil {
		tb.Fatalf("unmount %s: %v", dir, err)
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		tb.Fatalf("mount a bpf file system: %v", err)
	}
}

// OtherBoot makes the state one that was written before the machine was booted: of all that a reboot does it
// is what cannot be done to a namespace.
func (h *Host) OtherBoot(tb testing.TB) {
	tb.Helper()
	db, err := bbolt.Open(filepath.Join(h.State, "ebnet.db"), 0o600, &bbolt.Options{Timeout: patience})
	if err != nil {
		tb.Fatal(err)
	}
	defer db.Close()
	boot := regexp.MustCompile(`"boot":"[^"]+"`)
	err = db.Update(func(t *bbolt.Tx) error {
		changed := map[string][]byte{}
		b := t.Bucket([]byte("endpoints"))
		if err := b.ForEach(func(k, v []byte) error {
			if !boot.Match(v) {
				return fmt.Errorf("no boot in the record of %s: %s", k, v)
			}
			changed[string(k)] = boot.ReplaceAll(v, []byte(`"boot":"00000000-0000-0000-0000-000000000000"`))
			return nil
		}); err != nil {
			return err
		}
		for k, v := range changed {
			if err := b.Put([]byte(k), v); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
}

// Renoted is for a test that makes a device of the host anew: its index at the end may be what it is now.
func (l *Lab) Renoted(tb testing.TB) {
	tb.Helper()
	now := l.Host.Links(tb)
	for name := range l.firstLinks {
		l.firstLinks[name] = now[name]
	}
}

// Forget deletes a container's namespace, and returns when its device at the host is gone too.
func (c *Container) Forget(tb testing.TB) {
	tb.Helper()
	was := c.host.Endpoints(tb)[c.Endpoint]
	if err := batch("netns del " + c.Name + "\n"); err != nil {
		tb.Fatal(err)
	}
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if _, there := c.host.Links(tb)[was.HostLink]; !there {
			return
		}
		if time.Now().After(end) {
			tb.Fatalf("%s is there %v after its namespace was deleted", was.HostLink, patience)
		}
	}
}

// Renew makes a namespace of the container's name again, after [Container.Forget].
func (c *Container) Renew(tb testing.TB) {
	tb.Helper()
	if err := batch(fmt.Sprintf("netns add %s\n", c.Name)); err != nil {
		tb.Fatal(err)
	}
	c.Run(tb, "ip", "link", "set", "lo", "up")
}
