package network

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ebnet/ebnet/loader"
	"github.com/ebnet/ebnet/loader/netdev"
)

// Up loads the datapath or replaces it in place, and makes the kernel what the
// state says: hooks the uplinks, creates the default network if there is none,
// brings back networks, endpoints and ports, and removes what is ours but not
// recorded. Where all that is so already it touches nothing.
//
// An endpoint whose namespace is gone stays recorded and is reported as such.
//
// A datapath of another layout (loader.Handover) stays in charge until everything is ready.
//
// Returns ErrNotFound for an unknown uplink, ErrInvalid, ErrUnsupported,
// ErrConflict (MaxFlows of a loaded datapath, a device in the way, a datapath of another version
// whose conversations would end, without Yes).
func (h *Host) Up(r UpRequest) (UpReport, error) {
	if r.MaxFlows < 0 {
		return UpReport{}, invalid("--max-flows", "%d is not at least 1", r.MaxFlows)
	}
	other, err := h.succeeds(r.Yes)
	if err != nil {
		return UpReport{}, explain(err)
	}
	if err := h.checkMaxFlows(r.MaxFlows); err != nil {
		return UpReport{}, err
	}
	u := &bringUp{h: h, fresh: h.dp == nil, other: other, report: UpReport{Uplinks: []string{}, Gone: []string{}, Warnings: []string{}}}
	if err := u.findUplinks(r); err != nil {
		return UpReport{}, explain(err)
	}
	if err := u.findSides(); err != nil {
		return UpReport{}, explain(err)
	}
	if err := u.findCgroup(); err != nil {
		return UpReport{}, explain(err)
	}
	if err := u.record(r); err != nil {
		return UpReport{}, err
	}
	w := &work{h: h}
	if err := u.apply(w); err != nil {
		return UpReport{}, err
	}
	if err := u.renewDefault(); err != nil {
		return UpReport{}, err
	}
	if r.File != nil {
		changed, err := h.applyConfig(r.File, r.Prune)
		if err != nil {
			return UpReport{}, err
		}
		u.report.Changed = u.report.Changed || changed
		if err := u.count(); err != nil {
			return UpReport{}, explain(err)
		}
	}
	return u.report, nil
}

// succeeds reports whether a datapath of another version is loaded. That this one's ends
// conversations of it has to be agreed to.
func (h *Host) succeeds(yes bool) (bool, error) {
	_, err := h.loaded()
	if !errors.Is(err, loader.ErrOtherVersion) || errors.Is(err, ErrConflict) {
		return false, err
	}
	o, err := h.k.FindHandover(h.o.BPFFS)
	if err != nil {
		return false, err
	}
	if o.Cut == 0 || yes {
		return true, nil
	}
	return false, conflict("datapath", "another version of ebnet loaded it (layout %d), and this one cannot read its maps %s: "+
		"%d conversations would be cut", o.ABI, strings.Join(o.Lost, ", "), o.Cut).
		hint("`ebnet up --yes` replaces it all the same; the version that loaded it goes on")
}

// checkMaxFlows refuses another size of the flow table than a loaded datapath has, before it is
// recorded: what a command that was killed leaves must not be what every later Up fails for.
func (h *Host) checkMaxFlows(asked int) error {
	if h.dp == nil || asked == 0 {
		return nil
	}
	if has := h.dp.Config().MaxFlows; asked != has {
		return conflict("--max-flows", "the flow table holds %d conversations and cannot be resized while it is in use", has).
			hint("`ebnet down` removes the datapath, `ebnet up` loads it again")
	}
	return nil
}

// bringUp is one Up at work.
type bringUp struct {
	h       *Host
	fresh   bool // nothing was loaded before
	other   bool // another version's datapath is loaded
	was     hostRecord
	host    hostRecord
	own     []string       // the bridges of what is recorded
	created *networkRecord // the default network, if it was not recorded
	uplinks []netdev.Uplink
	sides   []netdev.Uplink // not outside, but hooked as uplinks are

	networks  []*networkRecord
	endpoints []*endpointRecord
	ports     map[string][]*portRecord // by endpoint
	left      leftovers

	have    map[uint32]loader.Endpoint // in the datapath, by slot
	bridges map[string]*int            // their indices, by network
	links   map[string]netdev.Link     // ours, by alias
	lost    map[string]bool            // endpoints that have half a pair
	gone    map[string]bool            // endpoints without a namespace
	ended   map[string]bool            // transient ones of them
	moved   map[string]bool            // endpoints whose record has to be written
	report  UpReport
}

