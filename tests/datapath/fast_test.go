package datapath

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/ebnet/ebnet/loader"
)

// scratchOf opens the map in which programs put what they parse.
func (h *host) scratchOf(hook loader.Hook) *ebpf.Map {
	h.Helper()
	p, err := ebpf.LoadPinnedProgram(filepath.Join(h.dir, "v2", "progs", string(hook)), nil)
	must(h.TB, err)
	defer func() { _ = p.Close() }()
	info, err := p.Info()
	must(h.TB, err)
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		must(h.TB, err)
		if info, err := m.Info(); err == nil && info.Name == "scratch" {
			h.Cleanup(func() { _ = m.Close() })
			return m
		}
		must(h.TB, m.Close())
	}
	h.Fatalf("%s has no scratch", hook)
	return nil
}

// nowOff is where struct packet, which is first in the scratch, has the time: the short way
// leaves it alone, and all others begin with it.
const nowOff = 40

// short runs a frame and reports whether it was decided without being parsed into a packet.
func (h *host) short(hook loader.Hook, ifindex int, frame []byte) (bool, []byte) {
	h.Helper()
	m := h.scratchOf(hook)
	cpus := make([][]byte, ebpf.MustPossibleCPU())
	for i := range cpus {
		cpus[i] = make([]byte, m.ValueSize())
	}
	must(h.TB, m.Put(uint32(0), cpus))
	_, out, err := h.dp.Run(hook, frame, loader.RunContext{Ifindex: ifindex})
	must(h.TB, err)
	must(h.TB, m.Lookup(uint32(0), &cpus))
	for _, cpu := range cpus {
		if binary.NativeEndian.Uint64(cpu[nowOff:]) != 0 {
			return false, out
		}
	}
	return true, out
}

// stream makes a conversation of datagrams that is two seconds old, and so confirmed.
func (h *host) stream(sport uint16) (later time.Duration) {
	h.Helper()
	out, in := fromA(udp, 0, sport, remote, 53), fromOutside(udp, 0, remote, 53, hostAddr, sport)
	for i := range 4 {
		later = seconds(i)
		must(h.TB, h.dp.SetClockOffset(later))
		h.expect(loader.FromContainer, h.a, out, loader.Redirect, nil)
		h.reply(in)
	}
	return later
}

// What is established takes the short way in both directions, and between neighbours; what is
// special in any way does not.
func TestPrivilegedShortWay(t *testing.T) {
	h := newHost(t, true)
	h.stream(5353)
	establish(h, 5000)
	h.reply(fromOutside(tcp, ack, remote, 80, hostAddr, 5000))
	h.expect(loader.FromContainer, h.a, fromA(udp, 0, 5353, remote, 53), loader.Redirect, nil)
	cut := fromA(tcp, ack, 5000, remote, 80).frame()
	binary.BigEndian.PutUint16(cut[14+2:], 200) // longer than it is
	with := func(p packet, change func(*packet)) []byte { change(&p); return p.frame() }
	out, in := fromA(tcp, ack, 5000, remote, 80), fromOutside(tcp, ack, remote, 80, hostAddr, 5000)
	for _, c := range []struct {
		name  string
		hook  loader.Hook
		dev   int
		frame []byte
		short bool
	}{
		{"tcp out", loader.FromContainer, h.a, out.frame(), true},
		{"tcp in", loader.FromUplink, h.uplink, in.frame(), true},
		{"udp out", loader.FromContainer, h.a, fromA(udp, 0, 5353, remote, 53).frame(), true},
		{"udp in", loader.FromUplink, h.uplink, fromOutside(udp, 0, remote, 53, hostAddr, 5353).frame(), true},
		{"neighbour", loader.FromContainer, h.a, toB().frame(), true},
		{"padded", loader.FromContainer, h.a, append(out.frame(), 0, 0, 0, 0, 0), true},
		{"to the host", loader.FromUplink, h.uplink, fromOutside(tcp, ack, remote, 80, hostAddr, 40000).frame(), true},
		{"fin", loader.FromContainer, h.a, with(out, func(p *packet) { p.flags = fin | ack }), false},
		{"last hop", loader.FromContainer, h.a, with(out, func(p *packet) { p.ttl = 1 }), false},
		{"last hop in", loader.FromUplink, h.uplink, with(in, func(p *packet) { p.ttl = 1 }), false},
		{"options", loader.FromContainer, h.a, with(out, func(p *packet) { p.options = true }), false},
		{"options in", loader.FromUplink, h.uplink, with(in, func(p *packet) { p.options = true }), false},
		{"fragment", loader.FromContainer, h.a, with(out, func(p *packet) { p.moreFragment = true }), false},
		{"cut off", loader.FromContainer, h.a, cut, false},
		{"another's", loader.FromContainer, h.b, out.frame(), false},
		{"none", loader.FromContainer, h.a, fromA(tcp, ack, 5001, remote, 80).frame(), false},
		{"a neighbour by the gateway", loader.FromContainer, h.a,
			with(toB(), func(p *packet) { p.dmac = bridgeMAC.String() }), false},
		{"a neighbour's name", loader.FromContainer, h.a,
			with(toB(), func(p *packet) { p.src = netip.AddrPortFrom(otherNet, 5000) }), false},
	} {
		if got, _ := h.short(c.hook, c.dev, c.frame); got != c.short {
			t.Errorf("%s: short way %v", c.name, got)
		}
	}
	must(t, h.dp.SetClockOffset(seconds(5))) // its way out is to be looked at again
	if got, _ := h.short(loader.FromContainer, h.a, out.frame()); got {
		t.Error("a way out that was not looked at for more than a second")
	}
}

