package bench

import (
	"math"
	"slices"
	"testing"

	"github.com/ebnet/ebnet/cmd/internal/bench/report"
)

// made is a report with figures of peers in one case.
func made(name, group string, points map[string][]report.Point) *report.Report {
	c := report.Case{Name: name, Group: group}
	for peer, p := range points {
		c.Series = append(c.Series, report.Series{Peer: peer, Points: p})
	}
	return &report.Report{Cases: []report.Case{c}}
}

func figure(samples ...float64) []report.Point { return []report.Point{{Samples: samples}} }

func cost(ns float64) []report.Point {
	return []report.Point{{Samples: []float64{1}, Extra: map[string]float64{"net_ns": ns}}}
}

// TestTargets: each formula, from a report that is made up.
func TestTargets(t *testing.T) {
	for _, test := range []struct {
		name   string // of the target
		report *report.Report
		got    float64
		met    bool
	}{
		{"masquerade, out: net cost per packet to iptables", made("pps/out", "pps", map[string][]report.Point{"ebnet": cost(900), "iptables": cost(3000)}), 0.3, true},
		{"masquerade, answers: net cost per packet to nftables", made("pps/out-reply", "pps", map[string][]report.Point{"ebnet": cost(900), "nftables": cost(1500)}), 0.6, false},
		{"published port, in: net cost per packet to route", made("pps/in", "pps", map[string][]report.Point{"ebnet": cost(900), "route": cost(900)}), 1, false},
		{"published port, answers: net cost per packet to redirect", made("pps/in-reply", "pps", map[string][]report.Point{"ebnet": cost(800), "redirect": cost(500)}), 1.6, true},
		{"container to container: packets per second to iptables", made("pps/inside", "pps", map[string][]report.Point{"ebnet": figure(400, 380, 500), "iptables": figure(200, 190, 220)}), 2, true},
		{"container to container: packets per second to redirect", made("pps/inside", "pps", map[string][]report.Point{"ebnet": figure(90), "redirect": figure(100)}), 0.9, false},
		{"bulk TCP, tcp/in-4: to veth", made("tcp/in-4", "tcp", map[string][]report.Point{"ebnet": figure(9e9), "veth": figure(10e9)}), 0.9, true},
		{"connect-request-response per second, in: to iptables", made("crr/in", "crr", map[string][]report.Point{"ebnet": figure(12), "iptables": figure(10)}), 1.2, false},
		{"new UDP flows per second, one CPU: to iptables", made("newflows/udp", "newflows", map[string][]report.Point{"ebnet": figure(16), "iptables": figure(10)}), 1.6, true},
		{"unrelated host traffic, out: to without ebnet", made("host/out", "host", map[string][]report.Point{"ebnet": figure(98), "plain": figure(100)}), 0.98, true},
		{"packets per second with 10,000 ports to 1", made("scale/ports", "scale", map[string][]report.Point{
			"ebnet": {{At: 1, Samples: []float64{100}}, {At: 10_000, Samples: []float64{80}}},
		}), 0.8, false},
		{"1,000,000 flows against 1,000: growth of a packet's time to that of one lookup", made("scale/flows", "scale", map[string][]report.Point{
			"ebnet":  {{At: 1000, Samples: []float64{1e9 / 3000}}, {At: 1_000_000, Samples: []float64{1e9 / 3240}}},
			"lookup": {{At: 1000, Samples: []float64{1e9 / 2500}}, {At: 1_000_000, Samples: []float64{1e9 / 2700}}},
		}), 1.2, true},
		{"memory per confirmed conversation, bytes", made("memory/flow", "memory", map[string][]report.Point{"ebnet": figure(600)}), 600, true},
		{"memory of conversations that have ended, bytes each", made("memory/flow", "memory", map[string][]report.Point{
			"ebnet": {{Samples: []float64{600}, Extra: map[string]float64{"after_bytes": 3}}},
		}), 3, false},
		{"publish 60,000 ports, s", made("publish/ports", "publish", map[string][]report.Point{"ebnet": {{At: 60_000, Samples: []float64{1.5}}}}), 1.5, true},
		{"publish 1,000 ports: times as fast as the Docker Engine", made("publish/ports", "publish", map[string][]report.Point{
			"ebnet": {{At: 1000, Samples: []float64{0.1}}}, "docker": {{At: 1000, Samples: []float64{40}}},
		}), 400, true},
		{"connect an endpoint: time to CNI bridge+host-local", made("connect/endpoint", "connect", map[string][]report.Point{
			"ebnet": figure(0.014), "cni": figure(0.02),
		}), 0.7, false},
	} {
		all := targets(test.report)
		i := slices.IndexFunc(all, func(t report.Target) bool { return t.Name == test.name })
		if i < 0 {
			t.Errorf("there is no target %q", test.name)
			continue
		}
		got := all[i]
		if !got.Known || math.Abs(got.Got-test.got) > 1e-6 || got.Met != test.met || got.Reason != "" {
			t.Errorf("%+v, want %v, met: %t", got, test.got, test.met)
		}
	}
}

// TestTargetsUnknown: what was not measured is not known and not met, also where there is
// nothing to divide by.
func TestTargetsUnknown(t *testing.T) {
	for _, r := range []*report.Report{
		{},
		made("pps/out", "pps", map[string][]report.Point{"ebnet": cost(900), "iptables": cost(-20), "nftables": figure(5)}),
		made("host/in", "host", map[string][]report.Point{"ebnet": figure(98), "plain": nil}),
		made("scale/flows", "scale", map[string][]report.Point{"ebnet": {{At: 1_000_000, Samples: []float64{5}}}}),
	} {
		for _, got := range targets(r) {
			if got.Known || got.Met || got.Got != 0 || got.Reason == "" || got.Want == "" {
				t.Errorf("%+v, want it to be unknown", got)
			}
		}
	}
}

// TestTargetNames: each target has a name of its own.
func TestTargetNames(t *testing.T) {
	seen := make(map[string]bool)
	for _, p := range promises() {
		if seen[p.name] {
			t.Errorf("there are two targets %q", p.name)
		}
		seen[p.name] = true
	}
}
