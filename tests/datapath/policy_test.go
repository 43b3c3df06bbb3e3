package datapath

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/ebnet/ebnet/loader"
)

// setNetwork changes the policy of A's network.
func (h *host) setNetwork(change func(*loader.Network)) {
	h.Helper()
	n := loader.Network{ID: 1, Subnets: []netip.Prefix{netip.MustParsePrefix("172.18.0.0/16")},
		Gateways: []netip.Addr{gateway}, Bridge: h.bridge, BridgeMAC: bridgeMAC, MTU: 1500, ICC: true, Masquerade: true}
	change(&n)
	must(h.TB, h.dp.PutNetwork(n))
}

func TestPrivilegedRouted(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host, out func(packet) packet) {
		h.setNetwork(func(n *loader.Network) { n.Routed = true })
		must(t, h.dp.Publish(loader.Publication{Slot: 10, Protocol: loader.TCP, HostAddr: containerA, HostPort: 80, Count: 1,
			Network: 1, Ifindex: h.a, MAC: aMAC, Addr: containerA, Port: 80}))
		// Out, as it is, and the answer.
		ask := fromA(udp, 0, 40000, remote, 53)
		if got := out(ask); got.src != ask.src || got.dst != ask.dst {
			t.Fatalf("%v became %v", ask, got)
		}
		answer := fromOutside(udp, 0, remote, 53, containerA, 40000)
		if got := h.reply(answer); got.src != answer.src || got.dst != answer.dst || got.dmac != aMAC.String() {
			t.Fatalf("%v became %v", answer, got)
		}
		// In, to the published port and pings, and the answers.
		request := fromOutside(tcp, syn, remote, 4000, containerA, 80)
		if got := h.reply(request); got.src != request.src || got.dst != request.dst {
			t.Fatalf("%v became %v", request, got)
		}
		back := fromA(tcp, syn|ack, 80, remote, 4000)
		if got := out(back); got.src != back.src || got.dst != back.dst {
			t.Fatalf("%v became %v", back, got)
		}
		h.reply(echo(fromOutside(icmp, 0, remote, 9, containerA, 0)))
		out(fromA(icmp, 0, 9, remote, 0))
		// Nothing else, in or out.
		for _, p := range []packet{
			fromOutside(tcp, syn, remote, 4000, containerA, 81), fromOutside(udp, 0, remote, 4000, containerA, 80),
			fromOutside(tcp, ack, remote, 4001, containerA, 80), fromOutside(47, 0, remote, 0, containerA, 0),
			fromOutside(tcp, syn, remote, 4000, containerB, 80),
			fromOutside(icmp, 0, remote, 10, containerA, 0), // an answer to no question
		} {
			h.expectDrop(loader.FromUplink, h.uplink, p, "direct-access")
		}
		h.expectDrop(loader.FromUplink, h.uplink, fromOutside(tcp, syn, containerB, 4000, containerA, 80), "spoofed-address")
		request.dst = netip.AddrPortFrom(hostAddr, 80)
		h.expect(loader.FromUplink, h.uplink, request, loader.Pass, &request) // the host's port is its own
	})
}

// A UDP port of a routed network that is unpublished stays closed while the container goes on.
func TestPrivilegedRoutedUnpublish(t *testing.T) {
	h := newHost(t, true)
	h.setNetwork(func(n *loader.Network) { n.Routed = true })
	pub := loader.Publication{Slot: 10, Protocol: loader.UDP, HostAddr: containerA, HostPort: 80, Count: 1,
		Network: 1, Ifindex: h.a, MAC: aMAC, Addr: containerA, Port: 80}
	must(t, h.dp.Publish(pub))
	request := fromOutside(udp, 0, remote, 4000, containerA, 80)
	h.reply(request)
	h.expect(loader.FromContainer, h.a, fromA(udp, 0, 80, remote, 4000), loader.Redirect, nil)
	must(t, h.dp.Unpublish(pub))
	h.expectDrop(loader.FromUplink, h.uplink, request, "direct-access")
	h.expectDrop(loader.FromContainer, h.a, fromA(udp, 0, 80, remote, 4000), "unpublished")
	h.expectDrop(loader.FromUplink, h.uplink, request, "direct-access")
	_, err := h.dp.FlushFlows(func(loader.Flow) bool { return true })
	must(t, err)
	h.expectDrop(loader.FromContainer, h.a, fromA(udp, 0, 80, remote, 4000), "unpublished")
}

