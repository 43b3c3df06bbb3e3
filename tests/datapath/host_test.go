package datapath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/ebnet/ebnet/loader"
)

// The addresses of the host under test.
var (
	hostAddr   = netip.MustParseAddr("198.51.100.2")
	hostAddr2  = netip.MustParseAddr("198.51.100.3")
	router     = netip.MustParseAddr("198.51.100.1")
	remote     = netip.MustParseAddr("203.0.113.7")
	gateway    = netip.MustParseAddr("172.18.0.1")
	containerA = netip.MustParseAddr("172.18.0.2")
	containerB = netip.MustParseAddr("172.18.0.3")
	otherNet   = netip.MustParseAddr("172.19.0.2")

	bridgeMAC = mac("06:eb:ac:12:00:01")
	aMAC      = mac("02:eb:ac:12:00:02")
	bMAC      = mac("02:eb:ac:12:00:03")
	otherMAC  = mac("02:eb:ac:13:00:02")
	routerMAC = mac("02:00:00:00:00:01")
	uplinkMAC = mac("02:00:00:00:00:02")
)

func mac(s string) net.HardwareAddr {
	m, err := net.ParseMAC(s)
	if err != nil {
		panic(err) // a typing error in a test
	}
	return m
}

// host is a network namespace with a loaded datapath and the devices it knows; the
// test's thread stays in it.
type host struct {
	testing.TB
	dp         *loader.Datapath
	dir        string // of its pins
	ns         netns.NsHandle
	bridge     int
	uplink     int
	a, b, othr int // host-side veths

	listener  *loader.Listener
	listensTo *loader.Datapath
}

// newHost builds the host. fast is the fast path.
func newHost(t testing.TB, fast bool) *host {
	t.Helper()
	return newHostWith(t, loader.Config{FastPath: fast, MaxFlows: 4096, Secret: 7})
}

func newHostWith(t testing.TB, cfg loader.Config) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: needs root to load programs")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and its namespace too
	ns, err := netns.New()
	must(t, err)
	t.Cleanup(func() { _ = ns.Close() })
	h := &host{TB: t, ns: ns}
	h.links()
	dir := filepath.Join(t.TempDir(), "bpf")
	dp, changed, err := loader.Load(dir, cfg)
	must(t, err)
	t.Cleanup(func() {
		_ = dp.Close()
		if err := loader.Remove(dir); err != nil {
			t.Errorf("remove: %v", err)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is still there", dir)
		}
	})
	if !changed {
		t.Fatal("a first load changed nothing")
	}
	h.dp, h.dir = dp, dir
	h.fill()
	return h
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// links makes the devices, routes and neighbours that FIB look-ups need.
func (h *host) links() {
	h.Helper()
	h.bridge = h.link(&netlink.Bridge{LinkAttrs: attrs("ebnet0", bridgeMAC)}, gateway.String()+"/16")
	h.uplink = h.link(&netlink.Veth{LinkAttrs: attrs("up0", uplinkMAC), PeerName: "wire0"}, hostAddr.String()+"/24")
	h.addr("up0", hostAddr2.String()+"/24")
	for name, index := range map[string]*int{"veba": &h.a, "vebb": &h.b, "vebo": &h.othr} {
		*index = h.link(&netlink.Veth{LinkAttrs: attrs(name, nil), PeerName: name + "p"}, "")
	}
	wire, err := netlink.LinkByName("wire0")
	must(h.TB, err)
	must(h.TB, netlink.LinkSetUp(wire))
	must(h.TB, netlink.RouteAdd(&netlink.Route{LinkIndex: h.uplink, Gw: router.AsSlice()}))
	must(h.TB, netlink.NeighSet(&netlink.Neigh{LinkIndex: h.uplink, State: netlink.NUD_PERMANENT,
		IP: router.AsSlice(), HardwareAddr: routerMAC}))
	must(h.TB, os.WriteFile("/proc/sys/net/ipv4/conf/ebnet0/forwarding", []byte("1"), 0))
}

// docker0 is the device that stands for another engine's.
const docker0 = 1

func attrs(name string, m net.HardwareAddr) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name, a.HardwareAddr = name, m
	return a
}

