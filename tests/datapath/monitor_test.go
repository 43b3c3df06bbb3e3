package datapath

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/ebnet/ebnet/loader"
)

// dropsOf are the counters of an endpoint's slot, by direction and reason.
func (h *host) dropsOf(slot uint32) map[string]uint64 {
	h.Helper()
	all, err := h.dp.Drops()
	must(h.TB, err)
	got := map[string]uint64{}
	for _, d := range all {
		if d.Slot == slot {
			got[d.Direction+" "+d.Reason] += d.Packets
		}
	}
	return got
}

func (h *host) expectDrops(slot uint32, want map[string]uint64) {
	h.Helper()
	got := h.dropsOf(slot)
	for k, n := range want {
		if got[k] != n {
			h.Errorf("slot %d: %d of %q, want %d", slot, got[k], k, n)
		}
	}
	if len(got) != len(want) {
		h.Errorf("slot %d: %v, want %v", slot, got, want)
	}
}

// Drops are counted for the endpoint that sends, and for the one that would have received, as far as
// address, published port or conversation tell; what is nobody's, for nobody.
func TestPrivilegedDropsOfEndpoints(t *testing.T) {
	h := newHost(t, true)
	parties := func(name string, from, to int, fn func()) {
		t.Helper()
		told := h.told(loader.EventDrop, fn)
		if len(told) != 1 || told[0].From != from || told[0].To != to {
			t.Errorf("%s: told is %+v, want one from %d to %d", name, told, from, to)
		}
	}
	drop := func(hook loader.Hook, dev int, p packet) func() {
		return func() { h.expect(hook, dev, p, loader.Drop, nil) }
	}
	parties("late", h.a, 0, drop(loader.FromContainer, h.a, fromA(tcp, ack, 5001, remote, 80)))
	spoofed := fromB(tcp, syn, 5000, remote, 80)
	spoofed.smac = aMAC.String()
	parties("spoofed", h.a, 0, drop(loader.FromContainer, h.a, spoofed))
	parties("another network's", h.a, h.othr, drop(loader.FromContainer, h.a, fromA(tcp, syn, 5000, otherNet, 80)))
	parties("direct", 0, h.b, drop(loader.FromUplink, h.uplink, fromOutside(tcp, syn, remote, 4000, containerB, 22)))
	parties("to nobody", 0, 0, drop(loader.FromUplink, h.uplink, fromOutside(tcp, syn, remote, 4000, netip.MustParseAddr("172.18.7.7"), 22)))
	forwarded := fromOutside(tcp, syn, remote, 4000, containerB, 22)
	parties("forwarded", 0, h.b, func() {
		v, _ := h.runReceived(loader.ToBridge, h.bridge, h.uplink, forwarded)
		if v != loader.Drop {
			t.Errorf("verdict %v", v)
		}
	})
	must(t, h.dp.Publish(loader.Publication{Slot: 10, Protocol: loader.TCP, HostPort: 8080, Count: 1, Network: 1, Ifindex: h.a,
		MAC: aMAC, Addr: containerA, Port: 80, From: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}))
	parties("published", 0, h.a, drop(loader.FromUplink, h.uplink, fromOutside(tcp, syn, remote, 4000, hostAddr, 8080)))
	parties("published, from inside", h.b, h.a, drop(loader.FromContainer, h.b, fromB(tcp, syn, 5000, hostAddr, 8080)))
	parties("leak", h.b, 0, func() {
		late := fromB(tcp, ack, 5001, remote, 80)
		if v, _ := h.runReceived(loader.ToUplink, h.uplink, h.bridge, late); v != loader.Drop {
			t.Errorf("verdict %v", v)
		}
	})
	h.expectDrops(1, map[string]uint64{"sent no-flow": 1, "sent spoofed-address": 1, "sent other-network": 1, "received source-not-allowed": 2})
	h.expectDrops(2, map[string]uint64{"received direct-access": 1, "received forwarded": 1, "sent source-not-allowed": 1, "sent no-flow": 1})
	h.expectDrops(3, map[string]uint64{"received other-network": 1})
	h.expectDrops(0, map[string]uint64{"received direct-access": 1})

	// The next owner of the slot begins at zero, before anything is tidied up and after.
	must(t, h.dp.DeleteEndpoint(h.endpointA()))
	h.expectDrops(1, map[string]uint64{})
	must(t, h.dp.PutEndpoint(h.endpointA()))
	h.expectDrops(1, map[string]uint64{})
	h.expectDrop(loader.FromContainer, h.a, fromA(tcp, ack, 5001, remote, 80), "no-flow")
	h.expectDrops(1, map[string]uint64{"sent no-flow": 1})

	must(t, h.dp.ForgetEndpointDrops(h.endpointA()))
	h.expectDrops(1, map[string]uint64{})
	must(t, h.dp.ForgetEndpointDrops(loader.Endpoint{Slot: 2, Network: 1, Ifindex: h.b}))
	must(t, h.dp.ForgetEndpointDrops(loader.Endpoint{Slot: 3, Network: 2, Ifindex: h.othr}))
	must(t, h.dp.ForgetDrops(h.uplink))
	if use := h.use("drop_counts"); use != 0 {
		t.Errorf("%d counters are left: %s", use, h.drops())
	}
}

