package network

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/ebnet/ebnet/loader"
	"github.com/ebnet/ebnet/loader/netdev"
)

// Connect creates an endpoint: a link between a network namespace and a network,
// addressed, up and routed on return, with its ports published.
//
// Returns ErrNotFound (network, namespace), ErrInvalid, ErrConflict (name,
// address, interface or port is taken), ErrUnsupported (IPv6), ErrFailed
// if ebnet is not up.
func (h *Host) Connect(r ConnectRequest) (EndpointInfo, error) {
	if err := r.check(); err != nil {
		return EndpointInfo{}, explain(err)
	}
	dp, ns, err := h.site(r)
	if ns != nil {
		defer h.k.CloseNS(ns)
	}
	if err != nil {
		return EndpointInfo{}, explain(err)
	}
	if r.Name == "" {
		r.Name = defaultName(r.NetNS)
	}
	what := quoted("endpoint", r.Name)
	var e *endpointRecord
	var ports []*portRecord
	steps, err := h.intent(func(t *tx) ([]step, error) {
		h.say("create %s in network %q", what, r.Network)
		n, err := t.network(r.Network)
		if err == nil && n.Status != applied {
			err = taken(quoted("network", n.Name), n.Status)
		}
		if err != nil {
			return nil, err
		}
		if e, err = h.planEndpoint(t, r, n, ns); err != nil {
			return nil, err
		}
		if ports, err = h.planPorts(t, e, r.Ports, r.From); err != nil {
			return nil, err
		}
		return h.connectSteps(dp, n, e, ns, ports), nil
	})
	if err != nil {
		return EndpointInfo{}, err
	}
	if err := h.apply(steps); err != nil {
		return EndpointInfo{}, err
	}
	return e.info(ports, StateUp), nil
}

// check refuses what cannot be right whatever the state says.
func (r *ConnectRequest) check() error {
	what := "endpoint"
	if r.Name != "" {
		if err := checkName("endpoint", r.Name); err != nil {
			return err
		}
		what = quoted("endpoint", r.Name)
	}
	if r.IfName == "" {
		r.IfName = "eth0"
	}
	if err := netdev.CheckName(r.IfName); err != nil {
		return invalid(what, "%v", err)
	}
	if len(r.IPs) > 1 {
		return invalid(what, "%d addresses, an endpoint has one of each family", len(r.IPs))
	}
	if len(r.IPs) == 1 && r.IPs[0].Is6() {
		return unsupported(what, "IPv6 addresses are not yet supported")
	}
	if r.MAC != nil {
		if err := checkMAC(what, r.MAC); err != nil {
			return err
		}
	}
	var err error
	r.From, err = sources(what, r.From)
	return err
}

// sources returns the prefixes masked, in order and each once.
func sources(what string, from []netip.Prefix) ([]netip.Prefix, error) {
	out := make([]netip.Prefix, 0, len(from))
	for _, p := range from {
		switch {
		case !p.IsValid():
			return nil, invalid(what, "a source is no subnet")
		case !p.Addr().Is4():
			return nil, unsupported(what, "source %s: IPv6 sources are not yet supported", p)
		}
		out = append(out, p.Masked())
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out), nil
}

// site opens what an endpoint is to connect. ns is to be closed, if not nil.
func (h *Host) site(r ConnectRequest) (dp datapath, ns *netdev.NS, err error) {
	if err := h.state.view(func(t *tx) error { _, err := t.network(r.Network); return err }); err != nil {
		return nil, nil, err
	}
	if ns, err = h.k.OpenNS(r.NetNS); err != nil {
		return nil, nil, err
	}
	own, err := h.k.CurrentNS()
	if err != nil {
		return nil, ns, err
	}
	defer h.k.CloseNS(own)
	if netdev.SameNS(ns, own) {
		return nil, ns, invalid(quoted("namespace", r.NetNS), "it is the host's own")
	}
	dp, err = h.mustBeUp(quoted("network", r.Network))
	return dp, ns, err
}

// defaultName is the namespace's name if it was named and that can be one of an
// endpoint.
func defaultName(netns string) string {
	if !strings.ContainsAny(netns, "/:") && nameRE.MatchString(netns) {
		return netns
	}
	return fmt.Sprintf("ep-%08x", rand.Uint32())
}

