package network

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
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
	metaBucket      = []byte("meta")           // "schema" → decimal; "host" → hostRecord
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

// state is the bbolt file. While there is none, it is an empty one without a
// name that becomes the file with the first change.
type state struct {
	dir     string
	db      *bbolt.DB
	unnamed bool // no file of that name yet
	created bool // by the verb at work

	// committing, if not nil, is called before each commit; tests fail there.
	committing func() error
}

func openState(dir string, readOnly bool) (*state, error) {
	s := &state{dir: dir}
	path := s.path()
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.unnamed = true
		return s, s.openUnnamed()
	case err != nil:
		return nil, fileError(path, err)
	case !info.Mode().IsRegular() || info.Size() == 0: // bbolt would begin anew in an empty one
		return nil, s.corrupt(errors.New("not a bbolt file"))
	}
	if err := s.open(path, readOnly); err != nil {
		return nil, err
	}
	if err := s.view(func(t *tx) error { return t.checkSchema(info.Size()) }); err != nil {
		_ = s.db.Close()
		return nil, err
	}
	return s, nil
}

func (s *state) path() string { return filepath.Join(s.dir, stateFile) }

// open opens the file at path, which exists.
func (s *state) open(path string, readOnly bool) (err error) {
	defer s.guard(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	s.db, err = bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:      time.Second, // ours is the lock beside it
		ReadOnly:     readOnly,
		FreelistType: bbolt.FreelistMapType,
	})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return conflict("state "+path, "locked by a program that is not ebnet")
	case errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist):
		return fileError(path, err)
	case err != nil:
		return s.corrupt(err)
	}
	return nil
}

// openUnnamed opens an empty state in a file that has no name anywhere, so that nothing is
// left of it whatever happens.
func (s *state) openUnnamed() error {
	fd, err := unix.MemfdCreate("ebnet.db", unix.MFD_CLOEXEC)
	if err != nil {
		return failed("open an empty state", err)
	}
	defer unix.Close(fd)
	if s.db, err = bbolt.Open(fmt.Sprintf("/proc/self/fd/%d", fd), 0o600, &bbolt.Options{NoSync: true}); err != nil {
		return failed("open an empty state", err)
	}
	return s.update(func(t *tx) error {
		for _, name := range allBuckets {
			if _, err := t.CreateBucket(name); err != nil {
				return err
			}
		}
		if err := t.putSchema(); err != nil {
			return err
		}
		return t.putHost(hostRecord{Secret: rand.Uint64(), FastPath: true})
	})
}

// name gives the unnamed state its file, which is whole whenever it is there.
func (s *state) name() error {
	fresh := s.path() + ".new"
	err := failpoint.Do("write", fresh, func() error {
		return s.db.View(func(t *bbolt.Tx) error { return t.CopyFile(fresh, 0o600) })
	})
	if err == nil {
		err = syncPath(fresh)
	}
	if err == nil {
		err = failpoint.Do("rename", fresh, func() error { return os.Rename(fresh, s.path()) })
	}
	if err == nil {
		err = syncPath(s.dir)
	}
	if err != nil {
		_ = os.Remove(fresh)
		return failed("create the state "+s.path(), err)
	}
	_ = s.db.Close()
	s.unnamed, s.created = false, true
	return s.open(s.path(), false)
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// discard removes the state if the verb at work created it: for one that failed.
func (s *state) discard() error {
	if !s.created {
		return nil
	}
	return s.remove()
}

// remove deletes the file; the state is empty and unnamed again.
func (s *state) remove() error {
	_ = os.Remove(s.path() + ".new") // of a command that was killed in name
	if !s.unnamed {
		_ = s.db.Close()
		if err := failpoint.Do("remove", s.path(), func() error { return os.Remove(s.path()) }); err != nil {
			return fileError(s.path(), err)
		}
		s.unnamed, s.created = true, false
		return s.openUnnamed()
	}
	return nil
}

func (s *state) close() error {
	if s.db == nil {
		return nil
	}
	return s.db.Close()
}

// change runs fn in a transaction and commits it, if commit is true and fn
// returns nil.
func (s *state) change(commit bool, fn func(*tx) error) error {
	err := s.update(func(t *tx) error {
		if err := fn(t); err != nil {
			return err
		}
		if !commit {
			return errUnchanged
		}
		if err := t.putSchema(); err != nil {
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
	case err != nil:
		return err
	case s.unnamed:
		return s.name()
	}
	return nil
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
	if errors.Is(*err, errCorrupt) || errors.Is(*err, ipam.ErrCorrupt) {
		if _, ok := errors.AsType[*Error](*err); !ok {
			*err = s.corrupt(*err)
		}
	}
}

func (s *state) corrupt(why error) *Error {
	return &Error{
		What: "state " + s.path(),
		Why:  fmt.Sprintf("the file is damaged (%v); it was left as it is", why),
		Hint: "restore a copy, or move the file away and run `ebnet up` to begin anew",
		Kind: ErrFailed,
		Err:  errCorrupt,
	}
}

// tx is a transaction on the state.
type tx struct{ *bbolt.Tx }

// checkSchema refuses what is not a state of ours. size is that of the file,
// which may have been cut off behind what the header speaks of.
func (t *tx) checkSchema(size int64) error {
	if t.Size() > size {
		return fmt.Errorf("%w: %d of %d bytes", errCorrupt, size, t.Size())
	}
	for _, name := range allBuckets {
		if t.Bucket(name) == nil {
			return fmt.Errorf("%w: there is no %s in it", errCorrupt, name)
		}
	}
	version, err := strconv.Atoi(string(t.Bucket(metaBucket).Get([]byte("schema"))))
	switch {
	case err != nil:
		return fmt.Errorf("%w: no schema version", errCorrupt)
	case version < firstSchema || version > schemaVersion:
		return &Error{
			What: "state " + t.DB().Path(),
			Why:  fmt.Sprintf("written by another ebnet: its schema is %d, this one's is %d", version, schemaVersion),
			Hint: "use that ebnet",
			Kind: ErrUnsupported,
		}
	}
	return nil
}

// putSchema: what is written from now on only this schema can say.
func (t *tx) putSchema() error {
	return t.Bucket(metaBucket).Put([]byte("schema"), []byte(strconv.Itoa(schemaVersion)))
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
	if err := json.Unmarshal(b, v); err != nil {
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

func ifnameKey(e *endpointRecord) []byte {
	k := binary.BigEndian.AppendUint64(nil, e.NSDev)
	return append(binary.BigEndian.AppendUint64(k, e.NSInode), e.IfName...)
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
		t.Bucket(ifnamesBucket).Delete(ifnameKey(e)),
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
