package datapath

import (
	"net/netip"
	"testing"
	"time"

	"github.com/ebnet/ebnet/loader"
)

// handshake opens a TCP conversation of A to a peer and confirms it. Returns the outside
// port.
func (h *host) handshake(sport uint16, peer netip.Addr, dport uint16) uint16 {
	h.Helper()
	sent := h.expect(loader.FromContainer, h.a, fromA(tcp, syn, sport, peer, dport), loader.Redirect, nil)
	h.reply(fromOutside(tcp, syn|ack, peer, dport, hostAddr, sent.src.Port()))
	h.expect(loader.FromContainer, h.a, fromA(tcp, ack, sport, peer, dport), loader.Redirect, nil)
	return sent.src.Port()
}

func (h *host) share(slot uint32) loader.Share {
	h.Helper()
	all, err := h.dp.Shares()
	must(h.TB, err)
	for _, s := range all {
		if s.Slot == slot {
			return s
		}
	}
	return loader.Share{Slot: slot}
}

func (h *host) confirmed() (n int) {
	h.Helper()
	for _, f := range h.flows() {
		if f.Confirmed {
			n++
		}
	}
	return n
}

// A container may fill half the table of confirmed conversations and no more: what is
// refused still works, and another container finds room. What ends is given back.
func TestPrivilegedShare(t *testing.T) {
	h := newHostWith(t, loader.Config{FastPath: true, MaxFlows: 100, Secret: 7})
	for i := range 80 {
		h.handshake(uint16(2000+i), remote, 443)
	}
	if s := h.share(1); s.Held != 50 || s.Refused == 0 {
		t.Fatalf("A's share: %+v", s)
	}
	h.expect(loader.FromContainer, h.a, fromA(tcp, ack, 2079, remote, 443), loader.Redirect, nil)

	fromB := func(flags uint8) packet {
		p := fromA(tcp, flags, 9000, remote, 443)
		p.smac, p.src = bMAC.String(), netip.AddrPortFrom(containerB, 9000)
		return p
	}
	sent := h.expect(loader.FromContainer, h.b, fromB(syn), loader.Redirect, nil)
	h.reply(fromOutside(tcp, syn|ack, remote, 443, hostAddr, sent.src.Port()))
	h.expect(loader.FromContainer, h.b, fromB(ack), loader.Redirect, nil)
	if s := h.share(2); s.Held != 1 || s.Refused != 0 {
		t.Fatalf("B's share: %+v", s)
	}
	n, err := h.dp.FlushFlows(func(f loader.Flow) bool { return f.Src.Addr() == containerA })
	must(t, err)
	if s := h.share(1); n != 80 || s.Held != 0 {
		t.Fatalf("%d flushed, A still holds %d", n, s.Held)
	}
	// A slot's next owner begins with nothing.
	must(t, h.dp.DeleteEndpoint(loader.Endpoint{Slot: 2, Network: 1, Ifindex: h.b, Addrs: []netip.Addr{containerB}, MAC: bMAC}))
	if s := h.share(2); s != (loader.Share{Slot: 2}) {
		t.Fatalf("of a removed endpoint: %+v", s)
	}
}

// A closed conversation's place is given back when its time is over and the tuple is used
// again, and when its timer finds it over.
func TestPrivilegedShareIsGivenBack(t *testing.T) {
	h := newHostWith(t, loader.Config{FastPath: true, MaxFlows: 100, Secret: 7})
	h.handshake(2000, remote, 443)
	h.expect(loader.FromContainer, h.a, fromA(tcp, rst, 2000, remote, 443), loader.Redirect, nil)
	h.handshake(2000, remote, 443)
	if s := h.share(1); s.Held != 1 {
		t.Fatalf("holds %d", s.Held)
	}
	// The clock says that all is long over.
	must(t, h.dp.SetClockOffset(3*time.Hour))
	for deadline := time.Now().Add(20 * time.Second); h.share(1).Held != 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("holds %d", h.share(1).Held)
		}
	}
}

