package network

import (
	"net"
	"net/netip"
	"time"
)

// Access says what a Host is opened for.
type Access int

// The ways to open a Host. Nouns share the state's lock; verbs hold it alone.
const (
	ReadOnly Access = iota
	ReadWrite
)

// Options say where the host keeps its state and how verbs report.
type Options struct {
	StateDir string // directory of ebnet.db and lock
	BPFFS    string // directory of the pins, on a bpf file system
	Cgroup   string // cgroup2 directory of the socket hooks; "": the first cgroup2 mount

	// DryRun makes verbs check and plan, call Step for each step, and change
	// nothing; what they return is then what would be.
	DryRun bool

	// Step, if not nil, is called with the text of each step: as it happens
	// or, with DryRun, instead of it.
	Step func(text string)

	// Warn, if not nil, is called with what is wrong but does not stop a verb.
	Warn func(text string)

	// Version is that of this ebnet, for the one that cannot read what this one wrote.
	Version string

	// DisableTCX attaches by clsact filters even where the kernel has tcx.
	DisableTCX bool
}

// DefaultNetwork is the network that Up creates, with the bridge ebnet0.
const DefaultNetwork = "default"

// The modes of a network.
const (
	ModeNAT    = "nat"
	ModeRouted = "routed"
)

// UpRequest is what `ebnet up` was asked for.
type UpRequest struct {
	Uplinks  []string                 // devices; none: those recorded, else detected
	FastPath *bool                    // nil: as recorded, else on
	MaxFlows int                      // 0: as recorded, else loader.DefaultMaxFlows
	Timeouts map[string]time.Duration // by name, see ParseTimeouts; 0: back to the default
	File     *Config                  // nil: nothing to apply beside what is recorded
	Prune    bool                     // remove what File does not name
	Yes      bool                     // replace another version's datapath even if that ends conversations
}

// UpReport is what Up did.
type UpReport struct {
	Changed   bool     `json:"changed"` // false: everything was as recorded already
	Uplinks   []string `json:"uplinks"` // device names
	Networks  int      `json:"networks"`
	Endpoints int      `json:"endpoints"`
	Ports     int      `json:"ports"`    // published ports, ranges counted in full
	Gone      []string `json:"gone"`     // endpoints whose namespace is gone
	Warnings  []string `json:"warnings"` // what is wrong but did not stop Up
}

// NetworkRequest describes a network to create. The zero value of each optional
// field means the default.
type NetworkRequest struct {
	Name       string
	Subnets    []netip.Prefix        // none: the first free default pool
	IPRanges   []netip.Prefix        // windows for allocation, each within a subnet
	Gateways   []netip.Addr          // at most one a subnet; none: its first usable address
	Aux        map[string]netip.Addr // addresses never given, by name
	IPv6       bool
	Internal   bool
	ICC        bool         // endpoints may talk to each other; the command's default is true
	Masquerade bool         // translate to the uplink's address; the command's default is true
	Mode       string       // ModeNAT, ModeRouted or ""
	SNATAddrs  []netip.Addr // what leaves gets it as its source; none: the one that routing prefers
	MTU        int          // bytes, 68 to 65535; 0: that of the uplink
	Bridge     string       // interface name; "": ebnet0 or br- and 8 hex digits
	Labels     map[string]string
}

// NetworkInfo shows a network. Slices are never nil; subnets and ranges print
// with a prefix length, addresses without.
type NetworkInfo struct {
	Name       string            `json:"name"`
	Subnets    []netip.Prefix    `json:"subnets"`
	Gateways   []netip.Addr      `json:"gateways"`
	IPRanges   []netip.Prefix    `json:"ip_ranges"`
	Bridge     string            `json:"bridge"`
	MTU        int               `json:"mtu"`
	Internal   bool              `json:"internal"`
	ICC        bool              `json:"icc"`
	Masquerade bool              `json:"masquerade"`
	Mode       string            `json:"mode"`
	SNAT       string            `json:"snat_address"` // "": the one that routing prefers
	IPv6       bool              `json:"ipv6"`
	Labels     map[string]string `json:"labels"`
	Endpoints  int               `json:"endpoints"`
	Addresses  AddressUse        `json:"addresses"`
}

// AddressUse counts a network's addresses. Used are those of endpoints;
// Available are those that can still be given.
type AddressUse struct {
	Used      uint64 `json:"used"`
	Available uint64 `json:"available"`
}

// ConnectRequest describes an endpoint to create.
type ConnectRequest struct {
	Network        string
	NetNS          string // a name under /run/netns, a path with a slash, or "pid:N"
	Name           string // "": that of the namespace, or ep- and 8 hex digits
	IPs            []netip.Addr
	MAC            net.HardwareAddr // nil: 02:eb: and the address
	IfName         string           // inside the namespace; "": eth0
	Ports          []PortSpec
	From           []netip.Prefix // sources that may use Ports; none: all
	Labels         map[string]string
	NoDefaultRoute bool
	Transient      bool // Up removes it once its namespace is gone
}

// The states of an endpoint.
const (
	StateUp   = "up"
	StateGone = "gone" // its namespace or its device is gone
)

