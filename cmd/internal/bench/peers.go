package bench

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// loopback and plain are peers of few cases: what the machine does without any device between,
// and a host as it is without a container network.
var (
	loopback = builder{"loopback", nil, buildLoopback}
	plain    = builder{"plain", nil, buildPlain}
)

// streamPeers are the peers of the cases of TCP between containers and outside.
func streamPeers() []builder { return slices.Concat([]builder{loopback}, builders) }

// hostPeers are the peers of the cases of a host's own traffic: those that do something to it.
func hostPeers() []builder {
	peers := []builder{plain}
	for _, b := range builders {
		if !slices.Contains([]string{"veth", "redirect", "route"}, b.peer) {
			peers = append(peers, b)
		}
	}
	return peers
}

// buildLoopback makes one namespace, which is all ends.
func buildLoopback(ctx context.Context, l *lab, peer string) (*stage, error) {
	n, err := l.node(ctx, peer)
	if err != nil {
		return nil, err
	}
	at := func(addr netip.Addr) end { return end{n, "lo", addr} }
	s := &stage{
		seenAs: c1Addr, published: netip.AddrPortFrom(c1Addr, servicePort),
		outside: at(outsideAddr), c1: at(c1Addr), c2: at(c2Addr),
	}
	return s, n.ip(ctx, "address add "+outsideAddr.String()+"/32 dev lo",
		"address add "+c1Addr.String()+"/32 dev lo", "address add "+c2Addr.String()+"/32 dev lo")
}

// buildPlain makes a host that has an uplink and no containers.
func buildPlain(ctx context.Context, l *lab, peer string) (*stage, error) {
	s, err := l.hosted(ctx, peer)
	if err != nil {
		return nil, err
	}
	s.seenAs = hostAddr
	return s, nil
}

// strangers are addresses for measurements (RFC 2544) that those outside have beside their own:
// where a case needs other peers than before, or many.
var strangers = netip.MustParsePrefix("198.18.0.0/15")

// stranger is the i-th of them, and again the first after the last.
func stranger(i int) netip.Addr {
	const hosts = 1<<17 - 2
	i = i%hosts + 1
	return netip.AddrFrom4([4]byte{198, byte(18 + i>>16), byte(i >> 8), byte(i)})
}

// meetStrangers gives a stage's outside the addresses of strangers, if it has not got them.
func (s *stage) meetStrangers(ctx context.Context) error {
	if s.strangers {
		return nil
	}
	err := s.outside.ip(ctx, "route add local "+strangers.String()+" dev lo")
	if err == nil && s.peer == "veth" {
		// A gateway, or each of them would be asked for by ARP.
		err = s.c1.ip(ctx, "route add "+strangers.String()+" via "+outsideAddr.String()+" dev "+s.c1.device+" onlink")
	}
	s.strangers = err == nil
	return err
}

// flush lets a stage's host forget all conversations that it tracks.
func (l *lab) flush(ctx context.Context, s *stage) error {
	switch {
	case s.host == nil, s.peer == "redirect", s.peer == "route", s.peer == "plain":
		return nil // tracks nothing
	case strings.HasPrefix(s.peer, "ebnet"):
		return s.host.run(ctx, l.command(s.peer, "flows", "--flush")...)
	}
	err := s.host.do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
	if err != nil {
		return fmt.Errorf("flush what %s tracks: %w", s.host.name, err)
	}
	return nil
}

// notes are what is to be known about how the stages were built.
func (l *lab) notes() []string {
	var notes []string
	for _, peer := range Peers() {
		if s := l.stages[peer]; s != nil && s.note != "" {
			notes = append(notes, peer+": "+s.note)
		}
	}
	return notes
}
