package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ebnet/ebnet/tests/netlab"
)

// strangerAddr is a second address of the internet, for clients that may not.
var strangerAddr = netip.MustParseAddr("198.51.100.77")

// TestPrivilegedFrom: a port with --from is open to those sources alone, whatever their
// number; the host always may.
func TestPrivilegedFrom(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		s.Internet.Run(t, "ip", "address", "add", strangerAddr.String()+"/32", "dev", "lo")
		s.Host.Run(t, "ip", "route", "add", strangerAddr.String(), "via", netlab.InternetAddr.String())
		many := []string{"--from", netlab.InternetAddr.String()}
		for i := range 1000 {
			many = append(many, "--from", fmt.Sprintf("10.%d.%d.0/24", i/250, i%250))
		}
		s.Host.Ebnet(t, append([]string{"expose", s.w1.Endpoint, "8080:80/tcp", "8080:80/udp"}, many...)...)
		s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8081:80/tcp", "8081:80/udp", "--from", s.w2.Addr.String())
		s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8082:80/tcp", "8082:80/udp", "--from", "0.0.0.0/0")
		check := func(t *testing.T) {
			for _, p := range protocols {
				reaches(t, s.Internet, p, at(netlab.HostAddr, 8080), netlab.InternetAddr)
				isStranger(t, s, p, at(netlab.HostAddr, 8080), false)
				isBlocked(t, s.w2.Node, p, at(netlab.HostAddr, 8080), s.at1)
				reaches(t, s.w2.Node, p, at(netlab.HostAddr, 8081), s.w2.Addr)
				isBlocked(t, s.Internet, p, at(netlab.HostAddr, 8081), s.at1)
				reaches(t, s.Internet, p, at(netlab.HostAddr, 8082), netlab.InternetAddr)
				isStranger(t, s, p, at(netlab.HostAddr, 8082), true)
			}
			gateway := s.Host.Network(t, "default").Gateways[0]
			fromHost(t, s, "dial", "tcp", "4", at(localhost, 8080), gateway)
			wantDrop(t, s, "source-not-allowed")
		}
		t.Run("exposed", check)
		s.Host.Ebnet(t, "down")
		s.Host.Ebnet(t, "up")
		t.Run("after down and up", check)
		s.Host.Ebnet(t, "unexpose", s.w1.Endpoint)
		s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8080:80/tcp")
		isStranger(t, s, "tcp", at(netlab.HostAddr, 8080), true)
	})
}

// isStranger checks whether the internet's second address gets an answer.
func isStranger(t *testing.T, s *site, protocol string, to netip.AddrPort, may bool) {
	t.Helper()
	before, limit := s.at1.Hits(), blocked
	if may {
		limit = works
	}
	seen, err := s.Internet.WhoFrom(protocol, at(strangerAddr, 0), to, limit)
	if may && (err != nil || seen.Addr() != strangerAddr) {
		t.Errorf("%s from %v to %v: seen as %v, %v", protocol, strangerAddr, to, seen, err)
	}
	if !may && (err == nil || s.at1.Hits() != before) {
		t.Errorf("%s from %v to %v works, want it blocked", protocol, strangerAddr, to)
	}
}

// wantDrop checks that drops are counted for the reason.
func wantDrop(t *testing.T, s *site, reason string) {
	t.Helper()
	drops := s.Host.Status(t).Drops
	for _, d := range drops {
		if d.Reason == reason && d.Packets > 0 {
			return
		}
	}
	t.Errorf("no drop for %s in %+v", reason, drops)
}

// container makes a container with a service in a network of its own.
func (s *site) container(t *testing.T, name string, networkFlags ...string) (*netlab.Container, *netlab.Service) {
	t.Helper()
	s.Host.Ebnet(t, append([]string{"network", "create", name}, networkFlags...)...)
	c := s.Container(t, name)
	c.Connect(t, name)
	s.Internet.Run(t, "ip", "route", "replace", s.Host.Network(t, name).Subnets[0].String(), "via", netlab.HostAddr.String())
	return c, c.Serve(t, containerPort)
}

