package netlab

import (
	"net/netip"
	"os"
	"testing"
	"time"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

// TestPrivilegedLab tests the lab's own means, between its two nodes that need
// no ebnet to reach each other.
func TestPrivilegedLab(t *testing.T) {
	l := New(t)
	service := l.Internet.Serve(t, 7000)
	server := netip.AddrPortFrom(InternetAddr, 7000)
	sniffer := l.Host.Sniff(t, InternetAddr)
	for _, network := range []string{"tcp", "udp"} {
		peer, err := l.Host.WhoFrom(network, netip.AddrPortFrom(HostAddr2, 4000), server, 5*time.Second)
		if err != nil || peer != netip.AddrPortFrom(HostAddr2, 4000) {
			t.Errorf("%s: seen as %v (%v)", network, peer, err)
		}
		if peer, err := l.Host.Who(network, netip.AddrPortFrom(InternetAddr, 7001), time.Second); err == nil {
			t.Errorf("%s: nobody answered %v", network, peer)
		}
	}
	if n := service.Hits(); n != 2 {
		t.Errorf("%d hits, want 2", n)
	}
	if sniffer.Packets() == 0 {
		t.Error("the sniffer saw nothing")
	}
	if err := l.Host.Download(server, 1<<20); err != nil {
		t.Error(err)
	}
	if err := l.Host.Upload(server, 1<<20); err != nil {
		t.Error(err)
	}
	if err := l.Host.Ping(t, InternetAddr, 2, 56); err != nil {
		t.Error(err)
	}
	if err := l.Host.Ping(t, netip.MustParseAddr("198.51.100.77"), 1, 56); err == nil {
		t.Error("nobody answers a ping")
	}
}

// TestPrivilegedLabStream tests that a stream tells what arrives from what does not.
func TestPrivilegedLabStream(t *testing.T) {
	l := New(t)
	s := l.Host.Stream(t, netip.AddrPort{}, netip.AddrPortFrom(InternetAddr, 7100), l.Internet, 7100)
	s.WaitFlowing(t)
	if s.Peer().Addr() != HostAddr {
		t.Errorf("peer is %v, want %v", s.Peer(), HostAddr)
	}
	l.Host.Run(t, "ip", "link", "set", UplinkLink, "down")
	s.Cut().Check(t)
}

// TestPrivilegedContainers tests that containers are there and bare.
func TestPrivilegedContainers(t *testing.T) {
	l := New(t)
	for _, c := range l.Containers(t, "a", "b") {
		if links := c.Links(t); len(links) != 1 || links["lo"] != 1 {
			t.Errorf("links of %s are %v, want lo alone", c.Name, links)
		}
	}
	if v := l.Host.Sysctl(t, "net/ipv4/ip_forward"); v != "0" {
		t.Errorf("ip_forward of the host is %s, want 0", v)
	}
	if rules := l.Host.Rules(t); rules != "" {
		t.Errorf("rules of the host:\n%s", rules)
	}
	l.DropForwarded(t)
	l.CheckRules(t)
}
