package network

import (
	"net/netip"
	"testing"

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
	web, db, gone := connect(t, h, "web", "w0", "8080:80"), connect(t, h, "db", "w1"), connect(t, h, "gone", "w2")
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
		{Ifindex: web.Ifindex, Reason: "spoofed-mac", Packets: 2, Bytes: 84}, {Ifindex: web.Ifindex, Reason: "icc", Packets: 1, Bytes: 42},
		{Ifindex: gone.Ifindex, Reason: "icc", Packets: 1, Bytes: 42}, {Ifindex: 1, Reason: "icc", Packets: 1, Bytes: 42},
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
			{Sent, "icc", 1, 42}, {Sent, "spoofed-mac", 2, 84},
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
