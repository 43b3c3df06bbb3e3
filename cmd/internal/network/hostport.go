package network

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/ebnet/ebnet/loader"
	"github.com/ebnet/ebnet/loader/netdev"
)

// allocator finds host ports for one request. What it asks the host it asks
// once.
type allocator struct {
	h         *Host
	t         *tx
	addrs     []netip.Prefix
	ephemeral netdev.PortRange // where to search if no host port is named
	reserved  *loader.PortSet  // but not there
	own       map[portKey]bool // what the request has already
	spans     map[spanKey]netdev.PortRange
	holders   map[spanKey][]netdev.Holder
}

// spanKey is what a question for processes that hold ports is about. The
// answer of one question for all specs on it is kept.
type spanKey struct {
	proto loader.Protocol
	host  netip.Addr
}

func (h *Host) newAllocator(t *tx, specs []PortSpec) (*allocator, error) {
	a := &allocator{
		h: h, t: t, own: map[portKey]bool{}, spans: map[spanKey]netdev.PortRange{}, holders: map[spanKey][]netdev.Holder{},
	}
	for _, s := range specs {
		r := netdev.PortRange{First: s.HostPort, Last: s.HostEnd}
		if s.HostPort == 0 {
			var err error
			if a.ephemeral, err = h.k.LocalPortRange(); err != nil {
				return nil, err
			}
			if a.reserved, err = h.adminPorts(); err != nil {
				return nil, err
			}
			r = a.ephemeral
		}
		k := spanKey{s.Protocol, anyHost(s.HostIP)}
		if had, ok := a.spans[k]; ok {
			r.First, r.Last = min(r.First, had.First), max(r.Last, had.Last)
		}
		a.spans[k] = r
	}
	return a, nil
}

// anyHost makes the ways to say "any IPv4 address" one.
func anyHost(ip netip.Addr) netip.Addr {
	if ip == netip.IPv4Unspecified() {
		return netip.Addr{}
	}
	return ip
}

// settle finds the host address and port of a new record. A direct port takes none of
// the host: whatever the spec says of it, it is published as the endpoint has it.
func (a *allocator) settle(p *portRecord, spec PortSpec, e *endpointRecord) (err error) {
	if p.Direct {
		p.HostIP, p.HostPort = e.IP, p.Port
		return a.mustBeUnpublished(quoted("port", spec.String()), p.space(), p.HostIP, p.HostPort, p.hostEnd())
	}
	if p.HostIP, err = a.hostIP(spec); err != nil {
		return err
	}
	p.HostPort, err = a.hostPort(spec, p.HostIP)
	return err
}

// hostIP returns the host address to publish on; the zero Addr is any.
func (a *allocator) hostIP(spec PortSpec) (netip.Addr, error) {
	what, ip := quoted("port", spec.String()), spec.HostIP
	switch {
	case !anyHost(ip).IsValid():
		return netip.Addr{}, nil
	case ip.Is6():
		return ip, unsupported(what, "IPv6 host addresses are not yet supported")
	case ip.IsLoopback():
		return ip, a.h.checkSockets(what)
	}
	if a.addrs == nil {
		var err error
		if a.addrs, err = a.h.k.HostAddrs(); err != nil {
			return ip, err
		}
	}
	if !slices.ContainsFunc(a.addrs, func(p netip.Prefix) bool { return p.Addr() == ip }) {
		return ip, invalid(what, "%s is no address of this host", ip).hint("use 0.0.0.0 for any address of the host")
	}
	return ip, nil
}

// checkSockets refuses a loopback address where nobody could reach it.
func (h *Host) checkSockets(what string) error {
	dp, err := h.mustBeUp(what)
	if err == nil && !dp.SocketsAttached() {
		err = unsupported(what, "a loopback address needs the socket hooks, which are not attached").
			hint("`ebnet up` attaches them, or says why it cannot")
	}
	return err
}

// hostPort returns the first host port of the spec's range: the one it names,
// or the first that is free of those it leaves open.
func (a *allocator) hostPort(spec PortSpec, host netip.Addr) (uint16, error) {
	what := quoted("port", spec.String())
	switch {
	case spec.HostPort == 0:
		return a.search(what, spec, host)
	case spec.hostCount() > spec.Count():
		p, ok, err := a.firstFree(spec, host, spec.HostPort, spec.HostPort, spec.HostEnd)
		if err == nil && !ok {
			err = conflict(what, "every port of %s is taken", rangeString(spec.HostPort, spec.HostEnd))
		}
		return p, err
	}
	return spec.HostPort, a.mustBeFree(what, spec.Protocol, host, spec.HostPort, spec.HostEnd)
}

