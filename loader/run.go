package loader

import (
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Verdict is what a program says about a packet.
type Verdict int32

// The verdicts, by the kernel's numbers (TC_ACT_*).
const (
	Pass     Verdict = -1 // TC_ACT_UNSPEC: go on, to the next program or the kernel
	Drop     Verdict = 2  // TC_ACT_SHOT
	Redirect Verdict = 7  // TC_ACT_REDIRECT
)

// RunContext is where a packet is said to come from.
type RunContext struct {
	Ifindex  int // device of the hook, in the present network namespace
	Received int // device that the packet came in by, 0: the host's own
}

// skb is the part of struct __sk_buff that BPF_PROG_TEST_RUN takes.
type skb struct {
	Len, PktType, Mark, QueueMapping, Protocol uint32
	VLANPresent, VLANTCI, VLANProto, Priority  uint32
	IngressIfindex, Ifindex, TCIndex           uint32
	CB                                         [5]uint32
	Hash, TCClassid, Data, DataEnd, NAPIID     uint32
	Rest                                       [26]uint32
}

// Run runs a hook's program on one frame, as tests and benchmarks need it
// (BPF_PROG_TEST_RUN): nothing is sent, and the frame is returned as the program left
// it. frame starts with the Ethernet header.
func (d *Datapath) Run(hook Hook, frame []byte, ctx RunContext) (Verdict, []byte, error) {
	p, err := d.program(hook)
	if err != nil {
		return 0, nil, err
	}
	out := make([]byte, len(frame)+256)
	opts := &ebpf.RunOptions{Data: frame, DataOut: out, Context: ctx.skb()}
	ret, err := p.Run(opts)
	if err != nil {
		return 0, nil, fmt.Errorf("run program %s: %w", hook, err)
	}
	return Verdict(int32(ret)), opts.DataOut, nil
}

// Benchmark runs a hook's program n times, the i-th time on frame(i), and returns the mean
// time that the kernel says one run took (BPF_STATS_RUN_TIME, which costs some 40 ns a run
// itself). between, if not nil, is called after each run, whose time does not count even
// if it runs the same program.
func (d *Datapath) Benchmark(hook Hook, ctx RunContext, n int, frame func(i int) []byte, between func(i int) error) (time.Duration, error) {
	p, err := d.program(hook)
	if err != nil {
		return 0, err
	}
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return 0, fmt.Errorf("enable run time statistics: %w", permission(err))
	}
	defer func() { _ = stats.Close() }()
	read := func() (time.Duration, error) {
		s, err := p.Stats()
		if err != nil {
			return 0, fmt.Errorf("read statistics of program %s: %w", hook, err)
		}
		return s.Runtime, nil
	}
	var total time.Duration
	before, err := read()
	if err != nil {
		return 0, err
	}
	for i := range n {
		if _, _, err := d.Run(hook, frame(i), ctx); err != nil {
			return 0, err
		}
		if between == nil && i < n-1 {
			continue
		}
		after, err := read()
		if err != nil {
			return 0, err
		}
		total += after - before
		if between != nil {
			if err := between(i); err != nil {
				return 0, err
			}
		}
		if before, err = read(); err != nil {
			return 0, err
		}
	}
	return total / time.Duration(n), nil
}

func (c RunContext) skb() *skb {
	return &skb{IngressIfindex: uint32(c.Received), Ifindex: uint32(c.Ifindex)}
}

// SetClockOffset moves the programs' clock ahead of the kernel's, so that tests can let
// hours pass. Timers are not moved. The offset is gone with the next Load that changes
// anything.
func (d *Datapath) SetClockOffset(ahead time.Duration) error {
	tick, err := jiffy()
	if err != nil {
		return err
	}
	return d.put("clock_offset", uint32(0), uint64(ahead/tick))
}

// VerifiedInstructions returns how many instructions the verifier walked, by hook.
func (d *Datapath) VerifiedInstructions() (map[Hook]uint32, error) {
	all := map[Hook]uint32{}
	for _, hook := range programs {
		p, err := d.program(hook)
		if err != nil {
			return nil, err
		}
		info, err := p.Info()
		if err != nil {
			return nil, fmt.Errorf("inspect program %s: %w", hook, err)
		}
		all[hook], _ = info.VerifiedInstructions()
	}
	return all, nil
}

// Instructions returns how many instructions a hook's program has after verification.
func (d *Datapath) Instructions(hook Hook) (int, error) {
	p, err := d.program(hook)
	if err != nil {
		return 0, err
	}
	info, err := p.Info()
	if err != nil {
		return 0, fmt.Errorf("inspect program %s: %w", hook, err)
	}
	size, err := info.TranslatedSize()
	if err != nil {
		return 0, fmt.Errorf("inspect program %s: %w", hook, err)
	}
	return size / 8, nil
}

// DeleteHalf deletes single directions of embryonic conversations, those for which match
// returns true, as the kernel does when their table is full. Only tests need it. The
// Flow has the direction's own addresses and nothing else.
func (d *Datapath) DeleteHalf(match func(Flow) bool) error {
	halves, err := d.halves()
	if err != nil {
		return err
	}
	for key, h := range halves {
		f := Flow{Protocol: protocolName(key.Proto), Src: addrPort(key.Src, key.Sport), Dst: addrPort(key.Dst, key.Dport)}
		if h.confirmed || !match(f) {
			continue
		}
		if err := d.remove("flows_new", key); err != nil {
			return err
		}
	}
	return nil
}

// CheckPairs checks that both directions of every conversation are there and translate to
// each other. It is meant for tests, while no packets pass.
func (d *Datapath) CheckPairs() error {
	halves, err := d.halves()
	if err != nil {
		return err
	}
	for key, h := range halves {
		peer, ok := halves[reverse(h.flow.Xlat)]
		if !ok || reverse(peer.flow.Xlat) != key || peer.flow.Half == h.flow.Half || peer.confirmed != h.confirmed {
			return fmt.Errorf("%v>%v: the other direction is missing or not its inverse",
				addrPort(key.Src, key.Sport), addrPort(key.Dst, key.Dport))
		}
	}
	return nil
}

// ForgetAll deletes every flow, those too that keep the tuple of an unpublished port closed,
// so that a test begins anew.
func (d *Datapath) ForgetAll() error {
	halves, err := d.halves()
	if err != nil {
		return err
	}
	for key := range halves {
		if err := d.forget(key); err != nil {
			return err
		}
	}
	return d.forgetExhausted()
}
