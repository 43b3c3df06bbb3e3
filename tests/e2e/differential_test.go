package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ebnet/ebnet/tests/netlab"
)

// Whom the scripts talk to; none of them is the kernel's at the internet's end.
var (
	server  = netip.MustParseAddr("203.0.113.7")
	server2 = netip.MustParseAddr("203.0.113.8")
	client  = netip.MustParseAddr("203.0.113.9")
)

// TestPrivilegedDifferential sends the same packets through a host with the kernel's own
// translation, as a Docker engine sets it up, and through ebnet. What arrives anywhere
// must be the same but for translated ports, and for what is listed in decided.
func TestPrivilegedDifferential(t *testing.T) {
	var want []step
	t.Run("kernel", func(t *testing.T) {
		want = play(t, kernelScene(t, netlab.New(t)), nil)
	})
	for _, mode := range modes {
		t.Run(mode[2:], func(t *testing.T) {
			if want == nil {
				t.Fatal("there is nothing to compare with")
			}
			got := play(t, ebnetScene(t, netlab.New(t), mode), want)
			for i, w := range want {
				if w.name != got[i].name {
					t.Fatalf("step %d is %q and %q", i, w.name, got[i].name)
				}
				agree(t, w, got[i])
			}
		})
	}
	for name := range decided {
		if !slices.ContainsFunc(want, func(s step) bool { return s.name == name }) {
			t.Errorf("there is no step %q to decide about", name)
		}
	}
}

// agree compares what arrived after a step.
func agree(t *testing.T, kernel, ebnet step) {
	t.Helper()
	if d, ok := decided[kernel.name]; ok {
		t.Logf("%s: %s", kernel.name, d.why)
		if cmp.Equal(kernel.arrived, d.arrived) {
			t.Errorf("%s: the kernel does the same, nothing is to be decided", kernel.name)
		}
	}
	if diff := cmp.Diff(kernel.expected(), ebnet.arrived); diff != "" {
		t.Errorf("%s (-kernel +ebnet):\n%s", kernel.name, diff)
	}
}

// decided are the steps after which ebnet is to do something else than the kernel does.
var decided = map[string]struct {
	why     string
	arrived []string
}{
	"published: a sends from a port that is published": {
		"conversations get no port below 1024 of the host's, the kernel keeps them",
		[]string{`at outside: udp host:translated > server:53 "question" ttl 63`},
	},
	"late: of a, of a connection that nobody knows": {
		"late packets open nothing; the kernel takes them up by default (nf_conntrack_tcp_loose)",
		[]string{},
	},
	"late: of a client, likewise": {
		"as before; the host, which does not know it either, resets it",
		[]string{"at outside: tcp host:8080 > client:4009 flags 0x4 ttl 64"},
	},
	"late: an answer of a to no ping": {
		"nothing leaves with a container's address; the kernel translates no packet of no connection and lets it go",
		[]string{},
	},
}

// step is a packet that was sent, and what arrived where afterwards.
type step struct {
	name    string
	arrived []string
}

// expected is what is to arrive by ebnet where this arrived by the kernel.
func (s step) expected() []string {
	if d, ok := decided[s.name]; ok {
		return d.arrived
	}
	return s.arrived
}

// scene is a host with two containers and an internet, ready for scripts.
type scene struct {
	*testing.T
	a, b, out *end
	names     map[netip.Addr]string
	known     map[uint16]bool // ports: true if a script chose it, false if a translation did
	want      []step          // of another scene, to know what to wait for; nil: unknown
	steps     []step
	came      map[*end][]wire // after the last step
}

func newScene(t *testing.T, l *netlab.Lab, bridge string, a, b *netlab.Container) *scene {
	t.Helper()
	l.Host.Run(t, "ethtool", "-K", netlab.UplinkLink, "tx", "off") // its checksums are on the wire
	toContainers := l.Host.MAC(t, bridge)
	return &scene{
		a:   newEnd(t, a.Node, "a", "eth0", toContainers),
		b:   newEnd(t, b.Node, "b", "eth0", toContainers),
		out: newEnd(t, l.Internet, "outside", netlab.InternetLink, l.Host.MAC(t, netlab.UplinkLink)),
		names: map[netip.Addr]string{a.Addr: "a", b.Addr: "b", netlab.HostAddr: "host", netlab.HostAddr2: "host2",
			netlab.InternetAddr: "router", server: "server", server2: "server2", client: "client",
			netip.MustParseAddr("172.18.0.1"): "gateway"},
		known: map[uint16]bool{},
	}
}