func (h *host) use(name string) int {
	h.Helper()
	all, err := h.dp.Usage()
	must(h.TB, err)
	i := slices.IndexFunc(all, func(m loader.MapUse) bool { return m.Name == name })
	return all[i].Used
}

// A flood from addresses that are made up adds no counters.
func TestPrivilegedDropCountersAreFew(t *testing.T) {
	h := newHost(t, true)
	for i := range 2000 {
		p := fromA(tcp, syn, uint16(i), remote, 80)
		p.src = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), uint16(i))
		h.expect(loader.FromContainer, h.a, p, loader.Drop, nil)
		p = fromOutside(tcp, syn, p.src.Addr(), 80, netip.AddrFrom4([4]byte{172, 18, 5, byte(i)}), uint16(i))
		h.expect(loader.FromUplink, h.uplink, p, loader.Drop, nil)
	}
	if use := h.use("drop_counts"); use != 2 {
		t.Errorf("%d counters: %s", use, h.drops())
	}
}

// opens is the one conversation that is told to begin while fn runs.
func (h *host) opens(fn func()) loader.Event {
	h.Helper()
	told := h.told(loader.EventOpen, fn)
	if len(told) != 1 {
		h.Fatalf("told is %+v, want one opening", told)
	}
	return told[0]
}

// closes is the same for one that ends within a time.
func (h *host) closes(within time.Duration, fn func()) loader.Event {
	h.Helper()
	told := h.told(loader.EventClose, func() {
		fn()
		time.Sleep(within)
	})
	if len(told) != 1 {
		h.Fatalf("told is %+v, want one that closes", told)
	}
	return told[0]
}

func (h *host) expectFlow(got loader.Event, kind, src, dst, tsrc, tdst string, slot uint32) {
	h.Helper()
	at := netip.MustParseAddrPort
	if got.FlowKind != kind || got.Src != at(src) || got.Dst != at(dst) || got.TranslatedSrc != at(tsrc) || got.TranslatedDst != at(tdst) || got.Slot != slot {
		h.Errorf("told is %+v, want %s %s>%s as %s>%s of slot %d", got, kind, src, dst, tsrc, tdst, slot)
	}
}