// leftovers are the records of commands that were killed.
type leftovers struct {
	networks  []*networkRecord
	endpoints []*endpointRecord
	ports     []*portRecord
}

func (l *leftovers) none() bool { return len(l.networks)+len(l.endpoints)+len(l.ports) == 0 }

func (u *bringUp) changed() { u.report.Changed = true }

func (u *bringUp) warn(format string, args ...any) {
	u.report.Warnings = append(u.report.Warnings, fmt.Sprintf(format, args...))
}

// findUplinks settles which devices lead outside: those named, else those named
// to an earlier Up, else what looks like one.
func (u *bringUp) findUplinks(r UpRequest) error {
	err := u.h.state.view(func(t *tx) (err error) {
		if u.was, err = t.host(); err != nil {
			return err
		}
		networks, err := list[networkRecord](t, networksBucket)
		for _, n := range networks {
			u.own = append(u.own, n.Bridge)
		}
		return err
	})
	if err != nil {
		return err
	}
	u.host = u.was
	ns, err := u.h.k.CurrentNS()
	if err != nil {
		return err
	}
	u.host.NSDev, u.host.NSInode = ns.Dev, ns.Inode
	u.h.k.CloseNS(ns)
	switch {
	case len(r.Uplinks) > 0:
		u.host.Uplinks = slices.Compact(slices.Sorted(slices.Values(r.Uplinks)))
		for _, name := range u.host.Uplinks {
			l, err := u.h.k.UplinkByName(name)
			if err != nil {
				return err
			}
			if !l.Ethernet {
				return unsupported("uplink "+name, "it is no Ethernet device")
			}
			u.uplinks = append(u.uplinks, l)
		}
	case len(u.was.Uplinks) > 0:
		for _, name := range u.was.Uplinks {
			l, err := u.h.k.UplinkByName(name)
			if err != nil || !l.Ethernet {
				u.warn("uplink %s: passed over: there is no such Ethernet device now", name)
				continue
			}
			u.uplinks = append(u.uplinks, l)
		}
	default:
		if err := u.detect(); err != nil {
			return err
		}
	}
	if len(u.uplinks) == 0 {
		u.warn("no uplink found: endpoints reach the host and each other only; name one with --uplink")
	}
	for _, l := range u.uplinks {
		u.report.Uplinks = append(u.report.Uplinks, l.Name)
	}
	return nil
}

func (u *bringUp) detect() error {
	found, err := u.h.k.DetectUplinks()
	if err != nil {
		return err
	}
	for _, l := range found {
		if slices.Contains(u.own, l.Name) {
			continue // somebody has changed its alias
		}
		if !l.Ethernet {
			u.warn("device %s: passed over: it is no Ethernet device", l.Name)
			continue
		}
		u.uplinks = append(u.uplinks, l)
	}
	return nil
}

// maxDevices is how many uplinks and bridges of others the datapath serves.
const maxDevices = 64

// findSides finds the bridges of other container engines on this host: their
// containers are to reach published ports.
func (u *bringUp) findSides() error {
	found, err := u.h.k.DetectSides()
	if err != nil {
		return err
	}
	u.host.Sides = nil
	for i, l := range found {
		named := slices.ContainsFunc(u.uplinks, func(o netdev.Uplink) bool { return o.Ifindex == l.Ifindex })
		if named || !l.Ethernet || slices.Contains(u.own, l.Name) {
			continue
		}
		if len(u.uplinks)+len(u.sides) == maxDevices {
			u.warn("%d bridges of others are passed over: their containers do not reach published ports", len(found)-i)
			break
		}
		u.sides = append(u.sides, l)
		u.host.Sides = append(u.host.Sides, l.Name)
	}
	return nil
}

