package network

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/ipam"
	"github.com/ebnet/ebnet/loader"
	"github.com/ebnet/ebnet/loader/failpoint"
)

// stateFile is the name of the state below Options.StateDir.
const stateFile = "ebnet.db"

// The buckets of the state.
var (
	metaBucket      = []byte("meta")           // see schemaKey; "host" → hostRecord
	networksBucket  = []byte("networks")       // name → networkRecord
	networkIDs      = []byte("network_ids")    // id → name; sequence: id given last
	endpointsBucket = []byte("endpoints")      // name → endpointRecord
	ifnamesBucket   = []byte("ifnames")        // namespace, ifname → endpoint
	membersBucket   = []byte("members")        // network NUL endpoint → ""
	slotsBucket     = []byte("slots")          // slot → endpoint; sequence: slot given last
	portsBucket     = []byte("ports")          // portKey → portRecord
	portsOfBucket   = []byte("endpoint_ports") // endpoint NUL portKey → ""
	ipamBucket      = []byte("ipam")           // network → bucket of an ipam.BoltStore
)

var allBuckets = [][]byte{metaBucket, networksBucket, networkIDs, endpointsBucket, ifnamesBucket,
	membersBucket, slotsBucket, portsBucket, portsOfBucket, ipamBucket}

// errCorrupt says that the state's file is damaged.
var errCorrupt = errors.New("damaged")

// errUnchanged makes state.change roll back and return nil.
var errUnchanged = errors.New("unchanged")

// state is the bbolt file. While there is none, it is an empty one in memory that becomes
// the file with the first change.
type state struct {
	dir     string
	writer  string // version of this ebnet
	warn    func(text string)
	db      *bbolt.DB
	unnamed bool // no file of that name yet
	aside   bool // a copy in memory: what is written into it is lost
	created bool // by the verb at work
	changed bool // since it was opened: the copy is older
	roomy   bool // there is room for what a verb writes

	// committing, if not nil, is called before each commit; tests fail there.
	committing func() error
}

// openState opens the state for access; a dry run has a copy in memory.
func openState(o Options, access Access) (s *state, err error) {
	s = &state{dir: o.StateDir, writer: o.Version, warn: o.Warn}
	f, err := openRegular(s.path())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s, s.openMissing()
	case err != nil:
		return nil, s.fault(err)
	}
	defer f.Close()
	m, err := s.inspect(f)
	if err != nil {
		return nil, err
	}
	older := m.schema < schemaVersion
	switch {
	case o.DryRun, older && access == ReadOnly:
		err = s.openCopy(f, m)
	case older:
		err = s.upgrade(f, m)
	default:
		err = s.open(access == ReadOnly)
	}
	if err == nil {
		err = s.check(m)
	}
	if err == nil && older {
		err = s.migrate(m.schema)
	}
	if err != nil {
		s.changed = false // the copy is better
		_ = s.close()
		return nil, err
	}
	s.changed = s.changed || access == ReadWrite && !s.aside && s.copyOf() != m.txid
	return s, nil
}

func (s *state) path() string { return filepath.Join(s.dir, stateFile) }

// inspect reads the file as readImage does, and refuses what is not a state that this ebnet reads.
func (s *state) inspect(f *os.File) (image, error) {
	m, err := readImage(f)
	switch {
	case errors.Is(err, errCorrupt):
		return image{}, s.corrupt(err)
	case err != nil:
		return image{}, s.fault(err)
	case m.schema < firstSchema:
		return image{}, s.corrupt(errors.New("no schema version"))
	case m.schema > schemaVersion:
		return image{}, s.newer(m)
	case m.txid < s.copyOf(): // which is made after it
		return image{}, s.corrupt(errors.New("it is older than its copy: the disk has lost what was written, or an older file was put here"))
	}
	return m, nil
}

// check refuses a state without all its buckets. What an ebnet without checksums has written last is
// looked through as well.
func (s *state) check(m image) error {
	return s.view(func(t *tx) error {
		for _, name := range allBuckets {
			if t.Bucket(name) == nil {
				return fmt.Errorf("%w: there is no %s in it", errCorrupt, name)
			}
		}
		if m.summed() {
			return nil
		}
		wrong, err := t.inconsistencies()
		if err == nil && len(wrong) > 0 {
			err = fmt.Errorf("%w: %s", errCorrupt, strings.Join(wrong[:min(3, len(wrong))], ", "))
		}
		return err
	})
}

