package datapath

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/ebnet/ebnet/loader"
)

// fromHost is what the host itself sends by its uplink.
func fromHost(proto, flags uint8, sport uint16, dst netip.Addr, dport uint16) packet {
	return packet{smac: uplinkMAC.String(), dmac: routerMAC.String(), proto: proto, flags: flags, ttl: 64,
		src: netip.AddrPortFrom(hostAddr, sport), dst: netip.AddrPortFrom(dst, dport), payload: "of the host"}
}

// hostSends is what to_uplink makes of it; received is 0 for the host itself, else the
// device of whom it forwards for.
func (h *host) hostSends(received int, p packet) packet {
	h.Helper()
	verdict, got := h.runReceived(loader.ToUplink, h.uplink, received, p)
	if verdict != loader.Pass {
		h.Fatalf("%v of the host: verdict %d; drops %s", p, verdict, h.drops())
	}
	return got
}

func (h *host) flows() (all []loader.Flow) {
	h.Helper()
	must(h.TB, h.dp.Flows(func(f loader.Flow) bool { all = append(all, f); return true }))
	return all
}

// A socket of the host that uses a port which a container's conversation with the same
// peer has got outside another port, and its answers find back.
func TestPrivilegedHostSocketConflict(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host, out func(packet) packet) {
		for _, c := range []struct {
			proto, first, answer uint8
		}{{udp, 0, 0}, {tcp, syn, syn | ack}} {
			outside := out(fromA(c.proto, c.first, 5000, remote, 443)).src.Port()
			if outside != 5000 {
				t.Fatalf("the container got port %d", outside)
			}
			p := fromHost(c.proto, c.first, 5000, remote, 443)
			got := h.hostSends(0, p)
			if got.src.Addr() != hostAddr || got.src.Port() == 5000 || got.dst != p.dst || got.ttl != p.ttl {
				t.Fatalf("%v became %v", p, got)
			}
			if again := h.hostSends(0, p); again != got {
				t.Fatalf("the second time it became %v, the first %v", again, got)
			}
			answer := fromOutside(c.proto, c.answer, remote, 443, hostAddr, got.src.Port())
			back := h.expect(loader.FromUplink, h.uplink, answer, loader.Pass, nil)
			if back.dst != p.src || back.ttl != answer.ttl || back.dmac != answer.dmac {
				t.Fatalf("the answer became %v", back)
			}
			if back := h.reply(fromOutside(c.proto, c.answer, remote, 443, hostAddr, 5000)); back.dst.Addr() != containerA {
				t.Fatalf("the container's answer became %v", back)
			}
		}
	})
}

// What cannot be mistaken is left alone, and nothing is remembered of it.
func TestPrivilegedHostWithoutConflict(t *testing.T) {
	h := newHost(t, true)
	h.expect(loader.FromContainer, h.a, fromA(udp, 0, 5000, remote, 443), loader.Redirect, nil)
	for _, p := range []packet{
		fromHost(udp, 0, 5001, remote, 443),
		fromHost(udp, 0, 5000, remote, 444),
		fromHost(udp, 0, 5000, router, 443),
		fromHost(tcp, syn, 5000, remote, 443),
		fromHost(udp, 0, 40000, remote, 443),
		fromHost(47, 0, 0, remote, 0),
	} {
		if got := h.hostSends(0, p); got != p {
			t.Errorf("%v became %v", p, got)
		}
	}
	if n := len(h.flows()); n != 1 {
		t.Errorf("%d flows, want the container's", n)
	}
}

// Pings of host and container with equal identifiers, whichever is first.
func TestPrivilegedHostPingConflict(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host, out func(packet) packet) {
		own := echo(fromHost(icmp, 0, 77, remote, 0))
		if got := h.hostSends(0, own); got != own {
			t.Fatalf("%v became %v", own, got)
		}
		inner := out(echo(fromA(icmp, 0, 77, remote, 0)))
		if inner.src.Port() == 77 {
			t.Fatal("the container got the host's identifier")
		}
		answer := fromOutside(icmp, 0, remote, 77, hostAddr, 0)
		h.expect(loader.FromUplink, h.uplink, answer, loader.Pass, &answer)
		if back := h.reply(fromOutside(icmp, 0, remote, inner.src.Port(), hostAddr, 0)); back.src.Port() != 77 {
			t.Fatalf("the container's answer became %v", back)
		}

		if got := out(echo(fromA(icmp, 0, 78, remote, 0))); got.src.Port() != 78 {
			t.Fatalf("the container's identifier became %d", got.src.Port())
		}
		second := echo(fromHost(icmp, 0, 78, remote, 0))
		got := h.hostSends(0, second)
		if got.src.Port() == 78 {
			t.Fatal("the host kept the container's identifier")
		}
		back := h.expect(loader.FromUplink, h.uplink, fromOutside(icmp, 0, remote, got.src.Port(), hostAddr, 0), loader.Pass, nil)
		if back.src.Port() != 78 {
			t.Fatalf("the host's answer became %v", back)
		}
	})
}

