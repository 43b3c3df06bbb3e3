package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/ebnet/ebnet/tests/netlab"
)

// Addresses behind the two internets, and the one that the host moves to.
var (
	behindFirst  = netip.MustParseAddr("198.18.0.1")
	behindSecond = netip.MustParseAddr("198.19.0.1")
	movedAddr    = netip.MustParseAddr("198.51.100.77")
)

// TestPrivilegedUplinks: conversations leave with the address that the host's own would
// have on that way, whatever becomes of its routes and addresses while no command is run.
func TestPrivilegedUplinks(t *testing.T) {
	needSourceLookup(t)
	for _, mode := range modes {
		t.Run(mode[2:], func(t *testing.T) {
			t.Parallel()
			l := netlab.New(t)
			second := l.SecondUplink(t)
			second.Serve(t, internetPort)
			second.Run(t, "ip", "address", "add", behindSecond.String()+"/32", "dev", "lo")
			l.Internet.Run(t, "ip", "address", "add", behindFirst.String()+"/32", "dev", "lo")
			l.Host.Run(t, "ip", "route", "add", behindSecond.String()+"/32", "via", netlab.SecondInternetAddr.String())
			s := newSite(t, l, mode)
			l.Host.Up(t, "--uplink", netlab.UplinkLink, "--uplink", netlab.SecondUplinkLink)
			s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8080:80/tcp", "8080:80/udp")
			t.Run("two uplinks", func(t *testing.T) { twoUplinks(t, s, second) })
			t.Run("a route that changes uplinks", func(t *testing.T) { reroute(t, s, second) })
			t.Run("preferred source", func(t *testing.T) { preferredSource(t, s) })
			t.Run("an address that changes", func(t *testing.T) { addressMoves(t, s) })
		})
	}
}

// needSourceLookup skips the test where the kernel cannot tell a program which source
// address it would use.
func needSourceLookup(t *testing.T) {
	t.Helper()
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(string(release), "%d.%d", &major, &minor); err != nil {
		t.Fatalf("kernel %q: %v", release, err)
	}
	if major < 6 || major == 6 && minor < 7 {
		t.Skipf("SKIP: kernel %d.%d has no lookup of source addresses (6.7 has)", major, minor)
	}
}

func twoUplinks(t *testing.T, s *site, second *netlab.Node) {
	for _, p := range protocols {
		reaches(t, s.w1.Node, p, at(netlab.InternetAddr, internetPort), netlab.HostAddr)
		reaches(t, s.w1.Node, p, at(behindFirst, internetPort), netlab.HostAddr)
		reaches(t, s.w1.Node, p, at(netlab.SecondInternetAddr, internetPort), netlab.SecondHostAddr)
		reaches(t, s.w1.Node, p, at(behindSecond, internetPort), netlab.SecondHostAddr)
		reaches(t, s.Internet, p, at(netlab.HostAddr, 8080), netlab.InternetAddr)
		reaches(t, second, p, at(netlab.SecondHostAddr, 8080), netlab.SecondInternetAddr)
	}
	pings(t, s.w1.Node, behindFirst)
	pings(t, s.w1.Node, behindSecond)
	bulk(t, s.w1.Node, at(behindSecond, internetPort), 4<<20)
	bulk(t, second, at(netlab.SecondHostAddr, 8080), 4<<20)
}