// hooks reports whether the device is one of those that packets come in by.
func (u *bringUp) hooks(ifindex int) bool {
	is := func(l netdev.Uplink) bool { return l.Ifindex == ifindex }
	return slices.ContainsFunc(u.uplinks, is) || slices.ContainsFunc(u.sides, is)
}

// record writes the options and the default network down, and reads everything
// recorded.
func (u *bringUp) record(r UpRequest) error {
	if r.FastPath != nil {
		u.host.FastPath = *r.FastPath
	}
	if r.MaxFlows != 0 {
		u.host.MaxFlows = r.MaxFlows
	}
	u.host.setTimeouts(r.Timeouts)
	_, err := u.h.intent(func(t *tx) ([]step, error) {
		if err := u.recordDefault(t); err != nil {
			return nil, err
		}
		if err := u.read(t); err != nil {
			return nil, err
		}
		if u.created == nil && u.host.equal(u.was) && !u.h.state.unnamed {
			return nil, errUnchanged
		}
		u.changed()
		return nil, t.putHost(u.host)
	})
	return err
}

// checkSNAT warns of networks that translate to what the host has no more.
func (u *bringUp) checkSNAT() error {
	for _, n := range u.networks {
		if !n.SNAT.IsValid() {
			continue
		}
		own, err := u.h.owns(n.SNAT)
		if err != nil {
			return err
		}
		if !own {
			u.warn("network %q: its --snat-address %s is no address of this host now", n.Name, n.SNAT)
		}
	}
	return nil
}

func (h hostRecord) equal(o hostRecord) bool {
	return h.Secret == o.Secret && h.FastPath == o.FastPath && h.MaxFlows == o.MaxFlows &&
		slices.Equal(h.Uplinks, o.Uplinks) && slices.Equal(h.Sides, o.Sides) && h.Cgroup == o.Cgroup && maps.Equal(h.Timeouts, o.Timeouts) && h.NSDev == o.NSDev && h.NSInode == o.NSInode
}

func (u *bringUp) recordDefault(t *tx) error {
	n, err := get[networkRecord](t, networksBucket, []byte(DefaultNetwork))
	if err != nil || n != nil {
		return err
	}
	u.h.say("create %s", quoted("network", DefaultNetwork))
	n, err = u.h.planNetwork(t, defaultNetwork)
	if err != nil {
		return err
	}
	u.created = n
	return t.putNetwork(n)
}

// renewDefault creates the default network if the one recorded was left behind.
func (u *bringUp) renewDefault() error {
	left := func(n *networkRecord) bool { return n.Name == DefaultNetwork }
	if u.h.o.DryRun || !slices.ContainsFunc(u.left.networks, left) {
		return nil
	}
	if _, err := u.h.CreateNetwork(defaultNetwork); err != nil {
		return err
	}
	u.report.Networks++
	return nil
}

var defaultNetwork = NetworkRequest{Name: DefaultNetwork, ICC: true, Masquerade: true}

// read sorts the records into those to apply and those left behind. What belongs
// to something left behind is left behind too.
func (u *bringUp) read(t *tx) error {
	networks, err := list[networkRecord](t, networksBucket)
	if err != nil {
		return err
	}
	live := map[string]bool{}
	for _, n := range networks {
		if live[n.Name] = n.Status == applied; live[n.Name] {
			u.networks = append(u.networks, n)
		} else {
			u.left.networks = append(u.left.networks, n)
		}
	}
	endpoints, err := list[endpointRecord](t, endpointsBucket)
	if err != nil {
		return err
	}
	u.ports = map[string][]*portRecord{}
	for _, e := range endpoints {
		ports, err := t.portsOf(e.Name)
		if err != nil {
			return err
		}
		if e.Status != applied || !live[e.Network] {
			u.left.endpoints = append(u.left.endpoints, e)
			u.left.ports = append(u.left.ports, ports...)
			continue
		}
		u.endpoints = append(u.endpoints, e)
		for _, p := range ports {
			if p.Status != applied {
				u.left.ports = append(u.left.ports, p)
			} else {
				u.ports[e.Name] = append(u.ports[e.Name], p)
			}
		}
	}
	return nil
}

