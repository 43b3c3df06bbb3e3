package walk

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ebnet/ebnet/tests/netlab"
)

// Options say how a walk goes.
type Options struct {
	Seed  uint64
	Kills float64 // how many of the commands are to be killed, 0 to 1

	// Stay leaves out what interrupts everybody's traffic: down, and flushing all flows.
	Stay bool

	// Entered and Leaving, if not nil, are called when a namespace has been made and
	// before one is deleted: what has sockets there must close them.
	Entered, Leaving func(*netlab.Container)

	// Changed, if not nil, is called after each operation with when it was begun and
	// ended, and the states that it may have passed through; the last one is now.
	Changed func(begin, end time.Time, states []Model)
}

// Counts are what a walk has done.
type Counts struct {
	Operations map[string]map[string]int // by kind and outcome: the exit status, "killed" or "done"
	Kills      int                       // commands that were ended by a kill, repairs among them
	Repairs    int                       // runs of `ebnet up` after a kill
	Undone     int                       // killed commands of which nothing was left
	Completed  int                       // killed commands that were done, or whose rest is irrelevant
	Between    int                       // killed commands of which some steps were done
	Checks     int                       // comparisons of everything with the model
	Probes     map[string]int            // by what was tried
}

// Walk is a lab in which operations are tried.
type Walk struct {
	Counts Counts

	tb    testing.TB
	o     Options
	lab   *netlab.Lab
	model Model
	made  int // namespaces

	// ops decides what is tried, timing when a command is killed and what is probed.
	ops, timing *rand.Rand

	nodes    map[string]*netlab.Container // namespaces that exist, by name
	took     map[string]time.Duration     // by kind, of late
	pins     []string                     // of the datapath itself, without those of devices
	log      []string                     // the last operations
	loopback netip.Addr                   // to publish on, if socket programs are attached
}

// logged is how many operations are shown where something is wrong.
const logged = 30

// New starts a walk in a lab whose host nothing has been done on yet.
func New(tb testing.TB, lab *netlab.Lab, o Options) *Walk {
	tb.Helper()
	w := &Walk{
		tb: tb, o: o, lab: lab, model: newModel(), nodes: map[string]*netlab.Container{}, took: map[string]time.Duration{},
		ops: rand.New(rand.NewPCG(o.Seed, 1)), timing: rand.New(rand.NewPCG(o.Seed, 2)),
		Counts: Counts{Operations: map[string]map[string]int{}, Probes: map[string]int{}},
	}
	if lab.Host.Cgroup != "" {
		w.loopback = netip.MustParseAddr("127.0.0.1")
	}
	tb.Cleanup(w.end)
	w.o.Kills = 0 // not before there is something to lose
	// What an administrator has reserved stays.
	lab.Host.SetSysctl(tb, reservedPorts, "40005,50000-50003")
	w.perform(w.upOp())
	for _, path := range lab.Host.Pins(tb) {
		if !strings.Contains(path, "/links/") || !strings.Contains(path[strings.LastIndex(path, "/"):], "-") {
			w.pins = append(w.pins, path)
		}
	}
	slices.Sort(w.pins)
	for range spaceNames - 2 {
		w.perform(w.enterOp())
	}
	w.o.Kills = o.Kills
	return w
}

// end gives the lab the namespaces back that it is to delete.
func (w *Walk) end() {
	if w.tb.Failed() {
		w.tb.Logf("EBNET_SEED=%d; the last operations:\n%s", w.o.Seed, strings.Join(w.log, "\n"))
	}
	w.lab.Host.SetSysctl(w.tb, reservedPorts, "")
	for i := range spaceNames {
		if name := fmt.Sprintf("c%d", i); w.model.Spaces[name] == 0 && w.nodes[name] != nil {
			w.nodes[name].Appear(w.tb)
		}
	}
}