// frames are of all lengths and with all checksums, also when they have become what p is
// translated to.
func frames(p packet) (all [][]byte) {
	translated := p
	if translated.src.Addr() == containerA {
		translated.src = netip.AddrPortFrom(hostAddr, p.src.Port())
	} else {
		translated.dst = netip.AddrPortFrom(containerA, p.dst.Port())
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 300 {
		payload := make([]byte, []int{i % 64, rnd.IntN(1400)}[i%2])
		for j := range payload {
			payload[j] = byte(rnd.Uint32())
		}
		p.payload, p.ttl = string(payload), uint8(2+rnd.IntN(254))
		p.noChecksum = p.proto == udp && i%5 == 0
		f := p.frame()
		f[15], f[18], f[19] = byte(i), byte(i), byte(i>>1) // class of service and identification
		binary.BigEndian.PutUint16(f[24:], 0)
		binary.BigEndian.PutUint16(f[24:], ^sum(0, f[14:34]))
		all = append(all, append(f, make([]byte, i%7)...)) // padding
	}
	p.noChecksum, p.ttl = false, 64
	for i := range 1 << 16 { // some of all checksums, and all around 0
		p.payload = string([]byte{byte(i >> 8), byte(i)})
		translated.payload = p.payload
		if f := p.frame(); i%51 == 0 || nearZero(f) || nearZero(translated.frame()) {
			all = append(all, f)
		}
	}
	return all
}

func nearZero(f []byte) bool {
	c := binary.BigEndian.Uint16(f[34+map[byte]int{tcp: 16, udp: 6}[f[23]]:])
	return c < 4 || c > 0xfffc
}

// The short way makes of a packet what the long one makes of it, to the byte. Out of a container that
// is the packet which looks the way out up again; in, the way without redirects.
func TestPrivilegedShortWayIsTheSame(t *testing.T) {
	var in [][]byte
	h := newHost(t, true)
	later := h.stream(5353)
	establish(h, 5000)
	for _, p := range []packet{fromOutside(tcp, ack, remote, 80, hostAddr, 5000), fromOutside(udp, 0, remote, 53, hostAddr, 5353)} {
		for i, f := range frames(p) {
			_, out, err := h.dp.Run(loader.FromUplink, f, loader.RunContext{Ifindex: h.uplink})
			must(t, err)
			checkChanged(t, i, f, out)
			in = append(in, out)
		}
	}
	for _, p := range []packet{fromA(tcp, ack, 5000, remote, 80), fromA(udp, 0, 5353, remote, 53)} {
		for i, f := range frames(p) {
			_, long, err := h.dp.Run(loader.FromContainer, f, loader.RunContext{Ifindex: h.a}) // looks up
			must(t, err)
			_, short, err := h.dp.Run(loader.FromContainer, f, loader.RunContext{Ifindex: h.a})
			must(t, err)
			checkChanged(t, i, f, short)
			if !bytes.Equal(long, short) {
				t.Fatalf("frame %d: % x became\n% x, and\n% x on the short way", i, f, long, short)
			}
			later += seconds(1) + time.Millisecond
			must(t, h.dp.SetClockOffset(later))
		}
	}
	h = newHost(t, false)
	now := seconds(0)
	out := func(p packet) {
		h.expect(loader.FromContainer, h.a, p, loader.Pass, &p)
		h.expect(loader.ToUplink, h.uplink, p, loader.Pass, nil)
	}
	for ; now < seconds(4); now += seconds(1) {
		must(t, h.dp.SetClockOffset(now))
		out(fromA(udp, 0, 5353, remote, 53))
		h.reply(fromOutside(udp, 0, remote, 53, hostAddr, 5353))
	}
	out(fromA(tcp, syn, 5000, remote, 80))
	h.reply(fromOutside(tcp, syn|ack, remote, 80, hostAddr, 5000))
	out(fromA(tcp, ack, 5000, remote, 80))
	for _, p := range []packet{fromOutside(tcp, ack, remote, 80, hostAddr, 5000), fromOutside(udp, 0, remote, 53, hostAddr, 5353)} {
		for i, f := range frames(p) {
			_, long, err := h.dp.Run(loader.FromUplink, f, loader.RunContext{Ifindex: h.uplink})
			must(t, err)
			if !bytes.Equal(long, in[0]) {
				t.Fatalf("frame %d: % x became\n% x, and\n% x on the short way", i, f, long, in[0])
			}
			in = in[1:]
		}
	}
}

// checkChanged checks the frame that became of another one.
func checkChanged(t *testing.T, i int, before, after []byte) {
	t.Helper()
	length := 14 + int(binary.BigEndian.Uint16(before[16:]))
	was, is := parse(before[:length]), parse(after[:length])
	if problem := verify(after[:length]); problem != "" || len(after) != len(before) {
		t.Fatalf("frame %d: %s of % x, which was % x", i, problem, after, before)
	}
	if was.noChecksum != is.noChecksum || was.payload != is.payload || was.ttl-1 != is.ttl || before[15] != after[15] {
		t.Fatalf("frame %d: %v became %v", i, was, is)
	}
}

// Another network's endpoint is none that could be reached by its Ethernet address, which says
// nothing about the network.
func TestPrivilegedNeighbourOfAnotherNetwork(t *testing.T) {
	h := newHost(t, true)
	p := toB()
	p.dst, p.dmac = netip.AddrPortFrom(otherNet, 80), otherMAC.String()
	h.expectDrop(loader.FromContainer, h.a, p, "other-network")
	p.dmac = bMAC.String()
	h.expectDrop(loader.FromContainer, h.a, p, "other-network")
	p = toB()
	p.smac = bMAC.String()
	h.expectDrop(loader.FromContainer, h.a, p, "spoofed-mac")
	p.smac, p.src = aMAC.String(), netip.AddrPortFrom(otherNet, 5000)
	h.expectDrop(loader.FromContainer, h.a, p, "spoofed-address")
	h.expectDrop(loader.FromContainer, h.b, toB(), "spoofed-mac")
}

// Neighbours meet the same questions on the short way as else.
func TestPrivilegedNeighbourMalformed(t *testing.T) {
	h := newHost(t, true)
	tcpFrame, udpFrame := toB().frame(), func() []byte { p := toB(); p.proto = udp; return p.frame() }()
	tcpFrame[14+20+12] = 4 << 4
	binary.BigEndian.PutUint16(udpFrame[14+20+4:], 100)
	dhcp := toB()
	dhcp.proto = udp
	dhcp.src, dhcp.dst = netip.AddrPortFrom(containerA, 67), netip.AddrPortFrom(containerB, 68)
	for name, frame := range map[string][]byte{"doff": tcpFrame, "length": udpFrame, "dhcp": dhcp.frame()} {
		if got, _, err := h.dp.Run(loader.FromContainer, frame, loader.RunContext{Ifindex: h.a}); err != nil || got != loader.Drop {
			t.Errorf("%s: verdict %d, %v", name, got, err)
		}
	}
	if h.dropped("malformed") != 2 || h.dropped("dhcp-server") != 1 {
		t.Errorf("drops %s", h.drops())
	}
}

// placeOf is near_at()'s.
func placeOf(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:]) * 0x9e3779b1 >> 20
}

