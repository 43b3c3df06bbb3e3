package walk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"reflect"

	"github.com/cilium/ebpf"

	"github.com/ebnet/ebnet/tests/netlab"
)

// The entries of pinned maps as bpf/abi.h lays them out; addresses of IPv4 are mapped into
// those of IPv6, ports are in network byte order.

type addr [16]byte

type endpointEntry struct {
	Ifindex, Network, Slot uint32
	MAC                    [6]byte
	_                      [2]byte
}

type deviceEntry struct {
	Addr4, Addr6  addr
	Network, Slot uint32
	MAC           [6]byte
	Published     uint8
	_             uint8
}

type nearEntry struct {
	Addr                   [4]byte // all zero: nobody is here
	Ifindex, Network, Slot uint32
	MAC                    [6]byte
	Published              uint8
	_                      uint8
}

type networkEntry struct {
	Gateway4, Gateway6, SNAT4 addr
	Bridge, MTU, Flags        uint32
	MAC                       [6]byte
	_                         [2]byte
}

type subnetKey struct {
	Bits uint32
	Addr addr
}

type serviceKey struct {
	Addr  addr
	Port  [2]byte
	Proto uint8
	_     uint8
}

type serviceEntry struct {
	Addr                   addr
	Port                   [2]byte
	MAC                    [6]byte
	Slot, Network, Ifindex uint32
	Flags                  uint8
	_                      [3]byte
}

type sourceKey struct {
	Bits, Slot uint32
	Addr       addr
}

type uplinkEntry struct {
	Addr4, Addr6 addr
	MTU          uint32
	Flags        uint8
	_            [3]byte
}

type nearUplinkEntry struct{ Ifindex, Flags uint32 }

type portWord struct{ Source, Published, Tracked uint64 }

type shareEntry struct {
	Held    int32
	Refused uint32
}

// The bits of networkEntry.Flags and serviceEntry.Flags.
const (
	flagInternal, flagNoICC, flagNoMasquerade, flagRouted = 1, 2, 4, 8
	flagRestricted                                        = 1
)

func mapped(ip netip.Addr) addr {
	if !ip.IsValid() {
		return addr{}
	}
	return ip.As16()
}

func hardware(mac string) (b [6]byte) {
	m, _ := net.ParseMAC(mac) // of a model
	copy(b[:], m)
	return b
}

func wire(port uint16) [2]byte { return [2]byte(binary.BigEndian.AppendUint16(nil, port)) }

// contents is a map as it must be: entries that have to be there, and entries that may, of
// endpoints whose namespace is gone while `ebnet up` has not seen that.
type contents[K comparable, V any] struct {
	want map[K]V
	may  map[K]bool
	same func(have, want V) bool // nil: equal in all
}

func newContents[K comparable, V any]() contents[K, V] {
	return contents[K, V]{want: map[K]V{}, may: map[K]bool{}}
}

// compare reads a pinned map; entries that are all zero are none where it is an array.
func compare[K comparable, V any](w *Walk, name string, c contents[K, V]) error {
	m, err := ebpf.LoadPinnedMap(filepath.Join(w.lab.Host.BPFFS, "v2", "maps", name), nil)
	if err != nil {
		return fmt.Errorf("map %s: %w", name, err)
	}
	defer m.Close()
	array := m.Type() == ebpf.Array
	found := 0
	err = entries(m, func(k K, v V) error {
		if array && reflect.ValueOf(v).IsZero() || c.may[k] {
			return nil
		}
		want, ok := c.want[k]
		if !ok {
			return fmt.Errorf("there is an entry %+v %+v, which nobody wants", k, v)
		}
		found++
		if c.same != nil && !c.same(v, want) || c.same == nil && !reflect.DeepEqual(v, want) {
			return fmt.Errorf("the entry of %+v is %+v, want %+v", k, v, want)
		}
		return nil
	})
	if err == nil && found != len(c.want) {
		err = fmt.Errorf("%d entries, want %d: %+v", found, len(c.want), c.want)
	}
	if err != nil {
		return fmt.Errorf("map %s: %w", name, err)
	}
	return nil
}

