package crash

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ebnet/ebnet/tests/netlab"
)

func TestMain(m *testing.M) { os.Exit(netlab.Main(m)) }

// full sweeps through every fail-point of every verb, which takes some 40 minutes.
// Without it, each verb is killed and made to fail once at every kind of point it has.
var full = os.Getenv("EBNET_CRASH") == "full"

// stage is a host on which verbs are killed.
type stage struct {
	*netlab.Lab
	bin, tmp   string
	mount      string // a directory to mount in
	env        []string
	containers []*netlab.Container
	talk       func(t *testing.T) // checks what runs all the time; nil: nothing does
	random     *rand.Rand
	tried      map[string]bool // kinds of points, after how they were tried
	filters    bool            // only what is done for filters is of interest
}

func newStage(t *testing.T, bin string, env ...string) *stage {
	s := &stage{bin: bin, tmp: t.TempDir(), mount: t.TempDir(), env: env, tried: make(map[string]bool)}
	s.Lab = netlab.New(t) // goes before the directories
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	s.random = rand.New(rand.NewPCG(seed, 0))
	s.filters = len(env) > 0 && !full
	s.Host.Env = append(s.env, "TMPDIR="+s.tmp)
	return s
}

const bystander = "bystander"

// busy is a stage with an endpoint that no verb is about, whose conversations must go on.
func busy(t *testing.T, bin string, env ...string) *stage {
	s := newStage(t, bin, env...)
	s.Host.Up(t)
	w := s.Containers(t, bystander, "c1", "c2")
	by := w[0]
	s.containers = w
	by.Connect(t, "default", "-p", "8080:80", "-p", "5000:5001/udp")
	by.Serve(t, 80)
	s.Internet.Serve(t, 7000)
	out, err := by.DialEcho(netipZero, internet)
	if err != nil {
		t.Fatal(err)
	}
	in, err := s.Internet.DialEcho(netipZero, netip.AddrPortFrom(netlab.HostAddr, 8080))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close(); in.Close() })
	stream := s.Internet.Stream(t, netipZero, netip.AddrPortFrom(netlab.HostAddr, 5000), by.Node, 5001)
	s.talk = func(t *testing.T) {
		t.Helper()
		if err := out.Say("out"); err != nil {
			t.Fatalf("outbound connection: %v", err)
		}
		if err := in.Say("in"); err != nil {
			t.Fatalf("connection to a published port: %v", err)
		}
		stream.WaitFlowing(t)
	}
	s.talk(t)
	return s
}

// verb is one under test. prepare makes what it finds, once; reset makes it again of what
// the verb leaves.
type verb struct {
	name    string
	args    []string
	prepare func(t *testing.T, s *stage)
	reset   func(t *testing.T, s *stage)
	partial bool                         // several changes, of which some may be done
	forward bool                         // what fails is not undone but done by the next try
	tear    func(t *testing.T, s *stage) // ends what prepare has made; nil: nothing to do
	settle  func(t *testing.T, s *stage) // waits for what a killed process leaves to end; nil: nothing does

	composed  bool // much as verbs before it: its steps are tried, and the requests that those do not have
	transient bool // what fails to be removed goes with the next `ebnet up`
	wears     bool // what fails has done a part that no snapshot shows, and the next trial would miss
}

// ebnet returns a function that runs commands, given as lines.
func ebnet(lines ...string) func(t *testing.T, s *stage) {
	return func(t *testing.T, s *stage) {
		t.Helper()
		for _, line := range lines {
			s.Host.Ebnet(t, s.words(line)...)
		}
	}
}

// fill puts the namespaces of containers for $NAME, and for $TMP the temporary directory.
func (s *stage) fill(text string) string {
	for _, c := range s.containers {
		text = strings.ReplaceAll(text, "$"+c.Endpoint, c.Name)
	}
	return strings.ReplaceAll(text, "$TMP", s.tmp)
}

func (s *stage) words(line string) []string { return strings.Fields(s.fill(line)) }

func killAt(n int) string { return fmt.Sprintf("kill:%d", n) }
func failAt(n int) string { return fmt.Sprintf("fail:%d", n) }

// read returns the names in a list of points, without the numbers of devices.
func read(t *testing.T, list string) (points []string) {
	t.Helper()
	text, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		points = append(points, index.ReplaceAllString(strings.TrimSpace(line), ""))
	}
	return points
}

var (
	netipZero netip.AddrPort
	internet  = netip.AddrPortFrom(netlab.InternetAddr, 7000)
)

