package network

import (
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ebnet/ebnet/loader"
)

// fakeListener tells what a test puts into it.
type fakeListener struct {
	events []loader.Event
	missed loader.NotTold
	wanted []loader.Wanted
	closed bool
	err    error
}

func (l *fakeListener) Next(time.Time) (loader.Event, error) {
	if l.err != nil {
		return loader.Event{}, l.err
	}
	if len(l.events) == 0 {
		return loader.Event{}, os.ErrDeadlineExceeded
	}
	e := l.events[0]
	l.events = l.events[1:]
	return e, nil
}

func (l *fakeListener) Want(want loader.Wanted) error { l.wanted = append(l.wanted, want); return nil }

func (l *fakeListener) NotTold() (loader.NotTold, error) { return l.missed, nil }

func (l *fakeListener) Close() error { l.closed = true; return nil }

// watchFake is Watch of the fake host's events.
func watchFake(t *testing.T, h *Host, f *fake, filter EventFilter) (*Monitor, error) {
	t.Helper()
	dir := h.o.StateDir
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	m, err := watch(filter, func() (*Host, error) { return open(Options{StateDir: dir}, ReadOnly, f, time.Second) })
	if err == nil {
		t.Cleanup(func() { _ = m.Close() })
	}
	return m, err
}

func TestMonitorNames(t *testing.T) {
	f := newFake()
	h := upFake(t, f)
	web, db := connect(t, h, "web", "w0", "8080:80"), connect(t, h, "db", "w1")
	var slots []uint32
	for s, e := range f.dp.endpoints {
		if e.Ifindex == web.Ifindex {
			slots = append(slots, s)
		}
	}
	at := func(ip string, port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(ip), port) }
	now := time.Now()
	f.dp.heard.events = []loader.Event{
		{Time: now, Kind: loader.EventDrop, Ifindex: web.Ifindex, From: web.Ifindex, To: db.Ifindex, Protocol: "tcp",
			Src: at("172.18.0.2", 1), Dst: at("172.18.0.3", 2), Reason: "icc", Direction: Sent, Length: 60},
		// A device that is gone by now.
		{Time: now, Kind: loader.EventDrop, Ifindex: 1, To: web.Ifindex, Protocol: "47",
			Src: at("192.0.2.1", 0), Dst: at("172.18.0.2", 0), Reason: "direct-access", Direction: Received, Length: 60},
		{Time: now, Kind: loader.EventDrop, Ifindex: web.Ifindex, From: web.Ifindex, Protocol: "arp", Reason: "spoofed-arp", Direction: Sent},
		{Time: now, Kind: loader.EventClose, From: web.Ifindex, Protocol: "tcp", Slot: slots[0], FlowKind: "snat", Why: "fin",
			Src: at("172.18.0.2", 1), Dst: at("192.0.2.1", 2), TranslatedSrc: at("198.51.100.1", 3), TranslatedDst: at("192.0.2.1", 2),
			Packets: 4, Bytes: 5, ReplyPackets: 6, ReplyBytes: 7, Age: time.Second},
	}
	m, err := watchFake(t, h, f, EventFilter{Drops: true, Flows: true})
	if err != nil {
		t.Fatal(err)
	}
	var got []EventInfo
	for {
		e, ok, err := m.Next(now)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		got = append(got, e)
	}
	want := []EventInfo{
		{Event: "drop", Time: now, Endpoint: "web", Device: web.HostIfName, Protocol: "tcp", Src: "172.18.0.2:1", Dst: "172.18.0.3:2",
			DropEvent: &DropEvent{Reason: "icc", Direction: Sent, To: "db", Length: 60}},
		{Event: "drop", Time: now, Endpoint: "web", Protocol: "47", Src: "192.0.2.1", Dst: "172.18.0.2",
			DropEvent: &DropEvent{Reason: "direct-access", Direction: Received, Length: 60}},
		{Event: "drop", Time: now, Endpoint: "web", Device: web.HostIfName, Protocol: "arp",
			DropEvent: &DropEvent{Reason: "spoofed-arp", Direction: Sent}},
		{Event: "close", Time: now, Endpoint: "web", Protocol: "tcp", Src: "172.18.0.2:1", Dst: "192.0.2.1:2",
			FlowEvent:  &FlowEvent{Kind: "snat", TranslatedSrc: "198.51.100.1:3", TranslatedDst: "192.0.2.1:2"},
			CloseEvent: &CloseEvent{Why: "fin", Packets: 4, Bytes: 5, ReplyPackets: 6, ReplyBytes: 7, Seconds: 1}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	f.dp.heard.missed = loader.NotTold{Drops: 1, Lost: 2}
	if n, err := m.NotShown(); err != nil || n != (NotShown{Drops: 1, Lost: 2}) {
		t.Errorf("not shown: %+v, %v", n, err)
	}
}

func TestMonitorFilter(t *testing.T) {
	f := newFake()
	h := upFake(t, f)
	web := connect(t, h, "web", "w0")
	if _, err := watchFake(t, h, f, EventFilter{Drops: true, Endpoint: "web", Reasons: []string{"icc"}}); err != nil {
		t.Fatal(err)
	}
	want := []loader.Wanted{{Drops: true, Reasons: []string{"icc"}, Ifindex: web.Ifindex, Rate: DefaultEventRate}}
	if diff := cmp.Diff(want, f.dp.heard.wanted); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestMonitorRefuses(t *testing.T) {
	f := newFake()
	h := upFake(t, f)
	_, err := watchFake(t, h, f, EventFilter{Drops: true, Reasons: []string{"bad-weather"}})
	wantKind(t, err, ErrInvalid)
	_, err = watchFake(t, h, f, EventFilter{Drops: true, Endpoint: "nosuch"})
	wantKind(t, err, ErrNotFound)
	f.dp.heard.err = loader.ErrFull
	_, err = watchFake(t, h, f, EventFilter{Drops: true})
	wantKind(t, err, ErrConflict)
	f.dp = nil
	_, err = watchFake(t, h, f, EventFilter{Drops: true})
	wantKind(t, err, ErrFailed)
	if Hint(err) == "" {
		t.Error("no way out is told")
	}
}

// The datapath goes while somebody listens.
func TestMonitorEnds(t *testing.T) {
	f := newFake()
	h := upFake(t, f)
	m, err := watchFake(t, h, f, EventFilter{Drops: true})
	if err != nil {
		t.Fatal(err)
	}
	f.dp.heard.err = loader.ErrNotLoaded
	if _, _, err = m.Next(time.Now()); ExitCode(err) != 1 || !errors.Is(err, loader.ErrNotLoaded) {
		t.Errorf("%v", err)
	}
}

func TestFlowFilter(t *testing.T) {
	at := netip.MustParseAddrPort
	in := netip.MustParsePrefix
	flow := loader.Flow{Protocol: "tcp", State: "established", Kind: "dnat", Src: at("203.0.113.7:4000"), Dst: at("198.51.100.2:8080"),
		TranslatedSrc: at("203.0.113.7:4001"), TranslatedDst: at("172.18.0.2:80")}
	for _, f := range []FlowFilter{
		{}, {Protocol: "tcp", State: "established", Kind: "dnat"}, {Port: 80}, {Port: 8080}, {Port: 4000}, {Port: 4001},
		{Src: in("203.0.113.0/24")}, {Dst: in("172.18.0.0/16")}, {Dst: in("198.51.100.2/32"), Port: 4000},
	} {
		if !f.matches(flow) {
			t.Errorf("%+v does not match", f)
		}
	}
	for _, f := range []FlowFilter{
		{Protocol: "udp"}, {State: "closed"}, {Kind: "snat"}, {Port: 81}, {Src: in("172.18.0.0/16")}, {Dst: in("203.0.113.0/24")},
		{Protocol: "tcp", Port: 1},
	} {
		if f.matches(flow) {
			t.Errorf("%+v matches", f)
		}
	}
	h := upFake(t, newFake())
	for _, f := range []FlowFilter{{Protocol: "sctp"}, {Kind: "x"}, {State: "x"}} {
		_, err := h.Flows(f)
		wantKind(t, err, ErrInvalid)
		_, err = h.FlushFlows(f)
		wantKind(t, err, ErrInvalid)
	}
}
