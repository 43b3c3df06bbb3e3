package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ebnet/ebnet/loader"
	"github.com/ebnet/ebnet/loader/netdev"
)

func prefixes(ss ...string) (ps []netip.Prefix) {
	for _, s := range ss {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

func addrs(ss ...string) (as []netip.Addr) {
	for _, s := range ss {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

func TestSocketHooks(t *testing.T) {
	f := newFake()
	h := upFake(t, f)
	hooks := func() bool {
		s, err := h.Status()
		must(t)(s, err)
		return s.Features.SocketHooks
	}
	if f.dp.sockets != "/cg" || !hooks() {
		t.Errorf("attached to %q", f.dp.sockets)
	}
	h.o.Cgroup = "/cg/other"
	if r, err := h.Up(UpRequest{}); err != nil || !r.Changed || f.dp.sockets != "/cg/other" {
		t.Errorf("%+v, %v, attached to %q", r, err, f.dp.sockets)
	}
	if r, err := h.Up(UpRequest{}); err != nil || r.Changed {
		t.Errorf("again: %+v, %v", r, err)
	}
	h.o.Cgroup = "/nosuch"
	_, err := h.Up(UpRequest{})
	wantKind(t, err, ErrNotFound)
}

func TestWithoutSocketHooks(t *testing.T) {
	for name, lack := range map[string]func(f *fake){
		"no mount":  func(f *fake) { f.cgroup = "" },
		"no kernel": func(f *fake) { f.noSockets = true },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			lack(f)
			h := openFake(t, t.TempDir(), f)
			r, err := h.Up(UpRequest{})
			if err != nil || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "from the host itself") {
				t.Fatalf("%+v, %v", r, err)
			}
			if r, err := h.Up(UpRequest{}); err != nil || r.Changed || len(r.Warnings) != 1 {
				t.Errorf("again: %+v, %v", r, err)
			}
			must(t)(h.Connect(ConnectRequest{Network: DefaultNetwork, NetNS: "w1"}))
			_, err = h.Expose("w1", specs(t, "127.0.0.1:80:80"), nil)
			wantKind(t, err, ErrUnsupported)
		})
	}
}

func TestLocalAddrs(t *testing.T) {
	f := newFake()
	f.host = prefixes("198.51.100.2/24", "127.0.0.1/8", "10.1.2.3/31", "10.9.9.9/32", "10.7.0.1/30", "fd00::1/64", "172.18.0.1/16")
	h := upFake(t, f)
	if want := addrs("198.51.100.2", "10.1.2.3", "10.9.9.9", "10.7.0.1", "172.18.0.1"); !slices.Equal(f.dp.local, want) {
		t.Errorf("local %v", f.dp.local)
	}
	want := addrs("198.51.100.0", "198.51.100.255", "10.7.0.0", "10.7.0.3", "172.18.0.0", "172.18.255.255")
	if !slices.Equal(f.dp.broadcast, want) {
		t.Errorf("broadcast %v", f.dp.broadcast)
	}
	f.host = append(f.host, prefixes("172.19.0.1/16")...)
	must(t)(h.CreateNetwork(NetworkRequest{Name: "web", Masquerade: true}))
	if !slices.Contains(f.dp.local, netip.MustParseAddr("172.19.0.1")) {
		t.Errorf("after another network: %v", f.dp.local)
	}
}

func TestFrom(t *testing.T) {
	f := newFake()
	h := openFake(t, t.TempDir(), f)
	prepareTwo(t, h, f)
	from := prefixes("10.1.2.3/8", "192.0.2.7/32", "10.0.0.0/8")
	p, err := h.Expose("w1", specs(t, "9000:90"), from)
	if err != nil || !slices.Equal(p[0].From, prefixes("10.0.0.0/8", "192.0.2.7/32")) {
		t.Fatalf("%+v, %v", p, err)
	}
	_, err = h.Expose("w2", specs(t, "9000:90"), nil)
	wantKind(t, err, ErrConflict)
	must(t)(h.Expose("w2", specs(t, "9001:90"), prefixes("0.0.0.0/0")))
	var many []netip.Prefix
	for i := range 1500 {
		many = append(many, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
	}
	must(t)(h.Connect(ConnectRequest{Network: DefaultNetwork, NetNS: "w3", Ports: specs(t, "9002:90"), From: many}))
	before, state := f.dump(), dumpState(t, h)
	check := func(when string) {
		t.Helper()
		if d := cmp.Diff(before, f.dump()) + cmp.Diff(state, dumpState(t, h)); d != "" {
			t.Errorf("%s:\n%s", when, d)
		}
	}
	clear(f.dp.services)
	must(t)(h.Up(UpRequest{}))
	check("repaired")
	must(t)(nil, h.Down(false))
	must(t)(h.Up(UpRequest{}))
	check("down and up")
	if ports, err := h.Ports("w3"); err != nil || len(ports[0].From) != 1500 {
		t.Errorf("%d sources, %v", len(ports[0].From), err)
	}
}

func TestParseSource(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.0/8": "10.0.0.0/8", "10.0.0.1": "10.0.0.1/32", "0.0.0.0/0": "0.0.0.0/0", "fd00::1": "fd00::1/128",
	} {
		if p, err := ParseSource("--from", text); err != nil || p.String() != want {
			t.Errorf("%s: %v, %v", text, p, err)
		}
	}
	for _, text := range []string{"", "10.0.0.1/8", "10.0.0.0/33", "10.0.0", "host", "::ffff:10.0.0.1", "fe80::1%eth0"} {
		_, err := ParseSource("--from", text)
		wantKind(t, err, ErrInvalid)
	}
}

func TestRouted(t *testing.T) {
	f := newFake()
	h := openFake(t, t.TempDir(), f)
	prepareTwo(t, h, f)
	f.held = []netdev.Holder{{Port: 22, PID: 7, Command: "sshd"}}
	n, err := h.CreateNetwork(NetworkRequest{Name: "lab", ICC: true, Masquerade: true, Mode: ModeRouted})
	if err != nil || n.Mode != ModeRouted || n.Masquerade {
		t.Fatalf("%+v, %v", n, err)
	}
	if dn := f.dp.networks[2]; !dn.Routed || dn.Masquerade {
		t.Errorf("in the datapath: %+v", dn)
	}
	e, err := h.Connect(ConnectRequest{Network: "lab", NetNS: "w3", Ports: specs(t, "8080:80", "22:22", "100-110:53/udp")})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range e.Ports {
		if p.HostIP != e.IPv4 || p.HostPort != p.Port || p.HostPortEnd != p.PortEnd {
			t.Errorf("%+v", p)
		}
	}
	if _, there := f.dp.services["6 "+e.IPv4+":80"]; !there || len(f.dp.services) != 2+3 {
		t.Errorf("in the datapath: %v", f.dp.services)
	}
	// The host's ports are free, and so are those of the next endpoint.
	must(t)(h.Expose("w2", specs(t, "80:80", "53:53/udp"), nil))
	must(t)(h.Connect(ConnectRequest{Network: "lab", NetNS: "w4", Ports: specs(t, "80")}))
	_, err = h.Expose("w3", specs(t, "9999:80"), nil)
	wantKind(t, err, ErrConflict)
	_, err = h.Expose("w3", specs(t, "70-90"), nil)
	wantKind(t, err, ErrConflict)
	_, err = h.Unexpose("w3", specs(t, "81"))
	wantKind(t, err, ErrNotFound)
	if s, err := h.Status(); err != nil || s.Ports != 2+3+2+1 {
		t.Errorf("%d ports, %v", s.Ports, err)
	}
	unexposes(t, h, "w3", "1.2.3.4:7777:80", "53/udp")
	if r, err := h.Up(UpRequest{}); err != nil || r.Changed {
		t.Errorf("%+v, %v", r, err)
	}
	checkConsistent(t, h, f)
}

func TestNetworkTranslation(t *testing.T) {
	f := newFake()
	h := upFake(t, f)
	must(t)(h.CreateNetwork(NetworkRequest{Name: "plain"}))
	n, err := h.CreateNetwork(NetworkRequest{Name: "fixed", Masquerade: true, SNATAddrs: addrs("198.51.100.2")})
	if err != nil || n.SNAT != "198.51.100.2" {
		t.Fatalf("%+v, %v", n, err)
	}
	if f.dp.networks[2].Masquerade || f.dp.networks[3].SNAT != netip.MustParseAddr("198.51.100.2") {
		t.Errorf("in the datapath: %+v", f.dp.networks)
	}
	f.host = prefixes("198.51.100.4/24")
	if r, err := h.Up(UpRequest{}); err != nil || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "fixed") {
		t.Errorf("without the address: %+v, %v", r, err)
	}
}

