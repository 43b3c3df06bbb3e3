package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ebnet/ebnet/loader"
)

const flowsNote = "TCP segments without data of all conversations in random order, container to outside, to a thousand conversations with each server. " +
	"Each conversation was established by a handshake, and the peer's own count of them is checked before each sample. " +
	"lookup is the limit (redirect) with one lookup of the packet's tuple in a table of the same shape, lookup-write counts the packet there."

// maxFlows is the largest size of the curve.
const maxFlows = 1000000

// flowsCurve: the tables grow past every cache. All peers send the same segments.
func flowsCurve(p *pps, most int) curve {
	if most == 0 || most > maxFlows {
		most = maxFlows
	}
	sent := &segments{}
	lookups := &lookups{most: tableFlows(most)}
	at := func(peer string, build func(context.Context, *lab, string) (*stage, error),
		grow func(context.Context, *flowsPeer, int) error, count func(*stage) (int, error),
	) *flowsPeer {
		return &flowsPeer{pps: p, name: "scale/flows", peer: peer, segments: sent, build: build, grow: grow, count: count}
	}
	maxFlowsOf := strconv.Itoa(tableFlows(most))
	return curve{
		name: "scale/flows", sizes: []int{1, 1000, 10000, 100000, maxFlows},
		peers: []scalePeer{
			{peer: "veth", climber: at("veth", buildPair, nil, nil), beyond: beyondMemory},
			{peer: "redirect", climber: at("redirect", buildRedirect, nil, nil), beyond: beyondMemory},
			{peer: lookupPeer, climber: at(lookupPeer, lookups.build, lookups.grow, nil), beyond: beyondMemory, pace: 2 * time.Microsecond},
			{peer: lookupWritePeer, climber: at(lookupWritePeer, lookups.build, lookups.grow, nil), beyond: beyondMemory, pace: 2 * time.Microsecond},
			{
				peer: "nftables", needs: []string{"nft"}, beyond: beyondConntrack,
				climber: at("nftables", buildNftables, establishMore, countConntrack), pace: 15 * time.Microsecond,
			},
			{
				peer: "iptables", needs: []string{"iptables", "iptables-restore"}, beyond: beyondConntrack,
				climber: at("iptables", buildIptables, establishMore, countConntrack), pace: 15 * time.Microsecond,
			},
			{
				peer: "ebnet", beyond: beyondMemory,
				climber: at("ebnet", buildEmptyEbnet("--max-flows", maxFlowsOf), establishMore, p.lab.countConfirmed), pace: 10 * time.Microsecond,
			},
		},
	}
}

// tableFlows is for how many conversations a table must be made that n conversations of one
// container shall fit into: ebnet gives one container half of it.
func tableFlows(n int) int { return 2*n + n/5 + 1000 }

// beyondMemory tells why the machine has no room for a size. ebnet and the two lookups take
// about 1.2 KB a conversation, their tables and the segments as much again.
func beyondMemory(size int) string {
	const each = 3 << 10
	kb, _, _ := strings.Cut(procFile("/proc/meminfo")["MemAvailable"], " ")
	available, err := strconv.Atoi(kb)
	if need := size * each >> 10; err == nil && available < need {
		return fmt.Sprintf("needs %d MB of memory, %d MB are available", need>>10, available>>10)
	}
	return ""
}

// beyondConntrack tells why the kernel cannot track so many: what limits it counts for all
// namespaces alike, and is the machine's to set.
func beyondConntrack(size int) string {
	b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_max")
	if err != nil {
		return "" // not loaded yet
	}
	most, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err == nil && most > 0 && size > most*9/10 {
		return fmt.Sprintf("net.netfilter.nf_conntrack_max of this machine is %d", most)
	}
	return ""
}

// countConntrack is how many conversations the kernel tracks on a host.
func countConntrack(s *stage) (n int, err error) {
	err = s.host.do(func() error {
		b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
		if err == nil {
			n, err = strconv.Atoi(strings.TrimSpace(string(b)))
		}
		return err
	})
	return n, err
}

// countConfirmed is how many confirmed conversations an ebnet holds.
func (l *lab) countConfirmed(s *stage) (n int, err error) {
	d, err := loader.Open(filepath.Join(l.bpffs(), s.peer))
	if err != nil {
		return 0, err
	}
	shares, err := d.Shares()
	for _, share := range shares {
		n += share.Held
	}
	return n, errors.Join(err, d.Close())
}

// segments are those that are sent at a size, made once for all peers.
type segments struct {
	size int
	all  []byte
}

func (s *segments) of(size int) []byte {
	if s.size != size {
		s.all, s.size = nil, size // the old ones go first
		s.all = shuffled(size)
	}
	return s.all
}

// flowsPeer is a peer of the curve.
type flowsPeer struct {
	*pps
	name, peer string
	segments   *segments
	build      func(ctx context.Context, l *lab, peer string) (*stage, error)
	// grow brings the peer from f.size conversations to more, count tells how many it has; for
	// those that know of any.
	grow  func(ctx context.Context, f *flowsPeer, to int) error
	count func(s *stage) (int, error)

	stage  *stage
	size   int
	sender *segmentSender
}

