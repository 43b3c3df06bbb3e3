package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ebnet/ebnet/tests/netlab"
)

// firewall is a rule set like firewalld's, which is replaced as a whole: it forwards
// nothing new, and has conntrack look at everything.
const firewall = `flush ruleset
table inet firewalld {
	chain mangle_PREROUTING {
		type filter hook prerouting priority mangle + 10; policy accept;
		fib saddr . iif oif missing drop
	}
	chain nat_POSTROUTING {
		type nat hook postrouting priority srcnat + 10; policy accept;
		oifname "up0" masquerade
	}
	chain filter_INPUT {
		type filter hook input priority filter + 10; policy accept;
		ct state established,related accept
		iifname "lo" accept
		ct state invalid drop
		reject with icmpx admin-prohibited
	}
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy drop;
		ct state established,related accept
		ct state invalid drop
		reject with icmpx admin-prohibited
	}
}
`

// TestPrivilegedCoexistence: what others do to the host's packet filters and settings costs
// no conversation a single packet.
func TestPrivilegedCoexistence(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8080:80/tcp", "8082:82/udp")
		streams := map[string]*netlab.Stream{
			"out":       s.w1.Stream(t, netip.AddrPort{}, at(netlab.InternetAddr, 7100), s.Internet, 7100),
			"published": s.Internet.Stream(t, netip.AddrPort{}, at(netlab.HostAddr, 8082), s.w1.Node, 82),
			"neighbour": s.w2.Stream(t, netip.AddrPort{}, at(s.w1.Addr, 83), s.w1.Node, 83),
		}
		flowing := func() (lost uint64) {
			for _, stream := range streams {
				stream.WaitFlowing(t)
				lost += stream.Lost()
			}
			return lost
		}
		flowing()
		quiet := transfer(t, s)
		defer quiet()
		rules := filepath.Join(t.TempDir(), "firewall.nft")
		if err := os.WriteFile(rules, []byte(firewall), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, upheaval := range []struct {
			name  string
			cause func()
		}{
			{"nft flush ruleset", func() { s.Host.Run(t, "nft", "flush", "ruleset") }},
			{"iptables -F", func() { s.Host.Run(t, "iptables", "-F") }},
			{"iptables -t nat -F", func() { s.Host.Run(t, "iptables", "-t", "nat", "-F") }},
			{"iptables -P FORWARD DROP", func() { s.Host.Run(t, "iptables", "-P", "FORWARD", "DROP") }},
			{"firewall reloads", func() { s.Host.Run(t, "nft", "-f", rules) }},
			{"strict rp_filter", func() { reversePath(t, s, 1) }},
			{"loose rp_filter", func() { reversePath(t, s, 2) }},
			{"nft flush ruleset again", func() { s.Host.Run(t, "nft", "flush", "ruleset") }},
		} {
			t.Run(upheaval.name, func(t *testing.T) {
				before := flowing()
				for range 10 {
					upheaval.cause()
					time.Sleep(50 * time.Millisecond)
				}
				if lost := flowing() - before; lost != 0 {
					t.Errorf("%d datagrams lost", lost)
				}
				for _, p := range protocols {
					reaches(t, s.w2.Node, p, at(netlab.InternetAddr, internetPort), netlab.HostAddr)
				}
				reaches(t, s.Internet, "tcp", at(netlab.HostAddr, 8080), netlab.InternetAddr)
			})
		}
	})
}

// transfer has data flow both ways over TCP until the function that it returns is called.
func transfer(t *testing.T, s *site) (quiet func()) {
	t.Helper()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for rounds := 0; ; rounds++ {
			select {
			case <-stop:
				t.Logf("%d rounds of transfers meanwhile", rounds)
				return
			default:
				bulk(t, s.w1.Node, at(netlab.InternetAddr, internetPort), 1<<20)
				bulk(t, s.Internet, at(netlab.HostAddr, 8080), 1<<20)
			}
		}
	}()
	return func() {
		close(stop)
		<-done
	}
}

// reversePath has the host check by which device a source would be reached.
func reversePath(t *testing.T, s *site, value int) {
	t.Helper()
	devices := []string{"all", "default"}
	for name := range s.Host.Links(t) {
		devices = append(devices, name)
	}
	for _, d := range devices {
		s.Host.SetSysctl(t, "net/ipv4/conf/"+d+"/rp_filter", fmt.Sprint(value))
	}
}
