package ipam

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
)

func TestBoltPersists(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	c := config("10.0.0.0/29", "10.0.0.1")
	session := func(fn func(*Pool)) {
		t.Helper()
		db := mustBolt(t, path)
		update(t, db, func(b *bbolt.Bucket) { fn(mustOpen(t, c, NewBoltStore(b))) })
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	session(func(p *Pool) {
		wantAcquired(t, p, "10.0.0.2", "10.0.0.3", "10.0.0.4")
		mustRelease(t, p, "10.0.0.2", "10.0.0.4")
	})
	session(func(p *Pool) {
		if p.Used() != 1 || p.Available() != 4 {
			t.Errorf("used %d, available %d", p.Used(), p.Available())
		}
		wantAcquired(t, p, "10.0.0.5") // the cursor is where it was
		wantError(t, p.Request(netip.MustParseAddr("10.0.0.3")), ErrInUse, "")
	})
	session(func(p *Pool) {
		wantAcquired(t, p, "10.0.0.6", "10.0.0.2", "10.0.0.4")
		_, err := p.Acquire()
		wantError(t, err, ErrExhausted, "")
	})
	session(func(p *Pool) {
		mustRelease(t, p, "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6")
	})
	db := mustBolt(t, path)
	update(t, db, func(b *bbolt.Bucket) {
		if n := b.Stats().KeyN; n != 1 { // the Meta
			t.Errorf("%d records for no lease", n)
		}
	})
}

func TestBoltRollback(t *testing.T) {
	db := mustBolt(t, filepath.Join(t.TempDir(), "db"))
	c := config("10.0.0.0/24", "10.0.0.1")
	update(t, db, func(b *bbolt.Bucket) {
		wantAcquired(t, mustOpen(t, c, NewBoltStore(b)), "10.0.0.2")
	})
	undo := errors.New("undo")
	err := db.Update(func(tx *bbolt.Tx) error {
		p := mustOpen(t, c, NewBoltStore(tx.Bucket(testBucket)))
		wantAcquired(t, p, "10.0.0.3")
		mustRelease(t, p, "10.0.0.2")
		return undo
	})
	if err != undo {
		t.Fatal(err)
	}
	update(t, db, func(b *bbolt.Bucket) {
		p := mustOpen(t, c, NewBoltStore(b))
		if p.Used() != 1 {
			t.Errorf("used %d", p.Used())
		}
		wantAcquired(t, p, "10.0.0.3")
	})
}

// A dry run and a look take a read-only transaction, perhaps of a file that
// has no leases yet.
func TestBoltReadOnly(t *testing.T) {
	db := mustBolt(t, filepath.Join(t.TempDir(), "db"))
	c := config("10.0.0.0/24", "10.0.0.1")
	view := func() {
		t.Helper()
		err := db.View(func(tx *bbolt.Tx) error {
			s := NewBoltStore(tx.Bucket(testBucket))
			p := mustOpen(t, c, s)
			used := p.Used()
			if p.Available() != 253-used {
				t.Errorf("used %d, available %d", used, p.Available())
			}
			wantAcquired(t, mustOpen(t, c, NewOverlay(s)), fmt.Sprintf("10.0.0.%d", 2+used))
			_, err := p.Acquire()
			return err
		})
		if !errors.Is(err, bbolterrors.ErrBucketNotFound) && !errors.Is(err, bbolterrors.ErrTxNotWritable) {
			t.Errorf("acquired for reading, error %v", err)
		}
	}
	view()
	update(t, db, func(b *bbolt.Bucket) {
		wantAcquired(t, mustOpen(t, c, NewBoltStore(b)), "10.0.0.2")
	})
	view()
	wantError(t, NewBoltStore(nil).DeleteChunk(Key{}), bbolterrors.ErrBucketNotFound, "")
}

// TestProcesses has processes lease from one file at the same time.
func TestProcesses(t *testing.T) {
	const env, processes, leases = "EBNET_IPAM_TEST_DB", 4, 25
	c := config("10.0.0.0/25", "10.0.0.1") // 125 to lease
	if path := os.Getenv(env); path != "" {
		for range leases {
			db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: 30 * time.Second, NoSync: true})
			if err != nil {
				t.Fatal(err)
			}
			update(t, db, func(b *bbolt.Bucket) {
				fmt.Println("leased", mustAcquire(t, mustOpen(t, c, NewBoltStore(b))))
			})
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	path := filepath.Join(t.TempDir(), "db")
	var cmds [processes]*exec.Cmd
	var outs [processes]bytes.Buffer
	for i := range cmds {
		cmds[i] = exec.Command(os.Args[0], "-test.run=^TestProcesses$")
		cmds[i].Env = append(os.Environ(), env+"="+path)
		cmds[i].Stdout, cmds[i].Stderr = &outs[i], &outs[i]
		if err := cmds[i].Start(); err != nil {
			t.Fatal(err)
		}
	}
	by := map[string]int{}
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Errorf("process %d: %v\n%s", i, err, &outs[i])
		}
		for line := range strings.Lines(outs[i].String()) {
			a, ok := strings.CutPrefix(line, "leased ")
			if !ok {
				continue
			}
			if other, dup := by[a]; dup {
				t.Errorf("processes %d and %d were both given %s", other, i, a)
			}
			by[a] = i
		}
	}
	if len(by) != processes*leases {
		t.Errorf("%d addresses leased, want %d", len(by), processes*leases)
	}
}

