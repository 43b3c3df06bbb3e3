package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ebnet/ebnet/tests/netlab"
)

// happening is a line of ebnet monitor -o json, as far as tests read it.
type happening struct {
	V                                           int
	Event, Endpoint, Device, Protocol, Src, Dst string
	Reason, Direction, To                       string
	Length                                      int
	Kind, Why                                   string
	TranslatedSrc                               string `json:"translated_src"`
	TranslatedDst                               string `json:"translated_dst"`
	Packets                                     int
	ReplyPackets                                int `json:"reply_packets"`
	Drops, Opens, Closes, Lost                  int
	Away                                        bool
}

// watching is a command whose output is read line by line while it runs.
type watching struct {
	t     *testing.T
	cmd   *exec.Cmd
	mu    sync.Mutex
	lines []string
	done  chan struct{}
}

func watch(t *testing.T, h *netlab.Host, args ...string) *watching {
	t.Helper()
	words := h.Command(args...)
	w := &watching{t: t, cmd: exec.Command(words[0], words[1:]...), done: make(chan struct{})}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	w.cmd.Stderr = &said
	if err := h.Start(w.cmd); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(w.done)
		for r := bufio.NewReader(out); ; {
			line, err := r.ReadString('\n')
			if err != nil {
				if err != io.EOF || line != "" {
					t.Errorf("after %q: %v", line, err)
				}
				return
			}
			w.mu.Lock()
			w.lines = append(w.lines, line)
			w.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		_ = w.cmd.Process.Kill()
		<-w.done
		_ = w.cmd.Wait()
		if said.Len() > 0 {
			t.Errorf("%s said %q", strings.Join(args, " "), said.String())
		}
	})
	return w
}

// monitor starts ebnet monitor and returns when it listens, as one of several.
func monitor(t *testing.T, h *netlab.Host, of int, args ...string) *watching {
	t.Helper()
	w := watch(t, h, append([]string{"monitor", "-o", "json"}, args...)...)
	soon(t, fmt.Sprintf("%d listen", of), func() bool { return h.Status(t).Listeners == of })
	return w
}

// soon waits for something that takes a moment.
func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(works); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", works, what)
		}
	}
}

func (w *watching) output() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.lines)
}

func (w *watching) events() (all []happening) {
	w.t.Helper()
	for _, line := range w.output() {
		var e happening
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.V != 1 || e.Event == "" {
			w.t.Fatalf("%q is no event: %v", line, err)
		}
		all = append(all, e)
	}
	return all
}

// sees waits for an event.
func (w *watching) sees(what string, is func(happening) bool) {
	w.t.Helper()
	for end := time.Now().Add(works); ; time.Sleep(20 * time.Millisecond) {
		all := w.events()
		if slices.ContainsFunc(all, is) {
			return
		}
		if time.Now().After(end) {
			w.t.Errorf("%s: not among %d events:\n%s", what, len(all), strings.Join(w.output(), ""))
			return
		}
	}
}

// interrupt ends the command as Control-C does; that is no failure.
func (w *watching) interrupt() {
	w.t.Helper()
	if err := w.cmd.Process.Signal(syscall.SIGINT); err != nil {
		w.t.Fatal(err)
	}
	<-w.done
	if err := w.cmd.Wait(); err != nil {
		w.t.Errorf("interrupted, it ends with %v", err)
	}
}

