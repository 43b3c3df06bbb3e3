package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ebnet/ebnet/tests/netlab"
)

const (
	floodFrames = 2_000_000 // on the fast path; fewer without it
	fewerFrames = 300_000
	floodLimit  = 30 * time.Second
	manyFlows   = 200_000
	crowdSize   = 1000
	smallTable  = 8192 // conversations
)

// TestPrivilegedFlood: floods of forged sources against published ports end no
// conversation and keep no honest client out.
func TestPrivilegedFlood(t *testing.T) {
	eachModeAlone(t, func(t *testing.T, s *site) {
		frames := floodFrames
		if !s.Host.Status(t).Features.FastPath {
			frames = fewerFrames
		}
		s.Internet.SetSysctl(t, "net/ipv4/ip_forward", "0") // answers to forged sources end there
		s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8080:80/tcp", "8081:81/udp", "8082:82/udp")
		answerHello(t, s.w1.Node, 81)
		crowd := newCrowd(t, s.Internet, at(netlab.HostAddr, 8080))
		stream := s.Internet.Stream(t, netip.AddrPort{}, at(netlab.HostAddr, 8082), s.w1.Node, 82)
		stream.WaitFlowing(t)
		for _, protocol := range protocols {
			port := map[string]uint16{"tcp": 8080, "udp": 8081}[protocol]
			t.Run(protocol, func(t *testing.T) {
				flood := netlab.Flood{Protocol: protocol, Device: netlab.InternetLink,
					From: s.Internet.MAC(t, netlab.InternetLink), To: s.Host.MAC(t, netlab.UplinkLink),
					Next: fromAnybody(at(netlab.HostAddr, port)), Frames: frames, Limit: floodLimit}
				under(t, s.Internet, flood, func() {
					reaches(t, s.Internet, protocol, at(netlab.HostAddr, port), netlab.InternetAddr)
				})
				stream.WaitFlowing(t)
				crowd.check(t)
			})
		}
	})
}

// TestPrivilegedFloodOfContainer: a container that opens more conversations than there is
// room for takes none away from another, and that one opens new ones all the same. First
// they stay unanswered, then all are answered, and repeated until they count as confirmed.
func TestPrivilegedFloodOfContainer(t *testing.T) {
	eachModeAlone(t, func(t *testing.T, s *site) {
		server := at(netlab.InternetAddr, internetPort)
		crowd := newCrowd(t, s.w1.Node, server)
		stream := s.w1.Stream(t, netip.AddrPort{}, at(netlab.InternetAddr, 7100), s.Internet, 7100)
		stream.WaitFlowing(t)
		peers := netip.MustParsePrefix("198.18.0.0/24")
		flood := netlab.Flood{Protocol: "udp", Device: "eth0", From: s.w2.MAC(t, "eth0"), To: s.Host.MAC(t, "ebnet0"),
			Next: toAnybody(at(s.w2.Addr, 4000), peers), Frames: manyFlows, Limit: floodLimit}
		others := func() {
			for _, p := range protocols {
				reaches(t, s.w1.Node, p, server, netlab.HostAddr)
			}
		}
		t.Run("unanswered", func(t *testing.T) {
			s.Internet.Run(t, "ip", "route", "add", "blackhole", peers.String())
			under(t, s.w2.Node, flood, others)
		})
		t.Run("answered", func(t *testing.T) {
			stop := make(chan struct{})
			defer close(stop)
			if err := s.Internet.Reflect(netlab.InternetLink, peers, stop); err != nil {
				t.Fatal(err)
			}
			under(t, s.w2.Node, flood, others)
			for range 2 { // streams, as far as the datapath knows
				time.Sleep(time.Second)
				under(t, s.w2.Node, flood, others)
			}
		})
		others()
		stream.WaitFlowing(t)
		crowd.check(t)
	})
}

// confirmed is how many entries there are of confirmed conversations, two of each.
func confirmed(t *testing.T, s *site) int {
	t.Helper()
	for _, m := range s.Host.Status(t).Maps {
		if m.Name == "flows" {
			return m.Used
		}
	}
	t.Fatal("status shows no map flows")
	return 0
}

// TestPrivilegedShare: a container whose conversations all count as confirmed does not fill
// the table for the others: there is room for another's, and a flood does not end them.
func TestPrivilegedShare(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode[2:], func(t *testing.T) {
			l := netlab.New(t)
			l.Host.Up(t, "--max-flows", fmt.Sprint(smallTable))
			s := newSite(t, l, mode)
			peers := netip.MustParsePrefix("198.18.0.0/24")
			flood := netlab.Flood{Protocol: "udp", Device: "eth0", From: s.w2.MAC(t, "eth0"), To: s.Host.MAC(t, "ebnet0"),
				Next: toAnybody(at(s.w2.Addr, 4000), peers), Frames: 2 * smallTable, Limit: floodLimit}
			stop := make(chan struct{})
			defer close(stop)
			if err := s.Internet.Reflect(netlab.InternetLink, peers, stop); err != nil {
				t.Fatal(err)
			}
			for range 5 { // over more than two seconds: streams
				if _, err := s.w2.Flood(flood); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
			}
			if n := confirmed(t, s); n < smallTable/2 || n > smallTable+smallTable/64 {
				t.Errorf("%d entries of confirmed conversations, want %d: half of the table", n, smallTable)
			}
			crowd := newCrowd(t, s.w1.Node, at(netlab.InternetAddr, internetPort))
			flood.Frames = manyFlows
			under(t, s.w2.Node, flood, func() {
				for _, p := range protocols {
					reaches(t, s.w1.Node, p, at(netlab.InternetAddr, internetPort), netlab.HostAddr)
				}
			})
			crowd.check(t)
		})
	}
}

