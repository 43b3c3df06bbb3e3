package netlab

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/loader/netdev"
)

// The addresses outside of every lab, from the range for documentation.
var (
	InternetAddr = netip.MustParseAddr("198.51.100.1")
	HostAddr     = netip.MustParseAddr("198.51.100.2") // what masquerade translates to
	HostAddr2    = netip.MustParseAddr("198.51.100.3") // a second address of the same uplink
)

// The devices between internet and host.
const (
	InternetLink = "srv0"
	UplinkLink   = "up0"
)

// Lab is an internet, a host and its containers.
type Lab struct {
	Name     string // prefix of every namespace of the lab, unique
	Internet *Node
	Host     *Host

	dir        string // state, bpffs; also how leftover processes are found
	namespaces []string
	firstLinks map[string]int // of the host, before ebnet
	firstRules string         // likewise
}

// New builds a lab that is taken down, and checked for leftovers, when the
// test ends. In it the host forwards nothing and has no firewall rule.
func New(tb testing.TB) *Lab {
	tb.Helper()
	need(tb)
	id := make([]byte, 3)
	_, _ = rand.Read(id) // never fails
	l := &Lab{Name: fmt.Sprintf("%s%d-%s", prefix, os.Getpid(), hex.EncodeToString(id))}
	l.dir = filepath.Join(os.TempDir(), l.Name)
	if err := os.Mkdir(l.dir, 0o700); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.close(tb) })

	l.Internet = l.node(tb, "inet")
	l.Host = &Host{
		Node:  l.node(tb, "host"),
		State: filepath.Join(l.dir, "state"),
		BPFFS: filepath.Join(l.dir, "bpf", "ebnet"),
		seen:  make(map[object]bool),
	}
	l.mountBPF(tb)
	l.makeCgroup(tb)

	l.Internet.Run(tb, "ip", "link", "add", InternetLink, "type", "veth",
		"peer", "name", UplinkLink, "netns", l.Host.Name)
	l.Internet.Run(tb, "ip", "address", "add", InternetAddr.String()+"/24", "dev", InternetLink)
	l.Internet.Run(tb, "ip", "link", "set", InternetLink, "up")
	l.Host.Run(tb, "ip", "address", "add", HostAddr.String()+"/24", "dev", UplinkLink)
	l.Host.Run(tb, "ip", "address", "add", HostAddr2.String()+"/24", "dev", UplinkLink)
	l.Host.Run(tb, "ip", "link", "set", UplinkLink, "up")
	l.Host.Run(tb, "ip", "route", "add", "default", "via", InternetAddr.String())
	// A new namespace inherits the machine's value.
	l.Host.SetSysctl(tb, "net/ipv4/ip_forward", "0")
	l.firstLinks = l.Host.Links(tb)
	l.firstRules = l.Host.Rules(tb)
	return l
}

// node makes a namespace with its loopback up.
func (l *Lab) node(tb testing.TB, name string) *Node {
	tb.Helper()
	return l.nodes(tb, name)[0]
}

func (l *Lab) nodes(tb testing.TB, names ...string) []*Node {
	tb.Helper()
	var nodes []*Node
	var add strings.Builder
	for _, name := range names {
		n := &Node{Name: l.Name + "-" + name}
		l.namespaces = append(l.namespaces, n.Name)
		nodes = append(nodes, n)
		add.WriteString("netns add " + n.Name + "\n")
	}
	if err := batch(add.String()); err != nil {
		tb.Fatalf("add namespaces: %v", err)
	}
	for _, n := range nodes {
		n.Run(tb, "ip", "link", "set", "lo", "up")
	}
	return nodes
}

// mountBPF gives the host a bpf file system of its own.
func (l *Lab) mountBPF(tb testing.TB) {
	tb.Helper()
	dir := filepath.Join(l.dir, "bpf")
	if err := os.Mkdir(dir, 0o700); err != nil {
		tb.Fatal(err)
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		tb.Fatalf("mount a bpf file system: %v", err)
	}
}

// makeCgroup gives the host a cgroup of its own where there is a cgroup2
// mount; without one the host goes without.
func (l *Lab) makeCgroup(tb testing.TB) {
	tb.Helper()
	dir := cgroupDir(l.Name)
	if dir == "" {
		return
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		tb.Fatalf("make a cgroup: %v", err)
	}
	l.Host.Cgroup = dir
}

// cgroupDir is where the cgroup called name is, or would be; empty if there is
// no cgroup2 mount.
func cgroupDir(name string) string {
	mount, err := netdev.CgroupMount()
	if err != nil || mount == "" {
		return ""
	}
	return filepath.Join(mount, name)
}

// Container makes a namespace for a container; it is not connected yet.
func (l *Lab) Container(tb testing.TB, name string) *Container {
	tb.Helper()
	return l.Containers(tb, name)[0]
}

// Containers makes namespaces for several containers.
func (l *Lab) Containers(tb testing.TB, names ...string) []*Container {
	tb.Helper()
	containers := make([]*Container, 0, len(names))
	for i, n := range l.nodes(tb, names...) {
		containers = append(containers, &Container{Node: n, Endpoint: names[i], host: l.Host})
	}
	return containers
}

// close takes the lab down and checks that ebnet left nothing.
func (l *Lab) close(tb testing.TB) {
	if l.Host != nil && l.Host.ran {
		if tb.Failed() {
			l.dump(tb)
		}
		l.CheckRules(tb)
		l.Host.Remember(tb)
		if r := l.Host.TryEbnet(tb, "down", "--purge"); r.Code != 0 {
			tb.Errorf("at the end of the lab: %v", r)
		}
		l.CheckGone(tb)
		l.CheckRules(tb)
	}
	if l.Host != nil && l.Host.Cgroup != "" {
		if err := os.Remove(l.Host.Cgroup); err != nil {
			tb.Errorf("remove the lab's cgroup: %v", err)
		}
	}
	var del strings.Builder
	for _, name := range l.namespaces {
		del.WriteString("netns del " + name + "\n")
	}
	if err := batch(del.String()); err != nil {
		tb.Errorf("delete namespaces: %v", err)
	}
	if err := unmount(filepath.Join(l.dir, "bpf")); err != nil {
		tb.Errorf("unmount the lab's bpf file system: %v", err)
	}
	if err := os.RemoveAll(l.dir); err != nil {
		tb.Errorf("remove the lab's directory: %v", err)
	}
	l.checkLeftovers(tb)
}

// unmount tries for a while: a child of another test that was forked while a pin was
// open here has it open too until it becomes another program.
func unmount(dir string) error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Unmount(dir, 0)
		if err != unix.EBUSY || time.Now().After(deadline) {
			return err
		}
	}
}
