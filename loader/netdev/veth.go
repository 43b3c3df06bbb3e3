package netdev

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Veth describes the device pair of an endpoint.
type Veth struct {
	HostName string // of the host's end
	Bridge   int    // interface index of the bridge
	Alias    string // of the host's end, starting with AliasPrefix
	MTU      int    // bytes, of both ends

	NS      *NS    // the container's namespace
	IfName  string // of the container's end
	MAC     net.HardwareAddr
	Addrs   []netip.Prefix // with their subnet's length, at most one of each family
	Gateway netip.Addr     // default route; the zero Addr means none
	IPv6    bool           // if false, IPv6 is switched off on both ends

	// Guard, if not nil, is called with the index of the host's end before that is set up, so before
	// anything can pass.
	Guard func(hostIfindex int) error
}

// CreateVeth creates the pair: the container's end is in v.NS under its name,
// addressed, routed and usable on return; the host's end is a port of the bridge
// that learns nothing, with a static forwarding entry and a permanent neighbour
// for the endpoint. On error nothing is left.
//
// Returns ErrExists if a device with v.IfName or a default route exists in v.NS
// (or v.HostName on the host), ErrInvalid for malformed names, an MTU out of
// range, a MAC that is no unicast address or if v.NS is the host itself,
// ErrNotFound if the bridge is not there, ErrPermission.
func CreateVeth(v Veth) (hostIfindex int, err error) {
	if err := v.check(); err != nil {
		return 0, err
	}
	host, err := newHandle()
	if err != nil {
		return 0, err
	}
	defer host.Close()
	if hostIfindex, err = v.createPair(host); err != nil {
		return 0, err
	}
	if err := v.configure(host, hostIfindex); err != nil {
		// The other end, its addresses and routes, and the forwarding entry go
		// with the device.
		if undo := host.LinkDel(linkRef(hostIfindex)); undo != nil {
			err = fmt.Errorf("%w; undo: delete %s: %w", err, v.HostName, sentinel(undo))
		}
		return 0, err
	}
	return hostIfindex, nil
}

func (v Veth) check() error {
	for _, name := range []string{v.HostName, v.IfName} {
		if err := CheckName(name); err != nil {
			return err
		}
	}
	if err := cmp.Or(checkMAC(v.MAC), checkMTU(v.MTU), checkPrefixes(v.Addrs)); err != nil {
		return err
	}
	if !strings.HasPrefix(v.Alias, AliasPrefix) {
		return fmt.Errorf("alias %q of %s: %w: does not start with %q", v.Alias, v.HostName, ErrInvalid, AliasPrefix)
	}
	if v.NS == nil {
		return fmt.Errorf("create %s: %w: no network namespace given", v.IfName, ErrInvalid)
	}
	own, err := CurrentNS()
	if err != nil {
		return err
	}
	defer own.Close()
	if SameNS(own, v.NS) {
		return fmt.Errorf("network namespace %s: %w: it is the host's own", v.NS, ErrInvalid)
	}
	return nil
}

// createPair creates both ends, down, the host's one a port of the bridge.
func (v Veth) createPair(host *handle) (hostIfindex int, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = v.HostName
	attrs.MTU = v.MTU
	pair := netlink.NewVeth(attrs)
	pair.PeerName = v.IfName
	pair.PeerHardwareAddr = v.MAC
	pair.PeerNamespace = netlink.NsFd(v.NS.fd)
	err = host.LinkAdd(pair)
	if errors.Is(err, unix.EEXIST) {
		// The kernel does not say which of the two names it means.
		if _, lookup := host.LinkByName(v.HostName); lookup == nil {
			return 0, fmt.Errorf("interface %s: %w", v.HostName, ErrExists)
		}
		return 0, fmt.Errorf("interface %s: %w in network namespace %s", v.IfName, ErrExists, v.NS)
	}
	if err != nil {
		return 0, fmt.Errorf("create veth pair %s, %s: %w", v.HostName, v.IfName, sentinel(err))
	}
	return pair.Index, nil
}