// entries calls yield for each entry of a map that nobody changes meanwhile.
func entries[K comparable, V any](m *ebpf.Map, yield func(K, V) error) error {
	const batch = 8192
	keys, values := make([]K, batch), make([]V, batch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if errors.Is(err, ebpf.ErrNotSupported) { // a trie
			it := m.Iterate()
			for it.Next(&keys[0], &values[0]) {
				if err := yield(keys[0], values[0]); err != nil {
					return err
				}
			}
			return it.Err()
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		for i := range n {
			if err := yield(keys[i], values[i]); err != nil {
				return err
			}
		}
		if err != nil {
			return nil
		}
	}
}

// checkMaps compares every entry of the maps that commands write.
func (w *Walk) checkMaps(seen observed, r recorded) error {
	if !w.model.Up {
		return nil // nothing is pinned
	}
	at := w.lab.Host.Links(w.tb)
	return firstWrong(w.checkEndpointMaps(seen, r), w.checkServiceMaps(seen, r), w.checkNetworkMaps(r, at), w.checkUplinkMaps(at), w.checkShares(r))
}

func (w *Walk) checkEndpointMaps(seen observed, r recorded) error {
	ends, devs := newContents[addr, endpointEntry](), newContents[uint32, deviceEntry]()
	devs.same = func(have, want deviceEntry) bool {
		if have.Published == 1 {
			want.Published = 1 // once it has been, it may stay so
		}
		return have == want
	}
	stale := map[uint32]bool{}
	for _, s := range seen.endpoints {
		e := w.model.Endpoints[s.Name]
		id, slot := r.networks[e.Network], r.slots[e.Name]
		switch {
		case w.model.linked(e):
			ends.want[mapped(e.IP)] = endpointEntry{Ifindex: uint32(s.Ifindex), Network: id, Slot: slot, MAC: hardware(e.MAC)}
			d := deviceEntry{Addr4: mapped(e.IP), Network: id, Slot: slot, MAC: hardware(e.MAC)}
			if len(e.Ports) > 0 {
				d.Published = 1
			}
			devs.want[uint32(s.Ifindex)] = d
		case !e.Aside:
			ends.may[mapped(e.IP)], stale[slot] = true, true
		}
	}
	// A device that is gone has no index to be known by.
	m, err := ebpf.LoadPinnedMap(filepath.Join(w.lab.Host.BPFFS, "v2", "maps", "devices"), nil)
	if err != nil {
		return err
	}
	defer m.Close()
	if err := entries(m, func(k uint32, v deviceEntry) error {
		devs.may[k] = stale[v.Slot]
		return nil
	}); err != nil {
		return err
	}
	return firstWrong(compare(w, "endpoints", ends), compare(w, "devices", devs), w.checkNears(devs))
}

// checkNears compares the places of endpoints, of which two may have the same.
func (w *Walk) checkNears(devs contents[uint32, deviceEntry]) error {
	m, err := ebpf.LoadPinnedMap(filepath.Join(w.lab.Host.BPFFS, "v2", "maps", "nears"), nil)
	if err != nil {
		return fmt.Errorf("map nears: %w", err)
	}
	defer m.Close()
	return entries(m, func(place uint32, n nearEntry) error {
		want, ok := devs.want[n.Ifindex]
		switch {
		case n == nearEntry{} || devs.may[n.Ifindex]:
			return nil
		case !ok:
			return fmt.Errorf("map nears: there is an entry %+v, which nobody wants", n)
		}
		d := deviceEntry{Addr4: mapped(netip.AddrFrom4(n.Addr)), Network: n.Network, Slot: n.Slot, MAC: n.MAC, Published: n.Published}
		if !devs.same(d, want) {
			return fmt.Errorf("map nears: an entry is %+v, want %+v", n, want)
		}
		return nil
	})
}

func (w *Walk) checkServiceMaps(seen observed, r recorded) error {
	services, sources := newContents[serviceKey, serviceEntry](), newContents[sourceKey, uint32]()
	words, mayWords := map[uint32]uint64{}, map[uint32]uint64{}
	for _, s := range seen.endpoints {
		e := w.model.Endpoints[s.Name]
		if e.Aside {
			continue
		}
		for _, p := range e.Ports {
			slot := r.portSlot(e, p)
			for i := range p.Count {
				key := serviceKey{Addr: mapped(p.HostIP), Port: wire(p.HostPort + uint16(i)), Proto: number(p.Protocol)}
				if !p.HostIP.IsValid() {
					key.Addr = mapped(netip.IPv4Unspecified())
				}
				v := serviceEntry{
					Addr: mapped(e.IP), Port: wire(p.Port + uint16(i)), MAC: hardware(e.MAC), Slot: slot,
					Network: r.networks[e.Network], Ifindex: uint32(s.Ifindex),
				}
				if len(p.From) > 0 {
					v.Flags = flagRestricted
				}
				into := words
				if w.model.linked(e) {
					services.want[key] = v
				} else {
					services.may[key], into = true, mayWords
				}
				if !p.Direct {
					at := uint32(p.HostPort) + uint32(i)
					if p.Protocol == "udp" {
						at += 65536
					}
					into[at/64] |= 1 << (at % 64)
				}
			}
			for _, from := range p.From {
				key := sourceKey{Bits: 32 + 96 + uint32(from.Bits()), Slot: slot, Addr: mapped(from.Addr())}
				if sources.want[key] = 1; !w.model.linked(e) {
					delete(sources.want, key)
					sources.may[key] = true
				}
			}
		}
	}
	return firstWrong(compare(w, "services", services), compare(w, "sources", sources), w.checkPortWords(words, mayWords))
}

// checkPortWords compares the bits of published ports.
func (w *Walk) checkPortWords(want, may map[uint32]uint64) error {
	m, err := ebpf.LoadPinnedMap(filepath.Join(w.lab.Host.BPFFS, "v2", "maps", "ports"), nil)
	if err != nil {
		return fmt.Errorf("map ports: %w", err)
	}
	defer m.Close()
	return entries(m, func(i uint32, word portWord) error {
		if word.Published&^may[i] != want[i]&^may[i] {
			return fmt.Errorf("map ports: word %d of published ports is %x, want %x", i, word.Published, want[i])
		}
		return nil
	})
}

func (w *Walk) checkNetworkMaps(r recorded, at map[string]int) error {
	networks, subnets, inner := newContents[uint32, networkEntry](), newContents[subnetKey, uint32](), newContents[uint32, uint64]()
	locals := newContents[addr, uint32]()
	hosts := []netip.Prefix{netip.PrefixFrom(netlab.HostAddr, 24), netip.PrefixFrom(netlab.HostAddr2, 24)}
	for name, n := range w.model.Networks {
		gateway := n.Gateway.As4()
		v := networkEntry{
			Gateway4: mapped(n.Gateway), SNAT4: mapped(n.SNAT), Bridge: uint32(at[n.Bridge]), MTU: uint32(n.MTU),
			MAC: [6]byte{0x06, 0xeb, gateway[0], gateway[1], gateway[2], gateway[3]},
		}
		for flag, on := range map[uint32]bool{
			flagInternal: n.Internal, flagNoICC: n.NoICC, flagNoMasquerade: n.NoMasquerade, flagRouted: n.Routed,
		} {
			if on {
				v.Flags |= flag
			}
		}
		networks.want[r.networks[name]] = v
		subnets.want[subnetKey{uint32(n.Subnet.Bits()) + 96, mapped(n.Subnet.Addr())}] = r.networks[name]
		for first, last := high(n.Subnet.Addr()), high(last(n.Subnet)); first <= last; first++ {
			inner.want[first/64] |= 1 << (first % 64)
		}
		hosts = append(hosts, netip.PrefixFrom(n.Gateway, n.Subnet.Bits()))
	}
	for _, p := range hosts {
		if p.Bits() <= 30 {
			locals.want[mapped(p.Masked().Addr())], locals.want[mapped(last(p.Masked()))] = 2, 2
		}
	}
	for _, p := range hosts {
		locals.want[mapped(p.Addr())] = 1
	}
	return firstWrong(compare(w, "networks", networks), compare(w, "subnets", subnets), compare(w, "inner", inner), compare(w, "locals", locals))
}

// high are the first 16 bits of an IPv4 address.
func high(ip netip.Addr) uint32 {
	b := ip.As4()
	return uint32(b[0])<<8 | uint32(b[1])
}

func (w *Walk) checkUplinkMaps(at map[string]int) error {
	index := uint32(at[netlab.UplinkLink])
	uplinks, nears := newContents[uint32, uplinkEntry](), newContents[uint32, nearUplinkEntry]()
	uplinks.want[index] = uplinkEntry{Addr4: mapped(netlab.HostAddr), MTU: 1500}
	nears.want[index%64] = nearUplinkEntry{Ifindex: index}
	return firstWrong(compare(w, "uplinks", uplinks), compare(w, "near_uplinks", nears))
}

// checkShares finds confirmed conversations that are counted for nobody.
func (w *Walk) checkShares(r recorded) error {
	m, err := ebpf.LoadPinnedMap(filepath.Join(w.lab.Host.BPFFS, "v2", "maps", "shares"), nil)
	if err != nil {
		return fmt.Errorf("map shares: %w", err)
	}
	defer m.Close()
	return entries(m, func(slot uint32, s shareEntry) error {
		if _, owned := r.owners[slot]; !owned && s != (shareEntry{}) {
			return fmt.Errorf("map shares: slot %d, which nobody has, holds %+v", slot, s)
		}
		return nil
	})
}