// apply makes the kernel what was read.
func (u *bringUp) apply(w *work) error {
	u.bridges, u.lost, u.gone, u.ended, u.moved = map[string]*int{}, map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]bool{}
	if err := w.do(step{undo: u.forget}, u.loadStep()); err != nil {
		return err
	}
	steps := []step{u.sourcePortStep(), {do: u.checkSNAT}}
	steps = append(steps, u.tidySteps()...)
	for _, l := range u.uplinks {
		steps = append(steps, u.uplinkSteps("hook the uplink "+l.Name, l, false)...)
	}
	for _, l := range u.sides {
		steps = append(steps, u.uplinkSteps("hook the bridge "+l.Name+" of others", l, true)...)
	}
	networks := map[string]*networkRecord{}
	var bridges []step
	for _, n := range u.networks {
		networks[n.Name], u.bridges[n.Name] = n, new(int)
		bridges = append(bridges, u.h.bridgeSteps(u.h.dp, n, u.bridges[n.Name], u.changed)...)
	}
	if u.fresh {
		bridges = append(bridges, u.h.addrStep(u.h.dp)) // else it is compared with the rest
	}
	steps = append(steps, step{undo: func() error { return u.h.tellAddrs(u.h.dp) }})
	steps = append(steps, bridges...)
	steps = append(steps, step{do: func() error { return u.repairLinks(networks) }})
	for _, e := range u.endpoints {
		steps = append(steps, u.endpointSteps(networks[e.Network], e)...)
	}
	steps = append(steps, u.contentsStep(networks), u.socketStep(), step{do: u.tidyAttachments}, u.settleStep(), step{do: u.reservePorts})
	if err := w.do(steps...); err != nil {
		return err
	}
	if err := u.swap(w); err != nil {
		return err
	}
	u.report.Networks, u.report.Endpoints = len(u.networks), len(u.endpoints)
	for _, ports := range u.ports {
		for _, p := range ports {
			u.report.Ports += p.Count
		}
	}
	u.h.say("done")
	return nil
}

// swap puts a datapath that replaces another version's in charge. What fails before that is undone; after it
// there is no way back, and the next Up goes on.
func (u *bringUp) swap(w *work) error {
	h := u.h
	if h.o.DryRun || !h.dp.Staged() {
		return nil
	}
	h.say("swap the programs")
	err := h.dp.Swap()
	if err != nil && h.dp.Staged() {
		return w.undo(explain(err))
	}
	if err == nil {
		err = h.renewFilters(h.dp)
	}
	if err != nil {
		return explain(err).hint("`ebnet up` goes on with it")
	}
	return nil
}

// forget undoes record.
func (u *bringUp) forget() error {
	if u.created == nil && u.host.equal(u.was) {
		return nil
	}
	return u.h.state.change(true, func(t *tx) error {
		if u.created != nil {
			if err := t.deleteNetwork(u.created); err != nil {
				return err
			}
		}
		return t.putHost(u.was)
	})
}

// loadStep loads the programs. Undoing it brings the former configuration back,
// not former programs: these are better replaced than kept.
func (u *bringUp) loadStep() step {
	h := u.h
	var before loader.Config
	if !u.fresh {
		before = h.dp.Config()
	}
	undo := func() error {
		switch {
		case !u.fresh:
			return u.load(before)
		case u.other && h.dp == nil:
			return nil
		case u.other:
			err := h.dp.Abandon()
			h.dp = nil
			return err
		}
		if h.dp != nil {
			_ = h.dp.Close()
			h.dp = nil
		}
		return h.k.Remove(h.o.BPFFS)
	}
	return step{
		text: "load the datapath",
		do: func() error {
			err := u.load(loader.Config{
				FastPath: u.host.FastPath, MaxFlows: u.host.MaxFlows, Secret: u.host.Secret,
				Timeouts: u.host.timeouts(), DisableTCX: h.o.DisableTCX,
			})
			if err != nil {
				_ = undo() // the error to report is the first one
			}
			return err
		},
		undo: undo,
	}
}

