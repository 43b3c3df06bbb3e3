package network

import (
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/ebnet/ebnet/ipam"
	"github.com/ebnet/ebnet/loader"
	"github.com/ebnet/ebnet/loader/netdev"
)

// CreateNetwork creates a network. Before the first Up it is recorded only, and
// Up makes its bridge.
//
// Returns ErrInvalid, ErrUnsupported (IPv6), or ErrConflict: the name, the
// bridge or the subnet is taken, or no default pool is free.
func (h *Host) CreateNetwork(r NetworkRequest) (NetworkInfo, error) {
	what := quoted("network", r.Name)
	if err := r.check(); err != nil {
		return NetworkInfo{}, explain(err)
	}
	dp, err := h.loaded()
	if err != nil {
		return NetworkInfo{}, explain(err)
	}
	var n *networkRecord
	steps, err := h.intent(func(t *tx) ([]step, error) {
		h.say("create %s", what)
		if n, err = h.planNetwork(t, r); err != nil {
			return nil, err
		}
		if dp != nil {
			n.Status = pending
		}
		if err := t.putNetwork(n); err != nil {
			return nil, err
		}
		return h.networkSteps(dp, n), nil
	})
	if err != nil {
		return NetworkInfo{}, err
	}
	if err := h.apply(steps); err != nil {
		return NetworkInfo{}, err
	}
	if h.o.DryRun {
		return n.info(0, AddressUse{}), nil
	}
	return h.Network(r.Name)
}

// networkSteps are those that follow the record of a new network.
func (h *Host) networkSteps(dp datapath, n *networkRecord) []step {
	steps := []step{{
		text: "create the network",
		undo: func() error { return h.state.change(true, func(t *tx) error { return t.deleteNetwork(n) }) },
	}}
	if dp != nil {
		steps = append(steps, h.withAddrs(dp, h.bridgeSteps(dp, n, new(int), ignore)...)...)
		steps = append(steps, h.commit("return", func(t *tx) error {
			n.Status = applied
			return t.putNetwork(n)
		}))
	}
	return append(steps, step{text: "done"})
}

// bridgeSteps make the network's bridge, tell the datapath and attach its
// programs. ifindex receives the bridge's index; changed is called when something
// had to be done.
func (h *Host) bridgeSteps(dp datapath, n *networkRecord, ifindex *int, changed func()) []step {
	var created, altered, known bool
	at := func() int { return *ifindex }
	return []step{{
		text: fmt.Sprintf("configure the device: bridge %s, address %s, mtu %d", n.Bridge, n.gatewayPrefixes()[0], n.MTU),
		do: func() (err error) {
			_, err = h.k.LinkByName(n.Bridge)
			created = errors.Is(err, netdev.ErrNotFound)
			*ifindex, altered, err = h.k.EnsureBridge(n.bridge())
			if altered {
				changed()
			}
			return err
		},
		undo: func() error {
			if !created {
				return nil
			}
			return h.deleteLink(*ifindex)
		},
	}, {
		do: func() error {
			ids, err := dp.Networks()
			if err != nil {
				return err
			}
			if known = slices.Contains(ids, n.ID); known && !altered {
				return nil
			}
			changed()
			return dp.PutNetwork(n.datapath(*ifindex))
		},
		undo: func() error {
			if known {
				return nil
			}
			return dp.DeleteNetwork(n.datapath(*ifindex))
		},
	},
		h.attachStep(dp, loader.FromBridge, at, changed),
		h.attachStep(dp, loader.ToBridge, at, changed),
	}
}

