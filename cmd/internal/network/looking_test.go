package network

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ebnet/ebnet/loader"
	"github.com/ebnet/ebnet/loader/netdev"
)

func (f *fake) PeerTraffic(ifindexes ...int) (map[int]netdev.Traffic, error) {
	all := map[int]netdev.Traffic{}
	for _, i := range ifindexes {
		if name := f.name(i); f.inside[name] != "" {
			all[i] = netdev.Traffic{RxPackets: 10, RxBytes: 1000, RxDropped: 1, TxPackets: 20, TxBytes: 2000, TxDropped: uint64(i)}
		}
	}
	return all, nil
}

// illness is what a doctor is to find.
type illness struct {
	stale   bool
	bridge  []string
	filters []netdev.Filter
	ahead   map[loader.Hook][]loader.Program
	rules   []netdev.DNAT
	layouts []string
	jit     string
	usage   []loader.MapUse
	err     error
}

func (f *fake) OtherLayouts(string) ([]string, error)           { return f.ill.layouts, nil }
func (f *fake) CheckBridge(netdev.Bridge) ([]string, error)     { return f.ill.bridge, nil }
func (f *fake) FiltersAhead(int, bool) ([]netdev.Filter, error) { return f.ill.filters, nil }
func (f *fake) DNATs() ([]netdev.DNAT, error)                   { return f.ill.rules, f.ill.err }
func (f *fake) NSCookie(ns *netdev.NS) (uint64, error)          { return 1000 + ns.Inode, nil }
func (f *fake) BootID() (string, error)                         { return f.boot, nil }

func (f *fake) CheckVeths(vs []netdev.Veth) ([]netdev.VethReport, error) {
	return f.visitVeths(vs, false), nil
}

func (f *fake) RepairVeths(vs []netdev.Veth) ([]netdev.VethReport, error) {
	return f.visitVeths(vs, true), nil
}

func (f *fake) visitVeths(vs []netdev.Veth, repair bool) []netdev.VethReport {
	reports := make([]netdev.VethReport, len(vs))
	for i, v := range vs {
		l := f.links[v.HostName]
		if l == nil {
			reports[i].Lost = true
			continue
		}
		if l.MasterIndex != v.Bridge {
			reports[i].Wrong = append(reports[i].Wrong, "the device is no port of the network's bridge")
		}
		if !l.Up || !l.Carrier {
			reports[i].Wrong = append(reports[i].Wrong, "the device is down")
		}
		if repair {
			l.MasterIndex, l.Up, l.Carrier = v.Bridge, true, true
		}
	}
	return reports
}

func (d *fakeDatapath) Current() (bool, error) { return !d.f.ill.stale, nil }
func (f *fake) Sysctl(string) (string, error) {
	if f.ill.jit == "" {
		return "", netdev.ErrNotFound
	}
	return f.ill.jit, nil
}
func (d *fakeDatapath) Ahead(h loader.Hook, _ int) ([]loader.Program, error) {
	return d.f.ill.ahead[h], nil
}

func (d *fakeDatapath) Sweep() (loader.Sweep, error) {
	return loader.Sweep{Confirmed: 3, Rounds: 4, Took: time.Millisecond, Longest: time.Second}, nil
}

