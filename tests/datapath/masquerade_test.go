package datapath

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/ebnet/ebnet/loader"
)

// bothWays runs a test with the fast path, where from_container translates and sends,
// and without, where it passes and to_uplink translates.
func bothWays(t *testing.T, test func(t *testing.T, h *host, out func(packet) packet)) {
	for _, fast := range []bool{true, false} {
		t.Run(fmt.Sprintf("fast=%v", fast), func(t *testing.T) {
			h := newHost(t, fast)
			test(t, h, func(in packet) packet {
				t.Helper()
				if fast {
					return h.expect(loader.FromContainer, h.a, in, loader.Redirect, nil)
				}
				h.expect(loader.FromContainer, h.a, in, loader.Pass, &in)
				return h.expect(loader.ToUplink, h.uplink, in, loader.Pass, nil)
			})
		})
	}
}

// in is what from_uplink makes of a reply: its addresses and TTL are the container's.
func (h *host) reply(p packet) packet {
	h.Helper()
	return h.expect(loader.FromUplink, h.uplink, p, loader.Redirect, nil)
}

func TestPrivilegedMasquerade(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host, out func(packet) packet) {
		for _, c := range []struct {
			name string
			p    packet
		}{
			{"tcp", fromA(tcp, syn, 5000, remote, 80)},
			{"udp", fromA(udp, 0, 5000, remote, 53)},
			{"udp without checksum", func() packet { p := fromA(udp, 0, 5001, remote, 53); p.noChecksum = true; return p }()},
			{"tcp with ip options", func() packet { p := fromA(tcp, syn, 5002, remote, 80); p.options = true; return p }()},
		} {
			got := out(c.p)
			if want := netip.AddrPortFrom(hostAddr, c.p.src.Port()); got.src != want || got.dst != c.p.dst {
				t.Fatalf("%s: %v>%v, want %v>%v", c.name, got.src, got.dst, want, c.p.dst)
			}
			if got.payload != c.p.payload || got.noChecksum != c.p.noChecksum {
				t.Fatalf("%s: changed to %v", c.name, got)
			}
			answer := fromOutside(c.p.proto, syn|ack, remote, c.p.dst.Port(), hostAddr, got.src.Port())
			if c.p.proto == udp {
				answer.flags = 0
			}
			back := h.reply(answer)
			if back.dst != c.p.src || back.src != c.p.dst || back.dmac != aMAC.String() || back.smac != bridgeMAC.String() ||
				back.ttl != answer.ttl-1 {
				t.Fatalf("%s: answer became %v", c.name, back)
			}
		}
	})
}

func TestPrivilegedMasqueradeEcho(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host, out func(packet) packet) {
		ping := fromA(icmp, 0, 77, remote, 0)
		ping.kind = 8
		got := out(ping)
		if got.src != netip.AddrPortFrom(hostAddr, 77) || got.kind != 8 {
			t.Fatalf("got %v", got)
		}
		answer := fromOutside(icmp, 0, remote, 77, hostAddr, 0)
		back := h.reply(answer)
		if back.dst.Addr() != containerA || back.src != netip.AddrPortFrom(remote, 77) {
			t.Fatalf("answer became %v", back)
		}
		// An answer to nobody's question is the host's to judge.
		answer.src = netip.AddrPortFrom(remote, 78)
		h.expect(loader.FromUplink, h.uplink, answer, loader.Pass, &answer)
	})
}