// What another engine on the host has translated to the host's address keeps its port, and
// containers do not get it; where theirs was first it gets another.
func TestPrivilegedForwardedConflict(t *testing.T) {
	h := newHost(t, true)
	p := fromHost(udp, 0, 5000, remote, 443)
	if got := h.hostSends(docker0, p); got != p {
		t.Fatalf("%v became %v", p, got)
	}
	inner := h.expect(loader.FromContainer, h.a, fromA(udp, 0, 5000, remote, 443), loader.Redirect, nil)
	if inner.src.Port() == 5000 {
		t.Fatal("the container got its port")
	}
	answer := fromOutside(udp, 0, remote, 443, hostAddr, 5000)
	h.expect(loader.FromUplink, h.uplink, answer, loader.Pass, &answer)

	h.expect(loader.FromContainer, h.a, fromA(udp, 0, 6000, remote, 443), loader.Redirect, nil)
	if got := h.hostSends(docker0, fromHost(udp, 0, 6000, remote, 443)); got.src.Port() == 6000 {
		t.Fatal("both have port 6000")
	}
	// Ports outside the set are not looked at.
	before := len(h.flows())
	ephemeral := fromHost(udp, 0, 45000, remote, 443)
	if got := h.hostSends(docker0, ephemeral); got != ephemeral || len(h.flows()) != before {
		t.Fatalf("%v became %v, %d flows", ephemeral, got, len(h.flows()))
	}
}

// Outside cannot speak in a container's place, whatever conversation there is.
func TestPrivilegedInnerTupleFromOutside(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host, out func(packet) packet) {
		out(fromA(udp, 0, 5000, remote, 5353))
		h.publish(loader.UDP, netip.Addr{}, 8080, 80)
		ask := fromA(udp, 0, 6000, hostAddr, 8080)
		ask.smac, ask.src = bMAC.String(), netip.AddrPortFrom(containerB, 6000)
		h.expect(loader.FromContainer, h.b, ask, loader.Redirect, nil) // hairpin
		local := fromA(udp, 0, 7000, hostAddr, 5454)
		h.expect(loader.FromContainer, h.a, local, loader.Pass, &local)
		for _, p := range []packet{
			fromOutside(udp, 0, containerA, 5000, remote, 5353),
			fromOutside(udp, 0, containerB, 6000, hostAddr, 8080),
			fromOutside(udp, 0, containerA, 7000, hostAddr, 5454),
			fromOutside(udp, 0, hostAddr, 5454, containerA, 7000),
		} {
			before := h.flows()
			verdict, got := h.run(loader.FromUplink, h.uplink, p)
			// What is for no address of ours is the host's to judge, untouched.
			if verdict == loader.Redirect || got != p || inner(p.dst.Addr()) && verdict != loader.Drop {
				t.Errorf("%v: verdict %d, %v", p, verdict, got)
			}
			if after := h.flows(); len(after) != len(before) {
				t.Errorf("%v: %d flows became %d", p, len(before), len(after))
			}
		}
	})
}

// What a container sends to the host may be answered by way of the host's forwarding, where
// another engine translates it; nothing else that the host forwards comes in.
func TestPrivilegedForwardedAnswer(t *testing.T) {
	h := newHost(t, true)
	ask := fromA(tcp, syn, 5000, hostAddr, 8888)
	h.expect(loader.FromContainer, h.a, ask, loader.Pass, &ask)
	answer := packet{smac: bridgeMAC.String(), dmac: aMAC.String(), proto: tcp, flags: syn | ack, ttl: 63,
		src: ask.dst, dst: ask.src, payload: "x"}
	if verdict, got := h.runReceived(loader.ToBridge, h.bridge, docker0, answer); verdict != loader.Pass || got != answer {
		t.Fatalf("verdict %d, %v; drops %s", verdict, got, h.drops())
	}
	other := answer
	other.src = netip.AddrPortFrom(hostAddr, 8889)
	byGateway := answer // as Docker masquerades what its containers send here
	byGateway.src, byGateway.flags = netip.AddrPortFrom(gateway, 40000), syn
	for _, p := range []packet{other, byGateway} {
		if verdict, _ := h.runReceived(loader.ToBridge, h.bridge, docker0, p); verdict != loader.Drop {
			t.Errorf("%v: verdict %d", p, verdict)
		}
	}
	// What the host says itself does.
	if verdict, _ := h.runReceived(loader.ToBridge, h.bridge, 0, byGateway); verdict != loader.Pass {
		t.Errorf("of the host itself: verdict %d", verdict)
	}
}

