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
	want, have := localKinds(local, broadcast), map[datapathAddr]uint32{}
	if err := each(m, func(a *datapathAddr, kind *uint32) bool {
		have[*a] = *kind
		return true
	}); err != nil {
		return fmt.Errorf("read map locals: %w", err)
	}
	for a, kind := range want {
		if have[a] == kind {
			continue
		}
		if err := d.put("locals", a, kind); err != nil {
			return err
		}
	}
	_, err = removeIf(d, "locals", func(a *datapathAddr, _ *uint32) bool { return want[*a] == 0 })
	return err
}

func localKinds(local, broadcast []netip.Addr) map[datapathAddr]uint32 {
	kinds := map[datapathAddr]uint32{}
	for _, a := range broadcast {
		kinds[toAddr(a)] = uint32(datapathLocalKindLOCAL_BROADCAST)
	}
	for _, a := range local {
		kinds[toAddr(a)] = uint32(datapathLocalKindLOCAL_ADDRESS)
	}
	return kinds
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
