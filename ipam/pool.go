package ipam

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// Pool leases the addresses of one subnet.
//
// Acquire is next-fit: it goes on from the last address it gave, through the
// range and round again, so a freed address rests until the others have had
// their turn. The cursor is stored, so this holds across processes. Where a
// freed address would be next, because it was asked for by name or the range
// is nearly full, the cursor passes it once: the address freed last is never
// given next unless it is the only free one.
//
// A pool is not safe for concurrent use, and is the only one on its store as
// long as it is used. Every change is in the store when its method returns.
// After an error of the store, an ErrCorrupt among them, a change may be there
// in part: roll the transaction back. All later calls return that error.
type Pool struct {
	cfg      Config
	store    Store
	meta     Meta
	why      map[uint64]string // what each reserved offset is
	reserved [][]uint64        // by level: bits always set, ascending
	path     []node            // by level: the chunk used last
	shift    uint              // log2 of the bits of a chunk; tests make the tree deep
	last     uint64            // offset of the highest address of the subnet
	lo, hi   uint64            // offsets of the range's first and last address
	capacity uint64            // addresses of the range that may be leased
	err      error             // of the store; final
}

// node is a chunk in memory. The store has the same bits.
type node struct {
	loaded bool
	index  uint64
	bits   Chunk
	count  uint64 // bits set
	base   uint64 // those of them that are always set
}

// Open returns the pool of cfg as store has it; an empty store is a pool
// without leases. It reads the Meta only, and writes nothing.
//
// Returns an ErrInvalid for a bad cfg, an ErrCorrupt if store holds something
// else than this pool's leases.
func Open(cfg Config, store Store) (*Pool, error) { return open(cfg, store, chunkShift) }

func open(cfg Config, store Store, shift uint) (*Pool, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	base, w := cfg.Subnet.Addr(), cfg.window()
	p := &Pool{
		cfg:   cfg,
		store: store,
		why:   map[uint64]string{},
		shift: shift,
		last:  offset(base, lastAddr(cfg.Subnet)),
		lo:    offset(base, w.Addr()),
		hi:    offset(base, lastAddr(w)),
	}
	p.cfg.Reserved = maps.Clone(cfg.Reserved)
	p.path = make([]node, max(1, (hostBits(cfg.Subnet)+int(shift)-1)/int(shift)))
	// The whole of a /64 has 2^64 addresses, which wraps to 0 here and back
	// below, because at least one of them is reserved.
	p.capacity = p.hi - p.lo + 1
	for _, r := range cfg.reservations() {
		off := offset(base, r.addr)
		p.why[off] = r.why
		if p.inRange(off) {
			p.capacity--
		}
	}
	p.reserveLevels()
	if err := p.loadMeta(); err != nil {
		return nil, p.fail(err)
	}
	return p, nil
}

// reserveLevels lists the bits that are set without any lease: the reserved
// addresses and, above them, the chunks that they fill alone.
func (p *Pool) reserveLevels() {
	p.reserved = make([][]uint64, len(p.path))
	p.reserved[0] = slices.Sorted(maps.Keys(p.why))
	for level := 1; level < len(p.path); level++ {
		var run uint64
		for i, b := range p.reserved[level-1] {
			if i == 0 || b>>p.shift != p.reserved[level-1][i-1]>>p.shift {
				run = 0
			}
			if run++; run == 1<<p.shift {
				p.reserved[level] = append(p.reserved[level], b>>p.shift)
			}
		}
	}
}

func (p *Pool) loadMeta() error {
	m, ok, err := p.store.Meta()
	if err != nil {
		return err
	}
	want := p.cfg.fingerprint()
	if !ok {
		p.meta = Meta{Config: want, Cursor: p.lo}
		return nil
	}
	leasable := p.last - uint64(len(p.why)) + 1
	switch {
	case m.Config != want:
		return corrupt("they are of another subnet, range, gateway or set of auxiliary addresses")
	case !p.inRange(m.Cursor):
		return corrupt("the cursor is outside the range")
	case m.InRange > p.capacity || m.InRange > m.Used || m.Used > leasable ||
		m.Used-m.InRange > leasable-p.capacity:
		return corrupt("more leases are counted than there are addresses")
	}
	p.meta = m
	return nil
}