// A published port of a routed network is open to other networks too, at its own address.
func TestPrivilegedRoutedFromOtherNetwork(t *testing.T) {
	for _, fast := range []bool{true, false} {
		h := newHost(t, fast)
		h.setNetwork(func(n *loader.Network) { n.Routed = true })
		must(t, h.dp.Publish(loader.Publication{Slot: 10, Protocol: loader.TCP, HostAddr: containerA, HostPort: 80, Count: 1,
			Network: 1, Ifindex: h.a, MAC: aMAC, Addr: containerA, Port: 80}))
		ask := packet{smac: otherMAC.String(), dmac: bridgeMAC.String(), proto: tcp, flags: syn, ttl: 64,
			src: netip.AddrPortFrom(otherNet, 5000), dst: netip.AddrPortFrom(containerA, 80), payload: "x"}
		got := h.expect(loader.FromContainer, h.othr, ask, loader.Redirect, nil)
		if got.src != ask.src || got.dst != ask.dst || got.dmac != aMAC.String() {
			t.Fatalf("%v became %v", ask, got)
		}
		answer := fromA(tcp, syn|ack, 80, otherNet, 5000)
		if got := h.expect(loader.FromContainer, h.a, answer, loader.Redirect, nil); got.dst != ask.src || got.dmac != otherMAC.String() {
			t.Fatalf("the answer became %v", got)
		}
		late := ask
		late.flags, late.src = ack, netip.AddrPortFrom(otherNet, 5001)
		closed := ask
		closed.dst = netip.AddrPortFrom(containerA, 81)
		for _, p := range []packet{late, closed} {
			h.expectDrop(loader.FromContainer, h.othr, p, "other-network")
		}
		h.expectDrop(loader.FromContainer, h.a, fromA(tcp, syn, 6000, otherNet, 80), "other-network")
	}
}

// Errors about conversations of a routed network pass both ways, and no others.
func TestPrivilegedRoutedErrors(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host, out func(packet) packet) {
		h.setNetwork(func(n *loader.Network) { n.Routed = true })
		sent := out(fromA(udp, 0, 5000, remote, 53))
		e := icmpError{outer: fromOutside(icmp, 0, router, 0, containerA, 0), code: 4, mtu: 1300, quoted: sent, quoteBytes: 8}
		e.outer.kind = 3
		verdict, got := h.runError(loader.FromUplink, h.uplink, 0, e)
		if _, src, dst := quotation(t, got); verdict != loader.Redirect || src != sent.src || dst != sent.dst {
			t.Fatalf("verdict %d, quotes %v>%v; drops %s", verdict, src, dst, h.drops())
		}
		e.quoted.src = netip.AddrPortFrom(containerA, 5001)
		if verdict, _ := h.runError(loader.FromUplink, h.uplink, 0, e); verdict != loader.Drop {
			t.Fatalf("about nothing: verdict %d", verdict)
		}
	})
}

// Without masquerade packets leave as they are, answers come in, and nothing else does but
// by published ports of the host.
func TestPrivilegedNoMasquerade(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host, out func(packet) packet) {
		h.setNetwork(func(n *loader.Network) { n.Masquerade = false })
		h.publish(loader.TCP, netip.Addr{}, 8080, 80)
		ask := fromA(tcp, syn, 40000, remote, 53)
		if got := out(ask); got.src != ask.src {
			t.Fatalf("%v became %v", ask, got)
		}
		h.reply(fromOutside(tcp, syn|ack, remote, 53, containerA, 40000))
		h.expectDrop(loader.FromUplink, h.uplink, fromOutside(tcp, syn, remote, 4000, containerA, 80), "direct-access")
		h.expectDrop(loader.FromUplink, h.uplink, echo(fromOutside(icmp, 0, remote, 9, containerA, 0)), "direct-access")
		if got := h.reply(fromOutside(tcp, syn, remote, 4000, hostAddr, 8080)); got.dst != netip.AddrPortFrom(containerA, 80) {
			t.Fatalf("the published port led to %v", got.dst)
		}
		if got := out(fromA(tcp, syn|ack, 80, remote, 4000)); got.src != netip.AddrPortFrom(hostAddr, 8080) {
			t.Fatalf("the answer left from %v", got.src)
		}
	})
}

