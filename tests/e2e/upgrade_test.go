package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ebnet/ebnet/tests/netlab"
)

// Other builds. All have another object than the one under test.
var (
	sameLayout = netlab.Variant{Name: "same"}

	// What the commands write is laid out in another way, conversations are not.
	otherRecords = netlab.Variant{Name: "records", ABI: 3, BPF: map[string]string{
		"struct endpoint {\n":                             "struct endpoint {\n\t__u32 spare;\n",
		"_Static_assert(sizeof(struct endpoint) == 20":    "_Static_assert(sizeof(struct endpoint) == 24",
		"struct service {\n":                              "struct service {\n\t__u64 spare;\n",
		"_Static_assert(sizeof(struct service) == 40":     "_Static_assert(sizeof(struct service) == 48",
		"\t__u64 source; /* may be chosen as a source po": "\t__u64 spare;\n\t__u64 source; /* may be chosen as a source po",
	}}

	// Conversations are laid out in another way, and it knows how to read the former ones.
	otherFlows = netlab.Variant{Name: "flows", ABI: 3, BPF: map[string]string{
		"\tstruct tuple xlat; /* the tuple after translation */\n": "\tstruct tuple xlat;\n\t__u64 spare;\n",
		"_Static_assert(sizeof(struct flow) == 128":                "_Static_assert(sizeof(struct flow) == 136",
	}, More: map[string]string{
		"loader/convert_former.go": `package loader

func init() {
	widen := func(key, value []byte) ([]byte, []byte, bool) {
		wide := append(append([]byte(nil), value[:48]...), make([]byte, 8)...) // behind tag and xlat
		return key, append(wide, value[48:]...), true
	}
	converters[conversion{"flows", 2, 3}], converters[conversion{"flows_new", 2, 3}] = widen, widen
}
`}}
)

// talking is a lot of conversations by way of the datapath.
type talking struct {
	echoes   []*netlab.Echo
	torrents []*netlab.Torrent
	said     atomic.Int64
}

// startTalk opens n TCP connections, a quarter of each kind, and a torrent of each kind, one of
// them at full rate if that is asked for.
//
// What one container sends to another's port directly and by way of a published one is to different ports of
// the other, which sees the same client in both cases.
func startTalk(t *testing.T, s *site, n int, full bool) *talking {
	t.Helper()
	s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8080:80/tcp", "8083:81/tcp", "8081:9001/udp", "8082:9002/udp")
	s.w1.Serve(t, 81)
	kinds := []struct {
		name   string
		from   *netlab.Node
		tcp    netip.AddrPort
		udp    netip.AddrPort
		server *netlab.Node
		port   uint16
	}{
		{"out", s.w1.Node, at(netlab.InternetAddr, internetPort), at(netlab.InternetAddr, 9000), s.Internet, 9000},
		{"in", s.Internet, at(netlab.HostAddr, 8080), at(netlab.HostAddr, 8081), s.w1.Node, 9001},
		{"inside", s.w2.Node, at(netlab.HostAddr, 8083), at(netlab.HostAddr, 8082), s.w1.Node, 9002},
		{"neighbour", s.w2.Node, at(s.w1.Addr, containerPort), at(s.w1.Addr, 9003), s.w1.Node, 9003},
	}
	k := &talking{echoes: make([]*netlab.Echo, n)}
	t.Cleanup(func() {
		for _, e := range k.echoes {
			if e != nil {
				e.Close()
			}
		}
	})
	each(n, 16, func(i int) {
		kind := kinds[i%len(kinds)]
		e, err := kind.from.DialEcho(netip.AddrPort{}, kind.tcp)
		if err != nil {
			t.Errorf("connection %d (%s): %v", i, kind.name, err)
			return
		}
		k.echoes[i] = e
	})
	if t.Failed() {
		t.FailNow()
	}
	k.say(t, "before")
	fastest := rand.IntN(len(kinds))
	for i, kind := range kinds {
		pause := time.Millisecond
		if full && i == fastest {
			pause = 0
		}
		k.torrents = append(k.torrents, kind.from.Torrent(t, kind.name, pause, kind.udp, kind.server, kind.port))
	}
	if peer := k.torrents[0].Peer(); peer.Addr() != netlab.HostAddr {
		t.Errorf("what goes out comes from %v", peer)
	}
	return k
}

// each calls f for 0 to n-1, some at a time.
func each(n, parallel int, f func(i int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range parallel {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	wg.Wait()
}

// say has every connection say something, which must come back.
func (k *talking) say(t *testing.T, when string) {
	t.Helper()
	each(len(k.echoes), 16, func(i int) {
		if err := k.echoes[i].Say(fmt.Sprintf("%d %s", i, when)); err != nil {
			t.Errorf("connection %d %s: %v", i, when, err)
		}
		k.said.Add(1)
	})
	if t.Failed() {
		t.FailNow()
	}
}

// during calls f while the connections go on talking, all in turn.
func (k *talking) during(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for round := 0; ; round++ {
			select {
			case <-done:
				return
			default:
			}
			for i, e := range k.echoes {
				if err := e.Say(fmt.Sprintf("%d in round %d", i, round)); err != nil {
					t.Errorf("connection %d in round %d: %v", i, round, err)
					return
				}
				k.said.Add(1)
			}
		}
	})
	f()
	close(done)
	wg.Wait()
}

