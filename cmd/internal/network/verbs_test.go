package network

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ebnet/ebnet/loader"
	"github.com/ebnet/ebnet/loader/netdev"
)

func TestUpTwiceChangesNothing(t *testing.T) {
	for _, noTCX := range []bool{false, true} {
		f := newFake()
		f.noTCX = noTCX
		h := openFake(t, t.TempDir(), f)
		prepareTwo(t, h, f)
		before, state, changes := f.dump(), dumpState(t, h), f.changes
		r, err := h.Up(UpRequest{})
		if err != nil || r.Changed {
			t.Fatalf("second up: %+v, %v", r, err)
		}
		if d := cmp.Diff(before, f.dump()) + cmp.Diff(state, dumpState(t, h)); d != "" {
			t.Error(d)
		}
		want := UpReport{Uplinks: []string{"eth0"}, Networks: 1, Endpoints: 2, Ports: 2, Gone: []string{}, Warnings: []string{}}
		if d := cmp.Diff(want, r); d != "" {
			t.Errorf("report:\n%s", d)
		}
		if rewritten := f.changes - changes; rewritten > 2 { // the uplink and the network are put as they are
			t.Errorf("%d changes of the kernel", rewritten)
		}
	}
}

func TestDownAndUp(t *testing.T) {
	f := newFake()
	empty := f.dump()
	h := openFake(t, t.TempDir(), f)
	prepareTwo(t, h, f)
	before, state := f.dump(), dumpState(t, h)
	must(t)(nil, h.Down(false))
	if d := cmp.Diff(empty, f.dump()); d != "" {
		t.Errorf("after down (-empty +have):\n%s", d)
	}
	must(t)(nil, h.Down(false))
	f.kill("w2")
	r, err := h.Up(UpRequest{})
	if err != nil || !r.Changed || !slices.Equal(r.Gone, []string{"w2"}) {
		t.Fatalf("up: %+v, %v", r, err)
	}
	if e, err := h.Endpoint("w2"); err != nil || e.State != StateGone || e.Ifindex != 0 {
		t.Errorf("w2: %+v, %v", e, err)
	}
	before = slices.DeleteFunc(before, func(s string) bool { return strings.Contains(s, "veb00000004") })
	if d := cmp.Diff(before, f.dump()); d != "" {
		t.Errorf("after up (-before +have):\n%s", d)
	}
	if d := cmp.Diff(state, dumpState(t, h)); d != "" {
		t.Errorf("state (-before +have):\n%s", d)
	}
	must(t)(nil, h.Disconnect("w2"))
	must(t)(nil, h.Down(true))
	if infos, err := h.Networks(); err != nil || len(infos) != 0 {
		t.Errorf("after purge: %v, %v", infos, err)
	}
}

func TestUpRepairs(t *testing.T) {
	for name, damage := range map[string]func(f *fake){
		"bridge deleted":    func(f *fake) { _ = f.DeleteLink(f.links["ebnet0"].Index) },
		"link deleted":      func(f *fake) { _ = f.DeleteLink(f.links["veb00000001"].Index) },
		"link off bridge":   func(f *fake) { f.links["veb00000001"].MasterIndex = 0 },
		"programs detached": func(f *fake) { clear(f.dp.attached) },
		"maps emptied":      func(f *fake) { clear(f.dp.endpoints); clear(f.dp.networks); clear(f.dp.services); clear(f.dp.uplinks) },
		"strangers": func(f *fake) {
			f.link("br-12345678", "bridge", "ebnet:lost")
			l := f.link("veb00001234", "veth", "ebnet:default/lost")
			f.dp.endpoints[99] = loader.Endpoint{Slot: 99, Ifindex: l.Index}
			f.dp.networks[77] = loader.Network{ID: 77}
			f.dp.uplinks[55] = loader.Uplink{Ifindex: 55}
			f.dp.attached[loader.Attachment{Hook: loader.FromContainer, Ifindex: 12345}] = true
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			h := openFake(t, t.TempDir(), f)
			prepareTwo(t, h, f)
			before := f.dump()
			damage(f)
			if r, err := h.Up(UpRequest{}); err != nil || !r.Changed || len(r.Warnings) > 0 {
				t.Fatalf("up: %+v, %v", r, err)
			}
			if d := cmp.Diff(before, f.dump()); d != "" {
				t.Errorf("-before +after:\n%s", d)
			}
			checkConsistent(t, h, f)
			if r, err := h.Up(UpRequest{}); err != nil || r.Changed {
				t.Errorf("up again: %+v, %v", r, err)
			}
		})
	}
}

