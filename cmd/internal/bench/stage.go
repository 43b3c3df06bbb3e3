package bench

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
)

// The addresses on every stage, as in documentation (RFC 5737) and as networks of containers
// usually have them.
var (
	outsideAddr = netip.MustParseAddr("198.51.100.1")
	hostAddr    = netip.MustParseAddr("198.51.100.2") // what masquerade translates to
	subnet      = netip.MustParsePrefix("10.77.0.0/16")
	gatewayAddr = netip.MustParseAddr("10.77.0.1")
	c1Addr      = netip.MustParseAddr("10.77.0.2")
	c2Addr      = netip.MustParseAddr("10.77.0.3")
)

// The devices on every stage, and the bridge of those that ebnet does not make.
const (
	outsideLink   = "srv0"
	uplinkLink    = "up0"
	containerLink = "eth0"
	bridgeLink    = "br0"
)

// publishedPort of the host leads to servicePort of the first container.
const (
	publishedPort = 8000
	servicePort   = 7000
)

// stage is one peer, built: an outside, a host and two containers, all with the same
// addresses.
//
//	outside 198.51.100.1 ── srv0 ══ up0 ── host 198.51.100.2
//	                                         ├─ c1 10.77.0.2
//	                                         └─ c2 10.77.0.3
type stage struct {
	peer            string
	outside, c1, c2 end
	host            *node          // nil: the ends are linked directly
	seenAs          netip.Addr     // c1, by those outside
	published       netip.AddrPort // where those outside reach servicePort of c1
	note            string         // what is to be known about how it was built
	strangers       bool           // are outside, see meetStrangers
}

// end is a place where packets come from or go to.
type end struct {
	*node
	device string
	addr   netip.Addr
}

// builder makes the stage of a peer.
type builder struct {
	peer  string
	needs []string // commands without which it cannot be built
	build func(ctx context.Context, l *lab, peer string) (*stage, error)
}

// builders are the peers in the order in which they run within a round. The pair comes first,
// since what the others cost is told from what it costs.
var builders = []builder{
	{"veth", nil, buildPair},
	{"redirect", nil, buildRedirect},
	{"route", nil, buildRoute},
	{"nftables", []string{"nft"}, buildNftables},
	{"iptables", []string{"iptables", "iptables-restore"}, buildIptables},
	{"ebnet", nil, buildEbnet},
	{"ebnet-slow", nil, buildEbnet},
	{"docker", engineTools, buildDocker},
}

// stage returns the stage of a peer and builds it if need be; one that failed is not tried again.
// What a failed attempt has made is gone again.
func (l *lab) stage(ctx context.Context, b builder) (*stage, error) {
	if s := l.stages[b.peer]; s != nil {
		return s, nil
	}
	if err := l.unbuilt[b.peer]; err != nil {
		return nil, err
	}
	s, err := l.build(ctx, b)
	if err != nil {
		l.unbuilt[b.peer] = err
		return nil, err
	}
	s.peer = b.peer
	l.stages[b.peer] = s
	return s, nil
}

func (l *lab) build(ctx context.Context, b builder) (*stage, error) {
	for _, tool := range b.needs {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("%s is not installed", tool)
		}
	}
	before := len(l.nodes)
	s, err := b.build(ctx, l, b.peer)
	if err != nil {
		_ = l.drop(before) // the first failure tells more
		return nil, err
	}
	return s, nil
}

// buildPair makes two namespaces with one pair of devices between them: what it takes to send
// and receive at all. The second one is both outside and the second container.
func buildPair(ctx context.Context, l *lab, peer string) (*stage, error) {
	s := &stage{seenAs: c1Addr, published: netip.AddrPortFrom(c1Addr, servicePort)}
	near, err := l.node(ctx, peer+"-c1")
	if err != nil {
		return nil, err
	}
	far, err := l.node(ctx, peer+"-out")
	if err != nil {
		return nil, err
	}
	s.c1 = end{near, containerLink, c1Addr}
	s.outside, s.c2 = end{far, outsideLink, outsideAddr}, end{far, outsideLink, c2Addr}
	return s, firstError(
		func() error {
			return near.ip(ctx, "link add eth0 type veth peer name srv0 netns "+far.name,
				"address add "+c1Addr.String()+"/16 dev eth0", "link set eth0 up", "route add default dev eth0")
		},
		func() error {
			return far.ip(ctx, "address add "+outsideAddr.String()+"/24 dev srv0",
				"address add "+c2Addr.String()+"/16 dev srv0", "link set srv0 up")
		},
	)
}

// hosted makes a stage with a host and its uplink, and containers that are not connected yet.
func (l *lab) hosted(ctx context.Context, peer string) (_ *stage, err error) {
	s := &stage{c1: end{nil, containerLink, c1Addr}, c2: end{nil, containerLink, c2Addr}}
	if s.outside, s.host, err = l.uplinked(ctx, peer); err != nil {
		return nil, err
	}
	if s.c1.node, err = l.node(ctx, peer+"-c1"); err != nil {
		return nil, err
	}
	s.c2.node, err = l.node(ctx, peer+"-c2")
	return s, err
}