// Conversations are told of when they begin and end, as their originator sends.
func TestPrivilegedFlowEvents(t *testing.T) {
	h := newHost(t, true)
	h.publish(loader.TCP, netip.Addr{}, 8080, 80)
	e := h.opens(func() { establish(h, 5000) })
	h.expectFlow(e, "snat", "172.18.0.2:5000", "203.0.113.7:80", "198.51.100.2:5000", "203.0.113.7:80", 1)
	if e.Ifindex != h.a || e.Hook != loader.FromContainer || e.From != h.a || e.To != 0 || e.Protocol != "tcp" {
		t.Errorf("told is %+v", e)
	}
	if told := h.told(loader.EventOpen, func() {
		for range 3 {
			h.expect(loader.FromContainer, h.a, fromA(tcp, ack, 5000, remote, 80), loader.Redirect, nil)
		}
	}); len(told) != 0 {
		t.Errorf("told of what goes on: %+v", told)
	}
	e = h.closes(0, func() {
		h.expect(loader.FromContainer, h.a, fromA(tcp, fin|ack, 5000, remote, 80), loader.Redirect, nil)
		h.reply(fromOutside(tcp, fin|ack, remote, 80, hostAddr, 5000))
		h.expect(loader.FromContainer, h.a, fromA(tcp, ack, 5000, remote, 80), loader.Redirect, nil)
	})
	h.expectFlow(e, "snat", "172.18.0.2:5000", "203.0.113.7:80", "198.51.100.2:5000", "203.0.113.7:80", 1)
	// SYN, ACK, the three above, FIN; SYN-ACK, FIN.
	if e.Why != "fin" || e.Packets != 6 || e.ReplyPackets != 2 || e.Bytes != 6*61 || e.ReplyBytes != 2*66 {
		t.Errorf("told is %+v", e)
	}

	ask := fromOutside(tcp, syn, remote, 4000, hostAddr, 8080)
	e = h.opens(func() { h.reply(ask) })
	h.expectFlow(e, "dnat", "203.0.113.7:4000", "198.51.100.2:8080", "203.0.113.7:4000", "172.18.0.2:80", 10)
	if e.Ifindex != h.uplink || e.From != 0 || e.To != h.a {
		t.Errorf("told is %+v", e)
	}
	e = h.closes(0, func() {
		h.expect(loader.FromContainer, h.a, fromA(tcp, rst|ack, 80, remote, 4000), loader.Redirect, nil)
	})
	h.expectFlow(e, "dnat", "203.0.113.7:4000", "198.51.100.2:8080", "203.0.113.7:4000", "172.18.0.2:80", 10)
	if e.Why != "rst" || e.Packets != 1 || e.ReplyPackets != 1 {
		t.Errorf("told is %+v", e)
	}

	e = h.opens(func() {
		h.expect(loader.FromContainer, h.b, fromB(tcp, syn, 5000, hostAddr, 8080), loader.Redirect, nil)
	})
	h.expectFlow(e, "hairpin", "172.18.0.3:5000", "198.51.100.2:8080", "172.18.0.3:5000", "172.18.0.2:80", 10)
	if e.From != h.b || e.To != h.a {
		t.Errorf("told is %+v", e)
	}

	// What is reclaimed: by Go at once, else when the sweeper comes by.
	establish(h, 5001)
	e = h.closes(0, func() {
		n, err := h.dp.FlushFlows(func(f loader.Flow) bool { return f.Src.Port() == 5001 })
		if err != nil || n != 1 {
			t.Fatalf("%d flushed, %v", n, err)
		}
	})
	if e.Why != "flushed" || e.Src.Port() != 5001 || e.Packets != 2 || e.ReplyPackets != 1 {
		t.Errorf("told is %+v", e)
	}
	establish(h, 5002)
	e = h.closes(sweepTurn, func() { must(t, h.dp.DeleteEndpoint(h.endpointA())) })
	if e.Why != "removed" || e.Src.Port() != 5002 || e.Hook != "" || e.Ifindex != 0 {
		t.Errorf("told is %+v", e)
	}
	must(t, h.dp.PutEndpoint(h.endpointA()))
	establish(h, 5003)
	must(t, h.dp.SetClockOffset(3*time.Hour))
	e = h.closes(sweepTurn, func() {})
	if e.Why != "timeout" || e.Src.Port() != 5003 || e.Age < 3*time.Hour {
		t.Errorf("told is %+v", e)
	}
}

// sweepTurn is how long the sweeper takes to come by a few conversations.
const sweepTurn = 2500 * time.Millisecond

