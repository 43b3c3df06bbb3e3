package netdev

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Bridge describes the bridge of a network.
type Bridge struct {
	Name    string
	Network string           // the alias becomes AliasPrefix+Network
	MAC     net.HardwareAddr // 6 bytes, unicast
	MTU     int              // bytes
	Addrs   []netip.Prefix   // gateway addresses with their subnet's length
	IPv6    bool             // if false, IPv6 is switched off on the bridge
}

// bridgeOptions are the options of every bridge, by IFLA_BR_*. Values are in the
// width the kernel has them. VLAN filtering is not among them: it is off by
// default, and a kernel without it refuses even to hear so.
var bridgeOptions = []struct {
	attr  int
	value []byte
}{
	// A network is a star: no loop to look for, and no delay before a new port
	// may be used.
	{nl.IFLA_BR_STP_STATE, nl.Uint32Attr(0)},
	{nl.IFLA_BR_FORWARD_DELAY, nl.Uint32Attr(0)},
	// Multicast goes to all ports: with snooping it would depend on whether
	// somebody plays the querier.
	{nl.IFLA_BR_MCAST_SNOOPING, []byte{0}},
	{nl.IFLA_BR_GROUP_FWD_MASK, nl.Uint16Attr(0)},
}

func (b Bridge) alias() string { return AliasPrefix + b.Network }

// EnsureBridge creates the bridge or repairs what differs: MAC, MTU, addresses
// (others are removed), spanning tree, sysctls, and that it is up. changed tells
// whether anything had to be done. A bridge that cannot be completed is removed
// if it was made here.
//
// Returns ErrExists if a device of that name exists and is not the bridge of
// b.Network, ErrInvalid for a malformed name, MAC or MTU, ErrPermission.
func EnsureBridge(b Bridge) (ifindex int, changed bool, err error) {
	if err := CheckName(b.Name); err != nil {
		return 0, false, err
	}
	if err := cmp.Or(checkMAC(b.MAC), checkMTU(b.MTU), checkPrefixes(b.Addrs)); err != nil {
		return 0, false, fmt.Errorf("bridge %s: %w", b.Name, err)
	}
	err = withHandle(func(h *handle) error {
		ifindex, changed, err = ensureBridge(h, b)
		return err
	})
	if err != nil {
		return 0, false, fmt.Errorf("bridge %s: %w", b.Name, err)
	}
	return ifindex, changed, nil
}

func ensureBridge(h *handle, b Bridge) (ifindex int, changed bool, err error) {
	l, err := h.LinkByName(b.Name)
	created := notFound(err)
	if created {
		// MTU and options follow below: the kernel takes an MTU as fixed only if
		// it is set on an existing bridge, else the ports' lowest one wins.
		if err := setBridge(b, 0); err != nil {
			return 0, false, err
		}
		l, err = h.LinkByName(b.Name)
	}
	if err != nil {
		return 0, false, sentinel(err)
	}
	ifindex = l.Attrs().Index
	if err := b.claim(fromNetlink(l)); err != nil {
		return 0, false, err
	}
	if changed, err = repairBridge(h, b, l); err != nil {
		if created {
			_ = h.LinkDel(l)
		}
		return 0, false, err
	}
	return ifindex, created || changed, nil
}

// claim returns ErrExists unless l is the bridge of b.Network. One without an
// alias of ebnet's but with the MAC is: the alias cannot be set in the request that creates
// a device, so it is what a crash between the two leaves, and others can change it.
func (b Bridge) claim(l Link) error {
	switch {
	case l.Kind != "bridge":
		return fmt.Errorf("%w, and is no bridge but a %s", ErrExists, l.Kind)
	case l.Alias == b.alias(), !l.Ours() && bytes.Equal(l.MAC, b.MAC):
		return nil
	case l.Ours():
		return fmt.Errorf("%w as the bridge of network %s", ErrExists, l.Alias[len(AliasPrefix):])
	}
	return fmt.Errorf("%w, and is not ebnet's", ErrExists)
}

// repairBridge makes the existing bridge l what b says.
func repairBridge(h *handle, b Bridge, l netlink.Link) (changed bool, err error) {
	have := fromNetlink(l)
	if have.Alias != b.alias() {
		if err := h.LinkSetAlias(l, b.alias()); err != nil {
			return false, fmt.Errorf("set alias: %w", sentinel(err))
		}
		changed = true
	}
	if same, err := bridgeOptionsSet(have.Index); err != nil || !same {
		if err == nil {
			err = setBridge(b, have.Index)
		}
		if err != nil {
			return changed, err
		}
		changed = true
	}
	if !bytes.Equal(have.MAC, b.MAC) {
		if err := h.LinkSetHardwareAddr(l, b.MAC); err != nil {
			return changed, fmt.Errorf("set MAC address %s: %w", b.MAC, sentinel(err))
		}
		changed = true
	}
	if have.MTU != b.MTU {
		if err := h.LinkSetMTU(l, b.MTU); err != nil {
			return changed, fmt.Errorf("set MTU %d: %w", b.MTU, sentinel(err))
		}
		changed = true
	}
	did, err := repairBridgeIP(h, b, have)
	return changed || did, err
}

