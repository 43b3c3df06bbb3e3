package datapath

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/ebnet/ebnet/loader"
)

// place is where a fuzzed frame is met: a hook, its device, and where the frame is said
// to have come in.
type place struct {
	hook    loader.Hook
	ifindex int
	ctx     loader.RunContext
}

func (p place) String() string { return fmt.Sprintf("%s of interface %d", p.hook, p.ifindex) }

// places are all of them; the fuzzed number picks one.
func (h *host) places() []place {
	at := func(hook loader.Hook, ifindex, received int) place {
		return place{hook, ifindex, loader.RunContext{Ifindex: ifindex, Received: received}}
	}
	return []place{
		at(loader.FromContainer, h.a, h.a),
		at(loader.FromUplink, h.uplink, h.uplink),
		at(loader.ToUplink, h.uplink, h.bridge),
		at(loader.ToUplink, h.uplink, 0), // the host's own
		at(loader.FromContainer, h.b, h.b),
		at(loader.FromContainer, h.othr, h.othr),
		at(loader.FromBridge, h.bridge, h.a),
		at(loader.ToBridge, h.bridge, h.uplink),
		at(loader.ToBridge, h.bridge, 0),
		at(loader.FromContainer, h.uplink, h.uplink), // a device of nobody
	}
}

// runner runs frames in a host's namespace from any goroutine: the fuzzing engine calls
// from a new one each time.
type runner struct {
	*host
	jobs chan func()
}

func newRunner(f *testing.F, fast bool) *runner {
	f.Helper()
	r := &runner{newHost(f, fast), make(chan func())}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		if err := netns.Set(r.ns); err != nil {
			f.Errorf("enter the namespace: %v", err)
		}
		for job := range r.jobs {
			job()
		}
	}()
	f.Cleanup(func() { close(r.jobs) })
	for _, proto := range []loader.Protocol{loader.TCP, loader.UDP} {
		r.publish(proto, netip.Addr{}, 8080, 80)
	}
	return r
}

// run is one run of a program.
func (r *runner) run(p place, frame []byte) (verdict loader.Verdict, out []byte, err error) {
	done := make(chan struct{})
	r.jobs <- func() {
		defer close(done)
		verdict, out, err = r.dp.Run(p.hook, frame, p.ctx)
	}
	<-done
	return verdict, out, err
}

// asB is a packet of A's as B would send it.
func asB(p packet) packet {
	p.smac, p.src = bMAC.String(), netip.AddrPortFrom(containerB, p.src.Port())
	return p
}

// openings are the conversations that are there when a fuzzed frame arrives.
func openings() []packet {
	return []packet{
		fromA(tcp, syn, 5000, remote, 80),
		fromOutside(tcp, syn|ack, remote, 80, hostAddr, 5000),
		fromA(tcp, ack, 5000, remote, 80),
		fromA(udp, 0, 5001, remote, 53),
		echo(fromA(icmp, 0, 77, remote, 0)),
		fromOutside(tcp, syn, remote, 4000, hostAddr, 8080),
		fromOutside(udp, 0, remote, 4000, hostAddr, 8080),
		asB(fromA(udp, 0, 5001, remote, 53)),
		asB(fromA(tcp, syn, 6000, hostAddr, 8080)),
	}
}

// open starts anew with those conversations and nothing else.
func (r *runner) open(t *testing.T) {
	t.Helper()
	_, err := r.dp.FlushFlows(func(loader.Flow) bool { return true })
	must(t, err)
	at := r.places()
	for _, p := range openings() {
		place := at[0]
		switch {
		case p.smac == routerMAC.String():
			place = at[1]
		case p.smac == bMAC.String():
			place = at[4]
		}
		verdict, _, err := r.run(place, p.frame())
		must(t, err)
		if verdict == loader.Pass && !r.dp.Config().FastPath { // by the bridge
			verdict, _, err = r.run(at[2], p.frame())
			must(t, err)
		} else if verdict != loader.Redirect {
			t.Fatalf("%v: verdict %d", p, verdict)
		}
		if verdict == loader.Drop {
			t.Fatalf("%v is dropped: %s", p, r.drops())
		}
	}
}

// datagram is what the reference parser finds in a frame.
type datagram struct {
	header, l4 []byte // the IPv4 header, and the rest up to the datagram's length
	fragment   bool
}

// readDatagram is the reference parser; nil if the frame is no well-formed IPv4 (RFC 791,
// 9293, 768, 792). Checksums are not looked at.
func readDatagram(frame []byte) *datagram {
	if len(frame) < 34 || frame[12] != 0x08 || frame[13] != 0 {
		return nil
	}
	ip := frame[14:]
	header, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if ip[0]>>4 != 4 || header < 20 || header > total || total > len(ip) {
		return nil
	}
	d := &datagram{header: ip[:header], l4: ip[header:total], fragment: binary.BigEndian.Uint16(ip[6:])&0x3fff != 0}
	if d.fragment {
		return d
	}
	switch ip[9] {
	case tcp:
		if len(d.l4) < 20 || d.l4[12]>>4 < 5 || int(d.l4[12]>>4)*4 > len(d.l4) {
			return nil
		}
	case udp:
		if len(d.l4) < 8 || binary.BigEndian.Uint16(d.l4[4:]) < 8 || int(binary.BigEndian.Uint16(d.l4[4:])) > len(d.l4) {
			return nil
		}
	case icmp:
		if len(d.l4) < 8 {
			return nil
		}
	}
	return d
}

