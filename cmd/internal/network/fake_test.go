package network

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/ebnet/ebnet/loader"
	"github.com/ebnet/ebnet/loader/netdev"
)

var errInjected = errors.New("injected")

const fakeProgram = 98 // the id of all

// fake is a kernel in memory. Every change of it can be made to fail.
type fake struct {
	links  map[string]*netdev.Link // by name
	next   int                     // interface index
	spaces map[string]*netdev.NS   // by reference
	inside map[string]string       // host-side name → "inode/ifname"
	host   []netip.Prefix
	held   []netdev.Holder

	elsewhere uint64 // another namespace than at first

	noTCX     bool
	noSockets bool
	filters   map[string]bool
	reserved  []netdev.PortRange
	sides     map[string]bool // bridges of others
	ill       illness

	boot   string
	cgroup string        // the first mount; "": none
	dp     *fakeDatapath // nil: not loaded

	handover *loader.Handover // of another version's datapath; nil: there is none
	former   *fakeDatapath    // that

	changes int // so far
	failAt  int // the change to fail, from 1; 0: none
	onFail  func()
}

func newFake() *fake {
	f := &fake{
		links:    map[string]*netdev.Link{},
		spaces:   map[string]*netdev.NS{},
		inside:   map[string]string{},
		filters:  map[string]bool{},
		host:     []netip.Prefix{netip.MustParsePrefix("198.51.100.2/24"), netip.MustParsePrefix("127.0.0.1/8")},
		next:     1,
		cgroup:   "/cg",
		boot:     "first",
		reserved: []netdev.PortRange{{First: 32770, Last: 32771}},
		sides:    map[string]bool{},
	}
	f.link("eth0", "", "")
	for i := range 10 {
		f.space(fmt.Sprintf("w%d", i), uint64(100+i))
	}
	return f
}

func (f *fake) link(name, kind, alias string) *netdev.Link {
	f.next++
	l := &netdev.Link{Index: f.next, Name: name, Kind: kind, Alias: alias, MTU: 1500, Ethernet: true, Up: true, Carrier: true}
	f.links[name] = l
	return l
}

func (f *fake) space(name string, inode uint64) {
	ns := &netdev.NS{Dev: 4, Inode: inode, Path: "/run/netns/" + name}
	f.spaces[name], f.spaces[ns.Path] = ns, ns
}

// kill takes a namespace and the links that lead into it away.
func (f *fake) kill(name string) {
	inode := fmt.Sprint(f.spaces[name].Inode)
	delete(f.spaces, "/run/netns/"+name)
	delete(f.spaces, name)
	for l, in := range f.inside {
		if strings.HasPrefix(in, inode+"/") {
			delete(f.inside, l)
			delete(f.links, l)
		}
	}
}

// change counts a change, and fails if it is its turn.
func (f *fake) change() error {
	if f.changes++; f.changes == f.failAt {
		if f.onFail != nil {
			f.onFail()
		}
		return errInjected
	}
	return nil
}

func (f *fake) name(ifindex int) string {
	for _, l := range f.links {
		if l.Index == ifindex {
			return l.Name
		}
	}
	return "gone"
}

func (f *fake) Load(_ string, cfg loader.Config) (datapath, bool, error) {
	if cfg.MaxFlows == 0 {
		cfg.MaxFlows = loader.DefaultMaxFlows
	}
	if f.dp != nil && f.dp.cfg == cfg {
		return f.dp, false, nil
	}
	if err := f.change(); err != nil {
		return nil, false, err
	}
	if f.dp == nil {
		f.dp = &fakeDatapath{
			heard: &fakeListener{},
			f:     f, attached: map[loader.Attachment]bool{}, networks: map[uint32]loader.Network{},
			endpoints: map[uint32]loader.Endpoint{}, services: map[string]service{}, uplinks: map[int]loader.Uplink{},
		}
	}
	if f.handover != nil && !f.dp.staged {
		f.dp.staged, f.dp.attached, f.dp.sockets = true, f.former.attached, f.former.sockets
	}
	f.dp.cfg = cfg
	return f.dp, true, nil
}

func (f *fake) Open(string) (datapath, error) {
	switch {
	case f.handover != nil:
		return nil, loader.ErrOtherVersion
	case f.dp == nil:
		return nil, loader.ErrNotLoaded
	}
	return f.dp, nil
}

