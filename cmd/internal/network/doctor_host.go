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

// The checks that compare what is recorded with the host's devices, addresses and ports.

func (x *examination) uplinks() error {
	const blind = "packets pass it unseen: no masquerade, no published ports, no guard of container addresses"
	hooked, err := x.dp.Uplinks()
	if err != nil {
		return err
	}
	for _, i := range hooked {
		l, there := x.link(i)
		if !there {
			x.find("uplink "+l.Name, "the device is gone, or is another one now", ebnetUp)
			continue
		}
		for _, hook := range []loader.Hook{loader.FromUplink, loader.ToUplink} {
			if err := x.hook(hook, i, "uplink "+l.Name, blind); err != nil {
				return err
			}
		}
	}
	for _, name := range x.host.Uplinks {
		if !slices.ContainsFunc(x.links, func(l netdev.Link) bool { return l.Name == name }) {
			x.find("uplink "+name, "named to `ebnet up`, but there is no such device", "ebnet up --uplink DEV, with those that there are")
		}
	}
	return x.unhooked(hooked)
}

// unhooked finds devices that the next Up would hook.
func (x *examination) unhooked(hooked []int) error {
	wanted, err := x.h.k.DetectUplinks()
	if err != nil {
		return err
	}
	if len(x.host.Uplinks) > 0 {
		wanted = slices.DeleteFunc(wanted, func(l netdev.Uplink) bool { return !slices.Contains(x.host.Uplinks, l.Name) })
	}
	sides, err := x.h.k.DetectSides()
	if err != nil {
		return err
	}
	own := func(l netdev.Uplink) bool {
		return slices.ContainsFunc(x.nets, func(n *networkRecord) bool { return n.Bridge == l.Name })
	}
	for _, l := range append(wanted, sides...) {
		if l.Ethernet && !own(l) && !slices.Contains(hooked, l.Ifindex) && len(hooked) < maxDevices {
			x.find("device "+l.Name, "it leads outside or to another engine's containers, and came after the last `ebnet up`: "+
				"nothing that goes by it is translated", ebnetUp)
		}
	}
	return nil
}

func (x *examination) bridges() error {
	ids, err := x.dp.Networks()
	if err != nil {
		return err
	}
	for _, n := range x.nets {
		if n.Status != applied {
			continue // check incomplete tells
		}
		what := fmt.Sprintf("network %q, bridge %s", n.Name, n.Bridge)
		l, ours := x.own[bridgeAlias(n.Name)]
		if !ours || l.Name != n.Bridge {
			x.find(what, "the bridge is gone: its endpoints reach nothing but by established conversations", ebnetUp)
			continue
		}
		if !slices.Contains(ids, n.ID) {
			x.find(what, "the datapath does not know it: all that its endpoints send is dropped", ebnetUp)
		}
		wrong, err := x.h.k.CheckBridge(n.bridge())
		if err != nil {
			return err
		}
		for _, w := range wrong {
			x.find(what+": "+w, bridgeHarm(w), ebnetUp)
		}
		for _, hook := range []loader.Hook{loader.FromBridge, loader.ToBridge} {
			if err := x.hook(hook, l.Index, what, "the host and others reach into the network, and its endpoints out, unguarded"); err != nil {
				return err
			}
		}
	}
	return nil
}

// bridgeHarm says what a deviation of a bridge leads to.
func bridgeHarm(wrong string) string {
	switch {
	case strings.Contains(wrong, "forwarding"):
		return "the kernel answers no route to endpoints: none of them gets out. Writing net.ipv4.ip_forward resets it on all devices"
	case strings.Contains(wrong, "rp_filter"):
		return "the host drops what endpoints send it where the way back differs"
	case strings.Contains(wrong, "route"):
		return "the host does not reach the endpoints, and packets for them do not go in by way of the bridge"
	case strings.Contains(wrong, "address"):
		return "it is what endpoints know as their gateway"
	}
	return "it is not as ebnet made it"
}

func (x *examination) endpoints() error {
	known, err := x.dp.Endpoints()
	if err != nil {
		return err
	}
	bySlot := map[uint32]loader.Endpoint{}
	for _, e := range known {
		bySlot[e.Slot] = e
	}
	recorded := map[uint32]bool{}
	for _, e := range x.ends {
		recorded[e.Slot] = true
		if e.Status != applied {
			continue // check incomplete tells
		}
		l, there := x.own[e.alias()]
		if !there || l.Name != e.HostIfName {
			x.unlinked(e)
			continue
		}
		if err := x.linked(e, l, bySlot[e.Slot]); err != nil {
			return err
		}
	}
	for slot, e := range bySlot {
		if !recorded[slot] {
			x.find(fmt.Sprintf("endpoint of address %v in the datapath", e.Addrs), "no such endpoint is recorded", ebnetUp+" (removes it)")
		}
	}
	return nil
}