// fromAnybody are frames of forged unicast sources, hardly one of them twice.
func fromAnybody(to netip.AddrPort) func(int) (netip.AddrPort, netip.AddrPort) {
	return func(int) (src, dst netip.AddrPort) {
		n := rand.Uint64()
		first := 20 + byte(n>>40)%80 // far from loopback, private and the lab's own
		from := netip.AddrFrom4([4]byte{first, byte(n >> 32), byte(n >> 24), byte(n >> 16)})
		return at(from, uint16(n)|1024), to
	}
}

// toAnybody are frames to a different port or address each, the same from each beginning.
func toAnybody(from netip.AddrPort, peers netip.Prefix) func(int) (netip.AddrPort, netip.AddrPort) {
	base := peers.Addr().As4()
	return func(i int) (src, dst netip.AddrPort) {
		peer := base
		peer[3] += byte(1 + i/50_000)
		return from, at(netip.AddrFrom4(peer), uint16(1024+i%50_000))
	}
}

// under does honest again and again while a flood is running, and logs what it was.
func under(t *testing.T, from *netlab.Node, flood netlab.Flood, honest func()) {
	t.Helper()
	began := time.Now()
	sent := make(chan int, 1)
	go func() {
		n, err := from.Flood(flood)
		if err != nil {
			t.Errorf("flood from %s: %v", from.Name, err)
		}
		sent <- n
	}()
	for rounds := 1; ; rounds++ {
		honest()
		select {
		case n := <-sent:
			t.Logf("%d frames in %.1f s, %d honest rounds meanwhile", n, time.Since(began).Seconds(), rounds)
			if n == 0 {
				t.Error("no flood")
			}
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// answerHello is a UDP service like netlab's that answers no datagram but honest ones, and
// keeps no list of them.
func answerHello(t *testing.T, n *netlab.Node, port uint16) {
	t.Helper()
	pc, err := n.ListenUDP(at(netip.IPv4Unspecified(), port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	go func() {
		for buf := make([]byte, 64); ; {
			size, peer, err := pc.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if string(buf[:size]) == "hello" {
				_, _ = pc.WriteToUDPAddrPort(fmt.Appendf(nil, "%v hello", peer), peer)
			}
		}
	}()
}

// crowd are many connections, of which every other one talks all the time.
type crowd struct {
	echoes []*netlab.Echo
	broken atomic.Pointer[string] // the first that went wrong
	stop   chan struct{}
	wg     sync.WaitGroup
}

func newCrowd(t *testing.T, from *netlab.Node, to netip.AddrPort) *crowd {
	t.Helper()
	c := &crowd{stop: make(chan struct{})}
	t.Cleanup(c.close)
	for i := range crowdSize {
		e, err := from.DialEcho(netip.AddrPort{}, to)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		c.echoes = append(c.echoes, e)
		if err := e.Say("I am here"); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	c.talk()
	return c
}

// talk has half of the crowd talk until stop is closed.
func (c *crowd) talk() {
	for i := 0; i < len(c.echoes); i += 2 {
		c.wg.Go(func() {
			for round := 0; ; round++ {
				select {
				case <-c.stop:
					return
				case <-time.After(250*time.Millisecond + rand.N(250*time.Millisecond)):
				}
				if err := c.echoes[i].Say(fmt.Sprintf("connection %d, round %d", i, round)); err != nil {
					what := fmt.Sprintf("talking connection %d, round %d: %v", i, round, err)
					c.broken.CompareAndSwap(nil, &what)
					return
				}
			}
		})
	}
}

// check stops the talk, has each connection say something, and goes on.
func (c *crowd) check(t *testing.T) {
	t.Helper()
	close(c.stop)
	c.wg.Wait()
	if what := c.broken.Load(); what != nil {
		t.Error(*what)
	}
	var lost atomic.Int64
	for _, e := range c.echoes {
		c.wg.Go(func() {
			if err := e.Say("still here"); err != nil {
				lost.Add(1)
			}
		})
	}
	c.wg.Wait()
	if n := lost.Load(); n > 0 {
		t.Errorf("%d of %d established connections are lost", n, len(c.echoes))
	}
	c.stop = make(chan struct{})
	c.talk()
}

func (c *crowd) close() {
	close(c.stop)
	for _, e := range c.echoes {
		e.Close()
	}
	c.wg.Wait()
}
