package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/ebnet/ebnet/cmd/internal/bench/report"
)

// ErrPrivileges says that the process may not make network namespaces.
var ErrPrivileges = errors.New("needs root: network namespaces and eBPF")

// Options are what a run is to measure and how.
type Options struct {
	Peers    []string // by name, see Peers; empty: all
	Cases    []string // by name or group, see Cases and Groups; empty: all
	Rounds   int
	Seconds  float64 // of one measurement
	MaxSize  int     // of scaling curves, and conversations whose memory is measured; 0: all
	Quick    bool    // few cases, and an end after quickLimit
	Ebnet    string  // path of the binary that is measured
	Version  string  // of ebnet, for the report
	Command  string  // what was typed, for the report
	Progress func(Progress)
}

// Progress is where a run is.
type Progress struct {
	Case, Peer    string
	Round, Rounds int           // of the case, from 1
	Left          time.Duration // until the end of the run, as far as can be told
}

// quickLimit ends a quick run, whatever is not measured by then. Taking the lab away comes on
// top.
const quickLimit = 50 * time.Second

// Run measures. A run that is interrupted by its context returns what was measured until then,
// not Complete.
func Run(ctx context.Context, o Options) (r *report.Report, err error) {
	if os.Geteuid() != 0 {
		return nil, ErrPrivileges
	}
	if o.Quick {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, quickLimit)
		defer cancel()
	}
	l, err := newLab(o.Ebnet)
	if err != nil {
		return nil, err
	}
	defer func() {
		if closing := l.close(); err == nil && closing != nil {
			err = fmt.Errorf("take the benchmark's namespaces away: %w", closing)
		}
	}()
	started := time.Now()
	run := &runner{options: &o, results: make(map[point]*result), deadCases: make(map[peerCase]string)}
	if err := run.measure(ctx, l); err != nil && ctx.Err() == nil {
		return nil, err
	}
	r = run.report()
	r.Notes, r.Targets = l.notes(), targets(r)
	r.Started, r.Took = started.UTC().Round(time.Second), time.Since(started)
	r.Complete = ctx.Err() == nil
	r.Machine = machine(o.Version, l.cpu)
	return r, nil
}

// runner runs the jobs of all parts and keeps what they measured.
type runner struct {
	options   *Options
	plans     []plan
	results   map[point]*result
	deadCases map[peerCase]string // why they are not measured any more
	left      time.Duration       // of jobs that have not been run, as estimated
}

// point is where a figure belongs, and result what was measured there.
type point struct {
	caseName, peer string
	at             float64
}

type result struct {
	samples []float64
	extra   map[string][]float64
}

type peerCase struct{ peer, caseName string }

// measure plans all parts, so that it is known how long it takes, and then runs their jobs.
func (r *runner) measure(ctx context.Context, l *lab) error {
	for _, p := range parts() {
		planned, err := p.plan(ctx, l, r.options)
		if err != nil {
			return err
		}
		r.plans = append(r.plans, planned)
		for _, j := range planned.jobs {
			r.left += j.preparing + time.Duration(r.options.Rounds)*j.estimate
		}
	}
	for _, p := range r.plans {
		for _, c := range p.cases {
			if err := r.runCase(ctx, c.Name, p.jobs); err != nil {
				return err
			}
		}
	}
	return nil
}

// runCase runs the jobs of a case, all rounds of one size before the next one.
func (r *runner) runCase(ctx context.Context, name string, jobs []job) error {
	var sizes []float64
	bySize := make(map[float64][]job)
	for _, j := range jobs {
		if j.caseName != name {
			continue
		}
		if bySize[j.at] == nil {
			sizes = append(sizes, j.at)
		}
		bySize[j.at] = append(bySize[j.at], j)
	}
	for _, size := range sizes {
		if err := r.runSize(ctx, bySize[size]); err != nil {
			return err
		}
	}
	return nil
}