// reroute moves a destination from one uplink to the other: what is new has the other
// address, and nothing has the container's.
func reroute(t *testing.T, s *site, second *netlab.Node) {
	leaked := []*netlab.Sniffer{s.Internet.Sniff(t, s.w1.Addr), second.Sniff(t, s.w1.Addr)}
	roaming := netip.MustParseAddr("198.18.0.2") // in both internets
	s.Internet.Run(t, "ip", "address", "add", roaming.String()+"/32", "dev", "lo")
	second.Run(t, "ip", "address", "add", roaming.String()+"/32", "dev", "lo")
	for _, p := range protocols {
		reaches(t, s.w1.Node, p, at(roaming, internetPort), netlab.HostAddr)
	}
	s.Host.Run(t, "ip", "route", "add", roaming.String()+"/32", "via", netlab.SecondInternetAddr.String())
	for _, p := range protocols {
		reaches(t, s.w1.Node, p, at(roaming, internetPort), netlab.SecondHostAddr)
	}
	s.Host.Run(t, "ip", "route", "del", roaming.String()+"/32")
	for _, p := range protocols {
		reaches(t, s.w1.Node, p, at(roaming, internetPort), netlab.HostAddr)
	}
	for _, l := range leaked {
		if n := l.Packets(); n != 0 {
			t.Errorf("%d packets left with the container's address", n)
		}
	}
}

// preferredSource has a route say which of an uplink's addresses to use. What is
// established stays as it is.
func preferredSource(t *testing.T, s *site) {
	before, err := s.w1.DialEcho(netip.AddrPort{}, at(behindFirst, internetPort))
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	for _, src := range []netip.Addr{netlab.HostAddr2, netlab.HostAddr} {
		s.Host.Run(t, "ip", "route", "replace", "default", "via", netlab.InternetAddr.String(), "src", src.String())
		for _, p := range protocols {
			reaches(t, s.w1.Node, p, at(behindFirst, internetPort), src)
			reaches(t, s.w1.Node, p, at(netlab.InternetAddr, internetPort), netlab.HostAddr) // another route
		}
		if err := before.Say("still here"); err != nil {
			t.Errorf("a connection that was there before: %v", err)
		}
	}
}

// addressMoves gives the uplink another address as a DHCP client would.
func addressMoves(t *testing.T, s *site) {
	old := s.Internet.Sniff(t, netlab.HostAddr)
	leaked := s.Internet.Sniff(t, s.w1.Addr)
	server := at(netlab.InternetAddr, internetPort)
	out, err := s.w1.DialEcho(netip.AddrPort{}, server)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := s.Internet.DialEcho(netip.AddrPort{}, at(netlab.HostAddr, 8080))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	stream := s.w1.Stream(t, netip.AddrPort{}, at(netlab.InternetAddr, 7100), s.Internet, 7100)
	stream.WaitFlowing(t)
	gone := dropped(t, s, "source-address-gone")

	s.Host.Run(t, "ip", "address", "flush", "dev", netlab.UplinkLink)
	s.Host.Run(t, "ip", "address", "add", movedAddr.String()+"/24", "dev", netlab.UplinkLink)
	s.Host.Run(t, "ip", "route", "add", "default", "via", netlab.InternetAddr.String())
	for _, p := range protocols {
		reaches(t, s.w1.Node, p, server, movedAddr)
		reaches(t, s.w2.Node, p, at(behindFirst, internetPort), movedAddr)
		reaches(t, s.Internet, p, at(movedAddr, 8080), netlab.InternetAddr)
		reaches(t, s.w2.Node, p, at(movedAddr, 8080), s.w2.Addr)
	}
	for name, e := range map[string]*netlab.Echo{"out": out, "in": in} {
		for deadline := time.Now().Add(works); e.SayWithin("is anybody there?", blocked) == nil; {
			if time.Now().After(deadline) {
				t.Fatalf("an established connection %s lives on", name)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	// Three conversations: each is told once that its address is gone.
	for deadline := time.Now().Add(works); dropped(t, s, "source-address-gone") < gone+3; {
		if time.Now().After(deadline) {
			t.Fatalf("source-address-gone counted %d times, want 3", dropped(t, s, "source-address-gone")-gone)
		}
		time.Sleep(20 * time.Millisecond)
	}
	before := old.Packets()
	time.Sleep(blocked)
	if n := old.Packets() - before; n != 0 {
		t.Errorf("%d packets with an address that the host has no more", n)
	}
	if n := leaked.Packets(); n != 0 {
		t.Errorf("%d packets left with the container's address", n)
	}
}