// check refuses what cannot be right whatever the state says.
func (r *NetworkRequest) check() error {
	what := quoted("network", r.Name)
	if err := checkName("network", r.Name); err != nil {
		return err
	}
	switch {
	case r.IPv6 || slices.ContainsFunc(r.Subnets, func(p netip.Prefix) bool { return p.Addr().Is6() }):
		return unsupported(what, "IPv6 networks are not yet supported")
	case len(r.Subnets) > 1:
		return invalid(what, "%d IPv4 subnets, a network has one", len(r.Subnets))
	case len(r.Gateways) > 1:
		return invalid(what, "%d gateways for one subnet", len(r.Gateways))
	case len(r.IPRanges) > 1:
		return invalid(what, "%d ranges for one subnet", len(r.IPRanges))
	case len(r.Subnets) == 0 && len(r.Gateways)+len(r.IPRanges)+len(r.Aux) > 0:
		return invalid(what, "a gateway, range or auxiliary address needs a subnet").hint("give --subnet too")
	case r.Mode != "" && r.Mode != ModeNAT && r.Mode != ModeRouted:
		return invalid(what, "unknown mode %q, want nat or routed", r.Mode)
	case r.Mode == ModeRouted && len(r.SNATAddrs) > 0:
		return invalid(what, "--snat-address contradicts --mode routed, which translates nothing")
	case !r.Masquerade && len(r.SNATAddrs) > 0:
		return invalid(what, "--snat-address contradicts --no-masquerade")
	case slices.ContainsFunc(r.SNATAddrs, netip.Addr.Is6):
		return unsupported(what, "IPv6 source addresses are not yet supported")
	case len(r.SNATAddrs) > 1:
		return invalid(what, "%d addresses to translate to, a network has one", len(r.SNATAddrs))
	case r.MTU != 0 && (r.MTU < 68 || r.MTU > 65535):
		return invalid(what, "mtu %d is not between 68 and 65535", r.MTU)
	}
	if r.Bridge != "" {
		if err := netdev.CheckName(r.Bridge); err != nil {
			return invalid(what, "bridge: %v", err)
		}
	}
	if len(r.Subnets) == 1 {
		return r.checkSubnet(what)
	}
	return nil
}

// checkSubnet leaves to ipam what belongs to a single pool.
func (r *NetworkRequest) checkSubnet(what string) error {
	c := ipam.Config{Subnet: r.Subnets[0], Reserved: r.Aux}
	if len(r.IPRanges) == 1 {
		c.Range = r.IPRanges[0]
	}
	if len(r.Gateways) == 1 {
		c.Gateway = r.Gateways[0]
	}
	if err := c.Validate(); err != nil {
		return invalid(what, "%v", err)
	}
	return nil
}

// planNetwork makes the record of a new network: its id, subnet, gateway and
// bridge.
func (h *Host) planNetwork(t *tx, r NetworkRequest) (*networkRecord, error) {
	what := quoted("network", r.Name)
	others, err := list[networkRecord](t, networksBucket)
	if err != nil {
		return nil, err
	}
	n := &networkRecord{
		Name: r.Name, Subnets: r.Subnets, IPRanges: r.IPRanges, Gateways: r.Gateways, Aux: r.Aux,
		Bridge: r.Bridge, MTU: r.MTU, Internal: r.Internal, ICC: r.ICC, Masquerade: r.Masquerade,
		Mode: r.Mode, Labels: r.Labels,
	}
	if n.Mode == "" {
		n.Mode = ModeNAT
	}
	if n.Mode == ModeRouted {
		n.Masquerade = false
	}
	for _, o := range others {
		if o.Name == n.Name {
			return nil, taken(what, o.Status)
		}
	}
	if n.SNAT, err = h.snatAddr(what, r.SNATAddrs); err != nil {
		return nil, err
	}
	h.say("get subnet and gateway from IPAM")
	if err := h.chooseSubnet(n, others); err != nil {
		return nil, err
	}
	h.say("return the network configuration: subnet %s gateway %s", n.Subnets[0], n.Gateways[0])
	if err := h.chooseBridge(n, others); err != nil {
		return nil, err
	}
	if n.MTU == 0 {
		if n.MTU, err = h.k.DefaultMTU(); err != nil {
			return nil, err
		}
	}
	id, ok, err := t.reserve(networkIDs, loader.MaxNetworks, n.Name)
	if err == nil && !ok {
		err = conflict(what, "there are %d networks, no more are possible", loader.MaxNetworks-1)
	}
	if n.ID = id; err != nil {
		return nil, err
	}
	_, err = t.pool(n)
	return n, err
}

