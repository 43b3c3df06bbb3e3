package ipam

import (
	"net/netip"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
)

// fillEmpty leases every address of the empty pool, whose cursor is at its
// start, and releases them all, which takes the cursor there again.
func fillEmpty(tb testing.TB, p *Pool) {
	n := p.Available()
	first := netip.Addr{}
	for range n {
		a, err := p.Acquire()
		if err != nil {
			tb.Fatal(err)
		}
		if !first.IsValid() {
			first = a
		}
	}
	if p.Available() != 0 || p.Used() != n {
		tb.Fatalf("full pool: available %d, used %d", p.Available(), p.Used())
	}
	for a := first; n > 0; a, n = a.Next(), n-1 {
		if err := p.Release(a); err != nil {
			tb.Fatal(err)
		}
	}
	if p.Used() != 0 {
		tb.Fatalf("empty pool: used %d", p.Used())
	}
}

func BenchmarkFillEmpty16(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		fillEmpty(b, mustOpen(b, config("10.1.0.0/16", "10.1.0.1"), NewMemStore()))
	}
}

// BenchmarkFillEmpty16Bolt does the same in one transaction of a file.
func BenchmarkFillEmpty16Bolt(b *testing.B) {
	db := mustBolt(b, filepath.Join(b.TempDir(), "db"))
	for b.Loop() {
		update(b, db, func(bucket *bbolt.Bucket) {
			fillEmpty(b, mustOpen(b, config("10.1.0.0/16", "10.1.0.1"), NewBoltStore(bucket)))
		})
	}
}

// BenchmarkAcquireBolt is what one command pays without the sync to disk.
func BenchmarkAcquireBolt(b *testing.B) {
	db := mustBolt(b, filepath.Join(b.TempDir(), "db"))
	db.NoSync = true
	for b.Loop() {
		update(b, db, func(bucket *bbolt.Bucket) {
			mustAcquire(b, mustOpen(b, config("10.0.0.0/8", "10.0.0.1"), NewBoltStore(bucket)))
		})
	}
}

// BenchmarkOpen8 opens a /8 and takes an address from it.
func BenchmarkOpen8(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		mustAcquire(b, mustOpen(b, config("10.0.0.0/8", "10.0.0.1"), NewMemStore()))
	}
}

// BenchmarkNearlyFull12 gives the one free address of a million, which lies
// anywhere, and frees another.
func BenchmarkNearlyFull12(b *testing.B) {
	p := mustOpen(b, config("10.16.0.0/12", "10.16.0.1"), NewMemStore())
	for p.Available() > 0 {
		mustAcquire(b, p)
	}
	base, off := netip.MustParseAddr("10.16.0.0"), uint64(2)
	for b.Loop() {
		if err := p.Release(address(base, off)); err != nil {
			b.Fatal(err)
		}
		mustAcquire(b, p)
		if off += 524287; off >= 1<<20-1 {
			off = off - 1<<20 + 3
		}
	}
}

// BenchmarkFull8 refuses on a full range.
func BenchmarkFull8(b *testing.B) {
	c := config("10.0.0.0/8", "10.0.0.1")
	c.Range = netip.MustParsePrefix("10.7.0.0/24")
	p := mustOpen(b, c, NewMemStore())
	for p.Available() > 0 {
		mustAcquire(b, p)
	}
	for b.Loop() {
		if _, err := p.Acquire(); err == nil {
			b.Fatal("acquired from a full range")
		}
	}
}