func (v Veth) configure(host *handle, hostIfindex int) error {
	if err := v.configureHost(host, hostIfindex); err != nil {
		return fmt.Errorf("configure %s: %w", v.HostName, err)
	}
	if err := Do(v.NS, v.configureInside); err != nil {
		return fmt.Errorf("configure %s: %w", v.IfName, err)
	}
	// The bridge gets its carrier with its first port.
	for _, index := range []int{hostIfindex, v.Bridge} {
		if err := waitOperational(host, index); err != nil {
			return fmt.Errorf("wait for %s: %w", v.HostName, err)
		}
	}
	// Late, since they are on the bridge and would outlive the pair.
	for i, p := range v.Addrs {
		if err := putNeighbour(host, v.Bridge, p.Addr(), v.MAC); err != nil {
			for _, done := range v.Addrs[:i] {
				_ = host.NeighDel(neighbour(v.Bridge, done.Addr()))
			}
			return err
		}
	}
	// Only now is it an endpoint's link: what has no alias was left unfinished.
	if err := host.LinkSetAlias(linkRef(hostIfindex), v.Alias); err != nil {
		for _, p := range v.Addrs {
			_ = host.NeighDel(neighbour(v.Bridge, p.Addr()))
		}
		return fmt.Errorf("set alias of %s: %w", v.HostName, sentinel(err))
	}
	return nil
}

// configureHost makes the host's end a port of the bridge and sets it up.
func (v Veth) configureHost(h *handle, ifindex int) error {
	link := linkRef(ifindex)
	if _, err := setIPv6(v.HostName, v.IPv6); err != nil {
		return err
	}
	if err := h.LinkSetMasterByIndex(link, v.Bridge); err != nil {
		// The kernel calls a missing bridge an invalid argument.
		if _, lookup := h.LinkByIndex(v.Bridge); lookup != nil {
			err = lookup
		}
		return fmt.Errorf("add to bridge (interface %d): %w", v.Bridge, sentinel(err))
	}
	if err := h.LinkSetLearning(link, false); err != nil {
		return fmt.Errorf("switch learning off: %w", sentinel(err))
	}
	if err := putFDB(h, ifindex, v.MAC); err != nil {
		return err
	}
	return v.raise(h, ifindex)
}

// raise sets the host's end up.
func (v Veth) raise(h *handle, ifindex int) error {
	if v.Guard != nil {
		if err := v.Guard(ifindex); err != nil {
			return err
		}
	}
	if err := h.LinkSetUp(linkRef(ifindex)); err != nil {
		return fmt.Errorf("set up: %w", sentinel(err))
	}
	return nil
}

// configureInside runs in v.NS.
func (v Veth) configureInside() error {
	if _, err := setIPv6(v.IfName, v.IPv6); err != nil {
		return err
	}
	h, err := newHandle()
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(v.IfName)
	if err != nil {
		return sentinel(err)
	}
	ifindex := link.Attrs().Index
	for _, p := range v.Addrs {
		if err := addAddr(h, ifindex, p); err != nil {
			return err
		}
	}
	// First, since whoever is killed in between leaves a device that is down, which RepairVeths sees.
	if err := h.LinkSetUp(linkRef(loopbackIndex)); err != nil {
		return fmt.Errorf("set lo up: %w", sentinel(err))
	}
	if err := h.LinkSetUp(linkRef(ifindex)); err != nil {
		return fmt.Errorf("set up: %w", sentinel(err))
	}
	if v.Gateway.IsValid() {
		if err := addDefaultRoute(h, ifindex, v.Gateway); err != nil {
			return err
		}
	}
	return waitOperational(h, ifindex)
}

// waitOperational returns when the kernel has noticed that the device has a
// carrier. It does so in a work queue, and until then drops what is sent; asking
// for the device's state makes recent kernels do it at once. A device that is
// down is not waited for.
func waitOperational(h *handle, ifindex int) error {
	const patience = 2 * time.Second
	for wait := 100 * time.Microsecond; ; wait *= 2 {
		l, err := h.LinkByIndex(ifindex)
		if err != nil {
			return sentinel(err)
		}
		if l.Attrs().OperState == netlink.OperUp || l.Attrs().RawFlags&unix.IFF_UP == 0 {
			return nil
		}
		if wait > patience {
			return fmt.Errorf("%s has no carrier after %s", l.Attrs().Name, patience)
		}
		time.Sleep(wait)
	}
}
