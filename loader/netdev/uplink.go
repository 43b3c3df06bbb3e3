package netdev

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// fallbackMTU is Ethernet's, where the host says nothing better.
const fallbackMTU = 1500

// Uplink is a device that may lead outside.
type Uplink struct {
	Ifindex  int
	Name     string
	MTU      int          // bytes
	Addrs    []netip.Addr // of global scope, IPv4 first, primary before secondary
	Ethernet bool         // false: the datapath cannot serve it; callers skip it
}

// DetectUplinks returns the devices that own an address of global scope, up or
// not, and are not loopback, not ours, and no port of another device, by index.
//
// A bridge counts if it has a port that is no veth and no tap, or a route with a
// gateway leaves by it: a virtual machine host's does, another container engine's
// does not. It leads to that engine's containers, which are not outside.
func DetectUplinks() (uplinks []Uplink, err error) {
	err = withHandle(func(h *handle) error {
		uplinks, err = detectUplinks(h)
		return err
	})
	return uplinks, err
}

func detectUplinks(h *handle) (uplinks []Uplink, err error) {
	uplinks, _, err = detectDevices(h)
	return uplinks, err
}

// DetectSides returns the bridges with an IPv4 address that DetectUplinks leaves out
// because they lead to others on this host, such as another container engine's
// containers, by index.
func DetectSides() (sides []Uplink, err error) {
	err = withHandle(func(h *handle) error {
		_, sides, err = detectDevices(h)
		return err
	})
	return sides, err
}

func detectDevices(h *handle) (uplinks, sides []Uplink, err error) {
	links, err := listLinks(h)
	if err != nil {
		return nil, nil, err
	}
	addrs, err := listAddrs(h)
	if err != nil {
		return nil, nil, err
	}
	outward, err := outwardDevices(h, links)
	if err != nil {
		return nil, nil, err
	}
	kinds := make(map[int]string, len(links))
	for _, l := range links {
		kinds[l.Index] = l.Kind
	}
	for _, l := range links {
		u := newUplink(l, addrs)
		// A device in a VRF has a master too, but still talks for itself.
		isPort := l.MasterIndex != 0 && kinds[l.MasterIndex] != "vrf"
		inward := l.Kind == "bridge" && !outward[l.Index]
		switch {
		case len(u.Addrs) == 0 || l.Loopback || l.Ours() || isPort:
		case !inward:
			uplinks = append(uplinks, u)
		case u.Addrs[0].Is4():
			sides = append(sides, u)
		}
	}
	for _, us := range [][]Uplink{uplinks, sides} {
		slices.SortFunc(us, func(a, b Uplink) int { return cmp.Compare(a.Ifindex, b.Ifindex) })
	}
	return uplinks, sides, nil
}

// outwardDevices returns the devices that have a port of a kind that is not only for
// containers and virtual machines, or that a route with a gateway leaves by.
func outwardDevices(h *handle, links []Link) (map[int]bool, error) {
	outward := map[int]bool{}
	for _, l := range links {
		if l.MasterIndex != 0 && l.Kind != "veth" && l.Kind != "tuntap" {
			outward[l.MasterIndex] = true
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := retryDump(func() ([]netlink.Route, error) { return h.RouteList(nil, family) })
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", sentinel(err))
		}
		for _, r := range routes {
			if r.Gw != nil {
				outward[r.LinkIndex] = true
			}
			for _, next := range r.MultiPath {
				outward[next.LinkIndex] = outward[next.LinkIndex] || next.Gw != nil
			}
		}
	}
	return outward, nil
}

// newUplink picks the addresses of l that have global scope out of addrs.
func newUplink(l Link, addrs []netlink.Addr) Uplink {
	u := Uplink{Ifindex: l.Index, Name: l.Name, MTU: l.MTU, Ethernet: l.Ethernet}
	var own []netlink.Addr
	for _, a := range addrs {
		if a.LinkIndex == l.Index && a.Scope == unix.RT_SCOPE_UNIVERSE && fromIPNet(a.IPNet).IsValid() {
			own = append(own, a)
		}
	}
	// Stable: among equals the kernel's order says which one it prefers.
	slices.SortStableFunc(own, func(a, b netlink.Addr) int {
		return cmp.Or(
			cmp.Compare(fromIPNet(a.IPNet).Addr().BitLen(), fromIPNet(b.IPNet).Addr().BitLen()),
			cmp.Compare(a.Flags&unix.IFA_F_SECONDARY, b.Flags&unix.IFA_F_SECONDARY),
		)
	})
	for _, a := range own {
		u.Addrs = append(u.Addrs, fromIPNet(a.IPNet).Addr())
	}
	return u
}

// UplinkByName returns the named device as an uplink, even if it has no address
// or is a port.
//
// Returns ErrNotFound, or ErrInvalid if it is loopback or ours.
func UplinkByName(name string) (uplink Uplink, err error) {
	err = withHandle(func(h *handle) error {
		l, err := h.LinkByName(name)
		if err != nil {
			return fmt.Errorf("uplink %s: %w", name, sentinel(err))
		}
		link := fromNetlink(l)
		if link.Loopback {
			return fmt.Errorf("uplink %s: %w: it is the loopback device", name, ErrInvalid)
		}
		if link.Ours() {
			return fmt.Errorf("uplink %s: %w: it is one of ebnet's own devices", name, ErrInvalid)
		}
		addrs, err := listAddrs(h)
		if err != nil {
			return err
		}
		uplink = newUplink(link, addrs)
		return nil
	})
	return uplink, err
}

// DefaultMTU returns the MTU, in bytes, of the device of the default route (IPv4
// before IPv6, lowest metric), else the lowest of the uplinks, else 1500.
func DefaultMTU() (mtu int, err error) {
	err = withHandle(func(h *handle) error {
		ifindex, err := defaultRouteDevice(h)
		if err != nil {
			return err
		}
		if ifindex != 0 {
			l, err := h.LinkByIndex(ifindex)
			if err != nil {
				return fmt.Errorf("interface %d: %w", ifindex, sentinel(err))
			}
			mtu = l.Attrs().MTU
			return nil
		}
		uplinks, err := detectUplinks(h)
		if err != nil {
			return err
		}
		for _, u := range uplinks {
			if mtu == 0 || u.MTU < mtu {
				mtu = u.MTU
			}
		}
		if mtu == 0 {
			mtu = fallbackMTU
		}
		return nil
	})
	return mtu, err
}

// defaultRouteDevice returns 0 if there is no default route with a device.
func defaultRouteDevice(h *handle) (ifindex int, err error) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := retryDump(func() ([]netlink.Route, error) { return h.RouteList(nil, family) })
		if err != nil {
			return 0, fmt.Errorf("list routes: %w", sentinel(err))
		}
		best := -1
		for _, r := range routes {
			if r.Type != unix.RTN_UNICAST || r.Dst != nil && fromIPNet(r.Dst).Bits() != 0 {
				continue
			}
			dev := r.LinkIndex
			if dev == 0 && len(r.MultiPath) > 0 {
				dev = r.MultiPath[0].LinkIndex
			}
			if dev > loopbackIndex && (best < 0 || r.Priority < best) {
				ifindex, best = dev, r.Priority
			}
		}
		if ifindex != 0 {
			return ifindex, nil
		}
	}
	return 0, nil
}
