package loader

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/ebnet/ebnet/loader/failpoint"
)

// Publish makes the ports of the publications reachable. Ports that are published
// already are replaced; where that leads elsewhere, the flows of the slot end.
// Returns ErrFull; nothing new is published then.
func (d *Datapath) Publish(ps ...Publication) error {
	m, err := d.pinned("services")
	if err != nil {
		return err
	}
	var tcp, udp PortSet
	for _, p := range ps {
		if err := p.check(); err != nil {
			return err
		}
		if !p.direct() {
			setOf(p.Protocol, &tcp, &udp).Add(p.HostPort, p.Count)
		}
	}
	// The bit first: a port that nobody serves yet goes to the host, as it did.
	before := make([]uint64, 2*len(tcp))
	if err := d.changePorts(func(i int, w *datapathPortWord) {
		before[i] = w.Published
		w.Published |= word(i, &tcp, &udp)
	}); err != nil {
		return err
	}
	var fresh []Publication
	for _, p := range ps {
		if !published(m, p) {
			fresh = append(fresh, p)
		}
		if err := d.publishOne(m, p); err != nil {
			return errors.Join(err, d.withdraw(m, fresh),
				d.changePorts(func(i int, w *datapathPortWord) { w.Published = before[i] }))
		}
	}
	return nil
}

// published reports whether the publication is there, if only in part.
func published(m *ebpf.Map, p Publication) bool {
	keys, _ := serviceEntries(p)
	var s datapathService
	for _, i := range []int{0, p.Count - 1} {
		if m.Lookup(keys[i], &s) == nil && s.Slot == p.Slot {
			return true
		}
	}
	return false
}

// publishOne writes the entries, then ends the flows that the former ones opened: a
// flow opened in between by a new entry ends too, and opens anew.
func (d *Datapath) publishOne(m *ebpf.Map, p Publication) error {
	keys, values := serviceEntries(p)
	var stale []uint32
	for _, i := range []int{0, p.Count - 1} {
		var old datapathService
		if m.Lookup(keys[i], &old) == nil && old != values[i] && !slices.Contains(stale, old.Slot) {
			stale = append(stale, old.Slot)
		}
	}
	// The mark first: it makes the endpoint's answers to other endpoints looked up.
	if err := d.changeDevice(p.Ifindex, func(dev *datapathDevice) {
		if dev.Slot != 0 {
			dev.Published = 1
		}
	}); err != nil {
		return err
	}
	if err := d.allow(p); err != nil {
		return err
	}
	if err := batchUpdate(m, "services", keys, values); err != nil {
		return fmt.Errorf("write map services: %w", full(err))
	}
	return d.retire(stale...)
}

func (p Publication) check() error {
	if p.Slot == 0 || p.Slot >= MaxSlots || p.Count < 1 || int(p.HostPort)+p.Count > 65536 || int(p.Port)+p.Count > 65536 {
		return fmt.Errorf("publication of slot %d: out of range", p.Slot)
	}
	return nil
}

// direct reports whether the ports are the endpoint's own, of a routed network.
func (p Publication) direct() bool { return p.HostAddr.IsValid() && p.HostAddr == p.Addr }

// sourceKeys are the entries that let the sources of a publication in.
func sourceKeys(p Publication) []datapathSourceKey {
	keys := make([]datapathSourceKey, len(p.From))
	for i, from := range p.From {
		k := subnetKey(from)
		keys[i] = datapathSourceKey{Prefixlen: 32 + k.Prefixlen, Slot: p.Slot, Addr: k.Addr}
	}
	return keys
}

// allow lets the sources in. Those that a former publication of the slot had go with its
// withdrawal alone.
func (d *Datapath) allow(p Publication) error {
	for _, k := range sourceKeys(p) {
		if err := d.put("sources", k, uint32(1)); err != nil {
			return err
		}
	}
	return nil
}

// disallow is the inverse of allow.
func (d *Datapath) disallow(p Publication) error {
	for _, k := range sourceKeys(p) {
		if err := d.remove("sources", k); err != nil {
			return err
		}
	}
	return nil
}

// serviceEntries spreads a range: the datapath looks ports up one by one.
func serviceEntries(p Publication) ([]datapathServiceKey, []datapathService) {
	keys := make([]datapathServiceKey, p.Count)
	values := make([]datapathService, p.Count)
	host := anyAddr4
	if p.HostAddr.IsValid() && !p.HostAddr.IsUnspecified() {
		host = toAddr(p.HostAddr)
	}
	value := datapathService{
		Addr:    toAddr(p.Addr),
		Mac:     toMAC(p.MAC),
		Slot:    p.Slot,
		Network: p.Network,
		Ifindex: uint32(p.Ifindex),
	}
	if len(p.From) > 0 {
		value.Flags = datapathServiceFlagSERVICE_RESTRICTED
	}
	for i := range keys {
		keys[i] = datapathServiceKey{Addr: host, Port: bigEndian(p.HostPort + uint16(i)), Proto: uint8(p.Protocol)}
		values[i] = value
		values[i].Port = bigEndian(p.Port + uint16(i))
	}
	return keys, values
}

