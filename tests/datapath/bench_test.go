package datapath

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/ebnet/ebnet/loader"
)

// outcome is one thing that a program may do with a packet.
type outcome struct {
	name    string
	hook    loader.Hook
	ifindex func(h *host) int
	// before makes the state that the packets meet.
	before func(h *host)
	// packet is the i-th packet; between is what happens after it, not measured.
	packet  func(h *host, i int) packet
	between func(h *host, i int) error
	verdict loader.Verdict
}

func atA(h *host) int      { return h.a }
func atUplink(h *host) int { return h.uplink }

// same is the same packet each time.
func same(p packet) func(*host, int) packet { return func(*host, int) packet { return p } }

// many are the peers of benchmarks that open a conversation with each packet.
func many(i int) (uint16, netip.Addr) {
	return uint16(2000 + i%20000), netip.AddrFrom4([4]byte{198, 51, 100, byte(1 + i/20000%200)})
}

var outcomes = []outcome{
	{name: "from_container/established", hook: loader.FromContainer, ifindex: atA, verdict: loader.Redirect,
		before: func(h *host) { establish(h, 5000) }, packet: same(fromA(tcp, ack, 5000, remote, 80))},
	{name: "from_container/fin", hook: loader.FromContainer, ifindex: atA, verdict: loader.Redirect,
		before: func(h *host) { establish(h, 5000) }, packet: same(fromA(tcp, fin|ack, 5000, remote, 80))},
	{name: "from_container/new_udp", hook: loader.FromContainer, ifindex: atA, verdict: loader.Redirect,
		packet: func(_ *host, i int) packet {
			port, peer := many(i)
			return fromA(udp, 0, port, peer, 53)
		}},
	{name: "from_container/new_tcp", hook: loader.FromContainer, ifindex: atA, verdict: loader.Redirect,
		packet: func(_ *host, i int) packet {
			port, peer := many(i)
			return fromA(tcp, syn, port, peer, 80)
		}},
	{name: "from_container/confirms", hook: loader.FromContainer, ifindex: atA, verdict: loader.Redirect,
		before: func(h *host) { must(h, opened(h, 0)) },
		packet: func(_ *host, i int) packet {
			port, peer := many(i)
			return fromA(tcp, ack, port, peer, 80)
		},
		between: func(h *host, i int) error { return opened(h, i+1) }},
	{name: "from_container/neighbour", hook: loader.FromContainer, ifindex: atA, verdict: loader.Redirect,
		packet: same(toB())},
	{name: "from_container/late", hook: loader.FromContainer, ifindex: atA, verdict: loader.Drop,
		packet: same(fromA(tcp, ack, 5001, remote, 80))},
	// The same as a flood that somebody watches, and after that one was killed.
	{name: "from_container/late_watched", hook: loader.FromContainer, ifindex: atA, verdict: loader.Drop,
		before: func(h *host) { watched(h) }, packet: same(fromA(tcp, ack, 5001, remote, 80))},
	{name: "from_container/late_unwatched", hook: loader.FromContainer, ifindex: atA, verdict: loader.Drop,
		before: func(h *host) { watched(h); must(h, h.dp.SetClockOffset(time.Hour)) }, packet: same(fromA(tcp, ack, 5001, remote, 80))},
	{name: "from_uplink/established", hook: loader.FromUplink, ifindex: atUplink, verdict: loader.Redirect,
		before: func(h *host) { establish(h, 5000) }, packet: same(fromOutside(tcp, ack, remote, 80, hostAddr, 5000))},
	{name: "from_uplink/new_published", hook: loader.FromUplink, ifindex: atUplink, verdict: loader.Redirect,
		before: func(h *host) { h.publish(loader.UDP, netip.Addr{}, 8080, 80) },
		packet: func(_ *host, i int) packet {
			port, peer := many(i)
			return fromOutside(udp, 0, peer, port, hostAddr, 8080)
		}},
	{name: "from_uplink/published_embryonic", hook: loader.FromUplink, ifindex: atUplink, verdict: loader.Redirect,
		before: func(h *host) { h.publish(loader.UDP, netip.Addr{}, 8080, 80) },
		packet: same(fromOutside(udp, 0, remote, 4000, hostAddr, 8080))},
	{name: "from_uplink/of_the_host", hook: loader.FromUplink, ifindex: atUplink, verdict: loader.Pass,
		packet: same(fromOutside(tcp, ack, remote, 4000, hostAddr, 22))},
	{name: "from_uplink/direct_access", hook: loader.FromUplink, ifindex: atUplink, verdict: loader.Drop,
		packet: same(fromOutside(tcp, syn, remote, 4000, containerA, 22))},
	{name: "to_uplink/of_the_host", hook: loader.ToUplink, ifindex: atUplink, verdict: loader.Pass,
		packet: same(packet{smac: uplinkMAC.String(), dmac: routerMAC.String(), proto: tcp, flags: ack, ttl: 64,
			src: netip.AddrPortFrom(hostAddr, 40000), dst: netip.AddrPortFrom(remote, 80)})},
}

