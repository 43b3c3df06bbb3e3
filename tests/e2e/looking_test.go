package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/ebnet/ebnet/tests/netlab"
)

// endpointStats is an item of ebnet stats, as far as tests read it.
type endpointStats struct {
	Endpoint       string
	State          string
	Received, Sent *struct{ Packets, Bytes, Dropped uint64 }
	Conversations  int
	Drops          []struct {
		Direction, Reason string
		Packets           uint64
	}
}

func statsOf(t *testing.T, h *netlab.Host, endpoint string) endpointStats {
	t.Helper()
	var list netlab.List[endpointStats]
	h.JSON(t, &list, "stats", endpoint)
	if len(list.Items) != 1 || list.Items[0].Received == nil || list.Items[0].Sent == nil {
		t.Fatalf("stats of %s: %+v", endpoint, list.Items)
	}
	return list.Items[0]
}

// TestPrivilegedStats: what an endpoint received and sent is counted whole, in both
// directions, also what the fast path puts past the host's end of its link.
func TestPrivilegedStats(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8080:80/udp")
		before := statsOf(t, s.Host, s.w1.Endpoint)
		const datagrams, size = 20, 1000
		for range datagrams {
			if _, err := s.Internet.EchoUDP(at(netlab.HostAddr, 8080), size, works); err != nil {
				t.Fatal(err)
			}
		}
		after := statsOf(t, s.Host, s.w1.Endpoint)
		const header = 14 + 20 + 8
		for direction, d := range map[string][2]struct{ Packets, Bytes, Dropped uint64 }{
			"received": {*before.Received, *after.Received}, "sent": {*before.Sent, *after.Sent},
		} {
			packets, bytes := d[1].Packets-d[0].Packets, d[1].Bytes-d[0].Bytes
			// A few ARP packets may be among them; the service puts the peer's address in front.
			if packets < datagrams || packets > datagrams+6 || bytes < datagrams*(size+header) || bytes > datagrams*(size+header+60) {
				t.Errorf("%s: %d packets, %d bytes for %d datagrams of %d bytes", direction, packets, bytes, datagrams, size)
			}
		}
		// A datagram a conversation, of another source port each.
		if after.Conversations < datagrams {
			t.Errorf("%d conversations, want at least %d", after.Conversations, datagrams)
		}
		s.Host.Ebnet(t, "network", "create", "other")
		other := s.Container(t, "other")
		other.Connect(t, "other")
		if err := s.w1.Ping(t, other.Addr, 1, 56); err == nil {
			t.Error("another network was reached")
		}
		dropped := statsOf(t, s.Host, s.w1.Endpoint).Drops
		if len(dropped) != 1 || dropped[0].Direction != "sent" || dropped[0].Reason != "other-network" || dropped[0].Packets == 0 {
			t.Errorf("drops: %+v", dropped)
		}
	})
}

type finding struct{ Check, What, Why, Mend string }

// examine runs ebnet doctor, whose exit status must fit what it found.
func examine(t *testing.T, h *netlab.Host) []finding {
	t.Helper()
	r := h.TryEbnet(t, "doctor", "-o", "json")
	var d struct {
		V       int
		Healthy bool
		Checks  int
		Items   []finding
	}
	if err := json.Unmarshal([]byte(r.Stdout), &d); err != nil || d.V != 1 || r.Stderr != "" {
		t.Fatalf("%v\n%v", err, r)
	}
	if d.Healthy != (len(d.Items) == 0) || d.Healthy != (r.Code == 0) || !d.Healthy && r.Code != 1 || d.Checks == 0 {
		t.Fatalf("exit status %d for %+v", r.Code, d)
	}
	return d.Items
}