// TestPrivilegedMonitor: what is dropped, and which conversations begin and end, is told as it
// happens, with whose it is; to all who listen, as far as they asked for it.
func TestPrivilegedMonitor(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		h := s.Host
		h.Ebnet(t, "network", "create", "other")
		other := s.Container(t, "other1")
		other.Connect(t, "other")
		subnet := h.Network(t, "default").Subnets[0]
		s.Internet.Run(t, "ip", "route", "add", subnet.String(), "via", netlab.HostAddr.String())
		h.Ebnet(t, "expose", s.w1.Endpoint, "8080:80/tcp")
		h.Ebnet(t, "expose", s.w2.Endpoint, "8081:80/udp", "--from", "192.0.2.0/24")
		veth := h.Endpoints(t)[s.w1.Endpoint].HostLink
		all := monitor(t, h, 1)
		drops := monitor(t, h, 2, "--drops")
		flows := monitor(t, h, 3, "--flows", "--endpoint", s.w1.Endpoint)
		direct := monitor(t, h, 4, "--reason", "direct-access", "--count", "1")

		pingIsBlocked(t, s.w1.Node, other.Addr)
		all.sees("another network", func(e happening) bool {
			return e.Event == "drop" && e.Reason == "other-network" && e.Direction == "sent" && e.Endpoint == s.w1.Endpoint && e.To == other.Endpoint &&
				e.Protocol == "icmp" && e.Device == veth && addrOf(e.Src) == s.w1.Addr && addrOf(e.Dst) == other.Addr && e.Length == 98
		})
		isBlocked(t, s.Internet, "tcp", at(s.w1.Addr, containerPort), s.at1)
		all.sees("direct access", func(e happening) bool {
			return e.Event == "drop" && e.Reason == "direct-access" && e.Direction == "received" && e.Endpoint == s.w1.Endpoint &&
				e.Device == netlab.UplinkLink && e.Dst == at(s.w1.Addr, containerPort).String() && addrOf(e.Src) == netlab.InternetAddr
		})
		isBlocked(t, s.Internet, "udp", at(netlab.HostAddr, 8081), s.at2)
		all.sees("a source that may not", func(e happening) bool {
			return e.Reason == "source-not-allowed" && e.Direction == "received" && e.Endpoint == s.w2.Endpoint && e.Dst == at(netlab.HostAddr, 8081).String()
		})
		server := at(netlab.InternetAddr, internetPort)
		reaches(t, s.w1.Node, "tcp", server, netlab.HostAddr)
		snat := func(event string) func(happening) bool {
			return func(e happening) bool {
				return e.Event == event && e.Protocol == "tcp" && e.Kind == "snat" && e.Endpoint == s.w1.Endpoint && addrOf(e.Src) == s.w1.Addr &&
					e.Dst == server.String() && addrOf(e.TranslatedSrc) == netlab.HostAddr && e.TranslatedDst == server.String()
			}
		}
		closed := func(e happening) bool {
			return snat("close")(e) && (e.Why == "fin" || e.Why == "rst") && e.Packets > 2 && e.ReplyPackets > 1
		}
		for _, m := range []*watching{all, flows} {
			m.sees("a conversation begins", snat("open"))
			m.sees("a conversation ends", closed)
		}
		reaches(t, s.Internet, "tcp", at(netlab.HostAddr, 8080), netlab.InternetAddr)
		all.sees("a client of a published port", func(e happening) bool {
			return e.Event == "open" && e.Kind == "dnat" && e.Endpoint == s.w1.Endpoint && e.Dst == at(netlab.HostAddr, 8080).String() &&
				e.TranslatedDst == at(s.w1.Addr, containerPort).String()
		})
		if _, err := s.w1.Who("tcp", at(netlab.InternetAddr, 9), works); err == nil {
			t.Fatal("somebody listens at the discard port")
		}
		all.sees("a refused connection", func(e happening) bool {
			return e.Event == "close" && e.Why == "rst" && e.Dst == at(netlab.InternetAddr, 9).String() && e.Packets == 1 && e.ReplyPackets == 1
		})
		// A conversation that goes on, and is then taken away.
		stream := s.w2.Stream(t, netip.AddrPort{}, at(netlab.InternetAddr, 7100), s.Internet, 7100)
		stream.WaitFlowing(t)
		h.Ebnet(t, "flows", "--flush", "--endpoint", s.w2.Endpoint, "--port", "7100")
		all.sees("a flushed conversation", func(e happening) bool {
			return e.Event == "close" && e.Protocol == "udp" && e.Why == "flushed" && e.Endpoint == s.w2.Endpoint && e.Packets > 0 && e.ReplyPackets > 0
		})
		// One that comes to be while they listen has a name too.
		heir := s.Container(t, "heir")
		heir.Connect(t, "default")
		pingIsBlocked(t, heir.Node, other.Addr)
		all.sees("a new endpoint", func(e happening) bool {
			return e.Reason == "other-network" && e.Endpoint == heir.Endpoint && e.Device == h.Endpoints(t)[heir.Endpoint].HostLink
		})

		for _, e := range drops.events() {
			if e.Event != "drop" {
				t.Errorf("--drops shows %+v", e)
			}
		}
		for _, e := range flows.events() {
			if e.Event != "open" && e.Event != "close" || e.Endpoint != s.w1.Endpoint {
				t.Errorf("--flows --endpoint %s shows %+v", s.w1.Endpoint, e)
			}
		}
		<-direct.done
		if found := direct.events(); len(found) != 1 || found[0].Reason != "direct-access" {
			t.Errorf("one of direct-access: %+v", found)
		}
		for _, m := range []*watching{all, drops, flows} {
			m.interrupt()
		}
		if n := h.Status(t).Listeners; n != 0 {
			t.Errorf("%d listen after all have ended", n)
		}
	})
}

