package loader

import (
	"net"
	"net/netip"
	"time"
)

// Config is what is fixed when the programs are loaded; changing it replaces
// the programs in place.
type Config struct {
	// FastPath lets programs redirect past the bridge and the host's stack.
	FastPath bool

	// MaxFlows is how many confirmed conversations the flow table holds.
	// 0 means DefaultMaxFlows. It cannot change while a datapath is loaded.
	MaxFlows int

	// Secret keys the hash that spreads source ports. Any value is valid; it
	// is constant for the life of the state file so that a replacement of the
	// programs does not move ports.
	Secret uint64

	// Timeouts are how long idle conversations live; the zero value means
	// DefaultTimeouts.
	Timeouts Timeouts

	// DisableTCX attaches by clsact filters even where the kernel has tcx.
	DisableTCX bool
}

// DefaultMaxFlows is the flow table's capacity in conversations.
const DefaultMaxFlows = 256 << 10

// Timeouts are how long conversations live without a packet, in whole seconds.
type Timeouts struct {
	TCPSyn         time.Duration // opened, not yet answered
	TCPEstablished time.Duration
	TCPHalfClosed  time.Duration // a FIN of one side
	TCPClosed      time.Duration // a FIN of both sides or an RST
	UDPUnreplied   time.Duration
	UDPReplied     time.Duration
	ICMP           time.Duration
}

// DefaultTimeouts are at or above what the RFCs ask for: 5382 REQ-5 (established, 2 h
// 4 min), 4787 REQ-5 (UDP, 2 min), 5508 REQ-1 (ICMP, 60 s).
var DefaultTimeouts = Timeouts{
	TCPSyn:         60 * time.Second,
	TCPEstablished: 7440 * time.Second,
	TCPHalfClosed:  120 * time.Second,
	TCPClosed:      30 * time.Second,
	UDPUnreplied:   30 * time.Second,
	UDPReplied:     180 * time.Second,
	ICMP:           60 * time.Second,
}

// seconds are the timeouts in the order of bpf/config.h.
func (t Timeouts) seconds() (s [7]uint32) {
	for i, d := range []time.Duration{t.TCPSyn, t.TCPEstablished, t.TCPHalfClosed, t.TCPClosed,
		t.UDPUnreplied, t.UDPReplied, t.ICMP} {
		s[i] = uint32(d / time.Second)
	}
	return s
}

// timeoutsOf is the inverse of seconds.
func timeoutsOf(s [7]uint32) Timeouts {
	d := func(i int) time.Duration { return time.Duration(s[i]) * time.Second }
	return Timeouts{d(0), d(1), d(2), d(3), d(4), d(5), d(6)}
}

// Hook names one of the programs by where it is attached.
type Hook string

// The hooks, named from the container's point of view.
const (
	FromContainer Hook = "from_container" // ingress of a host-side veth
	FromUplink    Hook = "from_uplink"    // ingress of an uplink
	ToUplink      Hook = "to_uplink"      // egress of an uplink
	FromBridge    Hook = "from_bridge"    // ingress of a network's bridge
	ToBridge      Hook = "to_bridge"      // egress of a network's bridge
)

// Ingress reports whether the hook is on the device's receive side.
func (h Hook) Ingress() bool { return h != ToUplink && h != ToBridge }

// Network is what the datapath knows of a network.
type Network struct {
	// ID is chosen by the caller, unique, 1 to MaxNetworks-1.
	ID uint32

	// Subnets and Gateways are parallel, at most one of each family.
	Subnets  []netip.Prefix
	Gateways []netip.Addr

	Bridge    int              // interface index of the bridge
	BridgeMAC net.HardwareAddr // 6 bytes
	MTU       int              // bytes, of the bridge and its endpoints

	// SNAT is the source address of what leaves, the zero Addr where it is the one
	// that routing prefers.
	SNAT netip.Addr

	Internal   bool // no way out or in but the gateway
	ICC        bool // endpoints of the network may talk to each other
	Masquerade bool // translate what leaves; if not, it leaves with the endpoint's address
	Routed     bool // no translation at all: published ports are those of the endpoints' addresses
}

// MaxNetworks bounds Network.ID from above (exclusive).
const MaxNetworks = 1024