// check ends the torrents: nothing may be lost or mistranslated.
func (k *talking) check(t *testing.T) {
	t.Helper()
	k.say(t, "after")
	for _, torrent := range k.torrents {
		r := torrent.Stop()
		if r.Lost != 0 || len(r.Wrong) != 0 {
			t.Errorf("torrent %s: %d of %d datagrams lost; %v", torrent.Name, r.Lost, r.Sent, r.Wrong)
		}
		t.Logf("torrent %s: %d datagrams", torrent.Name, r.Sent)
	}
	t.Logf("%d connections said %d lines", len(k.echoes), k.said.Load())
}

// programIDs are the programs of the links and filters, to see that they were swapped.
func programIDs(t *testing.T, h *netlab.Host) string {
	t.Helper()
	var ids strings.Builder
	for path, object := range h.Pinned(t) {
		if strings.Contains(path, "/progs/from_uplink") {
			ids.WriteString(object)
		}
	}
	return ids.String()
}

// layoutsOf are the directories of pins.
func layoutsOf(t *testing.T, h *netlab.Host) (names []string) {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(h.BPFFS, "v*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		names = append(names, filepath.Base(d))
	}
	return names
}

// wantHealthy checks that ebnet doctor finds nothing and that a further up has nothing to do.
func wantHealthy(t *testing.T, h *netlab.Host) {
	t.Helper()
	if found := examine(t, h); len(found) != 0 {
		t.Errorf("doctor: %+v", found)
	}
	if out := h.Ebnet(t, "up"); !strings.HasPrefix(out, "up, nothing to change") {
		t.Errorf("a further up: %s", out)
	}
}

// withAttachment runs f on a site of its own, attached by tcx or not.
func withAttachment(t *testing.T, tcx, mode string, f func(t *testing.T, s *site)) {
	t.Helper()
	t.Run("tcx="+tcx+","+mode[2:], func(t *testing.T) {
		l := netlab.New(t)
		l.Host.Env = append(l.Host.Env, "EBNET_TCX="+tcx)
		f(t, newSite(t, l, mode))
	})
}

// eachAttachment runs f for both ways to attach, with one way each that a packet may take.
func eachAttachment(t *testing.T, f func(t *testing.T, s *site)) {
	t.Helper()
	withAttachment(t, "on", modes[0], f)
	withAttachment(t, "off", modes[1], f)
}

// TestPrivilegedUpgradeUnderLoad: another build's up swaps the programs, there and back ten times, under 1,000
// TCP connections and UDP at full rate. No connection is lost, no datagram is lost or mistranslated.
func TestPrivilegedUpgradeUnderLoad(t *testing.T) {
	other := sameLayout.Build(t)
	under := func(connections, swaps int) func(t *testing.T, s *site) {
		return func(t *testing.T, s *site) {
			k := startTalk(t, s, connections, true)
			outside := s.Internet.Sniff(t, s.w1.Addr)
			k.during(t, func() {
				for i := range swaps {
					was := programIDs(t, s.Host)
					s.Host.Bin = []string{other, ""}[i%2]
					if out := s.Host.Ebnet(t, "up"); !strings.HasPrefix(out, "up: ") {
						t.Errorf("up of another build changed nothing: %s", out)
					}
					if now := programIDs(t, s.Host); now == was {
						t.Errorf("programs are %s still", now)
					}
				}
			})
			k.check(t)
			if n := outside.Packets(); n != 0 {
				t.Errorf("%d packets left with a container's address", n)
			}
			wantHealthy(t, s.Host)
		}
	}
	withAttachment(t, "on", modes[0], under(1000, 10))
	withAttachment(t, "on", modes[1], under(200, 4))
	withAttachment(t, "off", modes[0], under(200, 4))
	withAttachment(t, "off", modes[1], under(1000, 4))
}

