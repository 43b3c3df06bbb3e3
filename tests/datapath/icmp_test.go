package datapath

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/ebnet/ebnet/loader"
)

// ICMP errors: type and code.
var icmpErrors = [][2]uint8{{3, 0}, {3, 1}, {3, 3}, {3, 4}, {3, 13}, {4, 0}, {11, 0}, {11, 1}, {12, 0}}

// icmpError is an error that quotes the first bytes of a packet.
type icmpError struct {
	outer      packet // kind is the type
	code       uint8
	mtu        uint16
	quoted     packet
	quoteBytes int // of the quoted transport header and payload
}

// frame encodes the error; the quotation stands in the payload.
func (e icmpError) frame() []byte {
	inner := e.quoted.frame()[14:]
	header := int(inner[0]&15) * 4
	inner = inner[:min(len(inner), header+e.quoteBytes)]
	e.outer.proto, e.outer.payload = icmp, string(inner)
	f := e.outer.frame()
	l4 := f[14+int(f[14]&15)*4:]
	l4[1] = e.code
	binary.BigEndian.PutUint16(l4[6:], e.mtu)
	l4[2], l4[3] = 0, 0
	binary.BigEndian.PutUint16(l4[2:], ^sum(0, l4))
	return f
}

// quotation is what an error's quoted packet says, and whether its header is whole.
func quotation(t *testing.T, p packet) (proto uint8, src, dst netip.AddrPort) {
	t.Helper()
	ip := []byte(p.payload)
	header := int(ip[0]&15) * 4
	if sum(0, ip[:header]) != 0xffff {
		t.Errorf("wrong checksum in the quoted IPv4 header")
	}
	l4 := ip[header:]
	a, b := netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
	if ip[9] == icmp {
		return ip[9], netip.AddrPortFrom(a, binary.BigEndian.Uint16(l4[4:])), netip.AddrPortFrom(b, 0)
	}
	return ip[9], netip.AddrPortFrom(a, binary.BigEndian.Uint16(l4)), netip.AddrPortFrom(b, binary.BigEndian.Uint16(l4[2:]))
}

// runError runs a hook on an error and checks its checksums.
func (h *host) runError(hook loader.Hook, ifindex, received int, e icmpError) (loader.Verdict, packet) {
	h.Helper()
	frame := e.frame()
	verdict, out, err := h.dp.Run(hook, frame, loader.RunContext{Ifindex: ifindex, Received: received})
	must(h.TB, err)
	if problem := verify(out); problem != "" {
		h.Fatalf("%s: %s of % x", hook, problem, out)
	}
	return verdict, parse(out)
}

// From outside, by a router that is not the peer, about masqueraded packets.
func TestPrivilegedErrorAboutMasqueraded(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host, out func(packet) packet) {
		for i, first := range []packet{
			fromA(tcp, syn, 5000, remote, 80), fromA(udp, 0, 40000, remote, 33434), echo(fromA(icmp, 0, 77, remote, 0)),
		} {
			sent := out(first)
			for _, kind := range icmpErrors {
				for _, bytes := range []int{8, 28} {
					e := icmpError{outer: fromOutside(icmp, 0, router, 0, hostAddr, 0), code: kind[1], mtu: 1300, quoted: sent, quoteBytes: bytes}
					e.outer.kind = kind[0]
					verdict, got := h.runError(loader.FromUplink, h.uplink, 0, e)
					if verdict != loader.Redirect || got.dst.Addr() != containerA || got.src.Addr() != router || got.kind != kind[0] {
						t.Fatalf("%v of %d: verdict %d, %v; drops %s", kind, i, verdict, got, h.drops())
					}
					if proto, src, dst := quotation(t, got); proto != first.proto || src != first.src || dst != first.dst {
						t.Fatalf("%v of %d quotes %v>%v, want %v>%v", kind, i, src, dst, first.src, first.dst)
					}
				}
			}
		}
	})
}

func echo(p packet) packet {
	p.kind = 8
	return p
}

// By the endpoint about what it received, masqueraded answers and requests to a
// published port: outside must not see its address.
func TestPrivilegedErrorByEndpoint(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host, out func(packet) packet) {
		sent := out(fromA(udp, 0, 40000, remote, 53))
		answer := fromOutside(udp, 0, remote, 53, hostAddr, sent.src.Port())
		h.publish(loader.UDP, netip.Addr{}, 8080, 80)
		request := fromOutside(udp, 0, remote, 4000, hostAddr2, 8080)
		for _, outer := range []packet{answer, request} {
			received := h.reply(outer)
			e := icmpError{outer: fromA(icmp, 0, 0, remote, 0), code: 3, quoted: received, quoteBytes: 8}
			e.outer.kind = 3
			hook, dev := loader.FromContainer, h.a
			want := loader.Redirect
			if !h.dp.Config().FastPath {
				hook, dev, want = loader.ToUplink, h.uplink, loader.Pass
			}
			verdict, got := h.runError(hook, dev, h.bridge, e)
			if verdict != want || got.src.Addr() != outer.dst.Addr() || got.dst.Addr() != remote {
				t.Fatalf("verdict %d, %v; drops %s", verdict, got, h.drops())
			}
			if _, src, dst := quotation(t, got); src != outer.src || dst != outer.dst {
				t.Fatalf("quotes %v>%v, want %v>%v", src, dst, outer.src, outer.dst)
			}
		}
	})
}