// TestBoltCorrupt changes what is stored in every way it can be noticed.
func TestBoltCorrupt(t *testing.T) {
	c := config("10.0.0.0/16", "10.0.0.1")
	chunk0, chunk1 := Key{0, 0}.encode(), Key{0, 1}.encode()
	flip := func(rec []byte, at int) []byte {
		rec = bytes.Clone(rec)
		rec[at] ^= 4
		return rec
	}
	for name, spoil := range map[string]func(b *bbolt.Bucket) error{
		"meta cut":      func(b *bbolt.Bucket) error { return b.Put(metaKey, b.Get(metaKey)[:9]) },
		"meta empty":    func(b *bbolt.Bucket) error { return b.Put(metaKey, nil) },
		"meta flipped":  func(b *bbolt.Bucket) error { return b.Put(metaKey, flip(b.Get(metaKey), 9)) },
		"meta lost":     func(b *bbolt.Bucket) error { return b.Delete(metaKey) },
		"chunk cut":     func(b *bbolt.Bucket) error { return b.Put(chunk0, b.Get(chunk0)[:100]) },
		"chunk long":    func(b *bbolt.Bucket) error { return b.Put(chunk0, append(bytes.Clone(b.Get(chunk0)), 0)) },
		"chunk flipped": func(b *bbolt.Bucket) error { return b.Put(chunk0, flip(b.Get(chunk0), 300)) },
		"chunk newer":   func(b *bbolt.Bucket) error { return b.Put(chunk0, flip(b.Get(chunk0), 0)) },
		"chunk moved":   func(b *bbolt.Bucket) error { return b.Put(chunk0, b.Get(chunk1)) },
	} {
		t.Run(name, func(t *testing.T) {
			db := mustBolt(t, filepath.Join(t.TempDir(), "db"))
			update(t, db, func(b *bbolt.Bucket) {
				p := mustOpen(t, c, NewBoltStore(b))
				mustRequest(t, p, "10.0.0.5", "10.0.17.5")
			})
			update(t, db, func(b *bbolt.Bucket) {
				if err := spoil(b); err != nil {
					t.Fatal(err)
				}
			})
			update(t, db, func(b *bbolt.Bucket) {
				p, err := Open(c, NewBoltStore(b))
				if err == nil {
					_, err = p.Acquire()
					wantError(t, p.Release(netip.MustParseAddr("10.0.0.5")), ErrCorrupt, "")
				}
				wantError(t, err, ErrCorrupt, "")
				if !strings.HasPrefix(err.Error(), "subnet 10.0.0.0/16: stored leases are corrupt: ") {
					t.Error(err)
				}
			})
		})
	}
}