// Two endpoints with the same source port and peer get different outside ports, and a
// third flow of one of them to another peer keeps its own.
func TestPrivilegedSourcePortCollision(t *testing.T) {
	h := newHost(t, true)
	first := h.expect(loader.FromContainer, h.a, fromA(tcp, syn, 5000, remote, 80), loader.Redirect, nil)
	fromB := fromA(tcp, syn, 5000, remote, 80)
	fromB.smac, fromB.src = bMAC.String(), netip.AddrPortFrom(containerB, 5000)
	second := h.expect(loader.FromContainer, h.b, fromB, loader.Redirect, nil)
	if first.src.Port() != 5000 || second.src.Port() == 5000 {
		t.Fatalf("ports %d and %d", first.src.Port(), second.src.Port())
	}
	if p := second.src.Port(); p < 1024 || p >= 32768 && p < 61000 {
		t.Fatalf("port %d is not allowed", p)
	}
	back := h.reply(fromOutside(tcp, syn|ack, remote, 80, hostAddr, second.src.Port()))
	if back.dst != fromB.src || back.dmac != bMAC.String() {
		t.Fatalf("answer for B became %v", back)
	}
	back = h.reply(fromOutside(tcp, syn|ack, remote, 80, hostAddr, 5000))
	if back.dst != netip.AddrPortFrom(containerA, 5000) {
		t.Fatalf("answer for A became %v", back)
	}
}

// A source port that translations may not have is replaced, by the same one for every
// peer (RFC 4787 REQ-1).
func TestPrivilegedSourcePortNotAllowed(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host, out func(packet) packet) {
		one := out(fromA(udp, 0, 40000, remote, 3478)).src.Port()
		two := out(fromA(udp, 0, 40000, router, 3478)).src.Port()
		if one == 40000 || one != two {
			t.Fatalf("outside ports %d and %d", one, two)
		}
	})
}

// Every port toward one peer can be used, none twice; then a new flow is refused and
// the others live on.
func TestPrivilegedSourcePortExhaustion(t *testing.T) {
	h := newHost(t, true)
	var few loader.PortSet
	few.Add(20000, 50)
	must(t, h.dp.SetSourcePorts(&few))
	seen := map[uint16]bool{}
	for i := range 50 {
		got := h.expect(loader.FromContainer, h.a, fromA(udp, 0, uint16(1000+i), remote, 53), loader.Redirect, nil)
		if port := got.src.Port(); seen[port] || !few.Has(port) {
			t.Fatalf("flow %d got port %d", i, port)
		}
		seen[got.src.Port()] = true
	}
	h.expectDrop(loader.FromContainer, h.a, fromA(udp, 0, 2000, remote, 53), "no-source-port")
	h.expect(loader.FromContainer, h.a, fromA(udp, 0, 1000, remote, 53), loader.Redirect, nil)
	h.expect(loader.FromContainer, h.a, fromA(udp, 0, 2000, router, 53), loader.Redirect, nil) // another peer
	must(t, h.dp.SetClockOffset(31*time.Second))
	h.expect(loader.FromContainer, h.a, fromA(udp, 0, 3000, remote, 53), loader.Redirect, nil) // they are over now
}

func TestPrivilegedLatePacketsOpenNothing(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host, _ func(packet) packet) {
		hook, dev := loader.FromContainer, h.a
		if !h.dp.Config().FastPath {
			hook, dev = loader.ToUplink, h.uplink
		}
		for _, flags := range []uint8{ack, fin | ack, rst, syn | ack, syn | fin, syn | rst, 0} {
			h.expectDrop(hook, dev, fromA(tcp, flags, 5000, remote, 80), "no-flow")
		}
		answer := fromA(icmp, 0, 9, remote, 0)
		h.expectDrop(hook, dev, answer, "no-flow")
		n := 0
		must(t, h.dp.Flows(func(loader.Flow) bool { n++; return true }))
		if n != 0 {
			t.Fatalf("%d flows", n)
		}
	})
}

func TestPrivilegedUntranslatable(t *testing.T) {
	h := newHost(t, true)
	fragment := fromA(udp, 0, 5000, remote, 53)
	fragment.fragmentOff = 64 // and no first one before it
	h.expectDrop(loader.FromContainer, h.a, fragment, "fragment")
	gre := fromA(47, 0, 0, remote, 0)
	h.expectDrop(loader.FromContainer, h.a, gre, "protocol")
	// A source that no endpoint has, but a network does, must not leave either.
	stray := fromA(tcp, syn, 5000, remote, 80)
	stray.src = netip.MustParseAddrPort("172.18.9.9:5000")
	h.expectDrop(loader.ToUplink, h.uplink, stray, "spoofed-address")
}