// watched lets somebody listen to everything, at the rate that ebnet monitor does.
func watched(h *host) {
	h.Helper()
	l, err := h.dp.Listen(loader.Wanted{Drops: true, Flows: true, Rate: 1000})
	must(h.TB, err)
	h.Cleanup(func() { _ = l.Close() })
}

// opened sends what goes before the packet that confirms the i-th conversation.
func opened(h *host, i int) error {
	port, peer := many(i)
	_, out, err := h.dp.Run(loader.FromContainer, fromA(tcp, syn, port, peer, 80).frame(), loader.RunContext{Ifindex: h.a})
	if err != nil {
		return err
	}
	answer := fromOutside(tcp, syn|ack, peer, 80, hostAddr, parse(out).src.Port())
	_, _, err = h.dp.Run(loader.FromUplink, answer.frame(), loader.RunContext{Ifindex: h.uplink, Received: h.uplink})
	return err
}

// BenchmarkPacket is the kernel's own measure of one run of a program, by what it does; the
// time of the system call around it says nothing. insns are the instructions that the
// verifier left of the program.
func BenchmarkPacket(b *testing.B) {
	for _, o := range outcomes {
		b.Run(o.name, func(b *testing.B) {
			h := newHost(b, true)
			if o.before != nil {
				o.before(h)
			}
			ctx := loader.RunContext{Ifindex: o.ifindex(h)}
			if o.hook == loader.FromUplink {
				ctx.Received = ctx.Ifindex
			}
			if o.between == nil {
				if v, _, err := h.dp.Run(o.hook, o.packet(h, 1<<19).frame(), ctx); err != nil || v != o.verdict {
					b.Fatalf("verdict %v, want %v (%v)", v, o.verdict, err)
				}
			}
			var between func(int) error
			if o.between != nil {
				between = func(i int) error { return o.between(h, i) }
			}
			frame := func(i int) []byte { return o.packet(h, i).frame() }
			n := min(max(b.N, 1000), 50_000)
			mean, err := h.dp.Benchmark(o.hook, ctx, n, frame, between)
			must(b, err)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(mean.Nanoseconds()), "ns/packet")
			insns, err := h.dp.Instructions(o.hook)
			must(b, err)
			b.ReportMetric(float64(insns), "insns")
		})
	}
}

// BenchmarkRemoveEndpoint shows that removal does not depend on the flows that there are.
func BenchmarkRemoveEndpoint(b *testing.B) {
	for _, flows := range []int{0, 100_000} {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) {
			h := newHostWith(b, loader.Config{FastPath: true, MaxFlows: 256 << 10, Secret: 7})
			for i := range flows {
				h.handshake(uint16(2000+i%30000), remote, uint16(80+i/30000))
			}
			if n := h.confirmed(); n != flows {
				b.Fatalf("%d conversations", n)
			}
			b.ResetTimer()
			for range b.N {
				must(b, h.dp.DeleteEndpoint(h.endpointA()))
				b.StopTimer()
				must(b, h.dp.PutEndpoint(h.endpointA()))
				b.StartTimer()
			}
		})
	}
}

// BenchmarkLoad is loading all programs and maps, the verifier's work mostly.
func BenchmarkLoad(b *testing.B) {
	newHost(b, true) // for the namespace
	for range b.N {
		dir := filepath.Join(b.TempDir(), "bpf")
		dp, _, err := loader.Load(dir, loader.Config{FastPath: true})
		must(b, err)
		b.StopTimer()
		must(b, dp.Close())
		must(b, loader.Remove(dir))
		b.StartTimer()
	}
}

// BenchmarkSweep is the timer's round, and how often it comes round, with 100,000
// conversations.
func BenchmarkSweep(b *testing.B) {
	const flows = 100_000
	h := newHostWith(b, loader.Config{FastPath: true, MaxFlows: 256 << 10, Secret: 7})
	for i := range flows {
		h.handshake(uint16(2000+i%30000), remote, uint16(80+i/30000))
	}
	var took time.Duration
	rounds := max(b.N, 20)
	for range rounds {
		time.Sleep(250 * time.Millisecond)
		s, err := h.dp.Sweep()
		must(b, err)
		took += s.Took
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(took.Microseconds())/float64(rounds), "us/round")
}