func (f *flowsPeer) climb(ctx context.Context, size int) (err error) {
	if f.stage == nil {
		if f.stage, err = f.lab.scaleStage(ctx, f.name, f.peer, f.build); err != nil {
			return err
		}
		if f.sender, err = f.stage.segmentSender(); err != nil {
			return err
		}
		f.lab.closers = append(f.lab.closers, f.sender)
	}
	if f.grow != nil {
		if err := f.grow(ctx, f, size); err != nil {
			return err
		}
	}
	f.size = size
	return nil
}

// segmentSender makes the sender of a stage's container, after it has exchanged a datagram with
// outside: the neighbour tables are filled then.
func (s *stage) segmentSender() (*segmentSender, error) {
	c, err := converse(s.way("out"))
	if err != nil {
		return nil, err
	}
	err = c.exchange()
	if closing := c.Close(); err == nil {
		err = closing
	}
	if err != nil {
		return nil, err
	}
	hop, err := s.c1.nextHop(outsideAddr)
	if err != nil {
		return nil, err
	}
	return newSegmentSender(s.c1, hop)
}

func (f *flowsPeer) run(ctx context.Context) (s sample, err error) {
	if f.count != nil {
		n, err := f.count(f.stage)
		if err != nil {
			return s, err
		}
		if n < f.size {
			return s, fmt.Errorf("%d of %d conversations are left", n, f.size)
		}
	}
	all := f.segments.of(f.size)
	sink, err := f.lab.far.sink(f.stage.outside, servicePort)
	if err != nil {
		return s, err
	}
	d := time.Duration(f.seconds * float64(time.Second))
	sent, err := f.lab.floodBy(ctx, func() (int, error) { return f.sender.send(all) }, f.lab.far.count, d)
	if closing := sink.Close(); err == nil {
		err = closing
	}
	if err != nil {
		return s, err
	}
	if sent.arrived < sent.sent/2 {
		return s, fmt.Errorf("%d of %d segments arrived", sent.arrived, sent.sent)
	}
	return f.sample(f.name, f.peer, sent, nil)
}

// establishMore is the grow of who tracks conversations.
func establishMore(ctx context.Context, f *flowsPeer, to int) error {
	return f.lab.establish(ctx, f.stage, f.sender, f.count, f.size, to)
}

// A handshake of many conversations at once goes in parts, since those that are not confirmed yet
// have a small table.
const (
	handshakes     = 4096
	handshakeTries = 5
	handshakeWait  = 500 * time.Millisecond
)

// establish lets a stage's container establish the conversations from one number to another, on
// the lab's CPU, and sees that the host counts them.
func (l *lab) establish(ctx context.Context, s *stage, by *segmentSender, count func(*stage) (int, error), from, to int) error {
	far, err := l.far.reflect(s.outside, servicePort)
	if err != nil {
		return err
	}
	near, err := l.far.absorb(s.c1, servicePort)
	if err != nil {
		return errors.Join(err, far.Close())
	}
	err = onCPU(l.cpu, func() error {
		for part := range slices.Chunk(numbers(from, to), handshakes) {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := l.shakeHands(by, part); err != nil {
				return err
			}
		}
		return l.confirm(ctx, s, by, count, from, to)
	})
	return errors.Join(err, far.Close(), near.Close())
}

// numbers are those from one to before another.
func numbers(from, to int) []int {
	all := make([]int, to-from)
	for i := range all {
		all[i] = from + i
	}
	return all
}

// shakeHands sends SYNs until all are answered, then an ACK for each.
func (l *lab) shakeHands(by *segmentSender, conversations []int) error {
	segments := make([]byte, len(conversations)*segmentSize)
	fill := func(flags byte) {
		for at, i := range conversations {
			putSegment(segments[at*segmentSize:], i, flags)
		}
	}
	fill(flagSYN)
	if err := deliverAll(by, segments, l.far.absorbed); err != nil {
		return fmt.Errorf("SYN-ACKs: %w", err)
	}
	fill(flagACK)
	if err := deliverAll(by, segments, l.far.count); err != nil {
		return fmt.Errorf("ACKs: %w", err)
	}
	return nil
}

// deliverAll sends segments until as many are counted, all of them again if some are lost.
func deliverAll(by *segmentSender, all []byte, count func() (uint64, error)) error {
	want := uint64(len(all) / segmentSize)
	before, err := count()
	if err != nil {
		return err
	}
	var counted uint64
	for range handshakeTries {
		if err := by.sendOnce(all); err != nil {
			return err
		}
		for end := time.Now().Add(handshakeWait); time.Now().Before(end); time.Sleep(time.Millisecond) {
			after, err := count()
			if err != nil {
				return err
			}
			if counted = after - before; counted >= want {
				return nil
			}
		}
	}
	return fmt.Errorf("%d of %d arrive", counted, want)
}

// confirm sees that the host counts the conversations. One that could not be confirmed for want
// of memory at that moment is with its next segment.
func (l *lab) confirm(ctx context.Context, s *stage, by *segmentSender, count func(*stage) (int, error), from, to int) error {
	n := 0
	for range handshakeTries {
		var err error
		if n, err = count(s); err != nil || n >= to {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		acks := make([]byte, (to-from)*segmentSize)
		for i := from; i < to; i++ {
			putSegment(acks[(i-from)*segmentSize:], i, flagACK)
		}
		if err := by.sendOnce(acks); err != nil {
			return err
		}
	}
	return fmt.Errorf("%d of %d conversations are established", n, to)
}