// Endpoints that fall on one place are told apart: the one that is not there goes the long way.
func TestPrivilegedSamePlace(t *testing.T) {
	h := newHost(t, true)
	var twin netip.Addr
	for twin = netip.MustParseAddr("172.18.1.0"); placeOf(twin) != placeOf(containerB); twin = twin.Next() {
	}
	twinMAC := mac("02:eb:ac:12:77:77")
	e := loader.Endpoint{Slot: 20, Network: 1, Addrs: []netip.Addr{twin}, MAC: twinMAC,
		Ifindex: h.link(&netlink.Veth{LinkAttrs: attrs("vebt", nil), PeerName: "vebtp"}, "")}
	to := func(addr netip.Addr, mac string) packet {
		p := toB()
		p.dst, p.dmac = netip.AddrPortFrom(addr, 80), mac
		return p
	}
	check := func(addr netip.Addr, mac string, dev int, short bool) {
		t.Helper()
		p := to(addr, mac)
		if got, out := h.short(loader.FromContainer, h.a, p.frame()); got != short || !bytes.Equal(out, p.frame()) {
			t.Fatalf("to %v: short way %v, became %v", addr, got, parse(out))
		}
		h.expect(loader.FromContainer, h.a, p, loader.Redirect, &p)
		back := p
		back.smac, back.dmac, back.src, back.dst = mac, aMAC.String(), netip.AddrPortFrom(addr, 80), netip.AddrPortFrom(containerA, 5000)
		h.expect(loader.FromContainer, dev, back, loader.Redirect, &back)
		back.dmac, back.dst = bridgeMAC.String(), netip.AddrPortFrom(remote, 80)
		if got := h.expect(loader.FromContainer, dev, back, loader.Redirect, nil); got.src.Addr() != hostAddr {
			t.Fatalf("%v became %v", back, got)
		}
		back.src = netip.AddrPortFrom(containerA, 5000)
		h.expectDrop(loader.FromContainer, dev, back, "spoofed-address")
	}
	check(containerB, bMAC.String(), h.b, true)
	must(t, h.dp.PutEndpoint(e))
	check(twin, twinMAC.String(), e.Ifindex, true)
	check(containerB, bMAC.String(), h.b, false)
	h.expectDrop(loader.FromContainer, h.b, to(twin, twinMAC.String()), "spoofed-mac")
	must(t, h.dp.DeleteEndpoint(e))
	check(containerB, bMAC.String(), h.b, false) // its place is empty
	p := to(twin, twinMAC.String())
	h.expect(loader.FromContainer, h.a, p, loader.Pass, &p)
	// B again, with another device: what was known of the former one is not found.
	again := loader.Endpoint{Slot: 2, Network: 1, Addrs: []netip.Addr{containerB}, MAC: bMAC, Ifindex: e.Ifindex}
	must(t, h.dp.PutEndpoint(again))
	check(containerB, bMAC.String(), e.Ifindex, true)
	h.expectDrop(loader.FromContainer, h.b, fromB(tcp, syn, 5000, remote, 80), "unknown-device")
}

