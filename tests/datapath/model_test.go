package datapath

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"pgregory.net/rapid"

	"github.com/ebnet/ebnet/loader"
)

// TestPrivilegedModel compares the programs with the reference over random histories of
// packets, time, ports and endpoints. More of them: -rapid.checks=N.
func TestPrivilegedModel(t *testing.T) {
	for _, fast := range []bool{true, false} {
		t.Run(fmt.Sprintf("fast=%v", fast), func(t *testing.T) {
			l := newModelLab(newHost(t, fast))
			rapid.Check(t, func(t *rapid.T) { newModel(t, l).run() })
		})
	}
}

// spareVeths bounds how often endpoints begin a new life in one history.
const spareVeths = 8

// modelLab is what histories have in common: a host, and what is left of the history
// before.
type modelLab struct {
	*host
	veths    []int
	stations []loader.Endpoint
	ports    []loader.Publication

	start     time.Time
	exhausted map[netip.AddrPort]time.Duration // by peer, when no port was free
}

func newModelLab(h *host) *modelLab {
	l := &modelLab{host: h, start: time.Now(), exhausted: map[netip.AddrPort]time.Duration{}, stations: []loader.Endpoint{
		h.endpointA(),
		{Slot: 2, Ifindex: h.b, Addrs: []netip.Addr{containerB}},
		{Slot: 3, Ifindex: h.othr, Addrs: []netip.Addr{otherNet}},
	}}
	for i := range spareVeths {
		name := fmt.Sprintf("vebs%d", i)
		l.veths = append(l.veths, h.link(&netlink.Veth{LinkAttrs: attrs(name, nil), PeerName: name + "p"}, ""))
	}
	return l
}

// clear removes what a history left, without loading anything anew.
func (l *modelLab) clear(t *rapid.T) {
	check(t, l.dp.Unpublish(l.ports...))
	for _, s := range l.stations {
		check(t, l.dp.DeleteEndpoint(s))
	}
	check(t, l.dp.ForgetAll())
	check(t, l.dp.SetClockOffset(0))
	l.stations, l.ports = nil, nil
}

