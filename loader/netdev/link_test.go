package netdev

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestCheckName(t *testing.T) {
	for _, name := range []string{"eth0", "eth0.1", "a", strings.Repeat("x", MaxNameLen), "veb0123abcd"} {
		if err := CheckName(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", ".", "..", "all", "default", "a/b", "a:b", "a b", "eth%d", "\x7f", "ü", strings.Repeat("x", MaxNameLen+1)} {
		wantError(t, CheckName(name), ErrInvalid)
	}
}

func TestFindAttr(t *testing.T) {
	attrs := []byte{5, 0, 1, 0, 0xaa, 0, 0, 0, 6, 0, 2, 0x80, 0xbb, 0xcc}
	for attrType, want := range map[uint16][]byte{1: {0xaa}, 2: {0xbb, 0xcc}, 3: nil} {
		if got, err := findAttr(attrs, attrType); err != nil || !bytes.Equal(got, want) {
			t.Errorf("attribute %d: %x, %v", attrType, got, err)
		}
	}
	for _, bad := range [][]byte{{3, 0, 1, 0}, {9, 0, 1, 0, 0, 0}} {
		if _, err := findAttr(bad, 7); err == nil {
			t.Errorf("%x was accepted", bad)
		}
	}
}

func TestPrivilegedHostStaysAsItWas(t *testing.T) {
	newHost(t)
	before := settings(t)
	bridge := mustEnsureBridge(t, testBridge())
	ns := newContainer(t)
	veth := mustCreateVeth(t, testVeth(bridge, 2, ns))
	if during := settings(t); during != before {
		t.Errorf("settings of the host changed:\n%s\nwere\n%s", during, before)
	}
	for name, want := range map[string]string{
		"ipv4/conf/ebt0/forwarding": "1", "ipv4/conf/ebt0/rp_filter": "2", "ipv4/conf/ebt0/send_redirects": "0",
		"ipv4/conf/ebt0/route_localnet": "0", "ipv6/conf/ebt0/disable_ipv6": "1",
		"ipv6/conf/veb00000002/disable_ipv6": "1", "ipv4/conf/veb00000002/forwarding": "0",
	} {
		if got := sysctl(t, name); got != want {
			t.Errorf("%s = %s, want %s", name, got, want)
		}
	}
	for _, ifindex := range []int{veth, bridge} {
		if err := DeleteLink(ifindex); err != nil {
			t.Fatal(err)
		}
		wantError(t, DeleteLink(ifindex), ErrNotFound)
	}
	if after := settings(t); after != before {
		t.Errorf("settings of the host changed:\n%s\nwere\n%s", after, before)
	}
}

func TestPrivilegedEnsureBridge(t *testing.T) {
	newHost(t)
	b := testBridge()
	ifindex := mustEnsureBridge(t, b)
	check := func() {
		t.Helper()
		l, err := LinkByName(b.Name)
		if err != nil {
			t.Fatal(err)
		}
		if l.Index != ifindex || l.Kind != "bridge" || l.MTU != b.MTU || !bytes.Equal(l.MAC, b.MAC) || l.Alias != "ebnet:test" || !l.Up || !l.Ours() {
			t.Fatalf("bridge is %+v", l)
		}
		if again, changed, err := EnsureBridge(b); err != nil || changed || again != ifindex {
			t.Fatalf("once more: ifindex %d, changed %t, %v", again, changed, err)
		}
	}
	check()
	h, err := newHandle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	link := linkRef(ifindex)
	for what, spoil := range map[string]func() error{
		"down": func() error { return h.LinkSetDown(link) },
		"mtu":  func() error { return h.LinkSetMTU(link, 1300) },
		"mac":  func() error { return h.LinkSetHardwareAddr(link, net.HardwareAddr{2, 0, 0, 0, 0, 9}) },
		"address added": func() error {
			return addAddr(h, ifindex, netip.MustParsePrefix("10.77.0.1/24"))
		},
		"address gone": func() error { return h.AddrDel(link, &netlink.Addr{IPNet: toIPNet(b.Addrs[0])}) },
		"snooping": func() error {
			attrs := netlink.NewLinkAttrs()
			attrs.Index, attrs.Name = ifindex, b.Name
			return h.BridgeSetMcastSnoop(&netlink.Bridge{LinkAttrs: attrs}, true)
		},
		"forwarding":       func() error { _, err := setDeviceSysctl("ipv4", b.Name, "forwarding", "0"); return err },
		"ipv6":             func() error { _, err := setIPv6(b.Name, true); return err },
		"crash after add":  func() error { return h.LinkSetAlias(link, "") },
		"everything at it": func() error { return errors.Join(h.LinkSetMTU(link, 1300), h.LinkSetDown(link)) },
	} {
		if err := spoil(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if again, changed, err := EnsureBridge(b); err != nil || !changed || again != ifindex {
			t.Fatalf("%s: ifindex %d, changed %t, %v", what, again, changed, err)
		}
		check()
	}
}

// The kernel gives a bridge the lowest MTU of its ports, or 1500 when the last
// one leaves, unless it was set.
func TestPrivilegedBridgeMTUStays(t *testing.T) {
	newHost(t)
	bridge := mustEnsureBridge(t, testBridge())
	if err := DeleteLink(mustCreateVeth(t, testVeth(bridge, 2, newContainer(t)))); err != nil {
		t.Fatal(err)
	}
	if l, err := LinkByIndex(bridge); err != nil || l.MTU != 1400 {
		t.Fatalf("bridge is %+v, %v", l, err)
	}
}

func TestPrivilegedForeignBridge(t *testing.T) {
	newHost(t)
	h, err := newHandle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br-other"
	if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
	before, err := LinkByName("br-other")
	if err != nil {
		t.Fatal(err)
	}
	b := testBridge()
	b.Name = "br-other"
	_, _, err = EnsureBridge(b)
	wantError(t, err, ErrExists)
	if after, err := LinkByName("br-other"); err != nil || after.MTU != before.MTU || after.Up || after.Alias != "" {
		t.Fatalf("the bridge became %+v, %v", after, err)
	}
	wantError(t, DeleteLinkByName("br-other"), ErrInvalid)

	b.Name = "lo"
	_, _, err = EnsureBridge(b)
	wantError(t, err, ErrExists)

	mustEnsureBridge(t, testBridge())
	b = testBridge()
	b.Network = "another"
	_, _, err = EnsureBridge(b)
	wantError(t, err, ErrExists)
	t.Log(err)
}

func TestPrivilegedEndpointsReachEachOther(t *testing.T) {
	host := newHost(t)
	bridge := mustEnsureBridge(t, testBridge())
	web, db := newContainer(t), newContainer(t)
	mustCreateVeth(t, testVeth(bridge, 2, web))
	// The first port gives the bridge its carrier.
	if err := ping(netip.MustParseAddr("10.9.0.2")); err != nil {
		t.Error(err)
	}
	veth := mustCreateVeth(t, testVeth(bridge, 3, db))

	// Without a second try: what CreateVeth returns is usable.
	for _, from := range []struct {
		ns *NS
		to string
	}{{web, "10.9.0.3"}, {db, "10.9.0.2"}, {web, "10.9.0.1"}, {db, "127.0.0.1"}, {host, "10.9.0.2"}} {
		if err := Do(from.ns, func() error { return ping(netip.MustParseAddr(from.to)) }); err != nil {
			t.Errorf("ping %s: %v", from.to, err)
		}
	}
	err := Do(db, func() error { return checkInside(3) })
	if err != nil {
		t.Error(err)
	}
	l, err := LinkByIndex(veth)
	if err != nil {
		t.Fatal(err)
	}
	if !l.Up || !l.Carrier || l.MTU != 1400 || l.MasterIndex != bridge || l.Name != "veb00000003" || l.Alias != "ebnet:test/3" {
		t.Errorf("host's end is %+v", l)
	}
	checkNeighbour(t, bridge, "10.9.0.3", true)
	if err := DeleteLink(veth); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := DeleteNeighbour(bridge, netip.MustParseAddr("10.9.0.3")); err != nil {
			t.Fatal(err)
		}
	}
	checkNeighbour(t, bridge, "10.9.0.3", false)
}

// checkInside runs in the namespace of the n-th endpoint.
func checkInside(n int) error {
	l, err := LinkByName("eth0")
	if err != nil {
		return err
	}
	want := testVeth(0, n, nil)
	if !l.Up || !l.Carrier || l.MTU != 1400 || !bytes.Equal(l.MAC, want.MAC) || l.Kind != "veth" || !l.Ethernet {
		return fmt.Errorf("container's end is %+v", l)
	}
	return withHandle(func(h *handle) error {
		addrs, err := h.AddrList(linkRef(l.Index), netlink.FAMILY_ALL)
		if err != nil || len(addrs) != 1 || fromIPNet(addrs[0].IPNet) != want.Addrs[0] {
			return fmt.Errorf("addresses %v, %v", addrs, err)
		}
		dev, err := defaultRouteDevice(h)
		if err != nil || dev != l.Index {
			return fmt.Errorf("default route by interface %d, %v", dev, err)
		}
		return nil
	})
}

func checkNeighbour(t *testing.T, bridge int, addr string, want bool) {
	t.Helper()
	list, err := netlink.NeighList(bridge, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, n := range list {
		found = found || n.IP.String() == addr && n.State == unix.NUD_PERMANENT
	}
	if found != want {
		t.Errorf("neighbour %s there: %t, list %v", addr, found, list)
	}
}

func TestPrivilegedCreateVethRefuses(t *testing.T) {
	host := newHost(t)
	bridge := mustEnsureBridge(t, testBridge())
	taken, clean := newContainer(t), newContainer(t)
	first := testVeth(bridge, 2, taken)
	mustCreateVeth(t, first)
	before := len(mustLinks(t))
	for what, test := range map[string]struct {
		spoil func(v *Veth)
		want  error
	}{
		"interface name exists": {func(v *Veth) { v.NS = taken }, ErrExists},
		"interface name is lo":  {func(v *Veth) { v.IfName = "lo" }, ErrExists},
		"default route exists":  {func(v *Veth) { v.NS, v.IfName = taken, "eth1" }, ErrExists},
		"host name exists":      {func(v *Veth) { v.HostName = first.HostName }, ErrExists},
		"long name":             {func(v *Veth) { v.IfName = "sixteencharacter" }, ErrInvalid},
		"bad character":         {func(v *Veth) { v.IfName = "eth/0" }, ErrInvalid},
		"multicast MAC":         {func(v *Veth) { v.MAC = net.HardwareAddr{1, 0, 0, 0, 0, 1} }, ErrInvalid},
		"zero MAC":              {func(v *Veth) { v.MAC = make(net.HardwareAddr, 6) }, ErrInvalid},
		"low MTU":               {func(v *Veth) { v.MTU = 20 }, ErrInvalid},
		"high MTU":              {func(v *Veth) { v.MTU = 65536 }, ErrInvalid},
		"zero address":          {func(v *Veth) { v.Addrs = make([]netip.Prefix, 1) }, ErrInvalid},
		"foreign alias":         {func(v *Veth) { v.Alias = "web" }, ErrInvalid},
		"no namespace":          {func(v *Veth) { v.NS = nil }, ErrInvalid},
		"host itself":           {func(v *Veth) { v.NS = host }, ErrInvalid},
		"no bridge":             {func(v *Veth) { v.Bridge = 9999 }, ErrNotFound},
		"gateway elsewhere":     {func(v *Veth) { v.Gateway = netip.MustParseAddr("192.168.7.1") }, unix.ENETUNREACH},
	} {
		v := testVeth(bridge, 3, clean)
		test.spoil(&v)
		_, err := CreateVeth(v)
		t.Logf("%s: %v", what, err)
		if !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", what, err, test.want)
		}
		if links := mustLinks(t); len(links) != before {
			t.Errorf("%s: left %+v", what, links)
		}
		checkNeighbour(t, bridge, "10.9.0.3", false)
	}
	err := Do(clean, func() error {
		links, err := Links()
		for _, l := range links {
			if l.Kind == "veth" {
				err = fmt.Errorf("left %+v", l)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := Do(taken, func() error { return checkInside(2) }); err != nil {
		t.Errorf("the first endpoint: %v", err)
	}
}

// TestPrivilegedGuard: who is called before anything can pass finds the host's end down, and what it
// refuses leaves nothing.
func TestPrivilegedGuard(t *testing.T) {
	newHost(t)
	bridge := mustEnsureBridge(t, testBridge())
	before := len(mustLinks(t))
	refuse := errors.New("refused")
	v := testVeth(bridge, 2, newContainer(t))
	asked := 0
	v.Guard = func(ifindex int) error {
		asked++
		l, err := netlink.LinkByIndex(ifindex)
		if err != nil || l.Attrs().Name != v.HostName || l.Attrs().RawFlags&unix.IFF_UP != 0 {
			t.Errorf("the guard finds %+v, %v", l, err)
		}
		if asked == 1 {
			return refuse
		}
		return nil
	}
	if _, err := CreateVeth(v); !errors.Is(err, refuse) {
		t.Errorf("got %v", err)
	}
	if links := mustLinks(t); len(links) != before {
		t.Errorf("left %+v", links)
	}
	veth := mustCreateVeth(t, v)
	if asked != 2 {
		t.Errorf("asked %d times", asked)
	}
	if err := netlink.LinkSetDown(linkRef(veth)); err != nil {
		t.Fatal(err)
	}
	reports, err := RepairVeths([]Veth{v})
	if err != nil || len(reports) != 1 || reports[0].Err != nil || len(reports[0].Wrong) == 0 || asked != 3 {
		t.Errorf("repaired: %+v, %v, asked %d times", reports, err, asked)
	}
	if l, err := netlink.LinkByIndex(veth); err != nil || l.Attrs().RawFlags&unix.IFF_UP == 0 {
		t.Errorf("after the repair: %+v, %v", l, err)
	}
}

func TestPrivilegedIPv6(t *testing.T) {
	newHost(t)
	b := testBridge()
	b.IPv6 = true
	b.Addrs = append(b.Addrs, netip.MustParsePrefix("fd00:9::1/64"))
	bridge := mustEnsureBridge(t, b)
	if _, changed, err := EnsureBridge(b); err != nil || changed {
		t.Fatalf("once more: changed %t, %v", changed, err)
	}
	v := testVeth(bridge, 2, newContainer(t))
	v.IPv6 = true
	v.Addrs = append(v.Addrs, netip.MustParsePrefix("fd00:9::2/64"))
	mustCreateVeth(t, v)
}

func TestPrivilegedParallel(t *testing.T) {
	host := newHost(t)
	bridge := mustEnsureBridge(t, testBridge())
	const n = 24
	containers := make([]*NS, n)
	for i := range containers {
		containers[i] = newContainer(t)
	}
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			errs[i] = Do(host, func() error {
				veth, err := CreateVeth(testVeth(bridge, i+2, containers[i]))
				if err != nil {
					return err
				}
				if _, changed, err := EnsureBridge(testBridge()); err != nil || changed {
					return fmt.Errorf("bridge: changed %t, %w", changed, err)
				}
				if err := Do(containers[i], func() error { return ping(netip.MustParseAddr("10.9.0.1")) }); err != nil {
					return err
				}
				if i%2 == 0 {
					return DeleteLink(veth)
				}
				return nil
			})
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, l := range mustLinks(t) {
		if l.Kind == "veth" && l.Master == "ebt0" {
			count++
		}
	}
	if count != n/2 {
		t.Errorf("%d ports of %d are left", count, n/2)
	}
}

func TestPrivilegedDeleteLinks(t *testing.T) {
	newHost(t)
	const n = 50
	bridge := mustEnsureBridge(t, testBridge())
	all := []int{bridge}
	for i := range n {
		all = append(all, mustCreateVeth(t, testVeth(bridge, i+2, newContainer(t))))
	}
	foreign := addPair(t, "up0", 1500)
	before := len(mustLinks(t))
	wantError(t, DeleteLinks(append(all, foreign)...), ErrInvalid)
	if now := len(mustLinks(t)); now != before {
		t.Fatalf("%d devices of %d are left", now, before)
	}
	start := time.Now()
	for range 2 {
		if err := DeleteLinks(all...); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d devices in %s", len(all), time.Since(start))
	links := mustLinks(t)
	if len(links) != before-n-1 {
		t.Errorf("left: %+v", links)
	}
	if _, err := LinkByIndex(foreign); err != nil {
		t.Error(err)
	}
}

func BenchmarkPrivilegedVeth(b *testing.B) {
	newHost(b)
	bridge := mustEnsureBridge(b, testBridge())
	ns := newContainer(b)
	var create, remove []time.Duration
	for b.Loop() {
		start := time.Now()
		veth := mustCreateVeth(b, testVeth(bridge, 2, ns))
		create = append(create, time.Since(start))
		start = time.Now()
		if err := DeleteLink(veth); err != nil {
			b.Fatal(err)
		}
		remove = append(remove, time.Since(start))
	}
	b.ReportMetric(median(create), "create-µs")
	b.ReportMetric(median(remove), "delete-µs")
}
