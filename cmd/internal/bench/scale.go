package bench

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/ebnet/ebnet/cmd/internal/bench/report"
)

const scaleNote = "One CPU sends and pays for the whole way; net_ns is the time for one packet less that of the pair of devices alone (veth) in the same round. "

// scaleCases are curves: the same work while something grows. The last one leaves the most
// behind, which only goes with the lab.
var scaleCases = []report.Case{
	{
		Name: "scale/ports", Title: "Published ports, and one that is used", Axis: "published ports",
		Note: scaleNote + "Small datagrams of one conversation, outside to published port.",
	},
	{
		Name: "scale/endpoints", Title: "Endpoints of a network, and one that sends", Axis: "endpoints",
		Note: scaleNote + "Small datagrams of one conversation, container to outside; inside, inside_ns and inside_net_ns are those to a neighbour.",
	},
	{
		Name: "scale/networks", Title: "Networks, and an endpoint of one that sends", Axis: "networks",
		Note: scaleNote + "Small datagrams of one conversation, container to outside; each network has an endpoint.",
	},
	{
		Name: "scale/flows", Title: "Live TCP conversations, all of them used", Axis: "conversations",
		Note: scaleNote + flowsNote,
	},
}

func init() {
	for i := range scaleCases {
		c := &scaleCases[i]
		c.Group, c.Unit, c.Better = "scale", "packets/s", "higher"
	}
}

// climber is a peer of a curve. Its stage is built by the first climb.
type climber interface {
	// climb brings it from the size before up to a size.
	climb(ctx context.Context, size int) error
	// run measures it at the size that it has been brought to.
	run(ctx context.Context) (sample, error)
}

// curve is a case of scaleCases: what is measured, by whom, at which sizes.
type curve struct {
	name  string
	sizes []int
	peers []scalePeer
}

// scalePeer is a peer of a curve.
type scalePeer struct {
	peer  string
	needs []string // commands without which it cannot be built
	climber
	// beyond tells why the peer cannot have a size; empty, or without such a function: it can.
	beyond func(size int) string
	pace   time.Duration // about what a climb by one takes
}

// planScale plans the curves. Nothing is built yet: each size is when its turn comes.
func planScale(ctx context.Context, l *lab, o *Options) (plan, error) {
	out := plan{cases: o.wanted(scaleCases)}
	for _, c := range out.cases {
		// Half the time is enough: there are many points to one curve.
		p := &pps{lab: l, seconds: o.Seconds / 2, floorOf: "veth", floor: make(map[string]float64)}
		l.closers = append(l.closers, p)
		k := curveOf(c.Name, p, o.MaxSize)
		k.plan(o, &out)
	}
	return out, nil
}

// curveOf makes the curve of a case, up to a size; 0: all of it.
func curveOf(name string, p *pps, most int) (k curve) {
	switch name {
	case "scale/ports":
		k = portsCurve(p)
	case "scale/endpoints":
		k = endpointsCurve(p)
	case "scale/networks":
		k = networksCurve(p)
	case "scale/flows":
		k = flowsCurve(p, most)
	}
	if most > 0 {
		k.sizes = slices.DeleteFunc(k.sizes, func(size int) bool { return size > most })
	}
	return k
}

// curvePeers are the peers of a curve.
func curvePeers(name string) (peers []builder) {
	for _, p := range curveOf(name, &pps{}, 0).peers {
		peers = append(peers, builder{peer: p.peer})
	}
	return peers
}