// planEndpoint makes the record of a new endpoint: its address, slot and
// devices.
func (h *Host) planEndpoint(t *tx, r ConnectRequest, n *networkRecord, ns *netdev.NS) (*endpointRecord, error) {
	what := quoted("endpoint", r.Name)
	if other, err := get[endpointRecord](t, endpointsBucket, []byte(r.Name)); err != nil {
		return nil, err
	} else if other != nil {
		return nil, taken(what, other.Status)
	}
	e := &endpointRecord{
		Name: r.Name, Network: n.Name, IfName: r.IfName, NetNS: r.NetNS,
		NSPath: ns.Path, NoDefaultRoute: r.NoDefaultRoute, Transient: r.Transient, Labels: r.Labels, Status: pending,
	}
	if err := h.identify(e, ns); err != nil {
		return nil, err
	}
	by, err := t.ifnameOwner(e)
	if err != nil {
		return nil, err
	}
	if by != nil {
		return nil, conflict(what, "interface %s of namespace %s belongs to endpoint %q", e.IfName, e.NetNS, by.Name).
			hint("choose another with --ifname, or disconnect %s", by.Name)
	}
	h.say("get its IP (IPAM)")
	if err := t.lease(n, e, r.IPs); err != nil {
		return nil, err
	}
	h.say("return it: %s", e.IP)
	mac := defaultMAC(endpointOUI, e.IP)
	if r.MAC != nil {
		if err := t.checkMAC(r, mac.String()); err != nil {
			return nil, err
		}
		mac = r.MAC
	}
	e.MAC = mac.String()
	slot, err := t.reserveSlot(e.Name)
	if err != nil {
		return nil, err
	}
	e.Slot, e.HostIfName = slot, fmt.Sprintf("veb%08x", slot)
	return e, t.putEndpoint(e)
}

// lease takes the address asked for, or the next free one.
func (t *tx) lease(n *networkRecord, e *endpointRecord, ips []netip.Addr) error {
	pool, err := t.pool(n)
	if err != nil {
		return err
	}
	if len(ips) > 0 {
		e.IP = ips[0]
		return pool.Request(e.IP)
	}
	e.IP, err = pool.Acquire()
	return err
}

// checkMAC refuses an address that another endpoint of the network has or would
// get by default.
func (t *tx) checkMAC(r ConnectRequest, byDefault string) error {
	what := quoted("endpoint", r.Name)
	mac := r.MAC.String()
	if [2]byte(r.MAC[:2]) == endpointOUI && mac != byDefault {
		return invalid(what, "%s is reserved: 02:eb starts the addresses that endpoints get by default", mac)
	}
	for _, name := range t.members(r.Network) {
		e, err := t.endpoint(name)
		if err != nil {
			return err
		}
		if e.MAC == mac {
			return conflict(what, "%s is the address of endpoint %q", mac, name)
		}
	}
	return nil
}

// connectSteps are those that follow the record of a new endpoint.
func (h *Host) connectSteps(dp datapath, n *networkRecord, e *endpointRecord, ns *netdev.NS, ports []*portRecord) []step {
	steps := []step{h.unreserveStep(), {
		text: "create the endpoint",
		undo: func() error { return h.state.change(true, func(t *tx) error { return t.deleteEndpoint(e) }) },
	}}
	steps = append(steps, h.vethStep(dp, n, e, ns))
	steps = append(steps, step{
		do:   func() error { return dp.PutEndpoint(e.datapath(n.ID)) },
		undo: func() error { return dp.DeleteEndpoint(e.datapath(n.ID)) },
	}, step{text: "configured"})
	if len(ports) > 0 {
		steps = append(steps, h.addrStep(dp), h.reserveStep(), h.publishStep(dp, n, e, ports))
	}
	return append(steps, h.commit("done", func(t *tx) error {
		e.Status = applied
		return errors.Join(t.putEndpoint(e), t.markPorts(ports, applied))
	}))
}

func ignore() {}

// vethStep creates the endpoint's devices and notes the index in e.
func (h *Host) vethStep(dp datapath, n *networkRecord, e *endpointRecord, ns *netdev.NS) step {
	return step{
		text: fmt.Sprintf("configure the link: %s in %s, %s on bridge %s", e.IfName, e.NetNS, e.HostIfName, n.Bridge),
		do:   func() error { return h.createVeth(dp, n, e, ns) },
		undo: func() error { return errors.Join(h.removeVeth(dp, e.Ifindex), h.forgetNeighbour(n, e)) },
	}
}

// forgetNeighbour removes the endpoint from the neighbours of its bridge, where its link
// has put it for good.
func (h *Host) forgetNeighbour(n *networkRecord, e *endpointRecord) error {
	bridge, ours, err := h.ownLink(n.Bridge, bridgeAlias(n.Name))
	if err != nil || !ours {
		return err
	}
	return h.k.DeleteNeighbour(bridge.Index, e.IP)
}

