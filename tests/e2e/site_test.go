package e2e

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/ebnet/ebnet/tests/netlab"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == socketsArg {
		socketsMain(os.Args[2:])
		return
	}
	os.Exit(netlab.Main(m))
}

const (
	works   = 20 * time.Second       // what is to work may take this long
	blocked = 600 * time.Millisecond // what is not to work is given this long

	internetPort  = 7000 // of the service on the internet
	containerPort = 80   // of the services in containers
)

var protocols = []string{"tcp", "udp"}

// modes are the two ways a packet may take.
var modes = []string{"--fast-path=on", "--fast-path=off"}

// site is a lab with ebnet up and two containers of the default network, a
// service in each and one on the internet.
type site struct {
	*netlab.Lab
	w1, w2             *netlab.Container
	internet, at1, at2 *netlab.Service
}

// eachMode runs f as a subtest on a site of its own for either way.
func eachMode(t *testing.T, f func(t *testing.T, s *site)) {
	t.Helper()
	sites(t, func(t *testing.T, s func() *site) {
		t.Parallel() // most of a test is waiting
		f(t, s())
	})
}

// eachModeAlone is for tests that load all CPUs.
func eachModeAlone(t *testing.T, f func(t *testing.T, s *site)) {
	t.Helper()
	sites(t, func(t *testing.T, s func() *site) { f(t, s()) })
}

func sites(t *testing.T, f func(t *testing.T, s func() *site)) {
	t.Helper()
	for _, mode := range modes {
		t.Run(mode[2:], func(t *testing.T) {
			f(t, func() *site { return newSite(t, netlab.New(t), mode) })
		})
	}
}

func newSite(t *testing.T, l *netlab.Lab, mode string) *site {
	t.Helper()
	s := &site{Lab: l}
	upWith(t, l, mode)
	w := l.Containers(t, "w1", "w2")
	s.w1, s.w2 = w[0], w[1]
	s.w1.Connect(t, "default")
	s.w2.Connect(t, "default")
	s.internet = l.Internet.Serve(t, internetPort)
	s.at1 = s.w1.Serve(t, containerPort)
	s.at2 = s.w2.Serve(t, containerPort)
	return s
}

// upWith runs ebnet up and checks that packets go the way the mode says.
func upWith(t *testing.T, l *netlab.Lab, mode string) {
	t.Helper()
	l.Host.Up(t, mode)
	if fast := l.Host.Status(t).Features.FastPath; fast != (mode == "--fast-path=on") {
		t.Fatalf("after up %s the fast path is on: %v", mode, fast)
	}
}

func at(addr netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(addr, port) }

// reaches checks that from gets an answer of the service at to, which must see
// it come from the address seen.
func reaches(t *testing.T, from *netlab.Node, protocol string, to netip.AddrPort, seen netip.Addr) {
	t.Helper()
	peer, err := from.Who(protocol, to, works)
	if err != nil {
		t.Errorf("%s from %s to %v: %v", protocol, from.Name, to, err)
	} else if peer.Addr() != seen {
		t.Errorf("%s from %s to %v is seen to come from %v, want %v", protocol, from.Name, to, peer, seen)
	}
}

// isBlocked checks that from gets no answer at to, and that nothing of it
// reaches the service.
func isBlocked(t *testing.T, from *netlab.Node, protocol string, to netip.AddrPort, service *netlab.Service) {
	t.Helper()
	before := service.Hits()
	if peer, err := from.Who(protocol, to, blocked); err == nil {
		t.Errorf("%s from %s to %v works (seen as %v), want it blocked", protocol, from.Name, to, peer)
	}
	if n := service.Hits() - before; n != 0 {
		t.Errorf("%s from %s to %v: %d hits at the service, want none", protocol, from.Name, to, n)
	}
}

func pings(t *testing.T, from *netlab.Node, to netip.Addr) {
	t.Helper()
	for _, size := range []int{56, 1400} {
		if err := from.Ping(t, to, 3, size); err != nil {
			t.Errorf("ping from %s to %v: %v", from.Name, to, err)
		}
	}
}

func pingIsBlocked(t *testing.T, from *netlab.Node, to netip.Addr) {
	t.Helper()
	if err := from.Ping(t, to, 1, 56); err == nil {
		t.Errorf("ping from %s to %v works, want it blocked", from.Name, to)
	}
}

// core is a short round through everything that carries packets: the set that
// must hold under any circumstances of the host.
func core(t *testing.T, s *site) {
	t.Helper()
	t.Run("outbound", func(t *testing.T) {
		for _, p := range protocols {
			reaches(t, s.w1.Node, p, at(netlab.InternetAddr, internetPort), netlab.HostAddr)
		}
		pings(t, s.w1.Node, netlab.InternetAddr)
		bulk(t, s.w1.Node, at(netlab.InternetAddr, internetPort), 4<<20)
	})
	t.Run("published", func(t *testing.T) {
		s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8080:80/tcp", "8080:80/udp")
		for _, p := range protocols {
			reaches(t, s.Internet, p, at(netlab.HostAddr, 8080), netlab.InternetAddr)
		}
		bulk(t, s.Internet, at(netlab.HostAddr, 8080), 4<<20)
		s.Host.Ebnet(t, "unexpose", s.w1.Endpoint)
		for _, p := range protocols {
			isBlocked(t, s.Internet, p, at(netlab.HostAddr, 8080), s.at1)
		}
	})
	t.Run("neighbours", func(t *testing.T) {
		for _, p := range protocols {
			reaches(t, s.w1.Node, p, at(s.w2.Addr, containerPort), s.w1.Addr)
		}
		pings(t, s.w2.Node, s.w1.Addr)
		bulk(t, s.w2.Node, at(s.w1.Addr, containerPort), 4<<20)
	})
	t.Run("host", func(t *testing.T) { hostAccess(t, s) })
	t.Run("other network", func(t *testing.T) {
		s.Host.Ebnet(t, "network", "create", "corenet")
		c := s.Container(t, "corenet1")
		c.Connect(t, "corenet")
		service := c.Serve(t, containerPort)
		reaches(t, c.Node, "tcp", at(netlab.InternetAddr, internetPort), netlab.HostAddr)
		for _, p := range protocols {
			isBlocked(t, s.w1.Node, p, at(c.Addr, containerPort), service)
		}
		s.Host.Ebnet(t, "disconnect", c.Endpoint)
		s.Host.Ebnet(t, "network", "rm", "corenet")
	})
}

// bulk sends size bytes either way and compares them.
func bulk(t *testing.T, from *netlab.Node, to netip.AddrPort, size int64) {
	t.Helper()
	if err := from.Download(to, size); err != nil {
		t.Errorf("%d bytes from %v to %s: %v", size, to, from.Name, err)
	}
	if err := from.Upload(to, size); err != nil {
		t.Errorf("%d bytes from %s to %v: %v", size, from.Name, to, err)
	}
}