func (d *datagram) proto() byte { return d.header[9] }

func (d *datagram) src() netip.Addr { return netip.AddrFrom4([4]byte(d.header[12:16])) }

func (d *datagram) dst() netip.Addr { return netip.AddrFrom4([4]byte(d.header[16:20])) }

// wrong says which checksums do not fit, "" if all do. Of a fragment only the header has
// one that can be known.
func (d *datagram) wrong() string {
	if sum(0, d.header) != 0xffff {
		return "IPv4 header"
	}
	if d.fragment {
		return ""
	}
	start := uint32(sum(0, d.header[12:20])) + uint32(d.proto())
	switch d.proto() {
	case tcp:
		if sum(start+uint32(len(d.l4)), d.l4) != 0xffff {
			return "TCP"
		}
	case udp:
		length := binary.BigEndian.Uint16(d.l4[4:])
		if check := binary.BigEndian.Uint16(d.l4[6:]); check != 0 && sum(start+uint32(length), d.l4[:length]) != 0xffff {
			return "UDP"
		}
	case icmp:
		if sum(0, d.l4) != 0xffff {
			return "ICMP"
		}
	}
	return ""
}

// quoted returns the IPv4 header that an ICMP error quotes, nil if it quotes none.
func (d *datagram) quoted() []byte {
	if d.fragment || d.proto() != icmp || len(d.l4) < 28 {
		return nil
	}
	switch d.l4[0] {
	case 3, 4, 11, 12: // unreachable, source quench, time exceeded, parameter problem
	default:
		return nil
	}
	ip := d.l4[8:]
	if header := int(ip[0]&15) * 4; ip[0]>>4 == 4 && header >= 20 && header <= len(ip) {
		return ip[:header]
	}
	return nil
}

// inner reports whether an address is of a network's.
func inner(a netip.Addr) bool {
	return netip.MustParsePrefix("172.18.0.0/15").Contains(a)
}

// judge returns what is wrong with what a hook made of a frame, "" if nothing is.
func judge(p place, in, out []byte, verdict loader.Verdict) string {
	if verdict != loader.Pass && verdict != loader.Drop && verdict != loader.Redirect {
		return fmt.Sprintf("verdict %d", verdict)
	}
	if len(in) != len(out) {
		return fmt.Sprintf("%d bytes became %d", len(in), len(out))
	}
	if verdict == loader.Drop {
		return ""
	}
	before, after := readDatagram(in), readDatagram(out)
	if before == nil {
		if !bytes.Equal(in, out) {
			return "no well-formed datagram, but changed"
		}
		return ""
	}
	if after == nil {
		return "a well-formed datagram became another thing"
	}
	if before.wrong() == "" && after.wrong() != "" {
		return "wrong checksum: " + after.wrong()
	}
	if q := before.quoted(); q != nil && sum(0, q) == 0xffff && sum(0, after.quoted()) != 0xffff {
		return "wrong checksum: quoted IPv4 header"
	}
	if leaves(p, after, verdict) && inner(after.src()) {
		return fmt.Sprintf("leaves as %v", after.src())
	}
	return ""
}

// leaves reports whether a frame is on its way out of the uplink after the hook.
func leaves(p place, d *datagram, verdict loader.Verdict) bool {
	switch p.hook {
	case loader.ToUplink:
		return p.ctx.Received != 0
	case loader.FromContainer:
		return verdict == loader.Redirect && !inner(d.dst())
	}
	return false // from_bridge's redirect meets to_uplink
}

// FuzzPacket runs any frame, cut anywhere, at any hook, with conversations of all kinds
// open.
func FuzzPacket(f *testing.F) {
	runners := []*runner{newRunner(f, true), newRunner(f, false)}
	for _, s := range seeds() {
		for where := range len(runners[0].places()) * len(runners) {
			f.Add(s, uint8(where), uint16(0))
		}
		f.Add(s, uint8(0), uint16(14+20))
		f.Add(s, uint8(1), uint16(14+20+7))
	}
	f.Fuzz(func(t *testing.T, frame []byte, where uint8, cut uint16) {
		if cut > 0 {
			frame = frame[:min(len(frame), int(cut))]
		}
		if !runnable(frame) {
			return
		}
		r := runners[int(where)%len(runners)]
		at := r.places()
		p := at[int(where)/len(runners)%len(at)]
		r.open(t)
		verdict, out, err := r.run(p, frame)
		must(t, err)
		if problem := judge(p, frame, out, verdict); problem != "" {
			t.Fatalf("%v: %s\n in % x\nout % x, verdict %d", p, problem, frame, out, verdict)
		}
		must(t, r.dp.CheckPairs())
	})
}

