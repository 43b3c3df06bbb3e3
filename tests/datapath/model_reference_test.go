package datapath

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/ebnet/ebnet/loader"
)

// This file is a plain translator to compare the programs with: slices that are walked,
// one clock, one state for each conversation. What it knows is ARCHITECTURE.md's.

// tuple is what identifies a direction of a conversation. An echo has its identifier on
// the requester's side, and 0 on the other.
type tuple struct {
	proto    uint8
	src, dst netip.AddrPort
}

func (k tuple) reverse() tuple { return tuple{k.proto, k.dst, k.src} }

func (k tuple) String() string { return fmt.Sprintf("%d %v>%v", k.proto, k.src, k.dst) }

// tupleOf reads a packet, which has an echo's identifier as the port of src.
func tupleOf(p packet) tuple {
	k := tuple{p.proto, p.src, p.dst}
	if p.proto != icmp {
		return k
	}
	id := p.src.Port()
	k.src, k.dst = netip.AddrPortFrom(p.src.Addr(), id), netip.AddrPortFrom(p.dst.Addr(), 0)
	if p.kind == 0 { // an answer
		k.src, k.dst = netip.AddrPortFrom(p.src.Addr(), 0), netip.AddrPortFrom(p.dst.Addr(), id)
	}
	return k
}

// opens reports whether a packet may be the first of a conversation.
func opens(p packet) bool {
	switch p.proto {
	case tcp:
		return p.flags&(syn|ack|rst|fin) == syn
	case icmp:
		return p.kind == 8
	}
	return true
}

// owner is something that conversations live and die with: one life of an endpoint or of
// a published port.
type owner struct {
	slot uint32
	gone bool
}

// station is one life of an endpoint.
type station struct {
	owner
	loader.Endpoint
	gateway netip.Addr
}

func (s *station) addr() netip.Addr { return s.Addrs[0] }

func (s *station) subnet() netip.Prefix { return netip.PrefixFrom(s.addr(), 16).Masked() }

// opening is one life of a published port.
type portOpening struct {
	owner
	loader.Publication
	to *station
}

// talk is one conversation.
type talk struct {
	kind           string // as in loader.Flow
	before, after  tuple  // of the originator's packets
	owner          *owner
	client, server *station // nil where that side is outside
	seen           [2]uint8 // TCP flags of both sides, or just anything
	last           time.Duration
}

const anything = 1 << 7 // in talk.seen, of any packet

// idle is how long a conversation may be silent.
func (c *talk) idle() time.Duration {
	either, both := c.seen[0]|c.seen[1], c.seen[0]&c.seen[1]
	switch {
	case c.before.proto == icmp:
		return seconds(60)
	case c.before.proto == udp && both == 0:
		return seconds(30)
	case c.before.proto == udp:
		return seconds(180)
	case either&rst != 0, both&fin != 0:
		return seconds(30)
	case either&fin != 0:
		return seconds(120)
	case both&syn != 0:
		return seconds(7440)
	}
	return seconds(60)
}

// closed: a first packet of the same two opens it anew.
func (c *talk) closed() bool {
	return c.before.proto == tcp && ((c.seen[0]|c.seen[1])&rst != 0 || c.seen[0]&c.seen[1]&fin != 0)
}

// carries returns which side sends packets with the tuple, -1 if neither does.
func (c *talk) carries(k tuple) int {
	switch k {
	case c.before:
		return 0
	case c.after.reverse():
		return 1
	}
	return -1
}

// sender returns the endpoint that sends one side's packets, nil if that is outside.
func (c *talk) sender(side int) *station {
	if side == 0 {
		return c.client
	}
	return c.server
}

// translated is what a packet of one side carries afterwards.
func (c *talk) translated(side int) tuple {
	if side == 0 {
		return c.after
	}
	return c.before.reverse()
}

func (c *talk) String() string {
	return fmt.Sprintf("%s %v as %v, seen %#x", c.kind, c.before, c.after, c.seen)
}