func ebnetScene(t *testing.T, l *netlab.Lab, mode string) *scene {
	t.Helper()
	upWith(t, l, mode)
	w := l.Containers(t, "a", "b")
	w[0].Connect(t, "default")
	w[1].Connect(t, "default")
	l.Host.Ebnet(t, "expose", "a", "8080:80/tcp", "8081:81/udp")
	return newScene(t, l, l.Host.Network(t, "default").Bridge, w[0], w[1])
}

// kernelRules are Docker's for a bridge with one container's ports published, without
// those for the host itself.
const kernelRules = `
table ip nat {
	chain DOCKER {
		iifname "bridge0" return
		tcp dport 8080 dnat to 172.18.0.2:80
		udp dport 8081 dnat to 172.18.0.2:81
	}
	chain PREROUTING {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local jump DOCKER
	}
	chain POSTROUTING {
		type nat hook postrouting priority srcnat; policy accept;
		oifname != "bridge0" ip saddr 172.18.0.0/16 masquerade
	}
}
table ip filter {
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
		oifname "bridge0" ct state related,established accept
		iifname != "bridge0" oifname "bridge0" ip daddr 172.18.0.2 tcp dport 80 accept
		iifname != "bridge0" oifname "bridge0" ip daddr 172.18.0.2 udp dport 81 accept
		iifname "bridge0" accept
	}
}
table ip raw {
	chain PREROUTING {
		type filter hook prerouting priority raw; policy accept;
		iifname != "bridge0" ip daddr 172.18.0.0/16 drop
	}
}`

func kernelScene(t *testing.T, l *netlab.Lab) *scene {
	t.Helper()
	h := l.Host.Node
	h.Run(t, "ip", "link", "add", "bridge0", "type", "bridge")
	h.Run(t, "ip", "address", "add", "172.18.0.1/16", "dev", "bridge0")
	h.Run(t, "ip", "link", "set", "bridge0", "up")
	h.SetSysctl(t, "net/ipv4/ip_forward", "1")
	w := l.Containers(t, "a", "b")
	for i, c := range w {
		port := fmt.Sprintf("port%d", i)
		c.Addr = netip.AddrFrom4([4]byte{172, 18, 0, byte(2 + i)})
		h.Run(t, "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", c.Name)
		h.Run(t, "ip", "link", "set", port, "master", "bridge0", "up")
		c.Run(t, "ip", "address", "add", c.Addr.String()+"/16", "dev", "eth0")
		c.Run(t, "ip", "link", "set", "eth0", "up")
		c.Run(t, "ip", "route", "add", "default", "via", "172.18.0.1")
		c.Run(t, "ping", "-c", "1", "-W", "5", "172.18.0.1") // the bridge knows its port
	}
	h.Run(t, "nft", kernelRules)
	return newScene(t, l, "bridge0", w[0], w[1])
}

// play runs all scripts.
func play(t *testing.T, s *scene, want []step) []step {
	t.Helper()
	s.T, s.want = t, want
	for _, script := range []struct {
		name string
		run  func(*scene)
	}{
		{"connection", connection}, {"datagrams", datagrams}, {"echo", echoes}, {"refused", refusals},
		{"routers", routers}, {"published", published}, {"reset", reset}, {"half closed", halfClosed},
		{"hops", probes}, {"late", late}, {"neighbours", neighbours},
	} {
		first := len(s.steps)
		script.run(s)
		for i := range s.steps[first:] {
			s.steps[first+i].name = script.name + ": " + s.steps[first+i].name
		}
	}
	return s.steps
}

// send is one step. The first packet that arrived at an end is then in s.at(end).
func (s *scene) send(name string, from *end, w wire) {
	s.Helper()
	ends := []*end{s.a, s.b, s.out}
	var before []int
	for _, e := range ends {
		before = append(before, len(e.received(0)))
	}
	for _, p := range []uint16{w.src.Port(), w.dst.Port()} {
		if _, seen := s.known[p]; !seen {
			s.known[p] = true
		}
	}
	want := -1
	if s.want != nil {
		want = len(s.want[len(s.steps)].expected())
	}
	from.send(s.T, w)
	s.came = map[*end][]wire{}
	arrived := []string{}
	for i, got := range calm(ends, before, want) {
		s.came[ends[i]] = got
		for _, w := range got {
			s.learn(w)
			arrived = append(arrived, "at "+ends[i].name+": "+w.describe(s.name, s.known))
		}
	}
	slices.Sort(arrived)
	s.Logf("%s: %s", name, strings.Join(arrived, "; "))
	s.steps = append(s.steps, step{name, arrived})
}

// learn notes the ports that a packet came with.
func (s *scene) learn(w wire) {
	for _, p := range []uint16{w.src.Port(), w.dst.Port()} {
		if _, seen := s.known[p]; !seen {
			s.known[p] = false
		}
	}
}

