package netdev

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/loader/failpoint"
)

// newHandle opens a netlink socket in the calling thread's namespace. Each
// function opens its own, so that the package keeps no state and a socket never
// outlives a change of namespace; opening one costs some 10 µs.
func newHandle() (*handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", sentinel(err))
	}
	return &handle{h}, nil
}

// handle is a netlink socket. The requests of the package that change something are
// its methods below, so that each is a fail-point.
type handle struct{ *netlink.Handle }

func (h *handle) LinkAdd(l netlink.Link) error {
	return failpoint.Do("add link", "", func() error { return h.Handle.LinkAdd(l) })
}

func (h *handle) LinkDel(l netlink.Link) error {
	return failpoint.Do("delete link", "", func() error { return h.Handle.LinkDel(l) })
}

func (h *handle) LinkSetAlias(l netlink.Link, alias string) error {
	return failpoint.Do("set alias", "", func() error { return h.Handle.LinkSetAlias(l, alias) })
}

func (h *handle) LinkSetName(l netlink.Link, name string) error {
	return failpoint.Do("set name", "", func() error { return h.Handle.LinkSetName(l, name) })
}

func (h *handle) LinkSetHardwareAddr(l netlink.Link, mac net.HardwareAddr) error {
	return failpoint.Do("set MAC address", "", func() error { return h.Handle.LinkSetHardwareAddr(l, mac) })
}

func (h *handle) LinkSetMTU(l netlink.Link, mtu int) error {
	return failpoint.Do("set MTU", "", func() error { return h.Handle.LinkSetMTU(l, mtu) })
}

func (h *handle) LinkSetUp(l netlink.Link) error {
	return failpoint.Do("set up", "", func() error { return h.Handle.LinkSetUp(l) })
}

func (h *handle) LinkSetDown(l netlink.Link) error {
	return failpoint.Do("set down", "", func() error { return h.Handle.LinkSetDown(l) })
}

func (h *handle) LinkSetGroup(l netlink.Link, group int) error {
	return failpoint.Do("set group", "", func() error { return h.Handle.LinkSetGroup(l, group) })
}

func (h *handle) LinkSetMasterByIndex(l netlink.Link, master int) error {
	return failpoint.Do("set master", "", func() error { return h.Handle.LinkSetMasterByIndex(l, master) })
}

func (h *handle) LinkSetLearning(l netlink.Link, on bool) error {
	return failpoint.Do("set learning", "", func() error { return h.Handle.LinkSetLearning(l, on) })
}

func (h *handle) AddrAdd(l netlink.Link, a *netlink.Addr) error {
	return failpoint.Do("add address", "", func() error { return h.Handle.AddrAdd(l, a) })
}

func (h *handle) AddrDel(l netlink.Link, a *netlink.Addr) error {
	return failpoint.Do("delete address", "", func() error { return h.Handle.AddrDel(l, a) })
}

func (h *handle) NeighSet(n *netlink.Neigh) error {
	return failpoint.Do("set neighbour", "", func() error { return h.Handle.NeighSet(n) })
}

func (h *handle) NeighDel(n *netlink.Neigh) error {
	return failpoint.Do("delete neighbour", "", func() error { return h.Handle.NeighDel(n) })
}

func (h *handle) RouteAdd(r *netlink.Route) error {
	return failpoint.Do("add route", "", func() error { return h.Handle.RouteAdd(r) })
}

func (h *handle) RouteDel(r *netlink.Route) error {
	return failpoint.Do("delete route", "", func() error { return h.Handle.RouteDel(r) })
}

func (h *handle) QdiscAdd(q netlink.Qdisc) error {
	return failpoint.Do("add clsact", "", func() error { return h.Handle.QdiscAdd(q) })
}

func (h *handle) QdiscDel(q netlink.Qdisc) error {
	return failpoint.Do("delete clsact", "", func() error { return h.Handle.QdiscDel(q) })
}

func (h *handle) FilterReplace(f netlink.Filter) error {
	return failpoint.Do("replace filter", "", func() error { return h.Handle.FilterReplace(f) })
}

func (h *handle) FilterDel(f netlink.Filter) error {
	return failpoint.Do("delete filter", "", func() error { return h.Handle.FilterDel(f) })
}

// execute is for requests that the netlink package has no method for.
func execute(point string, req *nl.NetlinkRequest, family int) error {
	return failpoint.Do(point, "", func() error {
		_, err := req.Execute(family, 0)
		return err
	})
}

// withHandle runs fn with a netlink socket in the calling thread's namespace.
func withHandle(fn func(h *handle) error) error {
	h, err := newHandle()
	if err != nil {
		return err
	}
	defer h.Close()
	return fn(h)
}