func (h *host) link(l netlink.Link, cidr string) int {
	h.Helper()
	must(h.TB, netlink.LinkAdd(l))
	must(h.TB, netlink.LinkSetUp(l))
	if cidr != "" {
		h.addr(l.Attrs().Name, cidr)
	}
	return l.Attrs().Index
}

func (h *host) addr(name, cidr string) {
	h.Helper()
	l, err := netlink.LinkByName(name)
	must(h.TB, err)
	a, err := netlink.ParseAddr(cidr)
	must(h.TB, err)
	must(h.TB, netlink.AddrAdd(l, a))
}

func (h *host) delAddr(name, cidr string) {
	h.Helper()
	l, err := netlink.LinkByName(name)
	must(h.TB, err)
	a, err := netlink.ParseAddr(cidr)
	must(h.TB, err)
	must(h.TB, netlink.AddrDel(l, a))
}

// fill tells the datapath of two networks, three endpoints and the uplink.
func (h *host) fill() {
	h.Helper()
	must(h.TB, h.dp.PutNetwork(loader.Network{ID: 1, Subnets: []netip.Prefix{netip.MustParsePrefix("172.18.0.0/16")},
		Gateways: []netip.Addr{gateway}, Bridge: h.bridge, BridgeMAC: bridgeMAC, MTU: 1500, ICC: true, Masquerade: true}))
	must(h.TB, h.dp.PutNetwork(loader.Network{ID: 2, Subnets: []netip.Prefix{netip.MustParsePrefix("172.19.0.0/16")},
		Gateways: []netip.Addr{netip.MustParseAddr("172.19.0.1")}, Bridge: h.bridge, BridgeMAC: bridgeMAC, MTU: 1500,
		ICC: true, Masquerade: true}))
	must(h.TB, h.dp.PutEndpoint(h.endpointA()))
	must(h.TB, h.dp.PutEndpoint(loader.Endpoint{Slot: 2, Network: 1, Ifindex: h.b, Addrs: []netip.Addr{containerB}, MAC: bMAC}))
	must(h.TB, h.dp.PutEndpoint(loader.Endpoint{Slot: 3, Network: 2, Ifindex: h.othr, Addrs: []netip.Addr{otherNet}, MAC: otherMAC}))
	must(h.TB, h.dp.PutUplink(loader.Uplink{Ifindex: h.uplink, Addrs: []netip.Addr{hostAddr}, MTU: 1500}))
	var source loader.PortSet
	source.Add(1024, 32768-1024)
	source.Add(61000, 65536-61000)
	must(h.TB, h.dp.SetSourcePorts(&source))
}

func (h *host) endpointA() loader.Endpoint {
	return loader.Endpoint{Slot: 1, Network: 1, Ifindex: h.a, Addrs: []netip.Addr{containerA}, MAC: aMAC}
}

// publish opens hostport on addr (any, if zero) for port of container A, in slot 10.
func (h *host) publish(proto loader.Protocol, addr netip.Addr, hostport, port uint16) loader.Publication {
	h.Helper()
	p := loader.Publication{Slot: 10, Protocol: proto, HostAddr: addr, HostPort: hostport, Count: 1, Network: 1,
		Ifindex: h.a, MAC: aMAC, Addr: containerA, Port: port}
	must(h.TB, h.dp.Publish(p))
	return p
}

// run runs a hook on a packet and checks what comes out.
func (h *host) run(hook loader.Hook, ifindex int, in packet) (loader.Verdict, packet) {
	h.Helper()
	received := 0
	if hook == loader.ToUplink || hook == loader.ToBridge {
		received = h.bridge
	}
	return h.runReceived(hook, ifindex, received, in)
}

// runReceived is run with the device that the packet came in by, 0: the host's own.
func (h *host) runReceived(hook loader.Hook, ifindex, received int, in packet) (loader.Verdict, packet) {
	h.Helper()
	frame := in.frame()
	verdict, out, err := h.dp.Run(hook, frame, loader.RunContext{Ifindex: ifindex, Received: received})
	must(h.TB, err)
	if len(out) != len(frame) {
		h.Fatalf("%d bytes became %d", len(frame), len(out))
	}
	if problem := verify(out); problem != "" {
		h.Fatalf("%s: %s of % x", hook, problem, out)
	}
	return verdict, parse(out)
}