func (s *scene) name(a netip.Addr) string {
	if n, ok := s.names[a]; ok {
		return n
	}
	return a.String()
}

// at is the packet that arrived at an end with the last step; if none did the scripts
// cannot go on.
func (s *scene) at(e *end) wire {
	s.Helper()
	if len(s.came[e]) == 0 {
		s.Fatalf("nothing arrived at %s in step %q", e.name, s.steps[len(s.steps)-1].name)
	}
	return s.came[e][0]
}

func (s *scene) addr(e *end) netip.Addr {
	for a, name := range s.names {
		if name == e.name {
			return a
		}
	}
	return netip.Addr{}
}

// udp is a datagram of a container's.
func (s *scene) udp(from *end, port uint16, to netip.AddrPort, payload string) wire {
	return wire{proto: protoUDP, ttl: 64, src: at(s.addr(from), port), dst: to, payload: payload}
}

func (s *scene) ping(from *end, id uint16, to netip.Addr) wire {
	return wire{proto: protoICMP, ttl: 64, src: at(s.addr(from), id), dst: at(to, 0), kind: echoRequest, payload: "ping"}
}

// segments is a TCP connection of which the script plays both ends. The first packet
// tells each end how it sees the other.
type segments struct {
	*scene
	name   string
	ends   [2]*end
	tuples [2][2]netip.AddrPort // by end: what it sends from and to
	seq    [2]uint32
}

// connect is the handshake: ends[0] connects from and to, where ends[1] is reached.
func (s *scene) connect(name string, client, server *end, from, to netip.AddrPort) *segments {
	s.Helper()
	c := &segments{scene: s, name: name, ends: [2]*end{client, server}, seq: [2]uint32{1000, 5000}}
	c.tuples[0] = [2]netip.AddrPort{from, to}
	c.segment(0, flagSYN, "")
	got := s.at(server)
	c.tuples[1] = [2]netip.AddrPort{got.dst, got.src}
	c.segment(1, flagSYN|flagACK, "")
	c.segment(0, flagACK, "")
	return c
}

func (c *segments) segment(side int, flags uint8, payload string) {
	c.Helper()
	w := wire{proto: protoTCP, ttl: 64, src: c.tuples[side][0], dst: c.tuples[side][1], flags: flags, seq: c.seq[side], payload: payload}
	if flags&flagACK != 0 {
		w.ack = c.seq[1-side]
	}
	c.seq[side] += uint32(len(payload))
	if flags&(flagSYN|flagFIN) != 0 {
		c.seq[side]++
	}
	c.send(fmt.Sprintf("%s, flags %#x of %s %q", c.name, flags, c.ends[side].name, payload), c.ends[side], w)
}

// close ends it in order, begun by one side.
func (c *segments) close(side int) {
	c.Helper()
	c.segment(side, flagFIN|flagACK, "")
	c.segment(1-side, flagFIN|flagACK, "")
	c.segment(side, flagACK, "")
}

// The scripts.

func connection(s *scene) {
	c := s.connect("a to the server", s.a, s.out, at(s.addr(s.a), 5000), at(server, 80))
	c.segment(0, flagACK|flagPSH, "request")
	c.segment(1, flagACK|flagPSH, "response")
	d := s.connect("b to the server from the same port", s.b, s.out, at(s.addr(s.b), 5000), at(server, 80))
	d.segment(0, flagACK|flagPSH, "request of b")
	d.segment(1, flagACK|flagPSH, "response for b")
	c.segment(1, flagACK|flagPSH, "more for a")
	c.close(0)
	d.close(1)
	// Late, but not too late.
	c.segment(1, flagACK, "")
	c.segment(0, flagACK, "")
}

func datagrams(s *scene) {
	s.send("a asks the server", s.a, s.udp(s.a, 5001, at(server, 53), "question"))
	first := s.at(s.out)
	s.send("the server answers", s.out, first.answer("answer"))
	s.send("a asks another one from the same port", s.a, s.udp(s.a, 5001, at(server2, 53), "question 2"))
	s.send("the other one answers", s.out, s.at(s.out).answer("answer 2"))
	s.send("the server goes on", s.out, first.answer("answer 3"))
	s.send("b asks the server from the same port", s.b, s.udp(s.b, 5001, at(server, 53), "question of b"))
	s.send("the server answers b", s.out, s.at(s.out).answer("answer for b"))
	stranger := first.answer("unasked")
	stranger.src = at(client, 53)
	s.send("a stranger sends to the port of a", s.out, stranger)
	unsummed := s.udp(s.a, 5002, at(server, 53), "without a checksum")
	unsummed.unsummed = true
	s.send("a sends without a checksum", s.a, unsummed)
	s.send("the server answers without one", s.out, s.at(s.out).answer("nor this"))
}