// TestPrivilegedDoctor: nothing is found where nothing is wrong; what is done to the host is
// found, with how to mend it; that mends it.
func TestPrivilegedDoctor(t *testing.T) {
	l := netlab.New(t)
	if found := examine(t, l.Host); len(found) != 1 || found[0].Check != "datapath" {
		t.Errorf("before up: %+v", found)
	}
	s := newSite(t, l, "--fast-path=on")
	h := s.Host
	h.Ebnet(t, "expose", s.w1.Endpoint, "8080:80", "9000-9009:90-99/udp")
	healthy := func(t *testing.T) {
		t.Helper()
		if found := examine(t, h); len(found) != 0 {
			t.Fatalf("nothing is wrong, and found is %+v", found)
		}
	}
	healthy(t)
	veth := h.Endpoints(t)[s.w1.Endpoint].HostLink
	unpin := func(name string) func(*testing.T) {
		return func(t *testing.T) {
			found, err := filepath.Glob(filepath.Join(h.BPFFS, "v*", "links", name))
			if err != nil || len(found) != 1 {
				t.Fatalf("pins called %s: %v, %v", name, found, err)
			}
			if err := os.Remove(found[0]); err != nil {
				t.Fatal(err)
			}
		}
	}
	up := func(t *testing.T) { h.Up(t) }
	run := func(words ...string) func(*testing.T) {
		return func(t *testing.T) { h.Run(t, words...) }
	}
	const dnat = "add table inet strange; add chain inet strange pre { type nat hook prerouting priority -100; }; " +
		"add rule inet strange pre udp dport 9005 dnat ip to 10.9.9.9"
	for _, test := range []struct {
		name        string
		spoil, mend func(*testing.T)
		check, what string
		says        string // part of the way to mend
	}{
		{"a pin is removed", unpin(fmt.Sprintf("from_container-%d", h.Endpoints(t)[s.w1.Endpoint].Ifindex)), up,
			"endpoints", "device " + veth + ": program from_container is not attached", "ebnet up"},
		{"a socket program is removed", unpin("connect4"), up, "sockets", "socket hooks", "ebnet up"},
		{"a link is deleted", run("ip", "link", "delete", veth), up, "endpoints", veth, "ebnet up"},
		{"a bridge forwards no more", run("sysctl", "-w", "net.ipv4.conf.ebnet0.forwarding=0"), up, "bridges", "forwarding is 0 instead of 1", "ebnet up"},
		{"forwarding is reset", func(t *testing.T) {
			h.Run(t, "sysctl", "-w", "net.ipv4.ip_forward=1")
			h.Run(t, "sysctl", "-w", "net.ipv4.ip_forward=0")
		}, up, "bridges", "forwarding is 0 instead of 1", "ebnet up"},
		{"a gateway is gone", run("ip", "address", "flush", "dev", "ebnet0"), up, "bridges", "lost the address 172.18.0.1/16", "ebnet up"},
		{"a bridge is left", func(t *testing.T) {
			h.Run(t, "ip", "link", "add", "br-strange", "type", "bridge")
			h.Run(t, "ip", "link", "set", "br-strange", "alias", "ebnet:strange")
		}, up, "leftovers", "device br-strange", "ebnet up"},
		{"a rule has the port", run("nft", dnat), run("nft", "delete table inet strange"), "other-nat", "port 0.0.0.0:9000-9009/udp", "unexpose"},
		{"pins of another version", func(t *testing.T) {
			if err := os.Mkdir(filepath.Join(h.BPFFS, "v1"), 0o700); err != nil {
				t.Fatal(err)
			}
		}, up, "leftovers", "v1", "ebnet up"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.spoil(t)
			found := examine(t, h)
			is := func(f finding) bool {
				return f.Check == test.check && strings.Contains(f.What, test.what) && strings.Contains(f.Mend, test.says)
			}
			if !slices.ContainsFunc(found, is) {
				t.Errorf("found %+v, want one of check %s about %q", found, test.check, test.what)
			}
			for _, f := range found {
				if f.Check != test.check && f.Check != "leftovers" && f.Check != "links" {
					t.Errorf("not asked for: %+v", f)
				}
			}
			test.mend(t)
			healthy(t)
		})
	}
	t.Run("a program of others comes first", func(t *testing.T) {
		for device, ingress := range map[string]bool{veth: true, netlab.UplinkLink: false} {
			detach := h.AttachFirst(t, device, ingress)
			found := examine(t, h)
			if len(found) != 1 || found[0].Check != "order" || !strings.HasPrefix(found[0].What, device+": program ") || !strings.Contains(found[0].What, "(foreign)") {
				t.Errorf("%s: %+v", device, found)
			}
			detach()
		}
		// On the way in by an uplink others come first on purpose.
		defer h.AttachFirst(t, netlab.UplinkLink, true)()
		healthy(t)
	})
	t.Run("a process has the port", func(t *testing.T) {
		// Of another cgroup than ebnet's, where its programs do not see the bind.
		ln, err := h.ListenTCP(at(netlab.HostAddr, 8080))
		if err != nil {
			t.Fatal(err)
		}
		found := examine(t, h)
		if len(found) != 1 || found[0].Check != "holders" || !strings.Contains(found[0].Why, fmt.Sprintf("process %d ", os.Getpid())) {
			t.Errorf("%+v", found)
		}
		ln.Close()
		healthy(t)
	})
	t.Run("a namespace vanishes", func(t *testing.T) {
		name := l.Name + "-gone"
		h.Run(t, "ip", "netns", "add", name)
		h.Ebnet(t, "connect", "default", name, "--name", "gone")
		healthyNow := examine(t, h)
		h.Run(t, "ip", "netns", "delete", name)
		if len(healthyNow) > 0 {
			t.Errorf("before: %+v", healthyNow)
		}
		var found []finding
		for range 100 { // the kernel takes it down some time later
			if found = examine(t, h); len(found) > 0 {
				break
			}
		}
		if len(found) == 0 || found[0].Check != "endpoints" || found[0].Mend != "ebnet disconnect gone" {
			t.Errorf("%+v", found)
		}
		h.Ebnet(t, "disconnect", "gone")
		healthy(t)
	})
	if text := h.Ebnet(t, "doctor"); !strings.HasPrefix(text, "nothing is wrong: ") {
		t.Errorf("it says %q", text)
	}
}

// TestPrivilegedMetricsServer: metrics are served as long as the command runs, also while others
// change things, and a signal ends it in peace.
func TestPrivilegedMetricsServer(t *testing.T) {
	l := netlab.New(t)
	l.Host.Up(t)
	words := l.Host.Command("metrics", "--listen", "127.0.0.1:0")
	cmd := exec.Command(words[0], words[1:]...)
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Host.Start(cmd); err != nil {
		t.Fatal(err)
	}
	ended := false
	defer func() {
		if !ended {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}()
	line, err := bufio.NewReader(said).ReadString('\n')
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "serving http://")
	server, perr := netip.ParseAddrPort(strings.TrimSuffix(addr, "/metrics"))
	if err != nil || !ok || perr != nil {
		t.Fatalf("it says %q: %v, %v", line, err, perr)
	}
	client := http.Client{Timeout: works, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return l.Host.Dial("tcp", netip.AddrPort{}, server, works)
		},
	}}
	scrape := func(want string) {
		t.Helper()
		r, err := client.Get("http://" + server.String() + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err != nil || r.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s, %v, want %q in\n%s", r.Status, err, want, body)
		}
	}
	scrape("\nebnet_networks 1\n")
	l.Host.Ebnet(t, "network", "create", "other")
	scrape("\nebnet_networks 2\n")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ends with %v", err)
	}
	ended = true
}