func TestTimeouts(t *testing.T) {
	f := newFake()
	h := upFake(t, f)
	if f.dp.cfg.Timeouts != loader.DefaultTimeouts {
		t.Errorf("%+v", f.dp.cfg.Timeouts)
	}
	set := func(texts ...string) UpReport {
		t.Helper()
		change, err := ParseTimeouts("--timeout", texts)
		must(t)(nil, err)
		r, err := h.Up(UpRequest{Timeouts: change})
		must(t)(nil, err)
		return r
	}
	set("tcp-established=2h", "icmp=5")
	want := loader.DefaultTimeouts
	want.TCPEstablished, want.ICMP = 2*time.Hour, 5*time.Second
	for range 2 {
		if f.dp.cfg.Timeouts != want {
			t.Errorf("%+v", f.dp.cfg.Timeouts)
		}
		if r := set(); r.Changed {
			t.Errorf("%+v", r)
		}
	}
	if s, err := h.Status(); err != nil || s.Timeouts["tcp-established"] != 7200 || s.Timeouts["udp-replied"] != 180 {
		t.Errorf("%v, %v", s.Timeouts, err)
	}
	must(t)(nil, h.Down(false))
	set("icmp=default")
	if want.ICMP = loader.DefaultTimeouts.ICMP; f.dp.cfg.Timeouts != want {
		t.Errorf("%+v", f.dp.cfg.Timeouts)
	}
	for _, text := range []string{"icmp", "icmp=", "icmp=0", "icmp=1.5s", "icmp=10ms", "icmp=-1s", "icmp=9999h", "icmp=soon", "dns=5s", "=5"} {
		_, err := ParseTimeouts("--timeout", []string{text})
		wantKind(t, err, ErrInvalid)
	}
	_, err := ParseTimeouts("--timeout", []string{"icmp=1", "icmp=2"})
	wantKind(t, err, ErrInvalid)
}