func echoes(s *scene) {
	s.send("a pings", s.a, s.ping(s.a, 77, server))
	first := s.at(s.out)
	s.send("b pings with the same identifier", s.b, s.ping(s.b, 77, server))
	second := s.at(s.out)
	s.send("b is answered", s.out, second.answer("ping"))
	s.send("a is answered", s.out, first.answer("ping"))
}

func refusals(s *scene) {
	c := &segments{scene: s, name: "a to a closed port", ends: [2]*end{s.a, s.out}, seq: [2]uint32{1000, 0}}
	c.tuples = [2][2]netip.AddrPort{{at(s.addr(s.a), 5003), at(server, 81)}, {at(server, 81), at(netlab.HostAddr, 5003)}}
	c.segment(0, flagSYN, "")
	c.segment(1, flagRST|flagACK, "")
	s.send("a sends to a closed port", s.a, s.udp(s.a, 5004, at(server, 9), "anybody there?"))
	s.send("the server says so", s.out, s.at(s.out).refusal(server, unreachable, 3, 0))
	s.send("a client sends to a closed port of a", s.out,
		wire{proto: protoUDP, ttl: 60, src: at(client, 4000), dst: at(netlab.HostAddr, 8081), payload: "hello?"})
	s.send("a says so", s.a, s.at(s.a).refusal(s.addr(s.a), unreachable, 3, 0))
	s.send("the server answered b, which is not there any more", s.b, s.udp(s.b, 5005, at(server, 53), "question"))
	s.send("the answer", s.out, s.at(s.out).answer("too late"))
	s.send("b says so", s.b, s.at(s.b).refusal(s.addr(s.b), unreachable, 3, 0))
	s.send("a client connects to a port that is not published", s.out,
		wire{proto: protoTCP, ttl: 60, src: at(client, 4001), dst: at(netlab.HostAddr, 8082), flags: flagSYN, seq: 1})
	s.send("a client sends to a port that is not published", s.out,
		wire{proto: protoUDP, ttl: 60, src: at(client, 4001), dst: at(netlab.HostAddr, 8082), payload: "x"})
}

func routers(s *scene) {
	c := s.connect("a to the server", s.a, s.out, at(s.addr(s.a), 5006), at(server, 80))
	c.segment(0, flagACK|flagPSH, "data")
	errors := func(what string, about wire) {
		s.send(what+": host unreachable", s.out, about.refusal(netlab.InternetAddr, unreachable, 1, 0))
		s.send(what+": fragmentation needed", s.out, about.refusal(netlab.InternetAddr, unreachable, 4, 1300))
		s.send(what+": time exceeded", s.out, about.refusal(netlab.InternetAddr, timeExceeded, 0, 0))
		s.send(what+": parameter problem", s.out, about.refusal(netlab.InternetAddr, badParameter, 0, 0))
	}
	errors("tcp", s.at(s.out))
	s.send("a datagram", s.a, s.udp(s.a, 5007, at(server, 53), "x"))
	sent := s.at(s.out)
	errors("udp", sent)
	s.send("a ping", s.a, s.ping(s.a, 78, server))
	errors("echo", s.at(s.out))
	other := sent
	other.src = at(sent.src.Addr(), 5999)
	s.send("about nothing", s.out, other.refusal(netlab.InternetAddr, unreachable, 1, 0))
	s.send("a client's datagram", s.out,
		wire{proto: protoUDP, ttl: 60, src: at(client, 4002), dst: at(netlab.HostAddr, 8081), payload: "x"})
	s.send("answered", s.a, s.at(s.a).answer("y"))
	errors("published udp", s.at(s.out))
}

func published(s *scene) {
	c := s.connect("a client to a", s.out, s.a, at(client, 4003), at(netlab.HostAddr, 8080))
	c.segment(0, flagACK|flagPSH, "request")
	c.segment(1, flagACK|flagPSH, "response")
	d := s.connect("the same by the other address", s.out, s.a, at(client, 4003), at(netlab.HostAddr2, 8080))
	d.segment(0, flagACK|flagPSH, "request 2")
	d.segment(1, flagACK|flagPSH, "response 2")
	c.close(0)
	d.close(1)
	for _, addr := range []netip.Addr{netlab.HostAddr, netlab.HostAddr2} {
		name := "a client by " + s.name(addr)
		s.send(name, s.out, wire{proto: protoUDP, ttl: 60, src: at(client, 4004), dst: at(addr, 8081), payload: "question"})
		s.send(name+", answered", s.a, s.at(s.a).answer("answer"))
	}
	s.send("straight to the container", s.out,
		wire{proto: protoTCP, ttl: 60, src: at(client, 4005), dst: at(s.addr(s.a), 80), flags: flagSYN, seq: 1})
	// A container is a client from the port that it serves.
	s.send("a sends from a port that is published", s.a, s.udp(s.a, 81, at(server, 53), "question"))
	s.send("and is answered", s.out, s.at(s.out).answer("answer"))
}

