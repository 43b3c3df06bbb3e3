package network

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"io/fs"
	"os"
	"runtime/debug"
	"strconv"

	"golang.org/x/sys/unix"
)

// bbolt trusts its file: a damaged page makes it panic, run in circles, or hand out wrong
// records. So the file is read here first, by rules that no content of it can break, and
// only what has passed is given to bbolt.
//
// The format (bbolt 1.x): pages of one size, the first two with a header each, of which the
// newer counts. A page starts with its id (8 bytes), flags (2), number of elements (2) and
// number of further pages that belong to it (4). Integers are in the machine's byte order.

// Offsets and flags of the format.
const (
	pageHeader     = 16
	metaMagic      = 0xED0CDAED
	metaVersion    = 2
	metaSum        = 56 // offset of the checksum in a header, and length of what it is of
	branchFlag     = 0x01
	leafFlag       = 0x02
	metaFlag       = 0x04
	freelistFlag   = 0x10
	elementSize    = 16 // of branch and leaf
	bucketElement  = 0x01
	bucketHeader   = 16 // root 8, sequence 8
	noFreelist     = 1<<64 - 1
	manyFree       = 0xFFFF // the number of free pages is in the first of them
	maxPageSize    = 64 << 10
	maxBucketDepth = 3 // root, ipam, network
)

// sumKey is where the checksum over all records is kept, in metaBucket: the number of the
// transaction that it belongs to (8 bytes), then the sum (4), both big endian. A transaction of an
// ebnet that knows of none leaves an older number there.
var sumKey = []byte("sum")

// image is what a file's pages hold.
type image struct {
	txid uint64
	size int64  // bytes in use, from the start
	sum  uint32 // of all records

	kept   []byte // the record of sumKey, nil if there is none
	schema int    // 0: none, or no number
	writer string // version of the ebnet that wrote last, "" if none is recorded
}

// summed reports whether the last transaction wrote down the sum.
func (m image) summed() bool {
	return len(m.kept) == 12 && binary.BigEndian.Uint64(m.kept) == m.txid
}

