package bench

import (
	"context"
	"time"

	"github.com/ebnet/ebnet/cmd/internal/bench/report"
)

// job is one point of one peer's series in one case. It is run once in each round, between
// the other peers' jobs of the same case and size.
type job struct {
	caseName string
	peer     string
	at       float64       // size on the case's axis, 0 where it has none
	estimate time.Duration // of one run
	// prepare, if there is one, is run once before the first round of this case and size;
	// preparing is how long that takes.
	prepare   func(ctx context.Context) error
	preparing time.Duration
	run       func(ctx context.Context) (sample, error)
}

// sample is what one run of a job measured.
type sample struct {
	value float64            // in the case's unit
	extra map[string]float64 // see report.Point
}

// plan is what a part of the benchmark contributes: the cases that it fills, the jobs that
// fill them, and what it cannot measure here. Jobs of one case stand together, by size, in the order
// in which they are to be run within a round.
type plan struct {
	cases   []report.Case // without series
	jobs    []job
	leftOut []report.LeftOut
}