// TestPrivilegedRouted: endpoints of a routed network are reached by their own address,
// at the ports that they publish, and by no other.
func TestPrivilegedRouted(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		r, atR := s.container(t, "routed", "--mode", "routed")
		closed := r.Serve(t, containerPort+1)
		s.Host.Ebnet(t, "expose", r.Endpoint, "8080:80/tcp", "80/udp")
		for _, p := range protocols {
			reaches(t, s.Internet, p, at(r.Addr, containerPort), netlab.InternetAddr)
			isBlocked(t, s.Internet, p, at(r.Addr, containerPort+1), closed)
			isBlocked(t, s.Internet, p, at(netlab.HostAddr, 8080), atR)
			isBlocked(t, s.Internet, p, at(netlab.HostAddr, containerPort), atR)
			reaches(t, r.Node, p, at(netlab.InternetAddr, internetPort), r.Addr)
			isBlocked(t, s.w1.Node, p, at(r.Addr, containerPort+1), closed)
			reaches(t, s.Host.Node, p, at(r.Addr, containerPort), s.Host.Network(t, "routed").Gateways[0])
		}
		pings(t, r.Node, netlab.InternetAddr)
		pings(t, s.Internet, r.Addr)
		bulk(t, s.Internet, at(r.Addr, containerPort), 10_000_000)
		bulk(t, r.Node, at(netlab.InternetAddr, internetPort), 10_000_000)
		wantDrop(t, s, "direct-access")
		t.Run("the host's port is free", func(t *testing.T) {
			s.Host.Ebnet(t, "expose", s.w1.Endpoint, "80:80/tcp")
			reaches(t, s.Internet, "tcp", at(netlab.HostAddr, 80), netlab.InternetAddr)
			reaches(t, s.Internet, "tcp", at(r.Addr, 80), netlab.InternetAddr)
		})
		t.Run("from", func(t *testing.T) {
			s.Host.Ebnet(t, "expose", r.Endpoint, "81/tcp", "--from", "192.0.2.0/24")
			isBlocked(t, s.Internet, "tcp", at(r.Addr, containerPort+1), closed)
		})
		t.Run("unexpose", func(t *testing.T) {
			s.Host.Ebnet(t, "unexpose", r.Endpoint, "80/tcp")
			isBlocked(t, s.Internet, "tcp", at(r.Addr, containerPort), atR)
			reaches(t, s.Internet, "udp", at(r.Addr, containerPort), netlab.InternetAddr)
			reaches(t, s.Internet, "tcp", at(netlab.HostAddr, 80), netlab.InternetAddr)
		})
	})
}

// TestPrivilegedWaysOut: what leaves a network has the address that the network says.
func TestPrivilegedWaysOut(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		t.Run("no masquerade", func(t *testing.T) {
			c, service := s.container(t, "plain", "--no-masquerade")
			s.Host.Ebnet(t, "expose", c.Endpoint, "8090:80/tcp", "8090:80/udp")
			for _, p := range protocols {
				reaches(t, c.Node, p, at(netlab.InternetAddr, internetPort), c.Addr)
				reaches(t, s.Internet, p, at(netlab.HostAddr, 8090), netlab.InternetAddr)
				isBlocked(t, s.Internet, p, at(c.Addr, containerPort), service)
			}
			pings(t, c.Node, netlab.InternetAddr)
		})
		t.Run("snat address", func(t *testing.T) {
			c, _ := s.container(t, "fixed", "--snat-address", netlab.HostAddr2.String())
			for _, p := range protocols {
				reaches(t, c.Node, p, at(netlab.InternetAddr, internetPort), netlab.HostAddr2)
				reaches(t, s.w1.Node, p, at(netlab.InternetAddr, internetPort), netlab.HostAddr)
			}
			pings(t, c.Node, netlab.InternetAddr)
			s.Host.Ebnet(t, "down")
			s.Host.Ebnet(t, "up")
			reaches(t, c.Node, "tcp", at(netlab.InternetAddr, internetPort), netlab.HostAddr2)
		})
	})
}