func TestPrivilegedSourceAddressFixed(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host, out func(packet) packet) {
		h.setNetwork(func(n *loader.Network) { n.SNAT = hostAddr2 })
		if got := out(fromA(udp, 0, 5000, remote, 53)); got.src != netip.AddrPortFrom(hostAddr2, 5000) {
			t.Fatalf("left from %v", got.src)
		}
		h.reply(fromOutside(udp, 0, remote, 53, hostAddr2, 5000))
	})
}

// A restricted port is open to its sources, from outside and inside, and to no others.
func TestPrivilegedFrom(t *testing.T) {
	h := newHost(t, true)
	var from []netip.Prefix
	for i := range 1200 { // none of them is the client's
		from = append(from, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
	}
	pub := loader.Publication{Slot: 10, Protocol: loader.TCP, HostPort: 8080, Count: 1, Network: 1,
		Ifindex: h.a, MAC: aMAC, Addr: containerA, Port: 80}
	pub.From = append(from, netip.MustParsePrefix("203.0.113.0/29"), netip.PrefixFrom(containerB, 32))
	must(t, h.dp.Publish(pub))
	h.reply(fromOutside(tcp, syn, remote, 4000, hostAddr, 8080))
	h.reply(fromOutside(tcp, syn, netip.MustParseAddr("10.4.175.9"), 4000, hostAddr, 8080))
	for _, src := range []string{"203.0.113.8", "10.4.176.1", "198.51.100.1"} {
		h.expectDrop(loader.FromUplink, h.uplink, fromOutside(tcp, syn, netip.MustParseAddr(src), 4000, hostAddr, 8080),
			"source-not-allowed")
	}
	inside := packet{smac: bMAC.String(), dmac: bridgeMAC.String(), proto: tcp, flags: syn, ttl: 64,
		src: netip.AddrPortFrom(containerB, 5000), dst: netip.AddrPortFrom(hostAddr, 8080)}
	h.expect(loader.FromContainer, h.b, inside, loader.Redirect, nil)
	h.expectDrop(loader.FromContainer, h.a, fromA(tcp, syn, 5000, hostAddr, 8080), "source-not-allowed")
	// Another port is not restricted by this one's list, and withdrawing takes the list away.
	must(t, h.dp.Unpublish(pub))
	h.publish(loader.TCP, netip.Addr{}, 8080, 80)
	h.reply(fromOutside(tcp, syn, netip.MustParseAddr("203.0.113.8"), 4000, hostAddr, 8080))
	uses, err := h.dp.Usage()
	must(t, err)
	for _, u := range uses {
		if u.Name == "sources" && u.Used != 0 {
			t.Errorf("%d sources are left", u.Used)
		}
	}
}

// The devices of another engine on this host: its containers reach published ports and are
// answered, but ours do not go there.
func TestPrivilegedSide(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host, out func(packet) packet) {
		must(t, h.dp.PutUplink(loader.Uplink{Ifindex: h.uplink, Addrs: []netip.Addr{hostAddr}, MTU: 1500, Side: true}))
		h.publish(loader.TCP, netip.Addr{}, 8080, 80)
		h.reply(fromOutside(tcp, syn, remote, 4000, hostAddr, 8080))
		if got := out(fromA(tcp, syn|ack, 80, remote, 4000)); got.src != netip.AddrPortFrom(hostAddr, 8080) {
			t.Fatalf("the answer left from %v", got.src)
		}
		ask := fromA(tcp, syn, 5000, remote, 80)
		h.expectDrop(loader.FromContainer, h.a, ask, "not-uplink")
		// What was for the host, whose engine published it, and is translated by now.
		h.expect(loader.ToUplink, h.uplink, ask, loader.Pass, &ask)
	})
}