// load loads the programs, and brings them where others were replaced.
func (u *bringUp) load(cfg loader.Config) error {
	h := u.h
	dp, changed, err := h.k.Load(h.o.BPFFS, cfg)
	if err != nil {
		return err
	}
	if h.dp != nil {
		_ = h.dp.Close()
	}
	h.dp = dp
	if !changed {
		return nil
	}
	u.changed()
	if dp.Staged() {
		return nil // swap does it
	}
	return h.renewFilters(dp)
}

// sourcePortStep says which ports translations may use before the first endpoint is there. Later on
// that is compared with all else.
func (u *bringUp) sourcePortStep() step {
	return step{do: func() error {
		if !u.fresh {
			return nil
		}
		allowed, err := u.h.sourcePorts()
		if err != nil {
			return err
		}
		return u.h.dp.SetSourcePorts(allowed)
	}}
}

// sourcePorts leaves to the host the ports that its own sockets get.
func (h *Host) sourcePorts() (*loader.PortSet, error) {
	ephemeral, err := h.k.LocalPortRange()
	if err != nil {
		return nil, err
	}
	reserved, err := h.adminPorts()
	if err != nil {
		return nil, err
	}
	allowed := new(loader.PortSet)
	allowed.Add(1024, 65536-1024)
	allowed.Remove(ephemeral.First, int(ephemeral.Last)-int(ephemeral.First)+1)
	return without(allowed, reserved), nil
}

// uplinkSteps hook an uplink. Endpoints may leave by it only when its programs are there: without the fast
// path it is to_uplink that translates.
func (u *bringUp) uplinkSteps(text string, l netdev.Uplink, side bool) []step {
	dp, at := u.h.dp, func() int { return l.Ifindex }
	var known bool
	return []step{
		{text: text},
		u.h.attachStep(dp, loader.ToUplink, at, u.changed),
		u.h.attachStep(dp, loader.FromUplink, at, u.changed),
		{do: func() error {
			all, err := dp.Uplinks()
			if err != nil {
				return err
			}
			if known = slices.Contains(all, l.Ifindex); known {
				return nil // what is known of it is compared with all else
			}
			u.changed()
			return dp.PutUplink(uplinkOf(l, side))
		},
			undo: func() error {
				if known {
					return nil
				}
				return dp.DeleteUplink(l.Ifindex)
			}},
	}
}

// uplinkOf is the uplink as the datapath knows it.
func uplinkOf(l netdev.Uplink, side bool) loader.Uplink {
	return loader.Uplink{Ifindex: l.Ifindex, Addrs: l.Addrs, MTU: l.MTU, Side: side}
}

// repairLinks makes the endpoints' devices what they were made as, in place, where they are there.
func (u *bringUp) repairLinks(networks map[string]*networkRecord) error {
	links, err := u.h.k.Links()
	if err != nil {
		return err
	}
	u.links = ownAliases(links)
	byName := map[string]netdev.Link{}
	for _, l := range links {
		byName[l.Name] = l
	}
	var there []*endpointRecord
	var veths []netdev.Veth
	for _, e := range u.endpoints {
		if _, ok := u.links[e.alias()]; !ok {
			l, ok := byName[e.HostIfName]
			if !ok || l.Ours() || l.Kind != "veth" {
				continue
			}
			u.links[e.alias()] = l // somebody has taken its alias away
		}
		ns, err := u.namespace(e)
		if err != nil {
			return err
		}
		if ns != nil {
			defer u.h.k.CloseNS(ns)
		}
		n := networks[e.Network]
		v := e.veth(n, *u.bridges[n.Name], ns)
		v.Guard = u.h.guard(u.h.dp)
		there, veths = append(there, e), append(veths, v)
	}
	reports, err := u.h.k.RepairVeths(veths)
	unseen := 0
	for i, r := range reports {
		if r.Unseen {
			unseen++
		}
		for _, w := range r.Wrong {
			u.h.say("repair endpoint %q: %s", there[i].Name, w)
			u.changed()
		}
		if r.Err != nil {
			u.warn("endpoint %q: %s", there[i].Name, oneLine(r.Err))
		}
		u.lost[there[i].Name] = r.Lost
	}
	if unseen > 0 {
		u.warn("the containers' ends of %d links are not looked at: %s is missing", unseen, capSysAdmin.name)
	}
	return err
}

