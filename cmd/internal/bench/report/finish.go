package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// compared are the peers that every point is compared with, where they were measured too.
var compared = []string{"iptables", "nftables", "redirect", "route", "veth"}

// netCost is the key in Point.Extra of what a packet costs besides its sender. Points that
// have it are compared by it too, in Point.Ratio under netPrefix and the other peer's name.
const (
	netCost   = "net_ns"
	netPrefix = "net:"
)

// Finish computes what follows from the samples: each point's median, lowest and highest
// sample, and its ratios to other peers. It puts the points of a series into rising order.
//
// A sample that is no finite number says that a measurement went wrong: it is taken out, and
// LeftOut says so. A point that has no samples keeps zeros and has no ratios, see
// [Point.Measured]. Calling Finish again changes nothing.
func Finish(r *Report) {
	for i := range r.Cases {
		c := &r.Cases[i]
		for j := range c.Series {
			s := &c.Series[j]
			slices.SortStableFunc(s.Points, func(a, b Point) int { return cmp.Compare(a.At, b.At) })
			for k := range s.Points {
				if out := s.Points[k].finish(); out > 0 {
					r.LeftOut = append(r.LeftOut, LeftOut{
						Peer: s.Peer, Case: c.Name, Why: fmt.Sprintf("%s no finite number", samplesWere(out)),
					})
				}
			}
		}
		c.compare()
	}
}

// Measured reports whether the point has any samples, without which its other figures mean
// nothing.
func (p Point) Measured() bool { return len(p.Samples) > 0 }

// finish computes the statistics and returns how many figures it had to take out.
func (p *Point) finish() (out int) {
	whole := len(p.Samples)
	p.Samples = slices.DeleteFunc(slices.Clone(p.Samples), notFinite)
	out = whole - len(p.Samples)
	for name, v := range p.Extra {
		if notFinite(v) {
			delete(p.Extra, name)
			out++
		}
	}
	p.Median, p.Low, p.High, p.Ratio = 0, 0, 0, nil
	if p.Measured() {
		p.Median = median(p.Samples)
		p.Low = slices.Min(p.Samples)
		p.High = slices.Max(p.Samples)
	}
	return out
}

// compare fills in the ratios of all points of a case.
func (c *Case) compare() {
	for _, peer := range compared {
		other := c.series(peer)
		if other == nil {
			continue
		}
		for i := range c.Series {
			for j := range c.Series[i].Points {
				p := &c.Series[i].Points[j]
				if o := other.at(p.At); o != nil && p.Measured() && o.Measured() {
					p.compare(peer, o)
				}
			}
		}
	}
}

// compare notes the ratios of p to o, the point of a peer.
func (p *Point) compare(peer string, o *Point) {
	ratio := func(key string, a, b float64) {
		// By nothing, or less than nothing as the noise of a difference may be, nothing
		// can be divided.
		if b <= 0 || notFinite(a/b) {
			return
		}
		if p.Ratio == nil {
			p.Ratio = make(map[string]float64)
		}
		p.Ratio[key] = a / b
	}
	ratio(peer, p.Median, o.Median)
	own, have := p.Extra[netCost]
	theirs, have2 := o.Extra[netCost]
	if have && have2 {
		ratio(netPrefix+peer, own, theirs)
	}
}

// series returns the series of a peer, nil if there is none.
func (c *Case) series(peer string) *Series {
	for i := range c.Series {
		if c.Series[i].Peer == peer {
			return &c.Series[i]
		}
	}
	return nil
}

// at returns the point at a size, nil if there is none.
func (s *Series) at(size float64) *Point {
	for i := range s.Points {
		if s.Points[i].At == size {
			return &s.Points[i]
		}
	}
	return nil
}

// sizes returns the sizes of all series of a curve, in rising order.
func (c *Case) sizes() []float64 {
	var all []float64
	for _, s := range c.Series {
		for _, p := range s.Points {
			all = append(all, p.At)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// median returns the middle of the samples, of which there is at least one.
func median(samples []float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	n := len(s)
	if n%2 == 1 {
		return s[n/2]
	}
	return s[n/2-1]/2 + s[n/2]/2 // the sum may be more than a float64 can hold
}

func notFinite(v float64) bool { return math.IsNaN(v) || math.IsInf(v, 0) }

func samplesWere(n int) string {
	if n == 1 {
		return "one figure was"
	}
	return fmt.Sprintf("%d figures were", n)
}
