package network

import (
	"encoding/binary"
	"net/netip"
)

// tellAddrs tells the datapath which addresses are the host's own. The programs learn
// them too; this corrects what they have seen too little of.
func (h *Host) tellAddrs(dp datapath) error {
	local, broadcast, err := h.localAddrs()
	if err != nil {
		return err
	}
	return dp.SetLocalAddrs(local, broadcast)
}

func (h *Host) localAddrs() (local, broadcast []netip.Addr, err error) {
	addrs, err := h.k.HostAddrs()
	local, broadcast = localAddrs(addrs)
	return local, broadcast, err
}

// localAddrs returns the IPv4 addresses, loopback ones left out, and the broadcast
// addresses of their subnets, which have none where there is no room (RFC 3021).
func localAddrs(addrs []netip.Prefix) (local, broadcast []netip.Addr) {
	for _, p := range addrs {
		if !p.Addr().Is4() || p.Addr().IsLoopback() {
			continue
		}
		local = append(local, p.Addr())
		if p.Bits() <= 30 {
			broadcast = append(broadcast, p.Masked().Addr(), lastAddr(p))
		}
	}
	return local, broadcast
}

// lastAddr is the IPv4 address of the prefix with all host bits set.
func lastAddr(p netip.Prefix) netip.Addr {
	a := p.Addr().As4()
	n := binary.BigEndian.Uint32(a[:]) | uint32(1<<(32-p.Bits())-1)
	binary.BigEndian.PutUint32(a[:], n)
	return netip.AddrFrom4(a)
}

// addrStep tells the datapath in passing: ports are what the addresses are asked for.
func (h *Host) addrStep(dp datapath) step {
	return step{do: func() error { return h.tellAddrs(dp) }}
}

// withAddrs are steps that change the host's addresses, and tell the datapath after
// them or after they were undone.
func (h *Host) withAddrs(dp datapath, steps ...step) []step {
	back := step{undo: func() error { return h.tellAddrs(dp) }}
	return append(append([]step{back}, steps...), h.addrStep(dp))
}
