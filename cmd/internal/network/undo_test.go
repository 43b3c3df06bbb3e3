package network

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ebnet/ebnet/loader/netdev"
)

// verbs are all that are undone, each with what it needs beforehand.
var verbs = []struct {
	name    string
	prepare func(t *testing.T, h *Host, f *fake)
	do      func(t *testing.T, h *Host) error
}{
	{"up first", nil, func(t *testing.T, h *Host) error {
		_, err := h.Up(UpRequest{})
		return err
	}},
	{"up after down", func(t *testing.T, h *Host, f *fake) {
		prepareTwo(t, h, f)
		must(t)(nil, h.Down(false))
	}, func(t *testing.T, h *Host) error {
		_, err := h.Up(UpRequest{Uplinks: []string{"eth0"}, FastPath: new(bool), MaxFlows: 1000})
		return err
	}},
	{"up other options", prepareTwo, func(t *testing.T, h *Host) error {
		_, err := h.Up(UpRequest{Uplinks: []string{"eth0"}, FastPath: new(bool)})
		return err
	}},
	{"network create", prepareUp, func(t *testing.T, h *Host) error {
		_, err := h.CreateNetwork(NetworkRequest{Name: "web", ICC: true, Masquerade: true})
		return err
	}},
	{"network rm", func(t *testing.T, h *Host, f *fake) {
		prepareUp(t, h, f)
		must(t)(h.CreateNetwork(NetworkRequest{Name: "web", Masquerade: true}))
	}, func(t *testing.T, h *Host) error { return h.RemoveNetwork("web", false) }},
	{"network rm --force", prepareTwo, func(t *testing.T, h *Host) error { return h.RemoveNetwork(DefaultNetwork, true) }},
	{"connect", prepareTwo, func(t *testing.T, h *Host) error {
		_, err := h.Connect(ConnectRequest{Network: DefaultNetwork, NetNS: "w3", Ports: specs(t, "8081:80", "9000-9009:9000-9009/udp")})
		return err
	}},
	{"disconnect", prepareTwo, func(t *testing.T, h *Host) error { return h.Disconnect("w1") }},
	{"disconnect gone", func(t *testing.T, h *Host, f *fake) {
		prepareTwo(t, h, f)
		f.kill("w1")
	}, func(t *testing.T, h *Host) error { return h.Disconnect("w1") }},
	{"expose", prepareTwo, func(t *testing.T, h *Host) error {
		_, err := h.Expose("w1", specs(t, "1000-1100:1000-1100", "53:53/udp", "80"), nil)
		return err
	}},
	{"expose policy", prepareTwo, func(t *testing.T, h *Host) error {
		_, err := h.Expose("w1", specs(t, "127.0.0.1:90:90", "32769:91", "32775:92/udp"), prefixes("10.0.0.0/8"))
		return err
	}},
	{"unexpose policy", preparePolicy, func(t *testing.T, h *Host) error { _, err := h.Unexpose("w1", nil); return err }},
	{"disconnect policy", preparePolicy, func(t *testing.T, h *Host) error { return h.Disconnect("w1") }},
	{"network rm policy", preparePolicy, func(t *testing.T, h *Host) error { return h.RemoveNetwork(DefaultNetwork, true) }},
	{"disconnect routed", preparePolicy, func(t *testing.T, h *Host) error { return h.Disconnect("r1") }},
	{"up policy", func(t *testing.T, h *Host, f *fake) {
		preparePolicy(t, h, f)
		f.link("docker0", "bridge", "")
		f.sides["docker0"] = true
		h.o.Cgroup = "/cg/2"
	}, func(t *testing.T, h *Host) error {
		_, err := h.Up(UpRequest{Timeouts: map[string]time.Duration{"icmp": time.Second}})
		return err
	}},
	{"unexpose", prepareTwo, func(t *testing.T, h *Host) error { _, err := h.Unexpose("w1", specs(t, "8080:80")); return err }},
	{"unexpose all", prepareTwo, func(t *testing.T, h *Host) error { _, err := h.Unexpose("w1", nil); return err }},
}

func prepareUp(t *testing.T, h *Host, _ *fake) { must(t)(h.Up(UpRequest{})) }

