package ipam

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

// FuzzDecode decodes records: what is accepted encodes to the same bytes, what
// is not is an ErrCorrupt.
func FuzzDecode(f *testing.F) {
	c := Chunk{0: 3, 63: 1 << 63}
	f.Add(uint8(0), uint64(0), encodeChunk(Key{0, 0}, &c))
	f.Add(uint8(5), uint64(1<<63), encodeChunk(Key{5, 1 << 63}, &c))
	f.Add(uint8(1), uint64(0), encodeChunk(Key{0, 0}, &c))
	f.Add(uint8(0), uint64(0), encodeMeta(Meta{1, 2, 3, 4}))
	f.Add(uint8(0), uint64(0), []byte{encodingVersion})
	f.Fuzz(func(t *testing.T, level uint8, index uint64, rec []byte) {
		k := Key{level, index}
		var c Chunk
		if err := decodeChunk(k, rec, &c); err == nil {
			if !bytes.Equal(encodeChunk(k, &c), rec) {
				t.Error("a chunk that was decoded encodes otherwise")
			}
		} else if !errors.Is(err, ErrCorrupt) {
			t.Error(err)
		}
		if m, err := decodeMeta(rec); err == nil {
			if !bytes.Equal(encodeMeta(m), rec) {
				t.Error("a meta that was decoded encodes otherwise")
			}
		} else if !errors.Is(err, ErrCorrupt) {
			t.Error(err)
		}
	})
}

// FuzzStored opens a pool on chunks and a Meta made of data, whole but
// meaningless, and uses it: it may refuse, but neither panics, nor hangs, nor
// gives a reserved address or one address twice.
func FuzzStored(f *testing.F) {
	f.Add(uint64(2), uint64(3), uint64(3), []byte{0, 0, 0x1f}, []byte{0, 1})
	f.Add(uint64(255), uint64(253), uint64(253), bytes.Repeat([]byte{0, 0, 0xff}, 16), []byte{0, 0, 0})
	f.Add(uint64(0), uint64(0), uint64(0), []byte{}, []byte{2, 5, 1, 5, 0})
	f.Fuzz(func(t *testing.T, cursor, used, inRange uint64, data, ops []byte) {
		c := config("10.0.0.0/24", "10.0.0.1")
		s := NewMemStore()
		_ = s.PutMeta(Meta{Config: c.fingerprint(), Cursor: cursor, Used: used, InRange: inRange})
		for ; len(data) >= 3; data = data[3:] { // level, index, 8 bits
			var chunk Chunk
			chunk[0] = uint64(data[2])
			_ = s.PutChunk(Key{data[0], uint64(data[1])}, &chunk)
		}
		p, err := open(c, s, 3)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Error(err)
			}
			return
		}
		given := map[string]bool{}
		for i, op := range ops {
			a := address(c.Subnet.Addr(), uint64(binary.LittleEndian.Uint16([]byte{op, byte(i)})%256))
			switch op % 3 {
			case 0:
				a, err = p.Acquire()
			case 1:
				err = p.Request(a)
			case 2:
				if err = p.Release(a); err == nil {
					delete(given, a.String())
				}
				continue
			}
			if err != nil {
				continue
			}
			if given[a.String()] {
				t.Fatalf("%s was given twice", a)
			}
			if why, ok := p.why[offset(c.Subnet.Addr(), a)]; ok {
				t.Fatalf("%s was given: %s", a, why)
			}
			given[a.String()] = true
		}
	})
}