// createVeth makes the endpoint's devices, with its program attached before anything can pass: until
// the datapath knows the endpoint all that it sends is dropped.
func (h *Host) createVeth(dp datapath, n *networkRecord, e *endpointRecord, ns *netdev.NS) error {
	bridge, ours, err := h.ownLink(n.Bridge, bridgeAlias(n.Name))
	if err != nil {
		return err
	}
	if !ours {
		return &Error{What: "bridge " + n.Bridge, Why: "the network's bridge is missing", Hint: "run `ebnet up`, which repairs it", Kind: ErrFailed}
	}
	guarded := 0
	v, guard := e.veth(n, bridge.Index, ns), h.guard(dp)
	v.Guard = func(ifindex int) error {
		guarded = ifindex
		return guard(ifindex)
	}
	if e.Ifindex, err = h.k.CreateVeth(v); err != nil && guarded != 0 {
		err = errors.Join(err, h.forgetProgram(dp, guarded))
	}
	return err
}

// guard attaches an endpoint's program to the host's end of its link, before that is set up.
func (h *Host) guard(dp datapath) func(ifindex int) error {
	return func(ifindex int) error {
		_, err := h.attach(dp, loader.FromContainer, ifindex)
		return err
	}
}

// removeVeth takes the devices back.
func (h *Host) removeVeth(dp datapath, ifindex int) error {
	return errors.Join(h.deleteLink(ifindex), h.forgetProgram(dp, ifindex))
}

// forgetProgram removes what is pinned for a device that is gone. Filters went with it.
func (h *Host) forgetProgram(dp datapath, ifindex int) error {
	if !dp.TCX() {
		return nil
	}
	return h.detach(dp, loader.FromContainer, ifindex)
}

// veth is the endpoint's pair of devices.
func (e *endpointRecord) veth(n *networkRecord, bridge int, ns *netdev.NS) netdev.Veth {
	v := netdev.Veth{
		HostName: e.HostIfName,
		Bridge:   bridge,
		Alias:    e.alias(),
		MTU:      n.MTU,
		NS:       ns,
		IfName:   e.IfName,
		MAC:      e.mac(),
		Addrs:    []netip.Prefix{netip.PrefixFrom(e.IP, n.Subnets[0].Bits())},
	}
	if !e.NoDefaultRoute {
		v.Gateway = n.Gateways[0]
	}
	return v
}

// Disconnect removes an endpoint and its ports; its flows end at once. It works
// where the namespace is gone too. Returns ErrNotFound.
func (h *Host) Disconnect(name string) error {
	dp, err := h.loaded()
	if err != nil {
		return explain(err)
	}
	steps, err := h.intent(func(t *tx) ([]step, error) {
		e, err := t.endpoint(name)
		if err != nil {
			return nil, err
		}
		n, err := t.network(e.Network)
		if err != nil {
			return nil, err
		}
		restore, steps, err := h.disconnectSteps(t, dp, n, e)
		if err != nil {
			return nil, err
		}
		steps = append([]step{h.restoreStep(restore)}, steps...)
		if dp != nil {
			steps = append(append([]step{h.unreserveStep()}, steps...), h.reserveStep())
		}
		return append(steps, h.commit("done", func(t *tx) error { return t.deleteEndpoint(e) })), nil
	})
	if err != nil {
		return err
	}
	return h.apply(steps)
}

// disconnectSteps mark the endpoint as being removed and return the steps that
// take it out of the kernel, and what brings the record back.
func (h *Host) disconnectSteps(t *tx, dp datapath, n *networkRecord, e *endpointRecord) (restore func(*tx) error, steps []step, err error) {
	h.say("remove endpoint %q", e.Name)
	ports, err := t.portsOf(e.Name)
	if err != nil {
		return nil, nil, err
	}
	was := e.Status
	e.Status = removing
	if err := t.putEndpoint(e); err != nil {
		return nil, nil, err
	}
	restore = func(t *tx) error {
		e.Status = was
		return t.putEndpoint(e)
	}
	if dp == nil {
		return restore, nil, nil
	}
	if len(ports) > 0 {
		steps = append(steps, h.unpublishStep(dp, n, e, ports))
	}
	return restore, append(steps, h.unlinkSteps(dp, n, e)...), nil
}

// restoreStep stands before the first step of a verb that removes: undoing it brings the
// records back, all or, if it is killed, none.
func (h *Host) restoreStep(restores ...func(*tx) error) step {
	return step{undo: func() error {
		return h.state.change(true, func(t *tx) error {
			for _, restore := range restores {
				if err := restore(t); err != nil {
					return err
				}
			}
			return nil
		})
	}}
}