func TestUplinks(t *testing.T) {
	f := newFake()
	h := openFake(t, t.TempDir(), f)
	_, err := h.Up(UpRequest{Uplinks: []string{"eth7"}})
	wantKind(t, err, ErrNotFound)
	f.link("eth7", "", "")
	must(t)(h.Up(UpRequest{Uplinks: []string{"eth7", "eth7"}}))
	r, err := h.Up(UpRequest{})
	if err != nil || r.Changed || !slices.Equal(r.Uplinks, []string{"eth7"}) {
		t.Errorf("named uplinks are not kept: %+v, %v", r, err)
	}
	delete(f.links, "eth7")
	r, err = h.Up(UpRequest{})
	if err != nil || len(r.Warnings) != 2 || len(f.dp.uplinks) != 0 {
		t.Errorf("vanished uplink: %+v, %v, %v", r, err, f.dp.uplinks)
	}
}

func TestSourcePorts(t *testing.T) {
	f := newFake()
	upFake(t, f)
	for port, want := range map[uint16]bool{1: false, 1023: false, 1024: true, 32767: true, 32768: false, 32777: false, 32778: true, 65535: true} {
		if f.dp.sources.Has(port) != want {
			t.Errorf("port %d as a source port: %v, want %v", port, !want, want)
		}
	}
}

func TestDryRun(t *testing.T) {
	f := newFake()
	dir := t.TempDir()
	var steps []string
	dry := func(o *Options) { o.DryRun, o.Step = true, func(s string) { steps = append(steps, s) } }
	empty := f.dump()
	h := openFake(t, dir, f, dry)
	must(t)(h.Up(UpRequest{}))
	must(t)(h.CreateNetwork(NetworkRequest{Name: "web", Masquerade: true}))
	_ = h.Close()
	want := []string{
		`create network "default"`, "get subnet and gateway from IPAM",
		"return the network configuration: subnet 172.18.0.0/16 gateway 172.18.0.1",
		"load the datapath", "hook the uplink eth0", "configure the device: bridge ebnet0, address 172.18.0.1/16, mtu 1500",
		"hook the sockets of cgroup /cg", "done",
		`create network "web"`, "get subnet and gateway from IPAM",
		"return the network configuration: subnet 172.18.0.0/16 gateway 172.18.0.1", "create the network", "done",
	}
	if d := cmp.Diff(want, steps); d != "" {
		t.Errorf("steps (-want +have):\n%s", d)
	}
	if entries := mustReadDir(t, dir); len(entries) > 0 {
		t.Errorf("a dry run left %v", entries)
	}

	if d := cmp.Diff(empty, f.dump()); d != "" {
		t.Errorf("a dry run changed something:\n%s", d)
	}

	h = openFake(t, dir, f)
	prepareTwo(t, h, f)
	before, state := f.dump(), dumpState(t, h)
	_ = h.Close()
	steps = nil
	h = openFake(t, dir, f, dry)
	must(t)(h.Connect(ConnectRequest{Network: "default", NetNS: "w3", Ports: specs(t, "81:81")}))
	want = []string{
		`create endpoint "w3" in network "default"`, "get its IP (IPAM)", "return it: 172.18.0.4", "create the endpoint",
		"configure the link: eth0 in w3, veb00000005 on bridge ebnet0", "configured",
		"map its ports: 0.0.0.0:81 -> 172.18.0.4:81/tcp", "done",
	}
	if d := cmp.Diff(want, steps); d != "" {
		t.Errorf("steps (-want +have):\n%s", d)
	}
	must(t)(h.Expose("w1", specs(t, "82:82"), nil))
	must(t)(h.Unexpose("w1", nil))
	must(t)(nil, h.Disconnect("w1"))
	must(t)(nil, h.RemoveNetwork("default", true))
	must(t)(nil, h.Down(true))
	must(t)(h.Up(UpRequest{FastPath: new(bool)}))
	if d := cmp.Diff(before, f.dump()) + cmp.Diff(state, dumpState(t, h)); d != "" {
		t.Errorf("dry runs changed something:\n%s", d)
	}
}

