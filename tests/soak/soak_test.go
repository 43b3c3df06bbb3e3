package soak

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/tests/netlab"
	"github.com/ebnet/ebnet/tests/walk"
)

func TestMain(m *testing.M) { os.Exit(netlab.Main(m)) }

// What is used beside the walk's own ports.
const (
	outsidePort = 53   // of the services outside
	keptPort    = 7000 // of the host, to the kept server
	streamPort  = 7001 // of the host, to the kept receiver of a stream
	rubbishName = "krubbish"
)

// whole is from which duration on a soak has the machine to itself and time to wait for
// conversations to expire.
const whole = 2 * time.Minute

// TestPrivilegedSoak runs for EBNET_SOAK, or so long that the suite can afford it.
func TestPrivilegedSoak(t *testing.T) {
	length := 20 * time.Second
	if text := os.Getenv("EBNET_SOAK"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatalf("EBNET_SOAK: %v", err)
		}
	}
	seed := rand.Uint64()
	if text := os.Getenv("EBNET_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("EBNET_SEED: %v", err)
		}
	}
	s := newSoak(t, length, seed)
	s.start()
	s.run()
	s.finish()
}

// soak is one run.
type soak struct {
	t      *testing.T
	length time.Duration
	seed   uint64

	lab     *netlab.Lab
	walk    *walk.Walk
	traffic *traffic
	kept    map[string]*netlab.Container
	streams map[string]*netlab.Stream
	pings   *pinger
	echoes  echoes
	drops   drops
	group   *group
	samples []sample
	rest    sample // before there was any traffic
	begin   time.Time
	used    time.Duration // CPU before
	told    bool
}

func newSoak(t *testing.T, length time.Duration, seed uint64) *soak {
	s := &soak{t: t, length: length, seed: seed, group: enterGroup(t), lab: netlab.New(t), drops: drops{map[dropped]uint64{}}}
	s.traffic = newTraffic(s.lab)
	t.Cleanup(s.traffic.end)
	s.walk = walk.New(t, s.lab, walk.Options{
		Seed: seed, Kills: 0.2, Stay: true,
		Entered: s.traffic.listen, Leaving: s.traffic.silence,
		Changed: func(begin, end time.Time, states []walk.Model) {
			var serving []map[walk.Target]string
			for _, m := range states {
				serving = append(serving, m.Serving(netlab.HostAddr, netlab.HostAddr2))
			}
			s.traffic.history.changed(begin, end, serving)
		},
	})
	// What is over is to be gone at the end.
	s.lab.Host.Up(t, "--timeout", "udp-unreplied=5s", "--timeout", "udp-replied=10s", "--timeout", "icmp=5s",
		"--timeout", "tcp-syn=5s", "--timeout", "tcp-closed=5s", "--timeout", "tcp-half-closed=10s")
	one := func(host, port uint16) []walk.Spec {
		var specs []walk.Spec
		for _, protocol := range []string{"tcp", "udp"} {
			specs = append(specs, walk.Spec{Protocol: protocol, HostPort: host, HostEnd: host, Port: port, End: port})
		}
		return specs
	}
	s.kept = s.walk.Keep("keep", map[string][]walk.Spec{
		"kserver": one(keptPort, 80), "kclient": nil, "kstream": one(streamPort, 81), rubbishName: nil,
	})
	s.rest = takeSample(t, s.lab.Host, s.group, time.Now())
	return s
}