// What the host forwards with a container's address, and did not get from the container's
// bridge, neither leaves nor opens anything.
func TestPrivilegedForwardedForgery(t *testing.T) {
	h := newHost(t, true)
	p := fromOutside(udp, 0, containerA, 5000, remote, 40000)
	if verdict, got := h.runReceived(loader.ToUplink, h.uplink, h.uplink, p); verdict != loader.Drop || len(h.flows()) != 0 {
		t.Fatalf("verdict %d, %v, %d flows", verdict, got, len(h.flows()))
	}
}

// Nobody outside ends the host's own translated conversations in its name.
func TestPrivilegedHostForged(t *testing.T) {
	h := newHost(t, true)
	h.expect(loader.FromContainer, h.a, fromA(tcp, syn, 5000, remote, 4430), loader.Redirect, nil)
	got := h.hostSends(0, fromHost(tcp, syn, 5000, remote, 4430))
	h.expect(loader.FromUplink, h.uplink, fromOutside(tcp, syn|ack, remote, 4430, hostAddr, got.src.Port()), loader.Pass, nil)
	h.hostSends(0, fromHost(tcp, ack, 5000, remote, 4430))
	h.run(loader.FromUplink, h.uplink, fromOutside(tcp, rst, hostAddr, 5000, remote, 4430))
	for _, f := range h.flows() {
		if f.Kind == "host" && f.State != "established" {
			t.Errorf("%+v", f)
		}
	}
}

// defaultRoute takes the host's only way out, or gives it back.
func (h *host) defaultRoute(there bool) {
	h.Helper()
	route := &netlink.Route{LinkIndex: h.uplink, Gw: router.AsSlice()}
	if there {
		must(h.TB, netlink.RouteAdd(route))
	} else {
		must(h.TB, netlink.RouteDel(route))
	}
}

// Without a route the FIB says of every address what it says of the host's own. None is
// taken for the host's, and what was tried meanwhile does not stick.
func TestPrivilegedWithoutRoute(t *testing.T) {
	h := newHost(t, true)
	must(t, h.dp.SetLocalAddrs([]netip.Addr{hostAddr, gateway}, nil))
	h.publish(loader.TCP, netip.Addr{}, 443, 443)
	foreign := netip.MustParseAddr("8.8.8.8")
	h.defaultRoute(false)
	p := fromOutside(tcp, syn, router, 4001, foreign, 443)
	h.expect(loader.FromUplink, h.uplink, p, loader.Pass, &p)
	q := fromA(tcp, syn, 4001, foreign, 443)
	h.expect(loader.FromContainer, h.a, q, loader.Pass, &q)
	d := fromA(udp, 0, 5000, remote, 51820)
	h.expect(loader.FromContainer, h.a, d, loader.Pass, &d)
	h.reply(fromOutside(tcp, syn, router, 4002, hostAddr, 443)) // the host's own address is known
	local, err := h.dp.LocalAddrs()
	must(t, err)
	if len(local) != 2 {
		t.Errorf("known as local: %v", local)
	}
	h.defaultRoute(true)
	h.expect(loader.FromContainer, h.a, d, loader.Redirect, nil)
}

// A conversation inside, by way of an address that the host loses, ends within a second.
func TestPrivilegedInsideEndsWithAddress(t *testing.T) {
	for _, fast := range []bool{true, false} {
		h := newHost(t, fast)
		h.publish(loader.UDP, netip.Addr{}, 8080, 80)
		ask := packet{smac: bMAC.String(), dmac: bridgeMAC.String(), proto: udp, ttl: 64,
			src: netip.AddrPortFrom(containerB, 5000), dst: netip.AddrPortFrom(hostAddr2, 8080), payload: "x"}
		h.expect(loader.FromContainer, h.b, ask, loader.Redirect, nil)
		h.delAddr("up0", hostAddr2.String()+"/24")
		must(t, h.dp.SetClockOffset(seconds(2)))
		_, got := h.run(loader.FromContainer, h.b, ask)
		if got.dst.Addr() == containerA {
			t.Errorf("fast=%v: goes on to %v", fast, got.dst)
		}
	}
}