func TestCreateNetworkRefuses(t *testing.T) {
	f := newFake()
	f.link("docker0", "bridge", "")
	h := upFake(t, f)
	p := func(ss ...string) (ps []netip.Prefix) {
		for _, s := range ss {
			ps = append(ps, netip.MustParsePrefix(s))
		}
		return ps
	}
	a := func(ss ...string) (as []netip.Addr) {
		for _, s := range ss {
			as = append(as, netip.MustParseAddr(s))
		}
		return as
	}
	aux := func(s string) map[string]netip.Addr { return map[string]netip.Addr{"x": netip.MustParseAddr(s)} }
	before, state := f.dump(), dumpState(t, h)
	for _, tt := range []struct {
		name string
		r    NetworkRequest
		kind error
	}{
		{"no name", NetworkRequest{}, ErrInvalid},
		{"bad name", NetworkRequest{Name: "-x"}, ErrInvalid},
		{"long name", NetworkRequest{Name: strings.Repeat("x", 64)}, ErrInvalid},
		{"exists", NetworkRequest{Name: "default"}, ErrConflict},
		{"ipv6", NetworkRequest{Name: "n", IPv6: true}, ErrUnsupported},
		{"v6 subnet", NetworkRequest{Name: "n", Subnets: p("fd00::/64")}, ErrUnsupported},
		{"two subnets", NetworkRequest{Name: "n", Subnets: p("10.1.0.0/16", "10.2.0.0/16")}, ErrInvalid},
		{"two gateways", NetworkRequest{Name: "n", Subnets: p("10.1.0.0/16"), Gateways: a("10.1.0.1", "10.1.0.2")}, ErrInvalid},
		{"gateway without subnet", NetworkRequest{Name: "n", Gateways: a("10.1.0.1")}, ErrInvalid},
		{"gateway outside", NetworkRequest{Name: "n", Subnets: p("10.1.0.0/16"), Gateways: a("10.2.0.1")}, ErrInvalid},
		{"gateway broadcast", NetworkRequest{Name: "n", Subnets: p("10.1.0.0/16"), Gateways: a("10.1.255.255")}, ErrInvalid},
		{"range outside", NetworkRequest{Name: "n", Subnets: p("10.1.0.0/16"), IPRanges: p("10.2.0.0/24")}, ErrInvalid},
		{"aux outside", NetworkRequest{Name: "n", Subnets: p("10.1.0.0/16"), Aux: aux("10.2.0.1")}, ErrInvalid},
		{"aux is gateway", NetworkRequest{Name: "n", Subnets: p("10.1.0.0/16"), Gateways: a("10.1.0.9"), Aux: aux("10.1.0.9")}, ErrInvalid},
		{"/32", NetworkRequest{Name: "n", Subnets: p("10.1.0.1/32")}, ErrInvalid},
		{"host bits", NetworkRequest{Name: "n", Subnets: p("10.1.0.1/16")}, ErrInvalid},
		{"loopback", NetworkRequest{Name: "n", Subnets: p("127.1.0.0/16")}, ErrInvalid},
		{"overlaps a network", NetworkRequest{Name: "n", Subnets: p("172.18.5.0/24")}, ErrConflict},
		{"overlaps the host", NetworkRequest{Name: "n", Subnets: p("198.51.0.0/16")}, ErrConflict},
		{"mode", NetworkRequest{Name: "n", Mode: "bridge"}, ErrInvalid},
		{"mtu", NetworkRequest{Name: "n", MTU: 67}, ErrInvalid},
		{"mtu large", NetworkRequest{Name: "n", MTU: 65536}, ErrInvalid},
		{"bridge long", NetworkRequest{Name: "n", Bridge: "a-very-long-name"}, ErrInvalid},
		{"bridge exists", NetworkRequest{Name: "n", Bridge: "docker0"}, ErrConflict},
		{"bridge of a network", NetworkRequest{Name: "n", Bridge: "ebnet0"}, ErrConflict},
		{"routed and snat", NetworkRequest{Name: "n", Mode: ModeRouted, SNATAddrs: a("198.51.100.2")}, ErrInvalid},
		{"snat of another", NetworkRequest{Name: "n", SNATAddrs: a("198.51.100.9")}, ErrInvalid},
		{"snat loopback", NetworkRequest{Name: "n", SNATAddrs: a("127.0.0.1")}, ErrInvalid},
		{"snat v6", NetworkRequest{Name: "n", SNATAddrs: a("fd00::1")}, ErrUnsupported},
		{"two snat", NetworkRequest{Name: "n", SNATAddrs: a("198.51.100.2", "198.51.100.2")}, ErrInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.r.Masquerade = true
			_, err := h.CreateNetwork(tt.r)
			wantKind(t, err, tt.kind)
		})
	}
	_, err := h.CreateNetwork(NetworkRequest{Name: "n", SNATAddrs: a("198.51.100.2")}) // without Masquerade
	wantKind(t, err, ErrInvalid)
	if d := cmp.Diff(before, f.dump()) + cmp.Diff(state, dumpState(t, h)); d != "" {
		t.Errorf("something changed:\n%s", d)
	}
}