// TestPrivilegedUpgradeLayout: a build with another layout takes over what it can read, and cuts the rest
// only when it is told to.
func TestPrivilegedUpgradeLayout(t *testing.T) {
	records, flows := otherRecords.Build(t), otherFlows.Build(t)
	eachAttachment(t, func(t *testing.T, s *site) {
		t.Run("conversations are kept", func(t *testing.T) {
			k := startTalk(t, s, 200, false)
			k.during(t, func() {
				for i := range 4 {
					s.Host.Bin = []string{records, ""}[i%2]
					s.Host.Up(t)
					if got, want := layoutsOf(t, s.Host), []string{"v3", "v2"}[i%2]; !slices.Equal(got, []string{want}) {
						t.Errorf("pins are in %v, want %s", got, want)
					}
				}
			})
			k.check(t)
			wantHealthy(t, s.Host)
			s.Host.Ebnet(t, "unexpose", s.w1.Endpoint)
		})
		t.Run("conversations are converted, or cut", func(t *testing.T) {
			k := startTalk(t, s, 200, false)
			k.during(t, func() {
				s.Host.Bin = flows
				s.Host.Up(t)
			})
			k.check(t)
			wantHealthy(t, s.Host)
			// The older build cannot know the newer one's.
			s.Host.Bin = ""
			refuses(t, s)
			k.say(t, "after a refusal")
			s.Host.Up(t, "--yes")
			for i, e := range k.echoes[:3] { // those that are translated
				if err := e.SayWithin("gone", blocked); err == nil {
					t.Errorf("connection %d was not cut", i)
				}
			}
			for _, p := range protocols {
				reaches(t, s.w1.Node, p, at(netlab.InternetAddr, internetPort), netlab.HostAddr)
			}
			reaches(t, s.Internet, "tcp", at(netlab.HostAddr, 8080), netlab.InternetAddr)
			wantHealthy(t, s.Host)
			s.Host.Ebnet(t, "unexpose", s.w1.Endpoint)
		})
		t.Run("other commands", func(t *testing.T) {
			s.Host.Bin = records
			s.Host.Up(t)
			s.Host.Bin = ""
			for _, args := range [][]string{{"expose", "w1", "80"}, {"disconnect", "w1"}, {"status"}, {"flows"}, {"network", "create", "n"}} {
				r := s.Host.TryEbnet(t, args...)
				if r.Code != 4 || !strings.Contains(r.Stderr, "another version of ebnet loaded the datapath") || !strings.Contains(r.Stderr, "`ebnet up` replaces it") {
					t.Errorf("under another version's datapath: %v", r)
				}
			}
			if found := examine(t, s.Host); len(found) != 2 || found[1].Check != "leftovers" || !strings.Contains(found[1].What, "v3") {
				t.Errorf("doctor: %+v", found)
			}
			s.Host.Ebnet(t, "down")
			if pins := s.Host.Pins(t); len(pins) != 0 {
				t.Errorf("pins after down: %v", pins)
			}
			s.Host.Up(t)
			reaches(t, s.w1.Node, "tcp", at(netlab.InternetAddr, internetPort), netlab.HostAddr)
		})
	})
}

// refuses checks that up says what would be cut, and touches nothing.
func refuses(t *testing.T, s *site) {
	t.Helper()
	pins, state := s.Host.Pinned(t), stateOf(t, s.Host)
	r := s.Host.TryEbnet(t, "up", "--fast-path=off", "--timeout", "icmp=5s")
	if r.Code != 4 || !strings.Contains(r.Stderr, "conversations would be cut") || !strings.Contains(r.Stderr, "flows, flows_new") ||
		!strings.Contains(r.Stderr, "--yes") {
		t.Errorf("up over conversations that it cannot read: %v", r)
	}
	if diff := cmp.Diff(pins, s.Host.Pinned(t)); diff != "" {
		t.Errorf("pins before and after a refusal:\n%s", diff)
	}
	if now := stateOf(t, s.Host); now != state {
		t.Error("the state was changed by a refusal")
	}
}

func stateOf(t *testing.T, h *netlab.Host) string {
	t.Helper()
	file, err := os.ReadFile(filepath.Join(h.State, "ebnet.db"))
	if err != nil {
		t.Fatal(err)
	}
	return string(file)
}

// TestPrivilegedUpgradeKilled: up is killed at any moment of a swap; the next up of any build repairs it, and
// all conversations go on.
func TestPrivilegedUpgradeKilled(t *testing.T) {
	builds := []string{"", sameLayout.Build(t), otherRecords.Build(t)}
	for i, tcx := range []string{"on", "off"} {
		kills := []int{20, 10}[i]
		t.Run("tcx="+tcx, func(t *testing.T) {
			l := netlab.New(t)
			l.Host.Env = append(l.Host.Env, "EBNET_TCX="+tcx)
			s := newSite(t, l, modes[i])
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			k := startTalk(t, s, 100, false)
			start := time.Now()
			s.Host.Bin = builds[2]
			s.Host.Up(t)
			limit := time.Since(start) // the longest of them
			killed := 0
			k.during(t, func() {
				for range kills {
					s.Host.Bin = builds[random.IntN(len(builds))]
					if killedUp(t, s.Host, time.Duration(random.Int64N(int64(limit)))) {
						killed++
					}
					s.Host.Bin = builds[random.IntN(len(builds))]
					s.Host.Up(t)
					if dirs := layoutsOf(t, s.Host); len(dirs) != 1 {
						t.Errorf("pins are in %v", dirs)
					}
				}
			})
			t.Logf("%d of %d were killed, within %v", killed, kills, limit)
			if killed == 0 {
				t.Error("none was killed in time")
			}
			k.check(t)
			wantHealthy(t, s.Host)
		})
	}
}

// killedUp runs up and kills it after a while, unless it is done by then.
func killedUp(t *testing.T, h *netlab.Host, after time.Duration) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), after)
	defer cancel()
	args := h.Command("up")
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), h.Env...)
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // the exit status says it all
	if code := cmd.ProcessState.ExitCode(); code != -1 && code != 0 {
		t.Errorf("up ended with %d", code)
	}
	return cmd.ProcessState.ExitCode() == -1
}