// repairBridgeIP is the part of repairBridge above layer 2. The sysctls come
// before the device is up, so that IPv6 never starts where it is not wanted.
func repairBridgeIP(h *handle, b Bridge, have Link) (changed bool, err error) {
	for _, s := range bridgeSysctls {
		did, err := setDeviceSysctl("ipv4", b.Name, s.name, s.value)
		if err != nil {
			return changed, err
		}
		changed = changed || did
	}
	did, err := setIPv6(b.Name, b.IPv6)
	if err != nil {
		return changed, err
	}
	changed = changed || did
	if did, err = syncAddrs(h, have.Index, b.Addrs); err != nil {
		return changed, err
	}
	changed = changed || did
	if !have.Up {
		if err := h.LinkSetUp(linkRef(have.Index)); err != nil {
			return changed, fmt.Errorf("set up: %w", sentinel(err))
		}
		changed = true
	}
	missing, err := missingRoutes(h, b, have.Index)
	if err != nil {
		return changed, err
	}
	for _, p := range missing {
		if err := addSubnetRoute(h, have.Index, p); err != nil {
			return changed, err
		}
	}
	return changed || len(missing) > 0, nil
}

// missingRoutes returns the gateways to whose subnets no route leads by the bridge. The kernel adds them with
// the addresses, and not again.
func missingRoutes(h *handle, b Bridge, ifindex int) (missing []netip.Prefix, err error) {
	for _, p := range b.Addrs {
		if p.IsSingleIP() {
			continue
		}
		family := netlink.FAMILY_V4
		if p.Addr().Is6() {
			family = netlink.FAMILY_V6
		}
		routes, err := retryDump(func() ([]netlink.Route, error) { return h.RouteList(linkRef(ifindex), family) })
		if err != nil {
			return nil, fmt.Errorf("list routes of %s: %w", b.Name, sentinel(err))
		}
		if !slices.ContainsFunc(routes, func(r netlink.Route) bool { return fromIPNet(r.Dst) == p.Masked() }) {
			missing = append(missing, p)
		}
	}
	return missing, nil
}

// setBridge creates the bridge (ifindex 0) or sets the options of an existing
// one. The netlink package's Bridge has not all of them.
func setBridge(b Bridge, ifindex int) error {
	flags := unix.NLM_F_ACK
	if ifindex == 0 {
		flags |= unix.NLM_F_CREATE | unix.NLM_F_EXCL
	}
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, flags)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(ifindex)
	req.AddData(msg)
	if ifindex == 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(b.Name)))
		req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, b.MAC))
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	for _, o := range bridgeOptions {
		data.AddRtAttr(o.attr, o.value)
	}
	req.AddData(info)
	if err := execute("set bridge", req, unix.NETLINK_ROUTE); err != nil {
		if ifindex == 0 {
			return fmt.Errorf("create: %w", sentinel(err))
		}
		return fmt.Errorf("set options: %w", sentinel(err))
	}
	return nil
}

// bridgeOptionsSet reports whether all of bridgeOptions are as they should be.
func bridgeOptionsSet(ifindex int) (bool, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(ifindex)
	req.AddData(msg)
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return false, fmt.Errorf("read options: %w", sentinel(err))
	}
	if len(msgs) != 1 {
		return false, fmt.Errorf("read options: %d answers", len(msgs))
	}
	attrs := msgs[0][unix.SizeofIfInfomsg:]
	for _, t := range []uint16{unix.IFLA_LINKINFO, nl.IFLA_INFO_DATA} {
		if attrs, err = findAttr(attrs, t); err != nil {
			return false, fmt.Errorf("read options: %w", err)
		}
	}
	for _, o := range bridgeOptions {
		value, err := findAttr(attrs, uint16(o.attr))
		if err != nil {
			return false, fmt.Errorf("read options: %w", err)
		}
		// Absent: the kernel was built without it, so it cannot differ.
		if value != nil && !bytes.Equal(value, o.value) {
			return false, nil
		}
	}
	return true, nil
}

// findAttr returns the value of the first attribute of a type, nil if there is none.
func findAttr(attrs []byte, attrType uint16) ([]byte, error) {
	for len(attrs) >= unix.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(attrs))
		if size < unix.SizeofRtAttr || size > len(attrs) {
			return nil, fmt.Errorf("netlink attribute of %d bytes in %d: %w", size, len(attrs), ErrInvalid)
		}
		if binary.NativeEndian.Uint16(attrs[2:])&^unix.NLA_F_NESTED == attrType {
			return attrs[unix.SizeofRtAttr:size], nil
		}
		attrs = attrs[min((size+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1), len(attrs)):]
	}
	return nil, nil
}
