package network

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/ebnet/ebnet/loader"
	"github.com/ebnet/ebnet/loader/netdev"
)

// Finding is one thing that is wrong.
type Finding struct {
	Check string `json:"check"` // the name of the check that found it
	What  string `json:"what"`
	Why   string `json:"why"`  // what it leads to
	Mend  string `json:"mend"` // the command, or what to do
}

// Diagnosis is what Examine found.
type Diagnosis struct {
	Healthy bool      `json:"healthy"`
	Checks  int       `json:"checks"` // how many were made
	Items   []Finding `json:"items"`
}

// ebnetUp mends whatever differs from what is recorded.
const ebnetUp = "ebnet up"

// check is one of the things that Examine looks at.
type check struct {
	name string
	run  func(*examination) error
	cold bool // can be made while nothing is loaded
}

// checks, in the order in which they are reported: what others follow from comes first.
var checks = []check{
	{"state", (*examination).state, true},
	{"datapath", (*examination).datapath, true},
	{"programs", (*examination).programs, false},
	{"uplinks", (*examination).uplinks, false},
	{"bridges", (*examination).bridges, false},
	{"endpoints", (*examination).endpoints, false},
	{"links", (*examination).pairs, false},
	{"sockets", (*examination).sockets, false},
	{"order", (*examination).order, false},
	{"ports", (*examination).ports, false},
	{"maps", (*examination).maps, false},
	{"addresses", (*examination).addresses, true},
	{"holders", (*examination).holders, true},
	{"other-nat", (*examination).otherNAT, true},
	{"settings", (*examination).settings, true},
	{"pressure", (*examination).pressure, false},
	{"incomplete", (*examination).incomplete, true},
	{"leftovers", (*examination).leftovers, true},
}

// examination is one Examine at work: what is recorded and what devices there are.
type examination struct {
	h     *Host
	dp    datapath // nil: not loaded
	host  hostRecord
	nets  []*networkRecord
	ends  []*endpointRecord
	all   map[string][]*portRecord // by endpoint
	links []netdev.Link
	own   map[string]netdev.Link // ours, by alias
	by    map[int]netdev.Link    // by index

	other    bool   // another version's datapath is loaded
	check    string // that is being made
	findings []Finding
}

// Examine looks for what is wrong with the host and with what is loaded, and says how to
// mend it. It changes nothing.
func (h *Host) Examine() (Diagnosis, error) {
	x := &examination{h: h, all: map[string][]*portRecord{}, findings: []Finding{}}
	var err error
	x.dp, err = h.loaded()
	x.other = errors.Is(err, loader.ErrOtherVersion) && !errors.Is(err, ErrConflict)
	if err != nil && !x.other {
		return Diagnosis{}, explain(err)
	}
	if x.links, err = h.k.Links(); err != nil {
		return Diagnosis{}, explain(err)
	}
	x.own, x.by = ownAliases(x.links), make(map[int]netdev.Link, len(x.links))
	for _, l := range x.links {
		x.by[l.Index] = l
	}
	if err := h.state.view(x.read); err != nil {
		return Diagnosis{}, explain(err)
	}
	d := Diagnosis{}
	for _, c := range checks {
		if x.dp == nil && !c.cold {
			continue
		}
		d.Checks++
		x.check = c.name
		err := c.run(x)
		switch {
		case errors.Is(err, loader.ErrPermission), errors.Is(err, netdev.ErrPermission):
			return Diagnosis{}, explain(err)
		case err != nil:
			x.find("check "+c.name, "it could not be made: "+oneLine(err), "see why, and run `ebnet doctor` again")
		}
	}
	d.Items, d.Healthy = x.findings, len(x.findings) == 0
	return d, nil
}

func (x *examination) read(t *tx) (err error) {
	if x.host, err = t.host(); err != nil {
		return err
	}
	if x.nets, err = list[networkRecord](t, networksBucket); err != nil {
		return err
	}
	if x.ends, err = list[endpointRecord](t, endpointsBucket); err != nil {
		return err
	}
	for _, e := range x.ends {
		if x.all[e.Name], err = t.portsOf(e.Name); err != nil {
			return err
		}
	}
	return nil
}

func (x *examination) find(what, why, mend string) {
	x.findings = append(x.findings, Finding{x.check, what, why, mend})
}

// link returns the device with the index; its name is "interface N" if it is gone.
func (x *examination) link(ifindex int) (l netdev.Link, there bool) {
	if l, there = x.by[ifindex]; !there {
		l.Name = fmt.Sprintf("interface %d", ifindex)
	}
	return l, there
}

