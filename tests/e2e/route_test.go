package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ebnet/ebnet/tests/netlab"
)

var (
	farAddr         = netip.MustParseAddr("203.0.113.7") // of the internet, behind its link
	unreachableAddr = netip.MustParseAddr("192.0.2.1")
)

// TestPrivilegedRoutes: packets follow the host's routes, as they are and as they
// become.
func TestPrivilegedRoutes(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		t.Run("IPv6 next hop", func(t *testing.T) {
			hop := linkLocal(t, s.Internet, netlab.InternetLink)
			linkLocal(t, s.Host.Node, netlab.UplinkLink)
			// The server's address is not on the link, so that the next hop counts.
			s.Internet.Run(t, "ip", "address", "add", "203.0.113.7/32", "dev", "lo")
			s.Host.Run(t, "ip", "route", "replace", "default", "via", "inet6", hop, "dev", netlab.UplinkLink)
			reaches(t, s.w1.Node, "tcp", at(farAddr, internetPort), netlab.HostAddr)
			pings(t, s.w1.Node, farAddr)
			s.Host.Run(t, "ip", "route", "replace", "default", "via", netlab.InternetAddr.String())
			reaches(t, s.w1.Node, "tcp", at(farAddr, internetPort), netlab.HostAddr)
		})
		t.Run("no route", func(t *testing.T) {
			s.Host.Run(t, "ip", "route", "add", "unreachable", "192.0.2.0/24")
			start := time.Now()
			_, err := s.w1.Who("tcp", at(unreachableAddr, 80), works)
			if err == nil || time.Since(start) > works/2 {
				t.Errorf("after %v: %v, want the host to say unreachable at once", time.Since(start), err)
			}
		})
	})
}

// linkLocal returns the device's link-local address once it may be used.
func linkLocal(t *testing.T, n *netlab.Node, device string) string {
	t.Helper()
	for deadline := time.Now().Add(works); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		out := n.Run(t, "ip", "-6", "-o", "address", "show", "dev", device, "scope", "link", "-tentative")
		if _, rest, ok := strings.Cut(out, "inet6 "); ok {
			addr, _, _ := strings.Cut(rest, "/")
			return addr
		}
	}
	t.Fatalf("%s of %s has no link-local address", device, n.Name)
	return ""
}