// snatAddr returns the address to translate to, if one is asked for.
func (h *Host) snatAddr(what string, asked []netip.Addr) (netip.Addr, error) {
	if len(asked) == 0 {
		return netip.Addr{}, nil
	}
	own, err := h.owns(asked[0])
	if err == nil && (!own || asked[0].IsLoopback()) {
		err = invalid(what, "--snat-address %s is no address that this host has outside", asked[0]).
			hint("`ip address` lists the host's addresses; answers come to one of them only")
	}
	return asked[0], err
}

// owns reports whether the address is one of the host's.
func (h *Host) owns(ip netip.Addr) (bool, error) {
	addrs, err := h.k.HostAddrs()
	return slices.ContainsFunc(addrs, func(p netip.Prefix) bool { return p.Addr() == ip }), err
}

// taken is the error for a name that exists.
func taken(what string, s status) *Error {
	if s != applied {
		return conflict(what, "exists, half done by a command that was killed").hint("`ebnet up` undoes what it left")
	}
	return conflict(what, "exists already")
}

// chooseSubnet checks the subnet asked for against others and the host, or takes
// the first free default pool, and settles the gateway.
func (h *Host) chooseSubnet(n *networkRecord, others []*networkRecord) error {
	what := quoted("network", n.Name)
	if len(n.Subnets) == 0 {
		subnet, err := h.freeSubnet(others)
		if err != nil {
			return err
		}
		n.Subnets = []netip.Prefix{subnet}
	} else if err := h.checkOverlap(what, n.Subnets[0], others); err != nil {
		return err
	}
	if len(n.Gateways) > 0 {
		return nil
	}
	gw, err := defaultGateway(n)
	if err != nil {
		return invalid(what, "%v", err)
	}
	n.Gateways = []netip.Addr{gw}
	return nil
}

// defaultGateway is ipam's choice, or the next address that is not auxiliary.
func defaultGateway(n *networkRecord) (netip.Addr, error) {
	c := n.pool()
	gw, err := ipam.DefaultGateway(c.Subnet, c.Range)
	for ; err == nil && c.Subnet.Contains(gw); gw = gw.Next() {
		c.Gateway = gw
		if c.Validate() == nil {
			return gw, nil
		}
	}
	if err == nil {
		err = errors.New("every address is an auxiliary one, none is left for the gateway")
	}
	return netip.Addr{}, err
}

func (h *Host) freeSubnet(others []*networkRecord) (netip.Prefix, error) {
	used, err := h.k.HostPrefixes()
	if err != nil {
		return netip.Prefix{}, err
	}
	resolvers, err := h.k.Resolvers()
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, r := range resolvers {
		used = append(used, netip.PrefixFrom(r, r.BitLen()))
	}
	for _, o := range others {
		used = append(used, o.Subnets...)
	}
	return ipam.Subnets(ipam.DefaultPools(), used)
}

// checkOverlap refuses a subnet of another network, and one that would cut the
// host off from a network it is on. A route that merely leads there may be more
// general on purpose.
func (h *Host) checkOverlap(what string, subnet netip.Prefix, others []*networkRecord) error {
	for _, o := range others {
		if with, ok := ipam.Overlaps(subnet, o.Subnets); ok {
			return conflict(what, "subnet %s overlaps %s of network %q", subnet, with, o.Name)
		}
	}
	addrs, err := h.k.HostAddrs()
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if subnet.Overlaps(a.Masked()) {
			return conflict(what, "subnet %s overlaps %s, which the host itself is on", subnet, a).
				hint("choose another subnet, or none for the first free one")
		}
	}
	return nil
}