func TestCreateNetwork(t *testing.T) {
	f := newFake()
	h := upFake(t, f)
	aux := map[string]netip.Addr{"printer": netip.MustParseAddr("10.1.0.1")}
	n, err := h.CreateNetwork(NetworkRequest{
		Name: "web", Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/30")}, Aux: aux,
		Internal: true, Masquerade: true, MTU: 1400, Labels: map[string]string{"a": "b"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := NetworkInfo{
		Name: "web", Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/30")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.1.0.2")}, IPRanges: []netip.Prefix{},
		Bridge: n.Bridge, MTU: 1400, Internal: true, Masquerade: true, Mode: ModeNAT, Labels: map[string]string{"a": "b"},
	}
	if d := cmp.Diff(want, n, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Errorf("-want +have:\n%s", d)
	}
	if !strings.HasPrefix(n.Bridge, "br-") || len(n.Bridge) != 11 {
		t.Errorf("bridge %q", n.Bridge)
	}
	dn := f.dp.networks[2]
	if !dn.Internal || !dn.Masquerade || dn.Routed || dn.ICC || dn.BridgeMAC.String() != "06:eb:0a:01:00:02" || dn.Bridge != f.links[n.Bridge].Index {
		t.Errorf("in the datapath: %+v", dn)
	}
	// The only address left is the gateway's.
	_, err = h.Connect(ConnectRequest{Network: "web", NetNS: "w1"})
	wantKind(t, err, ErrConflict)
	removed, err := h.PruneNetworks()
	if err != nil || !slices.Equal(removed, []string{"web"}) {
		t.Errorf("prune: %v, %v", removed, err)
	}
	checkConsistent(t, h, f)
}

func TestNetworkBeforeUp(t *testing.T) {
	f := newFake()
	h := openFake(t, t.TempDir(), f)
	must(t)(h.CreateNetwork(NetworkRequest{Name: "web", Masquerade: true}))
	_, err := h.Connect(ConnectRequest{Network: "web", NetNS: "w1"})
	wantKind(t, err, ErrFailed)
	if Hint(err) == "" || ExitCode(err) != 1 {
		t.Errorf("connect before up: exit code %d, hint %q", ExitCode(err), Hint(err))
	}
	must(t)(h.Up(UpRequest{}))
	must(t)(h.Connect(ConnectRequest{Network: "web", NetNS: "w1"}))
	wantKind(t, h.RemoveNetwork("web", false), ErrConflict)
	must(t)(nil, h.RemoveNetwork("web", true))
	wantKind(t, h.RemoveNetwork("web", true), ErrNotFound)
	checkConsistent(t, h, f)
}

func TestConnectRefuses(t *testing.T) {
	f := newFake()
	h := openFake(t, t.TempDir(), f)
	prepareTwo(t, h, f)
	f.spaces["self"] = &netdev.NS{Dev: 4, Inode: 1}
	before, state := f.dump(), dumpState(t, h)
	ip := func(s string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(s)} }
	mac := func(s string) net.HardwareAddr { m, _ := net.ParseMAC(s); return m }
	for _, tt := range []struct {
		name string
		r    ConnectRequest
		kind error
	}{
		{"no network", ConnectRequest{Network: "nope", NetNS: "w3"}, ErrNotFound},
		{"no namespace", ConnectRequest{NetNS: "nope"}, ErrNotFound},
		{"own namespace", ConnectRequest{NetNS: "self"}, ErrInvalid},
		{"name taken", ConnectRequest{NetNS: "w3", Name: "w1"}, ErrConflict},
		{"default name taken", ConnectRequest{NetNS: "w1", IfName: "eth1"}, ErrConflict},
		{"bad name", ConnectRequest{NetNS: "w3", Name: ".x"}, ErrInvalid},
		{"ifname taken", ConnectRequest{NetNS: "w1", Name: "w1b"}, ErrConflict},
		{"ifname long", ConnectRequest{NetNS: "w3", IfName: "abcdefghijklmnop"}, ErrInvalid},
		{"ip taken", ConnectRequest{NetNS: "w3", IPs: ip("172.18.0.2")}, ErrConflict},
		{"ip gateway", ConnectRequest{NetNS: "w3", IPs: ip("172.18.0.1")}, ErrConflict},
		{"ip broadcast", ConnectRequest{NetNS: "w3", IPs: ip("172.18.255.255")}, ErrConflict},
		{"ip outside", ConnectRequest{NetNS: "w3", IPs: ip("10.0.0.1")}, ErrInvalid},
		{"ip v6", ConnectRequest{NetNS: "w3", IPs: ip("fd00::1")}, ErrUnsupported},
		{"mac of a bridge", ConnectRequest{NetNS: "w3", MAC: mac("06:eb:00:00:00:01")}, ErrInvalid},
		{"mac multicast", ConnectRequest{NetNS: "w3", MAC: mac("03:00:00:00:00:01")}, ErrInvalid},
		{"mac zero", ConnectRequest{NetNS: "w3", MAC: mac("00:00:00:00:00:00")}, ErrInvalid},
		{"mac default of another", ConnectRequest{NetNS: "w3", MAC: mac("02:eb:ac:12:00:02")}, ErrInvalid},
		{"from", ConnectRequest{NetNS: "w3", From: []netip.Prefix{netip.MustParsePrefix("fd00::/8")}}, ErrUnsupported},
		{"port taken", ConnectRequest{NetNS: "w3", Ports: specs(t, "80", "8080:80")}, ErrConflict},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.r.Network == "" {
				tt.r.Network = "default"
			}
			_, err := h.Connect(tt.r)
			wantKind(t, err, tt.kind)
		})
	}
	wantKind(t, h.Disconnect("nope"), ErrNotFound)
	if d := cmp.Diff(before, f.dump()) + cmp.Diff(state, dumpState(t, h)); d != "" {
		t.Errorf("something changed:\n%s", d)
	}
}

