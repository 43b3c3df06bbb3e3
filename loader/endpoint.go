package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// full makes the errors of a map without room ErrFull.
func full(err error) error {
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return permission(err)
}

// PutEndpoint adds an endpoint or replaces what is known of it. If its device changed,
// flows toward the old one end. What is known of the device goes first: an endpoint that is there is there
// wholly, also if a command was killed. What fails for a new one is taken back.
func (d *Datapath) PutEndpoint(e Endpoint) error {
	if e.Slot == 0 || e.Slot >= MaxSlots {
		return fmt.Errorf("slot %d: out of range", e.Slot)
	}
	m, err := d.pinned("endpoints")
	if err != nil {
		return err
	}
	var had datapathEndpoint
	known := slices.ContainsFunc(e.Addrs, func(a netip.Addr) bool { return m.Lookup(toAddr(a), &had) == nil })
	if err := d.writeEndpoint(e); err != nil {
		if !known {
			err = errors.Join(err, d.DeleteEndpoint(e))
		}
		return err
	}
	return nil
}

func (d *Datapath) writeEndpoint(e Endpoint) error {
	value := endpointValue(e)
	for _, a := range e.Addrs {
		if err := d.retireChanged("endpoints", toAddr(a), value); err != nil {
			return err
		}
	}
	if err := d.changeDevice(e.Ifindex, func(dev *datapathDevice) {
		published := dev.Published
		*dev = deviceValue(e)
		dev.Published = published
	}); err != nil {
		return err
	}
	for _, a := range e.Addrs {
		if err := d.put("endpoints", toAddr(a), value); err != nil {
			return err
		}
	}
	return nil
}

func endpointValue(e Endpoint) datapathEndpoint {
	return datapathEndpoint{Ifindex: uint32(e.Ifindex), Network: e.Network, Slot: e.Slot, Mac: toMAC(e.MAC)}
}

// deviceValue is the endpoint by its device, without published ports.
func deviceValue(e Endpoint) datapathDevice {
	v4, v6 := byFamily(e.Addrs)
	return datapathDevice{Addr4: toAddr(v4), Addr6: toAddr(v6), Network: e.Network, Slot: e.Slot, Mac: toMAC(e.MAC)}
}

// changeDevice applies change to what is known of a device, all zero if nothing is.
func (d *Datapath) changeDevice(ifindex int, change func(*datapathDevice)) error {
	m, err := d.pinned("devices")
	if err != nil {
		return err
	}
	var dev, before datapathDevice
	if err := m.Lookup(uint32(ifindex), &dev); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("read map devices: %w", permission(err))
	}
	before = dev
	if change(&dev); dev != before {
		if err := d.put("devices", uint32(ifindex), dev); err != nil {
			return err
		}
	}
	return d.putNear(uint32(ifindex), dev)
}

// removeDevice removes what is known of a device. One that is not there is no error.
func (d *Datapath) removeDevice(ifindex uint32) error {
	if err := d.removeNear(ifindex); err != nil {
		return err
	}
	return d.remove("devices", ifindex)
}

// HasEndpoint reports whether the datapath has the endpoint at one of its addresses.
func (d *Datapath) HasEndpoint(e Endpoint) (bool, error) {
	m, err := d.pinned("endpoints")
	if err != nil {
		return false, err
	}
	for _, a := range e.Addrs {
		var have datapathEndpoint
		err := m.Lookup(toAddr(a), &have)
		if err == nil && have.Slot == e.Slot {
			return true, nil
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return false, fmt.Errorf("read map endpoints: %w", permission(err))
		}
	}
	return false, nil
}

func (d *Datapath) retireChanged(name string, key datapathAddr, value datapathEndpoint) error {
	m, err := d.pinned(name)
	if err != nil {
		return err
	}
	var old datapathEndpoint
	if err := m.Lookup(key, &old); err != nil || old == value {
		return nil
	}
	if old.Ifindex != value.Ifindex {
		if err := d.removeDevice(old.Ifindex); err != nil {
			return err
		}
	}
	return d.retire(old.Slot)
}

// DeleteEndpoint removes an endpoint and ends its flows, in constant time: the
// generation of its slot is raised last, so that a flow opened while the entries
// were going is void too. One that is not there is no error.
func (d *Datapath) DeleteEndpoint(e Endpoint) error {
	for _, a := range e.Addrs {
		if err := d.remove("endpoints", toAddr(a)); err != nil {
			return err
		}
	}
	if err := d.removeDevice(uint32(e.Ifindex)); err != nil {
		return err
	}
	return d.retire(e.Slot)
}

// retire voids every flow that carries the slot's present generation.
func (d *Datapath) retire(slots ...uint32) error {
	m, err := d.pinned("gens")
	if err != nil {
		return err
	}
	for _, slot := range slots {
		if slot >= MaxSlots {
			continue // read from an entry that no ebnet wrote
		}
		var gen uint32
		if err := m.Lookup(slot, &gen); err != nil {
			return fmt.Errorf("read generation %d: %w", slot, err)
		}
		if err := d.put("gens", slot, gen+1); err != nil {
			return err
		}
		if err := d.put("shares", slot, datapathShare{}); err != nil {
			return err
		}
	}
	return nil
}

// Endpoints lists what the datapath knows, an entry for each address.
func (d *Datapath) Endpoints() ([]Endpoint, error) {
	m, err := d.pinned("endpoints")
	if err != nil {
		return nil, err
	}
	var all []Endpoint
	if err := each(m, func(addr *datapathAddr, e *datapathEndpoint) bool {
		all = append(all, Endpoint{
			Slot:    e.Slot,
			Network: e.Network,
			Ifindex: int(e.Ifindex),
			Addrs:   []netip.Addr{fromAddr(*addr)},
			MAC:     slices.Clone(e.Mac[:]), // the entry is reused
		})
		return true
	}); err != nil {
		return nil, fmt.Errorf("list endpoints: %w", err)
	}
	return all, nil
}
