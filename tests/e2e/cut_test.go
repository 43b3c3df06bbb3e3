package e2e

import (
	"net/netip"
	"testing"

	"github.com/ebnet/ebnet/tests/netlab"
)

// TestPrivilegedCut: what is closed is closed when the command returns, for
// conversations in full flow too, and a successor hears nothing of them.
func TestPrivilegedCut(t *testing.T) {
	eachModeAlone(t, func(t *testing.T, s *site) {
		t.Run("unexpose udp", func(t *testing.T) {
			s.Host.Ebnet(t, "expose", s.w1.Endpoint, "5000:5001/udp", "5002:80/udp")
			stream := s.Internet.Stream(t, netip.AddrPort{}, at(netlab.HostAddr, 5000), s.w1.Node, 5001)
			stream.WaitFlowing(t)
			if peer := stream.Peer().Addr(); peer != netlab.InternetAddr {
				t.Errorf("the container sees %v, want the client's own address", peer)
			}
			s.Host.Ebnet(t, "unexpose", s.w1.Endpoint, "5000:5001/udp")
			stream.Cut().Check(t)
			reaches(t, s.Internet, "udp", at(netlab.HostAddr, 5002), netlab.InternetAddr) // the other port stays
			s.Host.Ebnet(t, "unexpose", s.w1.Endpoint)
		})
		t.Run("unexpose tcp", func(t *testing.T) {
			s.Host.Ebnet(t, "expose", s.w1.Endpoint, "5000:80")
			echo, err := s.Internet.DialEcho(netip.AddrPort{}, at(netlab.HostAddr, 5000))
			if err != nil {
				t.Fatal(err)
			}
			defer echo.Close()
			if err := echo.Say("before"); err != nil {
				t.Fatal(err)
			}
			s.Host.Ebnet(t, "unexpose", s.w1.Endpoint)
			if err := echo.SayWithin("after", 2*blocked); err == nil {
				t.Error("the connection goes on after unexpose")
			}
		})
		t.Run("disconnect, outbound flow", func(t *testing.T) {
			stream := s.w1.Stream(t, at(s.w1.Addr, 6000), at(netlab.InternetAddr, 7100), s.Internet, 7100)
			stream.WaitFlowing(t)
			if peer := stream.Peer().Addr(); peer != netlab.HostAddr {
				t.Errorf("the internet sees %v, want the host's address", peer)
			}
			succeed(t, s, s.w1, "heir1", stream)
		})
		t.Run("disconnect, published flow", func(t *testing.T) {
			s.Host.Ebnet(t, "expose", s.w2.Endpoint, "5000:5001/udp")
			stream := s.Internet.Stream(t, netip.AddrPort{}, at(netlab.HostAddr, 5000), s.w2.Node, 5001)
			stream.WaitFlowing(t)
			succeed(t, s, s.w2, "heir2", stream)
		})
	})
}

// succeed disconnects a container whose stream is running and gives its
// address to another, which must work and must not see a packet of the stream.
func succeed(t *testing.T, s *site, old *netlab.Container, name string, stream *netlab.Stream) {
	t.Helper()
	s.Host.Ebnet(t, "disconnect", old.Endpoint)
	cut := stream.Cut()
	heir := s.Container(t, name)
	sniffer := heir.Sniff(t, netlab.InternetAddr)
	heir.Connect(t, "default", "--ip", old.Addr.String())
	if heir.Addr != old.Addr {
		t.Fatalf("--ip %v gave %v", old.Addr, heir.Addr)
	}
	cut.Check(t)
	if n := sniffer.Packets(); n != 0 {
		t.Errorf("%d packets of its predecessor's flow reached the new container", n)
	}
	reaches(t, heir.Node, "udp", at(netlab.InternetAddr, internetPort), netlab.HostAddr)
	if sniffer.Packets() == 0 {
		t.Error("the sniffer did not see the new container's own conversation")
	}
	stream.Cut().Check(t)
}