// open opens the file, which has passed readImage.
func (s *state) open(readOnly bool) error {
	return s.openBolt(bbolt.Options{
		Timeout:  time.Second, // ours is the lock beside it
		ReadOnly: readOnly,
		OpenFile: func(path string, flag int, _ os.FileMode) (*os.File, error) {
			return os.OpenFile(path, flag&^os.O_CREATE|unix.O_NOFOLLOW, 0)
		},
	})
}

func (s *state) openBolt(o bbolt.Options) (err error) {
	defer s.guard(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	o.FreelistType = bbolt.FreelistMapType
	s.db, err = bbolt.Open(s.path(), 0o600, &o)
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return conflict("state "+s.path(), "locked by a program that is not ebnet")
	case isFileFault(err):
		return s.fault(err)
	case err != nil:
		return s.corrupt(err)
	}
	return nil
}

// openMemory opens a state in memory that starts with content.
func (s *state) openMemory(content io.Reader) error {
	fd, err := unix.MemfdCreate(stateFile, unix.MFD_CLOEXEC)
	if err != nil {
		return failed("open a state in memory", err)
	}
	f := os.NewFile(uintptr(fd), s.path())
	if _, err := io.Copy(f, content); err != nil {
		_ = f.Close()
		return s.fault(err)
	}
	return s.openBolt(bbolt.Options{
		NoSync:   true,
		OpenFile: func(string, int, os.FileMode) (*os.File, error) { return f, nil },
	})
}

// openCopy opens a copy of the file that nobody else will see.
func (s *state) openCopy(f *os.File, m image) error {
	s.aside = true
	return s.openMemory(io.NewSectionReader(f, 0, m.size))
}

// openMissing opens an empty state, unless there was one.
func (s *state) openMissing() error {
	if _, err := os.Lstat(s.copyPath()); err == nil {
		return s.lost()
	}
	s.unnamed = true
	if err := s.openMemory(strings.NewReader("")); err != nil {
		return err
	}
	return s.update(func(t *tx) error {
		for _, name := range allBuckets {
			if _, err := t.CreateBucket(name); err != nil {
				return err
			}
		}
		if err := t.seal(s.writer); err != nil {
			return err
		}
		return t.putHost(hostRecord{Secret: rand.Uint64(), FastPath: true})
	})
}

// name gives the unnamed state its file, which is whole whenever it is there.
func (s *state) name() error {
	err := replaceIn(s.dir, stateFile, func(w *os.File) error {
		return s.db.View(func(t *bbolt.Tx) error {
			n, err := t.WriteTo(w)
			if err == nil {
				err = extend(w, n, roomFor(n))
			}
			return err
		})
	})
	if err != nil {
		return s.fault(err)
	}
	_ = s.db.Close()
	s.unnamed, s.created, s.roomy = false, true, true
	return s.open(false)
}

// discard removes the state if the verb at work created it: for one that failed.
func (s *state) discard() error {
	if !s.created {
		return nil
	}
	return s.remove()
}

// remove deletes the file and its copies; the state is empty and unnamed again. The file goes last: who
// finds a copy without it takes it for lost.
func (s *state) remove() error {
	if s.unnamed {
		return nil
	}
	_ = s.db.Close()
	s.changed = false
	for _, path := range append(s.copies(), s.path()) {
		if err := failpoint.Do("remove", path, func() error { return os.Remove(path) }); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return s.fault(err)
		}
	}
	s.created = false
	if err := syncDir(s.dir); err != nil {
		return s.fault(err)
	}
	return s.openMissing()
}

func (s *state) close() error {
	if s.db == nil {
		return nil
	}
	err := s.db.Close()
	if s.changed && !s.unnamed && err == nil {
		s.keepCopy()
	}
	return err
}

// change runs fn in a transaction and commits it, if commit is true and fn
// returns nil.
func (s *state) change(commit bool, fn func(*tx) error) error {
	if commit && !s.unnamed && !s.aside && !s.roomy {
		if err := s.makeRoom(); err != nil {
			return err
		}
	}
	err := s.update(func(t *tx) error {
		if err := fn(t); err != nil {
			return err
		}
		if !commit {
			return errUnchanged
		}
		if err := t.seal(s.writer); err != nil {
			return err
		}
		if s.committing != nil {
			return s.committing()
		}
		return failpoint.Reach("commit", "")
	})
	switch {
	case errors.Is(err, errUnchanged):
		return nil
	case err != nil || s.aside:
		return err
	case s.unnamed:
		err = s.name()
	}
	s.changed = s.changed || err == nil
	return err
}