// unlinkSteps take back what connectSteps did. A device can only
// be brought back as a new one, with another index.
func (h *Host) unlinkSteps(dp datapath, n *networkRecord, e *endpointRecord) []step {
	var known, there bool
	index := e.Ifindex
	return []step{{
		text: "end its flows",
		do: func() (err error) {
			if known, err = dp.HasEndpoint(e.datapath(n.ID)); err != nil {
				return err
			}
			return dp.DeleteEndpoint(e.datapath(n.ID))
		},
		undo: func() error {
			if !known {
				return nil
			}
			return dp.PutEndpoint(e.datapath(n.ID))
		},
		partial: true,
	}, {
		text: fmt.Sprintf("remove the link: %s in %s", e.IfName, e.NetNS),
		do: func() error {
			link, ours, err := h.ownLink(e.HostIfName, e.alias())
			if err != nil {
				return err
			}
			if there = ours; !there {
				return nil
			}
			index = link.Index
			return h.deleteLink(index)
		},
		undo: func() error {
			if !there {
				return nil
			}
			if err := h.forgetProgram(dp, index); err != nil {
				return err
			}
			return h.reconnect(dp, n, e)
		},
	}, {
		// Not before the device is gone: without its program an endpoint could send what it likes.
		do: func() error { return h.forgetProgram(dp, index) },
	}, {do: func() error { return h.forgetNeighbour(n, e) }}, {do: func() error {
		gone := e.datapath(n.ID)
		gone.Ifindex = index
		_ = dp.ForgetEndpointDrops(gone) // a counter more is no harm
		return nil
	}}}
}

// reconnect creates the devices of a recorded endpoint again. Returns
// netdev.ErrNotFound if its namespace is gone.
func (h *Host) reconnect(dp datapath, n *networkRecord, e *endpointRecord) error {
	ns, err := h.openOwn(e)
	if err != nil {
		return err
	}
	defer h.k.CloseNS(ns)
	if err := h.createVeth(dp, n, e, ns); err != nil {
		return err
	}
	return h.identify(e, ns)
}

// Endpoints lists the endpoints by name; network "" means all networks.
// Returns ErrNotFound for an unknown network.
func (h *Host) Endpoints(network string) ([]EndpointInfo, error) {
	links, err := h.k.Links()
	if err != nil {
		return nil, explain(err)
	}
	alive := ownAliases(links)
	infos := []EndpointInfo{}
	err = h.state.view(func(t *tx) error {
		if network != "" {
			if _, err := t.network(network); err != nil {
				return err
			}
		}
		es, err := list[endpointRecord](t, endpointsBucket)
		if err != nil {
			return err
		}
		for _, e := range es {
			if network != "" && e.Network != network {
				continue
			}
			ports, err := t.portsOf(e.Name)
			if err != nil {
				return err
			}
			l, up := alive[e.alias()]
			infos = append(infos, e.infoAt(ports, l.Index, up))
		}
		return nil
	})
	if err != nil {
		return nil, explain(err)
	}
	return infos, nil
}

// ownAliases returns our devices by alias.
func ownAliases(links []netdev.Link) map[string]netdev.Link {
	own := map[string]netdev.Link{}
	for _, l := range links {
		if l.Ours() {
			own[l.Alias] = l
		}
	}
	return own
}

// Endpoint shows one endpoint. Returns ErrNotFound.
func (h *Host) Endpoint(name string) (info EndpointInfo, err error) {
	err = h.state.view(func(t *tx) error {
		e, err := t.endpoint(name)
		if err != nil {
			return err
		}
		ports, err := t.portsOf(name)
		if err != nil {
			return err
		}
		l, up, err := h.ownLink(e.HostIfName, e.alias())
		info = e.infoAt(ports, l.Index, up)
		return err
	})
	if err != nil {
		return EndpointInfo{}, explain(err)
	}
	return info, nil
}

func (e *endpointRecord) infoAt(ports []*portRecord, ifindex int, up bool) EndpointInfo {
	if !up {
		return e.info(ports, StateGone)
	}
	now := *e
	now.Ifindex = ifindex
	return now.info(ports, StateUp)
}

func (e *endpointRecord) info(ports []*portRecord, state string) EndpointInfo {
	labels := map[string]string{}
	maps.Copy(labels, e.Labels)
	info := EndpointInfo{
		Name: e.Name, Network: e.Network, IPv4: e.IP.String(), MAC: e.MAC, IfName: e.IfName,
		HostIfName: e.HostIfName, NetNS: e.NetNS, Ports: portInfos(ports, e), Labels: labels, State: state,
	}
	if state == StateUp {
		info.Ifindex = e.Ifindex
	}
	return info
}