// plan adds the jobs of a curve, by size.
func (k *curve) plan(o *Options, out *plan) {
	peers := slices.DeleteFunc(k.peers, func(p scalePeer) bool {
		why := missing(p.needs)
		if why != "" && o.wantsPeer(p.peer) {
			out.leftOut = append(out.leftOut, report.LeftOut{Peer: p.peer, Case: k.name, Why: why})
		}
		return why != "" || !o.wantsPeer(p.peer)
	})
	before := 0
	for _, size := range k.sizes {
		for _, p := range peers {
			if p.beyond != nil {
				if why := p.beyond(size); why != "" {
					out.leftOut = append(out.leftOut, report.LeftOut{
						Peer: p.peer, Case: k.name, Why: fmt.Sprintf("%d: %s", size, why),
					})
					continue
				}
			}
			out.jobs = append(out.jobs, job{
				caseName: k.name, peer: p.peer, at: float64(size),
				estimate: half(o.Seconds) + warmUp + 20*time.Millisecond,
				prepare:  func(ctx context.Context) error { return p.climb(ctx, size) },
				// What does not depend on the size is to build the stage, and to establish a conversation.
				preparing: 300*time.Millisecond + time.Duration(size-before)*p.pace,
				run:       p.run,
			})
		}
		before = size
	}
}

// missing tells which of some commands is not installed.
func missing(tools []string) string {
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			return tool + " is not installed"
		}
	}
	return ""
}

// oneWay is a climber that measures a conversation by one way.
type oneWay struct {
	*pps
	name, peer string // of the case; of the peer, for the report
	way        string
	build      func(ctx context.Context, l *lab, peer string) (*stage, error)
	// grow brings the stage from one size to another, if anything has to be done for it.
	grow func(ctx context.Context, s *stage, from, to int) error

	stage        *stage
	size         int
	conversation *conversation
}

func (w *oneWay) climb(ctx context.Context, size int) (err error) {
	if w.stage == nil {
		if w.stage, err = w.lab.scaleStage(ctx, w.name, w.peer, w.build); err != nil {
			return err
		}
		if w.conversation, err = w.open(w.way); err != nil {
			return err
		}
	}
	if w.grow != nil {
		if err := w.grow(ctx, w.stage, w.size, size); err != nil {
			return err
		}
	}
	w.size = size
	return nil
}

// open begins a conversation, which is established when it is measured first.
func (w *oneWay) open(way string) (*conversation, error) {
	c, err := converse(w.stage.way(way))
	if err == nil {
		w.conversations = append(w.conversations, c)
	}
	return c, err
}

func (w *oneWay) run(ctx context.Context) (sample, error) {
	return w.pps.run(ctx, w.name, w.peer, w.conversation, false)
}

// scaleStage builds a stage of a curve's own, which nobody else measures on.
func (l *lab) scaleStage(ctx context.Context, name, peer string, build func(context.Context, *lab, string) (*stage, error)) (*stage, error) {
	return l.stage(ctx, builder{peer: scaleName(name, peer), build: build})
}

// scaleName is the name of such a stage.
func scaleName(name, peer string) string { return strings.TrimPrefix(name, "scale/") + "-" + peer }

// buildEmptyEbnet makes a host with one network and one endpoint, and no published port.
func buildEmptyEbnet(up ...string) func(ctx context.Context, l *lab, peer string) (*stage, error) {
	return func(ctx context.Context, l *lab, peer string) (*stage, error) {
		s, err := l.hosted(ctx, peer)
		if err != nil {
			return nil, err
		}
		s.seenAs = hostAddr
		return s, firstError(
			func() error { return l.ebnetOn(ctx, s, peer, append([]string{"up", "--uplink", uplinkLink}, up...)...) },
			func() error {
				return l.ebnetOn(ctx, s, peer, "network", "create", "bench", "--subnet", subnet.String(), "--gateway", gatewayAddr.String())
			},
			func() error {
				return l.ebnetOn(ctx, s, peer, "connect", "bench", s.c1.name, "--name", "c1", "--ip", c1Addr.String(), "--ifname", containerLink)
			},
		)
	}
}

// ebnetOn runs a command of ebnet on a stage's host.
func (l *lab) ebnetOn(ctx context.Context, s *stage, peer string, args ...string) error {
	return s.host.run(ctx, l.command(peer, args...)...)
}
