package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ebnet/ebnet/cmd/internal/bench/report"
)

// controlLab is where commands are measured: how people publish ports and connect
// containers, by whole processes from start to end.
type controlLab struct {
	*lab
	quick bool     // leave out what takes minutes
	peers []string // wanted ones; empty: all

	contenders []*contender
	sites      int // made so far
}

// planControl plans the cases of commands for a run.
func planControl(ctx context.Context, l *lab, o *Options) (plan, error) {
	c := &controlLab{lab: l, quick: o.Quick, peers: o.Peers}
	l.closers = append(l.closers, c)
	p, err := controlPlan(ctx, c)
	p.cases = o.wanted(p.cases)
	unwanted := func(name string) bool {
		return !slices.ContainsFunc(p.cases, func(c report.Case) bool { return c.Name == name })
	}
	p.jobs = slices.DeleteFunc(p.jobs, func(j job) bool { return unwanted(j.caseName) })
	p.leftOut = slices.DeleteFunc(p.leftOut, func(left report.LeftOut) bool { return unwanted(left.Case) })
	return p, err
}

// controlCases are the cases of commands.
var controlCases = []report.Case{
	{
		Name: "publish/ports", Title: "Publish TCP ports", Group: "publish",
		Unit: "s", Better: "lower", Axis: "published ports", Note: publishNote,
	},
	{
		Name: "unpublish/ports", Title: "Close published TCP ports", Group: "unpublish",
		Unit: "s", Better: "lower", Axis: "published ports", Note: publishNote,
	},
	{
		Name: "connect/endpoint", Title: "Connect a container", Group: "connect",
		Unit: "s", Better: "lower", Note: connectNote,
	},
	{
		Name: "disconnect/endpoint", Title: "Disconnect a container", Group: "disconnect",
		Unit: "s", Better: "lower", Note: connectNote,
	},
}

// wants reports whether the contender is asked for, by its own name or its family's.
func (l *controlLab) wants(c *contender) bool {
	return len(l.peers) == 0 || slices.Contains(l.peers, c.peer) || slices.Contains(l.peers, c.family)
}

// Close takes away all that the contenders have made.
func (l *controlLab) Close() error {
	var errs []error
	for _, c := range l.contenders {
		errs = append(errs, c.close())
	}
	return errors.Join(errs...)
}

// site is what one contender works on: namespaces of its own, made before the clock runs,
// and what is timed there.
type site struct {
	host    *node                                     // where the contender's processes are
	ready   func(ctx context.Context, size int) error // before each round; nil: nothing to do
	do      func(ctx context.Context, size int) error
	undo    func(ctx context.Context, size int) error
	closers []func() error // called in reverse order
}

// later has fn called when the site is closed.
func (s *site) later(fn func() error) { s.closers = append(s.closers, fn) }

func (s *site) close() error {
	var errs []error
	for _, fn := range slices.Backward(s.closers) {
		errs = append(errs, fn())
	}
	s.closers = nil
	return errors.Join(errs...)
}

// node makes a namespace that goes with the site.
func (s *site) node(ctx context.Context, name string) (*node, error) {
	n, err := newNode(ctx, name)
	if err == nil {
		s.later(n.close)
	}
	return n, err
}

// contender is a peer with what it is asked to do and to undo.
type contender struct {
	peer     string
	family   string // what --peer calls it as well, if that is not its name
	tools    []string
	sizes    []int
	tooLong  map[int]string // sizes that are left out, and why
	estimate func(size int) time.Duration
	count    bool // what stays of processes is worth a figure
	build    func(ctx context.Context, s *site) error

	site *site
	back map[int][]sample // of undoing, by size, measured and not asked for yet
}

// round does and undoes the work once. A contender that fails, or is interrupted, loses its
// site and with it whatever it has left half done.
func (c *contender) round(ctx context.Context, size int) (there, back sample, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	if c.site == nil {
		c.site = &site{}
		if err := c.build(ctx, c.site); err != nil {
			return sample{}, sample{}, err
		}
	}
	if c.site.ready != nil {
		if err := c.site.ready(ctx, size); err != nil {
			return sample{}, sample{}, err
		}
	}
	var before map[int]process
	if c.count {
		if before, err = processesIn(c.site.host); err != nil {
			return sample{}, sample{}, err
		}
	}
	if there, err = timed(ctx, size, c.site.do); err != nil {
		return sample{}, sample{}, err
	}
	if c.count {
		after, err := processesIn(c.site.host)
		if err != nil {
			return sample{}, sample{}, err
		}
		there.extra = stays(before, after)
	}
	back, err = timed(ctx, size, c.site.undo)
	return there, back, err
}

func timed(ctx context.Context, size int, work func(ctx context.Context, size int) error) (sample, error) {
	start := time.Now()
	err := work(ctx, size)
	return sample{value: time.Since(start).Seconds()}, err
}