// reference is the translator.
type reference struct {
	now      time.Duration
	source   *loader.PortSet
	stations map[netip.Addr]*station // by address, those that are there
	ports    []*portOpening          // likewise
	talks    []*talk                 // also those that are over, until their tuples are reused
}

func (r *reference) lives(c *talk) bool { return !c.owner.gone && r.now-c.last < c.idle() }

// find returns the living conversation that a packet belongs to and which side sends it.
func (r *reference) find(from *station, p packet) (*talk, int) {
	for _, c := range r.talks {
		side := c.carries(tupleOf(p))
		if side >= 0 && r.lives(c) && c.sender(side) == from && !(opens(p) && c.closed()) {
			return c, side
		}
	}
	return nil, 0
}

// unpublished reports whether a datagram of an endpoint goes on with a conversation whose
// port was unpublished: as long as it does, it opens nothing.
func (r *reference) unpublished(from *station, p packet) bool {
	for _, c := range r.talks {
		if c.kind == "dnat" && p.proto == udp && c.owner.gone && c.carries(tupleOf(p)) == 1 && c.server == from &&
			r.now-c.last < c.idle() {
			c.last = r.now
			return true
		}
	}
	return false
}

// used reports whether a living conversation has the tuple, in either direction.
func (r *reference) used(k tuple) bool {
	for _, c := range r.talks {
		if r.lives(c) && c.carries(k) >= 0 {
			return true
		}
	}
	return false
}

// published finds the published port that a packet is for: of its very address, else of
// any address of the host.
func (r *reference) published(p packet) *portOpening {
	var any *portOpening
	for _, o := range r.ports {
		if uint8(o.Protocol) != p.proto || o.HostPort != p.dst.Port() {
			continue
		}
		if o.HostAddr == p.dst.Addr() {
			return o
		}
		if !o.HostAddr.IsValid() && ofHost(p.dst.Addr()) {
			any = o
		}
	}
	return any
}

// reserved reports whether a port is published on whatever address.
func (r *reference) reserved(proto uint8, port uint16) bool {
	for _, o := range r.ports {
		if uint8(o.Protocol) == proto && o.HostPort == port {
			return true
		}
	}
	return false
}

func ofHost(a netip.Addr) bool { return a == hostAddr || a == hostAddr2 || a == gateway }

// decision is what is to become of a packet.
type decision struct {
	what string // "drop", "forged", "host": left to its stack, "neighbour", "talk", "open"
	why  string

	to   *station     // neighbour
	talk *talk        // talk; host: what is known of it, if anything
	side int          // talk, host
	port *portOpening // open: nil toward the outside
}

// ofStation decides about what an endpoint sends.
func (r *reference) ofStation(from *station, p packet) decision {
	c, side := r.find(from, p)
	to := r.stations[p.dst.Addr()]
	switch {
	case from.gone:
		return decision{what: "drop", why: "removed"}
	case c != nil && c.kind == "hairpin":
		other := c.sender(1 - side)
		if other.gone {
			return decision{what: "drop", why: "the other end was removed"}
		}
		return decision{what: "talk", talk: c, side: side}
	case to != nil && to.Network == from.Network:
		return decision{what: "neighbour", to: to}
	case to != nil:
		return decision{what: "drop", why: "another network"}
	case inner(p.dst.Addr()) && !ofHost(p.dst.Addr()) && !from.subnet().Contains(p.dst.Addr()):
		return decision{what: "drop", why: "another network's, though nobody's"}
	case ofHost(p.dst.Addr()) || inner(p.dst.Addr()):
		if port := r.published(p); port != nil && opens(p) {
			return decision{what: "open", port: port}
		}
		return decision{what: "host", talk: c, side: side}
	case c != nil:
		return decision{what: "talk", talk: c, side: side}
	case r.unpublished(from, p):
		return decision{what: "drop", why: "unpublished"}
	case opens(p):
		return decision{what: "open"}
	}
	return decision{what: "drop", why: "opens nothing"}
}