// A side device does not speak for the internet.
func TestPrivilegedSideForges(t *testing.T) {
	h := newHost(t, true)
	side := h.link(&netlink.Bridge{LinkAttrs: attrs("docker0", uplinkMAC)}, "172.17.0.1/16")
	must(t, h.dp.PutUplink(loader.Uplink{Ifindex: side, Addrs: []netip.Addr{netip.MustParseAddr("172.17.0.1")}, MTU: 1500, Side: true}))
	h.expect(loader.FromContainer, h.a, fromA(udp, 0, 5000, remote, 53), loader.Redirect, nil)
	answer := fromOutside(udp, 0, remote, 53, hostAddr, 5000)
	h.expectDrop(loader.FromUplink, side, answer, "spoofed-address")
	h.reply(answer)
}

// What others on this host send to a container's address is for to_bridge to judge, after
// the host's translation.
func TestPrivilegedSideToInner(t *testing.T) {
	h := newHost(t, true)
	docker0 := h.link(&netlink.Bridge{LinkAttrs: attrs("docker0", uplinkMAC)}, "172.17.0.1/16")
	must(t, h.dp.PutUplink(loader.Uplink{Ifindex: docker0, MTU: 1500, Side: true}))
	p := fromOutside(tcp, syn|ack, netip.MustParseAddr("172.17.0.2"), 80, containerA, 5000)
	h.expect(loader.FromUplink, docker0, p, loader.Pass, &p)
	h.expectDrop(loader.ToBridge, h.bridge, p, "forwarded")
	p.src = netip.AddrPortFrom(containerB, 80)
	h.expectDrop(loader.FromUplink, docker0, p, "spoofed-address")
}

// Ports that are used up with one source address are free with another.
func TestPrivilegedExhaustionByAddress(t *testing.T) {
	h := newHost(t, true)
	var few loader.PortSet
	few.Add(2000, 2)
	must(t, h.dp.SetSourcePorts(&few))
	for i := range 2 {
		h.expect(loader.FromContainer, h.a, fromA(tcp, syn, uint16(40000+i), remote, 443), loader.Redirect, nil)
	}
	h.expectDrop(loader.FromContainer, h.a, fromA(tcp, syn, 40002, remote, 443), "no-source-port")
	h.setNetwork(func(n *loader.Network) { n.SNAT = hostAddr2 })
	h.expect(loader.FromContainer, h.a, fromA(tcp, syn, 40003, remote, 443), loader.Redirect, nil)
}

// An internal network reaches its gateway, and no other address of the host.
func TestPrivilegedInternalGateway(t *testing.T) {
	h := newHost(t, true)
	h.setNetwork(func(n *loader.Network) { n.Internal = true })
	p := fromA(udp, 0, 5000, gateway, 53)
	h.expect(loader.FromContainer, h.a, p, loader.Pass, &p)
	h.expectDrop(loader.FromContainer, h.a, fromA(udp, 0, 5000, hostAddr, 53), "internal")
}

func TestPrivilegedBroadcastIsNotTheHost(t *testing.T) {
	h := newHost(t, true)
	h.publish(loader.UDP, netip.Addr{}, 8080, 80)
	broadcast := netip.MustParseAddr("198.51.100.255")
	must(t, h.dp.SetLocalAddrs([]netip.Addr{hostAddr}, []netip.Addr{broadcast}))
	for _, dst := range []netip.Addr{broadcast, netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("127.0.0.1"),
		netip.MustParseAddr("198.51.100.77")} {
		p := fromOutside(udp, 0, remote, 4000, dst, 8080)
		h.expect(loader.FromUplink, h.uplink, p, loader.Pass, &p)
	}
	// An address that is new is learned by its use.
	h.reply(fromOutside(udp, 0, remote, 4000, hostAddr2, 8080))
	local, err := h.dp.LocalAddrs()
	must(t, err)
	if fmt.Sprint(local) != fmt.Sprint([]netip.Addr{hostAddr, hostAddr2}) {
		t.Errorf("known as local: %v", local)
	}
}