// Unpublish closes the ports and ends their flows: the entries go first, then the
// generation is raised, so that a flow opened in between is void too. Ports that are
// not there are no error.
func (d *Datapath) Unpublish(ps ...Publication) error {
	m, err := d.pinned("services")
	if err != nil {
		return err
	}
	if err := d.withdraw(m, ps); err != nil {
		return err
	}
	var tcp, udp PortSet
	specific := false
	for _, p := range ps {
		if !p.direct() {
			setOf(p.Protocol, &tcp, &udp).Add(p.HostPort, p.Count)
			specific = specific || p.HostAddr.IsValid() && !p.HostAddr.IsUnspecified()
		}
	}
	var stillTCP, stillUDP PortSet
	if specific {
		if err := stillPublished(m, &stillTCP, &stillUDP); err != nil {
			return err
		}
	}
	return d.changePorts(func(i int, w *datapathPortWord) {
		w.Published &^= word(i, &tcp, &udp) &^ word(i, &stillTCP, &stillUDP)
	})
}

// stillPublished adds the host's ports that are open to the sets: one that was published on
// one address may be on others too. One published on any address is the only one.
func stillPublished(services *ebpf.Map, tcp, udp *PortSet) error {
	if err := each(services, func(k *datapathServiceKey, s *datapathService) bool {
		if k.Addr != s.Addr { // else it is direct
			setOf(Protocol(k.Proto), tcp, udp).Add(bigEndian(k.Port), 1)
		}
		return true
	}); err != nil {
		return fmt.Errorf("read map services: %w", err)
	}
	return nil
}

// withdraw deletes the entries of publications, then ends their flows.
func (d *Datapath) withdraw(m *ebpf.Map, ps []Publication) error {
	for _, p := range ps {
		keys, _ := serviceEntries(p)
		if err := deleteAll(m, keys); err != nil {
			return fmt.Errorf("delete from map services: %w", err)
		}
		if err := d.retire(p.Slot); err != nil {
			return err
		}
		if err := d.disallow(p); err != nil {
			return err
		}
	}
	return nil
}

// deleteAll deletes keys in batches; the kernel stops a batch at a missing key, and
// the rest goes on behind it.
func deleteAll(m *ebpf.Map, keys []datapathServiceKey) error {
	for len(keys) > 0 {
		if err := failpoint.Reach("delete from map", "services"); err != nil {
			return err
		}
		n, err := m.BatchDelete(keys, nil)
		if err == nil {
			return nil
		}
		if !errors.Is(err, ebpf.ErrKeyNotExist) {
			return permission(err)
		}
		keys = keys[min(n+1, len(keys)):]
	}
	return nil
}

// PublishedCount returns how many ports are in the table of services.
func (d *Datapath) PublishedCount() (int, error) {
	m, err := d.pinned("services")
	if err != nil {
		return 0, err
	}
	return count[datapathServiceKey, datapathService](m)
}

// SetSourcePorts says which ports translations may use as source ports (both
// protocols). Ports that were allowed once stay tracked, since flows may have them.
func (d *Datapath) SetSourcePorts(allowed *PortSet) error {
	return d.changePorts(func(i int, w *datapathPortWord) {
		w.Source = allowed[i%len(allowed)]
		w.Tracked |= w.Source
	})
}

// setOf picks the protocol's set.
func setOf(p Protocol, tcp, udp *PortSet) *PortSet {
	if p == UDP {
		return udp
	}
	return tcp
}

// word returns the i-th word of both sets in a row, as in map ports.
func word(i int, tcp, udp *PortSet) uint64 {
	if i < len(tcp) {
		return tcp[i]
	}
	return udp[i-len(tcp)]
}

// changePorts applies change to each word of map ports and writes what differs.
func (d *Datapath) changePorts(change func(i int, w *datapathPortWord)) error {
	m, err := d.pinned("ports")
	if err != nil {
		return err
	}
	keys := make([]uint32, m.MaxEntries())
	words := make([]datapathPortWord, m.MaxEntries())
	var cursor ebpf.MapBatchCursor
	if _, err := m.BatchLookup(&cursor, keys, words, nil); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("read map ports: %w", permission(err))
	}
	var (
		changedKeys  []uint32
		changedWords []datapathPortWord
	)
	for i, before := range slices.Clone(words) {
		change(int(keys[i]), &words[i])
		if words[i] != before {
			changedKeys, changedWords = append(changedKeys, keys[i]), append(changedWords, words[i])
		}
	}
	if len(changedKeys) == 0 {
		return nil
	}
	if err := batchUpdate(m, "ports", changedKeys, changedWords); err != nil {
		return fmt.Errorf("write map ports: %w", permission(err))
	}
	return nil
}

func batchUpdate(m *ebpf.Map, name string, keys, values any) error {
	return failpoint.Do("write map", name, func() error {
		_, err := m.BatchUpdate(keys, values, nil)
		return err
	})
}
