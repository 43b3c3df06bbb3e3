package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/tests/netlab"
)

const farMTU = 1300 // of the link behind the router

// TestPrivilegedPath: what routers and hosts on the way say by ICMP reaches whom it is
// about, in terms that they know.
func TestPrivilegedPath(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		far := farNode(t, s)
		far.Serve(t, internetPort)
		s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8080:80/tcp", "8080:80/udp")

		t.Run("traceroute", func(t *testing.T) {
			for _, how := range []string{"-U", "-I", "-T"} { // UDP, ICMP echo, TCP
				out := s.w1.Run(t, "traceroute", "-n", "-q", "1", "-w", "2", how, farAddr.String())
				hops(t, how, out, netip.MustParseAddr("172.18.0.1"), netlab.InternetAddr, farAddr)
			}
			out := s.w1.Run(t, "mtr", "-n", "-r", "-c", "1", farAddr.String())
			hops(t, "mtr", out, netip.MustParseAddr("172.18.0.1"), netlab.InternetAddr, farAddr)
		})
		t.Run("traceroute to a published port", func(t *testing.T) {
			out := far.Run(t, "traceroute", "-n", "-q", "1", "-w", "2", "-T", "-p", "8080", netlab.HostAddr.String())
			hops(t, "-T", out, farRouter, netlab.HostAddr, netlab.HostAddr)
		})
		t.Run("smaller link on the way", func(t *testing.T) {
			bulk(t, s.w1.Node, at(farAddr, internetPort), 3_000_000)
			bulk(t, far, at(netlab.HostAddr, 8080), 3_000_000)
			tooBig(t, s.w1.Node, at(farAddr, internetPort), farMTU)
		})
		t.Run("smaller network", func(t *testing.T) {
			s.Host.Ebnet(t, "network", "create", "small", "--mtu", "1280")
			small := s.Container(t, "small")
			small.Connect(t, "small", "-p", "8081:80/tcp", "-p", "8081:80/udp")
			small.Serve(t, containerPort)
			bulk(t, s.Internet, at(netlab.HostAddr, 8081), 3_000_000)
			bulk(t, small.Node, at(netlab.InternetAddr, internetPort), 3_000_000)
			tooBig(t, s.Internet, at(netlab.HostAddr, 8081), 1280)
		})
		t.Run("refused", func(t *testing.T) {
			refused(t, s.w1.Node, at(farAddr, 9)) // outside refuses
			s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8090:90/udp")
			refused(t, far, at(netlab.HostAddr, 8090)) // the container does
		})
	})
}

var farRouter = netip.MustParseAddr("203.0.113.1")

// farNode makes the internet a router with another host behind a link that takes
// smaller packets only.
func farNode(t *testing.T, s *site) *netlab.Node {
	t.Helper()
	far := s.Container(t, "far").Node
	mtu := fmt.Sprint(farMTU)
	s.Internet.Run(t, "ip", "link", "add", "far0", "mtu", mtu, "type", "veth", "peer", "name", "eth0", "mtu", mtu, "netns", far.Name)
	s.Internet.Run(t, "ip", "address", "add", farRouter.String()+"/24", "dev", "far0")
	s.Internet.Run(t, "ip", "link", "set", "far0", "up")
	s.Internet.SetSysctl(t, "net/ipv4/ip_forward", "1")
	far.Run(t, "ip", "address", "add", farAddr.String()+"/24", "dev", "eth0")
	far.Run(t, "ip", "link", "set", "eth0", "up")
	far.Run(t, "ip", "route", "add", "default", "via", farRouter.String())
	// The far link is not what its own end thinks: only the router knows.
	far.Run(t, "ip", "link", "set", "eth0", "mtu", "1500")
	return far
}

// hops checks that the hops of a trace are these.
func hops(t *testing.T, how, out string, want ...netip.Addr) {
	t.Helper()
	var got []string
	for line := range strings.Lines(out) {
		for _, field := range strings.Fields(line) {
			if _, err := netip.ParseAddr(field); err == nil && !strings.HasPrefix(line, "traceroute") {
				got = append(got, field)
			}
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: hops %v, want %v\n%s", how, got, want, out)
	}
}

// tooBig sends datagrams that may not be fragmented until the sender's kernel has
// learned that the path takes no more than mtu.
func tooBig(t *testing.T, from *netlab.Node, to netip.AddrPort, mtu int) {
	t.Helper()
	c, err := from.Dial("udp", netip.AddrPort{}, to, works)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var learned int
	for deadline := time.Now().Add(works); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		err = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
			learned, _ = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU)
		})
		if err != nil {
			t.Fatal(err)
		}
		if learned == mtu {
			return
		}
		_, _ = c.Write(make([]byte, 1400))
	}
	t.Errorf("from %s to %v: the path takes %d bytes as far as the sender knows, want %d", from.Name, to, learned, mtu)
}

// refused checks that a datagram to a closed port is answered so.
func refused(t *testing.T, from *netlab.Node, to netip.AddrPort) {
	t.Helper()
	c, err := from.Dial("udp", netip.AddrPort{}, to, works)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for deadline := time.Now().Add(works); time.Now().Before(deadline); {
		_, _ = c.Write([]byte("x"))
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err = c.Read(make([]byte, 1)); errors.Is(err, syscall.ECONNREFUSED) {
			return
		}
	}
	t.Errorf("from %s to %v: %v, want refused", from.Name, to, err)
}