// The kernel answers where the TTL ends.
func TestPrivilegedTTL(t *testing.T) {
	h := newHost(t, true)
	p := fromA(udp, 0, 5000, remote, 33434)
	p.ttl = 1
	h.expect(loader.FromContainer, h.a, p, loader.Pass, &p)
	p.ttl = 2
	if got := h.expect(loader.FromContainer, h.a, p, loader.Redirect, nil); got.ttl != 1 {
		t.Fatalf("ttl %d", got.ttl)
	}
}

// A conversation ends by time alone, whatever is still stored, and an established one
// is remembered for longer than one that nobody answered.
func TestPrivilegedExpiry(t *testing.T) {
	h := newHost(t, true)
	establish(h, 5000)
	h.expect(loader.FromContainer, h.a, fromA(tcp, syn, 5001, remote, 80), loader.Redirect, nil)
	must(t, h.dp.SetClockOffset(61*time.Second))
	h.expectDrop(loader.FromContainer, h.a, fromA(tcp, ack, 5001, remote, 80), "no-flow")
	h.expect(loader.FromContainer, h.a, fromA(tcp, ack, 5000, remote, 80), loader.Redirect, nil)
	must(t, h.dp.SetClockOffset(61*time.Second+7441*time.Second))
	h.expectDrop(loader.FromContainer, h.a, fromA(tcp, ack, 5000, remote, 80), "no-flow")
	gone := fromOutside(tcp, ack, remote, 80, hostAddr, 5000)
	h.expect(loader.FromUplink, h.uplink, gone, loader.Pass, &gone)
}

// establish does a TCP handshake of container A with the remote's port 80.
func establish(h *host, sport uint16) {
	h.Helper()
	out := h.expect(loader.FromContainer, h.a, fromA(tcp, syn, sport, remote, 80), loader.Redirect, nil)
	h.reply(fromOutside(tcp, syn|ack, remote, 80, hostAddr, out.src.Port()))
	h.expect(loader.FromContainer, h.a, fromA(tcp, ack, sport, remote, 80), loader.Redirect, nil)
}

func TestPrivilegedConfirmation(t *testing.T) {
	h := newHost(t, true)
	establish(h, 5000)
	h.expect(loader.FromContainer, h.a, fromA(udp, 0, 5000, remote, 53), loader.Redirect, nil)
	states := map[string]loader.Flow{}
	must(t, h.dp.Flows(func(f loader.Flow) bool { states[f.Protocol] = f; return true }))
	if f := states["tcp"]; !f.Confirmed || f.State != "established" || f.Packets != 3 || f.Kind != "snat" ||
		f.TranslatedSrc != netip.AddrPortFrom(hostAddr, 5000) {
		t.Fatalf("tcp flow %+v", f)
	}
	if f := states["udp"]; f.Confirmed || f.State != "unreplied" || f.Expires > 30*time.Second || f.Expires < 25*time.Second {
		t.Fatalf("udp flow %+v", f)
	}
	// The other direction finds the confirmed entry too.
	h.reply(fromOutside(tcp, ack, remote, 80, hostAddr, 5000))
}

// A closed conversation gives way to a new one of the same two parties at once, on the
// same port.
func TestPrivilegedReopen(t *testing.T) {
	for _, end := range []uint8{rst, fin | ack} {
		h := newHost(t, true)
		establish(h, 5000)
		h.expect(loader.FromContainer, h.a, fromA(tcp, end, 5000, remote, 80), loader.Redirect, nil)
		if end != rst {
			h.reply(fromOutside(tcp, fin|ack, remote, 80, hostAddr, 5000))
		}
		establish(h, 5000)
		n := 0
		must(t, h.dp.Flows(func(f loader.Flow) bool {
			n++
			if f.State != "established" || f.TranslatedSrc.Port() != 5000 {
				t.Fatalf("flow %+v", f)
			}
			return true
		}))
		if n != 1 {
			t.Fatalf("%d flows", n)
		}
	}
}