// By the host about a packet that it got translated: outside knows only the host.
func TestPrivilegedErrorByHost(t *testing.T) {
	h := newHost(t, true)
	h.publish(loader.TCP, netip.Addr{}, 8080, 80)
	request := fromOutside(tcp, syn, remote, 4000, hostAddr, 8080)
	translated := h.reply(request)
	e := icmpError{outer: fromOutside(icmp, 0, hostAddr, 0, remote, 0), quoted: translated, quoteBytes: 8}
	e.outer.kind = 11
	verdict, got := h.runError(loader.ToUplink, h.uplink, 0, e)
	if _, src, dst := quotation(t, got); verdict != loader.Pass || src != request.src || dst != request.dst {
		t.Fatalf("verdict %d, quotes %v>%v, want %v>%v", verdict, src, dst, request.src, request.dst)
	}
	// One that is about the host's own packet stays as it is.
	e.quoted = fromOutside(tcp, ack, remote, 4000, hostAddr, 22)
	before := parse(e.frame())
	if verdict, got := h.runError(loader.ToUplink, h.uplink, 0, e); verdict != loader.Pass || got != before {
		t.Fatalf("verdict %d, %v became %v", verdict, before, got)
	}
}

// An error that quotes nothing of ours is the host's to judge from outside, and does
// not leave from inside; and nobody speaks about another's conversation.
func TestPrivilegedErrorAboutNothing(t *testing.T) {
	h := newHost(t, true)
	sent := h.expect(loader.FromContainer, h.a, fromA(udp, 0, 5000, remote, 53), loader.Redirect, nil)
	answer := h.reply(fromOutside(udp, 0, remote, 53, hostAddr, 5000))
	other := sent
	other.src = netip.AddrPortFrom(hostAddr, 5001)
	for name, e := range map[string]icmpError{
		"no conversation":       {outer: fromOutside(icmp, 0, router, 0, hostAddr, 0), quoted: other, quoteBytes: 8},
		"to another address":    {outer: fromOutside(icmp, 0, router, 0, hostAddr2, 0), quoted: sent, quoteBytes: 8},
		"cut off":               {outer: fromOutside(icmp, 0, router, 0, hostAddr, 0), quoted: sent, quoteBytes: 4},
		"quotes the inner side": {outer: fromOutside(icmp, 0, router, 0, hostAddr, 0), quoted: answer, quoteBytes: 8},
	} {
		e.outer.kind = 3
		before := parse(e.frame())
		if verdict, got := h.runError(loader.FromUplink, h.uplink, 0, e); verdict != loader.Pass || got != before {
			t.Errorf("%s: verdict %d, %v became %v", name, verdict, before, got)
		}
	}
	e := icmpError{outer: fromOutside(icmp, 0, router, 0, containerA, 0), quoted: other, quoteBytes: 8}
	e.outer.kind = 3
	if verdict, _ := h.runError(loader.FromUplink, h.uplink, 0, e); verdict != loader.Drop {
		t.Errorf("to a container's address: verdict %d", verdict)
	}
	// B speaks about A's conversation.
	e = icmpError{outer: fromA(icmp, 0, 0, remote, 0), quoted: answer, quoteBytes: 8}
	e.outer.kind, e.outer.smac, e.outer.src = 3, bMAC.String(), netip.AddrPortFrom(containerB, 0)
	if verdict, got := h.runError(loader.FromContainer, h.b, 0, e); verdict != loader.Drop {
		t.Errorf("about a neighbour's conversation: verdict %d, %v", verdict, got)
	}
}

// An error keeps no conversation alive.
func TestPrivilegedErrorRefreshesNothing(t *testing.T) {
	h := newHost(t, true)
	sent := h.expect(loader.FromContainer, h.a, fromA(udp, 0, 5000, remote, 53), loader.Redirect, nil)
	e := icmpError{outer: fromOutside(icmp, 0, router, 0, hostAddr, 0), quoted: sent, quoteBytes: 8}
	e.outer.kind = 3
	for _, c := range []struct {
		seconds int
		want    loader.Verdict
	}{{20, loader.Redirect}, {29, loader.Redirect}, {32, loader.Pass}} {
		must(t, h.dp.SetClockOffset(seconds(c.seconds)))
		if verdict, _ := h.runError(loader.FromUplink, h.uplink, 0, e); verdict != c.want {
			t.Errorf("after %d s: verdict %d", c.seconds, verdict)
		}
	}
}

// A packet for an endpoint that is too old or too big goes to the kernel, translated but
// not aged, by way of the bridge, which answers it.
func TestPrivilegedInboundForTheKernel(t *testing.T) {
	for _, fast := range []bool{true, false} {
		h := newHost(t, fast)
		h.publish(loader.UDP, netip.Addr{}, 8080, 80)
		old := fromOutside(udp, 0, remote, 4000, hostAddr, 8080)
		old.ttl = 1
		big := fromOutside(udp, 0, remote, 4000, hostAddr, 8080)
		big.payload = fmt.Sprintf("%02000d", 0)
		for _, p := range []packet{old, big} {
			got := h.reply(p)
			if got.dst != netip.AddrPortFrom(containerA, 80) || got.ttl != p.ttl || got.dmac != bridgeMAC.String() {
				t.Errorf("became %v", got)
			}
		}
	}
}