// eachPort calls yield for every published port whose publication is complete.
func (x *examination) eachPort(yield func(e *endpointRecord, p *portRecord)) {
	for _, e := range x.ends {
		for _, p := range x.all[e.Name] {
			if e.Status == applied && p.Status == applied {
				yield(e, p)
			}
		}
	}
}

func portText(e *endpointRecord, p *portRecord) string {
	return fmt.Sprintf("port %s/%s of endpoint %q", p.hostAddr(), protocolName(p.Protocol), e.Name)
}

func (x *examination) datapath() error {
	switch {
	case x.other:
		x.find("datapath", "another version of ebnet loaded it, which this one's commands cannot change", ebnetUp)
	case x.dp == nil:
		x.find("datapath", "nothing is loaded: no endpoint reaches anything, and no port is published", ebnetUp)
	}
	return nil
}

func (x *examination) programs() error {
	same, err := x.dp.Current()
	if err == nil && !same {
		x.find("programs", "those in the kernel are not this ebnet's: another build loaded them, or a pin was removed", ebnetUp)
	}
	return err
}

// hook reports a program of ours that is not where it belongs.
func (x *examination) hook(hook loader.Hook, ifindex int, on, why string) error {
	there, err := x.h.attached(x.dp, hook, ifindex)
	if err == nil && !there {
		x.find(fmt.Sprintf("%s: program %s is not attached", on, hook), why, ebnetUp)
	}
	return err
}

func (x *examination) sockets() error {
	switch {
	case x.dp.SocketsAttached():
	case x.host.Cgroup == "":
		x.find("socket hooks", "no cgroup2 is mounted: "+noSockets, "mount -t cgroup2 cgroup2 /sys/fs/cgroup && ebnet up")
	default:
		x.find("socket hooks of cgroup "+x.host.Cgroup, noSockets, ebnetUp)
	}
	return nil
}

// order looks for programs that run before ours. One that accepts a packet ends the
// chain, and then ours never sees it.
func (x *examination) order() error {
	const why = "what it accepts, ours never sees: neither checked nor translated"
	for _, at := range x.hooks() {
		l, there := x.link(at.Ifindex)
		if !there {
			continue
		}
		if !x.dp.TCX() {
			filters, err := x.h.k.FiltersAhead(at.Ifindex, at.Hook.Ingress())
			if err != nil {
				return err
			}
			for _, f := range filters {
				x.find(fmt.Sprintf("%s: filter %s of priority %d runs before %s", l.Name, f, f.Priority, at.Hook), why,
					fmt.Sprintf("tc filter del dev %s %s pref %d", l.Name, side(at.Hook), f.Priority))
			}
			continue
		}
		programs, err := x.dp.Ahead(at.Hook, at.Ifindex)
		if err != nil {
			return err
		}
		for _, p := range programs {
			mend := fmt.Sprintf("bpftool net detach tcx_%s dev %s", side(at.Hook), l.Name)
			if p.Link != 0 {
				mend = fmt.Sprintf("bpftool link detach id %d", p.Link)
			}
			x.find(fmt.Sprintf("%s: program %s runs before %s", l.Name, p, at.Hook), why, mend)
		}
	}
	return nil
}

// hooks are the places where our programs are to be the first.
func (x *examination) hooks() (all []loader.Attachment) {
	for _, n := range x.nets {
		if l, ok := x.own[bridgeAlias(n.Name)]; ok {
			all = append(all, loader.Attachment{Hook: loader.FromBridge, Ifindex: l.Index}, loader.Attachment{Hook: loader.ToBridge, Ifindex: l.Index})
		}
	}
	for _, e := range x.ends {
		if l, ok := x.own[e.alias()]; ok {
			all = append(all, loader.Attachment{Hook: loader.FromContainer, Ifindex: l.Index})
		}
	}
	indices, _ := x.dp.Uplinks() // check uplinks has reported an error
	for _, i := range indices {
		all = append(all, loader.Attachment{Hook: loader.ToUplink, Ifindex: i})
	}
	return all
}

func side(h loader.Hook) string {
	if h.Ingress() {
		return "ingress"
	}
	return "egress"
}

// full is how much of a map in use is too much.
const full = 0.8