func prepareTwo(t *testing.T, h *Host, f *fake) {
	prepareUp(t, h, f)
	must(t)(h.Connect(ConnectRequest{Network: DefaultNetwork, NetNS: "w1", Ports: specs(t, "8080:80", "198.51.100.2:8443:443")}))
	must(t)(h.Connect(ConnectRequest{Network: DefaultNetwork, NetNS: "w2"}))
}

// preparePolicy has a bit of everything.
func preparePolicy(t *testing.T, h *Host, f *fake) {
	prepareTwo(t, h, f)
	must(t)(h.Expose("w1", specs(t, "32769:91", "32775:92/udp"), prefixes("10.0.0.0/8")))
	must(t)(h.CreateNetwork(NetworkRequest{Name: "routed", Mode: ModeRouted}))
	must(t)(h.Connect(ConnectRequest{Network: "routed", NetNS: "w5", Name: "r1", Ports: specs(t, "80", "32776:32776")}))
}

// TestUndo fails each change of the kernel and of the state in turn, and wants
// both to be as before.
func TestUndo(t *testing.T) {
	for _, noTCX := range []bool{false, true} {
		for _, v := range verbs {
			t.Run(fmt.Sprintf("%s tcx=%v", v.name, !noTCX), func(t *testing.T) {
				for failAt := 1; ; failAt++ {
					if failAt > 200 {
						t.Fatal("it never ends")
					}
					f := newFake()
					f.noTCX = noTCX
					h := openFake(t, t.TempDir(), f)
					if v.prepare != nil {
						v.prepare(t, h, f)
					}
					kernel, state := f.dump(), dumpState(t, h)
					f.changes, f.failAt = 0, failAt
					h.state.committing = f.change
					err := v.do(t, h)
					f.failAt, h.state.committing = 0, nil
					if err == nil {
						if failAt == 1 {
							t.Fatal("nothing was changed")
						}
						return
					}
					if !errors.Is(err, errInjected) || Hint(err) != "" {
						t.Fatalf("change %d: %v, hint %q", failAt, err, Hint(err))
					}
					if d := cmp.Diff(kernel, f.dump()); d != "" {
						t.Errorf("change %d: the kernel differs (-before +after):\n%s", failAt, d)
					}
					if d := cmp.Diff(state, dumpState(t, h)); d != "" && v.prepare != nil {
						t.Errorf("change %d: the state differs (-before +after):\n%s", failAt, d)
					}
					if _, err := os.Stat(filepath.Join(h.o.StateDir, stateFile)); v.prepare == nil && err == nil {
						t.Errorf("change %d: a state file is left", failAt)
					}
					if t.Failed() {
						return
					}
				}
			})
		}
	}
}

// TestKilled ends each verb at each change as if its process had been killed,
// and wants Up to make the host one that has no trace of it.
func TestKilled(t *testing.T) {
	for _, v := range verbs {
		t.Run(v.name, func(t *testing.T) {
			for killAt := 1; ; killAt++ {
				f := newFake()
				dir := t.TempDir()
				h := openFake(t, dir, f)
				if v.prepare != nil {
					v.prepare(t, h, f)
				}
				f.changes, f.failAt = 0, killAt
				h.state.committing = f.change
				killed := kill(func() { _ = v.do(t, h) }, f)
				f.failAt = 0
				_ = h.state.db.Close()
				_ = h.lock.Close()
				if !killed {
					if killAt < 3 {
						t.Fatalf("ended after %d changes", killAt)
					}
					return
				}
				h = openFake(t, dir, f)
				must(t)(h.Up(UpRequest{}))
				s, err := h.Status()
				if err != nil || len(s.Incomplete) > 0 {
					t.Fatalf("killed at change %d: %v, incomplete %v", killAt, err, s.Incomplete)
				}
				checkConsistent(t, h, f)
				if r, err := h.Up(UpRequest{}); err != nil || r.Changed {
					t.Fatalf("killed at change %d: the second up: %+v, %v", killAt, r, err)
				}
			}
		})
	}
}