// addrOf leaves the port out.
func addrOf(s string) netip.Addr {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr()
	}
	a, _ := netip.ParseAddr(s)
	return a
}

// pins is everything that is pinned.
func pins(t *testing.T, h *netlab.Host) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(h.BPFFS, "v*", "*", "*"))
	if err != nil || len(all) == 0 {
		t.Fatalf("pins: %v, %v", all, err)
	}
	return all
}

// TestPrivilegedMonitorKilled: a monitor that is killed listens no longer some seconds later, and is
// in nobody's way; one that is stopped comes back; down ends one that runs.
func TestPrivilegedMonitorKilled(t *testing.T) {
	s := newSite(t, netlab.New(t), modes[0])
	h := s.Host
	before := pins(t, h)
	killed := monitor(t, h, 1)
	if now := pins(t, h); !slices.Equal(now, before) {
		t.Errorf("pins while one listens\n%v\nbefore\n%v", now, before)
	}
	stopped := monitor(t, h, 2)
	signal := func(w *watching, sig syscall.Signal) {
		if err := w.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
	}
	signal(killed, syscall.SIGKILL)
	signal(stopped, syscall.SIGSTOP)
	start := time.Now()
	soon(t, "nobody listens", func() bool { return h.Status(t).Listeners == 0 })
	if took := time.Since(start); took > 6*time.Second {
		t.Errorf("only %v later", took)
	}
	for range 8 { // as many as there are places
		monitor(t, h, 1, "--count", "1").interrupt()
	}
	signal(stopped, syscall.SIGCONT)
	stopped.sees("that it was away", func(e happening) bool { return e.Event == "not-shown" && e.Away })
	reaches(t, s.w1.Node, "tcp", at(netlab.InternetAddr, internetPort), netlab.HostAddr)
	stopped.sees("a conversation begins", func(e happening) bool { return e.Event == "open" })
	stopped.interrupt()
	if now := pins(t, h); !slices.Equal(now, before) {
		t.Errorf("pins after all have ended\n%v\nbefore\n%v", now, before)
	}
	words := h.Command("monitor")
	cmd := exec.Command(words[0], words[1:]...)
	var said strings.Builder
	cmd.Stderr = &said
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	soon(t, "one listens", func() bool { return h.Status(t).Listeners == 1 })
	h.Ebnet(t, "down")
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 || !strings.Contains(said.String(), "no longer up") {
		t.Errorf("after down it ends with %v and says %q", err, said.String())
	}
	if r := h.TryEbnet(t, "monitor"); r.Code != 1 || !strings.Contains(r.Stderr, "ebnet up") {
		t.Error(r)
	}
}