// An address that the host loses ends conversations.
func TestPrivilegedAddressGoneEvent(t *testing.T) {
	h := newHost(t, true)
	p := fromA(udp, 0, 5000, remote, 53)
	h.expect(loader.FromContainer, h.a, p, loader.Redirect, nil)
	h.delAddr("up0", hostAddr.String()+"/24") // and with it the second one, which depends on it
	h.addr("up0", hostAddr2.String()+"/24")
	must(t, netlink.RouteReplace(&netlink.Route{LinkIndex: h.uplink, Gw: router.AsSlice()}))
	must(t, h.dp.SetClockOffset(2*time.Second))
	e := h.closes(0, func() { h.expect(loader.FromContainer, h.a, p, loader.Drop, nil) })
	if e.Why != "address-gone" || e.Src.Port() != 5000 {
		t.Errorf("told is %+v", e)
	}
}

// Nobody is told more of a kind than asked for, however much happens; the rest is counted, for each
// kind by itself.
func TestPrivilegedEventRate(t *testing.T) {
	h := newHost(t, true)
	const rate, packets = 10, 3000
	l, err := h.dp.Listen(loader.Wanted{Drops: true, Flows: true, Rate: rate})
	must(t, err)
	defer l.Close()
	all, err := h.dp.Listen(loader.Wanted{Drops: true, Rate: 1_000_000})
	must(t, err)
	defer all.Close()
	start := time.Now()
	for range packets {
		h.expect(loader.FromContainer, h.a, fromA(tcp, ack, 5001, remote, 80), loader.Drop, nil)
	}
	took := time.Since(start)
	got := len(heard(t, l))
	// A second's worth at once, and then as time passes.
	if most := runtime.NumCPU() * rate * int(2+took.Seconds()); got < rate || got > most {
		t.Errorf("%d events in %v, want at least %d and at most %d", got, took, rate, most)
	}
	n, err := l.NotTold()
	must(t, err)
	if n != (loader.NotTold{Drops: uint64(packets - got)}) {
		t.Errorf("not told %+v, told %d of %d", n, got, packets)
	}
	if n, err = l.NotTold(); err != nil || n != (loader.NotTold{}) {
		t.Errorf("asked again: not told %+v, %v", n, err)
	}
	// One kind takes nothing from another, and one listener nothing from another.
	h.expect(loader.FromUplink, h.uplink, fromOutside(tcp, syn, remote, 4000, containerA, 22), loader.Drop, nil)
	establish(h, 5000)
	var kinds []string
	for _, e := range heard(t, l) {
		kinds = append(kinds, string(e.Kind)+e.Reason)
	}
	if !slices.Contains(kinds, "dropdirect-access") || !slices.Contains(kinds, "open") {
		t.Errorf("told %v after a flood of another kind", kinds)
	}
	if got := len(heard(t, all)); got != packets+1 {
		t.Errorf("another listener was told %d of %d", got, packets+1)
	}
	// With the time that passes more is told.
	must(t, h.dp.SetClockOffset(2*time.Second))
	h.expect(loader.FromContainer, h.a, fromA(tcp, ack, 5001, remote, 80), loader.Drop, nil)
	if got := heard(t, l); len(got) != 1 {
		t.Errorf("told %+v two seconds later", got)
	}
}

// A listener that does not read is told no more when its ring is full, which is counted.
func TestPrivilegedEventsLost(t *testing.T) {
	h := newHost(t, true)
	l, err := h.dp.Listen(loader.Wanted{Drops: true, Rate: 1_000_000})
	must(t, err)
	defer l.Close()
	const packets = 8000
	for range packets {
		h.expect(loader.FromContainer, h.a, fromA(tcp, ack, 5001, remote, 80), loader.Drop, nil)
	}
	got := heard(t, l)
	n, err := l.NotTold()
	must(t, err)
	if n.Lost == 0 || int(n.Lost)+len(got) != packets || n.Drops != 0 {
		t.Errorf("told %d, not told %+v, of %d", len(got), n, packets)
	}
}

