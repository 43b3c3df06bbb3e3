package e2e

import (
	"testing"

	"github.com/ebnet/ebnet/tests/netlab"
)

// TestPrivilegedIsolation: containers of one network reach each other; nobody
// else reaches them but by what is published.
func TestPrivilegedIsolation(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		t.Run("one network", func(t *testing.T) {
			for _, p := range protocols {
				reaches(t, s.w1.Node, p, at(s.w2.Addr, containerPort), s.w1.Addr)
				reaches(t, s.w2.Node, p, at(s.w1.Addr, containerPort), s.w2.Addr)
			}
			pings(t, s.w1.Node, s.w2.Addr)
			bulk(t, s.w1.Node, at(s.w2.Addr, containerPort), 10_000_000)
		})

		s.Host.Ebnet(t, "network", "create", "blue")
		b := s.Container(t, "b1")
		b.Connect(t, "blue")
		atB := b.Serve(t, containerPort)
		neighbour := b.Serve(t, containerPort+1)
		s.Host.Ebnet(t, "expose", b.Endpoint, "8080:80/tcp", "8080:80/udp")
		blue, main := s.Host.Network(t, "blue"), s.Host.Network(t, "default")

		t.Run("two networks", func(t *testing.T) {
			for _, p := range protocols {
				reaches(t, s.Internet, p, at(netlab.HostAddr, 8080), netlab.InternetAddr)
				isBlocked(t, s.w1.Node, p, at(b.Addr, containerPort), atB)
				isBlocked(t, s.w1.Node, p, at(b.Addr, containerPort+1), neighbour)
				isBlocked(t, s.w1.Node, p, at(blue.Gateways[0], containerPort), atB)
				isBlocked(t, b.Node, p, at(s.w1.Addr, containerPort), s.at1)
				isBlocked(t, b.Node, p, at(main.Gateways[0], containerPort), s.at1)
			}
			pingIsBlocked(t, s.w1.Node, b.Addr)
			pingIsBlocked(t, b.Node, s.w1.Addr)
			dropsAreCounted(t, s, s.w1.Endpoint)
		})
		t.Run("neighbouring ports", func(t *testing.T) {
			for _, p := range protocols {
				isBlocked(t, s.Internet, p, at(netlab.HostAddr, 8081), neighbour)
				isBlocked(t, s.Internet, p, at(netlab.HostAddr, 8079), atB)
				isBlocked(t, s.Internet, p, at(netlab.HostAddr, containerPort), atB)
				isBlocked(t, s.Internet, p, at(netlab.HostAddr, containerPort+1), neighbour)
			}
		})
		t.Run("routed to directly", func(t *testing.T) {
			for _, n := range []netlab.Network{blue, main} {
				s.Internet.Run(t, "ip", "route", "add", n.Subnets[0].String(), "via", netlab.HostAddr.String())
			}
			for _, p := range protocols {
				isBlocked(t, s.Internet, p, at(s.w1.Addr, containerPort), s.at1)
				isBlocked(t, s.Internet, p, at(b.Addr, containerPort), atB) // published, but not there
			}
			pingIsBlocked(t, s.Internet, s.w1.Addr)
			for _, n := range []netlab.Network{blue, main} {
				s.Internet.Run(t, "ip", "route", "del", n.Subnets[0].String())
			}
		})
		t.Run("internal", func(t *testing.T) {
			s.Host.Ebnet(t, "network", "create", "inside", "--internal")
			i := s.Containers(t, "i1", "i2")
			i[0].Connect(t, "inside")
			i[1].Connect(t, "inside")
			i[1].Serve(t, containerPort)
			for _, p := range protocols {
				reaches(t, i[0].Node, p, at(i[1].Addr, containerPort), i[0].Addr)
				isBlocked(t, i[0].Node, p, at(netlab.InternetAddr, internetPort), s.internet)
			}
			pingIsBlocked(t, i[0].Node, netlab.InternetAddr)
		})
		t.Run("no icc", func(t *testing.T) {
			s.Host.Ebnet(t, "network", "create", "loners", "--no-icc")
			i := s.Containers(t, "l1", "l2")
			i[0].Connect(t, "loners")
			i[1].Connect(t, "loners")
			service := i[1].Serve(t, containerPort)
			for _, p := range protocols {
				reaches(t, i[0].Node, p, at(netlab.InternetAddr, internetPort), netlab.HostAddr)
				isBlocked(t, i[0].Node, p, at(i[1].Addr, containerPort), service)
			}
			pingIsBlocked(t, i[0].Node, i[1].Addr)
		})
	})
}

// dropsAreCounted checks that status tells why packets of the endpoint were dropped.
func dropsAreCounted(t *testing.T, s *site, endpoint string) {
	t.Helper()
	drops := s.Host.Status(t).Drops
	for _, d := range drops {
		if d.Endpoint == endpoint && d.Reason != "" && d.Packets > 0 {
			return
		}
	}
	t.Errorf("no drop of %s with a reason in %+v", endpoint, drops)
}
