package main

import (
	"bytes"
	"context"
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
	"github.com/ebnet/ebnet/cmd/internal/trusted"
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
			&cli.StringFlag{Name: "out", Usage: "`DIR` for report.json, .csv, .html and .svg, made if need be"},
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
	report.Finish(r)
	if dir != "" {
		if err := writeReport(r, dir); err != nil {
			return err
		}
	}
	print := report.WriteText
	if p.json {
		print = report.WriteJSON
	}
	var out bytes.Buffer
	if err := print(&out, r); err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	_, err := p.stdout.Write(out.Bytes())
	return written(err)
}

// writeReport writes the report's files into dir.
func writeReport(r *report.Report, dir string) error {
	for name, write := range map[string]func(io.Writer, *report.Report) error{
		"report.json": report.WriteJSON,
		"report.csv":  report.WriteCSV,
		"report.html": report.WriteHTML,
		"report.svg":  writePicture,
	} {
		var content bytes.Buffer
		if err := write(&content, r); errors.Is(err, report.ErrNoCase) {
			continue
		} else if err != nil {
			return fmt.Errorf("bench: %s: %w", name, err)
		}
		if err := trusted.Replace(filepath.Join(dir, name), content.Bytes(), 0o644); err != nil {
			return fileError(dir, err)
		}
	}
	return nil
}

// writePicture draws what a small packet costs by each way that was measured.
func writePicture(w io.Writer, r *report.Report) error {
	var names []string
	for _, c := range r.Cases {
		if c.Group == "pps" {
			names = append(names, c.Name)
		}
	}
	return report.WriteSVG(w, r, names...)
}

func written(err error) error {
	if err != nil {
		return fmt.Errorf("%w: %w", errPrint, err)
	}
	return nil
}
