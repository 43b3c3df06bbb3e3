package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/cmd/internal/bench"
	"github.com/ebnet/ebnet/cmd/internal/bench/report"
	"github.com/ebnet/ebnet/cmd/internal/network"
)

// What a run takes unless told otherwise.
const (
	benchRounds       = 5
	benchSeconds      = 1.0
	quickBenchRounds  = 3
	quickBenchSeconds = 0.3
)

func (p *program) benchCommand() *cli.Command {
	return &cli.Command{
		Name:  "bench",
		Usage: "measure ebnet against iptables, nftables and the kernel's limits",
		Description: describe("Does the same work through each peer, round by round, in network namespaces of its own, and\n"+
			"prints medians and what they are compared with others. Nothing of the host is touched, and\n"+
			"nothing stays. An interrupted run reports what it has measured.\n\n"+
			"Peers: "+strings.Join(bench.Peers(), ", ")+".\n"+
			"Cases: "+strings.Join(bench.Groups(), ", ")+", or one of a group as in\n   "+strings.Join(bench.Cases(), "\n   "),
			"ebnet bench",
			"ebnet bench --quick",
			"ebnet bench --peer veth,iptables,ebnet --case pps/out --rounds 9 --out /tmp/report"),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "peer", Usage: "`LIST` of peers, with commas between", DefaultText: "all"},
			&cli.StringFlag{Name: "case", Usage: "`LIST` of cases or groups, with commas between", DefaultText: "all"},
			&cli.IntFlag{Name: "rounds", Usage: "`N` samples of each figure", Value: benchRounds},
			&cli.Float64Flag{Name: "seconds", Usage: "`S` that one measurement takes", Value: benchSeconds},
			&cli.StringFlag{Name: "out", Usage: "`DIR` for report.json, report.csv and report.html, made if need be"},
			&cli.IntFlag{Name: "max-size", Usage: "leave larger sizes than `N` out of scaling curves", DefaultText: "no limit"},
			&cli.BoolFlag{Name: "quick", Usage: "the main cases only, in less than a minute", DisableDefaultText: true},
		},
		Action: p.bench,
	}
}

func (p *program) bench(c *cli.Context) error {
	if _, err := arguments(c, 0, 0); err != nil {
		return err
	}
	options, err := p.benchOptions(c)
	if err != nil {
		return err
	}
	if c.Bool("dry-run") {
		return p.print(stepsView(options.Steps()))
	}
	if dir := c.String("out"); dir != "" {
		// Made now, so that a run is not for nothing.
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fileError(dir, err)
		}
	}
	ctx, stop := untilSignal(c.Context)
	r, err := bench.Run(ctx, options)
	interrupted, _ := errors.AsType[statusError](context.Cause(ctx))
	stop()
	if errors.Is(err, bench.ErrPrivileges) {
		return &network.Error{What: "bench", Why: err.Error(), Kind: network.ErrUnsupported, Err: err}
	}
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	if err := p.printReport(r, c.String("out")); err != nil {
		return err
	}
	if interrupted.status != 0 {
		return interrupted
	}
	return nil
}

// untilSignal returns a context that ends with the first signal to stop, whose cause is the exit
// status then. Further signals are held back, as what was made must be taken away.
func untilSignal(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		select {
		case s := <-signals:
			cancel(statusError{status: statusSignal + int(s.(syscall.Signal))})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
	}
}

func (p *program) benchOptions(c *cli.Context) (bench.Options, error) {
	o := bench.Options{
		Peers: splitList(c.String("peer")), Cases: splitList(c.String("case")),
		Rounds: c.Int("rounds"), Seconds: c.Float64("seconds"), Quick: c.Bool("quick"),
		Version: readVersion().Version, Progress: p.benchProgress(),
		MaxSize: c.Int("max-size"),
		Command: "ebnet " + strings.Join(os.Args[1:], " "),
		// The very file that runs, even if another one has been installed meanwhile.
		Ebnet: "/proc/self/exe",
	}
	if err := bench.CheckPeers(o.Peers); err != nil {
		return o, usage("--peer", err.Error(), "")
	}
	if err := bench.CheckCases(o.Cases); err != nil {
		return o, usage("--case", err.Error(), "")
	}
	if o.Quick && !c.IsSet("rounds") {
		o.Rounds = quickBenchRounds
	}
	if o.Quick && !c.IsSet("seconds") {
		o.Seconds = quickBenchSeconds
	}
	if o.Rounds < 1 {
		return o, usage("--rounds", fmt.Sprintf("%d is not at least 1", o.Rounds), "")
	}
	if c.IsSet("max-size") && o.MaxSize < 1 {
		return o, usage("--max-size", fmt.Sprintf("%d is not at least 1", o.MaxSize), "")
	}
	if !(o.Seconds >= 0.01 && o.Seconds <= 3600) {
		return o, usage("--seconds", fmt.Sprintf("%g is not between 0.01 and 3600", o.Seconds), "")
	}
	return o, nil
}