// namespace opens the namespace of an endpoint that has its device: the device says that it lives. It is nil if its
// path leads there no more, while processes are in it.
func (u *bringUp) namespace(e *endpointRecord) (*netdev.NS, error) {
	ns, err := u.h.openSame(e)
	if errors.Is(err, netdev.ErrNotFound) {
		return nil, nil
	}
	if err != nil || e.Boot != "" {
		return ns, err
	}
	err = u.h.identify(e, ns) // a version that knew no boots recorded it
	if errors.Is(err, netdev.ErrPermission) {
		return ns, nil // the next Up with more privileges does
	}
	u.moved[e.Name] = true
	return ns, err
}

// endpointSteps bring an endpoint back, or find that it is gone.
func (u *bringUp) endpointSteps(n *networkRecord, e *endpointRecord) []step {
	h, dp := u.h, u.h.dp
	var created, known, gone bool
	hook := h.attachStep(dp, loader.FromContainer, func() int { return e.Ifindex }, u.changed)
	return []step{{
		text: fmt.Sprintf("configure the link: %s in %s, %s on bridge %s", e.IfName, e.NetNS, e.HostIfName, n.Bridge),
		do: func() (err error) {
			created, gone, err = u.relink(n, e)
			return err
		},
		undo: func() error {
			if !created {
				return nil
			}
			return h.removeVeth(dp, e.Ifindex)
		},
	}, {
		do: func() (err error) {
			if gone {
				return u.setAside(n, e)
			}
			if known, err = u.known(n, e); known || err != nil {
				return err
			}
			u.changed()
			return dp.PutEndpoint(e.datapath(n.ID))
		},
		undo: func() error {
			if gone || known {
				return nil
			}
			return dp.DeleteEndpoint(e.datapath(n.ID))
		},
	}, {
		do: func() error {
			if gone {
				return nil
			}
			return hook.do()
		},
		undo: func() error {
			if gone {
				return nil
			}
			return hook.undo()
		},
	}}
}

// relink makes sure of the endpoint's devices. A pair that cannot be repaired is
// made anew.
func (u *bringUp) relink(n *networkRecord, e *endpointRecord) (created, gone bool, err error) {
	l, there := u.links[e.alias()]
	switch {
	case there && !u.lost[e.Name]:
		if l.Index != e.Ifindex {
			e.Ifindex, u.moved[e.Name] = l.Index, true
		}
		return false, false, nil
	case there:
		if err := u.h.deleteLink(l.Index); err != nil {
			return false, false, err
		}
	}
	err = u.h.reconnect(u.h.dp, n, e)
	switch {
	case errors.Is(err, netdev.ErrNotFound) && e.Transient:
		u.ended[e.Name] = true
		return false, true, nil
	case errors.Is(err, netdev.ErrNotFound):
		u.report.Gone = append(u.report.Gone, e.Name)
		return false, true, nil
	case errors.Is(err, netdev.ErrExists):
		u.warn("endpoint %q: %v", e.Name, err)
		return false, true, nil
	case err != nil:
		return false, false, err
	}
	u.moved[e.Name] = true
	u.changed()
	return true, false, nil
}

// known reports whether the datapath has the endpoint as it is. A slot keeps its
// MAC address for life.
func (u *bringUp) known(n *networkRecord, e *endpointRecord) (bool, error) {
	have, err := u.inDatapath(e.Slot)
	return have.Ifindex == e.Ifindex && have.Network == n.ID && slices.Contains(have.Addrs, e.IP), err
}

// inDatapath returns the endpoint of the slot as the datapath had it before Up
// put any; the zero value if it had none.
func (u *bringUp) inDatapath(slot uint32) (loader.Endpoint, error) {
	if u.have == nil {
		all, err := u.h.dp.Endpoints()
		if err != nil {
			return loader.Endpoint{}, err
		}
		u.have = make(map[uint32]loader.Endpoint, len(all))
		for _, e := range all {
			u.have[e.Slot] = e
		}
	}
	return u.have[slot], nil
}

