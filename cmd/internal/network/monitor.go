package network

import (
	"errors"
	"maps"
	"math"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/ebnet/ebnet/loader"
)

// EventFilter selects events. The zero value selects none.
type EventFilter struct {
	Drops    bool
	Flows    bool     // conversations that begin and end
	Reasons  []string // of drops, by name; nil: all
	Endpoint string   // only what this one sends and gets, ""; all

	// Rate is how many events of each kind (a reason, openings, closings) each CPU tells a
	// second; 0 means DefaultEventRate.
	Rate int
}

// DefaultEventRate is enough to see what happens, and little enough that a flood costs next to
// nothing more for being watched.
const DefaultEventRate = 1000

// EventInfo shows something that happened. What it is says Event: "drop" comes with a DropEvent,
// "open" with a FlowEvent, "close" with both of FlowEvent and CloseEvent.
type EventInfo struct {
	Event    string    `json:"event"`
	Time     time.Time `json:"time"`
	Endpoint string    `json:"endpoint"` // whose packet, or whose conversation
	Device   string    `json:"device"`   // where it was seen; "" where no packet was the occasion
	Protocol string    `json:"protocol"` // "tcp", "udp", "icmp" or a number; "arp", "ipv6" or a number of what is not IPv4
	Src      string    `json:"src"`      // address:port, or the address of what has no ports; "": not IPv4
	Dst      string    `json:"dst"`
	*DropEvent
	*FlowEvent
	*CloseEvent
}

// DropEvent is a packet that was dropped.
type DropEvent struct {
	Reason     string `json:"reason"`
	Direction  string `json:"direction"` // Received or Sent, as the container sees it
	To         string `json:"to"`        // another endpoint that it was for, if it was sent by one
	Length     int    `json:"length"`    // of the frame, in bytes
	Translated bool   `json:"translated"`
	SrcMAC     string `json:"src_mac"`
	DstMAC     string `json:"dst_mac"`
}

// FlowEvent is a conversation, as its originator sends it.
type FlowEvent struct {
	Kind          string `json:"kind"`
	TranslatedSrc string `json:"translated_src"`
	TranslatedDst string `json:"translated_dst"`
}

// CloseEvent says how a conversation ended, and what passed by then.
type CloseEvent struct {
	Why          string  `json:"why"` // fin, rst, timeout, removed, flushed or address-gone
	Packets      uint64  `json:"packets"`
	Bytes        uint64  `json:"bytes"`
	ReplyPackets uint64  `json:"reply_packets"`
	ReplyBytes   uint64  `json:"reply_bytes"`
	Seconds      float64 `json:"seconds"`
}

// NotShown counts events that a Monitor was not told.
type NotShown struct {
	Drops  uint64 `json:"drops"` // beyond the rate
	Opens  uint64 `json:"opens"`
	Closes uint64 `json:"closes"`
	Lost   uint64 `json:"lost"` // came faster than they were read
	Away   bool   `json:"away"` // for some seconds nobody read, and nothing was counted
}

// Monitor is told what happens until Close. It may be used by one goroutine at a time. It does not hold
// the state's lock.
type Monitor struct {
	filter  EventFilter
	dp      datapath
	l       listener
	look    func() (sight, error)
	seen    sight
	looked  time.Time
	looking chan sight // nil: not at the moment
}

// sight is what a Monitor knows of the host.
type sight struct {
	names    names
	devices  map[int]string
	endpoint int // host-side veth of the endpoint that is asked for
}

// Names are read anew when something has none, and where an endpoint is asked for, which may be
// connected anew to another device; this often at most. Commands that change things make it wait.
const (
	lookUnknown  = 200 * time.Millisecond
	lookEndpoint = time.Second
	lookPatience = 500 * time.Millisecond
)

// noDevice is no device's index: the endpoint that is asked for has none at the moment.
const noDevice = math.MaxInt32

// DropReasons lists the names of the reasons for which packets are dropped.
func DropReasons() []string { return loader.DropReasons() }

// Watch begins to listen to what happens. Returns ErrInvalid for an unknown reason, ErrNotFound for an
// unknown endpoint, ErrFailed while ebnet is not up, ErrConflict if too many listen already.
func Watch(o Options, f EventFilter) (*Monitor, error) {
	return watch(f, func() (*Host, error) { return Open(o, ReadOnly) })
}

func watch(f EventFilter, open func() (*Host, error)) (*Monitor, error) {
	for _, r := range f.Reasons {
		if !slices.Contains(DropReasons(), r) {
			return nil, invalid("reason "+r, "no packet is dropped for such a reason").hint("ebnet monitor --help lists them")
		}
	}
	if f.Rate == 0 {
		f.Rate = DefaultEventRate
	}
	h, err := open()
	if err != nil {
		return nil, err
	}
	m, err := h.watch(f)
	if cerr := h.Close(); err == nil && cerr != nil {
		_ = m.Close()
		err = cerr
	}
	if err != nil {
		return nil, explain(err)
	}
	m.look = func() (sight, error) {
		h, err := open()
		if err != nil {
			return sight{}, err
		}
		defer func() { _ = h.Close() }()
		return h.sight(f.Endpoint)
	}
	return m, nil
}

// watch takes the datapath along, which the host does not close then.
func (h *Host) watch(f EventFilter) (*Monitor, error) {
	seen, err := h.sight(f.Endpoint)
	if err != nil {
		return nil, err
	}
	dp, err := h.mustBeUp("monitor")
	if err != nil {
		return nil, err
	}
	m := &Monitor{filter: f, dp: dp, seen: seen, looked: time.Now()}
	m.l, err = dp.Listen(m.wanted())
	if errors.Is(err, loader.ErrFull) {
		return nil, conflict("monitor", "%d of them run already", loader.MaxListeners).hint("end one of them")
	}
	if err != nil {
		return nil, err
	}
	h.dp = nil
	return m, nil
}

