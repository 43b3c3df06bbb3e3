package e2e

import (
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ebnet/ebnet/tests/netlab"
)

// goneAfterUp runs ebnet up and checks which endpoints it says are gone.
func goneAfterUp(t *testing.T, l *netlab.Lab, changed bool, want ...string) {
	t.Helper()
	var report struct {
		Changed  bool
		Gone     []string
		Warnings []string
	}
	l.Host.JSON(t, &report, "up")
	slices.Sort(report.Gone)
	if report.Changed != changed || !slices.Equal(report.Gone, want) {
		t.Errorf("up says %+v, want changed to be %v and these to be gone: %v", report, changed, want)
	}
}

// inProcess connects the namespace of a process, by its number, and returns what ends it.
func inProcess(t *testing.T, l *netlab.Lab, name string) (end func()) {
	t.Helper()
	cmd := exec.Command("unshare", "--net", "sleep", "600")
	if err := l.Host.Start(cmd); err != nil {
		t.Fatal(err)
	}
	end = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(end)
	for deadline := time.Now().Add(works); ; time.Sleep(10 * time.Millisecond) {
		// Until unshare(1) has done it, it is in the host's namespace.
		r := l.Host.TryEbnet(t, "connect", "default", "pid:"+strconv.Itoa(cmd.Process.Pid), "--name", name, "-p", "8070:80")
		if r.Code == 0 {
			return end
		}
		if time.Now().After(deadline) {
			t.Fatal(r)
		}
	}
}

// TestPrivilegedNamespaces: an endpoint whose namespace is gone is set aside, and no other namespace becomes it, whatever
// its name, its inode or its process is called.
func TestPrivilegedNamespaces(t *testing.T) {
	l := netlab.New(t)
	s := newSite(t, l, "--fast-path=on")
	c := l.Container(t, "c1")
	c.Connect(t, "default", "-p", "8071:80")
	end := inProcess(t, l, "process")
	leaked := l.Internet.Sniff(t, c.Addr)
	out, err := s.w1.DialEcho(at(s.w1.Addr, 5555), at(netlab.InternetAddr, internetPort))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()

	c.Forget(t)
	end()
	for deadline := time.Now().Add(works); len(l.Host.Links(t)) > 5; time.Sleep(20 * time.Millisecond) { // lo, up0, ebnet0, two of the site
		if time.Now().After(deadline) {
			t.Fatalf("devices of namespaces that are gone: %v", l.Host.Links(t))
		}
	}
	found := examine(t, l.Host)
	if len(found) == 0 || found[0].Check != "endpoints" || !strings.Contains(found[0].Why, "is gone") {
		t.Errorf("doctor says %+v", found)
	}
	goneAfterUp(t, l, true, "c1", "process")
	goneAfterUp(t, l, false, "c1", "process")
	if n := len(examine(t, l.Host)); n != 2 {
		t.Errorf("doctor finds %d things wrong, want the two endpoints", n)
	}
	if r := l.Host.TryEbnet(t, "expose", "c1", "8072:80"); r.Code != 4 {
		t.Errorf("a port of an endpoint that is gone: %v", r)
	}

	c.Renew(t) // most often with the inode number of the one before
	goneAfterUp(t, l, false, "c1", "process")
	if r := c.Run(t, "ip", "-o", "link"); strings.Contains(r, "eth0") {
		t.Errorf("another namespace of the same name became the endpoint: %s", r)
	}
	if found := examine(t, l.Host); !slices.ContainsFunc(found, func(f finding) bool {
		return f.What == `endpoint "c1"` && strings.Contains(f.Mend, "ebnet disconnect c1, and connect the new one")
	}) {
		t.Errorf("doctor says %+v", found)
	}
	l.Host.Ebnet(t, "disconnect", "c1")
	l.Host.Ebnet(t, "disconnect", "process")
	c.Connect(t, "default", "-p", "8071:80")
	c.Serve(t, containerPort)
	reaches(t, l.Internet, "tcp", at(netlab.HostAddr, 8071), netlab.InternetAddr)
	if err := out.Say("all the time"); err != nil {
		t.Errorf("a connection of another endpoint: %v", err)
	}
	if n := leaked.Packets(); n != 0 {
		t.Errorf("%d packets left with the container's address", n)
	}
	goneAfterUp(t, l, false)
}

