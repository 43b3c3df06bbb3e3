package netdev

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addPair makes a veth pair as other software would, with both ends here.
func addPair(t *testing.T, name string, mtu int) (ifindex int) {
	t.Helper()
	h, err := newHandle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	pair := netlink.NewVeth(attrs)
	pair.PeerName = name + "p"
	if err := h.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{name, name + "p"} {
		l, err := h.LinkByName(n)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.LinkSetUp(l); err != nil {
			t.Fatal(err)
		}
	}
	return pair.Index
}

func mustAddAddr(t *testing.T, ifindex int, prefix string) {
	t.Helper()
	err := withHandle(func(h *handle) error { return addAddr(h, ifindex, netip.MustParsePrefix(prefix)) })
	if err != nil {
		t.Fatal(err)
	}
}

func TestPrivilegedUplinks(t *testing.T) {
	newHost(t)
	setLoopbackUp(t)
	if mtu, err := DefaultMTU(); err != nil || mtu != fallbackMTU {
		t.Errorf("no uplink: MTU %d, %v", mtu, err)
	}
	bridge := mustEnsureBridge(t, testBridge())
	mustAddAddr(t, loopbackIndex, "203.0.113.9/32")
	addPair(t, "bare0", 1200)
	port := addPair(t, "port0", 1200)
	up := addPair(t, "up0", 1450)
	second := addPair(t, "up1", 1380)
	mustAddAddr(t, port, "198.51.100.1/24")
	for _, a := range []string{"2001:db8::1/64", "192.0.2.2/24", "192.0.2.3/24", "10.255.0.1/32"} {
		mustAddAddr(t, up, a)
	}
	mustAddAddr(t, second, "192.168.55.2/24")
	if err := netlink.LinkSetMasterByIndex(linkRef(port), bridge); err != nil {
		t.Fatal(err)
	}
	uplinks, err := DetectUplinks()
	if err != nil {
		t.Fatal(err)
	}
	if len(uplinks) != 2 || uplinks[0].Name != "up0" || uplinks[1].Name != "up1" || !uplinks[0].Ethernet || uplinks[0].Ifindex != up {
		t.Fatalf("uplinks %+v", uplinks)
	}
	var addrs []string
	for _, a := range uplinks[0].Addrs {
		addrs = append(addrs, a.String())
	}
	if want := []string{"192.0.2.2", "10.255.0.1", "192.0.2.3", "2001:db8::1"}; !slices.Equal(addrs, want) {
		t.Errorf("addresses %v, want %v", addrs, want)
	}
	if mtu, err := DefaultMTU(); err != nil || mtu != 1380 {
		t.Errorf("no default route: MTU %d, %v", mtu, err)
	}
	err = withHandle(func(h *handle) error { return addDefaultRoute(h, up, netip.MustParseAddr("192.0.2.1")) })
	if err != nil {
		t.Fatal(err)
	}
	if mtu, err := DefaultMTU(); err != nil || mtu != 1450 {
		t.Errorf("default route by up0: MTU %d, %v", mtu, err)
	}
	if u, err := UplinkByName("bare0"); err != nil || u.MTU != 1200 || len(u.Addrs) != 0 {
		t.Errorf("bare0: %+v, %v", u, err)
	}
	for name, want := range map[string]error{"lo": ErrInvalid, "ebt0": ErrInvalid, "nd-none": ErrNotFound} {
		_, err := UplinkByName(name)
		wantError(t, err, want)
	}
}

func TestPrivilegedHostPrefixes(t *testing.T) {
	newHost(t)
	setLoopbackUp(t)
	up := addPair(t, "up0", 1500)
	mustAddAddr(t, up, "192.0.2.2/24")
	for _, r := range []struct {
		dst   string
		table int
		kind  int
	}{
		{"172.20.0.0/16", 0, unix.RTN_UNICAST}, {"172.21.0.0/16", 100, unix.RTN_UNICAST}, {"172.22.0.0/16", 0, unix.RTN_BLACKHOLE},
		{"0.0.0.0/1", 0, unix.RTN_UNICAST}, {"128.0.0.0/1", 0, unix.RTN_UNICAST}, {"0.0.0.0/0", 0, unix.RTN_UNICAST},
	} {
		route := &netlink.Route{Dst: toIPNet(netip.MustParsePrefix(r.dst)), Table: r.table, Type: r.kind}
		if r.kind == unix.RTN_UNICAST {
			route.LinkIndex, route.Gw = up, netip.MustParseAddr("192.0.2.1").AsSlice()
		}
		if err := netlink.RouteAdd(route); err != nil {
			t.Fatalf("route %s: %v", r.dst, err)
		}
	}
	got, err := HostPrefixes()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range got {
		names = append(names, p.String())
	}
	want := []string{"127.0.0.0/8", "172.20.0.0/16", "172.21.0.0/16", "192.0.2.0/24", "::1/128"}
	slices.Sort(names)
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Errorf("prefixes %v, want %v", names, want)
	}
}

// Another container engine's bridge leads to its containers, not outside, until a
// route says so.
func TestPrivilegedForeignBridgeIsNoUplink(t *testing.T) {
	newHost(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "docker0"
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(bridge); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		t.Fatal(err)
	}
	mustAddAddr(t, bridge.Index, "172.17.0.1/16")
	if err := netlink.LinkSetMasterByIndex(linkRef(addPair(t, "veth0", 1500)), bridge.Index); err != nil {
		t.Fatal(err)
	}
	if uplinks, err := DetectUplinks(); err != nil || len(uplinks) != 0 {
		t.Fatalf("uplinks %+v, %v", uplinks, err)
	}
	mustEnsureBridge(t, testBridge()) // ours
	if sides, err := DetectSides(); err != nil || len(sides) != 1 || sides[0].Ifindex != bridge.Index {
		t.Fatalf("sides %+v, %v", sides, err)
	}
	gateway := netip.MustParseAddr("172.17.0.9")
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: bridge.Index, Gw: gateway.AsSlice()}); err != nil {
		t.Fatal(err)
	}
	if uplinks, err := DetectUplinks(); err != nil || len(uplinks) != 1 {
		t.Fatalf("with a default route: uplinks %+v, %v", uplinks, err)
	}
	if sides, err := DetectSides(); err != nil || len(sides) != 0 {
		t.Fatalf("with a default route: sides %+v, %v", sides, err)
	}
}
