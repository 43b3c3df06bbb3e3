package bench

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/ebnet/ebnet/cmd/internal/bench/report"
)

// part is a part of the benchmark: cases that are measured in a like manner.
type part struct {
	cases []report.Case // all it knows, without series
	// plan makes the jobs of the cases that are wanted.
	plan func(ctx context.Context, l *lab, o *Options) (plan, error)
}

// parts are the benchmark, in the order in which it runs.
func parts() []part {
	return []part{
		{ppsCases, planPPS},
		{bulkCases, planBulk},
		{latencyCases, planLatency},
		{newFlowsCases, planNewFlows},
		{hostCases, planHost},
		{controlCases, planControl},
		{memoryCases, planMemory},
		{scaleCases, planScale},
	}
}

// Peers are the names of what can be measured, in the order in which it is.
func Peers() []string {
	var names []string
	for _, b := range slices.Concat(streamPeers(), []builder{plain}) {
		names = append(names, b.peer)
	}
	for _, name := range controlPeers() {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return append(names, lookupPeer, lookupWritePeer)
}

// Cases are the names of all cases, in the order in which they run.
func Cases() []string {
	var names []string
	for _, p := range parts() {
		for _, c := range p.cases {
			names = append(names, c.Name)
		}
	}
	return names
}

// Groups are the names that stand for several cases each.
func Groups() []string {
	var names []string
	for _, p := range parts() {
		for _, c := range p.cases {
			if !slices.Contains(names, c.Group) {
				names = append(names, c.Group)
			}
		}
	}
	return names
}

// CheckPeers returns an error with the valid names if one of the names is none of a peer.
func CheckPeers(names []string) error { return check(names, Peers()) }

// CheckCases is CheckPeers for names of cases and of groups.
func CheckCases(names []string) error { return check(names, append(Groups(), Cases()...)) }

func check(names, valid []string) error {
	for _, name := range names {
		if !slices.Contains(valid, name) {
			return fmt.Errorf("%q is none of %s", name, strings.Join(valid, ", "))
		}
	}
	return nil
}

// wantsPeer reports whether a peer was asked for.
func (o *Options) wantsPeer(name string) bool {
	if len(o.Peers) == 0 {
		return !o.Quick || slices.Contains(quickPeers, name)
	}
	return slices.Contains(o.Peers, name)
}

// wanted are the cases of cs that were asked for.
func (o *Options) wanted(cs []report.Case) []report.Case {
	var wanted []report.Case
	for _, c := range cs {
		byName := slices.Contains(o.Cases, c.Name) || slices.Contains(o.Cases, c.Group)
		if byName || len(o.Cases) == 0 && (!o.Quick || slices.Contains(quickCases, c.Name)) {
			wanted = append(wanted, c)
		}
	}
	return wanted
}

// quickCases and quickPeers are those of a quick run.
var (
	quickCases = []string{"pps/out", "pps/in", "pps/inside", "crr/out"}
	quickPeers = []string{"veth", "redirect", "route", "iptables", "ebnet", "plain"}
)

// Steps tells what a run would measure.
func (o *Options) Steps() []string {
	var steps []string
	for _, p := range parts() {
		for _, c := range o.wanted(p.cases) {
			var peers []string
			for _, b := range peersOf(c) {
				if o.wantsPeer(b.peer) {
					peers = append(peers, b.peer)
				}
			}
			steps = append(steps, fmt.Sprintf("measure %s through %s: %d rounds of at most %g s each",
				c.Name, strings.Join(peers, ", "), o.Rounds, o.Seconds))
		}
	}
	return steps
}

// peersOf are the peers of a case.
func peersOf(c report.Case) []builder {
	switch c.Group {
	case "tcp", "rr", "crr":
		return streamPeers()
	case "host":
		return hostPeers()
	case "scale":
		return curvePeers(c.Name)
	}
	return builders
}
