package datapath

import (
	"net/netip"
	"testing"

	"github.com/ebnet/ebnet/loader"
)

// fragments cuts a packet into a first fragment and a later one.
func fragments(p packet) (first, later packet) {
	first, later = p, p
	first.moreFragment = true
	later.fragmentOff = 1480
	later.noChecksum = p.proto == udp // there is none in it
	return first, later
}

// follows checks that a later fragment gets the addresses of the first one's translation
// and is not touched otherwise.
func follows(t *testing.T, first, later, in packet) {
	t.Helper()
	if later.src.Addr() != first.src.Addr() || later.dst.Addr() != first.dst.Addr() {
		t.Errorf("first %v>%v, later %v>%v", first.src, first.dst, later.src, later.dst)
	}
	if later.src.Port() != in.src.Port() || later.dst.Port() != in.dst.Port() || later.payload != in.payload {
		t.Errorf("the later fragment's content became %v", later)
	}
}

func TestPrivilegedFragments(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host, out func(packet) packet) {
		h.publish(loader.UDP, netip.Addr{}, 8080, 80)
		ask := fromA(udp, 0, 40000, remote, 53) // a port that is replaced
		for _, p := range []packet{ask, echo(fromA(icmp, 0, 9, remote, 0)), fromA(tcp, syn, 40000, remote, 80)} {
			first, later := fragments(p)
			sent := out(first)
			follows(t, sent, out(later), later)
			if p.proto != udp {
				continue
			}
			first, later = fragments(fromOutside(udp, 0, remote, 53, hostAddr, sent.src.Port()))
			follows(t, h.reply(first), h.reply(later), later)
		}
		first, later := fragments(fromOutside(udp, 0, remote, 4000, hostAddr, 8080))
		follows(t, h.reply(first), h.reply(later), later)
		first, later = fragments(fromA(udp, 0, 80, remote, 4000))
		follows(t, out(first), out(later), later)
	})
}

// Another datagram, another host, another protocol: not the same identification.
func TestPrivilegedFragmentOfAnother(t *testing.T) {
	h := newHost(t, true)
	first, later := fragments(fromA(udp, 0, 5000, remote, 53))
	h.expect(loader.FromContainer, h.a, first, loader.Redirect, nil)
	toOther, otherProto := later, later
	toOther.dst = netip.AddrPortFrom(router, 53)
	otherProto.proto = tcp
	for _, p := range []packet{toOther, otherProto} {
		h.expectDrop(loader.FromContainer, h.a, p, "fragment")
	}
	fromB := later
	fromB.smac, fromB.src = bMAC.String(), netip.AddrPortFrom(containerB, 5000)
	h.expectDrop(loader.FromContainer, h.b, fromB, "fragment")
	must(t, h.dp.SetClockOffset(seconds(31)))
	h.expectDrop(loader.FromContainer, h.a, later, "fragment")
}

// A fragment before its first one is dropped where it leaves, and is the host's where it
// comes in, since it may be; it is counted when the first one comes.
func TestPrivilegedFragmentsOutOfOrder(t *testing.T) {
	h := newHost(t, true)
	h.publish(loader.UDP, netip.Addr{}, 8080, 80)
	_, later := fragments(fromA(udp, 0, 5000, remote, 53))
	h.expectDrop(loader.FromContainer, h.a, later, "fragment")
	first, later := fragments(fromOutside(udp, 0, remote, 4000, hostAddr, 8080))
	before := h.dropped("fragment")
	h.expect(loader.FromUplink, h.uplink, later, loader.Pass, &later)
	h.reply(first)
	if n := h.dropped("fragment"); n != before+1 {
		t.Errorf("counted %d, want 1", n-before)
	}
	h.reply(later) // what comes after it is translated
}

// With its port unpublished, no more of a datagram comes in.
func TestPrivilegedFragmentsOfUnpublished(t *testing.T) {
	h := newHost(t, true)
	pub := h.publish(loader.UDP, netip.Addr{}, 8080, 80)
	first, later := fragments(fromOutside(udp, 0, remote, 4000, hostAddr, 8080))
	h.reply(first)
	h.reply(later)
	must(t, h.dp.Unpublish(pub))
	h.expect(loader.FromUplink, h.uplink, later, loader.Pass, &later)
}

// By way of a published port from inside, too.
func TestPrivilegedFragmentsInside(t *testing.T) {
	h := newHost(t, true)
	h.publish(loader.UDP, netip.Addr{}, 8080, 80)
	ask := packet{smac: bMAC.String(), dmac: bridgeMAC.String(), proto: udp, ttl: 64,
		src: netip.AddrPortFrom(containerB, 5000), dst: netip.AddrPortFrom(hostAddr, 8080), payload: "x"}
	first, later := fragments(ask)
	follows(t, h.expect(loader.FromContainer, h.b, first, loader.Redirect, nil),
		h.expect(loader.FromContainer, h.b, later, loader.Redirect, nil), later)
	answer := fromA(udp, 0, 80, containerB, 5000)
	answer.dmac = bMAC.String()
	first, later = fragments(answer)
	follows(t, h.expect(loader.FromContainer, h.a, first, loader.Redirect, nil),
		h.expect(loader.FromContainer, h.a, later, loader.Redirect, nil), later)
}

// An identification that is used again, for a datagram of the host's, is not the container's.
func TestPrivilegedFragmentIdentificationAgain(t *testing.T) {
	h := newHost(t, true)
	h.publish(loader.UDP, netip.Addr{}, 8080, 80)
	first, _ := fragments(fromOutside(udp, 0, remote, 4000, hostAddr, 8080))
	h.reply(first)
	for _, port := range []uint16{2049, 33000} { // one that translations may use, one that none does
		first, later := fragments(fromOutside(udp, 0, remote, 4000, hostAddr, port))
		h.expect(loader.FromUplink, h.uplink, first, loader.Pass, &first)
		h.expect(loader.FromUplink, h.uplink, later, loader.Pass, &later)
	}
}