func TestEndpoints(t *testing.T) {
	f := newFake()
	h := openFake(t, t.TempDir(), f)
	prepareTwo(t, h, f)
	must(t)(h.CreateNetwork(NetworkRequest{Name: "web", Masquerade: true}))
	e, err := h.Connect(ConnectRequest{Network: "web", NetNS: "/run/netns/w1", IfName: "eth1", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}})
	if err != nil || !strings.HasPrefix(e.Name, "ep-") || len(e.Name) != 11 || e.State != StateUp {
		t.Fatalf("%+v, %v", e, err)
	}
	all, err := h.Endpoints("")
	if err != nil || len(all) != 3 {
		t.Fatalf("%v, %v", all, err)
	}
	web, err := h.Endpoints("web")
	if err != nil || len(web) != 1 {
		t.Fatalf("%v, %v", web, err)
	}
	if d := cmp.Diff(e, web[0]); d != "" {
		t.Errorf("connect and ls differ:\n%s", d)
	}
	one, err := h.Endpoint(e.Name)
	if d := cmp.Diff(e, one); d != "" || err != nil {
		t.Errorf("connect and inspect differ: %v\n%s", err, d)
	}
	_, err = h.Endpoints("nope")
	wantKind(t, err, ErrNotFound)
	_, err = h.Connect(ConnectRequest{Network: "web", NetNS: "w4", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}})
	wantKind(t, err, ErrConflict)
}

