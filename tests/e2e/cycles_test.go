package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ebnet/ebnet/tests/netlab"
)

// cycleSettings are the host's settings that ebnet could leave changed.
var cycleSettings = []string{
	"net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding", "net/ipv4/conf/default/forwarding", "net/ipv4/conf/all/route_localnet",
	"net/ipv4/ip_local_reserved_ports", "net/ipv4/ip_local_port_range", "net/ipv4/conf/" + netlab.UplinkLink + "/forwarding",
}

// TestPrivilegedCycles: 100 ups and downs, every other one with a purge and with an endpoint and its ports in between, leave no
// pin, eBPF object, mount, device, file or setting.
func TestPrivilegedCycles(t *testing.T) {
	t.Run("on a bpf file system", func(t *testing.T) { cycles(t, 50, func(*netlab.Lab) {}) })
	t.Run("on one of its own", func(t *testing.T) {
		cycles(t, 50, func(l *netlab.Lab) {
			l.Host.BPFFS = filepath.Join(filepath.Dir(l.Host.State), "own", "ebnet")
		})
	})
}

func cycles(t *testing.T, n int, prepare func(l *netlab.Lab)) {
	t.Parallel() // most of it is waiting for the kernel
	temporary := t.TempDir()
	l := netlab.New(t)
	prepare(l)
	l.Host.Env = append(l.Host.Env, "TMPDIR="+temporary)
	before := make(map[string]string)
	for _, path := range cycleSettings {
		before[path] = l.Host.Sysctl(t, path)
	}
	c := l.Container(t, "c")
	c.Serve(t, containerPort)
	for i := range n {
		l.Host.Up(t, modes[i/2%2])
		if i%2 == 0 {
			c.Connect(t, "default", "-p", "8080:80", "-p", "40000-40009:8000-8009/udp")
		}
		l.Host.Remember(t)
		if i%20 < 2 { // with the endpoint just made, and brought back
			reaches(t, l.Internet, "tcp", at(netlab.HostAddr, 8080), netlab.InternetAddr)
		}
		down := []string{"down"}
		if i%2 == 1 {
			down = append(down, "--purge")
		}
		l.Host.Ebnet(t, down...)
		if pins := l.Host.Pins(t); len(pins) != 0 {
			t.Fatalf("cycle %d: pins %v", i, pins)
		}
	}
	l.CheckGone(t)
	for _, path := range cycleSettings {
		if now := l.Host.Sysctl(t, path); now != before[path] {
			t.Errorf("%s is %s, was %s", path, now, before[path])
		}
	}
	if left, err := os.ReadDir(temporary); err != nil || len(left) != 0 {
		t.Errorf("temporary files: %v, %v", left, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), filepath.Join(filepath.Dir(l.Host.State), "own")) {
		t.Errorf("a mount is left (%v):\n%s", err, mounts)
	}
}
