package e2e

import (
	"testing"

	"github.com/ebnet/ebnet/tests/netlab"
)

// TestPrivilegedForgedInside: outside, with the address and port of a container, does not
// get into its conversation inside.
func TestPrivilegedForgedInside(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		s.Host.Ebnet(t, "expose", s.w1.Endpoint, "5000:5001/udp")
		f := netlab.Frame{From: s.w2.MAC(t, "eth0"), To: s.Host.MAC(t, "ebnet0"),
			Src: at(s.w2.Addr, 4000), Dst: at(netlab.HostAddr, 5000), Payload: "x"}
		seen := s.w1.Sniff(t, s.w2.Addr)
		arrives(t, seen, func() { s.w2.Forge(t, "eth0", f) })
		f.From, f.To = s.Internet.MAC(t, netlab.InternetLink), s.Host.MAC(t, netlab.UplinkLink)
		staysAway(t, seen, func() { s.Internet.Forge(t, netlab.InternetLink, f) })
	})
}