// Acquire leases the next free address of the range.
//
// Returns an ErrExhausted, without a search, if all are leased.
func (p *Pool) Acquire() (netip.Addr, error) {
	if p.err != nil {
		return netip.Addr{}, p.err
	}
	if p.meta.InRange == p.capacity {
		return netip.Addr{}, fmt.Errorf("subnet %s: %w: %s in use", p.cfg.Subnet, ErrExhausted, p.everything())
	}
	off, err := p.next()
	if err != nil {
		return netip.Addr{}, p.fail(err)
	}
	p.passCursor(off)
	if err := p.lease(off); err != nil {
		return netip.Addr{}, p.fail(err)
	}
	return address(p.cfg.Subnet.Addr(), off), nil
}

// Request leases a, which may lie outside the range. The cursor stays.
//
// Returns an ErrOutside if a is not of the subnet, an ErrReserved that says
// what it is reserved for, an ErrInUse if it is leased.
func (p *Pool) Request(a netip.Addr) error {
	used, err := p.Leased(a)
	if err != nil {
		return err
	}
	if used {
		return fmt.Errorf("address %s: %w", a, ErrInUse)
	}
	return p.fail(p.lease(offset(p.cfg.Subnet.Addr(), a)))
}

// Release frees a.
//
// Returns an ErrOutside or ErrReserved as Request does, an ErrNotLeased if a is
// free.
func (p *Pool) Release(a netip.Addr) error {
	used, err := p.Leased(a)
	if err != nil {
		return err
	}
	if !used {
		return fmt.Errorf("address %s: %w", a, ErrNotLeased)
	}
	return p.fail(p.free(offset(p.cfg.Subnet.Addr(), a)))
}

// Leased reports whether a is leased.
//
// Returns an ErrOutside or ErrReserved as Request does.
func (p *Pool) Leased(a netip.Addr) (bool, error) {
	if p.err != nil {
		return false, p.err
	}
	if !p.cfg.Subnet.Contains(a) {
		return false, fmt.Errorf("address %s: %w %s", a, ErrOutside, p.cfg.Subnet)
	}
	off := offset(p.cfg.Subnet.Addr(), a)
	if why, ok := p.why[off]; ok {
		return false, fmt.Errorf("address %s: %w: it is %s of subnet %s", a, ErrReserved, why, p.cfg.Subnet)
	}
	n, err := p.load(0, off>>p.shift)
	if err != nil {
		return false, p.fail(err)
	}
	return n.bits.has(p.bit(off)), nil
}

// Used returns the number of leases, inside and outside the range. Reserved
// addresses are none.
func (p *Pool) Used() uint64 { return p.meta.Used }

// Available returns how many addresses Acquire can still give.
func (p *Pool) Available() uint64 { return p.capacity - p.meta.InRange }

func (p *Pool) inRange(off uint64) bool { return p.lo <= off && off <= p.hi }

func (p *Pool) bit(pos uint64) uint64 { return pos & (1<<p.shift - 1) }

// everything says what is in use when nothing is free.
func (p *Pool) everything() string {
	switch {
	case p.capacity == 0:
		return "every address is reserved, none"
	case p.cfg.window() != p.cfg.Subnet:
		return fmt.Sprintf("all %d addresses of range %s are", p.capacity, p.cfg.Range)
	}
	return fmt.Sprintf("all %d addresses are", p.capacity)
}

func corrupt(why string) error { return fmt.Errorf("%w: %s", ErrCorrupt, why) }

// fail makes err, if it is one, final.
func (p *Pool) fail(err error) error {
	if err != nil {
		p.err = fmt.Errorf("subnet %s: %w", p.cfg.Subnet, err)
	}
	return p.err
}

func (p *Pool) passCursor(off uint64) {
	p.meta.Cursor = off + 1
	if off == p.hi {
		p.meta.Cursor = p.lo
	}
}

// lease marks the free offset off and counts it.
func (p *Pool) lease(off uint64) error {
	p.meta.Used++
	if p.inRange(off) {
		p.meta.InRange++
	}
	if err := p.mark(off); err != nil {
		return err
	}
	return p.store.PutMeta(p.meta)
}

// free is the inverse of lease, and keeps off from being the next one given.
func (p *Pool) free(off uint64) error {
	if err := p.unmark(off); err != nil {
		return err
	}
	if p.meta.Used == 0 || p.inRange(off) && p.meta.InRange == 0 {
		return corrupt("there are more leases than are counted")
	}
	p.meta.Used--
	if p.inRange(off) {
		p.meta.InRange--
		next, err := p.next()
		if err != nil {
			return err
		}
		if next == off {
			p.passCursor(off)
		}
	}
	return p.store.PutMeta(p.meta)
}