// uplinked makes an outside and a host with its uplink.
func (l *lab) uplinked(ctx context.Context, peer string) (outside end, host *node, err error) {
	out, err := l.node(ctx, peer+"-out")
	if err != nil {
		return end{}, nil, err
	}
	if host, err = l.node(ctx, peer+"-host"); err != nil {
		return end{}, nil, err
	}
	return end{out, outsideLink, outsideAddr}, host, firstError(
		func() error {
			return out.ip(ctx, "link add srv0 type veth peer name up0 netns "+host.name,
				"address add "+outsideAddr.String()+"/24 dev srv0", "link set srv0 up")
		},
		func() error {
			return host.ip(ctx, "address add "+hostAddr.String()+"/24 dev up0", "link set up0 up",
				"route add default via "+outsideAddr.String())
		},
	)
}

// bridged makes a stage whose host has a bridge with both containers, and routes. translated
// tells whether it will hide them: if not, those outside know the way to them.
func (l *lab) bridged(ctx context.Context, peer string, translated bool) (*stage, error) {
	s, err := l.hosted(ctx, peer)
	if err != nil {
		return nil, err
	}
	s.seenAs, s.published = c1Addr, netip.AddrPortFrom(c1Addr, servicePort)
	if translated {
		s.seenAs, s.published = hostAddr, netip.AddrPortFrom(hostAddr, publishedPort)
	}
	steps := []func() error{
		// Before the bridge, with which the kernel begins to look at this.
		func() error { return s.host.setSysctl(bridgeCallsRules, "0") },
		func() error {
			return s.host.ip(ctx, "link add br0 type bridge",
				"address add "+gatewayAddr.String()+"/16 dev br0", "link set br0 up")
		},
		func() error { return s.host.setSysctl("net/ipv4/ip_forward", "1") },
	}
	for i, c := range []end{s.c1, s.c2} {
		steps = append(steps, func() error { return connectToBridge(ctx, s.host, c, i+1) })
	}
	if !translated {
		steps = append(steps, func() error {
			return s.outside.ip(ctx, "route add "+subnet.String()+" via "+hostAddr.String())
		})
	}
	return s, firstError(steps...)
}

// bridgeCallsRules is whether bridged packets pass the rules of the namespace.
const bridgeCallsRules = "net/bridge/bridge-nf-call-iptables"

// connectToBridge links a container to its host's bridge by the pair number i, as container
// engines do.
func connectToBridge(ctx context.Context, host *node, c end, i int) error {
	port := hostLink(i)
	return firstError(
		func() error {
			return c.ip(ctx, "link add "+c.device+" type veth peer name "+port+" netns "+host.name,
				"address add "+c.addr.String()+"/16 dev "+c.device, "link set "+c.device+" up")
		},
		func() error { return host.ip(ctx, "link set "+port+" master br0", "link set "+port+" up") },
		func() error { return c.ip(ctx, "route add default via "+gatewayAddr.String()) },
	)
}

// hostLink is the host's side of the pair of a container.
func hostLink(i int) string { return fmt.Sprintf("veth%d", i) }

// buildRoute makes the host a router without rules: nothing in it asks for connection
// tracking, so the kernel does none.
func buildRoute(ctx context.Context, l *lab, peer string) (*stage, error) {
	return l.bridged(ctx, peer, false)
}

// buildEbnet lets ebnet make the networks, as its users do.
func buildEbnet(ctx context.Context, l *lab, peer string) (*stage, error) {
	s, err := l.hosted(ctx, peer)
	if err != nil {
		return nil, err
	}
	s.seenAs, s.published = hostAddr, netip.AddrPortFrom(hostAddr, publishedPort)
	run := func(args ...string) func() error {
		return func() error { return s.host.run(ctx, l.command(peer, args...)...) }
	}
	fastPath := "on"
	if peer == "ebnet-slow" {
		fastPath = "off"
	}
	return s, firstError(
		run("up", "--uplink", uplinkLink, "--fast-path", fastPath),
		run("network", "create", "bench", "--subnet", subnet.String(), "--gateway", gatewayAddr.String()),
		run("connect", "bench", s.c1.name, "--name", "c1", "--ip", c1Addr.String(), "--ifname", containerLink),
		run("connect", "bench", s.c2.name, "--name", "c2", "--ip", c2Addr.String(), "--ifname", containerLink),
		run("expose", "c1", fmt.Sprintf("%d:%d/udp", publishedPort, servicePort), fmt.Sprintf("%d:%d/tcp", publishedPort, servicePort)),
	)
}

// command is the command line of the ebnet that is measured, with a state, pins and a cgroup
// of the stage's own.
func (l *lab) command(peer string, args ...string) []string {
	line := []string{l.ebnet, "--output", "text",
		"--state", l.dir + "/" + peer, "--bpffs", l.bpffs() + "/" + peer}
	if l.cgroup != "" {
		line = append(line, "--cgroup", l.cgroup)
	}
	return append(line, args...)
}

// firstError runs steps until one fails.
func firstError(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
