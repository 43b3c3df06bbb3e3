package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/ebnet/ebnet/cmd/internal/bench/report"
)

const ppsNote = "Datagrams of 18 bytes sent by sendmmsg on one CPU, counted at the far end: one CPU pays for sending, the way and receiving. " +
	"net_ns is the time for one packet less that of the pair of devices alone (veth) in the same round."

// ppsCases are one-way packets per second, by each way in both directions.
var ppsCases = []report.Case{
	{Name: "pps/out", Title: "Small datagrams, container to outside"},
	{Name: "pps/out-reply", Title: "Small datagrams, the answers from outside"},
	{Name: "pps/in", Title: "Small datagrams, outside to published port"},
	{Name: "pps/in-reply", Title: "Small datagrams, the answers of a published port"},
	{Name: "pps/inside", Title: "Small datagrams, container to container"},
}

func init() {
	for i := range ppsCases {
		c := &ppsCases[i]
		c.Group, c.Unit, c.Better, c.Note = "pps", "packets/s", "higher", ppsNote
	}
}

// pps measures packets per second.
type pps struct {
	lab           *lab
	seconds       float64
	conversations []*conversation
	floorOf       string             // peer with the least that packets cost
	floor         map[string]float64 // ns of one there, of this round, by case
}

// planPPS builds the stages and opens a conversation for each way on each of them.
func planPPS(ctx context.Context, l *lab, o *Options) (plan, error) {
	out := plan{cases: o.wanted(ppsCases)}
	if len(out.cases) == 0 {
		return out, nil
	}
	p := &pps{lab: l, seconds: o.Seconds, floorOf: "veth", floor: make(map[string]float64)}
	l.closers = append(l.closers, p)
	jobs := make(map[string][]job) // by case
	for _, b := range builders {
		if !o.wantsPeer(b.peer) {
			continue
		}
		made, err := p.jobs(ctx, b, out.cases)
		switch {
		case ctx.Err() != nil:
			return out, ctx.Err()
		case err != nil:
			out.leftOut = append(out.leftOut, report.LeftOut{Peer: b.peer, Why: err.Error()})
		}
		for _, j := range made {
			jobs[j.caseName] = append(jobs[j.caseName], j)
		}
	}
	for _, c := range out.cases {
		out.jobs = append(out.jobs, jobs[c.Name]...)
	}
	return out, p.refresh()
}

// jobs are those of one peer.
func (p *pps) jobs(ctx context.Context, b builder, cases []report.Case) ([]job, error) {
	s, err := p.lab.stage(ctx, b)
	if err != nil {
		return nil, err
	}
	var jobs []job
	ways := make(map[string]*conversation)
	for _, c := range cases {
		name := strings.TrimPrefix(c.Name, "pps/")
		name, reply := strings.CutSuffix(name, "-reply")
		if ways[name] == nil {
			if ways[name], err = converse(s.way(name)); err != nil {
				return nil, err
			}
			p.conversations = append(p.conversations, ways[name])
		}
		jobs = append(jobs, job{
			caseName: c.Name, peer: b.peer,
			estimate: p.estimate(),
			run: func(ctx context.Context) (sample, error) {
				return p.run(ctx, c.Name, b.peer, ways[name], reply)
			},
		})
	}
	return jobs, nil
}

// estimate is how long one run takes.
func (p *pps) estimate() time.Duration {
	return time.Duration(p.seconds*float64(time.Second)) + warmUp + 20*time.Millisecond
}

// Close closes the conversations.
func (p *pps) Close() error {
	var errs []error
	for _, c := range p.conversations {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// refresh keeps all conversations alive, those of other stages too, so that none has to be
// established again within a round. What is wrong with one shows when it is measured.
func (p *pps) refresh() error {
	var wg sync.WaitGroup
	for _, c := range p.conversations {
		if !c.established || time.Since(c.last) >= keepAlive {
			wg.Go(func() { _ = c.ready() })
		}
	}
	wg.Wait()
	return nil
}

// run measures one way of one stage once.
func (p *pps) run(ctx context.Context, name, peer string, c *conversation, reply bool) (sample, error) {
	if err := p.prepare(c); err != nil {
		return sample{}, err
	}
	fd, far, port := c.clientFD, c.server, c.serverPort
	if reply {
		fd, far, port = c.serverFD, c.client, c.clientPort
	}
	sink, err := p.lab.far.sink(far, port)
	if err != nil {
		return sample{}, err
	}
	f, err := p.lab.flood(ctx, fd, p.lab.far.count, time.Duration(p.seconds*float64(time.Second)))
	if closing := sink.Close(); err == nil {
		err = closing
	}
	return p.sample(name, peer, f, err)
}

// prepare sees to it that a conversation can be measured.
func (p *pps) prepare(c *conversation) error {
	return firstError(p.refresh, c.ready)
}

// sample is what a flood says, unless it failed. arrived is the share of datagrams that did.
func (p *pps) sample(name, peer string, f flood, err error) (sample, error) {
	if err != nil {
		return sample{}, err
	}
	if f.arrived == 0 {
		return sample{}, fmt.Errorf("none of %d datagrams arrived", f.sent)
	}
	ns := float64(f.took.Nanoseconds()) / float64(f.arrived)
	s := sample{value: 1e9 / ns, extra: map[string]float64{"ns": ns, "arrived": float64(f.arrived) / float64(f.sent)}}
	if peer == p.floorOf {
		p.floor[name] = ns
	} else if floor, ok := p.floor[name]; ok {
		s.extra["net_ns"] = ns - floor
	}
	return s, nil
}
