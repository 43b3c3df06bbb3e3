package ipam

// Key names a chunk: level 0 holds addresses by their offset in the subnet,
// level n+1 holds one bit for each chunk of level n, set iff that is full. Bit
// b of chunk i stands for the object i*4096+b of its level.
type Key struct {
	Level uint8
	Index uint64
}

// Chunk is 4096 bits; bit b is bit b%64 (from the lowest) of word b/64.
type Chunk [64]uint64

// Meta is what a pool remembers beside its chunks.
type Meta struct {
	Config  uint64 // fingerprint of the configuration the leases belong to
	Cursor  uint64 // offset in the subnet where the next search starts
	Used    uint64 // leases
	InRange uint64 // those of them inside the range
}

// Store keeps the chunks and the Meta of one pool. A store has one pool at a
// time; it is not safe for concurrent use unless it says so.
type Store interface {
	// Chunk fills c with the chunk at k and returns true, or false if none is
	// stored. An ErrCorrupt if it cannot be decoded.
	Chunk(k Key, c *Chunk) (bool, error)

	// PutChunk stores a copy of c at k.
	PutChunk(k Key, c *Chunk) error

	// DeleteChunk forgets the chunk at k; none there is no error.
	DeleteChunk(k Key) error

	// Meta returns what PutMeta stored, or false if nothing was. An ErrCorrupt
	// if it cannot be decoded.
	Meta() (Meta, bool, error)

	// PutMeta stores m.
	PutMeta(m Meta) error
}

// MemStore is a Store in memory, possibly on top of another that it reads and
// never writes.
type MemStore struct {
	under  Store
	chunks map[Key]*Chunk // nil: deleted here, whatever lies under
	meta   *Meta
}

var _ Store = (*MemStore)(nil)

// NewMemStore returns an empty store.
func NewMemStore() *MemStore { return NewOverlay(nil) }

// NewOverlay returns a store that starts with the contents of under and keeps
// every change to itself, as a dry run needs it. under may be nil.
func NewOverlay(under Store) *MemStore {
	return &MemStore{under: under, chunks: map[Key]*Chunk{}}
}

// Chunk implements [Store].
func (s *MemStore) Chunk(k Key, c *Chunk) (bool, error) {
	own, ok := s.chunks[k]
	switch {
	case own != nil:
		*c = *own
		return true, nil
	case ok || s.under == nil:
		return false, nil
	}
	return s.under.Chunk(k, c)
}

// PutChunk implements [Store].
func (s *MemStore) PutChunk(k Key, c *Chunk) error {
	if own := s.chunks[k]; own != nil {
		*own = *c
		return nil
	}
	own := *c
	s.chunks[k] = &own
	return nil
}

// DeleteChunk implements [Store].
func (s *MemStore) DeleteChunk(k Key) error {
	if s.under == nil {
		delete(s.chunks, k)
	} else {
		s.chunks[k] = nil
	}
	return nil
}

// Meta implements [Store].
func (s *MemStore) Meta() (Meta, bool, error) {
	switch {
	case s.meta != nil:
		return *s.meta, true, nil
	case s.under == nil:
		return Meta{}, false, nil
	}
	return s.under.Meta()
}

// PutMeta implements [Store].
func (s *MemStore) PutMeta(m Meta) error {
	if s.meta == nil {
		s.meta = new(Meta)
	}
	*s.meta = m
	return nil
}
