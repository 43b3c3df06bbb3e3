package loader

import "fmt"

// PutUplink adds an uplink or replaces what is known of it.
func (d *Datapath) PutUplink(u Uplink) error {
	v4, v6 := byFamilyFirst(u)
	return d.put("uplinks", uint32(u.Ifindex), datapathUplink{Addr4: v4, Addr6: v6, Mtu: uint32(u.MTU)})
}

// byFamilyFirst picks the first address of each family.
func byFamilyFirst(u Uplink) (v4, v6 datapathAddr) {
	for i := len(u.Addrs) - 1; i >= 0; i-- {
		if u.Addrs[i].Is4() {
			v4 = toAddr(u.Addrs[i])
		} else {
			v6 = toAddr(u.Addrs[i])
		}
	}
	return v4, v6
}

// DeleteUplink removes an uplink. One that is not there is no error.
func (d *Datapath) DeleteUplink(ifindex int) error { return d.remove("uplinks", uint32(ifindex)) }

// Uplinks returns the interface indices of the uplinks.
func (d *Datapath) Uplinks() ([]int, error) {
	m, err := d.pinned("uplinks")
	if err != nil {
		return nil, err
	}
	var (
		all   []int
		key   uint32
		value datapathUplink
	)
	it := m.Iterate()
	for it.Next(&key, &value) {
		all = append(all, int(key))
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("list uplinks: %w", err)
	}
	return all, nil
}
