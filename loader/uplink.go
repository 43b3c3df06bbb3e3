package loader

import (
	"errors"
	"fmt"
)

// PutUplink adds an uplink or replaces what is known of it. What fails for a new one is
// taken back.
func (d *Datapath) PutUplink(u Uplink) error {
	m, err := d.pinned("uplinks")
	if err != nil {
		return err
	}
	var had datapathUplink
	known := m.Lookup(uint32(u.Ifindex), &had) == nil
	if err := d.writeUplink(u); err != nil {
		if !known {
			err = errors.Join(err, d.DeleteUplink(u.Ifindex))
		}
		return err
	}
	return nil
}

func (d *Datapath) writeUplink(u Uplink) error {
	value := uplinkValue(u)
	if err := d.put("uplinks", uint32(u.Ifindex), value); err != nil {
		return err
	}
	return changePlace(d, "near_uplinks", uint32(u.Ifindex)%nearUplinks,
		datapathNearUplink{Ifindex: uint32(u.Ifindex), Flags: uint32(value.Flags)})
}

func uplinkValue(u Uplink) datapathUplink {
	v4, v6 := byFamily(u.Addrs)
	value := datapathUplink{Addr4: toAddr(v4), Addr6: toAddr(v6), Mtu: uint32(u.MTU)}
	if u.Side {
		value.Flags = datapathUplinkFlagUPLINK_SIDE
	}
	return value
}

// DeleteUplink removes an uplink. One that is not there is no error.
func (d *Datapath) DeleteUplink(ifindex int) error {
	m, err := d.pinned("near_uplinks")
	if err != nil {
		return err
	}
	var near datapathNearUplink
	place := uint32(ifindex) % nearUplinks
	if err := m.Lookup(place, &near); err != nil {
		return fmt.Errorf("read map near_uplinks: %w", permission(err))
	}
	if near.Ifindex == uint32(ifindex) {
		if err := d.put("near_uplinks", place, datapathNearUplink{}); err != nil {
			return err
		}
	}
	return d.remove("uplinks", uint32(ifindex))
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