func (h *Host) chooseBridge(n *networkRecord, others []*networkRecord) error {
	what := quoted("network", n.Name)
	switch {
	case n.Bridge != "":
	case n.Name == DefaultNetwork:
		n.Bridge = "ebnet0"
	default:
		sum := fnv.New32a()
		_, _ = sum.Write([]byte(n.Name))
		n.Bridge = fmt.Sprintf("br-%08x", sum.Sum32())
	}
	for _, o := range others {
		if o.Bridge == n.Bridge {
			return conflict(what, "bridge %s belongs to network %q", n.Bridge, o.Name).hint("choose another with --bridge")
		}
	}
	l, err := h.k.LinkByName(n.Bridge)
	switch {
	case errors.Is(err, netdev.ErrNotFound):
		return nil
	case err != nil:
		return err
	case l.Alias == bridgeAlias(n.Name): // left behind; it becomes ours again
		return nil
	}
	e := conflict(what, "a device %s exists already", n.Bridge)
	if n.Name == DefaultNetwork {
		return e.hint("rename that device, or run `ebnet network create %s --bridge IFNAME` first", n.Name)
	}
	return e.hint("choose another with --bridge")
}

// gatewayPrefixes are the addresses of the bridge.
func (n *networkRecord) gatewayPrefixes() []netip.Prefix {
	ps := make([]netip.Prefix, len(n.Gateways))
	for i, g := range n.Gateways {
		ps[i] = netip.PrefixFrom(g, n.Subnets[i].Bits())
	}
	return ps
}

// Networks lists the networks by name.
func (h *Host) Networks() ([]NetworkInfo, error) {
	infos := []NetworkInfo{}
	err := h.state.view(func(t *tx) error {
		ns, err := list[networkRecord](t, networksBucket)
		if err != nil {
			return err
		}
		for _, n := range ns {
			info, err := t.networkInfo(n)
			if err != nil {
				return err
			}
			infos = append(infos, info)
		}
		return nil
	})
	if err != nil {
		return nil, explain(err)
	}
	return infos, nil
}

// Network shows one network. Returns ErrNotFound.
func (h *Host) Network(name string) (info NetworkInfo, err error) {
	err = h.state.view(func(t *tx) error {
		n, err := t.network(name)
		if err != nil {
			return err
		}
		info, err = t.networkInfo(n)
		return err
	})
	if err != nil {
		return NetworkInfo{}, explain(err)
	}
	return info, nil
}

func (t *tx) networkInfo(n *networkRecord) (NetworkInfo, error) {
	pool, err := t.pool(n)
	if err != nil {
		return NetworkInfo{}, err
	}
	use := AddressUse{Used: pool.Used(), Available: pool.Available()}
	return n.info(len(t.members(n.Name)), use), nil
}

func (n *networkRecord) info(endpoints int, use AddressUse) NetworkInfo {
	labels := map[string]string{}
	maps.Copy(labels, n.Labels)
	return NetworkInfo{
		Name:       n.Name,
		Subnets:    append([]netip.Prefix{}, n.Subnets...),
		Gateways:   append([]netip.Addr{}, n.Gateways...),
		IPRanges:   append([]netip.Prefix{}, n.IPRanges...),
		Bridge:     n.Bridge,
		MTU:        n.MTU,
		Internal:   n.Internal,
		ICC:        n.ICC,
		Masquerade: n.Masquerade,
		Mode:       n.Mode,
		SNAT:       addrText(n.SNAT),
		Labels:     labels,
		Endpoints:  endpoints,
		Addresses:  use,
	}
}

// addrText is "" for the zero Addr.
func addrText(ip netip.Addr) string {
	if !ip.IsValid() {
		return ""
	}
	return ip.String()
}

// RemoveNetwork removes a network; with force its endpoints first.
//
// Returns ErrNotFound, or ErrConflict without force while it has endpoints.
func (h *Host) RemoveNetwork(name string, force bool) error {
	what := quoted("network", name)
	dp, err := h.loaded()
	if err != nil {
		return explain(err)
	}
	steps, err := h.intent(func(t *tx) ([]step, error) {
		n, err := t.network(name)
		if err != nil {
			return nil, err
		}
		members := t.members(name)
		if len(members) > 0 && !force {
			shown := strings.Join(members[:min(3, len(members))], ", ")
			return nil, conflict(what, "endpoints are connected to it: %d (%s)", len(members), shown).
				hint("disconnect them first, or use --force")
		}
		h.say("remove %s", what)
		return h.removalSteps(t, dp, n, members)
	})
	if err != nil {
		return err
	}
	return h.apply(steps)
}

