package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/ebnet/ebnet/loader"
	"github.com/ebnet/ebnet/loader/netdev"
)

// Expose publishes ports of an endpoint, all or none, and returns one PortInfo a
// spec, in their order.
//
// Returns ErrNotFound, ErrInvalid (an address that is not the host's),
// ErrUnsupported (IPv6, a loopback address without socket hooks), ErrConflict (a port is taken,
// none is free, the endpoint is gone), ErrFailed if ebnet is not up.
func (h *Host) Expose(endpoint string, specs []PortSpec, from []netip.Prefix) ([]PortInfo, error) {
	what := quoted("endpoint", endpoint)
	from, err := sources(what, from)
	if err != nil {
		return nil, err
	}
	if len(specs) == 0 {
		return nil, invalid(what, "no port to publish")
	}
	var e *endpointRecord
	var ports []*portRecord
	steps, err := h.intent(func(t *tx) (steps []step, err error) {
		if e, err = t.endpoint(endpoint); err != nil {
			return nil, err
		}
		n, err := t.network(e.Network)
		if err != nil {
			return nil, err
		}
		dp, err := h.reachable(e)
		if err != nil {
			return nil, err
		}
		if ports, err = h.planPorts(t, e, specs, from); err != nil {
			return nil, err
		}
		return h.exposeSteps(dp, n, e, ports), nil
	})
	if err != nil {
		return nil, err
	}
	if err := h.apply(steps); err != nil {
		return nil, err
	}
	return portInfos(ports, e), nil
}

// reachable returns the datapath if the endpoint's device is there, and notes
// its index.
func (h *Host) reachable(e *endpointRecord) (datapath, error) {
	what := quoted("endpoint", e.Name)
	if e.Status != applied {
		return nil, taken(what, e.Status)
	}
	dp, err := h.mustBeUp(what)
	if err != nil {
		return nil, err
	}
	l, up, err := h.ownLink(e.HostIfName, e.alias())
	if err == nil && (!up || l.Index != e.Ifindex) {
		err = conflict(what, "its namespace or its device is gone").
			hint("`ebnet up` brings it back if its namespace is there, `ebnet disconnect %s` removes it", e.Name)
	}
	return dp, err
}

func (h *Host) exposeSteps(dp datapath, n *networkRecord, e *endpointRecord, ports []*portRecord) []step {
	return []step{
		h.unreserveStep(),
		{undo: func() error {
			return h.state.change(true, func(t *tx) error { return t.deletePorts(ports) })
		}},
		h.addrStep(dp),
		h.reserveStep(),
		h.publishStep(dp, n, e, ports),
		h.commit("done", func(t *tx) error { return t.markPorts(ports, applied) }),
	}
}

