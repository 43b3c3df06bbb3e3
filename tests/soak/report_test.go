package soak

import (
	"fmt"
	"strings"
	"time"

	"github.com/ebnet/ebnet/tests/walk"
)

// report is what was done and counted.
type report struct {
	V        int     `json:"v"`
	Kernel   string  `json:"kernel"`
	Seed     uint64  `json:"seed,string"`
	Seconds  float64 `json:"seconds"`
	CPUs     float64 `json:"cpus"` // used on average, by the commands and the traffic
	Failures bool    `json:"failed"`

	Walk          walk.Counts             `json:"walk"`
	Conversations int64                   `json:"conversations"`
	Bytes         int64                   `json:"bytes_downloaded"`
	Lines         int64                   `json:"lines_of_lasting_conversations"`
	Questions     int64                   `json:"datagrams_to_the_walk"`
	Answers       int64                   `json:"answers"`
	Judged        int                     `json:"arrivals_judged"`
	Wrong         int                     `json:"arrivals_at_the_wrong_endpoint"`
	Streams       map[string]streamCounts `json:"streams"`
	Echoes        echoes                  `json:"icmp_echo"`
	Rubbish       int64                   `json:"rubbish_frames"`
	Drops         []dropLine              `json:"drops"`
	Memory        []line                  `json:"memory"`
	Samples       []sample                `json:"samples"`
}

// streamCounts are the datagrams of a stream, both ways.
type streamCounts struct {
	Sent uint64 `json:"sent"`
	Lost uint64 `json:"lost"`
}

func (s *soak) report(took, used time.Duration) *report {
	t := s.traffic
	t.history.mu.Lock()
	defer t.history.mu.Unlock()
	r := &report{
		V: 1, Kernel: kernelRelease(), Seed: s.seed, Seconds: took.Seconds(), CPUs: used.Seconds() / took.Seconds(), Failures: s.t.Failed(),
		Walk: s.walk.Counts, Conversations: t.conversations.Load(), Bytes: t.bytes.Load(), Lines: t.said.Load(), Questions: t.datagrams.Load(), Answers: t.answers.Load(),
		Judged: t.history.judged, Wrong: len(t.history.wrong), Streams: map[string]streamCounts{}, Echoes: s.echoes, Rubbish: t.rubbish.Load(),
		Drops: s.drops.lines(operations(s.walk.Counts)), Memory: lines(s.samples, s.length >= whole), Samples: s.samples,
	}
	for name, st := range s.streams {
		r.Streams[name] = streamCounts{st.Sent(), st.Lost()}
	}
	return r
}

// String is the report for people.
func (r *report) String() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("soak: Linux %s, EBNET_SEED=%d, %.0f s at %.2f CPUs", r.Kernel, r.Seed, r.Seconds, r.CPUs)
	p("\noperations, by exit status, killed or done (by the lab):")
	for _, kind := range walk.Kinds(r.Walk) {
		var outcomes []string
		for _, o := range walk.Outcomes(r.Walk, kind) {
			outcomes = append(outcomes, fmt.Sprintf("%s %d", o, r.Walk.Operations[kind][o]))
		}
		p("  %-22s %s", kind, strings.Join(outcomes, ", "))
	}
	p("  together %d; %d kills (repairs among them), %d repairs; killed commands: %d undone, %d completed, %d in between; %d comparisons of everything",
		operations(r.Walk), r.Walk.Kills, r.Walk.Repairs, r.Walk.Undone, r.Walk.Completed, r.Walk.Between, r.Walk.Checks)
	p("\ntraffic:")
	p("  %d conversations, %d MiB downloaded, %d lines in the five conversations that last", r.Conversations, r.Bytes>>20, r.Lines)
	p("  %d datagrams to ports of the walk and out of its endpoints, %d answers; %d arrivals at its endpoints judged, %d at the wrong one",
		r.Questions, r.Answers, r.Judged, r.Wrong)
	for name, s := range r.Streams {
		p("  stream %-16s %d sent, %d lost", name, s.Sent, s.Lost)
	}
	p("  %d echo requests, %d answered; %d frames of rubbish", r.Echoes.Sent, r.Echoes.Answered, r.Rubbish)
	p("\ndropped packets:")
	for _, d := range r.Drops {
		why := d.Why
		if why == "" {
			why = "UNEXPLAINED"
		}
		p("  %8d %-28s %-20s %s", d.Packets, d.Where, d.Reason, why)
	}
	p("\n%-45s %12s %12s %12s %12s %12s", "memory", "first", "median", "last", "per minute", "growth")
	for _, l := range r.Memory {
		p("%v", l)
	}
	return b.String()
}

// operations is how many were tried.
func operations(c walk.Counts) (n int) {
	for _, outcomes := range c.Operations {
		for _, times := range outcomes {
			n += times
		}
	}
	return n
}
