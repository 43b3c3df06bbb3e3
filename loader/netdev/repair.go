package netdev

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// VethReport is what was found at a pair.
type VethReport struct {
	// Wrong tells in words what is not as CreateVeth leaves it.
	Wrong []string

	// Err is why the rest could not be looked at or repaired.
	Err error

	// Unseen is set where the container's end was not looked at, for want of the privilege to enter
	// its namespace (CAP_SYS_ADMIN).
	Unseen bool

	// Lost is set where there is no pair of that alias, or its other end is not in the namespace:
	// the pair has to be made anew.
	Lost bool
}

// CheckVeths looks at existing pairs, which are found by their aliases or else by their names, and tells what RepairVeths
// would repair. Where v.NS is nil the container's end is not looked at.
//
// The container may have addresses of its own on other devices, and routes; what it has by the pair's
// end is CreateVeth's.
func CheckVeths(vs []Veth) ([]VethReport, error) { return visitVeths(vs, false) }

// RepairVeths makes existing pairs what CreateVeth left: names, MTU, the port of the bridge with its
// entries, the container's address and default route, and that all is up. What is as it should be is
// not touched, so that connections go on. A default route that leaves by another device of the container's
// stays.
//
// Returns ErrPermission. What goes wrong at one pair, such as a name that is taken, is in its report.
func RepairVeths(vs []Veth) ([]VethReport, error) { return visitVeths(vs, true) }

func visitVeths(vs []Veth, repair bool) ([]VethReport, error) {
	if len(vs) == 0 {
		return nil, nil
	}
	reports := make([]VethReport, len(vs))
	err := withHandle(func(h *handle) error {
		s, err := newSurvey(h)
		if err != nil {
			return err
		}
		if s.own, err = CurrentNS(); err != nil {
			return err
		}
		defer s.own.Close()
		// On one thread, which goes from namespace to namespace.
		return onThread(func() error {
			for i, v := range vs {
				reports[i] = s.visit(h, v, repair)
				if err := reports[i].Err; errors.Is(err, ErrPermission) {
					return err
				}
			}
			return nil
		})
	})
	return reports, err
}

// survey is what the kernel says of all devices, read once for many pairs.
type survey struct {
	own       *NS             // of the host
	links     map[string]Link // by alias
	names     map[string]Link // the rest, by name
	learning  map[int]bool    // ports, by index
	hardware  map[string]bool // static forwarding entries, see fdbKey
	neighbour map[string]bool // permanent neighbours, see neighKey
}

func fdbKey(port int, mac []byte) string { return fmt.Sprintf("%d %x", port, mac) }
func neighKey(ifindex int, ip netip.Addr, mac []byte) string {
	return fmt.Sprintf("%d %s %x", ifindex, ip, mac)
}

func newSurvey(h *handle) (*survey, error) {
	s := &survey{links: map[string]Link{}, names: map[string]Link{}, hardware: map[string]bool{}, neighbour: map[string]bool{}}
	links, err := retryDump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", sentinel(err))
	}
	for _, l := range links {
		if link := fromNetlink(l); link.Ours() {
			s.links[link.Alias] = link
		} else {
			s.names[link.Name] = link
		}
	}
	for _, family := range []int{unix.AF_BRIDGE, unix.AF_INET, unix.AF_INET6} {
		neighbours, err := retryDump(func() ([]netlink.Neigh, error) { return h.NeighList(0, family) })
		if err != nil {
			return nil, fmt.Errorf("list neighbours: %w", sentinel(err))
		}
		for _, n := range neighbours {
			ip, _ := netip.AddrFromSlice(n.IP)
			switch {
			case family == unix.AF_BRIDGE && n.State&unix.NUD_NOARP != 0:
				s.hardware[fdbKey(n.LinkIndex, n.HardwareAddr)] = true
			case family != unix.AF_BRIDGE && n.State&unix.NUD_PERMANENT != 0:
				s.neighbour[neighKey(n.LinkIndex, ip.Unmap(), n.HardwareAddr)] = true
			}
		}
	}
	s.learning, err = learningPorts()
	return s, err
}

// learningPorts returns the bridges' ports that learn.
func learningPorts() (map[int]bool, error) {
	msgs, err := retryDump(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfInfomsg(unix.AF_BRIDGE))
		return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	})
	if err != nil {
		return nil, fmt.Errorf("list ports of bridges: %w", sentinel(err))
	}
	ports := map[int]bool{}
	for _, m := range msgs {
		if len(m) < unix.SizeofIfInfomsg {
			return nil, fmt.Errorf("list ports of bridges: message of %d bytes: %w", len(m), ErrInvalid)
		}
		info, err := findAttr(m[unix.SizeofIfInfomsg:], unix.IFLA_PROTINFO)
		if err != nil {
			return nil, fmt.Errorf("list ports of bridges: %w", err)
		}
		learning, err := findAttr(info, nl.IFLA_BRPORT_LEARNING)
		if err != nil {
			return nil, fmt.Errorf("list ports of bridges: %w", err)
		}
		if len(learning) == 1 && learning[0] == 1 {
			ports[int(nl.DeserializeIfInfomsg(m).Index)] = true
		}
	}
	return ports, nil
}