// connect is an endpoint of the name in the fake's namespace w0, w1, …
func connect(t *testing.T, h *Host, name, space string, ports ...string) EndpointInfo {
	t.Helper()
	e, err := h.Connect(ConnectRequest{Network: DefaultNetwork, NetNS: space, Name: name, Ports: specs(t, ports...)})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestStats(t *testing.T) {
	f := newFake()
	h := upFake(t, f)
	web, db := connect(t, h, "web", "w0", "8080:80"), connect(t, h, "db", "w1")
	connect(t, h, "gone", "w2")
	f.kill("w2")
	var webSlot uint32
	for s, e := range f.dp.endpoints {
		if e.Ifindex == web.Ifindex {
			webSlot = s
		}
	}
	at := func(ip string, port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(ip), port) }
	f.dp.flows = []loader.Flow{
		{Slot: webSlot, Src: at(web.IPv4, 1), TranslatedDst: at("192.0.2.1", 1)},
		{Slot: webSlot, Src: at(db.IPv4, 1), TranslatedDst: at(web.IPv4, 80)},
	}
	f.dp.drops = []loader.Drops{
		{Ifindex: web.Ifindex, Slot: webSlot, Direction: Sent, Reason: "spoofed-mac", Packets: 2, Bytes: 84},
		{Ifindex: web.Ifindex, Slot: webSlot, Direction: Sent, Reason: "icc", Packets: 1, Bytes: 42},
		// As another one's, as somebody's from outside by two devices, and before its device was known as its.
		{Ifindex: 0, Slot: webSlot, Direction: Received, Reason: "icc", Packets: 1, Bytes: 42},
		{Ifindex: 1, Slot: webSlot, Direction: Received, Reason: "direct-access", Packets: 1, Bytes: 42},
		{Ifindex: 7, Slot: webSlot, Direction: Received, Reason: "direct-access", Packets: 2, Bytes: 80},
		{Ifindex: web.Ifindex, Direction: Sent, Reason: "unknown-device", Packets: 1, Bytes: 42},
		{Ifindex: 1, Direction: Received, Reason: "icc", Packets: 1, Bytes: 42}, // nobody's
	}
	got, err := h.Stats("")
	if err != nil {
		t.Fatal(err)
	}
	traffic := func(e EndpointInfo) (*TrafficInfo, *TrafficInfo) {
		return &TrafficInfo{10, 1000, 1}, &TrafficInfo{20, 2000, uint64(e.Ifindex)}
	}
	want := []StatsInfo{
		{Endpoint: "db", Network: "default", State: StateUp, Conversations: 1, Drops: []EndpointDropInfo{}},
		{Endpoint: "gone", Network: "default", State: StateGone, Drops: []EndpointDropInfo{}},
		{Endpoint: "web", Network: "default", State: StateUp, Conversations: 2, Drops: []EndpointDropInfo{
			{Received, "direct-access", 3, 122}, {Sent, "icc", 1, 42}, {Received, "icc", 1, 42}, {Sent, "spoofed-mac", 2, 84},
			{Sent, "unknown-device", 1, 42},
		}},
	}
	want[0].Received, want[0].Sent = traffic(db)
	want[2].Received, want[2].Sent = traffic(web)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	one, err := h.Stats("web")
	if err != nil || len(one) != 1 || one[0].Endpoint != "web" {
		t.Errorf("one endpoint: %+v, %v", one, err)
	}
	_, err = h.Stats("nosuch")
	wantKind(t, err, ErrNotFound)
}

func TestStatsWithoutDatapath(t *testing.T) {
	f := newFake()
	h := upFake(t, f)
	connect(t, h, "web", "w0")
	if err := h.Down(false); err != nil {
		t.Fatal(err)
	}
	got, err := h.Stats("")
	if err != nil || len(got) != 1 || got[0].Received != nil || got[0].State != StateGone {
		t.Errorf("%+v, %v", got, err)
	}
}

// ward is a host with all that can fall ill: a port of any address, one of an address and
// one within the ephemeral range.
func ward(t *testing.T) (*fake, *Host) {
	t.Helper()
	f := newFake()
	h := upFake(t, f)
	connect(t, h, "web", "w0", "8080-8089:80-89", "198.51.100.2:53:53/udp")
	connect(t, h, "db", "w1", "32775:5432")
	return f, h
}

func TestExamineHealthy(t *testing.T) {
	_, h := ward(t)
	d, err := h.Examine()
	if err != nil || !d.Healthy || d.Checks != len(checks) || len(d.Items) != 0 {
		t.Errorf("%+v, %v", d, err)
	}
}

