package loader

import (
	"fmt"
	"net/netip"
	"slices"
)

// SetLocalAddrs says which addresses are the host's own, loopback ones left out, and
// which are the broadcast addresses of its networks. The programs also learn addresses
// from the traffic that uses them.
func (d *Datapath) SetLocalAddrs(local, broadcast []netip.Addr) error {
	m, err := d.pinned("locals")
	if err != nil {
		return err
	}
	want := map[datapathAddr]uint32{}
	for _, a := range broadcast {
		want[toAddr(a)] = uint32(datapathLocalKindLOCAL_BROADCAST)
	}
	for _, a := range local {
		want[toAddr(a)] = uint32(datapathLocalKindLOCAL_ADDRESS)
	}
	var gone []datapathAddr
	if err := each(m, func(a *datapathAddr, kind *uint32) bool {
		if want[*a] == 0 {
			gone = append(gone, *a)
		} else if want[*a] == *kind {
			delete(want, *a)
		}
		return true
	}); err != nil {
		return fmt.Errorf("read map locals: %w", err)
	}
	for a, kind := range want {
		if err := d.put("locals", a, kind); err != nil {
			return err
		}
	}
	for _, a := range gone {
		if err := d.remove("locals", a); err != nil {
			return err
		}
	}
	return nil
}

// LocalAddrs returns the addresses that the datapath takes for the host's own, sorted.
func (d *Datapath) LocalAddrs() ([]netip.Addr, error) {
	m, err := d.pinned("locals")
	if err != nil {
		return nil, err
	}
	var all []netip.Addr
	if err := each(m, func(a *datapathAddr, kind *uint32) bool {
		if *kind == uint32(datapathLocalKindLOCAL_ADDRESS) {
			all = append(all, fromAddr(*a))
		}
		return true
	}); err != nil {
		return nil, fmt.Errorf("read map locals: %w", err)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return all, nil
}

// Shares lists the slots that have confirmed conversations, or were refused some.
func (d *Datapath) Shares() ([]Share, error) {
	m, err := d.pinned("shares")
	if err != nil {
		return nil, err
	}
	var all []Share
	if err := each(m, func(slot *uint32, s *datapathShare) bool {
		if *s != (datapathShare{}) {
			all = append(all, Share{Slot: *slot, Held: max(0, int(s.Held)), Refused: int(s.Refused)})
		}
		return true
	}); err != nil {
		return nil, fmt.Errorf("read map shares: %w", err)
	}
	return all, nil
}