// deviation is one thing that is wrong, and what mends it.
type deviation struct {
	text string
	mend func() error
}

// settle mends deviations, if so asked, and puts them into the report.
func (r *VethReport) settle(found []deviation, repair bool) error {
	for _, d := range found {
		r.Wrong = append(r.Wrong, d.text)
		if !repair {
			continue
		}
		if err := d.mend(); err != nil {
			return fmt.Errorf("%s: %w", d.text, sentinel(err))
		}
	}
	return nil
}

// visit leaves the thread in the container's namespace; h is a socket of the host.
func (s *survey) visit(h *handle, v Veth, repair bool) (r VethReport) {
	link, there := s.links[v.Alias]
	if !there {
		link, there = s.names[v.HostName]
	}
	if !there || link.Kind != "veth" {
		return VethReport{Lost: true}
	}
	err := r.settle(s.hostDeviations(h, v, link), repair)
	if err == nil && v.NS != nil {
		err = enter(v.NS)
		if errors.Is(err, ErrPermission) {
			return VethReport{Wrong: r.Wrong, Unseen: true}
		}
		if err == nil {
			err = v.visitInside(link, &r, repair)
		}
	}
	if err == nil && repair && len(r.Wrong) > 0 && !r.Lost {
		err = waitOperational(h, link.Index)
	}
	if err != nil {
		r.Err = fmt.Errorf("link %s: %w", v.HostName, err)
	}
	return r
}

func (s *survey) hostDeviations(h *handle, v Veth, link Link) (all []deviation) {
	ref := linkRef(link.Index)
	add := func(wrong bool, mend func() error, format string, args ...any) {
		if wrong {
			all = append(all, deviation{fmt.Sprintf(format, args...), mend})
		}
	}
	add(link.Alias != v.Alias, func() error { return h.LinkSetAlias(ref, v.Alias) }, "its alias is %q instead of %q", link.Alias, v.Alias)
	add(link.Name != v.HostName, func() error { return rename(h, link, v.HostName) }, "the device is called %s instead of %s", link.Name, v.HostName)
	add(link.MTU != v.MTU, func() error { return h.LinkSetMTU(ref, v.MTU) }, "its MTU is %d instead of %d", link.MTU, v.MTU)
	outside := link.MasterIndex != v.Bridge
	add(outside, func() error { return h.LinkSetMasterByIndex(ref, v.Bridge) }, "the device is no port of the network's bridge")
	add(outside || s.learning[link.Index], func() error { return h.LinkSetLearning(ref, false) }, "its port of the bridge learns addresses")
	add(outside || !s.hardware[fdbKey(link.Index, v.MAC)], func() error { return putFDB(h, link.Index, v.MAC) }, "the bridge has lost its entry for %s", v.MAC)
	add(!link.Up, func() error {
		return Do(s.own, func() error { return v.raiseAgain(h, link.Index) })
	}, "the device is down")
	for _, p := range v.Addrs {
		add(!s.neighbour[neighKey(v.Bridge, p.Addr(), v.MAC)], func() error { return putNeighbour(h, v.Bridge, p.Addr(), v.MAC) },
			"the host has lost its neighbour entry for %s", p.Addr())
	}
	return all
}

// raiseAgain sets the host's end up, which may never have been: what comes before that is done too.
func (v Veth) raiseAgain(h *handle, ifindex int) error {
	if _, err := setIPv6(v.HostName, v.IPv6); err != nil {
		return err
	}
	return v.raise(h, ifindex)
}

// rename renames a device. Kernels before 6.2 do not while it is up.
func rename(h *handle, link Link, name string) error {
	ref := linkRef(link.Index)
	err := h.LinkSetName(ref, name)
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	if err := h.LinkSetDown(ref); err != nil {
		return err
	}
	if err = h.LinkSetName(ref, name); err == nil && link.Up {
		err = h.LinkSetUp(ref)
	}
	return err
}