func TestExposeRefuses(t *testing.T) {
	f := newFake()
	h := openFake(t, t.TempDir(), f)
	prepareTwo(t, h, f) // w1: 0.0.0.0:8080 -> 80, 198.51.100.2:8443 -> 443
	f.held = []netdev.Holder{{Port: 22, PID: 7, Command: "sshd"}}
	f.host = append(f.host, netip.MustParsePrefix("198.51.100.3/24"))
	before, state := f.dump(), dumpState(t, h)
	for _, tt := range []struct {
		endpoint, specs string
		kind            error
		says            string
	}{
		{"nope", "80", ErrNotFound, "nope"},
		{"w2", "8080:80", ErrConflict, "w1"},
		{"w1", "8080:80", ErrConflict, "w1"},
		{"w2", "198.51.100.2:8080:80", ErrConflict, "w1"},
		{"w2", "8443:80", ErrConflict, "w1"},
		{"w2", "198.51.100.2:8443:80", ErrConflict, "w1"},
		{"w2", "8000-9000:8000-9000", ErrConflict, "w1"},
		{"w2", "9999:80 9000-10000:9000-10000", ErrConflict, "twice"},
		{"w2", "9999:80 9999:80", ErrConflict, "twice"},
		{"w2", "22:80", ErrConflict, "sshd"},
		{"w2", "20-30:20-30", ErrConflict, "sshd"},
		{"w2", "81:80 22:22", ErrConflict, "sshd"},
		{"w2", "192.0.2.1:80:80", ErrInvalid, "192.0.2.1"},
		{"w2", "127.0.0.1:8080:80", ErrConflict, "w1"},
		{"w2", "127.0.0.1:22:80", ErrConflict, "sshd"},
		{"w2", "[::]:80:80", ErrUnsupported, "IPv6"},
		{"w2", "8080-8080:80", ErrConflict, "w1"},
		{"w2", "100-120", ErrConflict, "ephemeral"},
	} {
		_, err := h.Expose(tt.endpoint, specs(t, strings.Fields(tt.specs)...), nil)
		if wantKind(t, err, tt.kind); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("expose %s %s: %v does not say %q", tt.endpoint, tt.specs, err, tt.says)
		}
	}
	_, err := h.Expose("w1", nil, nil)
	wantKind(t, err, ErrInvalid)
	_, err = h.Expose("w1", specs(t, "80"), []netip.Prefix{netip.MustParsePrefix("fd00::/8")})
	wantKind(t, err, ErrUnsupported)
	for _, s := range []string{"8080:81", "8081:80", "8080:80/udp", "198.51.100.2:8080:80", "8443:443"} {
		_, err := h.Unexpose("w1", specs(t, "8080:80", s))
		wantKind(t, err, ErrNotFound)
	}
	if d := cmp.Diff(before, f.dump()) + cmp.Diff(state, dumpState(t, h)); d != "" {
		t.Errorf("something changed:\n%s", d)
	}
	// The neighbours of what is refused above.
	must(t)(h.Expose("w2", specs(t, "198.51.100.3:8443:80", "8080:80/udp", "8079:80", "8081:80", "7000-8000:7000-8000"), nil))
	f.kill("w2")
	_, err = h.Expose("w2", specs(t, "4000:80"), nil)
	wantKind(t, err, ErrConflict)
}

