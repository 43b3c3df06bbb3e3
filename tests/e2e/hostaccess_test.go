package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ebnet/ebnet/tests/netlab"
)

var (
	localhost  = netip.MustParseAddr("127.0.0.1")
	localhost2 = netip.MustParseAddr("127.0.0.2")
)

// TestPrivilegedFromHost: processes of the host reach published ports by 127.0.0.1 and any
// address of the host, and are told the address that they used.
func TestPrivilegedFromHost(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		gateway := s.Host.Network(t, "default").Gateways[0]
		s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8080:80/tcp", "8080:80/udp")
		s.Host.Ebnet(t, "expose", s.w2.Endpoint, netlab.HostAddr2.String()+":8081:80/tcp", "127.0.0.2:8082:80/tcp", "127.0.0.2:8082:80/udp")
		t.Run("any address", func(t *testing.T) {
			for _, host := range []netip.Addr{localhost, localhost2, netlab.HostAddr, netlab.HostAddr2, gateway} {
				for _, family := range []string{"4", "6"} {
					fromHost(t, s, "dial", "tcp", family, at(host, 8080), gateway)
					fromHost(t, s, "dial", "udp", family, at(host, 8080), gateway)
					fromHost(t, s, "send", "udp", family, at(host, 8080), gateway)
				}
			}
		})
		t.Run("one address", func(t *testing.T) {
			fromHost(t, s, "dial", "tcp", "4", at(netlab.HostAddr2, 8081), gateway)
			for _, host := range []netip.Addr{localhost, netlab.HostAddr} {
				hostRefuses(t, s, s.Host.Node, "tcp", at(host, 8081))
			}
		})
		t.Run("loopback alone", func(t *testing.T) { loopbackAlone(t, s, gateway) })
		t.Run("another namespace", func(t *testing.T) {
			for _, node := range []*netlab.Node{s.Internet, s.w2.Node} {
				hostRefuses(t, s, node, "tcp", at(localhost, 8080))
				if r := sockets(t, s, node, "bind", "tcp", "4", "0.0.0.0:8080"); r.Err != "" {
					t.Errorf("bind in %s: %s", node.Name, r.Err)
				}
			}
		})
		t.Run("the host's own ports", func(t *testing.T) {
			s.Host.Serve(t, 9000)
			fromOwn := sockets(t, s, s.Host.Node, "dial", "tcp", "4", "127.0.0.1:9000")
			if fromOwn.Err != "" || fromOwn.Seen.Addr() != localhost {
				t.Errorf("%+v", fromOwn)
			}
			hostRefuses(t, s, s.Host.Node, "tcp", at(localhost, containerPort))
		})
		t.Run("down", func(t *testing.T) {
			s.Host.Ebnet(t, "unexpose", s.w1.Endpoint)
			hostRefuses(t, s, s.Host.Node, "tcp", at(localhost, 8080))
			s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8080:80")
			fromHost(t, s, "dial", "tcp", "4", at(localhost, 8080), gateway)
			s.Host.Ebnet(t, "down")
			hostRefuses(t, s, s.Host.Node, "tcp", at(localhost, 8080))
			if r := sockets(t, s, s.Host.Node, "bind", "tcp", "4", "0.0.0.0:8080"); r.Err != "" {
				t.Errorf("bind after down: %s", r.Err)
			}
		})
	})
}

// TestPrivilegedHostConnectionEnds: a connection of the host ends with the port that it came by.
func TestPrivilegedHostConnectionEnds(t *testing.T) {
	l := netlab.New(t)
	s := newSite(t, l, "--fast-path=on")
	for _, family := range []string{"4", "6"} {
		for _, p := range protocols {
			s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8080:80/"+p, "8081:80/"+p)
			before := s.at1.Hits()
			var ended, stays saw
			var both sync.WaitGroup
			both.Go(func() { ended = sockets(t, s, s.Host.Node, "hold", p, family, "127.0.0.1:8080") })
			both.Go(func() { stays = sockets(t, s, s.Host.Node, "hold", p, family, "127.0.0.1:8081") })
			for deadline := time.Now().Add(works); s.at1.Hits() < before+2 && time.Now().Before(deadline); {
				time.Sleep(10 * time.Millisecond)
			}
			s.Host.Ebnet(t, "unexpose", s.w1.Endpoint, "8080:80/"+p)
			time.Sleep(blocked)
			s.Host.Ebnet(t, "unexpose", s.w1.Endpoint, "8081:80/"+p)
			both.Wait()
			if ended.Err != "ECONNABORTED" || stays.Err != "ECONNABORTED" || stays.Waited-ended.Waited < blocked/2 {
				t.Errorf("%s, family %s: %+v, and by the port that was unpublished later %+v", p, family, ended, stays)
			}
		}
	}
}

