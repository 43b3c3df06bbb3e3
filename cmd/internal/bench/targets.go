package bench

import (
	"fmt"
	"slices"

	"github.com/ebnet/ebnet/cmd/internal/bench/report"
)

// promise is what ebnet is held to: a figure that is computed from what was measured, and the
// bound that it must keep.
type promise struct {
	name  string
	kind  bound
	limit float64
	got   func(f figures) (got float64, known bool)
}

type bound string

const (
	atMost  bound = "<="
	below   bound = "<"
	atLeast bound = ">="
)

func (b bound) keeps(got, limit float64) bool {
	switch b {
	case atMost:
		return got <= limit
	case below:
		return got < limit
	}
	return got >= limit
}

// promises are all of them, in the order and the words of what ebnet is meant to be. Figures are
// medians.
func promises() []promise {
	var all []promise
	ways := []struct{ name, pps string }{
		{"masquerade, out", "pps/out"},
		{"masquerade, answers", "pps/out-reply"},
		{"published port, in", "pps/in"},
		{"published port, answers", "pps/in-reply"},
	}
	for _, w := range ways {
		all = append(all,
			promise{w.name + ": net cost per packet to iptables", atMost, 1.0 / 3, netRatio(w.pps, "iptables")},
			promise{w.name + ": net cost per packet to nftables", atMost, 1.0 / 2, netRatio(w.pps, "nftables")},
			promise{w.name + ": net cost per packet to route", below, 1, netRatio(w.pps, "route")},
		)
	}
	for _, w := range ways {
		all = append(all, promise{w.name + ": net cost per packet to redirect", atMost, 1.6, netRatio(w.pps, "redirect")})
	}
	all = append(all,
		promise{"container to container: packets per second to iptables", atLeast, 1.7, ratio("pps/inside", "iptables")},
		promise{"container to container: packets per second to redirect", atLeast, 0.95, ratio("pps/inside", "redirect")},
	)
	for _, c := range bulkCases {
		all = append(all,
			promise{"bulk TCP, " + c.Name + ": to route", atLeast, 1, ratio(c.Name, "route")},
			promise{"bulk TCP, " + c.Name + ": to veth", atLeast, 0.9, ratio(c.Name, "veth")},
		)
	}
	return append(all,
		promise{"connect-request-response per second, out: to iptables", atLeast, 1.3, ratio("crr/out", "iptables")},
		promise{"connect-request-response per second, in: to iptables", atLeast, 1.3, ratio("crr/in", "iptables")},
		promise{"new UDP flows per second, one CPU: to iptables", atLeast, 1.5, ratio("newflows/udp", "iptables")},
		promise{"unrelated host traffic, out: to without ebnet", atLeast, 0.97, ratio("host/out", "plain")},
		promise{"unrelated host traffic, in: to without ebnet", atLeast, 0.97, ratio("host/in", "plain")},
		promise{"unrelated host traffic, bulk TCP: to without ebnet", atLeast, 0.97, ratio("host/tcp", "plain")},
		promise{"packets per second with 10,000 ports to 1", atLeast, 0.9, sizes("scale/ports", 10_000, 1)},
		promise{"packets per second with 500 endpoints to 1", atLeast, 0.9, sizes("scale/endpoints", 500, 1)},
		promise{"packets per second with 100 networks to 1", atLeast, 0.9, sizes("scale/networks", 100, 1)},
		promise{"1,000,000 flows against 1,000: growth of a packet's time to that of one lookup", atMost, 1.3, growth("scale/flows", 1_000_000, 1000)},
		promise{"memory per confirmed conversation, bytes", atMost, 640, at("memory/flow", 0)},
		promise{"memory of conversations that have ended, bytes each", atMost, 0, extra("memory/flow", "after_bytes")},
		promise{"publish 1,000 ports, s", atMost, 0.1, at("publish", 1000)},
		promise{"publish 60,000 ports, s", atMost, 2, at("publish", 60_000)},
		promise{"unpublish 1,000 ports, s", atMost, 0.1, at("unpublish", 1000)},
		promise{"unpublish 60,000 ports, s", atMost, 2, at("unpublish", 60_000)},
		promise{"publish 1,000 ports: times as fast as the Docker Engine", atLeast, 300, timesFaster("publish", "docker", 1000)},
		promise{"connect an endpoint: time to CNI bridge+host-local", atMost, 0.6, ratio("connect", "cni")},
	)
}

