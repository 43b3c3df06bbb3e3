package loader

import "fmt"

// PutUplink adds an uplink or replaces what is known of it.
func (d *Datapath) PutUplink(u Uplink) error {
	v4, v6 := byFamily(u.Addrs)
	value := datapathUplink{Addr4: toAddr(v4), Addr6: toAddr(v6), Mtu: uint32(u.MTU)}
	if u.Side {
		value.Flags = datapathUplinkFlagUPLINK_SIDE
	}
	if err := d.put("uplinks", uint32(u.Ifindex), value); err != nil {
		return err
	}
	return d.countSides()
}

// DeleteUplink removes an uplink. One that is not there is no error.
func (d *Datapath) DeleteUplink(ifindex int) error {
	if err := d.remove("uplinks", uint32(ifindex)); err != nil {
		return err
	}
	return d.countSides()
}

// countSides tells the programs whether there are others on this host.
func (d *Datapath) countSides() error {
	m, err := d.pinned("uplinks")
	if err != nil {
		return err
	}
	n := uint32(0)
	if err := each(m, func(_ *uint32, u *datapathUplink) bool {
		if u.Flags&datapathUplinkFlagUPLINK_SIDE != 0 {
			n++
		}
		return true
	}); err != nil {
		return fmt.Errorf("list uplinks: %w", err)
	}
	return d.put("sides", uint32(0), n)
}

// Uplinks returns the interface indices of the uplinks.
func (d *Datapath) Uplinks() ([]int, error) {
	m, err := d.pinned("uplinks")
	if err != nil {
		return nil, err
	}
	var all []int
	if err := each(m, func(ifindex *uint32, _ *datapathUplink) bool {
		all = append(all, int(*ifindex))
		return true
	}); err != nil {
		return nil, fmt.Errorf("list uplinks: %w", err)
	}
	return all, nil
}
