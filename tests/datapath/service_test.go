package datapath

import (
	"net/netip"
	"testing"
	"time"

	"github.com/ebnet/ebnet/loader"
)

// in is a client's first packet to a published port, as the container gets it.
func publishedTest(t *testing.T, proto uint8, flags uint8) {
	bothWays(t, func(t *testing.T, h *host, out func(packet) packet) {
		p := loader.TCP
		if proto == udp {
			p = loader.UDP
		}
		h.publish(p, netip.Addr{}, 8080, 80)
		for _, addr := range []netip.Addr{hostAddr, hostAddr2} {
			in := fromOutside(proto, flags, remote, 4000, addr, 8080)
			got := h.reply(in)
			if got.src.Addr() != remote || got.dst != netip.AddrPortFrom(containerA, 80) || got.dmac != aMAC.String() {
				t.Fatalf("%v became %v", in, got)
			}
			if addr == hostAddr && got.src.Port() != 4000 {
				t.Fatalf("the client's port became %d", got.src.Port())
			}
			if addr == hostAddr2 && got.src.Port() == 4000 { // both conversations at once
				t.Fatalf("two conversations with one tuple: %v", got)
			}
			answer := fromA(proto, flags|ack, 80, remote, got.src.Port())
			if proto == udp {
				answer.flags = 0
			}
			if back := out(answer); back.src != in.dst || back.dst != in.src {
				t.Fatalf("answer became %v", back)
			}
		}
	})
}

func TestPrivilegedPublishedTCP(t *testing.T) { publishedTest(t, tcp, syn) }
func TestPrivilegedPublishedUDP(t *testing.T) { publishedTest(t, udp, 0) }

func TestPrivilegedPublishedOnOneAddress(t *testing.T) {
	h := newHost(t, true)
	h.publish(loader.TCP, hostAddr, 8080, 80)
	h.reply(fromOutside(tcp, syn, remote, 4000, hostAddr, 8080))
	for _, p := range []packet{
		fromOutside(tcp, syn, remote, 4000, hostAddr2, 8080), // another address
		fromOutside(tcp, syn, remote, 4000, hostAddr, 8081),  // the neighbour
		fromOutside(udp, 0, remote, 4000, hostAddr, 8080),    // another protocol
		fromOutside(tcp, ack, remote, 4001, hostAddr, 8080),  // opens nothing
		fromOutside(tcp, syn, remote, 4000, remote, 8080),    // not the host's address
	} {
		h.expect(loader.FromUplink, h.uplink, p, loader.Pass, &p)
	}
}

// Any address means any of the host's: a packet that is routed through is not ours.
func TestPrivilegedPublishedOnAnyAddressIsLocal(t *testing.T) {
	h := newHost(t, true)
	h.publish(loader.TCP, netip.Addr{}, 8080, 80)
	p := fromOutside(tcp, syn, router, 4000, remote, 8080)
	h.expect(loader.FromUplink, h.uplink, p, loader.Pass, &p)
}

func TestPrivilegedDirectAccess(t *testing.T) {
	h := newHost(t, true)
	h.publish(loader.TCP, netip.Addr{}, 80, 80)
	for _, p := range []packet{
		fromOutside(tcp, syn, remote, 4000, containerA, 80),
		fromOutside(udp, 0, remote, 4000, containerA, 53),
		fromOutside(icmp, 0, remote, 4000, containerA, 0),
		fromOutside(tcp, syn, remote, 4000, netip.MustParseAddr("172.18.200.1"), 22),
	} {
		h.expectDrop(loader.FromUplink, h.uplink, p, "direct-access")
	}
}

// Unpublishing closes a running conversation in both directions, and an answer that is
// under way opens it no other way.
func TestPrivilegedUnpublish(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host, out func(packet) packet) {
		pub := h.publish(loader.UDP, netip.Addr{}, 5000, 5000)
		request := fromOutside(udp, 0, remote, 4000, hostAddr, 5000)
		answer := fromA(udp, 0, 5000, remote, 4000)
		h.reply(request)
		out(answer)
		must(t, h.dp.Unpublish(pub))
		h.expect(loader.FromUplink, h.uplink, request, loader.Pass, &request)
		hook, dev := loader.FromContainer, h.a
		if !h.dp.Config().FastPath {
			hook, dev = loader.ToUplink, h.uplink
		}
		h.expectDrop(hook, dev, answer, "unpublished")
		h.expect(loader.FromUplink, h.uplink, request, loader.Pass, &request)
		// Published again it works again.
		h.publish(loader.UDP, netip.Addr{}, 5000, 5000)
		h.reply(request)
		out(answer)
	})
}

// A port that is open on two addresses stays so on the one when it is closed on the other.
func TestPrivilegedUnpublishOneAddress(t *testing.T) {
	h := newHost(t, true)
	on := func(slot uint32, addr netip.Addr) loader.Publication {
		return loader.Publication{Slot: slot, Protocol: loader.TCP, HostAddr: addr, HostPort: 5000, Count: 1,
			Network: 1, Ifindex: h.a, MAC: aMAC, Addr: containerA, Port: 80}
	}
	one, other := on(10, hostAddr), on(11, netip.MustParseAddr("192.0.2.77"))
	must(t, h.dp.Publish(one, other))
	must(t, h.dp.Unpublish(other))
	if got := h.reply(fromOutside(tcp, syn, remote, 4000, hostAddr, 5000)); got.dst.Addr() != containerA {
		t.Fatalf("the port went to %v", got.dst)
	}
	must(t, h.dp.Unpublish(one))
	out := fromOutside(tcp, syn, remote, 4001, hostAddr, 5000)
	h.expect(loader.FromUplink, h.uplink, out, loader.Pass, &out)
}

