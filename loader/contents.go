package loader

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
)

// Contents is all that the maps are to say of the host: what PutNetwork, PutEndpoint, PutUplink,
// Publish, SetSourcePorts and SetLocalAddrs write piece by piece.
type Contents struct {
	Networks         []Network
	Endpoints        []Endpoint
	Publications     []Publication
	Uplinks          []Uplink
	SourcePorts      *PortSet
	Local, Broadcast []netip.Addr
}

// Deviation is a map that does not say what it should, by the number of its entries.
type Deviation struct {
	Map                       string
	Missing, Altered, Foreign int
}

// String tells it in words: "endpoints: 1 entry missing, 2 foreign".
func (d Deviation) String() string {
	var parts []string
	for _, p := range []struct {
		n    int
		what string
	}{{d.Missing, "missing"}, {d.Altered, "altered"}, {d.Foreign, "foreign"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.what))
		}
	}
	return d.Map + ": entries " + strings.Join(parts, ", ")
}

// Compare tells which maps deviate from what they are to say; nothing if none does.
func (d *Datapath) Compare(want Contents) ([]Deviation, error) {
	c, err := d.compare(want)
	if err != nil {
		return nil, err
	}
	return c.deviations(), nil
}

// Settle makes the maps say what they are to say and nothing else, and returns what deviated. It
// writes only that. Flows that entries opened which should not have been there, or not as they were, end.
// Run on maps that are right it reads each of them once.
//
// Returns ErrFull.
func (d *Datapath) Settle(want Contents) ([]Deviation, error) {
	c, err := d.compare(want)
	if err != nil {
		return nil, err
	}
	all := c.deviations()
	if len(all) == 0 {
		return nil, c.locals.remove()
	}
	// In the order in which the parts write: what is looked up first is there last, and goes first.
	for _, step := range []func() error{
		c.ports.putMore, c.inner.putMore, c.subnets.put, c.networks.put, c.uplinks.put, c.nearUplinks.put,
		c.endpoints.remove, c.devices.remove, c.devices.put, c.nears.put, c.endpoints.put,
		c.services.remove, c.sources.remove, c.sources.put, c.services.put,
		c.locals.put, c.locals.remove,
		c.uplinks.remove, c.subnets.remove, c.inner.put, c.ports.put,
		func() error { return d.retire(c.stale()...) },
	} {
		if err := step(); err != nil {
			return all, err
		}
	}
	return all, nil
}

// contents is a comparison of all maps that Go writes.
type contents struct {
	networks    *table[uint32, datapathNetwork]
	subnets     *table[datapathSubnetKey, uint32]
	inner       *table[uint32, uint64]
	endpoints   *table[datapathAddr, datapathEndpoint]
	devices     *table[uint32, datapathDevice]
	nears       *table[uint32, datapathNear]
	uplinks     *table[uint32, datapathUplink]
	nearUplinks *table[uint32, datapathNearUplink]
	services    *table[datapathServiceKey, datapathService]
	sources     *table[datapathSourceKey, uint32]
	ports       *table[uint32, datapathPortWord]
	locals      *table[datapathAddr, uint32]
}

func (c *contents) deviations() (all []Deviation) {
	for _, t := range []interface{ deviation() Deviation }{
		c.networks, c.subnets, c.inner, c.endpoints, c.devices, c.nears, c.uplinks, c.nearUplinks, c.services, c.sources, c.ports,
		c.locals,
	} {
		if d := t.deviation(); d != (Deviation{Map: d.Map}) {
			all = append(all, d)
		}
	}
	return all
}

// stale are the slots of what was there and should not have been.
func (c *contents) stale() []uint32 {
	slots := map[uint32]bool{}
	for k := range c.endpoints.wrong {
		slots[c.endpoints.have[k].Slot] = true
	}
	for k := range c.services.wrong {
		slots[c.services.have[k].Slot] = true
	}
	for k := range c.sources.wrong {
		slots[k.Slot] = true
	}
	return slices.DeleteFunc(slices.Collect(maps.Keys(slots)), func(s uint32) bool { return s == 0 || s >= MaxSlots })
}

