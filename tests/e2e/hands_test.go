package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ebnet/ebnet/tests/netlab"
)

// manyHands is how many commands are started at once.
const manyHands = 64

// hands is a host that many commands work on.
type hands struct {
	*netlab.Lab
	containers []*netlab.Container
	random     *rand.Rand
}

// TestPrivilegedManyHands: 64 commands of all kinds at once each succeed or say what is in the way, in time. What they leave
// is what the nouns say, works, and needs no repair.
func TestPrivilegedManyHands(t *testing.T) {
	l := netlab.New(t)
	upWith(t, l, modes[0])
	h := &hands{Lab: l, containers: l.Containers(t, "c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7")}
	for _, c := range h.containers {
		c.Serve(t, containerPort)
	}
	for _, c := range h.containers[:4] {
		c.Connect(t, "default")
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	h.random = rand.New(rand.NewPCG(seed, 0))
	for round := range 4 {
		down := round == 3 // which makes others say that ebnet is not up
		t.Run(fmt.Sprintf("round %d", round), func(t *testing.T) {
			start := time.Now()
			h.round(t, down)
			t.Logf("%d commands took %v", manyHands, time.Since(start).Round(time.Millisecond))
			if down {
				l.Host.Up(t)
			}
			wantHealthy(t, l.Host)
			h.check(t)
		})
	}
}

// command returns a random command.
func (h *hands) command(down bool) []string {
	pick := func(words ...string) string { return words[h.random.IntN(len(words))] }
	c := h.containers[h.random.IntN(len(h.containers))]
	network := pick("n0", "n1", "n2")
	port := fmt.Sprint(8000 + h.random.IntN(6))
	verbs := [][]string{
		{"connect", pick("default", network), c.Name, "--name", c.Endpoint},
		{"connect", "default", c.Name, "--name", c.Endpoint, "-p", port + ":80"},
		{"disconnect", c.Endpoint},
		{"expose", c.Endpoint, port + ":80"},
		{"expose", c.Endpoint, pick("80", "8000-8003:80-83/udp")},
		{"unexpose", c.Endpoint},
		{"unexpose", c.Endpoint, port + ":80"},
		{"network", "create", network},
		{"network", "rm", network},
		{"network", "rm", "--force", network},
		{"network", "prune"},
		{"run", "-p", port + ":80", "--", "true"},
		{"flows", "--flush"},
		{"up"},
		{"up", pick(modes...)},
	}
	nouns := [][]string{
		{"network", "ls"}, {"network", "inspect", network}, {"endpoint", "ls"}, {"endpoint", "inspect", c.Endpoint},
		{"ports"}, {"status"}, {"flows"}, {"stats"}, {"doctor"}, {"metrics"}, {"graph"}, {"version"},
	}
	if down {
		verbs = append(verbs, []string{"down"}, []string{"down"}, []string{"down", "--purge"})
	}
	if h.random.IntN(3) == 0 {
		return nouns[h.random.IntN(len(nouns))]
	}
	return verbs[h.random.IntN(len(verbs))]
}

// round starts many commands at once and looks at how each ends.
func (h *hands) round(t *testing.T, down bool) {
	t.Helper()
	var wg sync.WaitGroup
	start := make(chan struct{})
	for range manyHands {
		args := h.command(down)
		wg.Go(func() {
			<-start
			began := time.Now()
			r := h.Host.TryEbnet(t, args...)
			if took := time.Since(began); took > 50*time.Second {
				t.Errorf("ebnet %s took %v", strings.Join(args, " "), took)
			}
			if !clearEnd(args[0], r, down) {
				t.Error(r)
			}
		})
	}
	close(start)
	wg.Wait()
}

// clearEnd reports whether a command has done what it was to do, or says in one line what is in its
// way and perhaps in another how to go on.
func clearEnd(command string, r netlab.Result, down bool) bool {
	notUp := down && strings.Contains(r.Stderr, "ebnet is not up")
	switch {
	case r.Code == 0:
		return true
	case command == "doctor" && r.Code == 1:
		return down && strings.Contains(r.Stdout, "nothing is loaded")
	case r.Code != 4 && r.Code != 5 && !(r.Code == 1 && notUp):
		return false
	}
	var said int
	for line := range strings.Lines(r.Stderr) {
		if strings.HasPrefix(line, "ebnet: warning: ") {
			continue
		}
		if said++; said == 1 && !strings.HasPrefix(line, "ebnet: ") {
			return false
		}
	}
	return said == 1 || said == 2
}

// check compares what the nouns say with what is there.
func (h *hands) check(t *testing.T) {
	t.Helper()
	var want, have []string
	var networks netlab.List[netlab.Network]
	h.Host.JSON(t, &networks, "network", "ls")
	for _, n := range networks.Items {
		want = append(want, n.Bridge)
	}
	endpoints := h.Host.Endpoints(t)
	for _, e := range endpoints {
		want = append(want, e.HostLink)
	}
	for name := range h.Host.Links(t) {
		if name != "lo" && name != netlab.UplinkLink {
			have = append(have, name)
		}
	}
	slices.Sort(want)
	slices.Sort(have)
	if !slices.Equal(want, have) {
		t.Errorf("devices are %v, recorded are %v", have, want)
	}
	for _, c := range h.containers {
		_, there := c.Links(t)["eth0"]
		e, recorded := endpoints[c.Endpoint]
		if there != recorded || recorded && e.State != "up" {
			t.Errorf("%s has a link: %v; its endpoint: %+v", c.Endpoint, there, e)
		}
	}
	var ports netlab.List[struct {
		Endpoint, Protocol string
		HostPort           uint16 `json:"host_port"`
		Port               uint16 `json:"port"`
	}]
	h.Host.JSON(t, &ports, "ports")
	open := make(map[uint16]bool)
	for _, p := range ports.Items {
		if p.Protocol == "tcp" {
			open[p.HostPort] = true
			if _, err := h.Internet.Who("tcp", at(netlab.HostAddr, p.HostPort), works); err != nil {
				t.Errorf("port %d of %s: %v", p.HostPort, p.Endpoint, err)
			}
		}
	}
	for port := uint16(8000); port < 8006; port++ {
		if !open[port] {
			if c, err := h.Internet.Dial("tcp", netip.AddrPort{}, at(netlab.HostAddr, port), blocked); err == nil {
				_ = c.Close()
				t.Errorf("port %d is open, and is not published", port)
			}
		}
	}
}