// targets tells what came of each promise.
func targets(r *report.Report) []report.Target {
	var out []report.Target
	for _, p := range promises() {
		t := report.Target{Name: p.name, Want: fmt.Sprintf("%s %.3g", p.kind, p.limit)}
		if t.Got, t.Known = p.got(figures{r}); t.Known {
			t.Met = p.kind.keeps(t.Got, p.limit)
		} else {
			t.Got, t.Reason = 0, "not measured in this run"
		}
		out = append(out, t)
	}
	return out
}

// figures are what a report has, by case or its group, peer and size.
type figures struct{ report *report.Report }

func (f figures) point(name, peer string, at float64) (report.Point, bool) {
	for _, c := range f.report.Cases {
		if c.Name != name && c.Group != name {
			continue
		}
		for _, s := range c.Series {
			i := slices.IndexFunc(s.Points, func(p report.Point) bool { return p.At == at })
			if s.Peer == peer && i >= 0 && len(s.Points[i].Samples) > 0 {
				return s.Points[i], true
			}
		}
	}
	return report.Point{}, false
}

func (f figures) median(name, peer string, at float64) (float64, bool) {
	p, ok := f.point(name, peer, at)
	return median(p.Samples), ok
}

// quotient is a/b, of figures that are known.
func quotient(a float64, haveA bool, b float64, haveB bool) (float64, bool) {
	if !haveA || !haveB || b == 0 {
		return 0, false
	}
	return a / b, true
}

// at is ebnet's figure at a size.
func at(name string, size float64) func(figures) (float64, bool) {
	return func(f figures) (float64, bool) { return f.median(name, "ebnet", size) }
}

// extra is what was measured beside ebnet's figure.
func extra(name, what string) func(figures) (float64, bool) {
	return func(f figures) (float64, bool) {
		p, ok := f.point(name, "ebnet", 0)
		v, have := p.Extra[what]
		return v, ok && have
	}
}

// ratio is ebnet's figure to another peer's.
func ratio(name, peer string) func(figures) (float64, bool) {
	return func(f figures) (float64, bool) {
		ours, a := f.median(name, "ebnet", 0)
		theirs, b := f.median(name, peer, 0)
		return quotient(ours, a, theirs, b)
	}
}

// timesFaster is another peer's time to ebnet's.
func timesFaster(name, peer string, size float64) func(figures) (float64, bool) {
	return func(f figures) (float64, bool) {
		ours, a := f.median(name, "ebnet", size)
		theirs, b := f.median(name, peer, size)
		return quotient(theirs, b, ours, a)
	}
}

// netRatio is ebnet's net cost per packet to another peer's. Below what can be told apart from
// the pair alone there is no ratio.
func netRatio(name, peer string) func(figures) (float64, bool) {
	return func(f figures) (float64, bool) {
		ours, a := f.net(name, "ebnet")
		theirs, b := f.net(name, peer)
		return quotient(ours, a, theirs, b && theirs > 0)
	}
}

func (f figures) net(name, peer string) (float64, bool) {
	p, ok := f.point(name, peer, 0)
	ns, have := p.Extra["net_ns"]
	return ns, ok && have
}

// sizes is ebnet's figure at one size to that at another.
func sizes(name string, size, other float64) func(figures) (float64, bool) {
	return func(f figures) (float64, bool) {
		a, haveA := f.median(name, "ebnet", size)
		b, haveB := f.median(name, "ebnet", other)
		return quotient(a, haveA, b, haveB)
	}
}

// growth is by how much longer ebnet takes for a packet at one size than at another, to what a
// lookup alone takes longer.
func growth(name string, size, other float64) func(figures) (float64, bool) {
	return func(f figures) (float64, bool) {
		ours, a := f.slower(name, "ebnet", size, other)
		lookup, b := f.slower(name, "lookup", size, other)
		return quotient(ours, a, lookup, b && lookup > 0)
	}
}

// slower is the difference of the times of a packet, in seconds.
func (f figures) slower(name, peer string, size, other float64) (float64, bool) {
	a, haveA := f.median(name, peer, size)
	b, haveB := f.median(name, peer, other)
	if !haveA || !haveB || a == 0 || b == 0 {
		return 0, false
	}
	return 1/a - 1/b, true
}