// Who wants only some events is told only those.
func TestPrivilegedEventFilter(t *testing.T) {
	h := newHost(t, true)
	for name, c := range map[string]struct {
		want loader.Wanted
		told []string
	}{
		"all":             {loader.Wanted{Drops: true, Flows: true}, []string{"no-flow", "no-flow", "direct-access", "direct-access", "open"}},
		"drops":           {loader.Wanted{Drops: true}, []string{"no-flow", "no-flow", "direct-access", "direct-access"}},
		"flows":           {loader.Wanted{Flows: true}, []string{"open"}},
		"a reason":        {loader.Wanted{Drops: true, Reasons: []string{"no-flow", "icc"}}, []string{"no-flow", "no-flow"}},
		"an endpoint":     {loader.Wanted{Drops: true, Flows: true, Ifindex: h.a}, []string{"no-flow", "direct-access", "open"}},
		"another":         {loader.Wanted{Drops: true, Flows: true, Ifindex: h.b}, []string{"no-flow", "direct-access"}},
		"reason and flow": {loader.Wanted{Drops: true, Flows: true, Reasons: []string{"icc"}}, []string{"open"}},
	} {
		c.want.Rate = 1000
		l, err := h.dp.Listen(c.want)
		must(t, err)
		h.expect(loader.FromContainer, h.a, fromA(tcp, ack, 5001, remote, 80), loader.Drop, nil)
		h.expect(loader.FromContainer, h.b, fromB(tcp, ack, 5001, remote, 80), loader.Drop, nil)
		h.expect(loader.FromUplink, h.uplink, fromOutside(tcp, syn, remote, 4000, containerA, 22), loader.Drop, nil)
		h.expect(loader.FromUplink, h.uplink, fromOutside(tcp, syn, remote, 4000, containerB, 22), loader.Drop, nil)
		h.expect(loader.FromContainer, h.a, fromA(udp, 0, 5000, remote, 53), loader.Redirect, nil)
		var told []string
		for _, e := range heard(t, l) {
			what := e.Reason
			if e.Kind != loader.EventDrop {
				what = string(e.Kind)
			}
			told = append(told, what)
		}
		if !slices.Equal(told, c.told) {
			t.Errorf("%s: told %v, want %v", name, told, c.told)
		}
		must(t, l.Close())
		must(t, h.dp.ForgetAll())
	}
}

func (h *host) listeners(want int) {
	h.Helper()
	if n, err := h.dp.Listeners(); err != nil || n != want {
		h.Errorf("%d listeners, %v, want %d", n, err, want)
	}
}

// pinnedMap opens a map of the datapath for fn.
func (h *host) pinnedMap(name string, fn func(*ebpf.Map)) {
	h.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(h.dir, "v2", "maps", name), nil)
	must(h.TB, err)
	defer func() { _ = m.Close() }()
	fn(m)
}

// listening is whom programs look for.
func (h *host) listening() (mask uint32) {
	h.Helper()
	h.pinnedMap("listening", func(m *ebpf.Map) {
		b, err := m.LookupBytes(uint32(0))
		must(h.TB, err)
		mask = binary.NativeEndian.Uint32(b)
	})
	return mask
}

// rings is how many ring buffers are held.
func (h *host) rings() (n int) {
	h.Helper()
	h.pinnedMap("rings", func(m *ebpf.Map) {
		for i := range uint32(loader.MaxListeners) {
			var id uint32
			if m.Lookup(i, &id) == nil {
				n++
			}
		}
	})
	return n
}

