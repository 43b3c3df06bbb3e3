package e2e

import (
	"testing"

	"github.com/ebnet/ebnet/tests/netlab"
)

// TestPrivilegedInsideAfterAddressLost: a conversation inside by way of a host address
// does not leave by the uplink when the host loses the address and another takes it.
func TestPrivilegedInsideAfterAddressLost(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		s.Host.Ebnet(t, "expose", s.w1.Endpoint, "5000:5001/udp")
		f := netlab.Frame{From: s.w2.MAC(t, "eth0"), To: s.Host.MAC(t, "ebnet0"),
			Src: at(s.w2.Addr, 4000), Dst: at(netlab.HostAddr2, 5000), Payload: "x"}
		inside := s.w1.Sniff(t, s.w2.Addr)
		leaked := s.Internet.Sniff(t, s.w2.Addr)
		arrives(t, inside, func() { s.w2.Forge(t, "eth0", f) })
		s.Host.Run(t, "ip", "address", "del", netlab.HostAddr2.String()+"/24", "dev", netlab.UplinkLink)
		s.Internet.Run(t, "ip", "address", "add", netlab.HostAddr2.String()+"/24", "dev", netlab.InternetLink)
		staysAway(t, leaked, func() { s.w2.Forge(t, "eth0", f) })
	})
}