// Keep makes a network and endpoints in it that the walk leaves alone, each in a namespace
// of its own, with the ports that specs say; it returns them by name.
func (w *Walk) Keep(network string, specs map[string][]Spec) map[string]*netlab.Container {
	w.tb.Helper()
	w.undisturbed(command(w.model, "network create", func(m *Model) int {
		return m.createNetwork(Network{Name: network, Kept: true})
	}, "network", "create", network))
	kept := map[string]*netlab.Container{}
	for _, name := range sortedKeys(specs) {
		c := w.lab.Container(w.tb, name)
		w.made++
		incarnation := w.made
		e := Endpoint{Name: name, Network: network, Space: name, IfName: "eth0", Kept: true}
		args := []string{"connect", network, c.Name, "--name", name}
		for _, s := range specs[name] {
			args = append(args, "-p", s.String())
		}
		w.undisturbed(command(w.model, "connect", func(m *Model) int {
			m.Spaces[name] = incarnation
			return m.connect(e, specs[name], nil)
		}, args...))
		c.Addr = w.model.Endpoints[name].IP
		kept[name] = c
	}
	return kept
}

// Step tries one operation.
func (w *Walk) Step() {
	w.tb.Helper()
	w.perform(w.next())
}

// Up is `ebnet up`, which nobody kills.
func (w *Walk) Up() {
	w.tb.Helper()
	w.undisturbed(w.upOp())
}

// undisturbed performs an operation that nobody kills.
func (w *Walk) undisturbed(o *op) {
	w.tb.Helper()
	kills := w.o.Kills
	w.o.Kills = 0
	w.perform(o)
	w.o.Kills = kills
}

// perform carries an operation out and follows it in the model.
func (w *Walk) perform(o *op) {
	w.tb.Helper()
	if w.o.Changed != nil {
		defer func(begin time.Time) { w.o.Changed(begin, time.Now(), append(o.trail, w.model)) }(time.Now())
	}
	if o.lab != nil {
		o.lab()
		w.model = o.trail[len(o.trail)-1]
		w.note(o, "done", "")
		return
	}
	var limit time.Duration
	if w.chance(w.o.Kills) {
		limit = time.Duration(w.timing.Float64() * 1.2 * float64(max(w.took[o.kind], 5*time.Millisecond)))
	}
	r := w.run(o.args, o.stdin, limit)
	if r.killed {
		w.Counts.Kills++
		w.note(o, "killed", fmt.Sprintf("after %v", r.took.Round(100*time.Microsecond)))
		w.repair(o)
		return
	}
	if limit == 0 {
		w.took[o.kind] = (3*w.took[o.kind] + r.took) / 4
	}
	w.note(o, fmt.Sprint(r.code), r.took.Round(time.Millisecond).String())
	if r.code != o.code {
		w.fail("%s: exit status %d, want %d\n%s%s", o.commandLine(), r.code, o.code, r.stdout, r.stderr)
	}
	w.model = o.trail[len(o.trail)-1]
	if w.model.unseen() {
		w.look()
	}
}

// note writes the operation into the log and the counts.
func (w *Walk) note(o *op, outcome, more string) {
	if w.Counts.Operations[o.kind] == nil {
		w.Counts.Operations[o.kind] = map[string]int{}
	}
	w.Counts.Operations[o.kind][outcome]++
	w.logf("%s: %s %s", o.commandLine(), outcome, more)
}

func (w *Walk) logf(format string, args ...any) {
	if len(w.log) == logged {
		w.log = w.log[1:]
	}
	w.log = append(w.log, fmt.Sprintf(format, args...))
}

// fail ends the test; what was done last is told by end.
func (w *Walk) fail(format string, args ...any) {
	w.tb.Helper()
	w.tb.Fatalf(format, args...)
}

// result is how a command ended.
type result struct {
	code           int
	killed         bool
	took           time.Duration
	stdout, stderr string
}

// run runs ebnet and, with a limit, kills it then unless it has ended.
func (w *Walk) run(args []string, stdin string, limit time.Duration) result {
	w.tb.Helper()
	line := w.lab.Host.Command(args...)
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Stdin = &stdout, &stderr, strings.NewReader(stdin)
	cmd.Env = os.Environ()
	begin := time.Now()
	if err := w.lab.Host.Start(cmd); err != nil {
		w.fail("start %v: %v", line, err)
	}
	if limit > 0 {
		timer := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
	}
	_ = cmd.Wait() // also for what it has started, which has its output
	if ctx.Err() != nil {
		w.fail("%s: still running after %v", strings.Join(args, " "), commandLimit)
	}
	code := cmd.ProcessState.ExitCode()
	return result{code, code < 0, time.Since(begin), stdout.String(), stderr.String()}
}

// commandLimit ends a command that hangs.
const commandLimit = 90 * time.Second