// TestPrivilegedMonitorFlood: a flood that is watched ends no conversation and keeps nobody out; what
// is not shown is counted.
func TestPrivilegedMonitorFlood(t *testing.T) {
	s := newSite(t, netlab.New(t), modes[0])
	h := s.Host
	h.Ebnet(t, "expose", s.w1.Endpoint, "8080:80/tcp", "8082:82/udp")
	crowd := newCrowd(t, s.Internet, at(netlab.HostAddr, 8080))
	stream := s.Internet.Stream(t, netip.AddrPort{}, at(netlab.HostAddr, 8082), s.w1.Node, 82)
	stream.WaitFlowing(t)
	m := monitor(t, h, 1)
	// To a container's own address: each is dropped.
	flood := netlab.Flood{Protocol: "tcp", Device: netlab.InternetLink,
		From: s.Internet.MAC(t, netlab.InternetLink), To: s.Host.MAC(t, netlab.UplinkLink),
		Next: fromAnybody(at(s.w2.Addr, 80)), Frames: 1_000_000, Limit: 5 * time.Second}
	start := time.Now()
	under(t, s.Internet, flood, func() {
		reaches(t, s.Internet, "tcp", at(netlab.HostAddr, 8080), netlab.InternetAddr)
		reaches(t, s.w1.Node, "udp", at(netlab.InternetAddr, internetPort), netlab.HostAddr)
	})
	took := time.Since(start)
	stream.WaitFlowing(t)
	crowd.check(t)
	var dropped int
	for _, d := range h.Status(t).Drops {
		if d.Reason == "direct-access" {
			dropped += int(d.Packets)
		}
	}
	told := func() (shown, not int) {
		for _, e := range m.events() {
			if e.Event == "drop" && e.Reason == "direct-access" && e.Endpoint == s.w2.Endpoint {
				shown++
			}
			not += e.Drops + e.Lost
		}
		return shown, not
	}
	soon(t, "all are shown or counted", func() bool { shown, not := told(); return shown+not >= dropped })
	shown, not := told()
	t.Logf("%d packets dropped in %v, %d of them shown, %d counted", dropped, took, shown, not)
	if shown == 0 || not == 0 || shown > dropped/10 {
		t.Errorf("%d of %d packets are shown, %d are counted", shown, dropped, not)
	}
	var list netlab.List[endpointStats]
	h.JSON(t, &list, "stats", s.w2.Endpoint)
	if d := list.Items[0].Drops; len(d) != 1 || d[0].Direction != "received" || d[0].Reason != "direct-access" || int(d[0].Packets) != dropped {
		t.Errorf("stats of %s: %+v, want %d of direct-access", s.w2.Endpoint, d, dropped)
	}
	m.interrupt()
}

// TestPrivilegedFlowsWatch: what is shown again and again is what there is at the time.
func TestPrivilegedFlowsWatch(t *testing.T) {
	s := newSite(t, netlab.New(t), modes[0])
	w := watch(t, s.Host, "flows", "--watch", "--interval", "100ms", "-o", "json", "--protocol", "udp", "--dst", netlab.InternetAddr.String())
	shows := func(n int) func() bool {
		return func() bool {
			lines := w.output()
			if len(lines) == 0 {
				return false
			}
			var list netlab.List[struct{ Dst, Endpoint string }]
			if err := json.Unmarshal([]byte(lines[len(lines)-1]), &list); err != nil || list.V != 1 {
				t.Fatalf("%q: %v", lines[len(lines)-1], err)
			}
			for _, f := range list.Items {
				if f.Dst != at(netlab.InternetAddr, internetPort).String() || f.Endpoint != s.w1.Endpoint {
					t.Fatalf("shown is %+v", list.Items)
				}
			}
			return len(list.Items) == n
		}
	}
	soon(t, "nothing", shows(0))
	reaches(t, s.w1.Node, "udp", at(netlab.InternetAddr, internetPort), netlab.HostAddr)
	reaches(t, s.w1.Node, "tcp", at(netlab.InternetAddr, internetPort), netlab.HostAddr)
	soon(t, "the conversation", shows(1))
	s.Host.Ebnet(t, "flows", "--flush", "--protocol", "tcp")
	time.Sleep(300 * time.Millisecond)
	soon(t, "the conversation still", shows(1))
	s.Host.Ebnet(t, "flows", "--flush", "--protocol", "udp", "--src", s.w1.Addr.String())
	soon(t, "that it is gone", shows(0))
	w.interrupt()
}
