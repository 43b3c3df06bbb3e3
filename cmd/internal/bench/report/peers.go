package report

import (
	"cmp"
	"slices"
)

// look is how a peer is drawn, the same in all charts. Colours are told apart by people who
// see red and green alike; symbols and dashes by everybody, in grey too.
type look struct {
	light, dark string // colours, on white and on black
	symbol      string // of a curve's points, as an SVG path in a square of 12
	dash        string // of a curve's line: "solid", "dashed", "dotted"
}

// Symbols. Those that are hollow have their inner edge drawn the other way round.
const (
	disc       = "M12 6a6 6 0 1 1-12 0a6 6 0 1 1 12 0z"
	ring       = disc + "M9 6a3 3 0 1 0-6 0a3 3 0 1 0 6 0z"
	square     = "M1 1h10v10h-10z"
	frame      = square + "M4 4v4h4v-4z"
	diamond    = "M6 0l6 6l-6 6l-6-6z"
	lozenge    = diamond + "M6 4l-2 2l2 2l2-2z"
	upward     = "M6 1l6 10h-12z"
	downward   = "M0 1h12l-6 10z"
	plus       = "M4 0h4v4h4v4h-4v4h-4v-4h-4v-4h4z"
	cross      = "M2.5 0l3.5 3.5l3.5-3.5l2.5 2.5l-3.5 3.5l3.5 3.5l-2.5 2.5l-3.5-3.5l-3.5 3.5l-2.5-2.5l3.5-3.5l-3.5-3.5z"
	hourglass  = "M0 0h12l-4.5 6l4.5 6h-12l4.5-6z"
	bowtie     = "M0 0l6 4.5l6-4.5v12l-6-4.5l-6 4.5z"
	lineSolid  = "solid"
	lineDashed = "dashed"
	lineDotted = "dotted"
)

// known has the peers in the order in which they are shown: ours, what people have today, and
// the limits, which are grey.
var known = []struct {
	peer string
	look look
}{
	{"ebnet", look{"#0063b1", "#5cb3ff", disc, lineSolid}},
	{"ebnet-slow", look{"#5b93cc", "#3f7cb4", ring, lineDashed}},
	{"iptables", look{"#c84e00", "#ff8a3d", square, lineSolid}},
	{"nftables", look{"#b07a00", "#e8b53a", diamond, lineSolid}},
	{"docker", look{"#b0508a", "#e58fc4", upward, lineSolid}},
	{"cni", look{"#7b5ea7", "#b99ae6", downward, lineSolid}},
	{"route", look{"#00806a", "#3fc4a8", plus, lineDashed}},
	{"redirect", look{"#666666", "#b4b4b4", cross, lineDotted}},
	{"veth", look{"#858585", "#969696", frame, lineDotted}},
	{"loopback", look{"#8f8f8f", "#858585", lozenge, lineDotted}},
}

// others are the looks of peers that nobody has thought of here.
var others = []look{
	{"#8a4b08", "#c9a27c", hourglass, lineSolid},
	{"#4d7c0f", "#a3d35c", bowtie, lineSolid},
	{"#1f7a8c", "#6cc5d6", hourglass, lineDashed},
}

// rank returns the place of a peer among all.
func rank(peer string) int {
	for i, k := range known {
		if k.peer == peer {
			return i
		}
	}
	return len(known)
}

// inOrder returns the series in the order in which they are shown.
func (c *Case) inOrder() []Series {
	series := slices.Clone(c.Series)
	slices.SortStableFunc(series, func(a, b Series) int { return cmp.Compare(rank(a.Peer), rank(b.Peer)) })
	return series
}

// looks gives each peer of a report its look.
func (r *Report) looks() map[string]look {
	all := make(map[string]look)
	next := 0
	for _, c := range r.Cases {
		for _, s := range c.Series {
			if _, have := all[s.Peer]; have {
				continue
			}
			if i := rank(s.Peer); i < len(known) {
				all[s.Peer] = known[i].look
			} else {
				all[s.Peer] = others[next%len(others)]
				next++
			}
		}
	}
	return all
}