func (d *Datapath) compare(want Contents) (c *contents, err error) {
	c = &contents{}
	err = errors.Join(c.compareNetworks(d, want.Networks), c.compareEndpoints(d, want), c.compareUplinks(d, want.Uplinks), c.compareServices(d, want))
	if err == nil {
		c.locals, err = readTable(d, "locals", localKinds(want.Local, want.Broadcast))
	}
	if err == nil {
		c.locals.learned = true
	}
	return c, err
}

func (c *contents) compareNetworks(d *Datapath, all []Network) (err error) {
	networks, subnets := map[uint32]datapathNetwork{}, map[datapathSubnetKey]uint32{}
	inner := map[uint32]uint64{}
	for _, n := range all {
		networks[n.ID] = networkValue(n)
		for _, s := range n.Subnets {
			subnets[subnetKey(s)] = n.ID
		}
		for i, word := range innerWords(n.Subnets) {
			inner[i] |= word
		}
	}
	if c.networks, err = readTable(d, "networks", networks); err != nil {
		return err
	}
	if c.subnets, err = readTable(d, "subnets", subnets); err != nil {
		return err
	}
	if c.inner, err = readTable(d, "inner", inner); err != nil {
		return err
	}
	c.inner.more = func(have, want uint64) uint64 { return have | want }
	return nil
}

func (c *contents) compareEndpoints(d *Datapath, want Contents) (err error) {
	published := map[uint32]bool{}
	for _, p := range want.Publications {
		published[uint32(p.Ifindex)] = true
	}
	endpoints, devices := map[datapathAddr]datapathEndpoint{}, map[uint32]datapathDevice{}
	for _, e := range want.Endpoints {
		for _, a := range e.Addrs {
			endpoints[toAddr(a)] = endpointValue(e)
		}
		dev := deviceValue(e)
		if published[uint32(e.Ifindex)] {
			dev.Published = 1
		}
		devices[uint32(e.Ifindex)] = dev
	}
	if c.endpoints, err = readTable(d, "endpoints", endpoints); err != nil {
		return err
	}
	if c.devices, err = readTable(d, "devices", devices); err != nil {
		return err
	}
	for ifindex, dev := range c.devices.want { // it may have had published ports
		if c.devices.have[ifindex].Published == 1 {
			dev.Published = 1
			c.devices.want[ifindex] = dev
		}
	}
	nears := map[uint32][]datapathNear{}
	for ifindex, dev := range c.devices.want {
		if near := nearOf(ifindex, dev); near.Addr != 0 {
			nears[nearPlace(near.Addr)] = append(nears[nearPlace(near.Addr)], near)
		}
	}
	c.nears, err = readPlaces(d, "nears", nears)
	return err
}

func (c *contents) compareUplinks(d *Datapath, all []Uplink) (err error) {
	uplinks, places := map[uint32]datapathUplink{}, map[uint32][]datapathNearUplink{}
	for _, u := range all {
		i, value := uint32(u.Ifindex), uplinkValue(u)
		uplinks[i] = value
		places[i%nearUplinks] = append(places[i%nearUplinks], datapathNearUplink{Ifindex: i, Flags: uint32(value.Flags)})
	}
	if c.uplinks, err = readTable(d, "uplinks", uplinks); err != nil {
		return err
	}
	c.nearUplinks, err = readPlaces(d, "near_uplinks", places)
	return err
}

func (c *contents) compareServices(d *Datapath, want Contents) (err error) {
	services, sources := map[datapathServiceKey]datapathService{}, map[datapathSourceKey]uint32{}
	var tcp, udp PortSet
	for _, p := range want.Publications {
		if err := p.check(); err != nil {
			return err
		}
		keys, values := serviceEntries(p)
		for i, k := range keys {
			services[k] = values[i]
		}
		for _, k := range sourceKeys(p) {
			sources[k] = 1
		}
		if !p.direct() {
			setOf(p.Protocol, &tcp, &udp).Add(p.HostPort, p.Count)
		}
	}
	if c.services, err = readTable(d, "services", services); err != nil {
		return err
	}
	if c.sources, err = readTable(d, "sources", sources); err != nil {
		return err
	}
	if c.ports, err = readTable(d, "ports", map[uint32]datapathPortWord{}); err != nil {
		return err
	}
	for i := range uint32(2 * len(tcp)) {
		w := datapathPortWord{Published: word(int(i), &tcp, &udp), Tracked: c.ports.have[i].Tracked}
		if want.SourcePorts != nil {
			w.Source = want.SourcePorts[int(i)%len(tcp)]
		}
		w.Tracked |= w.Source
		if w != (datapathPortWord{}) {
			c.ports.want[i] = w
		}
	}
	c.ports.more = func(have, want datapathPortWord) datapathPortWord {
		want.Published |= have.Published
		return want
	}
	return nil
}