// runSize prepares jobs of one case and size, and runs them round by round.
func (r *runner) runSize(ctx context.Context, jobs []job) error {
	for _, j := range jobs {
		if j.prepare == nil {
			continue
		}
		r.tell(j, 0)
		r.left -= j.preparing
		if err := r.runStep(ctx, j, j.prepare); err != nil {
			return err
		}
	}
	for round := range r.options.Rounds {
		for _, j := range jobs {
			r.tell(j, round)
			r.left -= j.estimate
			if err := r.runJob(ctx, j); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *runner) tell(j job, round int) {
	if r.options.Progress != nil {
		r.options.Progress(Progress{Case: j.caseName, Peer: j.peer, Round: round + 1, Rounds: r.options.Rounds, Left: r.left})
	}
}

// runJob runs a job and keeps its sample.
func (r *runner) runJob(ctx context.Context, j job) error {
	return r.runStep(ctx, j, func(ctx context.Context) error {
		s, err := j.run(ctx)
		if err == nil {
			r.keep(j, s)
		}
		return err
	})
}

// runStep takes a step of a job. A peer that fails in a case is not tried again there: what is
// wrong with it is said in the report, and the others go on. The only error is that of an
// interrupted run.
func (r *runner) runStep(ctx context.Context, j job, step func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	key := peerCase{j.peer, j.caseName}
	if _, dead := r.deadCases[key]; dead {
		return nil
	}
	if err := step(ctx); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.deadCases[key] = err.Error()
	}
	return nil
}

// keep adds a sample to its point.
func (r *runner) keep(j job, s sample) {
	at := point{j.caseName, j.peer, j.at}
	if r.results[at] == nil {
		r.results[at] = &result{extra: make(map[string][]float64)}
	}
	to := r.results[at]
	to.samples = append(to.samples, s.value)
	for name, v := range s.extra {
		to.extra[name] = append(to.extra[name], v)
	}
}

// report puts together what was measured.
func (r *runner) report() *report.Report {
	out := &report.Report{V: report.Version, Command: r.options.Command, Rounds: r.options.Rounds, Seconds: r.options.Seconds}
	for _, p := range r.plans {
		for _, left := range p.leftOut {
			if !slices.Contains(out.LeftOut, left) { // a stage that several parts miss
				out.LeftOut = append(out.LeftOut, left)
			}
		}
		for _, c := range p.cases {
			if c.Series = r.series(c.Name, p.jobs); len(c.Series) > 0 {
				out.Cases = append(out.Cases, c)
			}
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(r.deadCases), comparePeerCase) {
		out.LeftOut = append(out.LeftOut, report.LeftOut{Peer: key.peer, Case: key.caseName, Why: r.deadCases[key]})
	}
	return out
}

// series are those of a case, in the order of its jobs.
func (r *runner) series(name string, jobs []job) []report.Series {
	var series []report.Series
	index := make(map[string]int)
	for _, j := range jobs {
		found := r.results[point{j.caseName, j.peer, j.at}]
		if j.caseName != name || found == nil {
			continue
		}
		i, ok := index[j.peer]
		if !ok {
			i = len(series)
			index[j.peer] = i
			series = append(series, report.Series{Peer: j.peer})
		}
		p := report.Point{At: j.at, Samples: found.samples}
		for extra, values := range found.extra {
			if p.Extra == nil {
				p.Extra = make(map[string]float64)
			}
			p.Extra[extra] = median(values)
		}
		series[i].Points = append(series[i].Points, p)
	}
	return series
}

func comparePeerCase(a, b peerCase) int {
	if a.caseName != b.caseName {
		return slices.Index(Cases(), a.caseName) - slices.Index(Cases(), b.caseName)
	}
	return slices.Index(Peers(), a.peer) - slices.Index(Peers(), b.peer)
}

// median is the middle value, or the mean of the two in the middle.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n == 0 {
		return 0
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
