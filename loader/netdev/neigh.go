package netdev

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// PutNeighbour makes addr at mac a permanent neighbour on the device, so that
// the host need not ask for it. Another entry for addr is replaced.
//
// Returns ErrNotFound if there is no such device, ErrPermission.
func PutNeighbour(ifindex int, addr netip.Addr, mac net.HardwareAddr) error {
	return withHandle(func(h *handle) error { return putNeighbour(h, ifindex, addr, mac) })
}

func putNeighbour(h *handle, ifindex int, addr netip.Addr, mac net.HardwareAddr) error {
	n := neighbour(ifindex, addr)
	n.HardwareAddr = mac
	if err := h.NeighSet(n); err != nil {
		return fmt.Errorf("set neighbour %s at %s on interface %d: %w", addr, mac, ifindex, sentinel(err))
	}
	return nil
}

// DeleteNeighbour removes the entries for addrs from the device. Entries, or a
// device, that are not there are no error: removing a veth leaves the entries
// on its bridge, removing the bridge takes them with it.
//
// Returns ErrPermission.
func DeleteNeighbour(ifindex int, addrs ...netip.Addr) error {
	return withHandle(func(h *handle) error {
		for _, addr := range addrs {
			err := sentinel(h.NeighDel(neighbour(ifindex, addr)))
			if err != nil && !errors.Is(err, ErrNotFound) {
				return fmt.Errorf("delete neighbour %s on interface %d: %w", addr, ifindex, err)
			}
		}
		return nil
	})
}

func neighbour(ifindex int, addr netip.Addr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: ifindex, State: unix.NUD_PERMANENT, IP: addr.AsSlice()}
}

// putFDB tells the bridge that mac is behind its port.
func putFDB(h *handle, port int, mac net.HardwareAddr) error {
	n := &netlink.Neigh{
		LinkIndex: port, Family: unix.AF_BRIDGE, HardwareAddr: mac,
		// As "bridge fdb add … master static".
		State: unix.NUD_NOARP, Flags: unix.NTF_MASTER,
	}
	if err := h.NeighSet(n); err != nil {
		return fmt.Errorf("set forwarding entry %s on interface %d: %w", mac, port, sentinel(err))
	}
	return nil
}