// readImage reads the file's pages and checks them. Returns errCorrupt for what is damaged.
func readImage(f *os.File) (m image, err error) {
	info, err := f.Stat()
	if err != nil {
		return image{}, err
	}
	if !info.Mode().IsRegular() {
		return image{}, fmt.Errorf("%w: it is no regular file", errCorrupt)
	}
	meta, pageSize, err := newestMeta(f, info)
	if err != nil {
		return image{}, err
	}
	pages := binary.NativeEndian.Uint64(meta[40:])
	if pages < 4 || pages > uint64(info.Size())/uint64(pageSize) {
		return image{}, fmt.Errorf("%w: %d of %d pages are there", errCorrupt, info.Size()/int64(pageSize), pages)
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(pages)*pageSize, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return image{}, err
	}
	defer func() { _ = unix.Munmap(data) }()
	r := &pageReader{data: data, size: pageSize, used: make([]bool, pages), meta: map[string][]byte{}}
	m = image{txid: binary.NativeEndian.Uint64(meta[48:]), size: int64(len(data))}
	defer func() {
		if p := recover(); p != nil { // the disk cannot read a page
			err = fmt.Errorf("%w: a page cannot be read: %v", errCorrupt, p)
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	if err := r.read(meta); err != nil {
		return image{}, fmt.Errorf("%w: %w", errCorrupt, err)
	}
	m.sum, m.kept, m.writer = r.sum.crc, bytes.Clone(r.meta[string(sumKey)]), string(r.meta[string(writerKey)])
	m.schema, _ = strconv.Atoi(string(r.meta[string(schemaKey)]))
	if m.summed() && binary.BigEndian.Uint32(m.kept[8:]) != m.sum {
		return image{}, fmt.Errorf("%w: its records are not those that were written: their checksum differs", errCorrupt)
	}
	return m, nil
}

// newestMeta returns the header that counts. Both must be right: what is written last is one sector
// of one of them, so that no loss of power makes either wrong, and with one that is damaged
// nothing tells whether the other is the last.
func newestMeta(f *os.File, info fs.FileInfo) (meta []byte, pageSize int, err error) {
	first, err := readMeta(f, 0)
	if err != nil {
		return nil, 0, err
	}
	size := binary.NativeEndian.Uint32(first[8:])
	if size < 512 || size > maxPageSize || size&(size-1) != 0 {
		return nil, 0, fmt.Errorf("%w: pages of %d bytes", errCorrupt, size)
	}
	second, err := readMeta(f, int64(size))
	if err != nil {
		return nil, 0, err
	}
	if binary.NativeEndian.Uint32(second[8:]) != size {
		return nil, 0, fmt.Errorf("%w: two sizes of pages", errCorrupt)
	}
	if binary.NativeEndian.Uint64(second[48:]) > binary.NativeEndian.Uint64(first[48:]) {
		first = second
	}
	return first, int(size), nil
}

// usedSize is how much of a file that has passed readImage is in use.
func usedSize(f *os.File, info fs.FileInfo) (int64, error) {
	meta, pageSize, err := newestMeta(f, info)
	if err != nil {
		return 0, err
	}
	return int64(binary.NativeEndian.Uint64(meta[40:])) * int64(pageSize), nil
}

func readMeta(f *os.File, at int64) ([]byte, error) {
	b := make([]byte, pageHeader+metaSum+8)
	if n, err := f.ReadAt(b, at); n < len(b) {
		return nil, fmt.Errorf("%w: it ends in a header (%w)", errCorrupt, err)
	}
	flags, meta := binary.NativeEndian.Uint16(b[8:]), b[pageHeader:]
	sum := fnv.New64a()
	_, _ = sum.Write(meta[:metaSum])
	switch {
	case flags != metaFlag, binary.NativeEndian.Uint32(meta) != metaMagic, binary.NativeEndian.Uint32(meta[4:]) != metaVersion:
		return nil, fmt.Errorf("%w: not a bbolt file, or a header is destroyed", errCorrupt)
	case binary.NativeEndian.Uint64(meta[metaSum:]) != sum.Sum64():
		return nil, fmt.Errorf("%w: the checksum of a header is wrong", errCorrupt)
	}
	return meta, nil
}

// pageReader goes through all that a header refers to.
type pageReader struct {
	data []byte
	size int
	used []bool // by page
	sum  recordSum
	meta map[string][]byte // the records of metaBucket
}

func (r *pageReader) read(meta []byte) error {
	r.used[0], r.used[1] = true, true
	root := bucketRoot{page: binary.NativeEndian.Uint64(meta[16:]), sequence: binary.NativeEndian.Uint64(meta[24:])}
	if err := r.bucket(nil, root, 0); err != nil {
		return err
	}
	return r.freelist(binary.NativeEndian.Uint64(meta[32:]))
}

// bucketRoot is where a bucket's records are: page, or inline if that is 0.
type bucketRoot struct {
	page, sequence uint64
	inline         []byte
}

// keys are those that a page's keys must be between: the first is from, as bbolt relies on when it writes, all
// are below to. nil is no limit.
type keys struct{ from, to []byte }

func (r *pageReader) bucket(name []byte, root bucketRoot, depth int) error {
	if depth >= maxBucketDepth {
		return fmt.Errorf("buckets within buckets")
	}
	r.sum.open(name, root.sequence)
	defer r.sum.close()
	if root.page == 0 {
		if len(root.inline) < pageHeader || binary.NativeEndian.Uint16(root.inline[8:]) != leafFlag {
			return fmt.Errorf("bucket %q has no records", name)
		}
		return r.leaf(name, root.inline, keys{}, depth, true)
	}
	return r.page(name, root.page, keys{}, depth)
}

// take marks a page, and those that belong to it, as used, and returns their bytes.
func (r *pageReader) take(id uint64) ([]byte, error) {
	if id < 2 || id >= uint64(len(r.used)) {
		return nil, fmt.Errorf("page %d is none of its", id)
	}
	b := r.data[int(id)*r.size:]
	more := uint64(binary.NativeEndian.Uint32(b[12:]))
	if binary.NativeEndian.Uint64(b) != id || id+more >= uint64(len(r.used)) {
		return nil, fmt.Errorf("page %d is damaged", id)
	}
	for i := id; i <= id+more; i++ {
		if r.used[i] {
			return nil, fmt.Errorf("page %d is used twice", i)
		}
		r.used[i] = true
	}
	return b[:int(more+1)*r.size], nil
}

func (r *pageReader) page(name []byte, id uint64, within keys, depth int) error {
	b, err := r.take(id)
	if err != nil {
		return err
	}
	switch binary.NativeEndian.Uint16(b[8:]) {
	case leafFlag:
		err = r.leaf(name, b, within, depth, false)
	case branchFlag:
		err = r.branch(name, b, within, depth)
	default:
		err = fmt.Errorf("it holds no records")
	}
	if err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// piece returns n bytes of b from at, or an error if it has none there.
func piece(b []byte, at uint64, n uint32) ([]byte, error) {
	if at > uint64(len(b)) || uint64(n) > uint64(len(b))-at {
		return nil, fmt.Errorf("an element is not within it")
	}
	return b[at : at+uint64(n)], nil
}

func elements(b []byte) (int, error) {
	n := int(binary.NativeEndian.Uint16(b[10:]))
	if pageHeader+n*elementSize > len(b) {
		return 0, fmt.Errorf("%d elements do not fit into it", n)
	}
	return n, nil
}

func (r *pageReader) branch(name, b []byte, within keys, depth int) error {
	n, err := elements(b)
	if err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("it is empty")
	}
	key := func(i int) ([]byte, error) {
		at := pageHeader + i*elementSize
		return piece(b, uint64(at)+uint64(binary.NativeEndian.Uint32(b[at:])), binary.NativeEndian.Uint32(b[at+4:]))
	}
	for i := range n {
		child := within
		if child.from, err = key(i); err != nil {
			return err
		}
		if i+1 < n {
			if child.to, err = key(i + 1); err != nil {
				return err
			}
		}
		if err := child.check(within, i == 0); err != nil {
			return err
		}
		if err := r.page(name, binary.NativeEndian.Uint64(b[pageHeader+i*elementSize+8:]), child, depth); err != nil {
			return err
		}
	}
	return nil
}

// check refuses limits that are none, or not within those of the page above.
func (k keys) check(above keys, isFirst bool) error {
	if k.to != nil && bytes.Compare(k.from, k.to) >= 0 || isFirst && above.from != nil && !bytes.Equal(k.from, above.from) ||
		above.to != nil && bytes.Compare(k.from, above.to) >= 0 {
		return fmt.Errorf("its keys are not in order")
	}
	return nil
}

func (r *pageReader) leaf(name, b []byte, within keys, depth int, inline bool) error {
	n, err := elements(b)
	if err != nil {
		return err
	}
	if n == 0 && within.from != nil {
		return fmt.Errorf("it is empty")
	}
	var last []byte
	for i := range n {
		at := pageHeader + i*elementSize
		ksize, vsize := binary.NativeEndian.Uint32(b[at+8:]), binary.NativeEndian.Uint32(b[at+12:])
		start := uint64(at) + uint64(binary.NativeEndian.Uint32(b[at+4:]))
		k, err := piece(b, start, ksize)
		if err != nil {
			return err
		}
		v, err := piece(b, start+uint64(ksize), vsize)
		if err != nil {
			return err
		}
		if len(k) == 0 || i > 0 && bytes.Compare(last, k) >= 0 ||
			i == 0 && within.from != nil && !bytes.Equal(k, within.from) ||
			within.to != nil && bytes.Compare(k, within.to) >= 0 {
			return fmt.Errorf("its keys are not in order")
		}
		last = k
		switch flags := binary.NativeEndian.Uint32(b[at:]); {
		case flags == 0 && depth > 0:
			r.record(name, depth, k, v)
		case flags != bucketElement || inline || len(v) < bucketHeader:
			return fmt.Errorf("an element of it is damaged")
		default:
			root := bucketRoot{page: binary.NativeEndian.Uint64(v), sequence: binary.NativeEndian.Uint64(v[8:]), inline: v[bucketHeader:]}
			if err := r.bucket(k, root, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *pageReader) record(bucket []byte, depth int, k, v []byte) {
	if depth == 1 && bytes.Equal(bucket, metaBucket) {
		r.meta[string(k)] = v
		if bytes.Equal(k, sumKey) {
			return
		}
	}
	r.sum.record(k, v)
}

// freelist checks that what bbolt would write over is not in use.
func (r *pageReader) freelist(id uint64) error {
	if id == noFreelist {
		return nil
	}
	b, err := r.take(id)
	if err != nil {
		return err
	}
	if binary.NativeEndian.Uint16(b[8:]) != freelistFlag {
		return fmt.Errorf("page %d is no list of free pages", id)
	}
	n, list := uint64(binary.NativeEndian.Uint16(b[10:])), b[pageHeader:]
	if n == manyFree {
		n, list = binary.NativeEndian.Uint64(list), list[8:]
	}
	if n > uint64(len(list)/8) {
		return fmt.Errorf("page %d lists too many free pages", id)
	}
	for i := range n {
		free := binary.NativeEndian.Uint64(list[8*i:])
		if free >= uint64(len(r.used)) || r.used[free] {
			return fmt.Errorf("page %d lists a page as free that is not", id)
		}
		r.used[free] = true
	}
	return nil
}

// recordSum is a checksum over buckets and records in their order; each is told with its
// lengths, so that no two states are written alike.
type recordSum struct{ crc uint32 }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (s *recordSum) add(kind byte, a uint64, b int, data ...[]byte) {
	var head [17]byte
	head[0] = kind
	binary.BigEndian.PutUint64(head[1:], a)
	binary.BigEndian.PutUint64(head[9:], uint64(b))
	s.crc = crc32.Update(s.crc, castagnoli, head[:])
	for _, d := range data {
		s.crc = crc32.Update(s.crc, castagnoli, d)
	}
}

func (s *recordSum) open(name []byte, sequence uint64) { s.add('b', sequence, len(name), name) }
func (s *recordSum) close()                            { s.add('e', 0, 0) }
func (s *recordSum) record(k, v []byte)                { s.add('r', uint64(len(k)), len(v), k, v) }
