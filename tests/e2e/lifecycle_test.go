package e2e

import (
	"maps"
	"net/netip"
	"testing"

	"github.com/ebnet/ebnet/tests/netlab"
)

// TestPrivilegedUpTwice: up is for any time; running conversations live
// through it, and the second time nothing changes.
func TestPrivilegedUpTwice(t *testing.T) {
	for i, mode := range modes {
		t.Run(mode[2:], func(t *testing.T) {
			t.Parallel()
			s := newSite(t, netlab.New(t), mode)
			s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8080:80")
			out, err := s.w1.DialEcho(netip.AddrPort{}, at(netlab.InternetAddr, internetPort))
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			in, err := s.Internet.DialEcho(netip.AddrPort{}, at(netlab.HostAddr, 8080))
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			talk := func(when string) {
				t.Helper()
				if err := out.Say("out, " + when); err != nil {
					t.Errorf("outbound connection %s: %v", when, err)
				}
				if err := in.Say("in, " + when); err != nil {
					t.Errorf("connection to a published port %s: %v", when, err)
				}
			}
			talk("at first")

			links, pinned := s.Host.Links(t), s.Host.Pinned(t)
			inside := s.w1.Links(t)
			upWith(t, s.Lab, mode)
			talk("after the second up")
			if now := s.Host.Pinned(t); !maps.Equal(now, pinned) {
				t.Errorf("pins after the second up are %v, were %v", now, pinned)
			}
			upWith(t, s.Lab, modes[1-i])
			talk("after up the other way")
			upWith(t, s.Lab, mode)
			talk("and back")
			if now := s.Host.Links(t); !maps.Equal(now, links) {
				t.Errorf("links of the host are %v, were %v", now, links)
			}
			if now := s.w1.Links(t); !maps.Equal(now, inside) {
				t.Errorf("links of a container are %v, were %v", now, inside)
			}
		})
	}
}

// TestPrivilegedDownUp: what was recorded comes back as it was.
func TestPrivilegedDownUp(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		s.Host.Ebnet(t, "network", "create", "blue", "--subnet", "10.9.0.0/24", "--gateway", "10.9.0.7")
		b := s.Container(t, "b1")
		b.Connect(t, "blue", "--ip", "10.9.0.42", "--ifname", "blue0")
		b.Serve(t, containerPort)
		s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8080:80/tcp", "8080:80/udp")
		s.Host.Ebnet(t, "expose", b.Endpoint, netlab.HostAddr2.String()+":8081:80")
		networks, ports := s.Host.Ebnet(t, "network", "ls"), s.Host.Ebnet(t, "ports")
		endpoints := s.Host.Endpoints(t)

		s.Host.Ebnet(t, "down")
		isBlocked(t, s.Internet, "tcp", at(netlab.HostAddr, 8080), s.at1)
		if pins := s.Host.Pins(t); len(pins) != 0 {
			t.Errorf("pins after down: %v", pins)
		}
		s.Host.Up(t)

		if now := s.Host.Ebnet(t, "network", "ls"); now != networks {
			t.Errorf("networks after up:\n%s\nwere:\n%s", now, networks)
		}
		if now := s.Host.Ebnet(t, "ports"); now != ports {
			t.Errorf("ports after up:\n%s\nwere:\n%s", now, ports)
		}
		for name, e := range s.Host.Endpoints(t) {
			was := endpoints[name]
			if e.IPv4 != was.IPv4 || e.MAC != was.MAC || e.Network != was.Network || e.Ifname != was.Ifname || e.State != was.State {
				t.Errorf("endpoint after up is %+v, was %+v", e, was)
			}
		}
		for _, p := range protocols {
			reaches(t, s.Internet, p, at(netlab.HostAddr, 8080), netlab.InternetAddr)
			reaches(t, s.w1.Node, p, at(netlab.InternetAddr, internetPort), netlab.HostAddr)
			reaches(t, b.Node, p, at(netlab.InternetAddr, internetPort), netlab.HostAddr)
			reaches(t, s.w1.Node, p, at(s.w2.Addr, containerPort), s.w1.Addr)
		}
		reaches(t, s.Internet, "tcp", at(netlab.HostAddr2, 8081), netlab.InternetAddr)
		isBlocked(t, s.Internet, "tcp", at(netlab.HostAddr, 8081), s.at1)
	})
}

// TestPrivilegedHostSettings: the host is not turned into a router for others.
func TestPrivilegedHostSettings(t *testing.T) {
	settings := []string{
		"net/ipv4/ip_forward",
		"net/ipv6/conf/all/forwarding",
		"net/ipv4/conf/all/route_localnet",
		"net/ipv4/conf/default/route_localnet",
		"net/ipv4/conf/default/forwarding",
		"net/ipv4/conf/all/rp_filter",
		"net/ipv4/conf/" + netlab.UplinkLink + "/forwarding",
		"net/ipv4/conf/" + netlab.UplinkLink + "/rp_filter",
		"net/ipv4/conf/" + netlab.UplinkLink + "/route_localnet",
		"net/ipv4/conf/" + netlab.UplinkLink + "/accept_local",
		"net/ipv4/ip_local_port_range",
		"net/ipv4/ip_local_reserved_ports",
	}
	for _, mode := range modes {
		t.Run(mode[2:], func(t *testing.T) {
			l := netlab.New(t)
			before := make(map[string]string)
			for _, path := range settings {
				before[path] = l.Host.Sysctl(t, path)
			}
			unchanged := func(when string) {
				t.Helper()
				for _, path := range settings {
					if now := l.Host.Sysctl(t, path); now != before[path] {
						t.Errorf("%s %s is %s, was %s", path, when, now, before[path])
					}
				}
			}
			s := newSite(t, l, mode)
			s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8080:80")
			unchanged("with ebnet up")
			reaches(t, s.Internet, "tcp", at(netlab.HostAddr, 8080), netlab.InternetAddr)
			s.Host.Ebnet(t, "down")
			unchanged("after down")
		})
	}
}