// unlinked reports an endpoint whose device is gone.
func (x *examination) unlinked(e *endpointRecord) {
	what := quoted("endpoint", e.Name)
	ns, err := x.h.k.OpenNS(e.NSPath)
	if err != nil && e.Transient {
		x.find(what, "the `ebnet run` that made it was killed, and what ran in it has ended", ebnetUp+" (removes it)")
		return
	}
	if err != nil {
		x.find(what, fmt.Sprintf("its network namespace %s is gone; its address and its ports stay taken", e.NSPath), "ebnet disconnect "+e.Name)
		return
	}
	defer x.h.k.CloseNS(ns)
	if own, err := x.h.isOwn(e, ns); err != nil || !own {
		x.find(what, fmt.Sprintf("%s is another network namespace than the one it was connected to, which is gone", e.NSPath),
			fmt.Sprintf("ebnet disconnect %s, and connect the new one", e.Name))
		return
	}
	x.find(what+", device "+e.HostIfName, "the link is gone: it reaches nothing", ebnetUp)
}

// linked looks at an endpoint with a device, which the datapath knows as have.
func (x *examination) linked(e *endpointRecord, l netdev.Link, have loader.Endpoint) error {
	what := fmt.Sprintf("endpoint %q, device %s", e.Name, l.Name)
	if have.Ifindex != l.Index || !slices.Contains(have.Addrs, e.IP) {
		x.find(what, "the datapath does not know it: all that it sends is dropped", ebnetUp)
	}
	return x.hook(loader.FromContainer, l.Index, what, "what it sends is neither checked nor translated: it can forge addresses, and gets out nowhere")
}

// pairs compares the endpoints' devices, at both ends, with what they were made as.
func (x *examination) pairs() error {
	var there []*endpointRecord
	var veths []netdev.Veth
	networks := map[string]*networkRecord{}
	for _, n := range x.nets {
		networks[n.Name] = n
	}
	for _, e := range x.ends {
		n, l := networks[e.Network], x.own[e.alias()]
		if e.Status != applied || n == nil || l.Index == 0 || x.own[bridgeAlias(n.Name)].Index == 0 {
			continue // other checks tell
		}
		ns, err := x.h.openSame(e)
		switch {
		case err == nil:
			defer x.h.k.CloseNS(ns)
		case !errors.Is(err, netdev.ErrNotFound):
			return err
		}
		there, veths = append(there, e), append(veths, e.veth(n, x.own[bridgeAlias(n.Name)].Index, ns))
	}
	reports, err := x.h.k.CheckVeths(veths)
	for i, r := range reports {
		if r.Unseen {
			return fmt.Errorf("look into the namespace of endpoint %q: %w", there[i].Name, netdev.ErrPermission)
		}
		what := fmt.Sprintf("endpoint %q, device %s", there[i].Name, x.own[there[i].alias()].Name)
		for _, w := range r.Wrong {
			x.find(what, w, ebnetUp)
		}
		switch {
		case r.Lost:
			x.find(what, "the container's end has left its namespace: it reaches nothing", ebnetUp)
		case r.Err != nil:
			x.find(what, "it could not be looked at: "+oneLine(r.Err), "see why, and run `ebnet doctor` again")
		}
	}
	return err
}

// maps compares what the maps say with what is recorded. Where something is half done they do not, and
// where another check has found what is wrong they say the same.
func (x *examination) maps() error {
	if x.halfDone() {
		return nil
	}
	want, err := x.contents()
	if err != nil {
		return err
	}
	wrong, err := x.dp.Compare(want)
	for _, d := range wrong {
		told := func(f Finding) bool { return slices.Contains(toldBy[d.Map], f.Check) }
		if !slices.ContainsFunc(x.findings, told) {
			x.find("map "+d.String(), mapHarm(d), ebnetUp)
		}
	}
	return err
}

