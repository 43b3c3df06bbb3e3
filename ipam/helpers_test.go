package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"go.etcd.io/bbolt"
)

var testBucket = []byte("leases")

// tester is what testing.TB and *rapid.T share.
type tester interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

func config(subnet, gateway string) Config {
	c := Config{Subnet: netip.MustParsePrefix(subnet)}
	if gateway != "" {
		c.Gateway = netip.MustParseAddr(gateway)
	}
	return c
}

func mustOpen(tb tester, c Config, s Store) *Pool {
	tb.Helper()
	p, err := Open(c, s)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func mustAcquire(tb tester, p *Pool) netip.Addr {
	tb.Helper()
	a, err := p.Acquire()
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

func mustRequest(tb tester, p *Pool, addrs ...string) {
	tb.Helper()
	for _, a := range addrs {
		if err := p.Request(netip.MustParseAddr(a)); err != nil {
			tb.Fatal(err)
		}
	}
}

func mustRelease(tb tester, p *Pool, addrs ...string) {
	tb.Helper()
	for _, a := range addrs {
		if err := p.Release(netip.MustParseAddr(a)); err != nil {
			tb.Fatal(err)
		}
	}
}

func wantAcquired(tb tester, p *Pool, want ...string) {
	tb.Helper()
	for _, w := range want {
		if got := mustAcquire(tb, p); got != netip.MustParseAddr(w) {
			tb.Fatalf("acquired %s, want %s", got, w)
		}
	}
}

func wantError(tb tester, err, sentinel error, text string) {
	tb.Helper()
	if !errors.Is(err, sentinel) {
		tb.Fatalf("error %v, want one that is %q", err, sentinel)
	}
	if text != "" && err.Error() != text {
		tb.Fatalf("error text\n%s, want\n%s", err, text)
	}
}

// check returns the first contradiction in what store holds of the pool: it
// walks the tree of a small pool and counts again.
func check(p *Pool) error {
	var used, inRange uint64
	for level := range p.path {
		top := p.last >> (p.shift * uint(level))
		for pos := uint64(0); pos <= top; pos++ {
			n, err := p.load(level, pos>>p.shift)
			if err != nil {
				return err
			}
			set := n.bits.has(p.bit(pos))
			if level > 0 {
				below, err := p.load(level-1, pos)
				if err != nil {
					return err
				}
				if full := below.count == 1<<p.shift; full != set {
					return fmt.Errorf("level %d bit %d is %v, the chunk has %d", level, pos, set, below.count)
				}
			} else if _, reserved := p.why[pos]; set && !reserved {
				used++
				if p.inRange(pos) {
					inRange++
				}
			} else if !set && reserved {
				return fmt.Errorf("reserved offset %d is free", pos)
			}
		}
	}
	if used != p.meta.Used || inRange != p.meta.InRange {
		return fmt.Errorf("%d leases, %d in range, counted %d and %d", used, inRange, p.meta.Used, p.meta.InRange)
	}
	return nil
}

func mustBolt(tb testing.TB, path string) *bbolt.DB {
	tb.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = db.Close() })
	return db
}

// update runs fn on the test's bucket in a transaction of its own.
func update(tb testing.TB, db *bbolt.DB, fn func(*bbolt.Bucket)) {
	tb.Helper()
	err := db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(testBucket)
		if err != nil {
			return err
		}
		fn(b)
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
}