func (s *state) update(fn func(*tx) error) (err error) {
	defer s.guard(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	return s.db.Update(func(b *bbolt.Tx) error { return fn(&tx{b}) })
}

func (s *state) view(fn func(*tx) error) (err error) {
	defer s.guard(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	return s.db.View(func(b *bbolt.Tx) error { return fn(&tx{b}) })
}

// guard turns what bbolt does on a damaged file, which is to panic or to read
// beyond its end, and what we find in one, into an error.
func (s *state) guard(err *error) {
	if r := recover(); r != nil {
		*err = s.corrupt(fmt.Errorf("%v", r))
	}
	if _, ok := errors.AsType[*Error](*err); ok {
		return
	}
	switch {
	case errors.Is(*err, errCorrupt), errors.Is(*err, ipam.ErrCorrupt):
		*err = s.corrupt(*err)
	case s.db != nil && isFileFault(*err) && strings.Contains((*err).Error(), s.db.Path()):
		*err = s.fault(*err)
	}
}

// tx is a transaction on the state.
type tx struct{ *bbolt.Tx }

// The records of metaBucket beside those of the host.
var (
	schemaKey = []byte("schema") // decimal
	writerKey = []byte("ebnet")  // version of the ebnet that wrote last
)

// seal ends what a transaction writes: what is written from now on only this schema can say.
func (t *tx) seal(writer string) error {
	meta := t.Bucket(metaBucket)
	if err := errors.Join(
		meta.Put(schemaKey, []byte(strconv.Itoa(schemaVersion))),
		meta.Put(writerKey, []byte(writer)),
	); err != nil {
		return err
	}
	sum, err := t.sum()
	if err != nil {
		return err
	}
	return meta.Put(sumKey, binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, uint64(t.ID())), sum))
}

// sum is what pageReader will find.
func (t *tx) sum() (uint32, error) {
	var s recordSum
	s.open(nil, 0)
	err := t.ForEach(func(name []byte, b *bbolt.Bucket) error { return s.bucket(name, b, bytes.Equal(name, metaBucket)) })
	s.close()
	return s.crc, err
}

func (s *recordSum) bucket(name []byte, b *bbolt.Bucket, meta bool) error {
	s.open(name, b.Sequence())
	defer s.close()
	return b.ForEach(func(k, v []byte) error {
		if v == nil { // a bucket, or nothing that was just put there
			if sub := b.Bucket(k); sub != nil {
				return s.bucket(k, sub, false)
			}
		}
		if !meta || !bytes.Equal(k, sumKey) {
			s.record(k, v)
		}
		return nil
	})
}

func put[T any](t *tx, bucket, key []byte, v T) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return t.Bucket(bucket).Put(key, b)
}

// get returns nil if there is no record.
func get[T any](t *tx, bucket, key []byte) (*T, error) {
	b := t.Bucket(bucket).Get(key)
	if b == nil {
		return nil, nil
	}
	return decode[T](bucket, key, b)
}

func decode[T any](bucket, key, b []byte) (*T, error) {
	v := new(T)
	if err := unmarshal(b, v); err != nil {
		return nil, fmt.Errorf("%w: %s %q: %w", errCorrupt, bucket, key, err)
	}
	return v, nil
}

func list[T any](t *tx, bucket []byte) ([]*T, error) {
	var vs []*T
	err := t.Bucket(bucket).ForEach(func(k, b []byte) error {
		v, err := decode[T](bucket, k, b)
		vs = append(vs, v)
		return err
	})
	return vs, err
}

// suffixes returns what follows prefix in the keys that start with it.
func (t *tx) suffixes(bucket []byte, prefix string) []string {
	var found []string
	c := t.Bucket(bucket).Cursor()
	for k, _ := c.Seek([]byte(prefix)); bytes.HasPrefix(k, []byte(prefix)); k, _ = c.Next() {
		found = append(found, string(k[len(prefix):]))
	}
	return found
}

func (t *tx) host() (hostRecord, error) {
	h, err := get[hostRecord](t, metaBucket, []byte("host"))
	if err == nil && h == nil {
		err = fmt.Errorf("%w: no record of the host", errCorrupt)
	}
	if err != nil {
		return hostRecord{}, err
	}
	return *h, nil
}

func (t *tx) putHost(h hostRecord) error { return put(t, metaBucket, []byte("host"), h) }