func TestExposeChooses(t *testing.T) {
	f := newFake() // ephemeral 32768 to 32777 without 32770 and 32771
	h := openFake(t, t.TempDir(), f)
	prepareTwo(t, h, f)
	f.held = []netdev.Holder{{Port: 8081}, {Port: 32768}}
	p, err := h.Expose("w2", specs(t, "8080-8090:80"), nil)
	if err != nil || p[0].HostPort != 8082 || p[0].HostPortEnd != 8082 {
		t.Fatalf("first free: %+v, %v", p, err)
	}
	p, err = h.Expose("w2", specs(t, "100-105"), nil)
	if err != nil || p[0].HostPort != 32772 || p[0].HostPortEnd != 32777 || p[0].PortEnd != 105 {
		t.Fatalf("six in a row: %+v, %v", p, err)
	}
	p, err = h.Expose("w2", specs(t, "99", "99/udp"), nil)
	if err != nil || p[0].HostPort != 32769 || p[1].Protocol != "udp" {
		t.Fatalf("the last one: %+v, %v", p, err)
	}
	_, err = h.Expose("w2", specs(t, "98"), nil)
	wantKind(t, err, ErrConflict)
	unexposes(t, h, "w2", "99")
	unexposes(t, h, "w2", "8080-8090:80", "99/udp")
	left, err := h.Ports("w2")
	if err != nil || len(left) != 1 || left[0].Port != 100 || left[0].HostIP != "0.0.0.0" {
		t.Errorf("left: %+v, %v", left, err)
	}
	if n := len(f.dp.services); n != 2+6 {
		t.Errorf("%d ports in the datapath", n)
	}
}

func TestFlows(t *testing.T) {
	f := newFake()
	h := openFake(t, t.TempDir(), f)
	prepareTwo(t, h, f)
	at := netip.MustParseAddrPort
	f.dp.flows = []loader.Flow{
		{Protocol: "tcp", Kind: "snat", Slot: 1, Src: at("172.18.0.2:1"), Dst: at("203.0.113.1:80")},
		{Protocol: "tcp", Kind: "dnat", Slot: 2, Src: at("203.0.113.1:5"), TranslatedDst: at("172.18.0.2:80")},
		{Protocol: "udp", Kind: "snat", Slot: 4, Src: at("172.18.0.3:1")},
	}
	all, err := h.Flows(FlowFilter{})
	if err != nil || len(all) != 3 || all[1].Endpoint != "w1" || all[2].Endpoint != "w2" {
		t.Fatalf("%+v, %v", all, err)
	}
	if some, err := h.Flows(FlowFilter{Endpoint: "w1", Limit: 1}); err != nil || len(some) != 1 {
		t.Errorf("%+v, %v", some, err)
	}
	_, err = h.Flows(FlowFilter{Endpoint: "nope"})
	wantKind(t, err, ErrNotFound)
	if n, err := h.FlushFlows(FlowFilter{Endpoint: "w1"}); err != nil || n != 2 {
		t.Errorf("flushed %d, %v", n, err)
	}
}

func TestMany(t *testing.T) {
	f := newFake()
	h := upFake(t, f)
	for i := range 300 {
		name := fmt.Sprintf("m%d", i)
		f.space(name, uint64(1000+i))
		must(t)(h.Connect(ConnectRequest{Network: "default", NetNS: name}))
	}
	seen := map[string]bool{}
	all, err := h.Endpoints("")
	for _, e := range all {
		seen[e.IPv4] = true
	}
	if err != nil || len(seen) != 300 {
		t.Errorf("%d addresses, %v", len(seen), err)
	}
}