func (f *fake) FindHandover(string) (loader.Handover, error) { return *f.handover, nil }

// Swap makes the fake's other version's datapath go; that its maps cannot be read is for the
// tests of package loader.
func (d *fakeDatapath) Swap() error {
	if err := d.f.change(); err != nil {
		return err
	}
	d.staged, d.f.handover, d.f.former = false, nil, nil
	return nil
}

func (d *fakeDatapath) Abandon() error {
	d.f.dp = nil
	return nil
}

func (f *fake) Remove(string) error {
	if err := f.change(); err != nil {
		return err
	}
	f.dp, f.handover = nil, nil
	return nil
}

func (f *fake) EnsureBridge(b netdev.Bridge) (int, bool, error) {
	if l := f.links[b.Name]; l != nil {
		if l.Alias != bridgeAlias(b.Network) {
			return 0, false, netdev.ErrExists
		}
		return l.Index, false, nil
	}
	if err := f.change(); err != nil {
		return 0, false, err
	}
	l := f.link(b.Name, "bridge", bridgeAlias(b.Network))
	l.MTU = b.MTU
	return l.Index, true, nil
}

func (f *fake) CreateVeth(v netdev.Veth) (int, error) {
	in := fmt.Sprintf("%d/%s", v.NS.Inode, v.IfName)
	for _, other := range f.inside {
		if other == in {
			return 0, netdev.ErrExists
		}
	}
	if f.links[v.HostName] != nil {
		return 0, netdev.ErrExists
	}
	if err := f.change(); err != nil {
		return 0, err
	}
	l := f.link(v.HostName, "veth", v.Alias)
	l.MasterIndex = v.Bridge
	if v.Guard != nil {
		if err := v.Guard(l.Index); err != nil {
			delete(f.links, v.HostName)
			return 0, err
		}
	}
	f.inside[v.HostName] = in
	return l.Index, nil
}

func (f *fake) DeleteLink(ifindex int) error {
	name := f.name(ifindex)
	if name == "gone" {
		return netdev.ErrNotFound
	}
	if err := f.change(); err != nil {
		return err
	}
	delete(f.links, name)
	delete(f.inside, name)
	return nil
}

func (f *fake) DeleteLinks(ifindexes ...int) error {
	for _, i := range ifindexes {
		if err := f.DeleteLink(i); err != nil && !errors.Is(err, netdev.ErrNotFound) {
			return err
		}
	}
	return nil
}

func (f *fake) DeleteUnfinished(ifindex int) error { return f.DeleteLink(ifindex) }

func (f *fake) SpareLink(ifindex int) error { return f.change() }

func (f *fake) DeleteNeighbour(int, ...netip.Addr) error { return nil }

func (f *fake) LinkByName(name string) (netdev.Link, error) {
	if l := f.links[name]; l != nil {
		return *l, nil
	}
	return netdev.Link{}, netdev.ErrNotFound
}

func (f *fake) Links() ([]netdev.Link, error) {
	var ls []netdev.Link
	for _, l := range f.links {
		ls = append(ls, *l)
	}
	slices.SortFunc(ls, func(a, b netdev.Link) int { return a.Index - b.Index })
	return ls, nil
}

func (f *fake) CgroupMount() (string, error) { return f.cgroup, nil }

func (f *fake) CheckCgroup(dir string) error {
	if !strings.HasPrefix(dir, "/cg") {
		return notFound("cgroup "+dir, "no such directory")
	}
	return nil
}

func (f *fake) OpenNS(ref string) (*netdev.NS, error) {
	if ns := f.spaces[ref]; ns != nil {
		return ns, nil
	}
	return nil, fmt.Errorf("namespace %s: %w", ref, netdev.ErrNotFound)
}

func (f *fake) CurrentNS() (*netdev.NS, error) {
	return &netdev.NS{Dev: 4, Inode: 1 + f.elsewhere}, nil
}
func (f *fake) CloseNS(*netdev.NS) {}

func filterKey(ifindex int, ingress bool) string { return fmt.Sprintf("%d %v", ifindex, ingress) }

