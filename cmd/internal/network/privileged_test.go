package network

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ebnet/ebnet/loader"
	"github.com/ebnet/ebnet/loader/netdev"
)

// realHost moves the test into a network namespace of its own with an uplink.
// Its thread stays locked, so it ends with the test, and the namespace with it.
func realHost(t *testing.T) (o Options, containers []*Sandbox) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: needs root to make network namespaces and load programs")
	}
	runtime.LockOSThread()
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		t.Fatalf("unshare: %v", err)
	}
	for _, args := range []string{
		"link set lo up",
		"link add nwup type veth peer name nwpeer",
		"addr add 198.51.100.2/24 dev nwup",
		"link set nwup up",
		"link set nwpeer up",
		"route add default via 198.51.100.1",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	for range 3 {
		s, err := NewSandbox()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		containers = append(containers, s)
	}
	dir := t.TempDir()
	o = Options{StateDir: filepath.Join(dir, "state"), BPFFS: filepath.Join(dir, "bpf"), Cgroup: ownCgroup(t)}
	t.Cleanup(func() { _ = loader.Remove(o.BPFFS) })
	return o, containers
}

// ownCgroup makes a cgroup for the socket programs, which are nobody else's business.
func ownCgroup(t *testing.T) string {
	t.Helper()
	mount, err := linux{}.CgroupMount()
	if err != nil || mount == "" {
		return ""
	}
	dir, err := os.MkdirTemp(mount, "ebnet-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	return dir
}

func openReal(t *testing.T, o Options, k kernel) *Host {
	t.Helper()
	h, err := open(o, ReadWrite, k, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

func linkNames(t *testing.T) (names []string) {
	t.Helper()
	links, err := netdev.Links()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		names = append(names, l.Name)
	}
	return names
}

func TestPrivilegedLife(t *testing.T) {
	for _, way := range []string{"tcx", "clsact"} {
		t.Run(way, func(t *testing.T) { testLife(t, way == "clsact") })
	}
}

func testLife(t *testing.T, disableTCX bool) {
	o, boxes := realHost(t)
	o.DisableTCX = disableTCX
	empty := linkNames(t)
	h := openReal(t, o, linux{})
	up := func(changed bool) UpReport {
		t.Helper()
		r, err := h.Up(UpRequest{Uplinks: []string{"nwup"}})
		if err != nil || r.Changed != changed {
			t.Fatalf("up: %+v, %v; want changed=%v", r, err, changed)
		}
		return r
	}
	up(true)
	up(false)
	connect := func(i int, ports ...string) EndpointInfo {
		t.Helper()
		e, err := h.Connect(ConnectRequest{Network: DefaultNetwork, NetNS: boxes[i].Path(), Name: fmt.Sprint("c", i), Ports: specs(t, ports...)})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	first := connect(0, "8080:80")
	connect(1, "198.51.100.2:8081:80", "1000-1999:1000-1999/udp")
	links := linkNames(t)
	if r := up(false); r.Endpoints != 2 || r.Ports != 1002 {
		t.Errorf("%+v", r)
	}
	if _, err := h.Connect(ConnectRequest{Network: DefaultNetwork, NetNS: boxes[0].Path(), Name: "c9"}); !errors.Is(err, ErrConflict) {
		t.Errorf("the same interface again: %v", err)
	}
	s, err := h.Status()
	if err != nil || !s.Up || len(s.Uplinks) != 1 || !s.Uplinks[0].Attached || (s.Features.Attach == "tcx") == disableTCX {
		t.Errorf("%+v, %v", s, err)
	}
	must(t)(nil, h.Down(false))
	if d := cmp.Diff(empty, linkNames(t)); d != "" {
		t.Errorf("devices after down:\n%s", d)
	}
	up(true)
	up(false)
	again, err := h.Endpoint("c0")
	if first.Ifindex = again.Ifindex; err != nil || !cmp.Equal(first, again) {
		t.Errorf("after down and up: %v\n%s", err, cmp.Diff(first, again))
	}
	if d := cmp.Diff(sorted(links), sorted(linkNames(t))); d != "" {
		t.Errorf("devices after up:\n%s", d)
	}
	testRepairAndPurge(t, h, up)
	if d := cmp.Diff(empty, linkNames(t)); d != "" {
		t.Errorf("devices after purge:\n%s", d)
	}
	for _, dir := range []string{o.StateDir, o.BPFFS} {
		if left := mustReadDir(t, dir); len(left) > 0 {
			t.Errorf("left in %s: %v", dir, left)
		}
	}
}

func testRepairAndPurge(t *testing.T, h *Host, up func(changed bool) UpReport) {
	t.Helper()
	bridge, err := netdev.LinkByName("ebnet0")
	must(t)(nil, err)
	must(t)(nil, netdev.DeleteLink(bridge.Index))
	up(true)
	up(false)
	must(t)(nil, h.Disconnect("c1"))
	up(false)
	must(t)(nil, h.RemoveNetwork(DefaultNetwork, true))
	must(t)(nil, h.Down(true))
	must(t)(nil, h.Close())
}

func sorted(s []string) []string { return slices.Sorted(slices.Values(s)) }

// TestPrivilegedUndo is TestUndo on the real kernel for the verbs that matter
// most there.
func TestPrivilegedUndo(t *testing.T) {
	o, boxes := realHost(t)
	k := &flaky{}
	h := openReal(t, o, k)
	empty := k.dump(t, h)
	try := func(name string, do func() error) {
		t.Helper()
		before := k.dump(t, h)
		for k.failAt = 1; ; k.failAt++ {
			k.changes = 0
			err := do()
			if err == nil {
				k.failAt = 0
				return
			}
			if !errors.Is(err, errInjected) || Hint(err) != "" {
				t.Fatalf("%s: change %d: %v, hint %q", name, k.failAt, err, Hint(err))
			}
			if d := cmp.Diff(before, k.dump(t, h)); d != "" {
				t.Fatalf("%s: change %d (-before +after):\n%s", name, k.failAt, d)
			}
		}
	}
	try("up", func() error { _, err := h.Up(UpRequest{Uplinks: []string{"nwup"}}); return err })
	try("network create", func() error { _, err := h.CreateNetwork(NetworkRequest{Name: "web", Masquerade: true}); return err })
	try("connect", func() error {
		_, err := h.Connect(ConnectRequest{Network: "web", NetNS: boxes[0].Path(), Name: "c0", Ports: specs(t, "8080:80")})
		return err
	})
	try("expose", func() error { _, err := h.Expose("c0", specs(t, "1-1000:1-1000"), nil); return err })
	try("up again", func() error { _, err := h.Up(UpRequest{FastPath: new(bool)}); return err })
	try("unexpose", func() error { _, err := h.Unexpose("c0", specs(t, "1-1000:1-1000")); return err })
	try("disconnect", func() error { return h.Disconnect("c0") })
	try("network rm", func() error { return h.RemoveNetwork("web", true) })
	must(t)(nil, h.Down(true))
	if d := cmp.Diff(empty, k.dump(t, h)); d != "" {
		t.Errorf("after purge (-empty +have):\n%s", d)
	}
}

// flaky is the real kernel with a change that fails.
type flaky struct {
	linux
	changes, failAt int
}

func (k *flaky) change() error {
	if k.changes++; k.changes == k.failAt {
		return errInjected
	}
	return nil
}

func (k *flaky) Load(bpffs string, cfg loader.Config) (datapath, bool, error) {
	if err := k.change(); err != nil {
		return nil, false, err
	}
	dp, changed, err := k.linux.Load(bpffs, cfg)
	if err != nil {
		return nil, false, err
	}
	return &flakyDatapath{dp, k}, changed, nil
}

func (k *flaky) Open(bpffs string) (datapath, error) {
	dp, err := k.linux.Open(bpffs)
	if err != nil {
		return nil, err
	}
	return &flakyDatapath{dp, k}, nil
}

func (k *flaky) EnsureBridge(b netdev.Bridge) (int, bool, error) {
	if err := k.change(); err != nil {
		return 0, false, err
	}
	return k.linux.EnsureBridge(b)
}

func (k *flaky) CreateVeth(v netdev.Veth) (int, error) {
	if err := k.change(); err != nil {
		return 0, err
	}
	return k.linux.CreateVeth(v)
}

func (k *flaky) DeleteLink(ifindex int) error {
	if err := k.change(); err != nil {
		return err
	}
	return k.linux.DeleteLink(ifindex)
}

type flakyDatapath struct {
	datapath
	k *flaky
}

func (d *flakyDatapath) Attach(hook loader.Hook, ifindex int) error {
	if err := d.k.change(); err != nil {
		return err
	}
	return d.datapath.Attach(hook, ifindex)
}

func (d *flakyDatapath) Detach(hook loader.Hook, ifindex int) error {
	if err := d.k.change(); err != nil {
		return err
	}
	return d.datapath.Detach(hook, ifindex)
}

func (d *flakyDatapath) PutNetwork(n loader.Network) error {
	if err := d.k.change(); err != nil {
		return err
	}
	return d.datapath.PutNetwork(n)
}

func (d *flakyDatapath) PutEndpoint(e loader.Endpoint) error {
	if err := d.k.change(); err != nil {
		return err
	}
	return d.datapath.PutEndpoint(e)
}

func (d *flakyDatapath) Publish(ps ...loader.Publication) error {
	if err := d.k.change(); err != nil {
		return err
	}
	return d.datapath.Publish(ps...)
}

// dump shows the kernel and the state, with names for interface indices.
func (k *flaky) dump(t *testing.T, h *Host) []string {
	t.Helper()
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	links, err := netdev.Links()
	must(t)(nil, err)
	name := map[int]string{}
	for _, l := range links {
		name[l.Index] = l.Name
		add("link %s %s on %s", l.Name, l.Alias, l.Master)
	}
	dp, err := loader.Open(h.o.BPFFS)
	if err == nil {
		defer dp.Close()
		attachments, err := dp.Attachments()
		must(t)(nil, err)
		for _, a := range attachments {
			add("attached %s %s", a.Hook, name[a.Ifindex])
		}
		networks, err := dp.Networks()
		must(t)(nil, err)
		endpoints, err := dp.Endpoints()
		must(t)(nil, err)
		for _, e := range endpoints {
			add("endpoint %d %v at %s", e.Slot, e.Addrs, name[e.Ifindex])
		}
		n, err := dp.PublishedCount()
		must(t)(nil, err)
		add("fast path %v, networks %v, %d ports", dp.Config().FastPath, networks, n)
	}
	sort.Strings(out)
	if h.state.unnamed { // the secret is drawn anew each time
		return append(out, "no state")
	}
	return append(out, dumpState(t, h)...)
}
