package network

import (
	"net"
	"net/netip"

	"github.com/ebnet/ebnet/ipam"
	"github.com/ebnet/ebnet/loader"
)

// schemaVersion is that of the records below. A change that an older ebnet
// would misread raises it.
const schemaVersion = 2

// firstSchema is the oldest that is read: 1 has no sources, direct ports or SNAT
// addresses, and means the same without them.
const firstSchema = 1

// status says whether a record's intent has been carried out. Verbs exclude each
// other, so a record that is not applied while nobody works was left by a
// command that was killed.
type status string

const (
	applied  status = ""
	pending  status = "pending"  // being created
	removing status = "removing" // being removed
)

// hostRecord is what the state knows of the host itself.
type hostRecord struct {
	Secret   uint64         `json:"secret"` // loader.Config.Secret
	Uplinks  []string       `json:"uplinks,omitempty"`
	FastPath bool           `json:"fast_path"`
	Sides    []string       `json:"sides,omitempty"` // bridges of others that are hooked
	MaxFlows int            `json:"max_flows,omitempty"`
	Timeouts map[string]int `json:"timeouts,omitempty"` // in seconds, where they are not the default

	Cgroup string `json:"cgroup,omitempty"` // of the socket hooks of the last Up

	// The network namespace of the last Up.
	NSDev   uint64 `json:"ns_dev,omitempty"`
	NSInode uint64 `json:"ns_inode,omitempty"`
}

type networkRecord struct {
	Name       string                `json:"name"`
	ID         uint32                `json:"id"`
	Subnets    []netip.Prefix        `json:"subnets"`
	IPRanges   []netip.Prefix        `json:"ip_ranges,omitempty"`
	Gateways   []netip.Addr          `json:"gateways"` // parallel to Subnets
	Aux        map[string]netip.Addr `json:"aux,omitempty"`
	Bridge     string                `json:"bridge"`
	MTU        int                   `json:"mtu"`
	Internal   bool                  `json:"internal,omitempty"`
	ICC        bool                  `json:"icc"`
	Masquerade bool                  `json:"masquerade"`
	Mode       string                `json:"mode"`
	SNAT       netip.Addr            `json:"snat,omitzero"` // of what leaves; the zero Addr: what routing prefers
	Labels     map[string]string     `json:"labels,omitempty"`
	Status     status                `json:"status,omitempty"`
}

type endpointRecord struct {
	Name           string            `json:"name"`
	Network        string            `json:"network"`
	Slot           uint32            `json:"slot"`
	IP             netip.Addr        `json:"ip"`
	MAC            string            `json:"mac"`
	IfName         string            `json:"ifname"`
	HostIfName     string            `json:"host_ifname"`
	Ifindex        int               `json:"ifindex"` // of HostIfName when it was created last
	NetNS          string            `json:"netns"`   // as given
	NSPath         string            `json:"ns_path"`
	NSDev          uint64            `json:"ns_dev"`
	NSInode        uint64            `json:"ns_inode"`
	NSCookie       uint64            `json:"ns_cookie,omitempty"` // 0: by a version that did not record it
	Boot           string            `json:"boot,omitempty"`      // in which these three were so
	NoDefaultRoute bool              `json:"no_default_route,omitempty"`
	Transient      bool              `json:"transient,omitempty"` // ends with its namespace
	Labels         map[string]string `json:"labels,omitempty"`
	Status         status            `json:"status,omitempty"`
}

type portRecord struct {
	Endpoint string          `json:"endpoint"`
	Slot     uint32          `json:"slot"`
	Protocol loader.Protocol `json:"protocol"`
	HostIP   netip.Addr      `json:"host_ip"` // the zero Addr: any IPv4 address
	HostPort uint16          `json:"host_port"`
	Port     uint16          `json:"port"`
	Count    int             `json:"count"`
	From     []netip.Prefix  `json:"from,omitempty"`   // the only sources; none: all
	Direct   bool            `json:"direct,omitempty"` // of a routed network: HostIP and HostPort are the endpoint's
	Status   status          `json:"status,omitempty"`
}

// pool is the configuration of the network's first subnet's addresses.
func (n *networkRecord) pool() ipam.Config {
	c := ipam.Config{Subnet: n.Subnets[0], Reserved: n.Aux}
	if len(n.Gateways) > 0 { // not settled yet
		c.Gateway = n.Gateways[0]
	}
	if len(n.IPRanges) > 0 {
		c.Range = n.IPRanges[0]
	}
	return c
}

func (n *networkRecord) bridgeMAC() net.HardwareAddr { return defaultMAC(bridgeOUI, n.Gateways[0]) }

// datapath is the network as the datapath knows it; bridge is its device.
func (n *networkRecord) datapath(bridge int) loader.Network {
	return loader.Network{
		ID:         n.ID,
		Subnets:    n.Subnets,
		Gateways:   n.Gateways,
		Bridge:     bridge,
		BridgeMAC:  n.bridgeMAC(),
		MTU:        n.MTU,
		SNAT:       n.SNAT,
		Internal:   n.Internal,
		ICC:        n.ICC,
		Masquerade: n.Masquerade,
		Routed:     n.Mode == ModeRouted,
	}
}

func (e *endpointRecord) mac() net.HardwareAddr {
	mac, _ := net.ParseMAC(e.MAC) // written by us from one
	return mac
}

func (e *endpointRecord) alias() string { return bridgeAlias(e.Network) + "/" + e.Name }

// datapath is the endpoint as the datapath knows it; network is its network's id.
func (e *endpointRecord) datapath(network uint32) loader.Endpoint {
	return loader.Endpoint{
		Slot:    e.Slot,
		Network: network,
		Ifindex: e.Ifindex,
		Addrs:   []netip.Addr{e.IP},
		MAC:     e.mac(),
	}
}

// hostEnd and end are the last ports of both ranges.
func (p *portRecord) hostEnd() uint16 { return p.HostPort + uint16(p.Count-1) }
func (p *portRecord) end() uint16     { return p.Port + uint16(p.Count-1) }

// datapath is the publication as the datapath knows it.
func (p *portRecord) datapath(network uint32, e *endpointRecord) loader.Publication {
	return loader.Publication{
		Slot:     p.Slot,
		Protocol: p.Protocol,
		HostAddr: p.HostIP,
		HostPort: p.HostPort,
		Count:    p.Count,
		Network:  network,
		Ifindex:  e.Ifindex,
		MAC:      e.mac(),
		Addr:     p.addr(e),
		Port:     p.Port,
		From:     p.From,
	}
}

// addr is that of the endpoint. Of a direct port it is known without the endpoint.
func (p *portRecord) addr(e *endpointRecord) netip.Addr {
	if p.Direct {
		return p.HostIP
	}
	return e.IP
}
