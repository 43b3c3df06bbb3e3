package ipam

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
)

// chunkShift is the binary logarithm of the bits in a chunk.
const chunkShift = 12

func (c *Chunk) has(b uint64) bool { return c[b/64]>>(b%64)&1 != 0 }
func (c *Chunk) set(b uint64)      { c[b/64] |= 1 << (b % 64) }
func (c *Chunk) clear(b uint64)    { c[b/64] &^= 1 << (b % 64) }

// nextZero returns the first clear bit in [from, 4096), or false.
func (c *Chunk) nextZero(from uint64) (uint64, bool) {
	w := from / 64
	free := ^c[w] &^ (1<<(from%64) - 1)
	for free == 0 {
		if w++; w == uint64(len(c)) {
			return 0, false
		}
		free = ^c[w]
	}
	return w*64 + uint64(bits.TrailingZeros64(free)), true
}

func (c *Chunk) count() (n uint64) {
	for _, w := range c {
		n += uint64(bits.OnesCount64(w))
	}
	return n
}

// anyFrom reports whether a bit at or above from is set.
func (c *Chunk) anyFrom(from uint64) bool {
	for b := from; b < uint64(len(c)*64); b = (b/64 + 1) * 64 {
		if c[b/64]>>(b%64) != 0 {
			return true
		}
	}
	return false
}

// covers reports whether c has all the bits of o.
func (c *Chunk) covers(o *Chunk) bool {
	for i := range c {
		if o[i]&^c[i] != 0 {
			return false
		}
	}
	return true
}

// What is stored is a version byte, the words in little-endian order, and a
// CRC-32C over the key and all of that: a record that was cut, changed or moved
// is noticed.
const (
	encodingVersion = 1
	chunkSize       = 1 + 64*8 + 4
	metaSize        = 1 + 4*8 + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal returns the record of words under key.
func seal(key []byte, words []uint64) []byte {
	rec := make([]byte, 0, 1+len(words)*8+4)
	rec = append(rec, encodingVersion)
	for _, w := range words {
		rec = binary.LittleEndian.AppendUint64(rec, w)
	}
	return binary.LittleEndian.AppendUint32(rec, checksum(key, rec))
}

// unseal fills words from the record of key, or returns an ErrCorrupt.
func unseal(key, rec []byte, words []uint64) error {
	body := 1 + len(words)*8
	switch {
	case len(rec) != body+4:
		return fmt.Errorf("%w: record %x has %d bytes, not %d", ErrCorrupt, key, len(rec), body+4)
	case rec[0] != encodingVersion:
		return fmt.Errorf("%w: record %x has version %d, not %d", ErrCorrupt, key, rec[0], encodingVersion)
	case binary.LittleEndian.Uint32(rec[body:]) != checksum(key, rec[:body]):
		return fmt.Errorf("%w: record %x does not match its checksum", ErrCorrupt, key)
	}
	for i := range words {
		words[i] = binary.LittleEndian.Uint64(rec[1+i*8:])
	}
	return nil
}

func checksum(key, body []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, body)
}

// metaKey is the key of the Meta; no chunk's key has its length.
var metaKey = []byte("meta")

// encode returns k as bytes: the level, then the index in big-endian order, so
// that the chunks of a level lie side by side.
func (k Key) encode() []byte {
	return binary.BigEndian.AppendUint64([]byte{'c', k.Level}, k.Index)
}

func encodeChunk(k Key, c *Chunk) []byte { return seal(k.encode(), c[:]) }

func decodeChunk(k Key, rec []byte, c *Chunk) error { return unseal(k.encode(), rec, c[:]) }

func encodeMeta(m Meta) []byte {
	return seal(metaKey, []uint64{m.Config, m.Cursor, m.Used, m.InRange})
}

func decodeMeta(rec []byte) (Meta, error) {
	var w [4]uint64
	if err := unseal(metaKey, rec, w[:]); err != nil {
		return Meta{}, err
	}
	return Meta{Config: w[0], Cursor: w[1], Used: w[2], InRange: w[3]}, nil
}