func TestReservedPorts(t *testing.T) {
	f := newFake() // ephemeral 32768 to 32777, of them reserved 32770 and 32771
	h := openFake(t, t.TempDir(), f)
	prepareTwo(t, h, f)
	reserved := func(want string) {
		t.Helper()
		if have := fmt.Sprint(f.reserved); have != want {
			t.Errorf("reserved %v, want %v", have, want)
		}
	}
	const admin = "[{32770 32771}]"
	reserved(admin)
	must(t)(h.Expose("w1", specs(t, "32760-32769:60-69", "32771:71"), nil))
	reserved("[{32768 32771}]")
	must(t)(h.Expose("w2", specs(t, "32769:69/udp", "32775:75"), nil))
	reserved("[{32768 32771} {32775 32775}]")
	unexposes(t, h, "w1", "32760-32769:60-69", "32771:71")
	reserved("[{32769 32771} {32775 32775}]")
	f.reserved = append(f.reserved, netdev.PortRange{First: 40000, Last: 40000}) // the administrator
	must(t)(h.Up(UpRequest{}))
	if f.dp.sources.Has(40000) || !f.dp.sources.Has(40001) {
		t.Error("reserved ports as source ports")
	}
	must(t)(nil, h.Disconnect("w2"))
	reserved("[{32770 32771} {40000 40000}]")
	must(t)(h.Expose("w1", specs(t, "32777:77"), nil))
	reserved("[{32770 32771} {32777 32777} {40000 40000}]")
	must(t)(nil, h.Down(false))
	reserved("[{32770 32771} {40000 40000}]")
	must(t)(h.Up(UpRequest{}))
	reserved("[{32770 32771} {32777 32777} {40000 40000}]")
	must(t)(nil, h.Down(true))
	reserved("[{32770 32771} {40000 40000}]")
}

