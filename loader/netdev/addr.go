package netdev

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addAddr gives the device an address with its subnet's length.
func addAddr(h *handle, ifindex int, p netip.Prefix) error {
	addr := &netlink.Addr{IPNet: toIPNet(p)}
	if p.Addr().Is6() {
		// Duplicate detection would keep the address unusable for a second;
		// IPAM has made sure that nobody else has it.
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := h.AddrAdd(linkRef(ifindex), addr); err != nil {
		return fmt.Errorf("add address %s to interface %d: %w", p, ifindex, sentinel(err))
	}
	return nil
}

// syncAddrs makes the device's addresses those of want. IPv6 link-local ones are
// the kernel's and stay.
func syncAddrs(h *handle, ifindex int, want []netip.Prefix) (changed bool, err error) {
	have, err := retryDump(func() ([]netlink.Addr, error) {
		return h.AddrList(linkRef(ifindex), netlink.FAMILY_ALL)
	})
	if err != nil {
		return false, fmt.Errorf("list addresses of interface %d: %w", ifindex, sentinel(err))
	}
	missing := slices.Clone(want)
	for _, a := range have {
		p := fromIPNet(a.IPNet)
		if i := slices.Index(missing, p); i >= 0 {
			missing = slices.Delete(missing, i, i+1)
			continue
		}
		if p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
			continue
		}
		if err := h.AddrDel(linkRef(ifindex), &a); err != nil {
			return changed, fmt.Errorf("remove address %s from interface %d: %w", p, ifindex, sentinel(err))
		}
		changed = true
	}
	for _, p := range missing {
		if err := addAddr(h, ifindex, p); err != nil {
			return changed, err
		}
		changed = true
	}
	return changed, nil
}

// checkPrefixes returns ErrInvalid if one of them is the zero Prefix or its like.
func checkPrefixes(prefixes []netip.Prefix) error {
	for _, p := range prefixes {
		if !p.IsValid() || p.Addr().Is4In6() {
			return fmt.Errorf("address %s: %w", p, ErrInvalid)
		}
	}
	return nil
}

// linkRef stands for a device whose index is known; netlink asks for links where
// it only needs that.
func linkRef(ifindex int) netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}
}

func toIPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// fromIPNet returns the zero Prefix for what is no prefix.
func fromIPNet(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), ones)
}
