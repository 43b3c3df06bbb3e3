package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The peers that the curve of conversations is compared with.
const (
	lookupPeer      = "lookup"
	lookupWritePeer = "lookup-write"
)

// lookups is the table of both: what one lookup among many conversations costs.
type lookups struct {
	most   int // conversations that it has room for, as ebnet's table
	table  *ebpf.Map
	filled int
}

// build makes the stage of the limit, with a lookup where the container's packets pass.
func (u *lookups) build(ctx context.Context, l *lab, peer string) (*stage, error) {
	s, err := l.bridged(ctx, peer, false)
	if err != nil {
		return nil, err
	}
	// The limit moves the first datagram too, until the lookup takes its place.
	spec, err := limitSpec(s)
	if err != nil {
		return nil, err
	}
	table := spec.Maps[programMapLookups]
	table.MaxEntries = uint32(2 * u.most)
	if u.table == nil {
		if u.table, err = ebpf.NewMap(table); err != nil {
			return nil, fmt.Errorf("make the table of lookups: %w", err)
		}
		l.closers = append(l.closers, u.table)
	}
	options := &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{table.Name: u.table}}
	var objects struct {
		Read  *ebpf.Program `ebpf:"lookup_from_container"`
		Write *ebpf.Program `ebpf:"lookup_write_from_container"`
	}
	if err := spec.LoadAndAssign(&objects, options); err != nil {
		return nil, fmt.Errorf("load the lookups: %w", err)
	}
	l.closers = append(l.closers, objects.Read, objects.Write)
	program := objects.Read
	if peer == scaleName("scale/flows", lookupWritePeer) {
		program = objects.Write
	}
	attached, err := attach(s.host, hostLink(1), program)
	if err != nil {
		return nil, err
	}
	l.closers = append(l.closers, attached)
	return s, nil
}

// grow fills both directions of conversations in, as often as it is asked for more.
func (u *lookups) grow(_ context.Context, _ *flowsPeer, to int) error {
	const batch = 4096
	for u.filled < to {
		n := min(batch, to-u.filled)
		keys := make([]programTuple, 0, 2*n)
		values := make([]programLookupValue, 2*n)
		for i := u.filled; i < u.filled+n; i++ {
			from, server := tcpTuple(i)
			keys = append(keys, lookupKey(from, server),
				lookupKey(server, netip.AddrPortFrom(hostAddr, from.Port())))
		}
		for i := range values {
			for word := range values[i].W {
				values[i].W[word] = 1 // see looked_up() in bpf/bench.bpf.c
			}
		}
		if err := putAll(u.table, keys, values); err != nil {
			return fmt.Errorf("fill the table of lookups: %w", err)
		}
		u.filled += n
	}
	return nil
}

// putAll puts entries into a map. The kernel may be short of memory for a moment, as it takes it in
// advance.
func putAll(m *ebpf.Map, keys []programTuple, values []programLookupValue) error {
	for range 1000 {
		n, err := m.BatchUpdate(keys, values, nil)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.ENOMEM) {
			return err
		}
		keys, values = keys[n:], values[n:]
	}
	return unix.ENOMEM
}

// lookupKey is the tuple of a TCP segment, as struct tuple.
func lookupKey(from, to netip.AddrPort) programTuple {
	k := programTuple{Sport: swap16(from.Port()), Dport: swap16(to.Port()), Proto: unix.IPPROTO_TCP}
	const mapped = 0xffff0000 // RFC 4291 2.5.5.2, in network byte order
	k.Src.W = [4]uint32{2: mapped, 3: beAddr(from.Addr())}
	k.Dst.W = [4]uint32{2: mapped, 3: beAddr(to.Addr())}
	return k
}
