package ipam

import (
	"fmt"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
)

// BoltStore is a Store in a bucket of a bbolt file.
type BoltStore struct {
	bucket *bbolt.Bucket
}

var _ Store = (*BoltStore)(nil)

// NewBoltStore returns the store in b, which belongs to one pool and holds
// nothing else. Store and pool live as long as the transaction of b: what they
// write is committed or rolled back with it.
//
// b may be of a read-only transaction, or nil for a bucket that is not there
// yet: then the store can be read, and opened under an overlay.
func NewBoltStore(b *bbolt.Bucket) *BoltStore { return &BoltStore{bucket: b} }

// Chunk implements [Store].
func (s *BoltStore) Chunk(k Key, c *Chunk) (bool, error) {
	rec := s.get(k.encode())
	if rec == nil {
		return false, nil
	}
	return true, decodeChunk(k, rec, c)
}

// PutChunk implements [Store].
func (s *BoltStore) PutChunk(k Key, c *Chunk) error {
	return s.put(k.encode(), encodeChunk(k, c))
}

// DeleteChunk implements [Store].
func (s *BoltStore) DeleteChunk(k Key) error {
	if s.bucket == nil {
		return fmt.Errorf("delete leases: %w", bbolterrors.ErrBucketNotFound)
	}
	if err := s.bucket.Delete(k.encode()); err != nil {
		return fmt.Errorf("delete leases: %w", err)
	}
	return nil
}

// Meta implements [Store].
func (s *BoltStore) Meta() (Meta, bool, error) {
	rec := s.get(metaKey)
	if rec == nil {
		return Meta{}, false, nil
	}
	m, err := decodeMeta(rec)
	return m, true, err
}

// PutMeta implements [Store].
func (s *BoltStore) PutMeta(m Meta) error { return s.put(metaKey, encodeMeta(m)) }

func (s *BoltStore) get(key []byte) []byte {
	if s.bucket == nil {
		return nil
	}
	return s.bucket.Get(key)
}

// put hands rec over to bbolt, which keeps it until the transaction ends.
func (s *BoltStore) put(key, rec []byte) error {
	if s.bucket == nil {
		return fmt.Errorf("store leases: %w", bbolterrors.ErrBucketNotFound)
	}
	if err := s.bucket.Put(key, rec); err != nil {
		return fmt.Errorf("store leases: %w", err)
	}
	return nil
}