func TestPrivilegedPublishRange(t *testing.T) {
	h := newHost(t, true)
	p := loader.Publication{Slot: 10, Protocol: loader.TCP, HostPort: 1000, Count: 60000, Network: 1, Ifindex: h.a,
		MAC: aMAC, Addr: containerA, Port: 2000}
	must(t, h.dp.Publish(p))
	for _, i := range []uint16{0, 1, 59999} {
		got := h.reply(fromOutside(tcp, syn, remote, 4000, hostAddr, 1000+i))
		if got.dst.Port() != 2000+i {
			t.Fatalf("port %d went to %v", 1000+i, got.dst)
		}
	}
	if n, err := h.dp.PublishedCount(); n != 60000 || err != nil {
		t.Fatalf("%d ports, %v", n, err)
	}
	must(t, h.dp.Unpublish(p))
	if n, err := h.dp.PublishedCount(); n != 0 || err != nil {
		t.Fatalf("%d ports, %v", n, err)
	}
	out := fromOutside(tcp, syn, remote, 4000, hostAddr, 1000)
	h.expect(loader.FromUplink, h.uplink, out, loader.Pass, &out)
}

// From the wire nobody is a container, the host itself, or nobody at all.
func TestPrivilegedImpossibleSources(t *testing.T) {
	h := newHost(t, true)
	h.publish(loader.TCP, netip.Addr{}, 8080, 80)
	h.expectDrop(loader.FromUplink, h.uplink, fromOutside(tcp, syn, containerB, 4000, hostAddr, 8080), "spoofed-address")
	for _, src := range []string{"127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255"} {
		p := fromOutside(tcp, syn, netip.MustParseAddr(src), 4000, hostAddr, 8080)
		h.expect(loader.FromUplink, h.uplink, p, loader.Pass, &p)
	}
	p := fromOutside(tcp, syn, remote, 4000, netip.MustParseAddr("127.0.0.1"), 8080)
	h.expect(loader.FromUplink, h.uplink, p, loader.Pass, &p)
}

// A client that goes on, and a container that goes on answering, do not open an
// unpublished port again however long they do.
func TestPrivilegedUnpublishedStreamStaysClosed(t *testing.T) {
	h := newHost(t, true)
	pub := h.publish(loader.UDP, netip.Addr{}, 5000, 5000)
	request := fromOutside(udp, 0, remote, 4000, hostAddr, 5000)
	answer := fromA(udp, 0, 5000, remote, 4000)
	h.reply(request)
	h.expect(loader.FromContainer, h.a, answer, loader.Redirect, nil)
	must(t, h.dp.Unpublish(pub))
	for i := 1; i <= 20; i++ {
		must(t, h.dp.SetClockOffset(time.Duration(i)*60*time.Second))
		h.expectDrop(loader.FromContainer, h.a, answer, "unpublished")
		h.expect(loader.FromUplink, h.uplink, request, loader.Pass, &request)
	}
	// After a long silence it may send there like anybody else.
	must(t, h.dp.SetClockOffset(21*60*time.Second+181*time.Second))
	h.expect(loader.FromContainer, h.a, answer, loader.Redirect, nil)
}

// An endpoint reaches a published port by the host's address: the same in both modes,
// since both ends pass from_container.
func TestPrivilegedHairpin(t *testing.T) {
	for _, fast := range []bool{true, false} {
		h := newHost(t, fast)
		h.publish(loader.TCP, netip.Addr{}, 8080, 80)
		for _, addr := range []netip.Addr{hostAddr, hostAddr2, gateway} {
			ask := packet{smac: bMAC.String(), dmac: bridgeMAC.String(), proto: tcp, flags: syn, ttl: 64,
				src: netip.AddrPortFrom(containerB, 5000), dst: netip.AddrPortFrom(addr, 8080), payload: "x"}
			got := h.expect(loader.FromContainer, h.b, ask, loader.Redirect, nil)
			if got.src.Addr() != containerB || got.dst != netip.AddrPortFrom(containerA, 80) || got.dmac != aMAC.String() {
				t.Fatalf("%v became %v", ask, got)
			}
			answer := fromA(tcp, syn|ack, 80, containerB, got.src.Port())
			answer.dmac = bMAC.String() // a neighbour
			back := h.expect(loader.FromContainer, h.a, answer, loader.Redirect, nil)
			if back.src != ask.dst || back.dst != ask.src || back.dmac != bMAC.String() || back.smac != bridgeMAC.String() {
				t.Fatalf("answer became %v", back)
			}
			ask.flags = ack
			h.expect(loader.FromContainer, h.b, ask, loader.Redirect, nil)
		}
		itself := fromA(tcp, syn, 5000, hostAddr, 8080)
		got := h.expect(loader.FromContainer, h.a, itself, loader.Redirect, nil)
		if got.src.Addr() != gateway || got.dst != netip.AddrPortFrom(containerA, 80) || got.dmac != aMAC.String() {
			t.Fatalf("%v became %v", itself, got)
		}
		back := h.expect(loader.FromContainer, h.a, fromA(tcp, syn|ack, 80, gateway, got.src.Port()), loader.Redirect, nil)
		if back.src != itself.dst || back.dst != itself.src {
			t.Fatalf("answer became %v", back)
		}
		// Not published, not open, not by another transport: the host's.
		for _, p := range []packet{
			fromA(tcp, syn, 5000, hostAddr, 8081), fromA(udp, 0, 5000, hostAddr, 8080), fromA(tcp, ack, 5001, hostAddr, 8080),
		} {
			h.expect(loader.FromContainer, h.a, p, loader.Pass, &p)
		}
	}
}