// runnable: BPF_PROG_TEST_RUN takes no frame without a payload or larger than a page with
// its overhead, and some kernels none with less than the IP header that it announces.
func runnable(frame []byte) bool {
	if len(frame) < 15 || len(frame) > 2000 {
		return false
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x0800:
		return len(frame) >= 14+20
	case 0x86dd:
		return len(frame) >= 14+40
	}
	return true
}

// seeds are frames of each kind.
func seeds() [][]byte {
	all := [][]byte{
		make([]byte, 60),
		append([]byte{255, 255, 255, 255, 255, 255, 2, 0xeb, 0xac, 0x12, 0, 2, 0x86, 0xdd, 0x60}, make([]byte, 45)...),
		arpRequest(),
		tagged(fromA(tcp, syn, 5002, remote, 80).frame()),
	}
	for _, p := range append(openings(), seedPackets()...) {
		all = append(all, p.frame())
	}
	for _, e := range seedErrors() {
		all = append(all, e.frame())
	}
	padded := append(fromA(tcp, ack, 5000, remote, 80).frame(), make([]byte, 6)...)
	return append(all, padded)
}

// seedPackets vary what openings has.
func seedPackets() []packet {
	with := func(p packet, change func(*packet)) packet {
		change(&p)
		return p
	}
	options := func(p *packet) { p.options = true }
	unsummed := func(p *packet) { p.noChecksum = true }
	old := func(p *packet) { p.ttl = 1 }
	first := func(p *packet) { p.moreFragment = true }
	later := func(p *packet) { p.fragmentOff = 1480 }
	return []packet{
		with(fromA(tcp, syn, 5002, remote, 80), options),
		with(fromOutside(tcp, ack, remote, 80, hostAddr, 5000), options),
		with(fromA(udp, 0, 40000, remote, 53), unsummed),
		with(fromOutside(udp, 0, remote, 53, hostAddr, 5001), unsummed),
		with(fromA(udp, 0, 5001, remote, 53), first),
		with(fromA(udp, 0, 5001, remote, 53), later),
		with(fromOutside(udp, 0, remote, 53, hostAddr, 5001), first),
		with(fromOutside(udp, 0, remote, 53, hostAddr, 5001), later),
		with(fromA(tcp, ack, 5000, remote, 80), old),
		with(fromOutside(tcp, ack, remote, 80, hostAddr, 5000), old),
		with(fromA(udp, 0, 5001, remote, 53), func(p *packet) { p.payload = string(make([]byte, 1700)) }),
		fromA(47, 0, 0, remote, 0),
		fromA(tcp, rst, 5000, remote, 80),
		fromA(tcp, syn|ack, 80, remote, 4000),
		fromA(udp, 0, 80, containerB, 6000),
		fromA(tcp, syn|ack, 80, containerB, 6000),
		fromOutside(tcp, syn, remote, 4001, containerA, 80),
		fromOutside(icmp, 0, remote, 77, hostAddr, 0),
		fromOutside(udp, 0, remote, 4000, hostAddr2, 8080),
	}
}

// seedErrors quote conversations of openings, as outside, the host and endpoints see them.
func seedErrors() []icmpError {
	var all []icmpError
	add := func(outer, quoted packet) {
		for _, kind := range [][2]uint8{{3, 4}, {11, 0}} {
			for _, bytes := range []int{4, 8, 28} {
				outer.kind = kind[0]
				all = append(all, icmpError{outer: outer, code: kind[1], mtu: 1300, quoted: quoted, quoteBytes: bytes})
			}
		}
	}
	masqueraded := func(p packet) packet {
		p.src = netip.AddrPortFrom(hostAddr, p.src.Port())
		return p
	}
	toHost, toOutside := fromOutside(icmp, 0, router, 0, hostAddr, 0), fromA(icmp, 0, 0, remote, 0)
	add(toHost, masqueraded(fromA(tcp, ack, 5000, remote, 80)))
	add(toHost, masqueraded(fromA(udp, 0, 5001, remote, 53)))
	add(toHost, masqueraded(echo(fromA(icmp, 0, 77, remote, 0))))
	options := masqueraded(fromA(tcp, ack, 5000, remote, 80))
	options.options = true
	add(toHost, options)
	add(toOutside, fromOutside(udp, 0, remote, 4000, containerA, 80))
	add(toOutside, fromOutside(tcp, ack, remote, 80, containerA, 5000))
	add(fromOutside(icmp, 0, hostAddr, 0, remote, 0), fromOutside(tcp, ack, remote, 4000, containerA, 80))
	return all
}

func arpRequest() []byte {
	frame := append([]byte{255, 255, 255, 255, 255, 255}, aMAC...)
	frame = append(frame, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
	frame = append(frame, aMAC...)
	own, asked := containerA.As4(), gateway.As4()
	return append(append(append(frame, own[:]...), 0, 0, 0, 0, 0, 0), asked[:]...)
}

// tagged puts an 802.1Q tag into a frame.
func tagged(frame []byte) []byte {
	return append(append(bytes.Clone(frame[:12]), 0x81, 0, 0, 42), frame[12:]...)
}