func (f *fake) AttachFilter(ifindex int, ingress bool, _ int, _ string) error {
	if err := f.change(); err != nil {
		return err
	}
	f.filters[filterKey(ifindex, ingress)] = true
	return nil
}

func (f *fake) DetachFilter(ifindex int, ingress bool) error {
	if err := f.change(); err != nil {
		return err
	}
	delete(f.filters, filterKey(ifindex, ingress))
	return nil
}

func (f *fake) FilterAttached(ifindex int, ingress bool) (int, bool, error) {
	return fakeProgram, f.filters[filterKey(ifindex, ingress)], nil
}

func (f *fake) uplink(l *netdev.Link) netdev.Uplink {
	return netdev.Uplink{Ifindex: l.Index, Name: l.Name, MTU: l.MTU, Addrs: []netip.Addr{f.host[0].Addr()}, Ethernet: l.Ethernet}
}

func (f *fake) DetectUplinks() ([]netdev.Uplink, error) {
	var ups []netdev.Uplink
	if l := f.links["eth0"]; l != nil {
		ups = append(ups, f.uplink(l))
	}
	return ups, nil
}

func (f *fake) DetectSides() (sides []netdev.Uplink, _ error) {
	for name := range f.sides {
		if l := f.links[name]; l != nil {
			sides = append(sides, f.uplink(l))
		}
	}
	slices.SortFunc(sides, func(a, b netdev.Uplink) int { return a.Ifindex - b.Ifindex })
	return sides, nil
}

func (f *fake) UplinkByName(name string) (netdev.Uplink, error) {
	if l := f.links[name]; l != nil {
		return f.uplink(l), nil
	}
	return netdev.Uplink{}, fmt.Errorf("device %s: %w", name, netdev.ErrNotFound)
}

func (f *fake) DefaultMTU() (int, error)                                 { return 1500, nil }
func (f *fake) HostAddrs() ([]netip.Prefix, error)                       { return f.host, nil }
func (f *fake) HostPrefixes() ([]netip.Prefix, error)                    { return f.host, nil }
func (f *fake) Resolvers() ([]netip.Addr, error)                         { return nil, nil }
func (f *fake) DestroySockets(loader.Protocol, []netdev.Connected) error { return nil }

func (f *fake) LocalPortRange() (netdev.PortRange, error) {
	return netdev.PortRange{First: 32768, Last: 32777}, nil
}
func (f *fake) LocalReservedPorts() ([]netdev.PortRange, error) { return f.reserved, nil }

func (f *fake) SetLocalReservedPorts(ports []netdev.PortRange) error {
	if err := f.change(); err != nil {
		return err
	}
	f.reserved = ports
	return nil
}

func (f *fake) PortHolders(_ loader.Protocol, _ netip.Addr, first, last uint16) ([]netdev.Holder, error) {
	var hs []netdev.Holder
	for _, h := range f.held {
		if first <= h.Port && h.Port <= last {
			hs = append(hs, h)
		}
	}
	return hs, nil
}

// fakeDatapath is a datapath in memory.
type fakeDatapath struct {
	f         *fake
	cfg       loader.Config
	staged    bool
	attached  map[loader.Attachment]bool
	networks  map[uint32]loader.Network
	endpoints map[uint32]loader.Endpoint // by slot
	services  map[string]service
	uplinks   map[int]loader.Uplink
	flows     []loader.Flow
	drops     []loader.Drops
	heard     *fakeListener
	sources   loader.PortSet
	shares    []loader.Share

	sockets          string // the cgroup; "": not attached
	local, broadcast []netip.Addr
}

func (d *fakeDatapath) Close() error              { return nil }
func (d *fakeDatapath) Config() loader.Config     { return d.cfg }
func (d *fakeDatapath) TCX() bool                 { return !d.f.noTCX }
func (d *fakeDatapath) ProgramFD(loader.Hook) int { return 99 }
func (d *fakeDatapath) ProgramID(loader.Hook) int { return fakeProgram }
func (d *fakeDatapath) Staged() bool              { return d.staged }

func (d *fakeDatapath) Attach(hook loader.Hook, ifindex int) error {
	if err := d.f.change(); err != nil {
		return err
	}
	if d.f.name(ifindex) == "gone" {
		return fmt.Errorf("attach %s to %d: no such device", hook, ifindex)
	}
	d.attached[loader.Attachment{Hook: hook, Ifindex: ifindex}] = true
	return nil
}

