package e2e

import (
	"net/netip"
	"testing"
	"time"

	"github.com/ebnet/ebnet/tests/netlab"
)

// TestPrivilegedForged: what a raw socket can send on either side opens nothing.
// Each case is preceded by the same frame without the forgery, which arrives.
func TestPrivilegedForged(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		gateway := s.Host.MAC(t, "ebnet0")
		own := s.w1.MAC(t, "eth0")
		honest := netlab.Frame{From: own, To: gateway, Src: at(s.w1.Addr, 5000), Dst: at(netlab.InternetAddr, 9), Payload: "x"}
		t.Run("from a container", func(t *testing.T) {
			seen := s.Internet.Sniff(t, netlab.HostAddr)
			leaked := s.Internet.Sniff(t, s.w1.Addr)
			arrives(t, seen, func() { s.w1.Forge(t, "eth0", honest) })
			tagged := honest
			tagged.VLAN = 42
			staysAway(t, seen, func() { s.w1.Forge(t, "eth0", tagged) })
			asNeighbour := honest
			asNeighbour.Src = at(s.w2.Addr, 5000)
			staysAway(t, seen, func() { s.w1.Forge(t, "eth0", asNeighbour) })
			byNeighbour := honest
			byNeighbour.From = s.w2.MAC(t, "eth0")
			staysAway(t, seen, func() { s.w1.Forge(t, "eth0", byNeighbour) })
			if n := leaked.Packets(); n != 0 {
				t.Errorf("%d packets left with the container's address", n)
			}
		})
		t.Run("from outside", func(t *testing.T) {
			s.Host.Ebnet(t, "expose", s.w1.Endpoint, "5000:5001/udp")
			seen := s.w1.Sniff(t, netlab.InternetAddr)
			loopback := s.w1.Sniff(t, netip.MustParseAddr("127.0.0.1"))
			asNeighbour := s.w1.Sniff(t, s.w2.Addr)
			f := netlab.Frame{From: s.Internet.MAC(t, netlab.InternetLink), To: s.Host.MAC(t, netlab.UplinkLink),
				Src: at(netlab.InternetAddr, 4000), Dst: at(netlab.HostAddr, 5000), Payload: "x"}
			arrives(t, seen, func() { s.Internet.Forge(t, netlab.InternetLink, f) })
			tagged := f
			tagged.VLAN = 99
			staysAway(t, seen, func() { s.Internet.Forge(t, netlab.InternetLink, tagged) })
			direct := f
			direct.Dst = at(s.w1.Addr, 5001)
			staysAway(t, seen, func() { s.Internet.Forge(t, netlab.InternetLink, direct) })
			for sniffer, src := range map[*netlab.Sniffer]netip.Addr{
				loopback: netip.MustParseAddr("127.0.0.1"), asNeighbour: s.w2.Addr,
			} {
				forged := f
				forged.Src = at(src, 4000)
				staysAway(t, sniffer, func() { s.Internet.Forge(t, netlab.InternetLink, forged) })
			}
		})
	})
}

func arrives(t *testing.T, s *netlab.Sniffer, send func()) {
	t.Helper()
	before := s.Packets()
	send()
	for deadline := time.Now().Add(works); s.Packets() == before; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the honest frame does not arrive")
		}
	}
}

func staysAway(t *testing.T, s *netlab.Sniffer, send func()) {
	t.Helper()
	before := s.Packets()
	for range 3 {
		send()
	}
	time.Sleep(blocked / 3)
	if n := s.Packets() - before; n != 0 {
		t.Errorf("%d of 3 forged frames arrive", n)
	}
}