// mustBeFree returns ErrConflict, naming the holder, if a port is taken.
func (a *allocator) mustBeFree(what string, proto loader.Protocol, host netip.Addr, first, last uint16) error {
	if err := a.mustBeUnpublished(what, byte(proto), host, first, last); err != nil {
		return err
	}
	holders, err := a.processes(proto, host)
	if err != nil {
		return err
	}
	for _, p := range holders {
		if first <= p.Port && p.Port <= last {
			return conflict(what, "port %d/%s is in use by %s", p.Port, protocolName(proto), holderText(p))
		}
	}
	return nil
}

func (a *allocator) mustBeUnpublished(what string, space byte, host netip.Addr, first, last uint16) error {
	k, ok := a.taken(space, host, first, last)
	if !ok {
		return nil
	}
	p, err := a.t.port(k)
	if err != nil {
		return err
	}
	text := p.hostAddr() + "/" + protocolName(p.Protocol)
	switch {
	case a.own[k]:
		return conflict(what, "%s is asked for twice", text)
	case p.Status != applied:
		return conflict(what, "%s is left of a command that was killed", text).hint("`ebnet up` undoes what it left")
	}
	return conflict(what, "%s is published already, by endpoint %q", text, p.Endpoint)
}

func holderText(h netdev.Holder) string {
	if h.PID == 0 {
		return "a process of the host"
	}
	return fmt.Sprintf("process %d (%s)", h.PID, h.Command)
}

// taken finds a published port in the range.
func (a *allocator) taken(space byte, host netip.Addr, first, last uint16) (found portKey, ok bool) {
	a.t.published(space, last, func(k portKey) bool {
		if k.last() >= first && k.meets(host) {
			found, ok = k, true
		}
		return !ok
	})
	return found, ok
}

// search looks through the range the kernel takes ports for clients from, from
// a random port on.
func (a *allocator) search(what string, spec PortSpec, host netip.Addr) (uint16, error) {
	r := a.ephemeral
	n := int(r.Last) - int(r.First) + 1
	if n < spec.Count() {
		return 0, conflict(what, "the kernel's ephemeral range %s is too small", rangeString(r.First, r.Last)).
			hint("name the host ports")
	}
	p, ok, err := a.firstFree(spec, host, r.First, r.First+uint16(rand.IntN(n)), r.Last)
	if err == nil && !ok {
		err = conflict(what, "no port is free in the kernel's ephemeral range %s", rangeString(r.First, r.Last))
	}
	return p, err
}

// firstFree returns the first of spec.Count() free ports in a row within first
// to last, searching from start on and round again.
func (a *allocator) firstFree(spec PortSpec, host netip.Addr, first, start, last uint16) (uint16, bool, error) {
	busy, err := a.busy(spec.Protocol, host, last)
	if err != nil {
		return 0, false, err
	}
	if spec.HostPort == 0 {
		busy = union(busy, a.reserved)
	}
	run := func(from, to int) (uint16, bool) {
		free := 0
		for p := from; p <= to; p++ {
			if free++; busy.Has(uint16(p)) {
				free = 0
			}
			if free == spec.Count() {
				return uint16(p - free + 1), true
			}
		}
		return 0, false
	}
	p, ok := run(int(start), int(last))
	if !ok {
		p, ok = run(int(first), int(last))
	}
	return p, ok, nil
}

// busy returns the ports up to last that are published or held by a process.
func (a *allocator) busy(proto loader.Protocol, host netip.Addr, last uint16) (*loader.PortSet, error) {
	set := new(loader.PortSet)
	a.t.published(byte(proto), last, func(k portKey) bool {
		if k.meets(host) {
			set.Add(k.first(), int(k.last())-int(k.first())+1)
		}
		return true
	})
	holders, err := a.processes(proto, host)
	for _, p := range holders {
		set.Add(p.Port, 1)
	}
	return set, err
}

// processes returns who holds ports of those the request is about.
func (a *allocator) processes(proto loader.Protocol, host netip.Addr) ([]netdev.Holder, error) {
	k := spanKey{proto, host}
	if hs, ok := a.holders[k]; ok {
		return hs, nil
	}
	span := a.spans[k]
	addr := host
	if !addr.IsValid() {
		addr = netip.IPv4Unspecified() // a process on an IPv6 address is not in the way
	}
	hs, err := a.h.k.PortHolders(proto, addr, span.First, span.Last)
	a.holders[k] = hs
	return hs, err
}
