package loader

import (
	"fmt"
	"net/netip"
)

// innerWords returns the words of map inner for subnets: a bit for each prefix of 16 bits in
// which they have IPv4 addresses. IPv6 has none.
func innerWords(subnets []netip.Prefix) map[uint32]uint64 {
	words := map[uint32]uint64{}
	for _, s := range subnets {
		if !s.Addr().Is4() {
			continue
		}
		b := s.Masked().Addr().As4()
		first := uint32(b[0])<<8 | uint32(b[1])
		last := first | 0xffff>>min(s.Bits(), 16)
		for p := first; p <= last; p++ {
			words[p/64] |= 1 << (p % 64)
		}
	}
	return words
}

// markInner tells the programs where the addresses of subnets are, before they are there.
func (d *Datapath) markInner(subnets []netip.Prefix) error {
	for i, bits := range innerWords(subnets) {
		if err := d.changeInner(i, func(old uint64) uint64 { return old | bits }); err != nil {
			return err
		}
	}
	return nil
}

// unmarkInner takes back what only the subnets needed that are gone.
func (d *Datapath) unmarkInner(gone []netip.Prefix) error {
	left, err := d.subnets()
	if err != nil {
		return err
	}
	needed := innerWords(left)
	for i := range innerWords(gone) {
		if err := d.changeInner(i, func(uint64) uint64 { return needed[i] }); err != nil {
			return err
		}
	}
	return nil
}

// subnets lists the IPv4 subnets of all networks.
func (d *Datapath) subnets() ([]netip.Prefix, error) {
	m, err := d.pinned("subnets")
	if err != nil {
		return nil, err
	}
	var all []netip.Prefix
	if err := each(m, func(k *datapathSubnetKey, _ *uint32) bool {
		if addr := fromAddr(k.Addr); addr.Is4() {
			all = append(all, netip.PrefixFrom(addr, int(k.Prefixlen)-96))
		}
		return true
	}); err != nil {
		return nil, fmt.Errorf("list subnets: %w", err)
	}
	return all, nil
}

// changeInner changes a word of map inner, if that changes it.
func (d *Datapath) changeInner(i uint32, change func(uint64) uint64) error {
	m, err := d.pinned("inner")
	if err != nil {
		return err
	}
	var old uint64
	if err := m.Lookup(i, &old); err != nil {
		return fmt.Errorf("read map inner: %w", permission(err))
	}
	if next := change(old); next != old {
		return d.put("inner", i, next)
	}
	return nil
}