// start begins the traffic.
func (s *soak) start() {
	t, inet, host := s.t, s.lab.Internet, s.lab.Host
	server, client, stream := s.kept["kserver"], s.kept["kclient"], s.kept["kstream"]
	server.Serve(t, 80)
	stream.Serve(t, 82)
	inet.Serve(t, outsidePort)
	outside := netip.AddrPortFrom(netlab.InternetAddr, outsidePort)
	published := netip.AddrPortFrom(netlab.HostAddr, keptPort)
	for _, c := range []struct {
		what string
		from *netlab.Node
		to   netip.AddrPort
	}{
		{"out", client.Node, outside},
		{"in", inet, published},
		{"to a neighbour", client.Node, netip.AddrPortFrom(stream.Addr, 82)},
		{"by a published port from inside", client.Node, published},
		{"from the host", host.Node, netip.AddrPortFrom(server.Addr, 80)},
	} {
		if err := s.traffic.keepTalking(c.what, c.from, c.to); err != nil {
			t.Fatal(err)
		}
	}
	s.streams = map[string]*netlab.Stream{
		"out":            client.Stream(t, netip.AddrPort{}, netip.AddrPortFrom(netlab.InternetAddr, 5001), inet, 5001),
		"in":             inet.Stream(t, netip.AddrPort{}, netip.AddrPortFrom(netlab.HostAddr, streamPort), stream.Node, 81),
		"to a neighbour": client.Stream(t, netip.AddrPort{}, netip.AddrPortFrom(server.Addr, 5003), server.Node, 5003),
	}
	for _, st := range s.streams {
		st.WaitFlowing(t)
	}
	s.begin, s.used = time.Now(), cpu()
	t.Cleanup(func() { // what was done until it failed
		if !s.told {
			s.tell()
		}
	})
	s.pings = startPing(t, client.Node, netlab.InternetAddr, s.length)
	for _, from := range []*netlab.Node{inet, client.Node} {
		if err := s.traffic.askUDP(from); err != nil {
			t.Fatal(err)
		}
		s.traffic.every(func() { s.traffic.askTCP(from) })
	}
	// New conversations at a steady rate: what they hold of memory is to be the same all the time.
	const steady = 25 * time.Millisecond
	s.traffic.each(steady, func() { s.traffic.fetch("a service outside", client.Node, "tcp", outside) })
	s.traffic.each(steady, func() { s.traffic.fetch("a published port", inet, "tcp", published) })
	s.traffic.each(steady, func() { s.traffic.fetch("a published port from inside", client.Node, "udp", published) })
	s.traffic.each(steady, s.sendRubbish())
	s.traffic.every(func() { s.traffic.download(client.Node, outside) })
	s.traffic.every(func() { s.traffic.download(inet, published) })
	s.traffic.govern(1)
}

// sendRubbish returns what sends frames that nobody may get: from an endpoint, and from
// outside straight to one.
func (s *soak) sendRubbish() func() {
	node, addr := s.kept[rubbishName], s.kept[rubbishName].Addr
	own, gateway := node.MAC(s.t, "eth0"), s.gatewayMAC()
	outside := netip.AddrPortFrom(netlab.InternetAddr, 9)
	frame := netlab.Frame{From: own, To: gateway, Src: netip.AddrPortFrom(addr, 9), Dst: outside, Payload: strings.Repeat("x", 64)}
	forged, moved, local := frame, frame, frame
	forged.Src = netip.AddrPortFrom(s.kept["kclient"].Addr, 9)
	moved.From = slices.Clone(own)
	moved.From[5] ^= 1
	local.Dst = netip.MustParseAddrPort("127.0.0.1:9")
	late := frame
	late.Payload = strings.Repeat("x", 400)
	frames := [][]byte{
		forged.Bytes(), moved.Bytes(), local.Bytes(), frame.Bytes()[:24], late.Fragments(77, 64)[3].Bytes(),
	}
	up, srv := s.lab.Host.MAC(s.t, netlab.UplinkLink), s.lab.Internet.MAC(s.t, netlab.InternetLink)
	direct := netlab.Frame{From: srv, To: up, Src: outside, Dst: netip.AddrPortFrom(addr, 9), Payload: "x"}
	i := 0
	return func() {
		i++
		node.ForgeBytes(s.t, "eth0", frames[i%len(frames)])
		s.lab.Internet.Forge(s.t, netlab.InternetLink, direct)
		s.traffic.rubbish.Add(2)
	}
}

// gatewayMAC is that of the kept network's bridge, which its gateway's address makes.
func (s *soak) gatewayMAC() []byte {
	gw := s.lab.Host.Network(s.t, "keep").Gateways[0].As4()
	return []byte{0x06, 0xeb, gw[0], gw[1], gw[2], gw[3]}
}