// Endpoint is what the datapath knows of an endpoint.
type Endpoint struct {
	// Slot is the endpoint's index in the table of generations, 1 to
	// MaxSlots-1, unique over endpoints and publications together.
	Slot    uint32
	Network uint32           // Network.ID
	Ifindex int              // of the host-side veth
	Addrs   []netip.Addr     // at most one of each family
	MAC     net.HardwareAddr // of the container's side, 6 bytes
}

// MaxSlots bounds Endpoint.Slot and Publication.Slot from above (exclusive).
const MaxSlots = 128 << 10

// Protocol is an IP protocol number.
type Protocol uint8

// The protocols that ports can be published for.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

// Publication is one published port or one range of them, mapped one to one:
// HostAddr:HostPort+i goes to Addr:Port+i. In a routed network HostAddr is Addr and
// HostPort is Port; no port of the host is taken then.
type Publication struct {
	Slot     uint32     // see Endpoint.Slot
	Protocol Protocol   // TCP or UDP
	HostAddr netip.Addr // the zero Addr means any local IPv4 address
	HostPort uint16     // first host port, host byte order
	Count    int        // number of ports, at least 1
	Network  uint32     // Network.ID of the endpoint
	Ifindex  int        // host-side veth of the endpoint
	MAC      net.HardwareAddr
	Addr     netip.Addr // of the endpoint
	Port     uint16     // first port of the endpoint, host byte order

	// From are the only sources that may use the ports, all if there are none. The
	// host itself always may.
	From []netip.Prefix
}

// Uplink is a device that leads outside.
type Uplink struct {
	Ifindex int
	Addrs   []netip.Addr // source addresses where the kernel does not choose
	MTU     int

	// Side is set where the device leads to others on this host (a bridge of another
	// container engine): published ports are open to them, but endpoints' packets do
	// not go there on their own.
	Side bool
}

// PortSet is a set of port numbers, one bit each: port p is bit p%64 of word
// p/64.
type PortSet [1024]uint64

// Add puts the ports first to first+count-1 into the set.
func (s *PortSet) Add(first uint16, count int) {
	for p := int(first); p < int(first)+count && p < 65536; p++ {
		s[p/64] |= 1 << (p % 64)
	}
}

// Remove takes the ports first to first+count-1 out of the set.
func (s *PortSet) Remove(first uint16, count int) {
	for p := int(first); p < int(first)+count && p < 65536; p++ {
		s[p/64] &^= 1 << (p % 64)
	}
}

// Has reports whether port is in the set.
func (s *PortSet) Has(port uint16) bool { return s[port/64]&(1<<(port%64)) != 0 }

// Flow is one tracked conversation as the originator sends it: what the packets
// carry before and after translation.
type Flow struct {
	Protocol string // "tcp", "udp" or "icmp"
	State    string // e.g. "syn", "established", "closed", "unreplied", "replied"
	Kind     string // "snat", "dnat", "hairpin", "host", or "direct" for what is not translated

	Src, Dst                     netip.AddrPort // port of icmp: the echo id, on the side of the requester
	TranslatedSrc, TranslatedDst netip.AddrPort

	// Slot is that of the endpoint (snat) or publication (dnat) that the flow
	// lives and dies with.
	Slot uint32

	// Packets and Bytes of both directions; bytes are of layer 2 frames as the
	// hook saw them (after GRO one frame may be many packets on the wire).
	Packets, Bytes uint64

	Confirmed bool // in the table that new flows cannot push it out of
	Expires   time.Duration
}

// Drops is how often packets were dropped for one reason at one device.
type Drops struct {
	// Ifindex is the device of the hook. 0: the packets of other containers, which count
	// them as sent at their own devices too.
	Ifindex int

	Slot      uint32 // Endpoint.Slot, 0 where the endpoint is not known
	Direction string // Sent or Received, as the container sees it
	Reason    string
	Packets   uint64
	Bytes     uint64
}

// MapUse is how full a map is.
type MapUse struct {
	Name      string
	Used, Max int
}

// Share is how much of the flow table the owner of a slot has.
type Share struct {
	Slot uint32
	Held int // confirmed conversations

	// Refused is how often a conversation was not confirmed because the owner has its
	// share already. It works all the same, but new ones may push it out.
	Refused int
}

// Attachment is a program on a device.
type Attachment struct {
	Hook    Hook
	Ifindex int
}