// visitInside runs in v.NS. What comes later rests on what is mended before, so each is looked at then.
func (v Veth) visitInside(host Link, r *VethReport, repair bool) error {
	h, err := newHandle()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByIndex(host.PeerIndex)
	if err != nil && !notFound(err) {
		return sentinel(err)
	}
	if err != nil || fromNetlink(l).Kind != "veth" || fromNetlink(l).PeerIndex != host.Index {
		r.Lost = true
		return nil
	}
	for _, look := range []func(*handle, Link) ([]deviation, error){v.deviceInside, v.addrsInside, v.routeInside} {
		found, err := look(h, fromNetlink(l))
		if err == nil {
			err = r.settle(found, repair)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (v Veth) deviceInside(h *handle, link Link) (all []deviation, _ error) {
	ref := linkRef(link.Index)
	if link.Name != v.IfName {
		all = append(all, deviation{fmt.Sprintf("the container's end is called %s instead of %s", link.Name, v.IfName),
			func() error { return rename(h, link, v.IfName) }})
	}
	if !bytes.Equal(link.MAC, v.MAC) {
		all = append(all, deviation{fmt.Sprintf("the container's end, %s, has MAC address %s instead of %s", v.IfName, link.MAC, v.MAC),
			func() error { return h.LinkSetHardwareAddr(ref, v.MAC) }})
	}
	if link.MTU != v.MTU {
		all = append(all, deviation{fmt.Sprintf("the container's end, %s, has MTU %d instead of %d", v.IfName, link.MTU, v.MTU),
			func() error { return h.LinkSetMTU(ref, v.MTU) }})
	}
	if !link.Up {
		all = append(all, deviation{fmt.Sprintf("the container's end, %s, is down", v.IfName),
			func() error {
				if _, err := setIPv6(v.IfName, v.IPv6); err != nil { // it may never have been up
					return err
				}
				return errors.Join(h.LinkSetUp(linkRef(loopbackIndex)), h.LinkSetUp(ref))
			}})
	}
	return all, nil
}

// addrsInside looks at the addresses of the families that the endpoint has. Others than its own are taken
// away: the datapath drops what is sent from them.
func (v Veth) addrsInside(h *handle, link Link) (all []deviation, _ error) {
	have, err := retryDump(func() ([]netlink.Addr, error) { return h.AddrList(linkRef(link.Index), netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", link.Name, sentinel(err))
	}
	missing := slices.Clone(v.Addrs)
	for _, a := range have {
		p := fromIPNet(a.IPNet)
		if i := slices.Index(missing, p); i >= 0 {
			missing = slices.Delete(missing, i, i+1)
			continue
		}
		ours := slices.ContainsFunc(v.Addrs, func(own netip.Prefix) bool { return own.Addr().Is4() == p.Addr().Is4() })
		if ours && !p.Addr().IsLinkLocalUnicast() {
			all = append(all, deviation{fmt.Sprintf("the container's end, %s, has the address %s, which is not its own", v.IfName, p),
				func() error { return ignoreGone(h.AddrDel(linkRef(link.Index), &a)) }})
		}
	}
	for _, p := range missing {
		all = append(all, deviation{fmt.Sprintf("the container's end, %s, has lost the address %s", v.IfName, p),
			func() error { return addAddr(h, link.Index, p) }})
	}
	return all, nil
}

// ignoreGone: deleting a primary address takes the secondary ones with it.
func ignoreGone(err error) error {
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return nil
	}
	return err
}

// routeInside looks for the default route. It goes with the device being down and with its address.
func (v Veth) routeInside(h *handle, link Link) ([]deviation, error) {
	if !v.Gateway.IsValid() {
		return nil, nil
	}
	family := netlink.FAMILY_V4
	if v.Gateway.Is6() {
		family = netlink.FAMILY_V6
	}
	routes, err := retryDump(func() ([]netlink.Route, error) { return h.RouteList(nil, family) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", sentinel(err))
	}
	var wrong *netlink.Route
	for _, r := range routes {
		if r.Dst != nil && fromIPNet(r.Dst).Bits() != 0 || r.Type != unix.RTN_UNICAST {
			continue
		}
		gateway, _ := netip.AddrFromSlice(r.Gw)
		if r.LinkIndex != link.Index || gateway.Unmap() == v.Gateway {
			return nil, nil
		}
		if r.Priority == 0 {
			wrong = &r
		}
	}
	mend := func() error { return addDefaultRoute(h, link.Index, v.Gateway) }
	if wrong == nil {
		return []deviation{{fmt.Sprintf("the container has lost its default route by %s", v.Gateway), mend}}, nil
	}
	return []deviation{{fmt.Sprintf("the container's default route by %s is not by %s", v.IfName, v.Gateway), func() error {
		if err := h.RouteDel(wrong); err != nil {
			return err
		}
		return mend()
	}}}, nil
}