// run walks until the time is over.
func (s *soak) run() {
	look := time.Time{}
	for i := 1; time.Since(s.begin) < s.length; i++ {
		begin := time.Now()
		s.walk.Step()
		if i%50 == 0 {
			s.walk.Check()
		}
		if time.Since(look) > 2*time.Second {
			look = time.Now()
			s.drops.look(s.t, s.lab.Host)
			s.samples = append(s.samples, takeSample(s.t, s.lab.Host, s.group, s.begin))
		}
		s.mustBeUnbroken()
		time.Sleep(min(time.Since(begin), 100*time.Millisecond)) // half of the load is traffic's
	}
}

// mustBeUnbroken ends the soak at the first thing that must not happen, while the walk's
// last operations are those that it may be due to.
func (s *soak) mustBeUnbroken() {
	s.t.Helper()
	s.traffic.mu.Lock()
	broken := slices.Clone(s.traffic.broken)
	s.traffic.mu.Unlock()
	for _, b := range broken {
		s.t.Error(b)
	}
	h := s.traffic.history
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range h.wrong {
		s.t.Errorf("what was sent to %s %v came to %s, which does not publish it: %v, had been %+v", a.target.Protocol, a.target.At, a.space,
			a.received.Sub(a.sent), h.tenures[a.target])
	}
	if s.t.Failed() {
		s.t.FailNow()
	}
}

// finish ends the traffic, takes away what the walk has made, and tells.
func (s *soak) finish() {
	for _, st := range s.streams {
		st.WaitFlowing(s.t)
	}
	s.echoes = s.pings.wait(s.t)
	s.drops.look(s.t, s.lab.Host)
	s.mustBeUnbroken()
	r := s.tell()
	for _, l := range r.Memory {
		if !l.flat() {
			s.t.Errorf("memory: %s grew by %.0f from the first third to the last one, more than %.0f", l.What, l.Growth, l.Bound)
		}
	}
	for _, d := range r.Drops {
		if d.Why == "" {
			s.t.Errorf("unexplained: %d packets dropped at an %s: %s", d.Packets, d.Where, d.Reason)
		}
	}
	s.walk.Finish()
	if s.length >= whole {
		s.mustBeAtRest()
	}
}

// What is held at rest: the conversations of the streams, which end with the test, and as
// much memory as before there was any traffic.
const (
	restingFlows = 8
	restingBytes = 64 << 10 // counters of drops, pages that are filled in part
)

// mustBeAtRest waits until conversations that are over are gone, and compares what is held
// then with what was held at first.
func (s *soak) mustBeAtRest() {
	s.t.Helper()
	flows := func() int {
		for _, m := range s.lab.Host.Status(s.t).Maps {
			if m.Name == "flows" {
				return m.Used
			}
		}
		return -1
	}
	left := flows()
	for end := time.Now().Add(2 * time.Minute); left > restingFlows && time.Now().Before(end); left = flows() {
		time.Sleep(time.Second)
	}
	now := takeSample(s.t, s.lab.Host, s.group, s.begin)
	fmt.Printf("at rest: %d confirmed conversations' directions, %d bytes of maps (at first %d), %d programs (%d), %d links (%d), %d pins (%d)\n",
		left, now.Maps, s.rest.Maps, now.Programs, s.rest.Programs, now.Links, s.rest.Links, now.Pins, s.rest.Pins)
	if left > restingFlows {
		s.t.Errorf("%d entries of conversations stay that are over", left)
	}
	if now.Maps > s.rest.Maps+restingBytes || now.Programs > s.rest.Programs || now.Links > s.rest.Links || now.Pins > s.rest.Pins {
		s.t.Errorf("at rest there is %+v, was %+v before the soak", now, s.rest)
	}
}

// tell ends the traffic and prints what was done, once.
func (s *soak) tell() *report {
	took, used := time.Since(s.begin), cpu()-s.used
	s.traffic.end()
	r := s.report(took, used)
	fmt.Println(r)
	s.write(r)
	s.told = true
	return r
}

func (s *soak) write(r *report) {
	path := os.Getenv("EBNET_SOAK_REPORT")
	if path == "" {
		return
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = os.WriteFile(path, append(text, '\n'), 0o644)
	}
	if err != nil {
		s.t.Errorf("write the report: %v", err)
	}
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}
