// Package report is what a benchmark found: numbers by case and peer, their
// statistics, and the forms in which they are shown (text, JSON, CSV, HTML).
//
// It knows nothing of how anything was measured.
package report

import "time"

// Version is the "v" of the JSON form.
const Version = 1

// Report is one run of `ebnet bench`.
type Report struct {
	V        int           `json:"v"`
	Started  time.Time     `json:"started"`
	Took     time.Duration `json:"took_ns"`
	Command  string        `json:"command"`
	Machine  Machine       `json:"machine"`
	Rounds   int           `json:"rounds"`
	Seconds  float64       `json:"seconds"`         // of one measurement
	Notes    []string      `json:"notes,omitempty"` // how peers were built, where it is to be known
	LeftOut  []LeftOut     `json:"left_out"`        // peers and cases that could not run, and why
	Cases    []Case        `json:"cases"`
	Targets  []Target      `json:"targets"`  // what ebnet is held to, and whether it was met
	Complete bool          `json:"complete"` // false: interrupted, fewer rounds than asked for
}

// Machine is where it was measured.
type Machine struct {
	CPU      string `json:"cpu"`
	CPUs     int    `json:"cpus"`
	MemoryMB int    `json:"memory_mb"`
	Kernel   string `json:"kernel"`
	Virtual  string `json:"virtual,omitempty"` // the hypervisor's name, empty: none that can be seen
	Ebnet    string `json:"ebnet"`             // version
	PinnedTo int    `json:"pinned_to"`         // CPU of one-CPU cases
}

// LeftOut is a peer, or a case of a peer, that was not measured.
type LeftOut struct {
	Peer string `json:"peer"`
	Case string `json:"case,omitempty"` // empty: all
	Why  string `json:"why"`
}

// Case is one kind of work in one way, through each peer.
type Case struct {
	Name   string   `json:"name"`           // stable, as --case takes it with its way: "pps/out"
	Title  string   `json:"title"`          // for people: "Small datagrams, container to outside"
	Group  string   `json:"group"`          // as --case takes it: "pps"
	Unit   string   `json:"unit"`           // of the samples: "packets/s", "ns", "bit/s", "requests/s", "s", "bytes"
	Better string   `json:"better"`         // "higher" or "lower"
	Axis   string   `json:"axis,omitempty"` // of a scaling curve: what grows ("published ports"); empty: no curve
	Note   string   `json:"note,omitempty"` // how it was measured, a sentence or two
	Series []Series `json:"series"`
}

// Series is what one peer did in a case. A scaling curve has one point for each size, in
// rising order; any other case has one point.
type Series struct {
	Peer   string  `json:"peer"`
	Points []Point `json:"points"`
}

// Point is one measured figure.
type Point struct {
	At      float64            `json:"at,omitempty"` // size on the case's axis
	Samples []float64          `json:"samples"`      // one for each round, in Case.Unit, in order of time
	Median  float64            `json:"median"`
	Low     float64            `json:"low"`             // smallest sample
	High    float64            `json:"high"`            // largest
	Extra   map[string]float64 `json:"extra,omitempty"` // medians of what was measured beside it: "p99_ns", "net_ns", "cpu_ns_per_packet"
	Ratio   map[string]float64 `json:"ratio,omitempty"` // to other peers' medians at the same size: "iptables", "redirect", "route"
}

// Target is a promise with what came of it.
type Target struct {
	Name   string  `json:"name"` // "masquerade out: net cost to iptables"
	Want   string  `json:"want"` // "<= 0.33"
	Got    float64 `json:"got"`
	Met    bool    `json:"met"`
	Known  bool    `json:"known"`            // false: not measured in this run, Got means nothing
	Reason string  `json:"reason,omitempty"` // why it is not known, or not met where that is explained
}