// removalSteps remove the endpoints, then the network.
func (h *Host) removalSteps(t *tx, dp datapath, n *networkRecord, members []string) ([]step, error) {
	var restores []func(*tx) error
	var steps []step
	var gone []*endpointRecord
	for _, name := range members {
		e, err := t.endpoint(name)
		if err != nil {
			return nil, err
		}
		restore, more, err := h.disconnectSteps(t, dp, n, e)
		if err != nil {
			return nil, err
		}
		gone, restores, steps = append(gone, e), append(restores, restore), append(steps, more...)
	}
	was := n.Status
	n.Status = removing
	if err := t.putNetwork(n); err != nil {
		return nil, err
	}
	restores = append(restores, func(t *tx) error {
		n.Status = was
		return t.putNetwork(n)
	})
	steps = append([]step{h.restoreStep(restores...)}, steps...)
	if dp != nil {
		steps = append(append([]step{h.unreserveStep()}, steps...), h.reserveStep())
		steps = append(steps, h.withAddrs(dp, h.unbridgeSteps(dp, n)...)...)
	}
	steps = append(steps, h.commit("done", func(t *tx) error {
		for _, e := range gone {
			if err := t.deleteEndpoint(e); err != nil {
				return err
			}
		}
		return t.deleteNetwork(n)
	}))
	return steps, nil
}

// unbridgeSteps take back what bridgeSteps did.
func (h *Host) unbridgeSteps(dp datapath, n *networkRecord) []step {
	var bridge netdev.Link
	var there bool
	unhook := func(hook loader.Hook) step {
		return step{
			do: func() error {
				if !there {
					return nil
				}
				return h.detach(dp, hook, bridge.Index)
			},
			undo: func() error {
				if !there {
					return nil
				}
				_, err := h.attach(dp, hook, bridge.Index)
				return err
			},
			partial: true,
		}
	}
	return []step{
		{do: func() (err error) {
			bridge, there, err = h.ownLink(n.Bridge, bridgeAlias(n.Name))
			return err
		}},
		{
			text: "remove the network",
			do:   func() error { return dp.DeleteNetwork(n.datapath(bridge.Index)) },
			undo: func() error { return dp.PutNetwork(n.datapath(bridge.Index)) },

			partial: true,
		},
		unhook(loader.FromBridge),
		unhook(loader.ToBridge),
		{
			text: "remove the device: bridge " + n.Bridge,
			do: func() error {
				if !there {
					return nil
				}
				return h.deleteLink(bridge.Index)
			},
			undo: func() error {
				if !there {
					return nil
				}
				var err error
				bridge.Index, _, err = h.k.EnsureBridge(n.bridge())
				return err
			},
		},
		{do: func() error {
			if there {
				_ = dp.ForgetDrops(bridge.Index) // a counter more is no harm
			}
			return nil
		}},
	}
}

// bridge is the network's device.
func (n *networkRecord) bridge() netdev.Bridge {
	return netdev.Bridge{Name: n.Bridge, Network: n.Name, MAC: n.bridgeMAC(), MTU: n.MTU, Addrs: n.gatewayPrefixes()}
}

// PruneNetworks removes the networks without endpoints, except the default one,
// and returns their names, also those removed before an error.
func (h *Host) PruneNetworks() ([]string, error) {
	infos, err := h.Networks()
	if err != nil {
		return nil, err
	}
	removed := []string{}
	for _, n := range infos {
		if n.Endpoints > 0 || n.Name == DefaultNetwork {
			continue
		}
		if err := h.RemoveNetwork(n.Name, false); err != nil {
			return removed, err
		}
		removed = append(removed, n.Name)
	}
	return removed, nil
}