// splitList splits a list with commas; an empty one has no elements.
func splitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
}

// benchProgress shows where a run is: on a terminal in one line that is written over, else in a
// line for each round.
func (p *program) benchProgress() func(bench.Progress) {
	f, ok := p.stderr.(*os.File)
	terminal := false
	if ok {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		terminal = err == nil
	}
	last := ""
	return func(at bench.Progress) {
		if at == (bench.Progress{}) { // the end
			if terminal {
				_, _ = fmt.Fprint(p.stderr, "\r\x1b[K")
			}
			return
		}
		left := fmt.Sprintf("%v left", at.Left.Round(time.Second))
		round := fmt.Sprintf("%s, round %d of %d", at.Case, at.Round, at.Rounds)
		if terminal {
			_, _ = fmt.Fprintf(p.stderr, "\r\x1b[K%s, %s: %s", round, at.Peer, left)
		} else if round != last {
			p.note(round + ": " + left)
		}
		last = round
	}
}

// printReport prints the report and writes its files.
func (p *program) printReport(r *report.Report, dir string) error {
	finishReport(r)
	var encoded bytes.Buffer
	if err := reportJSON(&encoded, r); err != nil {
		return err
	}
	if dir != "" {
		if err := os.WriteFile(filepath.Join(dir, "report.json"), encoded.Bytes(), 0o644); err != nil {
			return fileError(dir, err)
		}
	}
	if p.json {
		_, err := p.stdout.Write(encoded.Bytes())
		return written(err)
	}
	var text bytes.Buffer
	reportText(&text, r)
	_, err := p.stdout.Write(text.Bytes())
	return written(err)
}

func written(err error) error {
	if err != nil {
		return fmt.Errorf("%w: %w", errPrint, err)
	}
	return nil
}

// TEMPORARY until package report has its writers: finishReport is report.Finish, reportJSON
// report.WriteJSON and reportText report.WriteText.
func finishReport(r *report.Report) {
	for i := range r.Cases {
		medians := map[string]float64{}
		for _, s := range r.Cases[i].Series {
			for j := range s.Points {
				s.Points[j].Median, s.Points[j].Low, s.Points[j].High = spread(s.Points[j].Samples)
				medians[s.Peer] = s.Points[j].Median
			}
		}
		for _, s := range r.Cases[i].Series {
			for j := range s.Points {
				s.Points[j].Ratio = map[string]float64{}
				for _, peer := range []string{"iptables", "redirect", "route"} {
					if medians[peer] > 0 {
						s.Points[j].Ratio[peer] = s.Points[j].Median / medians[peer]
					}
				}
			}
		}
	}
}

func reportJSON(w io.Writer, r *report.Report) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

func reportText(w io.Writer, r *report.Report) {
	for _, c := range r.Cases {
		_, _ = fmt.Fprintf(w, "%s (%s, %s)\n", c.Title, c.Name, c.Unit)
		var rows [][]string
		for _, s := range c.Series {
			for _, pt := range s.Points {
				row := []string{s.Peer, fmt.Sprintf("%.0f", pt.Median), fmt.Sprintf("%.0f..%.0f", pt.Low, pt.High), "", ""}
				if v, ok := pt.Extra["net_ns"]; ok {
					row[3] = fmt.Sprintf("%.0f", v)
				}
				if v, ok := pt.Ratio["iptables"]; ok {
					row[4] = fmt.Sprintf("%.2f", v)
				}
				rows = append(rows, row)
			}
		}
		table(w, "PEER MEDIAN SPREAD NET_NS /IPTABLES", rows)
	}
	for _, l := range r.LeftOut {
		_, _ = fmt.Fprintf(w, "left out: %s %s: %s\n", l.Peer, l.Case, l.Why)
	}
}

func spread(samples []float64) (median, low, high float64) {
	sorted := append([]float64(nil), samples...)
	for i := range sorted {
		for j := i; j > 0 && sorted[j] < sorted[j-1]; j-- {
			sorted[j], sorted[j-1] = sorted[j-1], sorted[j]
		}
	}
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2, sorted[0], sorted[n-1]
}