// fromHost checks what a process of the host sees, and that the service sees it come
// from the gateway.
func fromHost(t *testing.T, s *site, how, protocol, family string, to netip.AddrPort, seen netip.Addr) {
	t.Helper()
	r := sockets(t, s, s.Host.Node, how, protocol, family, to.String())
	what := fmt.Sprintf("%s %s by a socket of family %s to %v", how, protocol, family, to)
	switch {
	case r.Err != "":
		t.Errorf("%s: %s", what, r.Err)
	case how == "dial" && r.Peer != to:
		t.Errorf("%s: getpeername says %v", what, r.Peer)
	case protocol == "udp" && r.From != to:
		t.Errorf("%s: recvmsg says %v", what, r.From)
	case r.Seen.Addr() != seen:
		t.Errorf("%s: seen to come from %v, want %v", what, r.Seen, seen)
	}
}

func hostRefuses(t *testing.T, s *site, node *netlab.Node, protocol string, to netip.AddrPort) {
	t.Helper()
	if r := sockets(t, s, node, "dial", protocol, "4", to.String()); r.Err != "ECONNREFUSED" {
		t.Errorf("%s from %s to %v: %+v, want it refused", protocol, node.Name, to, r)
	}
}

// loopbackAlone checks a port that is published on 127.0.0.2.
func loopbackAlone(t *testing.T, s *site, gateway netip.Addr) {
	for _, p := range protocols {
		fromHost(t, s, "dial", p, "4", at(localhost2, 8082), gateway)
		for _, host := range []netip.Addr{localhost, netlab.HostAddr, gateway} {
			hostRefuses(t, s, s.Host.Node, p, at(host, 8082))
		}
		for _, host := range []netip.Addr{netlab.HostAddr, netlab.HostAddr2} {
			isBlocked(t, s.Internet, p, at(host, 8082), s.at2)
		}
		for _, host := range []netip.Addr{netlab.HostAddr, gateway} {
			isBlocked(t, s.w1.Node, p, at(host, 8082), s.at2)
		}
	}
	// The very address, from the wire.
	before := s.at2.Hits()
	forged := netlab.Frame{From: s.Internet.MAC(t, netlab.InternetLink), To: s.Host.MAC(t, netlab.UplinkLink),
		Src: at(netlab.InternetAddr, 4000), Dst: at(localhost2, 8082), Payload: "x"}
	s.Internet.Forge(t, netlab.InternetLink, forged)
	forged.From, forged.To, forged.Src = s.w1.MAC(t, "eth0"), s.Host.MAC(t, "ebnet0"), at(s.w1.Addr, 4000)
	s.w1.Forge(t, "eth0", forged)
	time.Sleep(blocked)
	if n := s.at2.Hits() - before; n != 0 {
		t.Errorf("%d datagrams from outside and inside reach a loopback port", n)
	}
}