// toldBy are the checks that tell in other words what is wrong with a map.
var toldBy = map[string][]string{
	"networks": {"bridges"}, "subnets": {"bridges"}, "inner": {"bridges"},
	"endpoints": {"endpoints"}, "devices": {"endpoints"}, "nears": {"endpoints"},
	"locals":   {"bridges"},
	"services": {"endpoints", "ports"}, "sources": {"endpoints", "ports"}, "ports": {"endpoints", "ports"},
	"uplinks": {"uplinks"}, "near_uplinks": {"uplinks"},
}

func (x *examination) halfDone() bool {
	port := func(p *portRecord) bool { return p.Status != applied }
	return slices.ContainsFunc(x.nets, func(n *networkRecord) bool { return n.Status != applied }) ||
		slices.ContainsFunc(x.ends, func(e *endpointRecord) bool {
			return e.Status != applied || slices.ContainsFunc(x.all[e.Name], port)
		})
}

// mapHarm says what a deviation of a map leads to.
func mapHarm(d loader.Deviation) string {
	if d.Map == "locals" {
		return "the host's addresses have changed since: its own processes may not reach published ports by them"
	}
	if d.Foreign > 0 {
		return "it lets through, or leads elsewhere, what is not recorded"
	}
	return "packets are dropped or go astray that should not"
}

// contents is what the maps are to say. Of an endpoint whose device is gone they may still say what they said.
func (x *examination) contents() (want loader.Contents, err error) {
	if want.SourcePorts, err = x.h.sourcePorts(); err != nil {
		return want, err
	}
	if want.Uplinks, err = x.knownUplinks(); err != nil {
		return want, err
	}
	if want.Local, want.Broadcast, err = x.h.localAddrs(); err != nil {
		return want, err
	}
	networks := map[string]*networkRecord{}
	for _, n := range x.nets {
		networks[n.Name] = n
		want.Networks = append(want.Networks, n.datapath(x.own[bridgeAlias(n.Name)].Index))
	}
	known, err := x.dp.Endpoints()
	for _, recorded := range x.ends {
		e, n := *recorded, networks[recorded.Network]
		l, there := x.own[e.alias()]
		there = there || slices.ContainsFunc(known, func(k loader.Endpoint) bool { return k.Slot == e.Slot })
		if n == nil || !there {
			continue
		}
		if l.Index != 0 {
			e.Ifindex = l.Index
		}
		want.Endpoints = append(want.Endpoints, e.datapath(n.ID))
		want.Publications = append(want.Publications, publications(n, &e, x.all[e.Name])...)
	}
	return want, err
}

// knownUplinks are those that the datapath knows, as they are now. Check uplinks tells of others.
func (x *examination) knownUplinks() (all []loader.Uplink, _ error) {
	hooked, err := x.dp.Uplinks()
	if err != nil {
		return nil, err
	}
	for _, i := range hooked {
		l, there := x.link(i)
		if !there {
			continue
		}
		up, err := x.h.k.UplinkByName(l.Name)
		if err != nil {
			return nil, err
		}
		all = append(all, uplinkOf(up, slices.Contains(x.host.Sides, l.Name)))
	}
	return all, nil
}

// ports compares how many ports are open with how many should be.
func (x *examination) ports() error {
	have, err := x.dp.PublishedCount()
	if err != nil {
		return err
	}
	live, all := 0, 0
	x.eachPort(func(e *endpointRecord, p *portRecord) {
		all += p.Count
		if _, there := x.own[e.alias()]; there {
			live += p.Count
		}
	})
	switch {
	case have < live:
		x.find("published ports", fmt.Sprintf("only %d of %d are open", have, live), ebnetUp)
	case have > all:
		x.find("published ports", fmt.Sprintf("%d are open that are not recorded", have-all), ebnetUp+" (closes them)")
	}
	return x.reserved()
}

// reserved looks for published ports that the kernel may give to a client of the host.
func (x *examination) reserved() error {
	ephemeral, err := x.h.k.LocalPortRange()
	if err != nil {
		return err
	}
	now, err := x.h.k.LocalReservedPorts()
	if err != nil {
		return err
	}
	return x.h.state.view(func(t *tx) error {
		want, err := t.publishedIn(ephemeral)
		if err != nil {
			return err
		}
		for _, r := range rangesOf(without(want, setOfRanges(now))) {
			x.find(fmt.Sprintf("port %s: published and not in net.ipv4.ip_local_reserved_ports", rangeString(r.First, r.Last)),
				"the kernel may give it to a client of the host, whose answers then go to the endpoint", ebnetUp)
		}
		return nil
	})
}