// Each illness is found by its check alone, with a way to mend it.
func TestExamine(t *testing.T) {
	for name, test := range map[string]struct {
		spoil       func(f *fake, h *Host)
		check       string
		what, mend  string // parts of them
		more, count int    // other findings that follow from it; findings of the check, if not 1
	}{
		"not loaded":     {spoil: func(f *fake, h *Host) { f.dp, h.dp = nil, nil }, check: "datapath", what: "datapath", mend: "ebnet up"},
		"other programs": {spoil: func(f *fake, _ *Host) { f.ill.stale = true }, check: "programs", what: "programs", mend: "ebnet up"},
		"uplink unhooked": {spoil: func(f *fake, _ *Host) {
			delete(f.dp.attached, loader.Attachment{Hook: loader.ToUplink, Ifindex: f.links["eth0"].Index})
		}, check: "uplinks", what: "uplink eth0: program to_uplink is not attached", mend: "ebnet up"},
		"uplink gone": {spoil: func(f *fake, _ *Host) { delete(f.links, "eth0") },
			check: "uplinks", what: "uplink interface 2", mend: "ebnet up", more: 2},
		"another bridge": {spoil: func(f *fake, _ *Host) { f.link("docker0", "bridge", ""); f.sides["docker0"] = true },
			check: "uplinks", what: "device docker0", mend: "ebnet up"},
		"named uplink gone": {spoil: func(_ *fake, h *Host) {
			_ = h.state.change(true, func(t *tx) error {
				r, err := t.host()
				r.Uplinks = []string{"eth0", "eth9"}
				return errors.Join(err, t.putHost(r))
			})
		}, check: "uplinks", what: "uplink eth9", mend: "--uplink"},
		"bridge gone": {spoil: func(f *fake, _ *Host) { delete(f.links, "ebnet0") },
			check: "bridges", what: "bridge ebnet0", mend: "ebnet up", more: 2},
		"bridge forwards not": {spoil: func(f *fake, _ *Host) { f.ill.bridge = []string{"net.ipv4.conf.ebnet0.forwarding is 0 instead of 1"} },
			check: "bridges", what: "forwarding is 0", mend: "ebnet up"},
		"bridge unhooked": {spoil: func(f *fake, _ *Host) {
			delete(f.dp.attached, loader.Attachment{Hook: loader.FromBridge, Ifindex: f.links["ebnet0"].Index})
		}, check: "bridges", what: "from_bridge is not attached", mend: "ebnet up"},
		"network unknown": {spoil: func(f *fake, _ *Host) { clear(f.dp.networks) }, check: "bridges", what: "ebnet0", mend: "ebnet up"},
		"endpoint unhooked": {spoil: func(f *fake, _ *Host) {
			for a := range f.dp.attached {
				if a.Hook == loader.FromContainer {
					delete(f.dp.attached, a)
				}
			}
		}, check: "endpoints", what: "from_container is not attached", mend: "ebnet up", count: 2},
		"endpoint unknown": {spoil: func(f *fake, _ *Host) { clear(f.dp.endpoints) }, check: "endpoints", what: "device veb", mend: "ebnet up", count: 2},
		"endpoint unrecorded": {spoil: func(f *fake, _ *Host) { f.dp.endpoints[77] = loader.Endpoint{Slot: 77} },
			check: "endpoints", what: "in the datapath", mend: "ebnet up"},
		"link gone": {spoil: func(f *fake, _ *Host) { f.unlink("100") },
			check: "endpoints", what: "endpoint \"web\", device veb", mend: "ebnet up", more: 1},
		"link down":   {spoil: func(f *fake, _ *Host) { f.veth("100").Up = false }, check: "links", what: "web", mend: "ebnet up"},
		"inside down": {spoil: func(f *fake, _ *Host) { f.veth("100").Carrier = false }, check: "links", what: "web", mend: "ebnet up"},
		"off bridge":  {spoil: func(f *fake, _ *Host) { f.veth("100").MasterIndex = 0 }, check: "links", what: "web", mend: "ebnet up"},
		"map altered": {spoil: func(f *fake, _ *Host) { f.dp.sources.Remove(1024, 1) }, check: "maps", what: "map ports", mend: "ebnet up"},
		"endpoint altered": {spoil: func(f *fake, _ *Host) {
			for slot, e := range f.dp.endpoints {
				e.Network = 9
				f.dp.endpoints[slot] = e
				break
			}
		}, check: "maps", what: "map endpoints", mend: "ebnet up"},
		"namespace gone": {spoil: func(f *fake, _ *Host) { f.kill("w0") },
			check: "endpoints", what: "endpoint \"web\"", mend: "ebnet disconnect web", more: 1},
		"namespace replaced": {spoil: func(f *fake, _ *Host) { f.kill("w0"); f.space("w0", 500) },
			check: "endpoints", what: "endpoint \"web\"", mend: "connect the new one", more: 1},
		"no sockets": {spoil: func(f *fake, _ *Host) { f.dp.sockets = "" }, check: "sockets", what: "cgroup /cg", mend: "ebnet up"},
		"program ahead": {spoil: func(f *fake, _ *Host) {
			f.ill.ahead = map[loader.Hook][]loader.Program{loader.ToUplink: {{ID: 7, Name: "cilium", Link: 9}, {ID: 8}}}
		}, check: "order", what: "eth0: program 7 (cilium) runs before to_uplink", mend: "bpftool link detach id 9", count: 2},
		"port closed": {spoil: func(f *fake, _ *Host) {
			for k := range f.dp.services {
				delete(f.dp.services, k)
				break
			}
		}, check: "ports", what: "published ports", mend: "ebnet up"},
		"port too many": {spoil: func(f *fake, _ *Host) { f.dp.services["x"] = service{} }, check: "ports", what: "published ports", mend: "ebnet up"},
		"not reserved":  {spoil: func(f *fake, _ *Host) { f.reserved = nil }, check: "ports", what: "port 32775", mend: "ebnet up"},
		"address lost":  {spoil: func(f *fake, _ *Host) { f.host = f.host[1:] }, check: "addresses", what: "198.51.100.2:53/udp", mend: "unexpose web 198.51.100.2:53:53/udp", more: 2},
		"port held":     {spoil: func(f *fake, _ *Host) { f.held = []netdev.Holder{{Port: 8085, PID: 7, Command: "nginx"}} }, check: "holders", what: "0.0.0.0:8080-8089/tcp", mend: "unexpose web 8080-8089:80-89/tcp"},
		"port of a rule": {spoil: func(f *fake, _ *Host) {
			r := netdev.DNAT{Table: "nat", Chain: "DOCKER", Protocol: 6, Ports: netdev.PortRange{First: 8089, Last: 8100}}
			udp, elsewhere, here := r, r, r
			udp.Protocol = 17
			elsewhere.Addr = netip.MustParseAddr("203.0.113.1")
			here.Addr = f.host[0].Addr()
			f.ill.rules = []netdev.DNAT{r, udp, elsewhere, here}
		}, check: "other-nat", what: "0.0.0.0:8080-8089/tcp", mend: "remove that rule", count: 2},
		"interpreted": {spoil: func(f *fake, _ *Host) { f.ill.jit = "0" }, check: "settings", what: "bpf_jit_enable", mend: "sysctl -w"},
		"map full": {spoil: func(f *fake, _ *Host) {
			f.ill.usage = []loader.MapUse{{Name: "flows", Used: 81, Max: 100}, {Name: "peers", Used: 100, Max: 100}, {Name: "services", Used: 80, Max: 100}}
		}, check: "pressure", what: "map flows: 81 of 100 entries are used (81%)", mend: "--max-flows 524288"},
		"killed command": {spoil: func(_ *fake, h *Host) {
			_ = h.state.change(true, func(t *tx) error {
				n, err := t.network(DefaultNetwork)
				n.Status = removing
				return errors.Join(err, t.putNetwork(n))
			})
		}, check: "incomplete", what: "network \"default\"", mend: "ebnet up"},
		"strange device": {spoil: func(f *fake, _ *Host) { f.link("br-x", "bridge", "ebnet:nosuch") },
			check: "leftovers", what: "device br-x", mend: "ebnet up"},
		"other version": {spoil: func(f *fake, _ *Host) { f.ill.layouts = []string{"/fake/v1"} },
			check: "leftovers", what: "/fake/v1", mend: "ebnet up"},
		"dead pin": {spoil: func(f *fake, _ *Host) {
			f.dp.attached[loader.Attachment{Hook: loader.FromContainer, Ifindex: 999}] = true
		},
			check: "leftovers", what: "interface 999", mend: "ebnet up"},
		"check fails": {spoil: func(f *fake, _ *Host) { f.ill.err = errInjected },
			check: "other-nat", what: "check other-nat", mend: "again"},
	} {
		t.Run(name, func(t *testing.T) {
			f, h := ward(t)
			test.spoil(f, h)
			d, err := h.Examine()
			if err != nil {
				t.Fatal(err)
			}
			n, right := 0, false
			for _, i := range d.Items {
				if i.Check == test.check {
					n++
					right = right || strings.Contains(i.What, test.what) && strings.Contains(i.Mend, test.mend)
				}
				if i.What == "" || i.Why == "" || i.Mend == "" {
					t.Errorf("incomplete: %+v", i)
				}
			}
			if d.Healthy || !right || n != max(1, test.count) || len(d.Items) != n+test.more {
				t.Errorf("%d findings of check %s, want %d with %q and %q, and %d others; got %+v",
					n, test.check, max(1, test.count), test.what, test.mend, test.more, d.Items)
			}
		})
	}
}