// A network that goes takes none of those along whose addresses start likewise.
func TestPrivilegedInnerPrefixesShared(t *testing.T) {
	h := newHost(t, true)
	network := func(id uint32, subnet string) loader.Network {
		p := netip.MustParsePrefix(subnet)
		return loader.Network{ID: id, Subnets: []netip.Prefix{p}, Gateways: []netip.Addr{p.Addr().Next()}, Bridge: h.bridge,
			BridgeMAC: bridgeMAC, MTU: 1500, ICC: true, Masquerade: true}
	}
	one, two, wide := network(3, "172.20.0.0/24"), network(4, "172.20.1.0/24"), network(5, "10.2.0.0/15")
	inside := func(want map[string]bool) {
		t.Helper()
		for addr, inner := range want {
			p := fromOutside(tcp, syn, remote, 4000, netip.MustParseAddr(addr), 22)
			if inner {
				h.expectDrop(loader.FromUplink, h.uplink, p, "direct-access")
			} else {
				h.expect(loader.FromUplink, h.uplink, p, loader.Pass, &p)
			}
		}
	}
	for _, n := range []loader.Network{one, two, wide} {
		must(t, h.dp.PutNetwork(n))
	}
	inside(map[string]bool{"172.20.0.9": true, "172.20.1.9": true, "172.20.2.9": false, "10.3.255.9": true, "10.4.0.9": false, "10.1.0.9": false})
	must(t, h.dp.DeleteNetwork(one))
	inside(map[string]bool{"172.20.0.9": false, "172.20.1.9": true, "10.2.0.9": true, "10.3.0.9": true, "172.18.0.9": true})
	must(t, h.dp.DeleteNetwork(wide))
	must(t, h.dp.DeleteNetwork(two))
	inside(map[string]bool{"172.20.1.9": false, "10.2.0.9": false, "10.3.0.9": false, "172.18.0.9": true, "172.19.0.9": true})
}

