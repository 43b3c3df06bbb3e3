package e2e

import (
	"strings"
	"testing"

	"github.com/ebnet/ebnet/tests/netlab"
)

// TestPrivilegedOutbound: containers reach the internet, which sees the host's
// uplink address; 100 MB arrive as they were sent, whatever the devices leave
// to the receiver.
func TestPrivilegedOutbound(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		server := at(netlab.InternetAddr, internetPort)
		t.Run("who", func(t *testing.T) {
			for _, p := range protocols {
				reaches(t, s.w1.Node, p, server, netlab.HostAddr)
				reaches(t, s.w2.Node, p, server, netlab.HostAddr)
			}
			pings(t, s.w1.Node, netlab.InternetAddr)
		})
		t.Run("flows", func(t *testing.T) { flowsAreListed(t, s) })
		s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8080:80/tcp")
		t.Run("offloads on", func(t *testing.T) {
			bulk(t, s.w1.Node, server, 100_000_000)
			bulk(t, s.Internet, at(netlab.HostAddr, 8080), 10_000_000)
		})
		t.Run("offloads off", func(t *testing.T) {
			offloadsOff(t, s)
			bulk(t, s.w1.Node, server, 100_000_000)
			bulk(t, s.Internet, at(netlab.HostAddr, 8080), 10_000_000)
			bulk(t, s.w1.Node, at(s.w2.Addr, containerPort), 10_000_000)
			for _, p := range protocols {
				reaches(t, s.w1.Node, p, server, netlab.HostAddr)
			}
			pings(t, s.w1.Node, netlab.InternetAddr)
		})
	})
}

// flowsAreListed checks that the conversations of "who" are in ebnet flows.
func flowsAreListed(t *testing.T, s *site) {
	var list netlab.List[struct {
		Protocol      string `json:"protocol"`
		Src           string `json:"src"`
		Dst           string `json:"dst"`
		TranslatedSrc string `json:"translated_src"`
		Endpoint      string `json:"endpoint"`
		Kind          string `json:"kind"`
		Packets       uint64 `json:"packets"`
	}]
	s.Host.JSON(t, &list, "flows")
	for _, p := range []string{"tcp", "udp", "icmp"} {
		found := false
		for _, f := range list.Items {
			found = found || f.Protocol == p && f.Kind == "snat" && f.Endpoint == s.w1.Endpoint && f.Packets > 0 &&
				strings.HasPrefix(f.Src, s.w1.Addr.String()) &&
				strings.HasPrefix(f.Dst, netlab.InternetAddr.String()) &&
				strings.HasPrefix(f.TranslatedSrc, netlab.HostAddr.String())
		}
		if !found {
			t.Errorf("no %s flow of %s to the internet in %+v", p, s.w1.Endpoint, list.Items)
		}
	}
}

// offloadsOff makes every device involved send and take packets as they are on
// a wire: checksummed and no larger than the MTU.
func offloadsOff(t *testing.T, s *site) {
	t.Helper()
	for _, n := range []*netlab.Node{s.Internet, s.Host.Node, s.w1.Node, s.w2.Node} {
		for dev := range n.Links(t) {
			if dev == "lo" {
				continue
			}
			for _, feature := range []string{"tx", "rx", "tso", "gso", "gro"} {
				// Some devices cannot change some; what counts is read back below.
				n.Try(t, nil, "ethtool", "-K", dev, feature, "off")
			}
			state := n.Run(t, "ethtool", "-k", dev)
			for _, feature := range []string{
				"tx-checksumming", "tcp-segmentation-offload", "generic-segmentation-offload", "generic-receive-offload",
			} {
				if !strings.Contains(state, feature+": off") {
					t.Fatalf("%s is still on at %s of %s:\n%s", feature, dev, n.Name, state)
				}
			}
		}
	}
}