func check(t *rapid.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// model is one history.
type model struct {
	*rapid.T
	lab   *modelLab
	ref   *reference
	start time.Time
	ahead time.Duration // of the programs' clock
	veths []int         // that nobody has had
	slots map[uint32]bool
	all   []*station // that there ever were, in order
	past  []packet   // as they came in, of all conversations
}

func newModel(t *rapid.T, l *modelLab) *model {
	l.clear(t)
	m := &model{T: t, lab: l, start: time.Now(), veths: append([]int{l.a, l.b, l.othr}, l.veths...),
		slots: map[uint32]bool{}, ref: &reference{stations: map[netip.Addr]*station{}}}
	var source loader.PortSet
	if rapid.Bool().Draw(t, "few ports") {
		source.Add(20000, 3)
		source.Add(5000, 2)
	} else {
		source.Add(1024, 32768-1024)
		source.Add(61000, 65536-61000)
	}
	m.ref.source = &source
	check(t, l.dp.SetSourcePorts(&source))
	for _, addr := range []netip.Addr{containerA, containerB, otherNet} {
		m.join(addr)
	}
	return m
}

func (m *model) run() {
	m.Repeat(map[string]func(*rapid.T){
		"":                  m.invariants,
		"endpoint sends":    m.stationSends,
		"endpoint sends on": m.stationSends,
		"outside sends":     m.outsideSends,
		"forged":            m.outsideForges,
		"answer":            m.someoneAnswers,
		"answer again":      m.someoneAnswers,
		"late":              m.someoneIsLate,
		"time":              m.timePasses,
		"publish":           m.publish,
		"unpublish":         m.unpublish,
		"endpoint goes":     m.stationGoes,
		"endpoint comes":    m.stationComes,
	})
}

// invariants hold after each step.
func (m *model) invariants(t *rapid.T) {
	if time.Since(m.start) > seconds(3) {
		t.Skip("the machine was busy for so long that the clocks may disagree")
	}
	check(t, m.lab.dp.CheckPairs())
	var got, want []string
	replies := map[tuple]bool{}
	check(t, m.lab.dp.Flows(func(f loader.Flow) bool {
		k := tuple{protocolNumber(f.Protocol), f.TranslatedDst, f.TranslatedSrc}
		if replies[k] {
			t.Fatalf("two conversations are answered as %v", k)
		}
		replies[k] = true
		got = append(got, fmt.Sprintf("%s %s %v>%v as %v>%v", f.Kind, f.Protocol, f.Src, f.Dst, f.TranslatedSrc, f.TranslatedDst))
		return true
	}))
	m.tick()
	for _, c := range m.ref.talks {
		if m.ref.lives(c) {
			want = append(want, fmt.Sprintf("%s %s %v>%v as %v>%v", c.kind, protocolOf(c.before.proto),
				c.before.src, c.before.dst, c.after.src, c.after.dst))
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("conversations (-reference +programs):\n%s", diff)
	}
}

func protocolOf(n uint8) string { return map[uint8]string{tcp: "tcp", udp: "udp", icmp: "icmp"}[n] }

func protocolNumber(name string) uint8 {
	return map[string]uint8{"tcp": tcp, "udp": udp, "icmp": icmp}[name]
}

func (m *model) tick() { m.ref.now = m.ahead + time.Since(m.start) }

// Packets.

var (
	insidePorts  = []uint16{80, 81, 5000, 5001, 8080, 40000}
	outsidePorts = []uint16{53, 80, 4000, 4001}
	hostPorts    = []uint16{5000, 8080, 8081, 20001}
	outsiders    = []netip.Addr{remote, router}
	hostAddrs    = []netip.Addr{hostAddr, hostAddr2, gateway}
	flagMixes    = []uint8{syn, syn | ack, ack, fin | ack, rst, rst | ack, fin, syn | fin, syn | rst, 0}
)

// draw fills in what a packet is besides its addresses.
func draw(t *rapid.T, p packet) packet {
	p.proto = rapid.SampledFrom([]uint8{tcp, tcp, udp, udp, icmp}).Draw(t, "protocol")
	if p.proto == icmp {
		p.src = netip.AddrPortFrom(p.src.Addr(), rapid.SampledFrom([]uint16{0, 1, 77}).Draw(t, "identifier"))
		p.dst = netip.AddrPortFrom(p.dst.Addr(), 0)
		p.kind = rapid.SampledFrom([]uint8{8, 8, 0}).Draw(t, "type")
	}
	return vary(t, p, rapid.SampledFrom([]uint8{syn, syn, syn, rapid.SampledFrom(flagMixes).Draw(t, "other flags")}))
}

// vary fills in what is no part of the tuple.
func vary(t *rapid.T, p packet, flags *rapid.Generator[uint8]) packet {
	p.ttl = 64
	p.payload = rapid.SampledFrom([]string{"", "x", "payload"}).Draw(t, "payload")
	p.options = rapid.IntRange(0, 9).Draw(t, "options") == 9
	p.flags, p.noChecksum = 0, false
	switch p.proto {
	case tcp:
		p.flags = flags.Draw(t, "flags")
	case udp:
		p.noChecksum = rapid.IntRange(0, 4).Draw(t, "no checksum") == 4
	case icmp:
		// With nothing but zeros in a message its checksum cannot be told by an update (RFC 1624 3).
		p.payload += "."
	}
	return p
}

func pick[T any](t *rapid.T, what string, from []T) T { return rapid.SampledFrom(from).Draw(t, what) }

func (m *model) stationSends(t *rapid.T) {
	p := packet{src: netip.AddrPortFrom(netip.Addr{}, pick(t, "source port", insidePorts))}
	s := pick(t, "endpoint", m.all)
	p.src = netip.AddrPortFrom(s.addr(), p.src.Port())
	switch pick(t, "to", []string{"outside", "outside", "host", "neighbour"}) {
	case "outside":
		p.dst = netip.AddrPortFrom(pick(t, "peer", outsiders), pick(t, "port", outsidePorts))
	case "host":
		p.dst = netip.AddrPortFrom(pick(t, "address", hostAddrs), pick(t, "port", hostPorts))
	case "neighbour":
		p.dst = netip.AddrPortFrom(pick(t, "address", []netip.Addr{containerA, containerB}), pick(t, "port", insidePorts))
	}
	if p.dst.Addr() == s.addr() {
		t.Skip("nobody sends to itself by the wire")
	}
	m.fromStation(t, s, draw(t, p))
}

func (m *model) outsideSends(t *rapid.T) {
	p := packet{
		src: netip.AddrPortFrom(pick(t, "peer", outsiders), pick(t, "source port", outsidePorts)),
		dst: netip.AddrPortFrom(pick(t, "address", []netip.Addr{hostAddr, hostAddr, hostAddr2, containerA}), pick(t, "port", hostPorts)),
	}
	m.fromOutside(t, draw(t, p))
}

// outsideForges sends what an endpoint sends, from outside.
func (m *model) outsideForges(t *rapid.T) {
	if len(m.past) == 0 {
		t.Skip("nothing was sent yet")
	}
	p := pick(t, "as", m.past)
	if !inner(p.src.Addr()) {
		t.Skip("not an endpoint's")
	}
	m.fromOutside(t, vary(t, p, rapid.SampledFrom(flagMixes)))
}

// someoneAnswers sends on in a living conversation.
func (m *model) someoneAnswers(t *rapid.T) {
	var living []*talk
	for _, c := range m.ref.talks {
		if m.ref.lives(c) {
			living = append(living, c)
		}
	}
	if len(living) == 0 {
		t.Skip("nobody talks")
	}
	c, side := pick(t, "in", living), rapid.IntRange(0, 1).Draw(t, "side")
	if c.kind == "direct" {
		side = 0 // the host answers itself, or does not
	}
	m.send(t, c.sender(side), vary(t, carrying(c.translated(1-side).reverse(), side), rapid.SampledFrom(flagMixes)))
}

// carrying makes a packet of a tuple; side tells an echo's question from its answer.
func carrying(k tuple, side int) packet {
	p := packet{proto: k.proto, src: k.src, dst: k.dst}
	if k.proto == icmp {
		p.src = netip.AddrPortFrom(k.src.Addr(), max(k.src.Port(), k.dst.Port()))
		p.dst = netip.AddrPortFrom(k.dst.Addr(), 0)
		p.kind = uint8(8 * (1 - side))
	}
	return p
}

// someoneIsLate sends a packet again that was sent before, its conversation living or not.
func (m *model) someoneIsLate(t *rapid.T) {
	if len(m.past) == 0 {
		t.Skip("nothing was sent yet")
	}
	p := vary(t, pick(t, "again", m.past), rapid.SampledFrom(flagMixes))
	var from *station
	for _, s := range m.all {
		if s.addr() == p.src.Addr() && (from == nil || rapid.Bool().Draw(t, "of a later life")) {
			from = s
		}
	}
	m.send(t, from, p)
}

func (m *model) send(t *rapid.T, from *station, p packet) {
	if from == nil {
		m.fromOutside(t, p)
		return
	}
	m.fromStation(t, from, p)
}

// fromStation runs a packet of an endpoint through the hooks of its way.
func (m *model) fromStation(t *rapid.T, s *station, p packet) {
	p.smac, p.dmac = s.MAC.String(), bridgeMAC.String()
	m.tick()
	d := m.ref.ofStation(s, p)
	if d.what == "host" && !ofHost(p.dst.Addr()) {
		t.Skip("to nobody: the bridge's business")
	}
	byBridge := !m.lab.dp.Config().FastPath && !inner(p.dst.Addr()) && !ofHost(p.dst.Addr()) && !s.gone
	if byBridge {
		m.hook(t, loader.FromContainer, s.Ifindex, 0, p, loader.Pass, &p)
		m.judge(t, d, s, p, loader.Pass, func() (loader.Verdict, packet) {
			return m.program(t, loader.ToUplink, m.lab.uplink, m.lab.bridge, p)
		})
		return
	}
	m.judge(t, d, s, p, loader.Redirect, func() (loader.Verdict, packet) {
		return m.program(t, loader.FromContainer, s.Ifindex, 0, p)
	})
	if s.gone && m.ref.stations[s.addr()] == nil { // one that was on its way through the host
		m.hook(t, loader.ToUplink, m.lab.uplink, m.lab.bridge, p, loader.Drop, nil)
	}
}

func (m *model) fromOutside(t *rapid.T, p packet) {
	p.smac, p.dmac = routerMAC.String(), uplinkMAC.String()
	m.tick()
	d := m.ref.ofOutside(p)
	m.judge(t, d, nil, p, loader.Redirect, func() (loader.Verdict, packet) {
		return m.program(t, loader.FromUplink, m.lab.uplink, 0, p)
	})
}

// program runs a hook and checks the checksums of what comes out.
func (m *model) program(t *rapid.T, hook loader.Hook, ifindex, received int, p packet) (loader.Verdict, packet) {
	frame := p.frame()
	verdict, out, err := m.lab.dp.Run(hook, frame, loader.RunContext{Ifindex: ifindex, Received: received})
	check(t, err)
	if len(out) != len(frame) {
		t.Fatalf("%s: %d bytes became %d", hook, len(frame), len(out))
	}
	if problem := verify(out); problem != "" {
		t.Fatalf("%s of %v: %s", hook, p, problem)
	}
	if verdict == loader.Pass && hook != loader.ToUplink && !bytes.Equal(out, frame) {
		t.Fatalf("%s of %v: passed on as %v", hook, p, parse(out))
	}
	return verdict, parse(out)
}

func (m *model) hook(t *rapid.T, hook loader.Hook, ifindex, received int, p packet, want loader.Verdict, wanted *packet) {
	verdict, out := m.program(t, hook, ifindex, received, p)
	if verdict != want || wanted != nil && out != *wanted {
		t.Fatalf("%s of %v: verdict %d, %v", hook, p, verdict, out)
	}
}

// judge runs a packet and compares what comes out with the reference's decision. sent is
// the verdict on a packet that goes on translated.
func (m *model) judge(t *rapid.T, d decision, from *station, p packet, sent loader.Verdict, run func() (loader.Verdict, packet)) {
	verdict, out := run()
	t.Logf("%v: %s %s: verdict %d, %v", p, d.what, d.why, verdict, out)
	want := map[string]loader.Verdict{"drop": loader.Drop, "host": loader.Pass, "neighbour": loader.Redirect, "talk": sent, "open": sent}
	wanted := p
	switch d.what {
	case "forged":
		if verdict == loader.Redirect {
			t.Fatalf("forged %v went on as %v", p, out)
		}
		return
	case "open":
		m.opened(t, m.ref.begin(from, p, d.port), p, verdict, out, sent)
		return
	case "neighbour":
		wanted.dmac = d.to.MAC.String()
	case "host":
		m.atHost(d, from, p)
	case "talk":
		m.ref.note(d.talk, d.side, p)
		m.past = append(m.past, p)
		wanted = m.forwarded(p, d.talk, d.side, sent, out)
	}
	if verdict != want[d.what] {
		t.Fatalf("%v: verdict %d, want %s (%s)", p, verdict, d.what, d.why)
	}
	if verdict != loader.Drop && out != wanted {
		t.Fatalf("became %v\n  want %v", out, wanted)
	}
}

// atHost records what an endpoint says to the host itself.
func (m *model) atHost(d decision, from *station, p packet) {
	switch {
	case from == nil || p.proto == icmp:
	case d.talk != nil:
		m.ref.note(d.talk, d.side, p)
	case opens(p):
		m.ref.beginLocal(from, p)
	}
}

// forwarded is what becomes of a packet of a conversation.
func (m *model) forwarded(p packet, c *talk, side int, sent loader.Verdict, out packet) packet {
	q := carrying(c.translated(side), side)
	if p.proto == icmp && p.kind == 0 { // a translation leaves the type alone
		q.kind = 0
	}
	p.src, p.dst, p.kind = q.src, q.dst, q.kind
	if sent == loader.Pass { // the kernel forwards
		return p
	}
	p.ttl--
	p.smac, p.dmac = out.smac, out.dmac // toward the outside: the neighbour table's business
	if to := c.sender(1 - side); to != nil {
		p.smac, p.dmac = bridgeMAC.String(), to.MAC.String()
	}
	return p
}

// opened checks the port that the programs chose, and takes it.
func (m *model) opened(t *rapid.T, c *talk, p packet, verdict loader.Verdict, out packet, sent loader.Verdict) {
	m.ref.forget(&talk{before: c.before, after: c.before.reverse()}) // what is over: the same two want it back
	if verdict == loader.Drop {
		// Where no port was free a moment ago none is looked for.
		peer := c.after.dst
		moment := m.lab.exhausted[peer]
		if now := time.Since(m.lab.start) + m.ahead; moment == 0 || now-moment > seconds(1) || now < moment {
			if m.ref.free(c) {
				t.Fatalf("%v was dropped, though a port is free", p)
			}
			m.lab.exhausted[peer] = now
		}
		return
	}
	chosen := c.withPort(out.src.Port())
	if problem := m.ref.may(chosen); problem != "" {
		t.Fatalf("%v: port %d %s", p, out.src.Port(), problem)
	}
	if m.ref.may(c) == "" && chosen.after != c.after {
		t.Fatalf("%v: port %d, though its own may be used", p, out.src.Port())
	}
	if wanted := m.forwarded(p, chosen, 0, sent, out); verdict != sent || out != wanted {
		t.Fatalf("verdict %d, became %v\n  want %v", verdict, out, wanted)
	}
	m.ref.forget(chosen)
	m.ref.note(chosen, 0, p)
	m.ref.talks = append(m.ref.talks, chosen)
	m.past = append(m.past, p)
}

// What people and time do.

func (m *model) timePasses(t *rapid.T) {
	by := seconds(pick(t, "seconds", []int{3, 20, 45, 90, 170, 200, 3600, 7500}))
	for !m.ref.certain(m.ref.now + by) {
		by += seconds(5)
	}
	m.ahead += by
	m.tick()
	check(t, m.lab.dp.SetClockOffset(m.ahead))
}

// slot takes one that is free, be it for the first time or not.
func (m *model) slot(t *rapid.T) uint32 {
	s := rapid.Uint32Range(1, 40).Filter(func(s uint32) bool { return !m.slots[s] }).Draw(t, "slot")
	m.slots[s] = true
	return s
}

func (m *model) join(addr netip.Addr) {
	s := &station{owner: owner{slot: m.slot(m.T)}, gateway: gateway}
	s.Endpoint = loader.Endpoint{Slot: s.slot, Network: 1, Ifindex: m.veths[0], Addrs: []netip.Addr{addr},
		MAC: net.HardwareAddr{2, 0xeb, 0, 0, 0, byte(len(m.all))}}
	if addr == otherNet {
		s.Network, s.gateway = 2, netip.MustParseAddr("172.19.0.1")
	}
	m.veths = m.veths[1:]
	m.ref.stations[addr] = s
	m.all = append(m.all, s)
	check(m.T, m.lab.dp.PutEndpoint(s.Endpoint))
	m.lab.stations = append(m.lab.stations, s.Endpoint)
}

func (m *model) publish(t *rapid.T) {
	to := m.ref.stations[pick(t, "endpoint", []netip.Addr{containerA, containerB, otherNet})]
	if to == nil || len(m.slots) > 30 {
		t.Skip("there is nobody")
	}
	o := &portOpening{owner: owner{slot: m.slot(t)}, to: to}
	o.Publication = loader.Publication{Slot: o.slot, Protocol: pick(t, "protocol", []loader.Protocol{loader.TCP, loader.UDP}),
		HostAddr: pick(t, "address", []netip.Addr{{}, hostAddr}), HostPort: pick(t, "host port", hostPorts), Count: 1,
		Network: to.Network, Ifindex: to.Ifindex, MAC: to.MAC, Addr: to.addr(), Port: pick(t, "port", insidePorts[:3])}
	check(t, m.lab.dp.Publish(o.Publication))
	m.lab.ports = append(m.lab.ports, o.Publication)
	m.ref.ports = append(slices.DeleteFunc(m.ref.ports, func(old *portOpening) bool {
		same := old.Protocol == o.Protocol && old.HostAddr == o.HostAddr && old.HostPort == o.HostPort
		old.gone = same
		return same
	}), o)
}

func (m *model) unpublish(t *rapid.T) {
	if len(m.ref.ports) == 0 {
		t.Skip("nothing is published")
	}
	m.withdraw(t, pick(t, "port", m.ref.ports))
}

func (m *model) withdraw(t *rapid.T, o *portOpening) {
	m.ref.ports = slices.DeleteFunc(m.ref.ports, func(other *portOpening) bool { return other == o })
	o.gone = true
	delete(m.slots, o.slot)
	check(t, m.lab.dp.Unpublish(o.Publication))
}

func (m *model) stationGoes(t *rapid.T) {
	s := m.ref.stations[pick(t, "endpoint", []netip.Addr{containerA, containerB})]
	if s == nil {
		t.Skip("it is gone")
	}
	for _, o := range slices.Clone(m.ref.ports) {
		if o.to == s {
			m.withdraw(t, o)
		}
	}
	s.gone = true
	delete(m.slots, s.slot)
	delete(m.ref.stations, s.addr())
	if len(m.veths) > 0 && rapid.Bool().Draw(t, "replaced") { // at once by another of the same address
		m.join(s.addr())
		return
	}
	check(t, m.lab.dp.DeleteEndpoint(s.Endpoint))
}

func (m *model) stationComes(t *rapid.T) {
	addr := pick(t, "address", []netip.Addr{containerA, containerB})
	if m.ref.stations[addr] != nil || len(m.veths) == 0 {
		t.Skip("it is there")
	}
	m.join(addr)
}