// Conversations by way of a published port and past it, of the same two endpoints, do not
// disturb each other; nor do those of another network's and of the server itself.
func TestPrivilegedDirectAndByPort(t *testing.T) {
	for _, fast := range []bool{true, false} {
		h := newHost(t, fast)
		direct := toB() // from A to B: nobody has used a port so far
		direct.src, direct.dst = netip.AddrPortFrom(containerB, 5001), netip.AddrPortFrom(containerA, 80)
		direct.smac, direct.dmac = bMAC.String(), aMAC.String()
		answer := fromA(tcp, syn|ack, 80, containerB, 5001)
		answer.dmac = bMAC.String()
		h.expect(loader.FromContainer, h.b, direct, loader.Redirect, &direct)
		h.expect(loader.FromContainer, h.a, answer, loader.Redirect, &answer)
		h.publish(loader.TCP, netip.Addr{}, 8080, 80)
		h.expect(loader.FromContainer, h.a, answer, loader.Redirect, &answer)
		clients := []struct {
			dev int
			ask packet
		}{
			{h.b, fromB(tcp, syn, 5000, hostAddr, 8080)},
			{h.othr, packet{smac: otherMAC.String(), dmac: bridgeMAC.String(), proto: tcp, flags: syn, ttl: 64,
				src: netip.AddrPortFrom(otherNet, 5000), dst: netip.AddrPortFrom(hostAddr, 8080)}},
			{h.a, fromA(tcp, syn, 5000, hostAddr, 8080)},
		}
		for round := range 3 {
			for _, c := range clients {
				got := h.expect(loader.FromContainer, c.dev, c.ask, loader.Redirect, nil)
				if got.dst != netip.AddrPortFrom(containerA, 80) {
					t.Fatalf("%v became %v", c.ask, got)
				}
				back := packet{smac: aMAC.String(), dmac: bridgeMAC.String(), proto: tcp, flags: []uint8{syn | ack, ack, ack}[round], ttl: 64,
					src: got.dst, dst: got.src}
				if c.dev == h.b {
					back.dmac = bMAC.String()
				}
				if out := h.expect(loader.FromContainer, h.a, back, loader.Redirect, nil); out.src != c.ask.dst || out.dst != c.ask.src {
					t.Fatalf("the answer %v to %v became %v", back, c.ask, out)
				}
				h.expect(loader.FromContainer, h.b, direct, loader.Redirect, &direct)
				h.expect(loader.FromContainer, h.a, answer, loader.Redirect, &answer)
			}
			for i := range clients {
				clients[i].ask.flags = ack
			}
			direct.flags, answer.flags = ack, ack
		}
	}
}

// gatewayIs makes the next hop of the default route another one.
func (h *host) gatewayIs(link int, gw netip.Addr, m string, table int) {
	h.Helper()
	must(h.TB, netlink.NeighSet(&netlink.Neigh{LinkIndex: link, State: netlink.NUD_PERMANENT, IP: gw.AsSlice(), HardwareAddr: mac(m)}))
	must(h.TB, netlink.RouteReplace(&netlink.Route{LinkIndex: link, Gw: gw.AsSlice(), Table: table}))
}