// ofOutside decides about what comes in by the uplink. From there nobody is a container,
// whatever conversation has its tuple.
func (r *reference) ofOutside(p packet) decision {
	if inner(p.src.Addr()) {
		return decision{what: "forged"}
	}
	if c, side := r.find(nil, p); c != nil {
		return decision{what: "talk", talk: c, side: side}
	}
	if port := r.published(p); port != nil && opens(p) {
		return decision{what: "open", port: port}
	}
	if inner(p.dst.Addr()) {
		return decision{what: "drop", why: "nobody outside reaches an endpoint"}
	}
	return decision{what: "host"}
}

// begin makes the conversation that a first packet opens, but for the port.
func (r *reference) begin(from *station, p packet, port *portOpening) *talk {
	c := &talk{before: tupleOf(p), client: from, last: r.now}
	c.after = c.before
	switch {
	case port == nil:
		c.kind, c.owner = "snat", &from.owner
		c.after.src = netip.AddrPortFrom(hostAddr, c.before.src.Port())
		return c
	case from == nil:
		c.kind = "dnat"
	default:
		c.kind = "hairpin"
	}
	c.owner, c.server = &port.owner, port.to
	c.after.dst = netip.AddrPortFrom(port.to.addr(), port.Port)
	if c.server == from { // it would not take a packet from its own address
		c.after.src = netip.AddrPortFrom(from.gateway, c.before.src.Port())
	}
	return c
}

// beginLocal tracks what an endpoint says to the host, if its answers could be told apart
// from all others.
func (r *reference) beginLocal(from *station, p packet) {
	c := &talk{kind: "direct", before: tupleOf(p), after: tupleOf(p), client: from, owner: &from.owner}
	r.forget(&talk{before: c.before, after: c.before.reverse()})
	if r.used(c.after.reverse()) {
		return
	}
	r.forget(c)
	r.note(c, 0, p)
	r.talks = append(r.talks, c)
}

// withPort returns the conversation with another port where the reply goes.
func (c *talk) withPort(port uint16) *talk {
	other := *c
	other.after.src = netip.AddrPortFrom(c.after.src.Addr(), port)
	return &other
}

// may says why a conversation may not have its port, "" if it may: a port of the host's
// must be in the set and not published, one that only keeps a client's apart need not.
func (r *reference) may(c *talk) string {
	port := c.after.src.Port()
	ours := c.after.src.Addr() != c.before.src.Addr()
	switch {
	case r.used(c.after.reverse()):
		return "is in use"
	case c.before.proto == icmp && port == 0:
		return "is no identifier to tell question and answer apart"
	case c.before.proto == icmp || !ours:
		return ""
	case !r.source.Has(port):
		return "is not in the set"
	case r.reserved(c.before.proto, port):
		return "is published"
	}
	return ""
}

// forget removes what a new conversation takes the place of.
func (r *reference) forget(c *talk) {
	var kept []*talk
	for _, old := range r.talks {
		if old.carries(c.before) < 0 && old.carries(c.after.reverse()) < 0 {
			kept = append(kept, old)
		}
	}
	r.talks = kept
}

// free reports whether any port is left for a conversation.
func (r *reference) free(c *talk) bool {
	for port := range 65536 {
		if (port >= 1024 || c.before.proto == icmp) && r.may(c.withPort(uint16(port))) == "" {
			return true
		}
	}
	return false
}

// note records a packet of one side.
func (r *reference) note(c *talk, side int, p packet) {
	c.seen[side] |= anything
	if p.proto == tcp {
		c.seen[side] |= p.flags
	}
	c.last = r.now
}

// certain reports whether it is beyond doubt at a time which conversations live: stamps
// are a second coarse, and the test itself takes time.
func (r *reference) certain(now time.Duration) bool {
	for _, c := range r.talks {
		if left := c.last + c.idle() - now; left > -seconds(4) && left < seconds(8) {
			return false
		}
	}
	return true
}