func TestConfig(t *testing.T) {
	const text = `{
		"networks": [{"name": "web", "subnets": ["10.9.0.0/24"], "icc": false}],
		"endpoints": [
			{"name": "a", "network": "web", "netns": "w1", "ports": ["8080:80", "53:53/udp"]},
			{"name": "b", "netns": "w2"}]}`
	c, err := ReadConfig(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	f := newFake()
	h := openFake(t, t.TempDir(), f)
	r, err := h.Up(UpRequest{File: c})
	if err != nil || !r.Changed || r.Networks != 2 || r.Endpoints != 2 || r.Ports != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	if r, err = h.Up(UpRequest{File: c, Prune: true}); err != nil || r.Changed {
		t.Errorf("again: %+v, %v", r, err)
	}
	c.Endpoints[0].Ports = specs(t, "8081:80", "8080:80")
	c.Endpoints = c.Endpoints[:1]
	if r, err = h.Up(UpRequest{File: c, Prune: true}); err != nil || r.Endpoints != 1 || r.Ports != 2 {
		t.Errorf("pruned: %+v, %v", r, err)
	}
	checkConsistent(t, h, f)
	state := dumpState(t, h)
	c.Networks = append(c.Networks, NetworkConfig{Name: "web2"})
	c.Endpoints = append(c.Endpoints, EndpointConfig{Name: "c", NetNS: "w3", Network: "web2"}, EndpointConfig{Name: "d", NetNS: "nope"})
	_, err = h.Up(UpRequest{File: c})
	wantKind(t, err, ErrNotFound)
	if d := cmp.Diff(state, dumpState(t, h)); d != "" {
		t.Errorf("a file that fails left something:\n%s", d)
	}
	for text, kind := range map[string]error{
		`{"network": []}`:                       ErrInvalid,
		`{} {}`:                                 ErrInvalid,
		`{`:                                     ErrInvalid,
		"networks:\n- name: [web\n":             ErrInvalid,
		"networks:\n- name: a\n  colour: red\n": ErrInvalid,
		`{"networks": [{"name": "a"}, {"name": "a"}]}`:        ErrInvalid,
		`{"endpoints": [{"netns": "a"}]}`:                     ErrInvalid,
		`{"endpoints": [{"name": "a", "ports": [":80"]}]}`:    ErrInvalid,
		`{"endpoints": [{"name": "a", "ports": ["1/sctp"]}]}`: ErrUnsupported,
	} {
		_, err := ReadConfig(strings.NewReader(text))
		wantKind(t, err, kind)
	}
}

func TestAnotherNamespace(t *testing.T) {
	f := newFake()
	dir := t.TempDir()
	h := openFake(t, dir, f)
	prepareTwo(t, h, f)
	_ = h.Close()
	before := f.dump()
	f.elsewhere = 1
	h = openFake(t, dir, f)
	wantKind(t, h.Down(true), ErrConflict)
	wantKind(t, h.Disconnect("w1"), ErrConflict)
	_, err := h.Up(UpRequest{})
	wantKind(t, err, ErrConflict)
	_, err = h.Connect(ConnectRequest{Network: "default", NetNS: "w3"})
	wantKind(t, err, ErrConflict)
	if d := cmp.Diff(before, f.dump()); d != "" {
		t.Error(d)
	}
	f.dp = nil // after a reboot
	must(t)(h.Up(UpRequest{}))
	if r, err := h.Up(UpRequest{}); err != nil || r.Changed {
		t.Errorf("%+v, %v", r, err)
	}
}

// unexposes closes ports and checks that those returned are those that were there
// before and are not after, in their order.
func unexposes(t *testing.T, h *Host, endpoint string, texts ...string) {
	t.Helper()
	before, err := h.Ports(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	closed, err := h.Unexpose(endpoint, specs(t, texts...))
	if err != nil {
		t.Fatal(err)
	}
	after, err := h.Ports(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	same := func(a PortInfo) func(PortInfo) bool {
		return func(b PortInfo) bool {
			return a.Protocol == b.Protocol && a.HostIP == b.HostIP && a.HostPort == b.HostPort
		}
	}
	gone := slices.DeleteFunc(before, func(p PortInfo) bool { return slices.ContainsFunc(after, same(p)) })
	if len(closed) != len(gone) || len(closed) != len(texts) || cmp.Diff(gone, closed) != "" {
		t.Errorf("unexpose %v returned %+v, gone are %+v", texts, closed, gone)
	}
}

// What a loaded datapath cannot be given is not recorded either, not even for a moment.
func TestMaxFlowsOfLoadedIsNotRecorded(t *testing.T) {
	f := newFake()
	h := openFake(t, t.TempDir(), f)
	prepareUp(t, h, f)
	h.state.committing = func() error {
		t.Error("something was recorded")
		return nil
	}
	_, err := h.Up(UpRequest{MaxFlows: 1000})
	wantKind(t, err, ErrConflict)
}