// reserve takes the next free number from 1 to limit-1, going on from the one
// given last, and writes down its owner. ok is false if there is none.
func (t *tx) reserve(bucket []byte, limit uint32, owner string) (id uint32, ok bool, err error) {
	b := t.Bucket(bucket)
	last := uint32(b.Sequence())
	for range limit - 1 {
		if last++; last >= limit {
			last = 1
		}
		if key := numberKey(last); b.Get(key) == nil {
			if err := b.SetSequence(uint64(last)); err != nil {
				return 0, false, err
			}
			return last, true, b.Put(key, []byte(owner))
		}
	}
	return 0, false, nil
}

func (t *tx) reserveSlot(endpoint string) (uint32, error) {
	slot, ok, err := t.reserve(slotsBucket, loader.MaxSlots, endpoint)
	if err == nil && !ok {
		err = conflict("endpoint "+strconv.Quote(endpoint), "all %d slots for endpoints and published ports are taken", loader.MaxSlots-1)
	}
	return slot, err
}

func numberKey(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// slotNumber is the inverse of numberKey.
func slotNumber(k []byte) uint32 { return binary.BigEndian.Uint32(k) }

// Networks.

func (t *tx) network(name string) (*networkRecord, error) {
	n, err := get[networkRecord](t, networksBucket, []byte(name))
	if err == nil && n == nil {
		return nil, notFound(fmt.Sprintf("network %q", name), "no such network").hint("`ebnet network ls` lists the networks")
	}
	return n, err
}

func (t *tx) putNetwork(n *networkRecord) error {
	return put(t, networksBucket, []byte(n.Name), n)
}

func (t *tx) deleteNetwork(n *networkRecord) error {
	return errors.Join(
		t.Bucket(networksBucket).Delete([]byte(n.Name)),
		t.Bucket(networkIDs).Delete(numberKey(n.ID)),
		t.deletePool(n.Name))
}

func (t *tx) deletePool(network string) error {
	err := t.Bucket(ipamBucket).DeleteBucket([]byte(network))
	if errors.Is(err, bolterrors.ErrBucketNotFound) {
		return nil
	}
	return err
}

// pool opens the network's addresses.
func (t *tx) pool(n *networkRecord) (*ipam.Pool, error) {
	parent := t.Bucket(ipamBucket)
	b := parent.Bucket([]byte(n.Name))
	if b == nil && t.Writable() {
		var err error
		if b, err = parent.CreateBucket([]byte(n.Name)); err != nil {
			return nil, err
		}
	}
	return ipam.Open(n.pool(), ipam.NewBoltStore(b))
}

// members names the endpoints of a network.
func (t *tx) members(network string) []string { return t.suffixes(membersBucket, network+"\x00") }

// Endpoints.

func (t *tx) endpoint(name string) (*endpointRecord, error) {
	e, err := get[endpointRecord](t, endpointsBucket, []byte(name))
	if err == nil && e == nil {
		return nil, notFound(fmt.Sprintf("endpoint %q", name), "no such endpoint").hint("`ebnet endpoint ls` lists the endpoints")
	}
	return e, err
}

// ifnameKey has the cookie of the namespace too, if it is recorded: the inode of one that is gone
// is soon another's, whose interface of that name nobody has.
func ifnameKey(e *endpointRecord) []byte {
	k := binary.BigEndian.AppendUint64(nil, e.NSDev)
	k = binary.BigEndian.AppendUint64(k, e.NSInode)
	if e.NSCookie != 0 {
		k = binary.BigEndian.AppendUint64(k, e.NSCookie)
	}
	return append(k, e.IfName...)
}

// ifnameOwner returns the endpoint that has e's interface in its namespace, nil if none has: one of another
// boot had a namespace that is gone.
func (t *tx) ifnameOwner(e *endpointRecord) (*endpointRecord, error) {
	name := t.Bucket(ifnamesBucket).Get(ifnameKey(e))
	if name == nil {
		return nil, nil
	}
	by, err := get[endpointRecord](t, endpointsBucket, name)
	if err != nil || by == nil || by.Boot != "" && by.Boot != e.Boot {
		return nil, err
	}
	return by, nil
}

// releaseIfname frees the interface's name in the namespace, if it is still the endpoint's: after a reboot
// another namespace may have that identity.
func (t *tx) releaseIfname(e *endpointRecord) error {
	if string(t.Bucket(ifnamesBucket).Get(ifnameKey(e))) != e.Name {
		return nil
	}
	return t.Bucket(ifnamesBucket).Delete(ifnameKey(e))
}

// moveEndpoint is putEndpoint for one that may be in another namespace by now.
func (t *tx) moveEndpoint(e *endpointRecord) error {
	was, err := t.endpoint(e.Name)
	if err == nil {
		err = t.releaseIfname(was)
	}
	if err != nil {
		return err
	}
	return t.putEndpoint(e)
}

func (t *tx) putEndpoint(e *endpointRecord) error {
	return errors.Join(
		put(t, endpointsBucket, []byte(e.Name), e),
		t.Bucket(ifnamesBucket).Put(ifnameKey(e), []byte(e.Name)),
		t.Bucket(membersBucket).Put([]byte(e.Network+"\x00"+e.Name), nil))
}

// deleteEndpoint forgets the endpoint, its address, slot and ports.
func (t *tx) deleteEndpoint(e *endpointRecord) error {
	ports, err := t.portsOf(e.Name)
	if err != nil {
		return err
	}
	for _, p := range ports {
		if err := t.deletePort(p); err != nil {
			return err
		}
	}
	n, err := t.network(e.Network)
	if err != nil {
		return err
	}
	pool, err := t.pool(n)
	if err != nil {
		return err
	}
	if err := pool.Release(e.IP); err != nil && !errors.Is(err, ipam.ErrNotLeased) {
		return err
	}
	return errors.Join(
		t.Bucket(endpointsBucket).Delete([]byte(e.Name)),
		t.releaseIfname(e),
		t.Bucket(membersBucket).Delete([]byte(e.Network+"\x00"+e.Name)),
		t.Bucket(slotsBucket).Delete(numberKey(e.Slot)))
}

// Ports.

// portKey orders the published ports by protocol and first host port, so that
// conflicts are found by ranges. Layout: protocol 1, first 2, last 2, address 16
// bytes, all big endian; the address of "any" is zero. Direct ports, which take none of
// the host, are apart: their protocols have the highest bit set.
type portKey [21]byte

func (p *portRecord) key() (k portKey) {
	k[0] = p.space()
	binary.BigEndian.PutUint16(k[1:], p.HostPort)
	binary.BigEndian.PutUint16(k[3:], p.hostEnd())
	if p.HostIP.IsValid() {
		ip := p.HostIP.As16()
		copy(k[5:], ip[:])
	}
	return k
}

const directPorts = 0x80

// space is what ports that can be in each other's way have in common: the first byte
// of their keys.
func (p *portRecord) space() byte {
	if p.Direct {
		return byte(p.Protocol) | directPorts
	}
	return byte(p.Protocol)
}

func (k portKey) first() uint16 { return binary.BigEndian.Uint16(k[1:]) }
func (k portKey) last() uint16  { return binary.BigEndian.Uint16(k[3:]) }

// meets reports whether one host address means the other too.
func (k portKey) meets(host netip.Addr) bool {
	own := netip.AddrFrom16([16]byte(k[5:]))
	return own == netip.IPv6Unspecified() || !host.IsValid() || own.Unmap() == host
}

// published calls yield for the published ports of the space (a protocol, or one of
// direct ports) whose first host port is at most upTo, until it returns false.
func (t *tx) published(space byte, upTo uint16, yield func(k portKey) bool) {
	c := t.Bucket(portsBucket).Cursor()
	for b, _ := c.Seek([]byte{space}); len(b) == len(portKey{}) && b[0] == space; b, _ = c.Next() {
		if k := portKey(b); k.first() > upTo || !yield(k) {
			return
		}
	}
}

func (t *tx) port(k portKey) (*portRecord, error) {
	p, err := get[portRecord](t, portsBucket, k[:])
	if err == nil && p == nil {
		err = fmt.Errorf("%w: a port is missing", errCorrupt)
	}
	return p, err
}

func (t *tx) portsOf(endpoint string) ([]*portRecord, error) {
	var ports []*portRecord
	for _, s := range t.suffixes(portsOfBucket, endpoint+"\x00") {
		if len(s) != len(portKey{}) {
			return nil, fmt.Errorf("%w: ports of %q", errCorrupt, endpoint)
		}
		p, err := t.port(portKey([]byte(s)))
		if err != nil {
			return nil, err
		}
		ports = append(ports, p)
	}
	return ports, nil
}

func (t *tx) putPort(p *portRecord) error {
	k := p.key()
	return errors.Join(
		put(t, portsBucket, k[:], p),
		t.Bucket(portsOfBucket).Put(append([]byte(p.Endpoint+"\x00"), k[:]...), nil))
}

func (t *tx) deletePort(p *portRecord) error {
	k := p.key()
	return errors.Join(
		t.Bucket(portsBucket).Delete(k[:]),
		t.Bucket(portsOfBucket).Delete(append([]byte(p.Endpoint+"\x00"), k[:]...)),
		t.Bucket(slotsBucket).Delete(numberKey(p.Slot)))
}