// EndpointInfo shows an endpoint. IPv4 and IPv6 are "" where it has none.
type EndpointInfo struct {
	Name       string            `json:"name"`
	Network    string            `json:"network"`
	IPv4       string            `json:"ipv4"`
	IPv6       string            `json:"ipv6"`
	MAC        string            `json:"mac"`
	IfName     string            `json:"ifname"`
	HostIfName string            `json:"host_ifname"`
	Ifindex    int               `json:"ifindex"` // of HostIfName; 0 while gone
	NetNS      string            `json:"netns"`   // as given to Connect
	Ports      []PortInfo        `json:"ports"`
	Labels     map[string]string `json:"labels"`
	State      string            `json:"state"`
}

// PortInfo shows a published port or range of them.
type PortInfo struct {
	Endpoint    string         `json:"endpoint"`
	Protocol    string         `json:"protocol"` // "tcp" or "udp"
	HostIP      string         `json:"host_ip"`  // "0.0.0.0": any IPv4 address of the host
	HostPort    uint16         `json:"host_port"`
	HostPortEnd uint16         `json:"host_port_end"` // inclusive; equal to HostPort for one port
	IP          string         `json:"ip"`
	Port        uint16         `json:"port"`
	PortEnd     uint16         `json:"port_end"`
	From        []netip.Prefix `json:"from"`
}

// FlowFilter selects flows that fit all of it. The zero value selects all. Addresses and ports
// count before and after translation.
type FlowFilter struct {
	Endpoint string       // "": of every endpoint; an unknown one is ErrNotFound
	Protocol string       // one of FlowProtocols
	Kind     string       // one of FlowKinds
	State    string       // one of FlowStates
	Port     uint16       // of either side
	Src, Dst netip.Prefix // of the originator and of whom it talks to
	Limit    int          // 0: no limit; ignored by FlushFlows
}

// FlowInfo shows a tracked conversation as its originator sends it.
type FlowInfo struct {
	Protocol      string `json:"protocol"`
	State         string `json:"state"`
	Src           string `json:"src"` // address:port; the port of icmp is the echo id
	Dst           string `json:"dst"`
	TranslatedSrc string `json:"translated_src"`
	TranslatedDst string `json:"translated_dst"`
	Endpoint      string `json:"endpoint"`
	Kind          string `json:"kind"` // snat, dnat, hairpin, direct or host
	Packets       uint64 `json:"packets"`
	Bytes         uint64 `json:"bytes"`
	Expires       int    `json:"expires_in_seconds"`
}

// StatusInfo shows the host. It is available without a datapath too.
type StatusInfo struct {
	Up         bool           `json:"up"` // a datapath is loaded
	Kernel     string         `json:"kernel"`
	Features   Features       `json:"features"`
	Sides      []UplinkInfo   `json:"sides"` // bridges of others on this host, whose containers reach published ports
	Uplinks    []UplinkInfo   `json:"uplinks"`
	Timeouts   map[string]int `json:"timeouts"` // in seconds
	Networks   int            `json:"networks"`
	Endpoints  int            `json:"endpoints"`
	Ports      int            `json:"ports"` // published ports, ranges counted in full
	Maps       []MapInfo      `json:"maps"`
	Drops      []DropInfo     `json:"drops"`
	Listeners  int            `json:"listeners"` // running `ebnet monitor`
	Shares     []ShareInfo    `json:"shares"`
	Incomplete []string       `json:"incomplete"` // what killed commands left; `ebnet up` undoes it
}

// Features are those in use.
type Features struct {
	Attach   string `json:"attach"` // "tcx" or "clsact"; "" while not up
	FastPath bool   `json:"fast_path"`
	MaxFlows int    `json:"max_flows"`

	// SocketHooks says that processes of the host reach published ports, and cannot
	// bind them.
	SocketHooks bool `json:"socket_hooks"`
}

// UplinkInfo shows an uplink.
type UplinkInfo struct {
	Name     string       `json:"name"`
	Ifindex  int          `json:"ifindex"`
	Addrs    []netip.Addr `json:"addresses"`
	MTU      int          `json:"mtu"`
	Attached bool         `json:"attached"` // the programs run there
}

// MapInfo shows how full a map is.
type MapInfo struct {
	Name     string  `json:"name"`
	Used     int     `json:"used"`
	Max      int     `json:"max"`
	Pressure float64 `json:"pressure"` // Used/Max, 0 to 1
}

// ShareInfo shows how much of the flow table belongs to an endpoint or to one of its
// published ports.
type ShareInfo struct {
	Endpoint string `json:"endpoint"`
	Port     string `json:"port,omitempty"` // HOSTIP:HOSTPORT/PROTO; "": the endpoint's own conversations
	Held     int    `json:"held"`           // confirmed conversations
	Refused  int    `json:"refused"`        // those not confirmed because the share was used up
}

// DropInfo counts the packets dropped for one reason at one device.
type DropInfo struct {
	Reason   string `json:"reason"`
	Endpoint string `json:"endpoint"` // "" where the device is no endpoint's
	Device   string `json:"device"`
	Packets  uint64 `json:"packets"`
	Bytes    uint64 `json:"bytes"`
}
