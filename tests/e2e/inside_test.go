package e2e

import (
	"net/netip"
	"testing"
	"time"

	"github.com/ebnet/ebnet/tests/netlab"
)

// TestPrivilegedFromInside: containers use published ports by any address of the host,
// and are seen with their own.
func TestPrivilegedFromInside(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8080:80/tcp", "8080:80/udp")
		s.Host.Ebnet(t, "network", "create", "blue")
		other := s.Container(t, "b1")
		other.Connect(t, "blue")
		blue, main := s.Host.Network(t, "blue").Gateways[0], s.Host.Network(t, "default").Gateways[0]
		for _, p := range protocols {
			for _, host := range []netip.Addr{netlab.HostAddr, netlab.HostAddr2, main, blue} {
				reaches(t, s.w2.Node, p, at(host, 8080), s.w2.Addr)
				reaches(t, other.Node, p, at(host, 8080), other.Addr)
				reaches(t, s.w1.Node, p, at(host, 8080), main) // itself: by the gateway's address
			}
			isBlocked(t, other.Node, p, at(s.w1.Addr, containerPort), s.at1) // not directly
			isBlocked(t, other.Node, p, at(netlab.HostAddr, containerPort), s.at1)
		}
		t.Run("bulk", func(t *testing.T) {
			for _, n := range []*netlab.Node{s.w1.Node, s.w2.Node, other.Node} {
				bulk(t, n, at(netlab.HostAddr, 8080), 10_000_000)
			}
		})
		t.Run("from outside at the same time", func(t *testing.T) {
			for _, p := range protocols {
				reaches(t, s.Internet, p, at(netlab.HostAddr, 8080), netlab.InternetAddr)
			}
			reaches(t, s.w1.Node, "tcp", at(s.w2.Addr, containerPort), s.w1.Addr)
		})
		t.Run("internal", func(t *testing.T) {
			s.Host.Ebnet(t, "network", "create", "shut", "--internal")
			shut := s.Container(t, "shut")
			shut.Connect(t, "shut")
			for _, p := range protocols {
				isBlocked(t, shut.Node, p, at(netlab.HostAddr, 8080), s.at1)
			}
		})
		t.Run("unexpose", func(t *testing.T) {
			stream := other.Stream(t, netip.AddrPort{}, at(netlab.HostAddr, 8081), s.w1.Node, 8081)
			s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8081:8081/udp")
			stream.WaitFlowing(t)
			s.Host.Ebnet(t, "unexpose", s.w1.Endpoint, "8081:8081/udp")
			stream.Cut().Check(t)
		})
		t.Run("a client's successor", func(t *testing.T) {
			old := s.w2
			echo, err := old.DialEcho(at(old.Addr, 6100), at(netlab.HostAddr, 8080))
			if err != nil {
				t.Fatal(err)
			}
			defer echo.Close()
			if err := echo.Say("before"); err != nil {
				t.Fatal(err)
			}
			s.Host.Ebnet(t, "disconnect", old.Endpoint)
			heir := s.Container(t, "heir")
			heir.Connect(t, "default", "--ip", old.Addr.String())
			sniffer := heir.Sniff(t, netlab.HostAddr)
			time.Sleep(blocked)
			if n := sniffer.Packets(); n != 0 {
				t.Errorf("%d packets of its predecessor's conversation", n)
			}
			peer, err := heir.WhoFrom("tcp", at(heir.Addr, 6100), at(netlab.HostAddr, 8080), works)
			if err != nil || peer.Addr() != heir.Addr {
				t.Errorf("the same conversation anew: seen as %v, %v", peer, err)
			}
		})
	})
}
