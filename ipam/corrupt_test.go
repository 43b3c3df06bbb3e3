package ipam

import (
	"errors"
	"math"
	"net/netip"
	"testing"
)

// TestMetaMustFit opens stores with records that are whole but wrong.
func TestMetaMustFit(t *testing.T) {
	c := config("10.0.0.0/24", "10.0.0.1")
	c.Range = netip.MustParsePrefix("10.0.0.64/26")
	own := c.fingerprint()
	for _, m := range []Meta{
		{},
		{Config: own + 1, Cursor: 64},
		{Config: own, Cursor: 63},
		{Config: own, Cursor: 128},
		{Config: own, Cursor: math.MaxUint64},
		{Config: own, Cursor: 64, Used: 1, InRange: 2},
		{Config: own, Cursor: 64, Used: 65, InRange: 65},
		{Config: own, Cursor: 64, Used: 254},
		{Config: own, Cursor: 64, Used: 190},
		{Config: own, Cursor: 64, Used: math.MaxUint64},
	} {
		s := NewMemStore()
		_ = s.PutMeta(m)
		p, err := Open(c, s)
		if p != nil {
			t.Errorf("%+v: opened", m)
		}
		wantError(t, err, ErrCorrupt, "")
	}
	s := NewMemStore()
	_ = s.PutMeta(Meta{Config: own, Cursor: 127, Used: 253, InRange: 64})
	mustOpen(t, c, s)
}

func TestFingerprint(t *testing.T) {
	aux := func(s ...string) map[string]netip.Addr {
		m := map[string]netip.Addr{}
		for i, a := range s {
			m[string(rune('a'+i))] = netip.MustParseAddr(a)
		}
		return m
	}
	c := config("10.0.0.0/24", "10.0.0.1")
	c.Reserved = aux("10.0.0.2", "10.0.0.3")
	same := c
	same.Range, same.Reserved = c.Subnet, aux("10.0.0.3", "10.0.0.2")
	if c.fingerprint() != same.fingerprint() {
		t.Error("the whole subnet as range, or the names of auxiliary addresses, change the fingerprint")
	}
	for _, other := range []Config{
		config("10.0.0.0/24", "10.0.0.1"),
		{Subnet: c.Subnet, Gateway: c.Gateway, Reserved: aux("10.0.0.2", "10.0.0.4")},
		{Subnet: c.Subnet, Gateway: netip.MustParseAddr("10.0.0.4"), Reserved: c.Reserved},
		{Subnet: netip.MustParsePrefix("10.0.0.0/25"), Gateway: c.Gateway, Reserved: c.Reserved},
		{Subnet: c.Subnet, Range: netip.MustParsePrefix("10.0.0.0/25"), Gateway: c.Gateway, Reserved: c.Reserved},
	} {
		if other.fingerprint() == c.fingerprint() {
			t.Errorf("%+v has the same fingerprint", other)
		}
	}
}

// TestTreeMustFit gives the pool chunks that contradict each other.
func TestTreeMustFit(t *testing.T) {
	c := config("10.0.0.0/18", "10.0.0.1") // 4 chunks and one above
	var full, none Chunk
	for i := range full {
		full[i] = math.MaxUint64
	}
	one := none
	one.set(0)
	beyond := none
	beyond.set(4)
	leases := none // without the network's address and the gateway
	leases.set(5)
	leases.set(6)
	leases.set(7)
	for name, chunks := range map[string]map[Key]Chunk{
		"reserved is free":   {{0, 0}: leases},
		"empty chunk":        {{0, 0}: none},
		"full but unmarked":  {{0, 0}: full, {0, 1}: full},
		"marked but free":    {{1, 0}: one},
		"beyond the subnet":  {{1, 0}: beyond, {0, 0}: full},
		"more than counted":  {{0, 0}: full, {1, 0}: one, {0, 1}: full},
		"fewer than counted": {{0, 0}: full, {1, 0}: full},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewMemStore()
			for k, c := range chunks {
				_ = s.PutChunk(k, &c)
			}
			_ = s.PutMeta(Meta{Config: c.fingerprint(), Used: 4094, InRange: 4094})
			p := mustOpen(t, c, s)
			var err error
			for range 5000 {
				if _, err = p.Acquire(); err != nil {
					break
				}
			}
			wantError(t, err, ErrCorrupt, "")
			wantError(t, p.Request(netip.MustParseAddr("10.0.9.9")), ErrCorrupt, "") // for good
			_, again := p.Acquire()
			if again != err {
				t.Errorf("then %v", again)
			}
		})
	}
}

// failing is a store that cannot write.
type failing struct {
	MemStore
	err error
}

func (f *failing) PutMeta(Meta) error { return f.err }

func TestStoreErrorIsFinal(t *testing.T) {
	full := errors.New("disk full")
	s := &failing{MemStore: *NewMemStore(), err: full}
	p := mustOpen(t, config("10.0.0.0/24", ""), s)
	_, err := p.Acquire()
	wantError(t, err, full, "subnet 10.0.0.0/24: disk full")
	s.err = nil
	wantError(t, p.Request(netip.MustParseAddr("10.0.0.9")), full, "")
	wantError(t, p.Release(netip.MustParseAddr("10.0.0.1")), full, "")
}