func TestExamineFilters(t *testing.T) {
	f := newFake()
	f.noTCX = true
	h := upFake(t, f)
	f.ill.filters = []netdev.Filter{{Kind: "u32", Priority: 1}}
	d, err := h.Examine()
	if err != nil || len(d.Items) != 3 || d.Items[2].What != "eth0: filter u32 of priority 1 runs before to_uplink" ||
		d.Items[2].Mend != "tc filter del dev eth0 egress pref 1" {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestExamineElsewhere(t *testing.T) {
	f, h := ward(t)
	f.elsewhere = 1
	_ = h.dp.Close()
	h.dp = nil
	_, err := h.Examine()
	wantKind(t, err, ErrConflict)
}

func TestExamineMayNot(t *testing.T) {
	f, h := ward(t)
	f.ill.err = netdev.ErrPermission
	_, err := h.Examine()
	wantKind(t, err, ErrUnsupported)
}

// veth is the host's end of the link into the namespace with the inode.
func (f *fake) veth(inode string) *netdev.Link {
	for name, in := range f.inside {
		if strings.HasPrefix(in, inode+"/") {
			return f.links[name]
		}
	}
	return nil
}

// unlink takes a link away and leaves its namespace.
func (f *fake) unlink(inode string) {
	if l := f.veth(inode); l != nil {
		delete(f.inside, l.Name)
		delete(f.links, l.Name)
	}
}

func TestMetrics(t *testing.T) {
	f, h := ward(t)
	f.dp.flows = []loader.Flow{{}, {}}
	// Two devices that are gone have nothing to tell them apart.
	f.dp.drops = []loader.Drops{{Ifindex: 98, Reason: "icc", Packets: 1, Bytes: 10}, {Ifindex: 99, Reason: "icc", Packets: 2, Bytes: 20}}
	f.dp.shares = []loader.Share{{Slot: 1, Held: 5, Refused: 6}}
	f.kill("w1")
	all, err := h.Metrics("1.2")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, m := range all {
		if !strings.HasSuffix(m.Help, ".") || strings.HasSuffix(m.Name, "_total") != (m.Type == Counter) {
			t.Errorf("%s of type %s: %q", m.Name, m.Type, m.Help)
		}
		for _, s := range m.Samples {
			key := m.Name
			for _, l := range s.Labels {
				key += " " + l.Name + "=" + l.Value
			}
			if _, twice := got[key]; twice {
				t.Errorf("%s is there twice", key)
			}
			got[key] = s.Value
		}
	}
	for key, want := range map[string]float64{
		"ebnet_up": 1, "ebnet_networks": 1, "ebnet_endpoints state=up": 1, "ebnet_endpoints state=gone": 1, "ebnet_published_ports": 12,
		"ebnet_conversations": 2, "ebnet_map_entries map=services": 12, "ebnet_map_max_entries map=services": 65536,
		"ebnet_uplink_attached device=eth0": 1, "ebnet_drops_total device= endpoint= reason=icc": 3, "ebnet_drop_bytes_total device= endpoint= reason=icc": 30,
		"ebnet_endpoint_receive_packets_total endpoint=web network=default": 10, "ebnet_endpoint_transmit_bytes_total endpoint=web network=default": 2000,
		"ebnet_sweep_queue": 3, "ebnet_sweep_longest_round_seconds": 1, "ebnet_share_refused_total endpoint=web port=": 6,
	} {
		if v, ok := got[key]; !ok || v != want {
			t.Errorf("%s is %v (there: %v), want %v", key, v, ok, want)
		}
	}
	if _, ok := got["ebnet_endpoint_receive_packets_total endpoint=db network=default"]; ok {
		t.Error("an endpoint without a link has counters")
	}
	f.dp, h.dp = nil, nil
	if all, err = h.Metrics("1.2"); err != nil || all[0].Name != "ebnet_up" || all[0].Samples[0].Value != 0 {
		t.Errorf("not up: %+v, %v", all, err)
	}
}

func TestGraph(t *testing.T) {
	_, h := ward(t)
	must(t)(h.CreateNetwork(NetworkRequest{Name: "back", Internal: true}))
	g, err := h.Graph()
	if err != nil {
		t.Fatal(err)
	}
	if !g.Up || len(g.Uplinks) != 1 || len(g.Networks) != 2 || len(g.Networks[0].Endpoints) != 0 || g.Networks[0].Network.Name != "back" {
		t.Errorf("%+v", g)
	}
	if es := g.Networks[1].Endpoints; len(es) != 2 || es[0].Name != "db" || len(es[1].Ports) != 2 {
		t.Errorf("%+v", es)
	}
}