// TestPrivilegedReboot: after a reboot the namespaces are others. Those that bear the recorded names become the
// endpoints again, with their addresses and ports, as soon as they are there; processes of the recorded numbers do not.
func TestPrivilegedReboot(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode[2:], func(t *testing.T) {
			t.Parallel()
			reboot(t, mode)
		})
	}
}

func reboot(t *testing.T, mode string) {
	l := netlab.New(t)
	upWith(t, l, mode)
	w := l.Containers(t, "w1", "w2", "late", "taken")
	w1, w2, late, taken := w[0], w[1], w[2], w[3]
	l.Host.Ebnet(t, "network", "create", "blue", "--subnet", "10.9.0.0/24")
	w1.Connect(t, "default", "-p", "8080:80", "-p", "40000:80")
	w2.Connect(t, "blue", "--mac", "02:11:22:33:44:55")
	late.Connect(t, "default", "-p", "8081:80")
	taken.Connect(t, "default")
	defer inProcess(t, l, "process")()
	l.Internet.Serve(t, internetPort)
	was := l.Host.Endpoints(t)

	// The process does not end, as if another one had its number.
	for _, c := range w {
		c.Forget(t)
	}
	for name := range l.Host.Links(t) {
		if name == "ebnet0" || strings.HasPrefix(name, "br-") || strings.HasPrefix(name, "veb") {
			l.Host.Run(t, "ip", "link", "delete", name)
		}
	}
	l.RemountBPF(t)
	l.Host.SetSysctl(t, "net/ipv4/ip_local_reserved_ports", "")
	l.Host.OtherBoot(t)
	for _, c := range []*netlab.Container{w1, w2, taken} {
		c.Renew(t)
	}
	taken.Run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "strange0")
	if found := examine(t, l.Host); !slices.ContainsFunc(found, func(f finding) bool { return f.Check == "datapath" }) {
		t.Errorf("doctor says %+v", found)
	}

	goneAfterUp(t, l, true, "late", "process")
	if r := l.Host.TryEbnet(t, "up"); !strings.Contains(r.Stderr, `endpoint "taken"`) {
		t.Errorf("no word about an interface that is taken: %v", r)
	}
	taken.Run(t, "ip", "link", "delete", "eth0")
	goneAfterUp(t, l, true, "late", "process")
	late.Renew(t)
	goneAfterUp(t, l, true, "process")
	goneAfterUp(t, l, false, "process")

	for name, e := range l.Host.Endpoints(t) {
		before := was[name]
		if e.IPv4 != before.IPv4 || e.MAC != before.MAC || e.Ifname != before.Ifname || e.HostLink != before.HostLink || (e.State == "up") != (name != "process") {
			t.Errorf("endpoint after the reboot is %+v, was %+v", e, before)
		}
	}
	for _, c := range w {
		c.Serve(t, containerPort)
		for _, p := range protocols {
			reaches(t, c.Node, p, at(netlab.InternetAddr, internetPort), netlab.HostAddr)
		}
	}
	for _, port := range []uint16{8080, 8081, 40000} {
		reaches(t, l.Internet, "tcp", at(netlab.HostAddr, port), netlab.InternetAddr)
	}
	reaches(t, late.Node, "tcp", at(w1.Addr, containerPort), late.Addr)
	if ports := l.Host.Sysctl(t, "net/ipv4/ip_local_reserved_ports"); ports != "40000" {
		t.Errorf("reserved ports are %q", ports)
	}
	// The names of interfaces are free again where they were, and taken where they are.
	if r := l.Host.TryEbnet(t, "connect", "blue", w1.Name, "--name", "second"); r.Code != 4 {
		t.Errorf("a second eth0: %v", r)
	}
	l.Host.Ebnet(t, "disconnect", "process")
	if found := examine(t, l.Host); len(found) != 0 {
		t.Errorf("at the end doctor says %+v", found)
	}
}