func (c *contender) close() error {
	if c.site == nil {
		return nil
	}
	err := c.site.close()
	c.site = nil
	return err
}

// forth measures doing. Nothing may stay, so the work is undone as well, and how long that
// took is kept for backwards in the same round.
func (c *contender) forth(size int) func(context.Context) (sample, error) {
	return func(ctx context.Context) (sample, error) {
		there, back, err := c.round(ctx, size)
		if err == nil {
			c.back[size] = append(c.back[size], back)
		}
		return there, err
	}
}

// backwards returns what forth has measured of undoing, or does both where forth was not
// asked for.
func (c *contender) backwards(size int) func(context.Context) (sample, error) {
	return func(ctx context.Context) (sample, error) {
		if kept := c.back[size]; len(kept) > 0 {
			c.back[size] = kept[1:]
			return kept[0], nil
		}
		_, back, err := c.round(ctx, size)
		return back, err
	}
}

// errand is work with its opposite, which are a case each.
type errand struct {
	do, undo   report.Case
	contenders []*contender
}

// controlPlan returns what is measured of commands: publishing, removing, connecting and
// disconnecting. Peers are set up by the first of their jobs.
func controlPlan(ctx context.Context, l *controlLab) (plan, error) {
	var p plan
	for _, e := range []errand{publishing(l), connecting(l)} {
		p.cases = append(p.cases, e.do, e.undo)
		var there, back []job
		for _, size := range e.allSizes() {
			for _, c := range e.contenders {
				if !l.wants(c) || c.missing() != "" || !slices.Contains(c.sizes, size) {
					continue
				}
				forth := job{caseName: e.do.Name, peer: c.peer, estimate: c.estimate(size), run: c.forth(size)}
				backwards := job{caseName: e.undo.Name, peer: c.peer, run: c.backwards(size)}
				if e.do.Axis != "" {
					forth.at, backwards.at = float64(size), float64(size)
				}
				there, back = append(there, forth), append(back, backwards)
			}
		}
		p.jobs = append(append(p.jobs, there...), back...)
		for _, c := range e.contenders {
			if l.wants(c) {
				p.leftOut = append(p.leftOut, c.leftOut(e)...)
				c.back = make(map[int][]sample)
				l.contenders = append(l.contenders, c)
			}
		}
	}
	return p, ctx.Err()
}

// controlPeers are the names of what commands are measured of.
func controlPeers() []string {
	var names []string
	l := &controlLab{}
	for _, e := range []errand{publishing(l), connecting(l)} {
		for _, c := range e.contenders {
			if !slices.Contains(names, c.peer) {
				names = append(names, c.peer)
			}
		}
	}
	return names
}

// allSizes are those of all contenders, in rising order.
func (e errand) allSizes() []int {
	var sizes []int
	for _, c := range e.contenders {
		sizes = append(sizes, c.sizes...)
	}
	slices.Sort(sizes)
	return slices.Compact(sizes)
}

// leftOut is what the contender is not asked to do.
func (c *contender) leftOut(e errand) []report.LeftOut {
	var reasons []string
	if why := c.missing(); why != "" {
		reasons = []string{why}
	} else {
		sizes := make(map[string][]string) // by the reason
		for _, size := range slices.Sorted(maps.Keys(c.tooLong)) {
			sizes[c.tooLong[size]] = append(sizes[c.tooLong[size]], strconv.Itoa(size))
		}
		for _, why := range slices.Sorted(maps.Keys(sizes)) {
			reasons = append(reasons, strings.Join(sizes[why], ", ")+" "+e.do.Axis+": "+why)
		}
	}
	var left []report.LeftOut
	for _, name := range []string{e.do.Name, e.undo.Name} {
		for _, why := range reasons {
			left = append(left, report.LeftOut{Peer: c.peer, Case: name, Why: why})
		}
	}
	return left
}

// missing tells which tool is not installed, if any.
func (c *contender) missing() string {
	for _, tool := range c.tools {
		if _, err := exec.LookPath(tool); err != nil {
			return tool + " is not installed"
		}
	}
	return ""
}

// finish runs a command in the namespace to its end and returns its standard output.
func finish(n *node, cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// What a key sends to the terminal's processes is the benchmark's alone to obey.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err := n.start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		// CNI plugins say on standard output what went wrong.
		said := strings.TrimSpace(stderr.String() + " " + stdout.String())
		return "", fmt.Errorf("%s: %w: %.500s", shortened(cmd.Args), err, said)
	}
	return stdout.String(), nil
}

// shortened is a command line that fits into a message.
func shortened(args []string) string {
	const most = 200
	line := strings.Join(args, " ")
	if len(line) > most {
		line = line[:most] + "…"
	}
	return line
}
