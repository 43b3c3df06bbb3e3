package bench

import (
	"context"
	"time"

	"github.com/ebnet/ebnet/cmd/internal/bench/report"
)

// planOn plans the cases that are wanted on the stages of peers: jobOf makes the job of a case on
// a stage. A peer whose stage or jobs cannot be made is left out.
func planOn(ctx context.Context, l *lab, o *Options, cases []report.Case, peers []builder,
	jobOf func(s *stage, c report.Case) (job, error),
) (plan, error) {
	out := plan{cases: o.wanted(cases)}
	if len(out.cases) == 0 {
		return out, nil
	}
	jobs := make(map[string][]job) // by case
	for _, b := range peers {
		if !o.wantsPeer(b.peer) {
			continue
		}
		s, err := l.stage(ctx, b)
		for _, c := range out.cases {
			var j job
			if err == nil {
				j, err = jobOf(s, c)
			}
			if err == nil {
				j.caseName, j.peer = c.Name, b.peer
				jobs[c.Name] = append(jobs[c.Name], j)
			}
		}
		switch {
		case ctx.Err() != nil:
			return out, ctx.Err()
		case err != nil:
			out.leftOut = append(out.leftOut, report.LeftOut{Peer: b.peer, Why: err.Error()})
		}
	}
	for _, c := range out.cases {
		out.jobs = append(out.jobs, jobs[c.Name]...)
	}
	return out, nil
}

// half is how long measurements take that need less time than counting packets does.
func half(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second) / 2) }