// expect runs a hook and fails unless the verdict and, if it is given, the packet are
// as wanted.
func (h *host) expect(hook loader.Hook, ifindex int, in packet, verdict loader.Verdict, want *packet) packet {
	h.Helper()
	got, out := h.run(hook, ifindex, in)
	if got != verdict {
		h.Fatalf("%s of %v: verdict %d, want %d; drops %s", hook, in, got, verdict, h.drops())
	}
	if want != nil && out != *want {
		h.Fatalf("%s of %v:\n got %v\nwant %v", hook, in, out, *want)
	}
	return out
}

// expectDrop checks the reason too, and what is told of it.
func (h *host) expectDrop(hook loader.Hook, ifindex int, in packet, reason string) {
	h.Helper()
	before := h.dropped(reason)
	told := h.told(loader.EventDrop, func() { h.expect(hook, ifindex, in, loader.Drop, nil) })
	if after := h.dropped(reason); after != before+1 {
		h.Fatalf("%s of %v: dropped, but not as %q; drops %s", hook, in, reason, h.drops())
	}
	want := loader.Event{Kind: loader.EventDrop, Reason: reason, Hook: hook, Ifindex: ifindex, Length: len(in.frame()),
		Direction: loader.Received, Protocol: fmt.Sprint(in.proto), Src: in.src, Dst: in.dst, SrcMAC: mac(in.smac), DstMAC: mac(in.dmac)}
	if hook == loader.FromContainer || hook == loader.ToUplink || hook == loader.FromBridge {
		want.Direction = loader.Sent
	}
	if name, ok := map[uint8]string{tcp: "tcp", udp: "udp", icmp: "icmp"}[in.proto]; ok {
		want.Protocol = name
	}
	if in.fragmentOff > 0 || in.proto != tcp && in.proto != udp && in.proto != icmp {
		want.Src, want.Dst = netip.AddrPortFrom(in.src.Addr(), 0), netip.AddrPortFrom(in.dst.Addr(), 0)
	}
	if len(told) != 1 {
		h.Fatalf("%s of %v: told is %+v", hook, in, told)
	}
	got := told[0]
	want.Time, want.From, want.To = got.Time, got.From, got.To // see TestPrivilegedDropsOfEndpoints
	if want.Translated = got.Translated; got.Translated || in.proto == icmp && in.kind != 8 {
		want.Src, want.Dst = got.Src, got.Dst
	}
	if age := time.Since(got.Time); age < 0 || age > 10*time.Second {
		h.Errorf("told that it was %v ago", age)
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		h.Fatalf("%s of %v, told (-want +got):\n%s", hook, in, diff)
	}
}

// told returns what of a kind is told while fn runs.
func (h *host) told(kind loader.EventKind, fn func()) (told []loader.Event) {
	h.Helper()
	everything := loader.Wanted{Drops: true, Flows: true, Rate: 1_000_000}
	if h.listener == nil || h.listensTo != h.dp {
		l, err := h.dp.Listen(everything)
		must(h.TB, err)
		h.Cleanup(func() { _ = l.Close() })
		h.listener, h.listensTo = l, h.dp
	}
	must(h.TB, h.listener.Want(everything)) // hours may have passed
	heard(h, h.listener)                    // what was before
	fn()
	for _, e := range heard(h, h.listener) {
		if e.Kind == kind {
			told = append(told, e)
		}
	}
	return told
}

// heard returns what a listener has been told.
func heard(t testing.TB, l *loader.Listener) (all []loader.Event) {
	t.Helper()
	for {
		e, err := l.Next(time.Now())
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return all
		}
		must(t, err)
		all = append(all, e)
	}
}

func (h *host) dropped(reason string) (n uint64) {
	h.Helper()
	all, err := h.dp.Drops()
	must(h.TB, err)
	for _, d := range all {
		if d.Reason == reason && d.Ifindex != 0 {
			n += d.Packets
		}
	}
	return n
}

func (h *host) drops() string {
	all, err := h.dp.Drops()
	return fmt.Sprint(all, err)
}