func (d *fakeDatapath) Detach(hook loader.Hook, ifindex int) error {
	if err := d.f.change(); err != nil {
		return err
	}
	delete(d.attached, loader.Attachment{Hook: hook, Ifindex: ifindex})
	return nil
}

func (d *fakeDatapath) Attachments() ([]loader.Attachment, error) {
	return slices.Collect(maps.Keys(d.attached)), nil
}

func (d *fakeDatapath) Attached(hook loader.Hook, ifindex int) bool {
	return d.attached[loader.Attachment{Hook: hook, Ifindex: ifindex}] && d.f.name(ifindex) != "gone"
}

func (d *fakeDatapath) PutNetwork(n loader.Network) error {
	if err := d.f.change(); err != nil {
		return err
	}
	d.networks[n.ID] = n
	return nil
}

func (d *fakeDatapath) DeleteNetwork(n loader.Network) error {
	if err := d.f.change(); err != nil {
		return err
	}
	delete(d.networks, n.ID)
	return nil
}

func (d *fakeDatapath) Networks() ([]uint32, error) {
	return slices.Collect(maps.Keys(d.networks)), nil
}

func (d *fakeDatapath) PutEndpoint(e loader.Endpoint) error {
	if err := d.f.change(); err != nil {
		return err
	}
	d.endpoints[e.Slot] = e
	return nil
}

func (d *fakeDatapath) DeleteEndpoint(e loader.Endpoint) error {
	if err := d.f.change(); err != nil {
		return err
	}
	delete(d.endpoints, e.Slot)
	return nil
}

func (d *fakeDatapath) HasEndpoint(e loader.Endpoint) (bool, error) {
	_, ok := d.endpoints[e.Slot]
	return ok, nil
}

func (d *fakeDatapath) Endpoints() ([]loader.Endpoint, error) {
	return slices.Collect(maps.Values(d.endpoints)), nil
}

// Compare knows what is missing, altered or foreign of endpoints, networks and services.
func (d *fakeDatapath) Compare(want loader.Contents) ([]loader.Deviation, error) {
	return d.settled(want).deviations(d), nil
}

func (d *fakeDatapath) Settle(want loader.Contents) ([]loader.Deviation, error) {
	now := d.settled(want)
	all := now.deviations(d)
	if len(all) == 0 {
		return nil, nil
	}
	if err := d.f.change(); err != nil {
		return nil, err
	}
	d.networks, d.endpoints, d.services, d.uplinks, d.sources = now.networks, now.endpoints, now.services, now.uplinks, now.sources
	d.local, d.broadcast = now.local, now.broadcast
	return all, nil
}

// settled is a datapath that says what is wanted.
func (d *fakeDatapath) settled(want loader.Contents) *fakeDatapath {
	now := &fakeDatapath{
		f: &fake{}, networks: map[uint32]loader.Network{}, endpoints: map[uint32]loader.Endpoint{}, services: map[string]service{},
		uplinks: map[int]loader.Uplink{}, sources: *want.SourcePorts, local: want.Local, broadcast: want.Broadcast,
	}
	for _, n := range want.Networks {
		now.networks[n.ID] = n
	}
	for _, e := range want.Endpoints {
		now.endpoints[e.Slot] = e
	}
	for _, u := range want.Uplinks {
		now.uplinks[u.Ifindex] = u
	}
	_ = now.Publish(want.Publications...)
	return now
}

func (d *fakeDatapath) deviations(old *fakeDatapath) (all []loader.Deviation) {
	differs := func(name string, same bool) {
		if !same {
			all = append(all, loader.Deviation{Map: name, Altered: 1})
		}
	}
	text := func(v any) string { return fmt.Sprintf("%+v", v) } // maps are printed in order
	differs("networks", text(d.networks) == text(old.networks))
	differs("endpoints", text(d.endpoints) == text(old.endpoints))
	differs("uplinks", text(d.uplinks) == text(old.uplinks))
	differs("services", text(d.services) == text(old.services))
	differs("ports", d.sources == old.sources)
	differs("locals", slices.Equal(d.local, old.local) && slices.Equal(d.broadcast, old.broadcast))
	return all
}

