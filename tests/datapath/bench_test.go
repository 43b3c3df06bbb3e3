package datapath

import (
	"net/netip"
	"testing"

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