// repair runs `ebnet up` after a kill, which may be killed too, and finds the state that
// the operation has been left in.
func (w *Walk) repair(o *op) {
	w.tb.Helper()
	if o.inside != "" {
		w.awaitGone(o.inside)
	}
	for range 3 {
		if !w.chance(0.25) {
			break
		}
		limit := time.Duration(w.timing.Float64() * 1.2 * float64(w.took["up"]))
		r := w.run([]string{"up"}, "", limit)
		w.Counts.Repairs++
		if !r.killed {
			w.logf("  ebnet up: %d", r.code)
			break
		}
		w.Counts.Kills++
		w.logf("  ebnet up: killed after %v", r.took.Round(100*time.Microsecond))
	}
	r := w.run([]string{"up"}, "", 0)
	w.Counts.Repairs++
	w.logf("  ebnet up: %d in %v", r.code, r.took.Round(time.Millisecond))
	if r.code != done {
		w.fail("ebnet up after %s was killed: exit status %d\n%s%s", o.commandLine(), r.code, r.stdout, r.stderr)
	}
	seen := w.observe()
	var wrong []string
	for i, candidate := range o.trail {
		candidate.up()
		m, err := candidate.match(seen, w.lab)
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("after %d of %d steps: %v", i, len(o.trail)-1, err))
			continue
		}
		switch i {
		case 0:
			w.Counts.Undone++
		case len(o.trail) - 1:
			w.Counts.Completed++
		default:
			w.Counts.Between++
		}
		w.logf("  it is as after %d of %d steps", i, len(o.trail)-1)
		w.model = m
		w.checkKernel(seen)
		return
	}
	w.fail("%s was killed, and ebnet up left none of the states it passes through:\n%s", o.commandLine(), strings.Join(wrong, "\n"))
}

// look compares the nouns with the model, and learns what ebnet has chosen.
func (w *Walk) look() observed {
	w.tb.Helper()
	seen := w.observe()
	m, err := w.model.match(seen, w.lab)
	if err != nil {
		w.fail("what ebnet shows is not what was asked for: %v", err)
	}
	w.model = m
	return seen
}

// Check compares everything with the model.
func (w *Walk) Check() {
	w.tb.Helper()
	w.checkKernel(w.look())
}

// Finish takes everything away that the walk has made and checks that nothing is left.
func (w *Walk) Finish() {
	w.tb.Helper()
	w.o.Kills = 0
	w.Up()
	w.Check()
	for _, name := range w.endpoints() {
		w.perform(command(w.model, "disconnect", func(m *Model) int { return m.disconnect(name) }, "disconnect", name))
	}
	for _, name := range w.networks() {
		w.perform(command(w.model, "network rm", func(m *Model) int { return m.removeNetwork(name, false) }, "network", "rm", name))
	}
	w.Check()
	w.Up()
	w.Check()
}

// enter makes a namespace.
func (w *Walk) enter(name string) {
	w.tb.Helper()
	if c := w.nodes[name]; c == nil {
		w.nodes[name] = w.lab.Container(w.tb, name)
	} else {
		c.Appear(w.tb)
	}
	if w.o.Entered != nil {
		w.o.Entered(w.nodes[name])
	}
}

// leave deletes a namespace and waits until the links into it are gone, which the kernel
// takes its time for.
func (w *Walk) leave(name string) {
	w.tb.Helper()
	if w.o.Leaving != nil {
		w.o.Leaving(w.nodes[name])
	}
	w.nodes[name].Vanish(w.tb)
	for _, e := range w.model.Endpoints {
		if e.Space == name && w.model.linked(e) {
			w.awaitGone(e.Name)
		}
	}
}

// awaitGone waits until ebnet finds an endpoint's link gone, if there is the endpoint.
func (w *Walk) awaitGone(endpoint string) {
	w.tb.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		e, ok := w.lab.Host.Endpoints(w.tb)[endpoint]
		if !ok || e.State == "gone" {
			return
		}
		if time.Now().After(end) {
			w.fail("the link of endpoint %s does not go with its namespace", endpoint)
		}
	}
}

// Kinds are the kinds of operations that were tried, sorted.
func Kinds(c Counts) []string { return sortedKeys(c.Operations) }

// Outcomes are those that a kind of operation had, sorted.
func Outcomes(c Counts, kind string) []string { return sortedKeys(c.Operations[kind]) }