// with runs the verb with an order to its fail-points.
func (s *stage) with(t *testing.T, v verb, order string) netlab.Result {
	t.Helper()
	h := s.Host
	env := h.Env
	defer func() { h.Bin, h.Env = "", env }()
	h.Bin, h.Env = s.bin, append(slices.Clone(env), "EBNET_FAILPOINT="+order)
	return h.TryEbnet(t, v.args...)
}

// up repairs, and must succeed; it reports whether that changed anything.
func (s *stage) up(t *testing.T) (changed bool) {
	t.Helper()
	var r struct{ Changed bool }
	s.Host.JSON(t, &r, "up")
	return r.Changed
}

// trial is a verb at work, with what is to be seen before and after it.
type trial struct {
	*stage
	verb
	points         []string
	before, after  *snapshot
	mended, redone *snapshot // before and after, if `ebnet up` follows
}

func (s *stage) try(t *testing.T, v verb) *trial {
	t.Helper()
	tr := &trial{stage: s, verb: v}
	v.args = nil
	for _, a := range tr.verb.args {
		v.args = append(v.args, s.words(a)...)
	}
	tr.verb = v
	if v.prepare != nil {
		v.prepare(t, s)
	}
	tr.before = s.snapshot(t)
	s.Host.Up(t)
	tr.mended = s.snapshot(t)
	if !cmp.Equal(tr.mended, tr.before) {
		v.reset(t, s)
		tr.same(t, "reset after up", s.snapshot(t), tr.before)
	}
	// What the first time corrects in passing is not there the second time.
	s.Host.Ebnet(t, v.args...)
	if v.settle != nil {
		v.settle(t, s)
	}
	v.reset(t, s)
	list := filepath.Join(t.TempDir(), "points")
	if r := s.with(t, v, "list:"+list); r.Code != 0 {
		t.Fatal(r)
	}
	tr.points = read(t, list)
	if v.settle != nil {
		v.settle(t, s)
	}
	tr.after = s.snapshot(t)
	s.Host.Up(t)
	tr.redone = s.snapshot(t)
	for _, up := range []*snapshot{tr.mended, tr.redone} {
		up.consistent(t)
	}
	v.reset(t, s)
	tr.same(t, "after a reset", s.snapshot(t), tr.before)
	if t.Failed() {
		t.FailNow()
	}
	return tr
}

// pins are points that are about one of many pins.
var pins = regexp.MustCompile(`^(pin|remove pin|rename pin|update link|attach|detach) .*`)

// index is the number of a device in the name of a pin.
var index = regexp.MustCompile(`-\d+$`)

func (tr *trial) same(t *testing.T, when string, have, want *snapshot) {
	t.Helper()
	if d := cmp.Diff(want, have); d != "" {
		t.Errorf("%s (-want +have):\n%s", when, d)
	}
}

// killed kills the verb, repairs, and runs it again.
func (tr *trial) killed(t *testing.T, order string) {
	t.Helper()
	if r := tr.with(t, tr.verb, order); r.Code != -1 {
		t.Fatalf("was not killed: %v", r)
	}
	tr.repaired(t)
}

func (tr *trial) repaired(t *testing.T) {
	t.Helper()
	if tr.settle != nil {
		tr.settle(t, tr.stage)
	}
	if tr.talk != nil {
		tr.talk(t)
	}
	tr.up(t)
	now := tr.snapshot(t)
	undone, done := cmp.Equal(now, tr.mended), cmp.Equal(now, tr.redone)
	switch {
	case undone, done:
	case tr.partial && now.between(tr.mended, tr.redone):
		now.consistent(t)
	default:
		t.Errorf("the state after up is neither that before (-before +now):\n%s\nnor that after (-after +now):\n%s",
			cmp.Diff(tr.mended, now), cmp.Diff(tr.redone, now))
	}
	if tr.up(t) {
		t.Error("the second up changed something")
	}
	if tr.talk != nil {
		tr.talk(t)
	}
	r := tr.Host.TryEbnet(t, tr.args...)
	already := r.Code == 4 || r.Code == 5
	if r.Code != 0 && (undone || !already) {
		t.Errorf("the verb cannot be run again: %v", r)
	}
	if tr.settle != nil {
		tr.settle(t, tr.stage)
	}
	tr.same(t, "after the verb was run again", tr.snapshot(t), tr.after)
	tr.reset(t, tr.stage) // the next trial would see what differs
}

