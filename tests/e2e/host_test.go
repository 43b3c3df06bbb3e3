package e2e

import (
	"testing"

	"github.com/ebnet/ebnet/tests/netlab"
)

// TestPrivilegedHostAccess: the host reaches containers by their addresses,
// and containers the host's services by the gateway address. What the host
// itself says to the internet is as ever.
func TestPrivilegedHostAccess(t *testing.T) {
	eachMode(t, hostAccess)
}

func hostAccess(t *testing.T, s *site) {
	gateway := s.Host.Network(t, "default").Gateways[0]
	s.Host.Serve(t, 9000)
	for _, p := range protocols {
		reaches(t, s.Host.Node, p, at(s.w1.Addr, containerPort), gateway)
		reaches(t, s.w1.Node, p, at(gateway, 9000), s.w1.Addr)
	}
	for _, p := range protocols {
		reaches(t, s.Host.Node, p, at(netlab.InternetAddr, internetPort), netlab.HostAddr)
		reaches(t, s.Internet, p, at(netlab.HostAddr, 9000), netlab.InternetAddr)
	}
	pings(t, s.Host.Node, netlab.InternetAddr)
	pings(t, s.Internet, netlab.HostAddr)
	pings(t, s.Host.Node, s.w2.Addr)
	pings(t, s.w2.Node, gateway)
	bulk(t, s.Host.Node, at(s.w1.Addr, containerPort), 4<<20)
	bulk(t, s.w1.Node, at(gateway, 9000), 4<<20)
}
