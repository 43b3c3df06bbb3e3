package network

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/ebnet/ebnet/loader"
	"github.com/ebnet/ebnet/loader/netdev"
)

// datapath is what the package uses of *loader.Datapath.
type datapath interface {
	Close() error
	Config() loader.Config
	TCX() bool
	ProgramFD(hook loader.Hook) int
	ProgramID(hook loader.Hook) int
	Staged() bool
	Swap() error
	Abandon() error
	Attach(hook loader.Hook, ifindex int) error
	Detach(hook loader.Hook, ifindex int) error
	Attachments() ([]loader.Attachment, error)
	Attached(hook loader.Hook, ifindex int) bool
	Ahead(hook loader.Hook, ifindex int) ([]loader.Program, error)
	Current() (bool, error)
	Compare(want loader.Contents) ([]loader.Deviation, error)
	Settle(want loader.Contents) ([]loader.Deviation, error)
	PutNetwork(n loader.Network) error
	DeleteNetwork(n loader.Network) error
	Networks() ([]uint32, error)
	PutEndpoint(e loader.Endpoint) error
	DeleteEndpoint(e loader.Endpoint) error
	HasEndpoint(e loader.Endpoint) (bool, error)
	Endpoints() ([]loader.Endpoint, error)
	Publish(ps ...loader.Publication) error
	Unpublish(ps ...loader.Publication) error
	PublishedCount() (int, error)
	ForgetPeers(slots ...uint32) ([]loader.Peer, error)
	SetSourcePorts(allowed *loader.PortSet) error
	AttachSockets(cgroup string) (changed bool, err error)
	DetachSockets() error
	SocketsAttached() bool
	SetLocalAddrs(local, broadcast []netip.Addr) error
	Shares() ([]loader.Share, error)
	PutUplink(u loader.Uplink) error
	DeleteUplink(ifindex int) error
	Uplinks() ([]int, error)
	Flows(yield func(loader.Flow) bool) error
	FlushFlows(match func(loader.Flow) bool) (int, error)
	Drops() ([]loader.Drops, error)
	ForgetDrops(ifindex int) error
	ForgetEndpointDrops(e loader.Endpoint) error
	Listen(want loader.Wanted) (listener, error)
	Listeners() (int, error)
	Usage() ([]loader.MapUse, error)
	Sweep() (loader.Sweep, error)
}

// listener is what the package uses of *loader.Listener.
type listener interface {
	Next(deadline time.Time) (loader.Event, error)
	Want(want loader.Wanted) error
	NotTold() (loader.NotTold, error)
	Close() error
}

// pinned is *loader.Datapath, whose listeners are what the package calls so.
type pinned struct{ *loader.Datapath }

func (p pinned) Listen(want loader.Wanted) (listener, error) {
	l, err := p.Datapath.Listen(want)
	if err != nil {
		return nil, err
	}
	return l, nil
}

// kernel is everything the package asks of the host it runs on; tests fake it.
type kernel interface {
	Load(bpffs string, cfg loader.Config) (dp datapath, changed bool, err error)
	Open(bpffs string) (datapath, error)
	FindHandover(bpffs string) (loader.Handover, error)
	Remove(bpffs string) error

	EnsureBridge(b netdev.Bridge) (ifindex int, changed bool, err error)
	CreateVeth(v netdev.Veth) (ifindex int, err error)
	DeleteLink(ifindex int) error
	DeleteLinks(ifindexes ...int) error
	DeleteUnfinished(ifindex int) error
	SpareLink(ifindex int) error
	DeleteNeighbour(ifindex int, addrs ...netip.Addr) error
	LinkByName(name string) (netdev.Link, error)
	Links() ([]netdev.Link, error)

	// PeerTraffic returns the counters of veths' other ends, by the index of the one here.
	PeerTraffic(ifindexes ...int) (map[int]netdev.Traffic, error)

	// CgroupMount returns the first cgroup2 mount, "" if there is none.
	CgroupMount() (string, error)
	CheckCgroup(dir string) error

	OpenNS(ref string) (*netdev.NS, error)
	CurrentNS() (*netdev.NS, error)
	CloseNS(ns *netdev.NS)

	// NSCookie and BootID tell whether a namespace is the one that was recorded.
	NSCookie(ns *netdev.NS) (uint64, error)
	BootID() (string, error)

	AttachFilter(ifindex int, ingress bool, progFD int, name string) error
	DetachFilter(ifindex int, ingress bool) error
	FilterAttached(ifindex int, ingress bool) (progID int, ok bool, err error)

	CheckVeths(vs []netdev.Veth) ([]netdev.VethReport, error)
	RepairVeths(vs []netdev.Veth) ([]netdev.VethReport, error)

	// What is only looked at, by `ebnet doctor`.
	OtherLayouts(bpffs string) ([]string, error)
	CheckBridge(b netdev.Bridge) (wrong []string, err error)
	FiltersAhead(ifindex int, ingress bool) ([]netdev.Filter, error)
	DNATs() ([]netdev.DNAT, error)
	Sysctl(path string) (string, error)

	DetectUplinks() ([]netdev.Uplink, error)
	DetectSides() ([]netdev.Uplink, error)
	UplinkByName(name string) (netdev.Uplink, error)
	DefaultMTU() (int, error)

	// HostAddrs returns the host's own addresses with their prefix lengths.
	HostAddrs() ([]netip.Prefix, error)
	HostPrefixes() ([]netip.Prefix, error)
	Resolvers() ([]netip.Addr, error)
	PortHolders(proto loader.Protocol, addr netip.Addr, first, last uint16) ([]netdev.Holder, error)
	DestroySockets(proto loader.Protocol, sockets []netdev.Connected) error
	LocalPortRange() (netdev.PortRange, error)
	LocalReservedPorts() ([]netdev.PortRange, error)
	SetLocalReservedPorts(ports []netdev.PortRange) error
}