// TestPrivilegedBind: a published port cannot be bound by a process of the host, and a
// bound one cannot be published.
func TestPrivilegedBind(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8080:80/tcp", "8080:80/udp", netlab.HostAddr2.String()+":8081:80/tcp")
		for _, tt := range []struct{ protocol, family, addr, want string }{
			{"tcp", "4", "0.0.0.0:8080", "EADDRINUSE"},
			{"udp", "4", "0.0.0.0:8080", "EADDRINUSE"},
			{"tcp", "4", "127.0.0.1:8080", "EADDRINUSE"},
			{"tcp", "4", "198.51.100.2:8080", "EADDRINUSE"},
			{"udp", "4", "198.51.100.3:8080", "EADDRINUSE"},
			{"tcp", "6", "[::]:8080", "EADDRINUSE"},
			{"udp", "6", "[::]:8080", "EADDRINUSE"},
			{"tcp", "6", "[::ffff:127.0.0.1]:8080", "EADDRINUSE"},
			{"tcp", "6only", "[::]:8080", ""},
			{"udp", "6only", "[::]:8080", ""},
			{"tcp", "6", "[::1]:8080", ""},
			{"tcp", "4", "0.0.0.0:8079", ""},
			{"tcp", "4", "198.51.100.3:8081", "EADDRINUSE"},
			{"tcp", "4", "0.0.0.0:8081", "EADDRINUSE"},
			{"tcp", "4", "198.51.100.2:8081", ""},
			{"tcp", "4", "127.0.0.1:8081", ""},
			{"udp", "4", "0.0.0.0:8081", ""},
		} {
			if r := sockets(t, s, s.Host.Node, "bind", tt.protocol, tt.family, tt.addr); r.Err != tt.want {
				t.Errorf("bind %s %s family %s: %q, want %q", tt.protocol, tt.addr, tt.family, r.Err, tt.want)
			}
		}
		for _, addr := range []netip.Addr{localhost, netlab.HostAddr} {
			ln, err := s.Host.ListenTCP(at(addr, 9100))
			if err != nil {
				t.Fatal(err)
			}
			for _, spec := range []string{"9100:80", addr.String() + ":9100:80"} {
				r := s.Host.TryEbnet(t, "expose", s.w1.Endpoint, spec)
				if r.Code != 4 || !strings.Contains(r.Stderr, "9100") {
					t.Errorf("a port that %v listens on: %v", addr, r)
				}
			}
			ln.Close()
		}
		s.Host.Ebnet(t, "unexpose", s.w1.Endpoint)
		if r := sockets(t, s, s.Host.Node, "bind", "tcp", "4", "0.0.0.0:8080"); r.Err != "" {
			t.Errorf("after unexpose: %s", r.Err)
		}
	})
}

// TestPrivilegedEphemeral: no socket of the host is given a published port, and the
// host's settings are as before in the end.
func TestPrivilegedEphemeral(t *testing.T) {
	const setting = "net/ipv4/ip_local_reserved_ports"
	eachMode(t, func(t *testing.T, s *site) {
		s.Host.SetSysctl(t, "net/ipv4/ip_local_port_range", "40000 40299")
		s.Host.SetSysctl(t, setting, "40290-40291")
		s.Host.Ebnet(t, "expose", s.w1.Endpoint, "40000-40099:1000-1099/tcp", "40050-40199:2000-2149/udp")
		server := s.Host.Serve(t, 9000)
		for _, p := range protocols {
			for _, family := range []string{"4", "6"} {
				r := sockets(t, s, s.Host.Node, "any", p, family, "200", at(localhost, server.Port).String())
				if r.Err != "" || len(r.Bound) != 400 {
					t.Fatalf("%s: %s, %d ports", p, r.Err, len(r.Bound))
				}
				for _, port := range r.Bound {
					if port < 40200 || port > 40299 || port == 40290 || port == 40291 {
						t.Fatalf("%s of family %s was given port %d", p, family, port)
					}
				}
			}
		}
		// In as many ranges as do not fit into a page.
		s.Host.Ebnet(t, "unexpose", s.w1.Endpoint)
		if now := s.Host.Sysctl(t, setting); now != "40290-40291" {
			t.Errorf("%s after unexpose is %q", setting, now)
		}
		s.Host.SetSysctl(t, "net/ipv4/ip_local_port_range", "20000 60999")
		var specs []string
		for port := 20001; port < 24001; port += 2 {
			specs = append(specs, fmt.Sprintf("%d:80", port))
		}
		s.Host.Ebnet(t, append([]string{"expose", s.w1.Endpoint}, specs...)...)
		s.Host.Ebnet(t, "up")
		out := s.Host.Run(t, "sysctl", "-n", "net.ipv4.ip_local_reserved_ports")
		if n := len(strings.Split(out, ",")); n < 500 { // sysctl(8) reads a part of it
			t.Errorf("%d ranges are reserved: %.80s", n, out)
		}
		s.Host.Ebnet(t, "down")
		if now := s.Host.Sysctl(t, setting); now != "40290-40291" {
			t.Errorf("%s after down is %q", setting, now)
		}
	})
}