// TestStateFails lets each commit fail from the n-th on, as a disk does that is broken or that others have filled: the kernel
// is as before, and when the disk works again Up ends what is half recorded.
func TestStateFails(t *testing.T) {
	for _, v := range verbs {
		if v.prepare == nil {
			continue // TestUndo: without a first commit there is nothing
		}
		t.Run(v.name, func(t *testing.T) {
			for failFrom := 1; ; failFrom++ {
				f, dir := newFake(), t.TempDir()
				h := openFake(t, dir, f)
				v.prepare(t, h, f)
				kernel, commits := f.dump(), 0
				h.state.committing = func() error {
					if commits++; commits >= failFrom {
						return &os.PathError{Op: "write", Path: h.state.path(), Err: syscall.ENOSPC}
					}
					return nil
				}
				err := v.do(t, h)
				h.state.committing = nil
				if err == nil {
					if failFrom == 1 {
						t.Fatal("nothing was recorded")
					}
					return
				}
				if ExitCode(err) != 1 || !strings.Contains(err.Error(), "state "+h.state.path()) || !strings.Contains(err.Error(), "no space left") {
					t.Errorf("commit %d: exit code %d: %v", failFrom, ExitCode(err), err)
				}
				// Which ports are reserved follows from the state, which says the wrong thing.
				reserved := func(line string) bool { return strings.HasPrefix(line, "reserved ") }
				if d := cmp.Diff(slices.DeleteFunc(kernel, reserved), slices.DeleteFunc(f.dump(), reserved)); d != "" {
					t.Errorf("commit %d: the kernel differs (-before +after):\n%s", failFrom, d)
				}
				if s, _ := h.Status(); len(s.Incomplete) > 0 && !strings.Contains(Hint(err), "`ebnet up` repairs") {
					t.Errorf("commit %d: left %v, hint %q", failFrom, s.Incomplete, Hint(err))
				}
				must(t)(nil, h.Close())
				h = openFake(t, dir, f)
				must(t)(h.Up(UpRequest{}))
				if s, err := h.Status(); err != nil || len(s.Incomplete) > 0 {
					t.Errorf("commit %d: %v, incomplete %v", failFrom, err, s.Incomplete)
				}
				checkConsistent(t, h, f)
				if t.Failed() {
					return
				}
			}
		})
	}
}

// kill runs fn until the fake's failing change, and nothing of it afterwards.
func kill(fn func(), f *fake) (killed bool) {
	f.onFail = func() {
		killed = true
		runtime.Goexit()
	}
	defer func() { f.onFail = nil }()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		fn()
	}()
	<-ended
	return killed
}

// checkConsistent compares the fake's kernel with the state.
func checkConsistent(t *testing.T, h *Host, f *fake) {
	t.Helper()
	networks, _ := h.Networks()
	endpoints, _ := h.Endpoints("")
	ports, _ := h.Ports("")
	want := map[string]bool{"eth0": true}
	for side := range f.sides {
		want[side] = true
	}
	reserved := setOfRanges([]netdev.PortRange{{First: 32770, Last: 32771}}) // the administrator's
	for _, n := range networks {
		want[n.Bridge] = true
	}
	up, count := 0, 0
	for _, e := range endpoints {
		if e.State == StateUp {
			want[e.HostIfName] = true
			up++
		}
	}
	for _, p := range ports {
		for i := p.HostPort; i <= p.HostPortEnd && p.HostIP != p.IP; i++ {
			if 32768 <= i && i <= 32777 {
				reserved.Add(i, 1)
			}
		}
		if e, _ := h.Endpoint(p.Endpoint); e.State == StateUp {
			count += int(p.HostPortEnd-p.HostPort) + 1
		}
	}
	have := map[string]bool{}
	for name := range f.links {
		have[name] = true
	}
	if d := cmp.Diff(want, have); d != "" {
		t.Errorf("devices (-want +have):\n%s", d)
	}
	if len(f.dp.endpoints) != up || len(f.dp.networks) != len(networks) || len(f.dp.services) != count {
		t.Errorf("the datapath has %d endpoints, %d networks, %d ports; want %d, %d, %d",
			len(f.dp.endpoints), len(f.dp.networks), len(f.dp.services), up, len(networks), count)
	}
	if have := setOfRanges(f.reserved); *have != *reserved {
		t.Errorf("reserved ports %v, want %v", f.reserved, rangesOf(reserved))
	}
	if attached := 2 + 2*len(f.sides) + 2*len(networks) + up; len(f.dp.attached) != attached {
		t.Errorf("%d programs are attached, want %d: %v", len(f.dp.attached), attached, f.dump())
	}
}