// TestPrivilegedClosedNetworks: an internal network has its gateway and nothing else; of
// one without icc the published ports are open to neighbours too.
func TestPrivilegedClosedNetworks(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		t.Run("internal", func(t *testing.T) {
			c, service := s.container(t, "inside", "--internal")
			gateway := s.Host.Network(t, "inside").Gateways[0]
			s.Host.Serve(t, 9000)
			for _, p := range protocols {
				reaches(t, c.Node, p, at(gateway, 9000), c.Addr)
				isBlocked(t, c.Node, p, at(netlab.InternetAddr, internetPort), s.internet)
				isBlocked(t, c.Node, p, at(s.w1.Addr, containerPort), s.at1)
				isBlocked(t, s.w1.Node, p, at(c.Addr, containerPort), service)
				isBlocked(t, s.Internet, p, at(c.Addr, containerPort), service)
			}
			wantDrop(t, s, "internal")
			if r := s.Host.TryEbnet(t, "expose", c.Endpoint, "80"); r.Code != 2 {
				t.Error(r)
			}
		})
		t.Run("no icc", func(t *testing.T) {
			c, service := s.container(t, "loners", "--no-icc")
			other := s.Container(t, "loner2")
			other.Connect(t, "loners")
			s.Host.Ebnet(t, "expose", c.Endpoint, "8091:80/tcp", "8091:80/udp")
			for _, p := range protocols {
				isBlocked(t, other.Node, p, at(c.Addr, containerPort), service)
				reaches(t, other.Node, p, at(netlab.HostAddr, 8091), other.Addr)
				reaches(t, s.Internet, p, at(netlab.HostAddr, 8091), netlab.InternetAddr)
			}
			wantDrop(t, s, "icc")
		})
	})
}

// TestPrivilegedSides: containers of another engine on the host reach published ports.
func TestPrivilegedSides(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		d := s.Container(t, "docker1")
		addr := netip.MustParseAddr("172.17.0.2")
		for _, line := range []string{
			"ip link add docker0 type bridge",
			"ip address add 172.17.0.1/16 dev docker0",
			"ip link set docker0 up",
			"ip link add dk0 type veth peer name eth0 netns " + d.Name,
			"ip link set dk0 up master docker0",
		} {
			s.Host.Run(t, strings.Fields(line)...)
		}
		for _, line := range []string{
			"ip address add 172.17.0.2/16 dev eth0", "ip link set eth0 up", "ip route add default via 172.17.0.1",
		} {
			d.Run(t, strings.Fields(line)...)
		}
		atD := d.Serve(t, containerPort)
		s.Host.Up(t)
		s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8080:80/tcp", "8080:80/udp")
		for _, p := range protocols {
			for _, host := range []netip.Addr{netlab.HostAddr, netip.MustParseAddr("172.17.0.1")} {
				reaches(t, d.Node, p, at(host, 8080), addr)
			}
			isBlocked(t, d.Node, p, at(s.w1.Addr, containerPort), s.at1)
			isBlocked(t, s.w1.Node, p, at(addr, containerPort), atD)
		}
		bulk(t, d.Node, at(netlab.HostAddr, 8080), 10_000_000)
		for _, p := range protocols {
			reaches(t, s.w1.Node, p, at(netlab.InternetAddr, internetPort), netlab.HostAddr)
			reaches(t, s.Internet, p, at(netlab.HostAddr, 8080), netlab.InternetAddr)
		}
		s.Host.Run(t, "ip", "link", "delete", "dk0")
		s.Host.Run(t, "ip", "link", "delete", "docker0")
		s.Host.Up(t)
	})
}