// 28,000 conversations at once with one address and port, all alive and all different.
func TestPrivilegedManyToOnePeer(t *testing.T) {
	const many = 28000
	h := newHostWith(t, loader.Config{FastPath: true, MaxFlows: 64 << 10, Secret: 7})
	seen := make(map[uint16]bool, many)
	for i := range many {
		src := containerA
		dev, hw := h.a, aMAC
		if i%2 == 1 {
			src, dev, hw = containerB, h.b, bMAC
		}
		p := fromA(tcp, syn, uint16(32768+i/2), remote, 443)
		p.smac, p.src = hw.String(), netip.AddrPortFrom(src, p.src.Port())
		sent := h.expect(loader.FromContainer, dev, p, loader.Redirect, nil)
		if seen[sent.src.Port()] {
			t.Fatalf("conversation %d got port %d, which is in use", i, sent.src.Port())
		}
		seen[sent.src.Port()] = true
		h.reply(fromOutside(tcp, syn|ack, remote, 443, hostAddr, sent.src.Port()))
		p.flags = ack
		h.expect(loader.FromContainer, dev, p, loader.Redirect, nil)
	}
	must(t, h.dp.CheckPairs())
	if n, confirmed := len(h.flows()), h.confirmed(); n != many || confirmed != many {
		t.Fatalf("%d conversations live, %d of them confirmed, want %d", n, confirmed, many)
	}
	if s, err := h.dp.Sweep(); err != nil || s.Confirmed != many {
		t.Fatalf("the sweeper knows of %+v, %v", s, err)
	}
	if n := h.dropped("no-source-port"); n != 0 {
		t.Fatalf("%d were refused", n)
	}
}

// Removing an endpoint does not walk its conversations: the table is as full after it as
// before, and not one of them is alive.
func TestPrivilegedRemovalWithManyFlows(t *testing.T) {
	const many = 20000
	h := newHostWith(t, loader.Config{FastPath: true, MaxFlows: 64 << 10, Secret: 7})
	for i := range many {
		h.expect(loader.FromContainer, h.a, fromA(udp, 0, uint16(2000+i), remote, uint16(1+i%50)), loader.Redirect, nil)
	}
	if n := len(h.flows()); n != many {
		t.Fatalf("%d conversations, want %d", n, many)
	}
	stored := h.stored()
	must(t, h.dp.DeleteEndpoint(h.endpointA()))
	if n := len(h.flows()); n != 0 {
		t.Fatalf("%d conversations live on", n)
	}
	if n := h.stored(); n != stored {
		t.Fatalf("%d of %d entries were walked and deleted", stored-n, stored)
	}
}

// stored is how many entries the flow tables have.
func (h *host) stored() (n int) {
	h.Helper()
	uses, err := h.dp.Usage()
	must(h.TB, err)
	for _, u := range uses {
		if u.Name == "flows" || u.Name == "flows_new" {
			n += u.Used
		}
	}
	return n
}

func TestPrivilegedTimeouts(t *testing.T) {
	h := newHostWith(t, loader.Config{FastPath: true, MaxFlows: 100, Secret: 7, Timeouts: loader.Timeouts{
		TCPSyn: seconds(5), TCPEstablished: seconds(50), TCPHalfClosed: seconds(40), TCPClosed: seconds(3),
		UDPUnreplied: seconds(4), UDPReplied: seconds(20), ICMP: seconds(6)}})
	clock := 0
	expires := func(name string, open func(), after int) {
		t.Helper()
		open()
		all := h.flows()
		if len(all) != 1 || all[0].Expires > seconds(after) || all[0].Expires < seconds(after-1) {
			t.Errorf("%s: %v, want one that expires in %d s", name, all, after)
		}
		clock += after + 1
		must(t, h.dp.SetClockOffset(seconds(clock)))
		if n := len(h.flows()); n != 0 {
			t.Errorf("%s: %d live on", name, n)
		}
	}
	ask := fromA(udp, 0, 5000, remote, 53)
	first := func(p packet) { h.expect(loader.FromContainer, h.a, p, loader.Redirect, nil) }
	expires("syn", func() { first(fromA(tcp, syn, 5000, remote, 80)) }, 5)
	expires("established", func() { h.handshake(5001, remote, 80) }, 50)
	expires("half-closed", func() { h.handshake(5002, remote, 80); first(fromA(tcp, fin|ack, 5002, remote, 80)) }, 40)
	expires("closed", func() { h.handshake(5003, remote, 80); first(fromA(tcp, rst, 5003, remote, 80)) }, 3)
	expires("unreplied", func() { first(ask) }, 4)
	expires("replied", func() { first(ask); h.reply(fromOutside(udp, 0, remote, 53, hostAddr, 5000)) }, 20)
	expires("ping", func() { first(echo(fromA(icmp, 0, 9, remote, 0))) }, 6)
}
