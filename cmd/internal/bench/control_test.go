package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/loader/netdev"
)

// underTest is the path of the ebnet that is measured.
var underTest string

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

// runTests builds ebnet and runs the tests with it.
func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "ebnet-bench-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	underTest = filepath.Join(dir, "ebnet")
	build := exec.Command("go", "build", "-o", underTest, "github.com/ebnet/ebnet/cmd/ebnet")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build ebnet: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// newControlLab makes a lab that is checked for leftovers when the test ends.
func newControlLab(t *testing.T, peers ...string) *controlLab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: needs root: namespaces and eBPF")
	}
	l, err := newLab(underTest)
	if err != nil {
		t.Fatal(err)
	}
	c := &controlLab{lab: l, peers: peers}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close the contenders' sites: %v", err)
		}
		if len(l.stages) == 0 {
			checkNothingLeft(t, c)
		}
		if err := l.close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
		if groups := cgroupDirs(l.name + "-docker-host"); len(groups) > 0 {
			t.Errorf("cgroups left: %v", groups)
		}
	})
	return c
}

// checkNothingLeft finds what the lab's peers have left after they were closed.
func checkNothingLeft(t *testing.T, l *controlLab) {
	t.Helper()
	for _, pattern := range []string{
		"/run/netns/" + l.name + "-*", "/sys/fs/cgroup/" + l.name + "-*", "/sys/fs/cgroup/*/" + l.name + "-*",
		filepath.Join(l.bpffs(), "*", "v*"),
	} {
		if left, err := filepath.Glob(pattern); err != nil || len(left) > 0 {
			t.Errorf("left: %v (%v)", left, err)
		}
	}
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		if e.Name() != "bpf" && e.Name() != "xtables.lock" { // the lab's
			t.Errorf("left in the directory: %s", e.Name())
		}
	}
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range lines {
		if line, err := os.ReadFile(file); err == nil && strings.Contains(string(line), l.dir) {
			t.Errorf("process left: %s", strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
}

// built returns the contender of a peer with its site, or skips the test where it cannot be.
func built(t *testing.T, e errand, peer string) *contender {
	t.Helper()
	i := slices.IndexFunc(e.contenders, func(c *contender) bool { return c.peer == peer })
	if i < 0 {
		t.Fatalf("no contender %s", peer)
	}
	c := e.contenders[i]
	if why := c.missing(); why != "" {
		t.Skipf("SKIP: %s", why)
	}
	t.Cleanup(func() {
		if err := c.close(); err != nil {
			t.Errorf("close the site of %s: %v", peer, err)
		}
	})
	c.site = &site{}
	err := c.build(t.Context(), c.site)
	if errors.Is(err, errNoEngine) {
		t.Skipf("SKIP: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestPrivilegedPublishing looks at what each peer has done when its clock stops: as many
// ports are published as are asked for, and none when they are closed.
func TestPrivilegedPublishing(t *testing.T) {
	l := newControlLab(t)
	counts := map[string]func(t *testing.T, c *contender) int{
		"ebnet":            func(t *testing.T, c *contender) int { return ebnetPorts(t, l, c.site.host) },
		"nftables":         countIn("nft list map ip bench published", " : "+c1Addr.String()+" . 10"),
		"iptables-restore": countIn("iptables -t nat -S DOCKER", "--to-destination"),
		"iptables":         countIn("iptables -t nat -S DOCKER", "--to-destination"),
		"cni":              countIn("iptables -t nat -S", "--to-destination"),
		"docker":           countIn("iptables -t nat -S DOCKER", "--to-destination"),
	}
	for peer, count := range counts {
		t.Run(peer, func(t *testing.T) {
			c := built(t, publishing(l), peer)
			for _, size := range []int{1, 10} {
				steps := []struct {
					do   func(context.Context, int) error
					want int
				}{{c.site.do, size}, {c.site.undo, 0}}
				if c.site.ready != nil {
					if err := c.site.ready(t.Context(), size); err != nil {
						t.Fatal(err)
					}
				}
				for _, s := range steps {
					if err := s.do(t.Context(), size); err != nil {
						t.Fatal(err)
					}
					if got := count(t, c); got != s.want {
						t.Errorf("%d of %d ports are published, want %d", got, size, s.want)
					}
				}
			}
		})
	}
}

// countIn returns what counts in the output of a command in the host's namespace.
func countIn(command, what string) func(*testing.T, *contender) int {
	return func(t *testing.T, c *contender) int {
		out, err := c.site.host.output(t.Context(), strings.Fields(command)...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(out, what)
	}
}

// ebnetPorts counts by connecting from outside: an answer of whatever kind tells that the
// port leads in, silence that it does not.
func ebnetPorts(t *testing.T, l *controlLab, host *node) int {
	t.Helper()
	outside, err := netdev.OpenNS(host.name + "-out")
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	container, err := netdev.OpenNS(host.name + "-" + containerName)
	if err != nil {
		t.Fatal(err)
	}
	defer container.Close()
	open := 0
	for port := firstPort; port < firstPort+11; port++ {
		var conn net.Conn
		err := netdev.Do(container, func() error {
			ln, err := net.Listen("tcp4", fmt.Sprintf(":%d", port))
			if err == nil {
				t.Cleanup(func() { ln.Close() })
			}
			return err
		})
		if err != nil && !errors.Is(err, unix.EADDRINUSE) {
			t.Fatal(err)
		}
		err = netdev.Do(outside, func() error {
			conn, err = net.DialTimeout("tcp4", fmt.Sprintf("%v:%d", hostAddr, port), 50*time.Millisecond)
			return err
		})
		if err == nil {
			conn.Close()
			open++
		}
	}
	return open
}

// TestPrivilegedConnecting looks at what each peer has done when its clock stops: the
// container has one more device with an address, and has not any more.
func TestPrivilegedConnecting(t *testing.T) {
	l := newControlLab(t)
	for _, peer := range []string{"ebnet", "cni", "cni-no-masquerade", "docker"} {
		t.Run(peer, func(t *testing.T) {
			c := built(t, connecting(l), peer)
			before := containerAddresses(t, c)
			for range 2 {
				if err := c.site.do(t.Context(), 1); err != nil {
					t.Fatal(err)
				}
				if got := containerAddresses(t, c); got != before+1 {
					t.Errorf("%d addresses when connected, were %d", got, before)
				}
				if err := c.site.undo(t.Context(), 1); err != nil {
					t.Fatal(err)
				}
				if got := containerAddresses(t, c); got != before {
					t.Errorf("%d addresses when disconnected, were %d", got, before)
				}
			}
		})
	}
}

// containerAddresses counts the global addresses of the container.
func containerAddresses(t *testing.T, c *contender) int {
	t.Helper()
	ns, err := netdev.OpenNS(c.site.host.name + "-" + containerName)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	out, err := (&node{ns: ns}).output(t.Context(), "ip", "-4", "-o", "address", "show", "scope", "global")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(out, "\n")
}

// TestPrivilegedControlPlan runs a plan's jobs as a benchmark does, and fails one on the way.
func TestPrivilegedControlPlan(t *testing.T) {
	l := newControlLab(t, "ebnet", "nftables", "docker")
	l.quick = true
	p, err := controlPlan(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range p.cases {
		names = append(names, c.Name)
	}
	if want := []string{"publish/ports", "unpublish/ports", "connect/endpoint", "disconnect/endpoint"}; !slices.Equal(names, want) {
		t.Errorf("cases %v, want %v", names, want)
	}
	points := make(map[string]int)
	for _, j := range p.jobs {
		s, err := j.run(t.Context())
		if err != nil {
			t.Fatalf("%s of %s at %v: %v", j.caseName, j.peer, j.at, err)
		}
		if s.value <= 0 || s.value > 30 {
			t.Errorf("%s of %s at %v took %v s", j.caseName, j.peer, j.at, s.value)
		}
		if n, ok := s.extra["processes"]; j.caseName == "publish/ports" && (n != 0 || !ok) {
			t.Errorf("%s leaves processes: %v", j.peer, s.extra)
		}
		points[j.peer+" "+j.caseName]++
	}
	for _, want := range []string{"ebnet publish/ports", "ebnet unpublish/ports", "nftables publish/ports"} {
		if points[want] != 2 {
			t.Errorf("%d points of %s, want 2 sizes: %v", points[want], want, points)
		}
	}
	for _, left := range p.leftOut {
		if left.Why == "" || left.Peer == "iptables" {
			t.Errorf("left out: %+v", left)
		}
	}

	t.Run("interrupted", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Millisecond)
		defer cancel()
		if _, err := p.jobs[0].run(ctx); err == nil {
			t.Skip("SKIP: this machine publishes a port within 15 ms")
		}
		if p.jobs[0].peer != "ebnet" || l.contenders[0].site != nil {
			t.Errorf("the site of %s is left as the interruption found it", p.jobs[0].peer)
		}
		if _, err := p.jobs[0].run(t.Context()); err != nil {
			t.Errorf("after an interruption: %v", err)
		}
	})
}
