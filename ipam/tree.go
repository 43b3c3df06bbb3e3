package ipam

import "slices"

// next returns the first free offset of the range at or after the cursor,
// going round once. There is one: the caller has looked at the counts.
func (p *Pool) next() (uint64, error) {
	for _, from := range []uint64{p.meta.Cursor, p.lo} {
		off, ok, err := p.nextFrom(from)
		if ok || err != nil {
			return off, err
		}
	}
	return 0, corrupt("fewer leases are counted than there are")
}

// nextFrom returns the first free offset in [from, hi], or false.
//
// It climbs from the chunk of from until one has a free bit further on, and
// descends along the first free bits from there.
func (p *Pool) nextFrom(from uint64) (uint64, bool, error) {
	descending := false
	for level, pos := 0, from; pos <= p.hi>>(p.shift*uint(level)); {
		n, err := p.load(level, pos>>p.shift)
		if err != nil {
			return 0, false, err
		}
		free, ok := n.bits.nextZero(p.bit(pos))
		switch {
		case ok && free < 1<<p.shift:
			pos += free - p.bit(pos)
			if level == 0 {
				return pos, pos <= p.hi, nil
			}
			if pos > p.hi>>(p.shift*uint(level)) {
				return 0, false, nil
			}
			level, pos, descending = level-1, pos<<p.shift, true
		case descending:
			return 0, false, corrupt("a full chunk is not marked full")
		case level == len(p.path)-1:
			return 0, false, nil
		default:
			level, pos = level+1, pos>>p.shift+1
		}
	}
	return 0, false, nil
}

// mark sets the bit of off, and the bits above it of chunks that are now full.
func (p *Pool) mark(off uint64) error {
	for level, pos := 0, off; level < len(p.path); level, pos = level+1, pos>>p.shift {
		n, err := p.load(level, pos>>p.shift)
		if err != nil {
			return err
		}
		if n.bits.has(p.bit(pos)) {
			return corrupt("a chunk with free addresses is marked full")
		}
		n.bits.set(p.bit(pos))
		n.count++
		if err := p.save(level, n); err != nil {
			return err
		}
		if n.count < 1<<p.shift {
			break
		}
	}
	return nil
}

// unmark clears the bit of off, and the bits above it of chunks that were full.
func (p *Pool) unmark(off uint64) error {
	for level, pos := 0, off; level < len(p.path); level, pos = level+1, pos>>p.shift {
		n, err := p.load(level, pos>>p.shift)
		if err != nil {
			return err
		}
		if !n.bits.has(p.bit(pos)) {
			return corrupt("a full chunk is not marked full")
		}
		full := n.count == 1<<p.shift
		n.bits.clear(p.bit(pos))
		n.count--
		if err := p.save(level, n); err != nil {
			return err
		}
		if !full {
			break
		}
	}
	return nil
}

// load returns a chunk, from the store unless it is the one used last on its
// level. One that is not stored has the bits that are always set.
func (p *Pool) load(level int, index uint64) (*node, error) {
	n := &p.path[level]
	if n.loaded && n.index == index {
		return n, nil
	}
	*n = node{index: index}
	first := index << p.shift
	var base Chunk
	always := p.reserved[level]
	for i, _ := slices.BinarySearch(always, first); i < len(always) && always[i]>>p.shift == index; i++ {
		base.set(p.bit(always[i]))
		n.base++
	}
	stored, err := p.store.Chunk(Key{uint8(level), index}, &n.bits)
	if err != nil {
		return nil, err
	}
	if !stored {
		n.bits, n.count, n.loaded = base, n.base, true
		return n, nil
	}
	n.count = n.bits.count()
	// Bits beyond the end of the subnet would count towards a full chunk.
	end := min(p.last>>(p.shift*uint(level))-first, 1<<p.shift-1) + 1
	switch {
	case !n.bits.covers(&base):
		return nil, corrupt("a reserved address is marked free")
	case n.bits.anyFrom(end):
		return nil, corrupt("an address outside the subnet is marked used")
	case level == 0 && n.count-n.base > p.meta.Used:
		return nil, corrupt("there are more leases than are counted")
	}
	n.loaded = true
	return n, nil
}

// save writes n through, or removes it if it says no more than its absence.
func (p *Pool) save(level int, n *node) error {
	k := Key{uint8(level), n.index}
	if n.count == n.base {
		return p.store.DeleteChunk(k)
	}
	return p.store.PutChunk(k, &n.bits)
}
