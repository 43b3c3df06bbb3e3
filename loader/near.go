package loader

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// Places of what the programs find without a search, see struct near in bpf/abi.h.
const (
	nearsBits   = 12
	nears       = 1 << nearsBits
	nearUplinks = 64
)

// putNear puts a device at its place, in the stead of who is there.
func (d *Datapath) putNear(ifindex uint32, dev datapathDevice) error {
	addr := dev.Addr4.W[3]
	if addr == 0 {
		return nil
	}
	return changePlace(d, "nears", nearPlace(addr), nearOf(ifindex, dev))
}

func nearOf(ifindex uint32, dev datapathDevice) datapathNear {
	return datapathNear{
		Addr:      dev.Addr4.W[3],
		Ifindex:   ifindex,
		Network:   dev.Network,
		Slot:      dev.Slot,
		Mac:       dev.Mac,
		Published: dev.Published,
	}
}

// nearPlace returns where near_at() of bpf/endpoint.h looks for an address (network byte order).
func nearPlace(addr uint32) uint32 {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], addr)
	return binary.BigEndian.Uint32(b[:]) * 0x9e3779b1 >> (32 - nearsBits)
}

// removeNear clears a device's place, if it is there and not another one.
func (d *Datapath) removeNear(ifindex uint32) error {
	m, err := d.pinned("devices")
	if err != nil {
		return err
	}
	var dev datapathDevice
	if err := m.Lookup(ifindex, &dev); errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("read map devices: %w", permission(err))
	}
	places, err := d.pinned("nears")
	if err != nil {
		return err
	}
	var near datapathNear
	place := nearPlace(dev.Addr4.W[3])
	if err := places.Lookup(place, &near); err != nil {
		return fmt.Errorf("read map nears: %w", permission(err))
	}
	if near.Ifindex != ifindex {
		return nil
	}
	return d.put("nears", place, datapathNear{})
}

// changePlace writes an entry of an array if it is another one.
func changePlace[V comparable](d *Datapath, name string, place uint32, value V) error {
	m, err := d.pinned(name)
	if err != nil {
		return err
	}
	var old V
	if err := m.Lookup(place, &old); err != nil {
		return fmt.Errorf("read map %s: %w", name, permission(err))
	}
	if old == value {
		return nil
	}
	return d.put(name, place, value)
}