// addresses looks for addresses that the host had when they were asked for.
func (x *examination) addresses() error {
	addrs, err := x.h.k.HostAddrs()
	if err != nil {
		return err
	}
	lost := func(ip netip.Addr) bool {
		return ip.IsValid() && !ip.IsLoopback() && !slices.ContainsFunc(addrs, func(p netip.Prefix) bool { return p.Addr() == ip })
	}
	for _, n := range x.nets {
		if lost(n.SNAT) {
			x.find(fmt.Sprintf("network %q: --snat-address %s", n.Name, n.SNAT), "the host does not have that address now: what leaves gets no answer",
				fmt.Sprintf("ip address add %s/32 dev DEV", n.SNAT))
		}
	}
	x.eachPort(func(e *endpointRecord, p *portRecord) {
		if !p.Direct && lost(p.HostIP) {
			x.find(portText(e, p), "the host does not have that address now: nobody reaches the port",
				fmt.Sprintf("ip address add %s/32 dev DEV, or ebnet unexpose %s %s", p.HostIP, e.Name, specOf(p)))
		}
	})
	return nil
}

// specOf is the publication as `ebnet unexpose` takes it.
func specOf(p *portRecord) string {
	text := fmt.Sprintf("%s:%s/%s", rangeString(p.HostPort, p.hostEnd()), rangeString(p.Port, p.end()), protocolName(p.Protocol))
	if p.HostIP.IsValid() && !p.Direct {
		text = p.HostIP.String() + ":" + text
	}
	return text
}

// holders looks for processes of the host on published ports, in one look for each
// protocol and address.
func (x *examination) holders() error {
	spans := map[spanKey]netdev.PortRange{}
	x.eachPort(func(_ *endpointRecord, p *portRecord) {
		if p.Direct {
			return
		}
		k := spanKey{p.Protocol, p.HostIP}
		r, had := spans[k]
		if !had {
			r = netdev.PortRange{First: p.HostPort, Last: p.hostEnd()}
		}
		spans[k] = netdev.PortRange{First: min(r.First, p.HostPort), Last: max(r.Last, p.hostEnd())}
	})
	held := map[spanKey][]netdev.Holder{}
	for k, r := range spans {
		addr := k.host
		if !addr.IsValid() {
			addr = netip.IPv4Unspecified()
		}
		var err error
		if held[k], err = x.h.k.PortHolders(k.proto, addr, r.First, r.Last); err != nil {
			return err
		}
	}
	x.eachPort(func(e *endpointRecord, p *portRecord) {
		if p.Direct {
			return
		}
		for _, h := range held[spanKey{p.Protocol, p.HostIP}] {
			if p.HostPort <= h.Port && h.Port <= p.hostEnd() {
				x.find(portText(e, p), fmt.Sprintf("%s has port %d too: clients get the endpoint, never that process", holderText(h), h.Port),
					fmt.Sprintf("stop that process, or ebnet unexpose %s %s", e.Name, specOf(p)))
			}
		}
	})
	return nil
}

// otherNAT looks for rules that lead a published port elsewhere. Programs see packets
// before rules do, so it is the rules that have no effect.
func (x *examination) otherNAT() error {
	rules, err := x.h.k.DNATs()
	if err != nil {
		return err
	}
	addrs, err := x.h.k.HostAddrs()
	if err != nil {
		return err
	}
	x.eachPort(func(e *endpointRecord, p *portRecord) {
		for _, r := range rules {
			if !p.Direct && p.meets(r, addrs) {
				x.find(portText(e, p), fmt.Sprintf("a rule of table %s, chain %s leads port %s elsewhere: "+
					"ebnet gets the packets first, and what that rule leads to is not reached", r.Table, r.Chain, rangeString(r.Ports.First, r.Ports.Last)),
					fmt.Sprintf("remove that rule, or ebnet unexpose %s %s", e.Name, specOf(p)))
			}
		}
	})
	return nil
}

// meets reports whether a rule is about the port, on a host with these addresses.
func (p *portRecord) meets(r netdev.DNAT, addrs []netip.Prefix) bool {
	if r.Protocol != 0 && r.Protocol != uint8(p.Protocol) || r.Ports.First > p.hostEnd() || r.Ports.Last < p.HostPort {
		return false
	}
	switch {
	case !r.Addr.IsValid():
		return true
	case p.HostIP.IsValid():
		return p.HostIP == r.Addr
	}
	return slices.ContainsFunc(addrs, func(a netip.Prefix) bool { return a.Addr() == r.Addr })
}