// linux is the kernel of the calling thread's namespace.
type linux struct{}

var _ kernel = linux{}

func (linux) Load(bpffs string, cfg loader.Config) (datapath, bool, error) {
	dp, changed, err := loader.Load(bpffs, cfg)
	if err != nil {
		return nil, false, err
	}
	return pinned{dp}, changed, nil
}

func (linux) Open(bpffs string) (datapath, error) {
	dp, err := loader.Open(bpffs)
	if err != nil {
		return nil, err
	}
	return pinned{dp}, nil
}

func (linux) Remove(bpffs string) error                             { return loader.Remove(bpffs) }
func (linux) EnsureBridge(b netdev.Bridge) (int, bool, error)       { return netdev.EnsureBridge(b) }
func (linux) CreateVeth(v netdev.Veth) (int, error)                 { return netdev.CreateVeth(v) }
func (linux) DeleteLink(ifindex int) error                          { return netdev.DeleteLink(ifindex) }
func (linux) DeleteLinks(ifindexes ...int) error                    { return netdev.DeleteLinks(ifindexes...) }
func (linux) DeleteUnfinished(ifindex int) error                    { return netdev.DeleteUnfinished(ifindex) }
func (linux) SpareLink(ifindex int) error                           { return netdev.SpareLink(ifindex) }
func (linux) LinkByName(name string) (netdev.Link, error)           { return netdev.LinkByName(name) }
func (linux) Links() ([]netdev.Link, error)                         { return netdev.Links() }
func (linux) CurrentNS() (*netdev.NS, error)                        { return netdev.CurrentNS() }
func (linux) PeerTraffic(is ...int) (map[int]netdev.Traffic, error) { return netdev.PeerTraffic(is...) }
func (linux) CloseNS(ns *netdev.NS)                                 { _ = ns.Close() }
func (linux) DetectUplinks() ([]netdev.Uplink, error)               { return netdev.DetectUplinks() }
func (linux) UplinkByName(name string) (netdev.Uplink, error)       { return netdev.UplinkByName(name) }
func (linux) DefaultMTU() (int, error)                              { return netdev.DefaultMTU() }
func (linux) HostPrefixes() ([]netip.Prefix, error)                 { return netdev.HostPrefixes() }
func (linux) Resolvers() ([]netip.Addr, error)                      { return netdev.Resolvers("") }
func (linux) LocalPortRange() (netdev.PortRange, error)             { return netdev.LocalPortRange() }
func (linux) LocalReservedPorts() ([]netdev.PortRange, error)       { return netdev.LocalReservedPorts() }
func (linux) OtherLayouts(bpffs string) ([]string, error)           { return loader.OtherLayouts(bpffs) }
func (linux) CheckBridge(b netdev.Bridge) ([]string, error)         { return netdev.CheckBridge(b) }
func (linux) DNATs() ([]netdev.DNAT, error)                         { return netdev.DNATs() }
func (linux) Sysctl(path string) (string, error)                    { return netdev.Sysctl(path) }
func (linux) DetectSides() ([]netdev.Uplink, error)                 { return netdev.DetectSides() }
func (linux) SetLocalReservedPorts(ports []netdev.PortRange) error {
	return netdev.SetLocalReservedPorts(ports)
}
func (linux) DeleteNeighbour(ifindex int, addrs ...netip.Addr) error {
	return netdev.DeleteNeighbour(ifindex, addrs...)
}

// OpenNS opens what no other user can have turned elsewhere.
func (linux) OpenNS(ref string) (*netdev.NS, error) {
	if err := checkNSPath(ref); err != nil {
		return nil, err
	}
	return netdev.OpenNS(ref)
}

func (linux) DetachFilter(ifindex int, ingress bool) error {
	return netdev.DetachFilter(ifindex, ingress)
}

func (linux) AttachFilter(ifindex int, ingress bool, progFD int, name string) error {
	return netdev.AttachFilter(ifindex, ingress, progFD, name)
}

func (linux) FiltersAhead(ifindex int, ingress bool) ([]netdev.Filter, error) {
	return netdev.FiltersAhead(ifindex, ingress)
}

func (linux) FilterAttached(ifindex int, ingress bool) (int, bool, error) {
	return netdev.FilterAttached(ifindex, ingress)
}

func (linux) NSCookie(ns *netdev.NS) (uint64, error) { return ns.Cookie() }
func (linux) BootID() (string, error)                { return netdev.BootID() }

func (linux) CheckVeths(vs []netdev.Veth) ([]netdev.VethReport, error) { return netdev.CheckVeths(vs) }

func (linux) RepairVeths(vs []netdev.Veth) ([]netdev.VethReport, error) {
	return netdev.RepairVeths(vs)
}

func (linux) FindHandover(bpffs string) (loader.Handover, error) { return loader.FindHandover(bpffs) }

func (linux) PortHolders(proto loader.Protocol, addr netip.Addr, first, last uint16) ([]netdev.Holder, error) {
	return netdev.PortHolders(uint8(proto), addr, first, last)
}

func (linux) HostAddrs() ([]netip.Prefix, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	var ps []netip.Prefix
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			ps = append(ps, p)
		}
	}
	return ps, nil
}

func (linux) DestroySockets(proto loader.Protocol, sockets []netdev.Connected) error {
	_, err := netdev.DestroySockets(uint8(proto), sockets)
	return err
}