// pressure looks at the maps that refuse when they are full. Those that push out the
// oldest entry instead are always full after a while.
func (x *examination) pressure() error {
	use, err := x.dp.Usage()
	if err != nil {
		return err
	}
	mends := map[string][2]string{
		"flows": {"established conversations of more clients become new ones, which a flood can push out",
			fmt.Sprintf("ebnet down && ebnet up --max-flows %d (this cuts connections), or shorter timeouts by ebnet up --timeout", 2*x.dp.Config().MaxFlows)},
		"drop_counts": {"dropped packets of more endpoints and devices are not counted", "ebnet down && ebnet up (this cuts connections), which counts anew"},
		"endpoints":   {"connecting more endpoints will fail", "ebnet disconnect those that are not needed"},
		"services":    {"publishing more ports will fail", "ebnet unexpose those that are not needed"},
		"sources":     {"publishing more ports with --from will fail", "use fewer or wider sources"},
		"uplinks":     {"hooking more uplinks and bridges of others will fail", "name those that are needed by ebnet up --uplink"},
	}
	for _, m := range use {
		mend, refuses := mends[m.Name]
		if pressure := float64(m.Used) / float64(max(1, m.Max)); refuses && pressure > full {
			x.find(fmt.Sprintf("map %s: %d of %d entries are used (%.0f%%)", m.Name, m.Used, m.Max, 100*pressure), mend[0], mend[1])
		}
	}
	return nil
}

// state looks for records that do not go together, and at the copy.
func (x *examination) state() error {
	s := x.h.state
	var wrong []string
	var txid uint64
	if err := s.view(func(t *tx) (err error) {
		txid = uint64(t.ID())
		wrong, err = t.inconsistencies()
		return err
	}); err != nil {
		return err
	}
	for _, w := range wrong {
		x.find("state "+s.path()+": "+w, "records contradict each other, commands may fail or do the wrong thing",
			"ebnet disconnect or unexpose what is named; or move the file away and run ebnet up --restore, if the copy is better")
	}
	if !s.unnamed && !s.aside && !s.changed && s.copyOf() != txid {
		x.find("state "+s.copyPath()+": not a copy of what the state is now",
			"if the state is damaged, what the last command did is lost", ebnetUp+" (writes it)")
	}
	return nil
}

func (x *examination) settings() error {
	jit, err := x.h.k.Sysctl("core/bpf_jit_enable")
	if errors.Is(err, netdev.ErrNotFound) {
		return nil // of the first network namespace only
	}
	if err == nil && jit == "0" {
		x.find("net.core.bpf_jit_enable is 0", "the programs are interpreted, which is many times slower", "sysctl -w net.core.bpf_jit_enable=1")
	}
	return err
}

func (x *examination) incomplete() error {
	var s StatusInfo
	err := x.h.state.view(func(t *tx) error { return s.read(t, newOwners()) })
	for _, i := range s.Incomplete {
		x.find(i, "it is half done: the command that was at it was killed", ebnetUp+" (undoes it)")
	}
	return err
}

// leftovers looks for what is ours and that nothing recorded has.
func (x *examination) leftovers() error {
	recorded := map[string]bool{}
	var left leftovers
	for _, n := range x.nets {
		recorded[bridgeAlias(n.Name)] = true
		if n.Status != applied {
			left.networks = append(left.networks, n)
		}
	}
	for _, e := range x.ends {
		recorded[e.alias()] = true
		if e.Status != applied {
			left.endpoints = append(left.endpoints, e)
		}
	}
	for _, l := range x.links {
		switch {
		case l.Ours() && !recorded[l.Alias]:
			x.find(fmt.Sprintf("device %s (%s)", l.Name, l.Alias), "no network or endpoint of that name is recorded", ebnetUp+" (removes it)")
		case unfinished(l, &left):
			x.find("device "+l.Name, "the command that made it was killed before it was done", ebnetUp+" (removes it)")
		case l.Ours() && l.Doomed:
			x.find("device "+l.Name, "the `ebnet down` that was to remove it was killed", ebnetUp+" (keeps it), or ebnet down")
		}
	}
	others, err := x.h.k.OtherLayouts(x.h.o.BPFFS)
	if err != nil {
		return err
	}
	for _, dir := range others {
		x.find("pins in "+filepath.Clean(dir), "another version's, whose programs may still run", ebnetUp+" (replaces it)")
	}
	if x.dp == nil || !x.dp.TCX() {
		return nil
	}
	pinned, err := x.dp.Attachments()
	for _, at := range pinned {
		if l, there := x.link(at.Ifindex); !there {
			x.find(fmt.Sprintf("pin of %s on %s", at.Hook, l.Name), "the device is gone", ebnetUp+" (removes it)")
		}
	}
	return err
}