func (m *Monitor) wanted() loader.Wanted {
	return loader.Wanted{Drops: m.filter.Drops, Flows: m.filter.Flows, Reasons: m.filter.Reasons,
		Ifindex: m.seen.endpoint, Rate: m.filter.Rate}
}

// sight looks at the host. Returns ErrNotFound for an unknown endpoint.
func (h *Host) sight(endpoint string) (sight, error) {
	s := sight{devices: map[int]string{}}
	if endpoint != "" {
		e, err := h.Endpoint(endpoint)
		if err != nil {
			return s, err
		}
		if s.endpoint = e.Ifindex; e.Ifindex == 0 {
			s.endpoint = noDevice
		}
	}
	links, err := h.k.Links()
	if err != nil {
		return s, err
	}
	for _, l := range links {
		s.devices[l.Index] = l.Name
	}
	s.names, err = h.names()
	return s, err
}

// Next returns the next event; ok is false if there is none until the deadline.
func (m *Monitor) Next(deadline time.Time) (info EventInfo, ok bool, err error) {
	if m.filter.Endpoint != "" {
		m.lookOver(lookEndpoint)
	}
	if err := m.takeOver(0); err != nil {
		return EventInfo{}, false, explain(err)
	}
	e, err := m.l.Next(deadline)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return EventInfo{}, false, nil
	case errors.Is(err, loader.ErrNotLoaded):
		return EventInfo{}, false, &Error{What: "monitor", Why: "ebnet is no longer up", Hint: "run `ebnet up`, and ebnet monitor again", Kind: ErrFailed, Err: err}
	case err != nil:
		return EventInfo{}, false, explain(err)
	}
	if !m.knows(e) {
		m.lookOver(lookUnknown)
		err = m.takeOver(lookPatience)
	}
	return m.info(e), true, err
}

// knows: has everything in the event a name?
func (m *Monitor) knows(e loader.Event) bool {
	return (e.Ifindex == 0 || m.seen.devices[e.Ifindex] != "") && (e.Slot == 0 || m.seen.names.slots[e.Slot] != "")
}

// lookOver begins to read names anew, unless that was less than some time ago.
func (m *Monitor) lookOver(after time.Duration) {
	if m.looking != nil || time.Since(m.looked) < after {
		return
	}
	m.looking = make(chan sight, 1)
	go func(to chan<- sight) {
		defer close(to)
		if s, err := m.look(); err == nil {
			to <- s
		} else if errors.Is(err, ErrNotFound) { // it may come back
			to <- sight{endpoint: noDevice}
		}
	}(m.looking)
}

// takeOver takes what lookOver has read, if that takes no longer. Names of what is gone by now stay:
// something may yet be told of it.
func (m *Monitor) takeOver(wait time.Duration) error {
	if m.looking == nil {
		return nil
	}
	select {
	case s, ok := <-m.looking:
		m.looking, m.looked = nil, time.Now()
		if !ok {
			return nil
		}
		maps.Copy(m.seen.devices, s.devices)
		maps.Copy(m.seen.names.devices, s.names.devices)
		maps.Copy(m.seen.names.slots, s.names.slots)
		if s.endpoint != m.seen.endpoint {
			m.seen.endpoint = s.endpoint
			return m.l.Want(m.wanted())
		}
	case <-time.After(wait):
	}
	return nil
}

func (m *Monitor) info(e loader.Event) EventInfo {
	n := m.seen.names
	info := EventInfo{Event: string(e.Kind), Time: e.Time, Device: m.seen.devices[e.Ifindex], Protocol: e.Protocol,
		Src: eventAddr(e.Src), Dst: eventAddr(e.Dst)}
	from, to := n.devices[e.From], n.devices[e.To]
	if e.Kind == loader.EventDrop {
		d := &DropEvent{Reason: e.Reason, Direction: e.Direction, Length: e.Length, Translated: e.Translated,
			SrcMAC: e.SrcMAC.String(), DstMAC: e.DstMAC.String()}
		if info.Endpoint = to; e.Direction == Sent {
			info.Endpoint, d.To = from, to
		}
		info.DropEvent = d
		return info
	}
	info.Endpoint = n.slots[e.Slot]
	info.FlowEvent = &FlowEvent{Kind: e.FlowKind, TranslatedSrc: e.TranslatedSrc.String(), TranslatedDst: e.TranslatedDst.String()}
	if e.Kind == loader.EventClose {
		info.CloseEvent = &CloseEvent{Why: e.Why, Packets: e.Packets, Bytes: e.Bytes, ReplyPackets: e.ReplyPackets,
			ReplyBytes: e.ReplyBytes, Seconds: e.Age.Seconds()}
	}
	return info
}

// eventAddr leaves the port out where there is none.
func eventAddr(a netip.AddrPort) string {
	switch {
	case !a.IsValid():
		return ""
	case a.Port() == 0:
		return a.Addr().String()
	}
	return a.String()
}

// NotShown returns what was not told since it was last asked.
func (m *Monitor) NotShown() (NotShown, error) {
	n, err := m.l.NotTold()
	if err != nil {
		return NotShown{}, explain(err)
	}
	return NotShown{Drops: n.Drops, Opens: n.Opens, Closes: n.Closes, Lost: n.Lost, Away: n.Away}, nil
}

// Close ends listening.
func (m *Monitor) Close() error { return errors.Join(m.l.Close(), m.dp.Close()) }