type service struct {
	to      string
	ifindex int
}

func serviceKeys(p loader.Publication) (keys []string) {
	for i := range p.Count {
		keys = append(keys, fmt.Sprintf("%d %v:%d", p.Protocol, p.HostAddr, int(p.HostPort)+i))
	}
	return keys
}

func (d *fakeDatapath) Publish(ps ...loader.Publication) error {
	if len(ps) == 0 {
		return nil
	}
	if err := d.f.change(); err != nil {
		return err
	}
	for _, p := range ps {
		for i, k := range serviceKeys(p) {
			d.services[k] = service{fmt.Sprintf("%v:%d slot %d from %v", p.Addr, int(p.Port)+i, p.Slot, p.From), p.Ifindex}
		}
	}
	return nil
}

func (d *fakeDatapath) Unpublish(ps ...loader.Publication) error {
	if len(ps) == 0 {
		return nil
	}
	if err := d.f.change(); err != nil {
		return err
	}
	for _, p := range ps {
		for _, k := range serviceKeys(p) {
			delete(d.services, k)
		}
	}
	return nil
}

func (d *fakeDatapath) ForgetPeers(...uint32) ([]loader.Peer, error) { return nil, nil }

func (d *fakeDatapath) PublishedCount() (int, error) { return len(d.services), nil }

func (d *fakeDatapath) SetSourcePorts(allowed *loader.PortSet) error {
	d.sources = *allowed
	return nil
}

func (d *fakeDatapath) AttachSockets(cgroup string) (bool, error) {
	if d.f.noSockets {
		return true, loader.ErrUnsupported
	}
	if d.sockets == cgroup {
		return false, nil
	}
	if err := d.f.change(); err != nil {
		d.sockets = ""
		return true, err
	}
	d.sockets = cgroup
	return true, nil
}

func (d *fakeDatapath) DetachSockets() error {
	if err := d.f.change(); err != nil {
		return err
	}
	d.sockets = ""
	return nil
}

func (d *fakeDatapath) SocketsAttached() bool { return d.sockets != "" }

func (d *fakeDatapath) SetLocalAddrs(local, broadcast []netip.Addr) error {
	if slices.Equal(d.local, local) && slices.Equal(d.broadcast, broadcast) {
		return nil
	}
	if err := d.f.change(); err != nil {
		return err
	}
	d.local, d.broadcast = local, broadcast
	return nil
}

func (d *fakeDatapath) Shares() ([]loader.Share, error) { return d.shares, nil }

func (d *fakeDatapath) PutUplink(u loader.Uplink) error {
	for _, hook := range []loader.Hook{loader.FromUplink, loader.ToUplink} {
		if !d.f.filters[filterKey(u.Ifindex, hook.Ingress())] && !d.Attached(hook, u.Ifindex) {
			return fmt.Errorf("endpoints may leave by device %d without %s", u.Ifindex, hook)
		}
	}
	if err := d.f.change(); err != nil {
		return err
	}
	d.uplinks[u.Ifindex] = u
	return nil
}

func (d *fakeDatapath) DeleteUplink(ifindex int) error {
	if err := d.f.change(); err != nil {
		return err
	}
	delete(d.uplinks, ifindex)
	return nil
}

func (d *fakeDatapath) Uplinks() ([]int, error) { return slices.Collect(maps.Keys(d.uplinks)), nil }

func (d *fakeDatapath) Flows(yield func(loader.Flow) bool) error {
	for _, f := range d.flows {
		if !yield(f) {
			break
		}
	}
	return nil
}

func (d *fakeDatapath) FlushFlows(match func(loader.Flow) bool) (int, error) {
	before := len(d.flows)
	d.flows = slices.DeleteFunc(d.flows, match)
	return before - len(d.flows), nil
}

func (d *fakeDatapath) Drops() ([]loader.Drops, error) { return d.drops, nil }
func (d *fakeDatapath) ForgetDrops(int) error          { return nil }

func (d *fakeDatapath) ForgetEndpointDrops(loader.Endpoint) error { return nil }

func (d *fakeDatapath) Listen(want loader.Wanted) (listener, error) {
	d.heard.wanted = append(d.heard.wanted, want)
	return d.heard, d.heard.err
}

