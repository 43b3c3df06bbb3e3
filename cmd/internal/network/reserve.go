package network

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/ebnet/ebnet/loader"
	"github.com/ebnet/ebnet/loader/netdev"
)

// A published port within the range that the kernel takes ephemeral ports from would
// be given to a client's socket of the host, whose answers then go to the endpoint. So
// it is put into net.ipv4.ip_local_reserved_ports, and taken out again with the last
// publication of its number. What the administrator has put there is not touched: which
// ports are ours is written down before they are put there.

// reservedKey is where the ports of ours in that sysctl are written down.
var reservedKey = []byte("reserved_ports")

func (t *tx) reservedPorts() ([]netdev.PortRange, error) {
	b := t.Bucket(metaBucket).Get(reservedKey)
	if b == nil {
		return nil, nil
	}
	var ours []netdev.PortRange
	if err := json.Unmarshal(b, &ours); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errCorrupt, reservedKey, err)
	}
	return ours, nil
}

func (t *tx) putReservedPorts(ours []netdev.PortRange) error {
	if len(ours) == 0 {
		return t.Bucket(metaBucket).Delete(reservedKey)
	}
	return put(t, metaBucket, reservedKey, ours)
}

// publishedIn returns the host ports within r that are published or about to be.
func (t *tx) publishedIn(r netdev.PortRange) (*loader.PortSet, error) {
	set := new(loader.PortSet)
	leaving := map[string]bool{}
	var keys []portKey
	for _, proto := range []loader.Protocol{loader.TCP, loader.UDP} {
		t.published(byte(proto), r.Last, func(k portKey) bool {
			if k.last() >= r.First {
				keys = append(keys, k)
			}
			return true
		})
	}
	for _, k := range keys {
		p, err := t.port(k)
		if err != nil {
			return nil, err
		}
		if _, known := leaving[p.Endpoint]; !known {
			e, err := t.endpoint(p.Endpoint)
			if err != nil {
				return nil, err
			}
			leaving[p.Endpoint] = e.Status == removing
		}
		if first, last := max(k.first(), r.First), min(k.last(), r.Last); p.Status != removing && !leaving[p.Endpoint] {
			set.Add(first, int(last)-int(first)+1)
		}
	}
	return set, nil
}

// adminPorts returns the reserved ports that are not ours.
func (h *Host) adminPorts() (*loader.PortSet, error) {
	now, err := h.k.LocalReservedPorts()
	if err != nil {
		return nil, err
	}
	var ours []netdev.PortRange
	if err := h.state.view(func(t *tx) (err error) {
		ours, err = t.reservedPorts()
		return err
	}); err != nil {
		return nil, err
	}
	return without(setOfRanges(now), setOfRanges(ours)), nil
}

// reservePorts makes the reserved ports those of the administrator and those that are
// recorded as published.
func (h *Host) reservePorts() error {
	ephemeral, err := h.k.LocalPortRange()
	if err != nil {
		return err
	}
	var want *loader.PortSet
	if err := h.state.view(func(t *tx) (err error) {
		want, err = t.publishedIn(ephemeral)
		return err
	}); err != nil {
		return err
	}
	return h.reserve(want)
}

// reserve makes want, and what the administrator has, the reserved ports.
func (h *Host) reserve(want *loader.PortSet) error {
	var recorded []netdev.PortRange
	if err := h.state.view(func(t *tx) (err error) {
		recorded, err = t.reservedPorts()
		return err
	}); err != nil {
		return err
	}
	if len(recorded) == 0 && *want == (loader.PortSet{}) {
		return nil
	}
	now, err := h.k.LocalReservedPorts()
	if err != nil {
		return err
	}
	admin := without(setOfRanges(now), setOfRanges(recorded))
	ours := without(want, admin)
	// While the sysctl may be either, what is written down is both.
	if err := h.recordReserved(recorded, rangesOf(union(ours, setOfRanges(recorded)))); err != nil {
		return err
	}
	if all := rangesOf(union(admin, ours)); !slices.Equal(all, now) {
		if err := h.k.SetLocalReservedPorts(all); err != nil {
			return err
		}
	}
	return h.recordReserved(rangesOf(union(ours, setOfRanges(recorded))), rangesOf(ours))
}

func (h *Host) recordReserved(was, now []netdev.PortRange) error {
	if slices.Equal(was, now) {
		return nil
	}
	return h.state.change(true, func(t *tx) error { return t.putReservedPorts(now) })
}

// reserveStep stands where the ports are recorded and not published yet, or closed and
// recorded as being removed.
func (h *Host) reserveStep() step { return step{do: h.reservePorts} }

// unreserveStep stands before the steps whose undoing brings the records back.
func (h *Host) unreserveStep() step { return step{undo: h.reservePorts} }

func setOfRanges(rs []netdev.PortRange) *loader.PortSet {
	set := new(loader.PortSet)
	for _, r := range rs {
		set.Add(r.First, int(r.Last)-int(r.First)+1)
	}
	return set
}

func union(a, b *loader.PortSet) *loader.PortSet {
	set := new(loader.PortSet)
	for i := range set {
		set[i] = a[i] | b[i]
	}
	return set
}

func without(a, b *loader.PortSet) *loader.PortSet {
	set := new(loader.PortSet)
	for i := range set {
		set[i] = a[i] &^ b[i]
	}
	return set
}

// rangesOf returns the set as few ranges.
func rangesOf(set *loader.PortSet) (rs []netdev.PortRange) {
	for p := 0; p < 65536; p++ {
		if !set.Has(uint16(p)) {
			continue
		}
		first := p
		for p < 65535 && set.Has(uint16(p+1)) {
			p++
		}
		rs = append(rs, netdev.PortRange{First: uint16(first), Last: uint16(p)})
	}
	return rs
}
