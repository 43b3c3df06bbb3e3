package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/ebnet/ebnet/cmd/internal/bench/report"
	"github.com/ebnet/ebnet/loader"
)

// memoryCases are what conversations take.
var memoryCases = []report.Case{{
	Name: "memory/flow", Group: "memory", Title: "Memory of an established conversation",
	Unit: "bytes", Better: "lower",
	Note: "ebnet: by how much the kernel's account of the maps of conversations grows, for each. iptables: the size of an entry of connection tracking alone. " +
		"slab_bytes is by how much all small objects of the kernel that are in use grew, for each; " +
		"left, left_bytes and left_slab_bytes are what is still there when the conversations have been ended.",
}}

// memoryFlows is how many conversations are established at once.
const memoryFlows = 100000

// memory measures what conversations take, on a stage of its own.
type memory struct {
	lab   *lab
	peer  string
	n     int // conversations
	build func(ctx context.Context, l *lab, peer string) (*stage, error)
	count func(s *stage) (int, error)
	// account is what the kernel says that the conversations take, of which there are n.
	account func(s *stage, n int) (int, error)
	forget  func(ctx context.Context, s *stage) error

	stage  *stage
	sender *segmentSender
}

// planMemory plans the case.
func planMemory(_ context.Context, l *lab, o *Options) (plan, error) {
	out := plan{cases: o.wanted(memoryCases)}
	n := memoryFlows
	if o.MaxSize > 0 {
		n = min(n, o.MaxSize)
	}
	for _, c := range out.cases {
		for _, m := range memoryPeers(l, n) {
			why := missing(m.needs)
			if why == "" {
				why = m.beyond(n)
			}
			switch {
			case !o.wantsPeer(m.peer):
			case why != "":
				out.leftOut = append(out.leftOut, report.LeftOut{Peer: m.peer, Case: c.Name, Why: why})
			default:
				out.jobs = append(out.jobs, job{
					caseName: c.Name, peer: m.peer, run: m.run,
					prepare: m.prepare, preparing: 300 * time.Millisecond,
					estimate: settle + time.Duration(n)*20*time.Microsecond,
				})
			}
		}
	}
	return out, nil
}

// memoryPeer is a peer of the case.
type memoryPeer struct {
	*memory
	needs  []string // commands without which it cannot be built
	beyond func(size int) string
}

func memoryPeers(l *lab, n int) []memoryPeer {
	return []memoryPeer{
		{
			&memory{
				lab: l, peer: "iptables", n: n, build: buildIptables, count: countConntrack,
				account: conntrackMemory, forget: forgetConntrack,
			},
			[]string{"iptables", "iptables-restore"}, beyondConntrack,
		},
		{
			&memory{
				lab: l, peer: "ebnet", n: n, build: buildEmptyEbnet("--max-flows", strconv.Itoa(tableFlows(n))), count: l.countConfirmed,
				account: l.mapMemory, forget: func(ctx context.Context, s *stage) error {
					return l.ebnetOn(ctx, s, s.peer, "flows", "--flush")
				},
			},
			nil, beyondMemory,
		},
	}
}

func (m *memory) prepare(ctx context.Context) (err error) {
	if m.stage, err = m.lab.stage(ctx, builder{peer: "memory-" + m.peer, build: m.build}); err != nil {
		return err
	}
	if m.sender, err = m.stage.segmentSender(); err != nil {
		return err
	}
	m.lab.closers = append(m.lab.closers, m.sender)
	return nil
}

// settle is how long the kernel is given to take back what is not used any more.
const settle = time.Second

// footprint is what conversations take at a moment.
type footprint struct{ count, account, slab int }

func (m *memory) footprint() (f footprint, err error) {
	if f.count, err = m.count(m.stage); err != nil {
		return f, err
	}
	if f.account, err = m.account(m.stage, f.count); err != nil {
		return f, err
	}
	f.slab, err = slabMemory()
	return f, err
}

// run establishes conversations, ends them, and looks each time.
func (m *memory) run(ctx context.Context) (s sample, err error) {
	if err := m.forget(ctx, m.stage); err != nil {
		return s, err
	}
	wait(ctx, settle/2)
	empty, err := m.footprint()
	if err != nil {
		return s, err
	}
	if err := m.lab.establish(ctx, m.stage, m.sender, m.count, 0, m.n); err != nil {
		return s, err
	}
	full, err := m.footprint()
	if err != nil {
		return s, err
	}
	if err := m.forget(ctx, m.stage); err != nil {
		return s, err
	}
	wait(ctx, settle)
	left, err := m.footprint()
	if err != nil {
		return s, err
	}
	each := func(bytes int) float64 { return float64(bytes) / float64(m.n) }
	return sample{each(full.account - empty.account), map[string]float64{
		"slab_bytes": each(full.slab - empty.slab), "left": float64(left.count),
		"left_bytes": float64(left.account - empty.account), "left_slab_bytes": float64(left.slab - empty.slab),
	}}, nil
}

// wait waits, unless the run is interrupted.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// slabMemory is what the kernel's small objects take, but for caches that it can drop.
func slabMemory() (int, error) {
	kb, _, _ := strings.Cut(procFile("/proc/meminfo")["SUnreclaim"], " ")
	n, err := strconv.Atoi(kb)
	if err != nil {
		return 0, fmt.Errorf("SUnreclaim of /proc/meminfo: %w", err)
	}
	return n << 10, nil
}

// mapMemory is what the kernel accounts to the maps of an ebnet's conversations.
func (l *lab) mapMemory(s *stage, _ int) (total int, err error) {
	maps := filepath.Join(l.bpffs(), s.peer, "v"+strconv.Itoa(loader.ABI), "maps")
	for _, name := range []string{"flows", "flows_new", "sweep_queue"} {
		n, err := memlock(filepath.Join(maps, name))
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// memlock is what the kernel accounts to a pinned map.
func memlock(pin string) (int, error) {
	m, err := ebpf.LoadPinnedMap(pin, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return 0, err
	}
	info, err := m.Info()
	if err := errors.Join(err, m.Close()); err != nil {
		return 0, err
	}
	n, ok := info.Memlock()
	if !ok {
		return 0, fmt.Errorf("the kernel does not tell the memory of %s", pin)
	}
	return int(n), nil
}

// conntrackMemory is what n entries of connection tracking take, as /proc/slabinfo tells the
// size of one. Which of them are a namespace's it does not tell.
func conntrackMemory(_ *stage, n int) (int, error) {
	b, err := os.ReadFile("/proc/slabinfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		// name, active objects, objects, size of one
		if f := strings.Fields(line); len(f) > 3 && f[0] == "nf_conntrack" {
			size, err := strconv.Atoi(f[3])
			return n * size, err
		}
	}
	return 0, errors.New("/proc/slabinfo does not tell the size of an entry of connection tracking")
}

func forgetConntrack(_ context.Context, s *stage) error {
	return s.host.do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
}