// Conversations that share what they know of the way out follow the host's routes and
// neighbours within a second, all of them.
func TestPrivilegedSharedWaysFollow(t *testing.T) {
	h := newHost(t, true)
	ports := []uint16{5000, 5001, 5002, 5003}
	for _, p := range ports {
		establish(h, p)
	}
	send := func(port uint16) packet {
		t.Helper()
		return h.expect(loader.FromContainer, h.a, fromA(tcp, ack, port, remote, 80), loader.Redirect, nil)
	}
	now, shared := time.Duration(0), 0
	const first, second, third = "02:00:00:00:00:01", "02:00:00:00:01:01", "02:00:00:00:02:01"
	for _, step := range []struct {
		change func()
		mac    string
	}{
		{func() {}, first},
		{func() { h.gatewayIs(h.uplink, router, second, 0) }, second},
		{func() { h.gatewayIs(h.uplink, netip.MustParseAddr("198.51.100.9"), third, 0) }, third},
		{func() { h.gatewayIs(h.uplink, router, first, 0) }, first},
	} {
		for range 3 { // others look it up at other times
			now += seconds(1) / 3
			must(t, h.dp.SetClockOffset(now))
			send(ports[1])
			send(ports[2])
		}
		step.change()
		now += seconds(1)
		must(t, h.dp.SetClockOffset(now))
		for _, p := range ports {
			short, out := h.short(loader.FromContainer, h.a, fromA(tcp, ack, p, remote, 80).frame())
			got := parse(out)
			if !short { // the neighbour's output writes the address of this one
				got = send(p)
			}
			if got.dmac != step.mac {
				t.Fatalf("after %v: port %d went to %s, want %s", now, p, got.dmac, step.mac)
			}
		}
		now += seconds(1)
		must(t, h.dp.SetClockOffset(now))
		send(ports[0])
		for _, p := range ports[1:] {
			if short, _ := h.short(loader.FromContainer, h.a, fromA(tcp, ack, p, remote, 80).frame()); short {
				shared++
			}
		}
	}
	if shared != 4*(len(ports)-1) {
		t.Errorf("%d conversations took the way that another one had found", shared)
	}
}

// hostNet is a prefix of one address.
func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)}
}