// A port of 127.0.0.1 is not reachable by any packet.
func TestPrivilegedLoopbackPublication(t *testing.T) {
	h := newHost(t, true)
	loopback := netip.MustParseAddr("127.0.0.1")
	h.publish(loader.UDP, loopback, 8080, 80)
	for _, dst := range []netip.Addr{loopback, hostAddr} {
		p := fromOutside(udp, 0, remote, 4000, dst, 8080)
		h.expect(loader.FromUplink, h.uplink, p, loader.Pass, &p)
	}
	p := fromA(udp, 0, 5000, hostAddr, 8080)
	h.expect(loader.FromContainer, h.a, p, loader.Pass, &p)
	h.expectDrop(loader.FromContainer, h.a, fromA(udp, 0, 5000, loopback, 8080), "loopback")
}

func TestPrivilegedDHCPServer(t *testing.T) {
	h := newHost(t, true)
	offer := fromA(udp, 0, 67, netip.MustParseAddr("255.255.255.255"), 68)
	offer.dmac = "ff:ff:ff:ff:ff:ff"
	unicast := fromA(udp, 0, 67, containerB, 68)
	unicast.dmac = bMAC.String()
	for _, p := range []packet{offer, unicast} {
		h.expectDrop(loader.FromContainer, h.a, p, "dhcp-server")
	}
}

// ICMP errors about what came by a published port from inside, by both ends.
func TestPrivilegedErrorInside(t *testing.T) {
	h := newHost(t, true)
	h.publish(loader.UDP, netip.Addr{}, 8080, 80)
	ask := packet{smac: bMAC.String(), dmac: bridgeMAC.String(), proto: udp, ttl: 64,
		src: netip.AddrPortFrom(containerB, 5000), dst: netip.AddrPortFrom(hostAddr, 8080), payload: "x"}
	asked := h.expect(loader.FromContainer, h.b, ask, loader.Redirect, nil)
	answer := fromA(udp, 0, 80, containerB, 5000)
	answer.dmac = bMAC.String()
	answered := h.expect(loader.FromContainer, h.a, answer, loader.Redirect, nil)

	byServer := icmpError{outer: fromA(icmp, 0, 0, containerB, 0), code: 3, quoted: asked, quoteBytes: 8}
	byServer.outer.kind, byServer.outer.dmac = 3, bMAC.String()
	verdict, got := h.runError(loader.FromContainer, h.a, 0, byServer)
	if _, src, dst := quotation(t, got); verdict != loader.Redirect || src != ask.src || dst != ask.dst ||
		got.src.Addr() != hostAddr || got.dst.Addr() != containerB {
		t.Errorf("by the server: verdict %d, %v quotes %v>%v", verdict, got, src, dst)
	}
	byClient := icmpError{outer: ask, code: 3, quoted: answered, quoteBytes: 8}
	byClient.outer.proto, byClient.outer.kind, byClient.outer.src = icmp, 3, netip.AddrPortFrom(containerB, 0)
	byClient.outer.dst = netip.AddrPortFrom(hostAddr, 0)
	verdict, got = h.runError(loader.FromContainer, h.b, 0, byClient)
	if _, src, dst := quotation(t, got); verdict != loader.Redirect || src != answer.src || dst != answer.dst ||
		got.src.Addr() != containerB || got.dst.Addr() != containerA {
		t.Errorf("by the client: verdict %d, %v quotes %v>%v", verdict, got, src, dst)
	}
	byHost := icmpError{outer: packet{smac: bridgeMAC.String(), dmac: bMAC.String(), proto: icmp, kind: 3, ttl: 64,
		src: netip.AddrPortFrom(gateway, 0), dst: netip.AddrPortFrom(containerB, 0)}, code: 4, mtu: 1400, quoted: asked, quoteBytes: 8}
	verdict, got = h.runError(loader.ToBridge, h.bridge, 0, byHost)
	if _, src, dst := quotation(t, got); verdict != loader.Pass || src != ask.src || dst != ask.dst {
		t.Errorf("by the host: verdict %d, %v quotes %v>%v", verdict, got, src, dst)
	}
}