// setAside takes an endpoint that is gone out of the datapath; it stays recorded, unless
// it ends with its namespace.
func (u *bringUp) setAside(n *networkRecord, e *endpointRecord) error {
	if err := u.h.unpublish(u.h.dp, n, e, u.ports[e.Name]); err != nil {
		return err
	}
	if err := u.h.forgetNeighbour(n, e); err != nil {
		return err
	}
	u.gone[e.Name] = true
	if u.ended[e.Name] {
		u.changed()
		u.left.ports = append(u.left.ports, u.ports[e.Name]...)
		u.left.endpoints = append(u.left.endpoints, e)
		u.endpoints = slices.DeleteFunc(u.endpoints, func(o *endpointRecord) bool { return o == e })
	}
	delete(u.ports, e.Name)
	have, err := u.inDatapath(e.Slot)
	if err != nil || have.Slot == 0 {
		return err
	}
	u.changed()
	return u.h.dp.DeleteEndpoint(e.datapath(n.ID))
}

// contentsStep makes the maps say what was read, and nothing else: it opens the ports, and mends what somebody
// has written into maps or taken out of them.
func (u *bringUp) contentsStep(networks map[string]*networkRecord) step {
	text := ""
	if len(u.ports) > 0 {
		text = "map the ports"
	}
	return step{text: text, do: func() error {
		want, err := u.contents(networks)
		if err != nil {
			return err
		}
		repaired, err := u.h.dp.Settle(want)
		for _, d := range repaired {
			u.changed()
			if !u.fresh {
				u.h.say("repair map %s", d)
			}
		}
		return err
	}}
}

// reservePorts is of Host, and tells whether that changed something.
func (u *bringUp) reservePorts() error {
	before, err := u.h.k.LocalReservedPorts()
	if err == nil {
		err = u.h.reservePorts()
	}
	if err != nil {
		return err
	}
	after, err := u.h.k.LocalReservedPorts()
	if !slices.Equal(before, after) {
		u.changed()
	}
	return err
}

func (u *bringUp) contents(networks map[string]*networkRecord) (want loader.Contents, err error) {
	if want.SourcePorts, err = u.h.sourcePorts(); err != nil {
		return want, err
	}
	if want.Local, want.Broadcast, err = u.h.localAddrs(); err != nil {
		return want, err
	}
	for _, n := range u.networks {
		want.Networks = append(want.Networks, n.datapath(*u.bridges[n.Name]))
	}
	for _, l := range u.uplinks {
		want.Uplinks = append(want.Uplinks, uplinkOf(l, false))
	}
	for _, l := range u.sides {
		want.Uplinks = append(want.Uplinks, uplinkOf(l, true))
	}
	for _, e := range u.endpoints {
		if u.gone[e.Name] {
			continue
		}
		n := networks[e.Network]
		want.Endpoints = append(want.Endpoints, e.datapath(n.ID))
		want.Publications = append(want.Publications, publications(n, e, u.ports[e.Name])...)
	}
	return want, nil
}

// settleStep writes down what has become of the records.
func (u *bringUp) settleStep() step {
	return step{do: func() error {
		if u.left.none() && len(u.moved) == 0 {
			return nil
		}
		return u.h.state.change(true, func(t *tx) error {
			for _, e := range u.endpoints {
				if !u.moved[e.Name] {
					continue
				}
				if err := t.moveEndpoint(e); err != nil {
					return err
				}
			}
			return u.left.drop(t)
		})
	}}
}

// drop deletes the records.
func (l *leftovers) drop(t *tx) error {
	if err := t.deletePorts(l.ports); err != nil {
		return err
	}
	for _, e := range l.endpoints {
		if err := t.deleteEndpoint(e); err != nil {
			return err
		}
	}
	for _, n := range l.networks {
		if err := t.deleteNetwork(n); err != nil {
			return err
		}
	}
	return nil
}

// count fills in the report's numbers from the state.
func (u *bringUp) count() error {
	return u.h.state.view(func(t *tx) error {
		c, err := t.counts()
		u.report.Networks, u.report.Endpoints, u.report.Ports = c.networks, c.endpoints, c.ports
		return err
	})
}