// failed makes the verb fail, after which the host must be as before.
func (tr *trial) failed(t *testing.T, order, point string) {
	t.Helper()
	r := tr.with(t, tr.verb, order)
	if tr.settle != nil {
		tr.settle(t, tr.stage)
	}
	if tr.talk != nil {
		tr.talk(t)
	}
	now := tr.snapshot(t)
	switch {
	case r.Code == 0 && bestEffort[point]:
		tr.up(t)
		tr.same(t, "after what may fail, and up", tr.snapshot(t), tr.redone)
	case tr.transient && !cmp.Equal(now, tr.before):
		tr.up(t)
		tr.same(t, "after up", tr.snapshot(t), tr.before)
		return
	case r.Code == 0:
		t.Errorf("it succeeds though a request failed: %v", r)
	case tr.forward:
		if again := tr.Host.TryEbnet(t, tr.args...); again.Code != 0 {
			t.Errorf("after %v: %v", r, again)
		}
		tr.same(t, "after the next try", tr.snapshot(t), tr.after)
	case tr.partial && now.between(tr.before, tr.after):
		now.consistent(t)
	default:
		if !strings.Contains(r.Stderr, "fail-point") || strings.Contains(r.Stderr, "undone") {
			t.Errorf("it says %q", r.Stderr)
		}
		tr.same(t, "after the failure", now, tr.before)
		if !t.Failed() {
			if tr.wears {
				tr.reset(t, tr.stage)
			}
			return
		}
	}
	if r.Code != 0 && !tr.forward {
		if again := tr.Host.TryEbnet(t, tr.args...); again.Code != 0 {
			t.Errorf("after %v: %v", r, again)
		}
	}
	tr.reset(t, tr.stage)
}

// killedUndoing makes the verb fail at a point, and kills it at some point after that.
func (tr *trial) killedUndoing(t *testing.T, n int) {
	t.Helper()
	list := filepath.Join(t.TempDir(), "points")
	tr.failed(t, failAt(n+1)+",list:"+list, tr.points[n])
	if after := len(read(t, list)) - (n + 1); after > 0 {
		tr.killed(t, failAt(n+1)+","+killAt(n+2+tr.random.IntN(after)))
	}
}

// bestEffort are the points whose failure harms nothing and is no failure of the verb.
var bestEffort = map[string]bool{
	"sign lock":                   true,
	"remove lock":                 true,
	"remove directory state":      true,
	"create ebnet.db.bak.new":     true, // the copy of the state, which a warning says is old then
	"write ebnet.db.bak.new":      true,
	"rename ebnet.db.bak.new":     true,
	"delete from map drop_counts": true,
}

// chosen returns the points to try: all, or one of each kind.
func (tr *trial) chosen(how string) (ns []int) {
	kinds := make(map[string][]int)
	for i, p := range tr.points {
		if full {
			ns = append(ns, i)
			continue
		}
		// One link, program or map is as good as the other here.
		kind := pins.ReplaceAllString(p, "$1")
		if tr.composed && tr.tried[how+kind] && !strings.HasPrefix(kind, "step") && kind != "commit" {
			continue
		}
		if !tr.filters || strings.Contains(kind, "filter") || strings.Contains(kind, "clsact") {
			kinds[kind] = append(kinds[kind], i)
		}
	}
	for kind, at := range kinds {
		tr.tried[how+kind] = true
		ns = append(ns, at[tr.random.IntN(len(at))])
	}
	slices.Sort(ns)
	return ns
}

// sweep tries verbs.
func (s *stage) sweep(t *testing.T, vs ...verb) {
	for _, v := range vs {
		ok := t.Run(v.name, func(t *testing.T) {
			began := time.Now()
			tr := s.try(t, v)
			ran := 0
			attempt := func(name string, fn func(t *testing.T)) {
				ran++
				if !t.Run(name, fn) {
					t.FailNow() // what follows would only tell of it again
				}
			}
			for _, n := range tr.chosen("kill ") {
				attempt(fmt.Sprintf("kill %d %s", n+1, tr.points[n]), func(t *testing.T) { tr.killed(t, killAt(n+1)) })
			}
			for _, n := range tr.chosen("fail ") {
				attempt(fmt.Sprintf("fail %d %s", n+1, tr.points[n]), func(t *testing.T) { tr.failed(t, failAt(n+1), tr.points[n]) })
			}
			undos := 2
			if full {
				undos = 20
			}
			for range undos {
				n := tr.random.IntN(len(tr.points))
				attempt(fmt.Sprintf("kill while undoing %d %s", n+1, tr.points[n]), func(t *testing.T) { tr.killedUndoing(t, n) })
			}
			t.Logf("%d points, %d trials, %v", len(tr.points), ran, time.Since(began).Round(time.Millisecond))
			if v.tear != nil {
				v.tear(t, s)
			}
		})
		if !ok {
			t.FailNow()
		}
	}
}