func (d *fakeDatapath) Listeners() (int, error) { return len(d.heard.wanted), nil }

func (d *fakeDatapath) Usage() ([]loader.MapUse, error) {
	if d.f.ill.usage != nil {
		return d.f.ill.usage, nil
	}
	return []loader.MapUse{{Name: "services", Used: len(d.services), Max: 65536}}, nil
}

// dump shows everything in the kernel, with names for interface indices, which
// change when a device is made anew.
func (f *fake) dump() []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for name, l := range f.links {
		add("link %s %s %s %s on %s", name, l.Kind, l.Alias, f.inside[name], f.name(l.MasterIndex))
	}
	add("reserved %v", f.reserved)
	for k := range f.filters {
		var i int
		var ingress bool
		fmt.Sscan(k, &i, &ingress)
		if name := f.name(i); name != "gone" { // filters go with their device
			add("filter %s %v", name, ingress)
		}
	}
	if d := f.dp; d != nil {
		add("loaded %+v", d.cfg)
		add("sockets of %q", d.sockets)
		add("addresses %v, broadcast %v", d.local, d.broadcast)
		for a := range d.attached {
			if f.name(a.Ifindex) == "gone" {
				continue // a pin of a dead link says nothing
			}
			add("attached %s %s", a.Hook, f.name(a.Ifindex))
		}
		for _, n := range d.networks {
			add("network %d %v %s", n.ID, n.Subnets, f.name(n.Bridge))
		}
		for _, e := range d.endpoints {
			add("endpoint %d %v %s", e.Slot, e.Addrs, f.name(e.Ifindex))
		}
		for k, v := range d.services {
			add("service %s -> %s by %s", k, v.to, f.name(v.ifindex))
		}
		for i := range d.uplinks {
			add("uplink %s", f.name(i))
		}
	}
	sort.Strings(out)
	return out
}

var ifindex = regexp.MustCompile(`"ifindex":\d+,`)

// dumpState shows all records, but not where the next search for a number or an
// address starts, and not the indices of devices.
func dumpState(t *testing.T, h *Host) []string {
	t.Helper()
	var out []string
	var walk func(path string, b *bbolt.Bucket) error
	walk = func(path string, b *bbolt.Bucket) error {
		return b.ForEach(func(k, v []byte) error {
			if bytes.Equal(k, sumKey) { // of each transaction another
				return nil
			}
			if v == nil {
				return walk(fmt.Sprintf("%s/%q", path, k), b.Bucket(k))
			}
			v = ifindex.ReplaceAll(v, nil)
			out = append(out, fmt.Sprintf("%s/%q = %q", path, k, v))
			return nil
		})
	}
	err := h.state.view(func(t *tx) error {
		for _, name := range allBuckets {
			if bytes.Equal(name, ipamBucket) {
				continue
			}
			if err := walk(string(name), t.Bucket(name)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	infos, err := h.Networks()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range infos {
		out = append(out, fmt.Sprintf("%s addresses %+v", n.Name, n.Addresses))
	}
	return out
}

// openFake opens a host on the fake for a test.
func openFake(t *testing.T, dir string, f *fake, change ...func(*Options)) *Host {
	t.Helper()
	o := Options{StateDir: dir, BPFFS: "/fake"}
	for _, c := range change {
		c(&o)
	}
	h, err := open(o, ReadWrite, f, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	h.state.db.NoSync = true
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// upFake is openFake after a first Up.
func upFake(t *testing.T, f *fake) *Host {
	t.Helper()
	h := openFake(t, t.TempDir(), f)
	must(t)(h.Up(UpRequest{}))
	return h
}

// must returns a function that fails the test on an error.
func must(t *testing.T) func(v any, err error) {
	t.Helper()
	return func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
}

func specs(t *testing.T, ss ...string) []PortSpec {
	t.Helper()
	var out []PortSpec
	for _, s := range ss {
		p, err := ParsePortSpec(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

func wantKind(t *testing.T, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("error %v, want kind %v", err, kind)
	}
	if err != nil && strings.ContainsAny(err.Error(), "\n") {
		t.Errorf("error of more than one line: %q", err)
	}
}