// A listener that is gone without a word is told nothing more after some seconds, costs nothing
// then, and its place is another's.
func TestPrivilegedListenerDies(t *testing.T) {
	h := newHost(t, true)
	late := func() {
		h.Helper()
		h.expect(loader.FromContainer, h.a, fromA(tcp, ack, 5001, remote, 80), loader.Drop, nil)
	}
	want := loader.Wanted{Drops: true, Rate: 1000}
	dead, err := h.dp.Listen(want)
	must(t, err)
	h.listeners(1)
	late()
	must(t, h.dp.SetClockOffset(4*time.Second))
	h.listeners(0)
	late()
	if mask := h.listening(); mask != 0 {
		t.Errorf("programs still look for listeners %#x", mask)
	}
	if got := heard(t, dead); len(got) != 1 {
		t.Errorf("told after its time: %+v", got)
	}
	if n := h.rings(); n != 1 {
		t.Errorf("%d rings, want that of the dead", n)
	}
	// The same one comes back to its place, if that is nobody's.
	must(t, dead.Want(want))
	late()
	if got := heard(t, dead); len(got) != 1 {
		t.Errorf("back again, told %+v", got)
	}
	must(t, h.dp.SetClockOffset(8*time.Second))
	next, err := h.dp.Listen(want)
	must(t, err)
	if n := h.rings(); n != 1 {
		t.Errorf("%d rings, want that of the next one alone", n)
	}
	// And to another place, if it is not.
	must(t, dead.Want(want))
	late()
	if a, b := heard(t, dead), heard(t, next); len(a) != 1 || len(b) != 1 {
		t.Errorf("told %d and %d", len(a), len(b))
	}
	must(t, next.Close())
	h.listeners(1)
	must(t, dead.Close())
	h.listeners(0)
	if n := h.rings(); n != 0 {
		t.Errorf("%d rings are left", n)
	}
	// One that was killed is cleared away by the next `ebnet up`.
	killed, err := h.dp.Listen(want)
	must(t, err)
	must(t, h.dp.SetClockOffset(12*time.Second))
	dp, _, err := loader.Load(h.dir, loader.Config{FastPath: true, MaxFlows: 4096, Secret: 7})
	must(t, err)
	must(t, dp.Close())
	if n := h.rings(); n != 0 {
		t.Errorf("%d rings are left", n)
	}
	_ = killed
}

// Several listen at once, as many as there are places; one that ends makes room.
func TestPrivilegedManyListeners(t *testing.T) {
	h := newHost(t, true)
	var all []*loader.Listener
	for range loader.MaxListeners {
		l, err := h.dp.Listen(loader.Wanted{Drops: true, Rate: 1000})
		must(t, err)
		defer l.Close()
		all = append(all, l)
	}
	if _, err := h.dp.Listen(loader.Wanted{Drops: true, Rate: 1000}); !errors.Is(err, loader.ErrFull) {
		t.Errorf("one too many: %v", err)
	}
	h.expect(loader.FromContainer, h.a, fromA(tcp, ack, 5001, remote, 80), loader.Drop, nil)
	for i, l := range all {
		if got := heard(t, l); len(got) != 1 {
			t.Errorf("listener %d was told %+v", i, got)
		}
	}
	must(t, all[3].Close())
	l, err := h.dp.Listen(loader.Wanted{Drops: true, Rate: 1000})
	must(t, err)
	must(t, l.Close())
}

// A replacement of the programs goes on telling; a datapath that goes away ends it.
func TestPrivilegedListenerAndLoad(t *testing.T) {
	h := newHost(t, true)
	l, err := h.dp.Listen(loader.Wanted{Drops: true, Rate: 1000})
	must(t, err)
	next, changed, err := loader.Load(h.dir, loader.Config{FastPath: true, MaxFlows: 4096, Secret: 8})
	must(t, err)
	defer next.Close()
	if !changed {
		t.Fatal("nothing was replaced")
	}
	v, _, err := next.Run(loader.FromContainer, fromA(tcp, ack, 5001, remote, 80).frame(), loader.RunContext{Ifindex: h.a})
	if err != nil || v != loader.Drop {
		t.Fatal(v, err)
	}
	if got := heard(t, l); len(got) != 1 {
		t.Errorf("told %+v", got)
	}
	must(t, loader.Remove(h.dir))
	if err := l.Want(loader.Wanted{Drops: true, Rate: 1000}); !errors.Is(err, loader.ErrNotLoaded) {
		t.Errorf("the datapath is gone: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}