// Conversations with the same peer that the host's rules send by different uplinks, by the container
// or by the port, go on doing so.
func TestPrivilegedSharedWaysByRule(t *testing.T) {
	h := newHost(t, true)
	const otherRouter = "02:00:00:00:09:01"
	up1 := h.link(&netlink.Veth{LinkAttrs: attrs("up1", mac("02:00:00:00:00:03")), PeerName: "wire1"}, "192.0.2.2/24")
	wire, err := netlink.LinkByName("wire1")
	must(t, err)
	must(t, netlink.LinkSetUp(wire))
	h.gatewayIs(up1, netip.MustParseAddr("192.0.2.1"), otherRouter, 100)
	must(t, h.dp.PutUplink(loader.Uplink{Ifindex: up1, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.2")}, MTU: 1500}))
	for _, change := range []func(*netlink.Rule){
		func(r *netlink.Rule) { r.Src = hostNet(containerB) },
		func(r *netlink.Rule) { r.Dport, r.IPProto = netlink.NewRulePortRange(443, 443), tcp },
	} {
		rule := netlink.NewRule()
		rule.Table, rule.Priority, rule.Family = 100, 50, netlink.FAMILY_V4
		change(rule)
		must(t, netlink.RuleAdd(rule))
	}
	conversations := []struct {
		p      packet
		dev    int
		second bool
	}{
		{fromA(tcp, syn, 5000, remote, 80), h.a, false},
		{fromB(tcp, syn, 5001, remote, 80), h.b, true},
		{fromA(tcp, syn, 5002, remote, 443), h.a, true},
		{fromA(tcp, syn, 5003, remote, 80), h.a, false},
		{fromA(tcp, syn, 5004, remote, 443), h.a, true},
	}
	for i := range 8 {
		must(t, h.dp.SetClockOffset(time.Duration(i)*seconds(1)/2))
		for j := range conversations {
			c := &conversations[j]
			got := h.expect(loader.FromContainer, c.dev, c.p, loader.Redirect, nil)
			src, router := hostAddr, routerMAC.String()
			if c.second {
				src, router = netip.MustParseAddr("192.0.2.2"), otherRouter
			}
			if got.src.Addr() != src || got.dmac != router {
				t.Fatalf("round %d: %v became %v", i, c.p, got)
			}
			if i == 0 {
				h.runReceived(loader.FromUplink, map[bool]int{false: h.uplink, true: up1}[c.second], 0,
					fromOutside(tcp, syn|ack, remote, c.p.dst.Port(), src, got.src.Port()))
			}
			c.p.flags = ack
		}
	}
}

// Uplinks whose interface indices fall on one place are told apart, and what is changed of one counts
// from the next packet on.
func TestPrivilegedUplinksSamePlace(t *testing.T) {
	h := newHost(t, true)
	up := loader.Uplink{Ifindex: h.uplink, Addrs: []netip.Addr{hostAddr}, MTU: 1500}
	side := loader.Uplink{Ifindex: h.uplink + 64, Addrs: []netip.Addr{hostAddr2}, MTU: 1500, Side: true}
	port := uint16(2000)
	opens := func(want loader.Verdict) {
		t.Helper()
		port++
		h.expect(loader.FromContainer, h.a, fromA(tcp, syn, port, remote, 80), want, nil)
	}
	opens(loader.Redirect)
	must(t, h.dp.PutUplink(side))
	opens(loader.Redirect)
	must(t, h.dp.DeleteUplink(side.Ifindex))
	opens(loader.Redirect)
	must(t, h.dp.PutUplink(side))
	must(t, h.dp.PutUplink(up))
	must(t, h.dp.DeleteUplink(side.Ifindex))
	opens(loader.Redirect)
	up.Side = true
	must(t, h.dp.PutUplink(up))
	opens(loader.Drop)
	// An answer by a device that containers do not leave by is none.
	establish := fromOutside(tcp, syn|ack, remote, 80, hostAddr, 2001)
	h.expectDrop(loader.FromUplink, h.uplink, establish, "spoofed-address")
	up.Side = false
	must(t, h.dp.PutUplink(up))
	opens(loader.Redirect)
	h.reply(establish)
	must(t, h.dp.DeleteUplink(h.uplink))
	opens(loader.Drop)
	if h.dropped("not-uplink") != 2 {
		t.Errorf("drops %s", h.drops())
	}
}

// What is established notices within a second that its uplink is none any more, and at once that
// the endpoint is gone, on the short way as on the long one.
func TestPrivilegedShortWayEnds(t *testing.T) {
	h := newHost(t, true)
	establish(h, 5000)
	establish(h, 5001)
	in, out := fromOutside(tcp, ack, remote, 80, hostAddr, 5000), fromA(tcp, ack, 5000, remote, 80)
	h.reply(in)
	must(t, h.dp.DeleteUplink(h.uplink))
	must(t, h.dp.SetClockOffset(seconds(1)))
	for range 2 { // neither of them vouches for the other
		h.expectDrop(loader.FromContainer, h.a, out, "not-uplink")
		h.expectDrop(loader.FromContainer, h.a, fromA(tcp, ack, 5001, remote, 80), "not-uplink")
	}
	must(t, h.dp.PutUplink(loader.Uplink{Ifindex: h.uplink, Addrs: []netip.Addr{hostAddr}, MTU: 1500}))
	h.expect(loader.FromContainer, h.a, out, loader.Redirect, nil)
	must(t, h.dp.DeleteEndpoint(h.endpointA()))
	h.expect(loader.FromUplink, h.uplink, in, loader.Pass, &in)
	h.expectDrop(loader.FromContainer, h.a, out, "unknown-device")
	must(t, h.dp.PutEndpoint(h.endpointA())) // its successor has none of its conversations
	h.expect(loader.FromUplink, h.uplink, in, loader.Pass, &in)
	h.expectDrop(loader.FromContainer, h.a, out, "no-flow")
}
