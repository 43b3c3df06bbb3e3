package datapath

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/ebnet/ebnet/loader"
)

// measure reports the kernel's own measure of a run; the time of the system call
// around it says nothing.
func measure(b *testing.B, h *host, hook loader.Hook, ifindex int, p packet) {
	b.Helper()
	b.ReportMetric(0, "ns/op")
	mean, err := h.dp.Benchmark(hook, p.frame(), loader.RunContext{Ifindex: ifindex}, max(b.N, 1000))
	must(b, err)
	b.ReportMetric(float64(mean.Nanoseconds()), "ns/packet")
}

func BenchmarkMasqueradeOut(b *testing.B) {
	h := newHost(b, true)
	establish(h, 5000)
	measure(b, h, loader.FromContainer, h.a, fromA(tcp, ack, 5000, remote, 80))
}

func BenchmarkMasqueradeIn(b *testing.B) {
	h := newHost(b, true)
	establish(h, 5000)
	measure(b, h, loader.FromUplink, h.uplink, fromOutside(tcp, ack, remote, 80, hostAddr, 5000))
}

func BenchmarkPublishedIn(b *testing.B) {
	h := newHost(b, true)
	h.publish(loader.UDP, netip.Addr{}, 8080, 80)
	measure(b, h, loader.FromUplink, h.uplink, fromOutside(udp, 0, remote, 4000, hostAddr, 8080))
}

func BenchmarkNeighbour(b *testing.B) {
	h := newHost(b, true)
	measure(b, h, loader.FromContainer, h.a, toB())
}

// BenchmarkHostTraffic is what the host pays for a packet that is none of ebnet's.
func BenchmarkHostTraffic(b *testing.B) {
	h := newHost(b, true)
	measure(b, h, loader.FromUplink, h.uplink, fromOutside(tcp, ack, remote, 4000, hostAddr, 22))
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