func (t *tx) markPorts(ports []*portRecord, s status) error {
	for _, p := range ports {
		p.Status = s
		if err := t.putPort(p); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) deletePorts(ports []*portRecord) error {
	for _, p := range ports {
		if err := t.deletePort(p); err != nil {
			return err
		}
	}
	return nil
}

// publishStep opens the ports. The datapath takes all or none.
func (h *Host) publishStep(dp datapath, n *networkRecord, e *endpointRecord, ports []*portRecord) step {
	return step{
		text: "map its ports: " + portList(ports, e),
		do:   func() error { return dp.Publish(publications(n, e, ports)...) },
		undo: func() error { return h.unpublish(dp, n, e, ports) },
	}
}

// portList names the first few of the ports.
func portList(ports []*portRecord, e *endpointRecord) string {
	const shown = 8
	var b strings.Builder
	for i, p := range ports {
		if i == shown {
			fmt.Fprintf(&b, " and %d more", len(ports)-shown)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s -> %s:%s/%s", p.hostAddr(), e.IP, rangeString(p.Port, p.end()), protocolName(p.Protocol))
	}
	return b.String()
}

// hostAddr is the port or range on the host, for people.
func (p *portRecord) hostAddr() string {
	return hostText(p.HostIP) + ":" + rangeString(p.HostPort, p.hostEnd())
}

func hostText(host netip.Addr) string {
	if !host.IsValid() {
		return "0.0.0.0"
	}
	return host.String()
}

func publications(n *networkRecord, e *endpointRecord, ports []*portRecord) []loader.Publication {
	ps := make([]loader.Publication, len(ports))
	for i, p := range ports {
		ps[i] = p.datapath(n.ID, e)
	}
	return ps
}

// unpublish closes the ports, and ends the host's own connections by way of them, which the
// datapath does not see.
func (h *Host) unpublish(dp datapath, n *networkRecord, e *endpointRecord, ports []*portRecord) error {
	ps := publications(n, e, ports)
	if err := dp.Unpublish(ps...); err != nil {
		return err
	}
	slots := map[loader.Protocol][]uint32{}
	for _, p := range ps {
		slots[p.Protocol] = append(slots[p.Protocol], p.Slot)
	}
	for proto, slots := range slots {
		peers, err := dp.ForgetPeers(slots...)
		if err != nil {
			return err
		}
		if len(peers) == 0 {
			continue
		}
		sockets := make([]netdev.Connected, len(peers))
		for i, p := range peers {
			sockets[i] = netdev.Connected{Cookie: p.Cookie, Remote: p.Remote}
		}
		// A kernel that cannot leaves them to their owners.
		if err := h.k.DestroySockets(proto, sockets); err != nil && !errors.Is(err, netdev.ErrUnsupported) {
			return err
		}
	}
	return nil
}

// unpublishStep is unpublish as a step.
func (h *Host) unpublishStep(dp datapath, n *networkRecord, e *endpointRecord, ports []*portRecord) step {
	var known bool // what is gone has no open ports
	return step{
		text: "unmap its ports: " + portList(ports, e),
		do: func() (err error) {
			if known, err = dp.HasEndpoint(e.datapath(n.ID)); err != nil {
				return err
			}
			return h.unpublish(dp, n, e, ports)
		},
		undo: func() error {
			if !known {
				return nil
			}
			return dp.Publish(publications(n, e, ports)...)
		},
		partial: true,
	}
}

// planPorts makes and stores the records of new ports of e, one a spec. One of
// the specs taken by another of them is a conflict too.
func (h *Host) planPorts(t *tx, e *endpointRecord, specs []PortSpec, from []netip.Prefix) ([]*portRecord, error) {
	ports := make([]*portRecord, 0, len(specs))
	if len(specs) == 0 {
		return ports, nil
	}
	n, err := t.network(e.Network)
	if err != nil {
		return nil, err
	}
	if n.Internal {
		return nil, invalid(quoted("endpoint", e.Name), "its network %q is internal: nothing outside may reach it", n.Name)
	}
	a, err := h.newAllocator(t, specs)
	if err != nil {
		return nil, err
	}
	for _, spec := range specs {
		p := &portRecord{
			Endpoint: e.Name, Protocol: spec.Protocol, Port: spec.Port, Count: spec.Count(),
			From: from, Direct: n.Mode == ModeRouted, Status: pending,
		}
		if err := a.settle(p, spec, e); err != nil {
			return nil, err
		}
		if p.Slot, err = t.reserveSlot(e.Name); err != nil {
			return nil, err
		}
		if err := t.putPort(p); err != nil {
			return nil, err
		}
		a.own[p.key()] = true
		ports = append(ports, p)
	}
	return ports, nil
}

// Unexpose closes published ports, all or none; no specs: all of the endpoint.
// A spec means what Expose published for it: the same host address, host ports,
// ports and protocol; where Expose chose the host port, the spec without it; in a
// routed network the ports and protocol alone. The
// ports that were closed are returned, in the order of Ports.
//
// Returns ErrNotFound for an unknown endpoint or a spec that is not published.
func (h *Host) Unexpose(endpoint string, specs []PortSpec) ([]PortInfo, error) {
	dp, err := h.loaded()
	if err != nil {
		return nil, explain(err)
	}
	var closed []PortInfo
	steps, err := h.intent(func(t *tx) ([]step, error) {
		e, err := t.endpoint(endpoint)
		if err != nil {
			return nil, err
		}
		n, err := t.network(e.Network)
		if err != nil {
			return nil, err
		}
		ports, err := t.portsOf(endpoint)
		if err != nil {
			return nil, err
		}
		if len(specs) > 0 {
			if ports, err = matchPorts(e, ports, specs); err != nil {
				return nil, err
			}
		}
		if len(ports) == 0 {
			return nil, errUnchanged
		}
		closed = portInfos(ports, e)
		return h.unexposeSteps(t, dp, n, e, ports)
	})
	if err != nil {
		return nil, err
	}
	if err := h.apply(steps); err != nil {
		return nil, err
	}
	return closed, nil
}

// matchPorts returns the ports that the specs mean, in their own order.
func matchPorts(e *endpointRecord, ports []*portRecord, specs []PortSpec) ([]*portRecord, error) {
	for _, spec := range specs {
		if !slices.ContainsFunc(ports, func(p *portRecord) bool { return p.matches(spec) }) {
			return nil, notFound(quoted("port", spec.String()), "endpoint %q does not publish it", e.Name).
				hint("`ebnet ports %s` lists what it publishes", e.Name)
		}
	}
	return slices.DeleteFunc(ports, func(p *portRecord) bool { return !slices.ContainsFunc(specs, p.matches) }), nil
}

func (p *portRecord) matches(s PortSpec) bool {
	if p.Protocol != s.Protocol || p.Port != s.Port || p.end() != s.End {
		return false
	}
	switch {
	case p.Direct:
		return true
	case anyHost(s.HostIP) != p.HostIP:
		return false
	case s.HostPort == 0:
		return true
	case s.hostCount() > s.Count():
		return s.HostPort <= p.HostPort && p.HostPort <= s.HostEnd
	}
	return p.HostPort == s.HostPort && p.hostEnd() == s.HostEnd
}

// unexposeSteps mark the ports as being removed and return the steps.
func (h *Host) unexposeSteps(t *tx, dp datapath, n *networkRecord, e *endpointRecord, ports []*portRecord) ([]step, error) {
	if err := t.markPorts(ports, removing); err != nil {
		return nil, err
	}
	restore := step{undo: func() error {
		return h.state.change(true, func(t *tx) error { return t.markPorts(ports, applied) })
	}}
	steps := []step{restore}
	if dp != nil {
		steps = []step{h.unreserveStep(), restore, h.unpublishStep(dp, n, e, ports), h.reserveStep()}
	}
	return append(steps, h.commit("done", func(t *tx) error { return t.deletePorts(ports) })), nil
}

// Ports lists published ports; endpoint "" means all endpoints. Returns
// ErrNotFound for an unknown one.
func (h *Host) Ports(endpoint string) ([]PortInfo, error) {
	infos := []PortInfo{}
	err := h.state.view(func(t *tx) error {
		es, err := t.endpointsNamed(endpoint)
		if err != nil {
			return err
		}
		for _, e := range es {
			ports, err := t.portsOf(e.Name)
			if err != nil {
				return err
			}
			infos = append(infos, portInfos(ports, e)...)
		}
		return nil
	})
	if err != nil {
		return nil, explain(err)
	}
	return infos, nil
}

// endpointsNamed returns the endpoint of that name, or all for "".
func (t *tx) endpointsNamed(name string) ([]*endpointRecord, error) {
	if name == "" {
		return list[endpointRecord](t, endpointsBucket)
	}
	e, err := t.endpoint(name)
	return []*endpointRecord{e}, err
}

func portInfos(ports []*portRecord, e *endpointRecord) []PortInfo {
	infos := make([]PortInfo, len(ports))
	for i, p := range ports {
		infos[i] = PortInfo{
			Endpoint:    p.Endpoint,
			Protocol:    protocolName(p.Protocol),
			HostIP:      hostText(p.HostIP),
			HostPort:    p.HostPort,
			HostPortEnd: p.hostEnd(),
			IP:          e.IP.String(),
			Port:        p.Port,
			PortEnd:     p.end(),
			From:        append([]netip.Prefix{}, p.From...),
		}
	}
	return infos
}