func TestPrivilegedEndpointRemoval(t *testing.T) {
	h := newHost(t, true)
	establish(h, 5000)
	h.expect(loader.FromContainer, h.a, fromA(udp, 0, 5000, remote, 53), loader.Redirect, nil)
	must(t, h.dp.DeleteEndpoint(h.endpointA()))
	for _, p := range []packet{fromOutside(tcp, ack, remote, 80, hostAddr, 5000), fromOutside(udp, 0, remote, 53, hostAddr, 5000)} {
		h.expect(loader.FromUplink, h.uplink, p, loader.Pass, &p)
	}
	h.expectDrop(loader.FromContainer, h.a, fromA(tcp, ack, 5000, remote, 80), "unknown-device")
	// The next container with the address starts from nothing.
	must(t, h.dp.PutEndpoint(h.endpointA()))
	p := fromOutside(tcp, ack, remote, 80, hostAddr, 5000)
	h.expect(loader.FromUplink, h.uplink, p, loader.Pass, &p)
	h.expectDrop(loader.FromContainer, h.a, fromA(tcp, ack, 5000, remote, 80), "no-flow")
	establish(h, 5000)
}

// A port that a socket of the host uses toward that peer, or listens on, is not taken.
func TestPrivilegedSourcePortOfTheHost(t *testing.T) {
	h := newHost(t, true)
	listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: hostAddr.AsSlice(), Port: 8000})
	must(t, err)
	defer func() { _ = listener.Close() }()
	socket, err := net.DialUDP("udp4", &net.UDPAddr{IP: hostAddr.AsSlice(), Port: 4500},
		&net.UDPAddr{IP: remote.AsSlice(), Port: 4500})
	must(t, err)
	defer func() { _ = socket.Close() }()
	for _, p := range []packet{fromA(tcp, syn, 8000, remote, 80), fromA(udp, 0, 4500, remote, 4500)} {
		got := h.expect(loader.FromContainer, h.a, p, loader.Redirect, nil)
		if got.src.Port() == p.src.Port() {
			t.Errorf("%v left as %v", p, got.src)
		}
	}
	// Toward another peer the connected socket is in nobody's way.
	got := h.expect(loader.FromContainer, h.a, fromA(udp, 0, 4500, router, 4500), loader.Redirect, nil)
	if got.src.Port() != 4500 {
		t.Errorf("left as %v", got.src)
	}
}

// A conversation ends when the host loses the address that it was translated to.
func TestPrivilegedAddressLost(t *testing.T) {
	h := newHost(t, true)
	p := fromA(udp, 0, 5000, remote, 53)
	h.expect(loader.FromContainer, h.a, p, loader.Redirect, nil)
	h.delAddr("up0", hostAddr.String()+"/24") // and with it the second one, which depends on it
	h.addr("up0", hostAddr2.String()+"/24")
	must(t, netlink.RouteReplace(&netlink.Route{LinkIndex: h.uplink, Gw: router.AsSlice()}))
	must(t, h.dp.SetClockOffset(2*time.Second))
	h.expectDrop(loader.FromContainer, h.a, p, "source-address-gone")
	if got := h.expect(loader.FromContainer, h.a, p, loader.Redirect, nil); got.src.Addr() != hostAddr2 {
		t.Errorf("left as %v", got.src)
	}
}

// An embryonic conversation that has lost one half starts anew.
func TestPrivilegedHalfConversation(t *testing.T) {
	h := newHost(t, true)
	p := fromA(udp, 0, 5000, remote, 53)
	h.expect(loader.FromContainer, h.a, p, loader.Redirect, nil)
	must(t, h.dp.DeleteHalf(func(f loader.Flow) bool { return f.Src.Addr() == remote }))
	h.expect(loader.FromContainer, h.a, p, loader.Redirect, nil)
	h.reply(fromOutside(udp, 0, remote, 53, hostAddr, 5000))
}