// table is a map as it is and as it should be. An entry of an array that is zero counts as none.
type table[K, V comparable] struct {
	d          *Datapath
	name       string
	m          *ebpf.Map
	have, want map[K]V
	learned    bool                 // the programs write it too: what is foreign may be right, and is removed in passing
	more       func(have, want V) V // what serves both, for putMore
}

// readTable reads a map.
func readTable[K, V comparable](d *Datapath, name string, want map[K]V) (*table[K, V], error) {
	m, err := d.pinned(name)
	if err != nil {
		return nil, err
	}
	t := &table[K, V]{d: d, name: name, m: m, have: map[K]V{}, want: want}
	var none V
	if err := each(m, func(k *K, v *V) bool {
		if !t.array() || *v != none {
			t.have[*k] = *v
		}
		return true
	}); err != nil {
		return nil, fmt.Errorf("read map %s: %w", name, err)
	}
	return t, nil
}

// readPlaces reads an array in which each of several values may be at a place.
func readPlaces[V comparable](d *Datapath, name string, values map[uint32][]V) (*table[uint32, V], error) {
	t, err := readTable(d, name, map[uint32]V{})
	if err != nil {
		return nil, err
	}
	for place, vs := range values {
		t.want[place] = vs[0]
		if have := t.have[place]; slices.Contains(vs, have) {
			t.want[place] = have
		}
	}
	return t, nil
}

func (t *table[K, V]) array() bool { return t.m.Type() == ebpf.Array }

func (t *table[K, V]) deviation() Deviation {
	dev := Deviation{Map: t.name}
	for k, v := range t.want {
		if have, ok := t.have[k]; !ok {
			dev.Missing++
		} else if have != v {
			dev.Altered++
		}
	}
	for k := range t.have {
		if _, ok := t.want[k]; !ok && !t.learned {
			dev.Foreign++
		}
	}
	return dev
}

// wrong yields the keys of entries that are there and should not be, or not as they are.
func (t *table[K, V]) wrong(yield func(K) bool) {
	for k, v := range t.have {
		if want, ok := t.want[k]; (!ok || want != v) && !yield(k) {
			return
		}
	}
}

// put writes what is missing or altered, and clears what is foreign in an array.
func (t *table[K, V]) put() error {
	var keys []K
	var values []V
	for k, v := range t.want {
		if have, ok := t.have[k]; !ok || have != v {
			keys, values = append(keys, k), append(values, v)
		}
	}
	if t.array() {
		for k := range t.have {
			if _, ok := t.want[k]; !ok {
				var none V
				keys, values = append(keys, k), append(values, none)
			}
		}
	}
	return t.write(keys, values)
}

func (t *table[K, V]) write(keys []K, values []V) error {
	if len(keys) == 0 {
		return nil
	}
	if err := batchUpdate(t.m, t.name, keys, values); err != nil {
		return fmt.Errorf("write map %s: %w", t.name, full(err))
	}
	return nil
}

// remove deletes what is foreign, of no array.
func (t *table[K, V]) remove() error {
	for k := range t.have {
		if _, ok := t.want[k]; ok {
			continue
		}
		if err := t.d.remove(t.name, k); err != nil {
			return err
		}
	}
	return nil
}

// putMore writes what serves both what is there and what should be, as long as both are looked up.
func (t *table[K, V]) putMore() error {
	var keys []K
	var values []V
	for k, v := range t.want {
		if both := t.more(t.have[k], v); both != t.have[k] {
			keys, values = append(keys, k), append(values, both)
		}
	}
	return t.write(keys, values)
}