func TestSides(t *testing.T) {
	f := newFake()
	h := upFake(t, f)
	docker := f.link("docker0", "bridge", "")
	f.sides["docker0"] = true
	for changed := range 2 {
		r, err := h.Up(UpRequest{})
		if err != nil || r.Changed != (changed == 0) || !slices.Equal(r.Uplinks, []string{"eth0"}) {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	if up := f.dp.uplinks[docker.Index]; !up.Side || !f.dp.Attached(loader.FromUplink, docker.Index) || !f.dp.Attached(loader.ToUplink, docker.Index) {
		t.Errorf("%+v, %v", up, f.dump())
	}
	s, err := h.Status()
	if err != nil || len(s.Uplinks) != 1 || len(s.Sides) != 1 || s.Sides[0].Name != "docker0" || !s.Sides[0].Attached {
		t.Errorf("%+v, %v", s, err)
	}
	must(t)(h.Up(UpRequest{Uplinks: []string{"eth0", "docker0"}}))
	if f.dp.uplinks[docker.Index].Side {
		t.Error("a bridge that is named is no uplink")
	}
	must(t)(h.Up(UpRequest{Uplinks: []string{"eth0"}}))
	delete(f.links, "docker0")
	must(t)(h.Up(UpRequest{}))
	if len(f.dp.uplinks) != 1 {
		t.Errorf("%+v", f.dp.uplinks)
	}
}

func TestShares(t *testing.T) {
	f := newFake()
	h := openFake(t, t.TempDir(), f)
	prepareTwo(t, h, f)
	f.dp.shares = []loader.Share{{Slot: 2, Held: 7, Refused: 1}, {Slot: 1, Held: 3}, {Slot: 99, Held: 1}}
	s, err := h.Status()
	want := []ShareInfo{{Endpoint: "w1", Held: 3}, {Endpoint: "w1", Port: "0.0.0.0:8080/tcp", Held: 7, Refused: 1}}
	if d := cmp.Diff(want, s.Shares); d != "" || err != nil {
		t.Errorf("%v\n%s", err, d)
	}
}

func TestConfigPolicy(t *testing.T) {
	const text = `
networks:
  - {name: fixed, snat_addresses: [198.51.100.2]}
  - {name: plain, masquerade: false}
  - {name: lab, mode: routed}
endpoints:
  - {name: a, network: lab, netns: w1, ports: ["80"], from: [192.0.2.1, 10.0.0.0/8]}
  - {name: b, netns: w2, ports: ["127.0.0.1:80:80", "81:81"]}`
	c, err := ReadConfig(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	f := newFake()
	h := openFake(t, t.TempDir(), f)
	must(t)(h.Up(UpRequest{File: c}))
	if r, err := h.Up(UpRequest{File: c, Prune: true}); err != nil || r.Changed {
		t.Errorf("again: %+v, %v", r, err)
	}
	ports, err := h.Ports("a")
	if err != nil || len(ports) != 1 || !slices.Equal(ports[0].From, prefixes("10.0.0.0/8", "192.0.2.1/32")) {
		t.Errorf("%+v, %v", ports, err)
	}
	// Other sources are another port: refused, or put in the place of the old one.
	c.Endpoints[0].From = c.Endpoints[0].From[:1]
	_, err = h.Up(UpRequest{File: c})
	wantKind(t, err, ErrConflict)
	must(t)(h.Up(UpRequest{File: c, Prune: true}))
	if ports, err := h.Ports("a"); err != nil || len(ports) != 1 || len(ports[0].From) != 1 {
		t.Errorf("%+v, %v", ports, err)
	}
}