func reset(s *scene) {
	c := s.connect("a to the server", s.a, s.out, at(s.addr(s.a), 5008), at(server, 80))
	c.segment(0, flagRST|flagACK, "")
	c.segment(1, flagACK|flagPSH, "crossed it")
	d := s.connect("another one", s.a, s.out, at(s.addr(s.a), 5009), at(server, 80))
	d.segment(1, flagRST|flagACK, "")
	d.segment(0, flagACK|flagPSH, "crossed it")
	e := s.connect("a client", s.out, s.a, at(client, 4006), at(netlab.HostAddr, 8080))
	e.segment(1, flagRST|flagACK, "")
	f := s.connect("the client again", s.out, s.a, at(client, 4006), at(netlab.HostAddr, 8080))
	f.segment(0, flagACK|flagPSH, "request")
}

func halfClosed(s *scene) {
	c := s.connect("a to the server", s.a, s.out, at(s.addr(s.a), 5010), at(server, 80))
	c.segment(0, flagFIN|flagACK, "")
	c.segment(1, flagACK|flagPSH, "still talking")
	c.segment(0, flagACK, "")
	c.segment(1, flagFIN|flagACK, "")
	c.segment(0, flagACK, "")
}

func probes(s *scene) {
	hop := func(name string, from *end, w wire, ttl uint8) {
		w.ttl = ttl
		s.send(fmt.Sprintf("%s, ttl %d", name, ttl), from, w)
	}
	udp := s.udp(s.a, 5011, at(server, 33434), "probe")
	hop("udp of a", s.a, udp, 1)
	hop("udp of a", s.a, udp, 2)
	s.send("udp of a, the router answers", s.out, s.at(s.out).refusal(netlab.InternetAddr, timeExceeded, 0, 0))
	hop("udp of a", s.a, udp, 3)
	s.send("udp of a, the server answers", s.out, s.at(s.out).refusal(server, unreachable, 3, 0))
	hop("echo of a", s.a, s.ping(s.a, 79, server), 1)
	hop("echo of a", s.a, s.ping(s.a, 79, server), 2)
	s.send("echo of a, the router answers", s.out, s.at(s.out).refusal(netlab.InternetAddr, timeExceeded, 0, 0))
	hop("udp of a client", s.out, wire{proto: protoUDP, src: at(client, 4007), dst: at(netlab.HostAddr, 8081), payload: "probe"}, 1)
	hop("udp of a client", s.out, wire{proto: protoUDP, src: at(client, 4007), dst: at(netlab.HostAddr, 8081), payload: "probe"}, 2)
	hop("tcp of a client", s.out, wire{proto: protoTCP, src: at(client, 4008), dst: at(netlab.HostAddr, 8080), flags: flagSYN, seq: 1}, 1)
}

func late(s *scene) {
	segment := func(src, dst netip.AddrPort, flags uint8) wire {
		return wire{proto: protoTCP, ttl: 64, src: src, dst: dst, flags: flags, seq: 1, ack: 1, payload: "late"}
	}
	s.send("of a, of a connection that nobody knows", s.a, segment(at(s.addr(s.a), 5012), at(server, 80), flagACK|flagPSH))
	s.send("of a client, likewise", s.out, segment(at(client, 4009), at(netlab.HostAddr, 8080), flagACK|flagPSH))
	s.send("an answer to no ping", s.out,
		wire{proto: protoICMP, ttl: 60, src: at(server, 99), dst: at(netlab.HostAddr, 0), kind: echoReply, payload: "x"})
	answer := s.ping(s.a, 98, server)
	answer.kind = echoReply
	s.send("an answer of a to no ping", s.a, answer)
}

func neighbours(s *scene) {
	w := s.udp(s.a, 5013, at(s.addr(s.b), 53), "hello")
	defer func(to net.HardwareAddr) { s.a.to, s.b.to = to, to }(s.a.to)
	s.a.to, s.b.to = s.b.from, s.a.from
	s.send("a to b", s.a, w)
	s.send("b to a", s.b, s.at(s.b).answer("hello yourself"))
}
