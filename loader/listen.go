package loader

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// Values of bpf/abi.h.
const (
	eventOpen  = 30
	eventClose = 31
	eventKinds = 32

	// MaxListeners is how many may listen at the same time.
	MaxListeners = 8
)

const (
	ringSize = 1 << 20 // bytes, of each listener

	// A listener that has not renewed its time for listenFor is not told any more, whether it was
	// killed, stopped or waits for whoever reads from it.
	listenFor  = 3 * time.Second
	renewAfter = time.Second

	// lookEvery is how often a listener looks for events. Programs wake nobody up.
	lookEvery = 50 * time.Millisecond
)

// EventKind says what happened.
type EventKind string

// The kinds of events.
const (
	EventDrop  EventKind = "drop"  // a packet was dropped
	EventOpen  EventKind = "open"  // a conversation began
	EventClose EventKind = "close" // a conversation ended, as far as programs notice
)

// Event is something that programs tell of.
type Event struct {
	Time    time.Time
	Kind    EventKind
	Ifindex int  // device of the hook, 0: at no hook
	Hook    Hook // "" at no hook

	// From and To are the host-side veths of the endpoints that the packet or conversation is
	// from and to, as far as it is one; else 0 or another device.
	From, To int

	// Protocol is "tcp", "udp", "icmp" or a number; of a packet that is not IPv4, "arp" or its
	// EtherType, and then Src and Dst are not valid. Ports are 0 where a packet has none.
	Protocol string
	Src, Dst netip.AddrPort

	// Of a dropped packet.
	Reason         string
	Direction      string // Sent or Received, as the container sees it
	Length         int    // bytes of the frame
	Translated     bool   // Src and Dst are those after translation
	SrcMAC, DstMAC net.HardwareAddr

	// Of a conversation; Src and Dst are as its originator sends.
	FlowKind                     string // as Flow.Kind
	TranslatedSrc, TranslatedDst netip.AddrPort
	Slot                         uint32 // as Flow.Slot

	// Of one that ended.
	Why                      string // "fin", "rst", "timeout", "removed", "flushed" or "address-gone"
	Packets, Bytes           uint64 // of the original direction
	ReplyPackets, ReplyBytes uint64
	Age                      time.Duration
}

// Wanted are the events that a listener wants.
type Wanted struct {
	Reasons []string // of drops, by name; nil: all of them
	Drops   bool
	Flows   bool // conversations that begin and end
	Ifindex int  // only what concerns the endpoint with this host-side veth; 0: all

	// Rate is how many events of each kind (a reason, openings, closings) each CPU tells a
	// second, at least 1.
	Rate int
}

// NotTold counts events that a listener was not told.
type NotTold struct {
	Drops, Opens, Closes uint64 // beyond Wanted.Rate
	Lost                 uint64 // for want of room: they were not read fast enough

	// Away says that the listener did not look for so long that programs stopped telling.
	Away bool
}

// Listener is told of events until Close. It may be used by one goroutine at a time, beside the
// Datapath that it was made from, which must stay open.
type Listener struct {
	d       *Datapath
	want    Wanted
	ring    *ebpf.Map
	id      ebpf.MapID // of ring
	reader  *ringbuf.Reader
	record  ringbuf.Record
	slot    uint32 // among listeners
	renewed time.Time
	tick    time.Duration
	told    [eventKinds]datapathTold // sums, up to which NotTold has reported
	away    bool
}

// Listen begins to listen. Returns ErrFull if MaxListeners do already. A process that is killed
// meanwhile leaves a ring buffer that nothing is written to, which the next Listen or Load removes.
func (d *Datapath) Listen(want Wanted) (*Listener, error) {
	tick, err := jiffy()
	if err != nil {
		return nil, err
	}
	ring, err := ebpf.NewMap(&ebpf.MapSpec{Name: "ebnet_events", Type: ebpf.RingBuf, MaxEntries: ringSize})
	if err != nil {
		return nil, fmt.Errorf("create a ring buffer: %w", explain(err))
	}
	l := &Listener{d: d, want: want, ring: ring, tick: tick}
	info, err := ring.Info()
	if err == nil {
		l.id, _ = info.ID()
		l.reader, err = ringbuf.NewReader(ring)
	}
	if err == nil {
		err = l.locked(l.enlist)
	}
	if err != nil {
		if l.reader != nil {
			_ = l.reader.Close()
		}
		_ = ring.Close()
		return nil, err
	}
	return l, nil
}

// locked calls fn while no other process changes who listens. The kernel frees the lock of a
// process that dies.
func (l *Listener) locked(fn func(*datapathListening) error) error { return l.d.withListeners(fn) }

func (d *Datapath) withListeners(fn func(*datapathListening) error) error {
	dir, err := os.Open(d.pins.maps())
	if errors.Is(err, os.ErrNotExist) {
		return ErrNotLoaded
	}
	if err != nil {
		return fmt.Errorf("lock the listeners: %w", permission(err))
	}
	defer func() { _ = dir.Close() }()
	for {
		if err = unix.Flock(int(dir.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("lock the listeners: %w", err)
	}
	m, err := d.pinned("listening")
	if err == nil {
		err = d.stillPinned("listening", m)
	}
	if err != nil {
		return err
	}
	var all, before datapathListening
	if err := m.Lookup(uint32(0), &all); err != nil {
		return fmt.Errorf("read map listening: %w", permission(err))
	}
	before = all
	if err := fn(&all); err != nil || all == before {
		return err
	}
	return d.put("listening", uint32(0), all)
}

// stillPinned returns ErrNotLoaded if a map that was opened some time ago is no longer the one
// that programs use: the datapath was removed, and perhaps loaded again.
func (d *Datapath) stillPinned(name string, m *ebpf.Map) error {
	now, err := ebpf.LoadPinnedMap(d.pins.mapPin(name), nil)
	if errors.Is(err, os.ErrNotExist) {
		return ErrNotLoaded
	}
	if err != nil {
		return fmt.Errorf("open map %s: %w", name, explain(err))
	}
	defer func() { _ = now.Close() }()
	ids := [2]ebpf.MapID{}
	for i, m := range []*ebpf.Map{m, now} {
		info, err := m.Info()
		if err != nil {
			return fmt.Errorf("inspect map %s: %w", name, permission(err))
		}
		ids[i], _ = info.ID()
	}
	if ids[0] != ids[1] {
		return ErrNotLoaded
	}
	return nil
}

// enlist takes the first place that nobody has.
func (l *Listener) enlist(all *datapathListening) error {
	now, err := l.d.jiffies()
	if err != nil {
		return err
	}
	if err := l.d.clearListeners(all, now); err != nil {
		return err
	}
	rings, err := l.d.pinned("rings")
	if err != nil {
		return err
	}
	for i := range uint32(MaxListeners) {
		if listens(all, i, now) {
			continue
		}
		if err := l.forgetTold(i); err != nil {
			return err
		}
		if err := rings.Put(i, l.ring); err != nil {
			return fmt.Errorf("write map rings: %w", permission(err))
		}
		l.slot = i
		l.extend(all, now)
		return nil
	}
	return fmt.Errorf("%w: %d listen to events already", ErrFull, MaxListeners)
}

// listens: has the i-th listener's time not passed?
func listens(all *datapathListening, i uint32, now clock) bool {
	return all.By[i].Until != 0 && now.since(uint64(all.By[i].Until)) < 0
}

// clearListeners removes those that have died, and their rings.
func (d *Datapath) clearListeners(all *datapathListening, now clock) error {
	rings, err := d.pinned("rings")
	if err != nil {
		return err
	}
	for i := range uint32(MaxListeners) {
		if listens(all, i, now) {
			continue
		}
		all.Mask &^= 1 << i
		all.By[i] = datapathListener{}
		if err := rings.Delete(i); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete from map rings: %w", permission(err))
		}
	}
	return nil
}

// forgetListeners removes what listeners that were killed have left.
func (d *Datapath) forgetListeners() error {
	now, err := d.jiffies()
	if err != nil {
		return err
	}
	return d.withListeners(func(all *datapathListening) error { return d.clearListeners(all, now) })
}

// Listeners returns how many listen.
func (d *Datapath) Listeners() (int, error) {
	now, err := d.jiffies()
	if err != nil {
		return 0, err
	}
	m, err := d.pinned("listening")
	if err != nil {
		return 0, err
	}
	var all datapathListening
	if err := m.Lookup(uint32(0), &all); err != nil {
		return 0, fmt.Errorf("read map listening: %w", permission(err))
	}
	n := 0
	for i := range uint32(MaxListeners) {
		if listens(&all, i, now) {
			n++
		}
	}
	return n, nil
}

// extend moves the end of the listener's time.
func (l *Listener) extend(all *datapathListening, now clock) {
	until := now.jiffies + uint32(listenFor/l.tick)
	if until == 0 { // which would be nobody's
		until = 1
	}
	all.By[l.slot] = datapathListener{Until: until, Kinds: l.want.kinds(), Ifindex: uint32(l.want.Ifindex), Rate: uint32(max(1, l.want.Rate))}
	all.Mask |= 1 << l.slot
	l.renewed = time.Now()
}

// kinds are the bits of the wanted events.
func (w Wanted) kinds() (bits uint32) {
	for r := range datapathDropReasonDROP_REASONS {
		if w.Drops && r > 0 && (w.Reasons == nil || slices.Contains(w.Reasons, reasons[r])) {
			bits |= 1 << r
		}
	}
	if w.Flows {
		bits |= 1<<eventOpen | 1<<eventClose
	}
	return bits
}

// Want changes what the listener wants.
func (l *Listener) Want(want Wanted) error {
	l.want = want
	return l.renew()
}

// renew moves the end of the listener's time. If that has passed, its place may be another's.
func (l *Listener) renew() error {
	late := time.Since(l.renewed) > listenFor
	l.away = l.away || late
	return l.locked(func(all *datapathListening) error {
		rings, err := l.d.pinned("rings")
		if err != nil {
			return err
		}
		var id uint32
		if err := rings.Lookup(l.slot, &id); err != nil || ebpf.MapID(id) != l.id {
			return l.enlist(all)
		}
		now, err := l.d.jiffies()
		if err == nil {
			l.extend(all, now)
		}
		return err
	})
}

// Next returns the next event. Returns os.ErrDeadlineExceeded if there is none until the
// deadline, ErrNotLoaded when the datapath has been removed, ErrFull when others have taken the
// places of listeners while this one did not look. A listener that is not asked for its next event for some seconds stops being told.
func (l *Listener) Next(deadline time.Time) (Event, error) {
	for {
		if time.Since(l.renewed) > renewAfter {
			if err := l.renew(); err != nil {
				return Event{}, err
			}
		}
		look := time.Now().Add(lookEvery)
		if look.After(deadline) {
			look = deadline
		}
		l.reader.SetDeadline(look)
		err := l.reader.ReadInto(&l.record)
		if err == nil {
			return l.event(l.record.RawSample)
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return Event{}, fmt.Errorf("read events: %w", err)
		}
		if !time.Now().Before(deadline) {
			return Event{}, err
		}
	}
}

// NotTold returns what the listener was not told since it was last asked.
func (l *Listener) NotTold() (NotTold, error) {
	n := NotTold{Away: l.away}
	l.away = false
	m, err := l.d.pinned("told")
	if err != nil {
		return n, err
	}
	for kind := range uint32(eventKinds) {
		if l.want.kinds()>>kind&1 == 0 {
			continue
		}
		var cpus []datapathTold
		if err := m.Lookup(l.slot*eventKinds+kind, &cpus); err != nil {
			return n, fmt.Errorf("read map told: %w", permission(err))
		}
		var sum datapathTold
		for _, c := range cpus {
			sum.Kept += c.Kept
			sum.Lost += c.Lost
		}
		kept := sum.Kept - l.told[kind].Kept
		n.Lost += sum.Lost - l.told[kind].Lost
		l.told[kind] = sum
		switch kind {
		case eventOpen:
			n.Opens += kept
		case eventClose:
			n.Closes += kept
		default:
			n.Drops += kept
		}
	}
	return n, nil
}

// forgetTold lets the counts of a place among listeners begin anew.
func (l *Listener) forgetTold(slot uint32) error {
	m, err := l.d.pinned("told")
	if err != nil {
		return err
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	for kind := range uint32(eventKinds) {
		if err := m.Put(slot*eventKinds+kind, make([]datapathTold, cpus)); err != nil {
			return fmt.Errorf("write map told: %w", permission(err))
		}
	}
	l.told = [eventKinds]datapathTold{}
	return nil
}

// Close ends listening. That the datapath is gone is no error.
func (l *Listener) Close() error {
	err := l.locked(func(all *datapathListening) error {
		rings, err := l.d.pinned("rings")
		if err != nil {
			return err
		}
		var id uint32
		if err := rings.Lookup(l.slot, &id); err != nil || ebpf.MapID(id) != l.id {
			return nil // another's by now
		}
		all.Mask &^= 1 << l.slot
		all.By[l.slot] = datapathListener{}
		if err := rings.Delete(l.slot); err != nil {
			return fmt.Errorf("delete from map rings: %w", permission(err))
		}
		return nil
	})
	if errors.Is(err, ErrNotLoaded) {
		err = nil
	}
	return errors.Join(err, l.reader.Close(), l.ring.Close())
}

var hookNames = map[datapathHook]Hook{
	datapathHookAT_FROM_CONTAINER: FromContainer,
	datapathHookAT_FROM_UPLINK:    FromUplink,
	datapathHookAT_TO_UPLINK:      ToUplink,
	datapathHookAT_FROM_BRIDGE:    FromBridge,
	datapathHookAT_TO_BRIDGE:      ToBridge,
}

var closeNames = map[datapathCloseReason]string{
	datapathCloseReasonCLOSE_FIN:     "fin",
	datapathCloseReasonCLOSE_RST:     "rst",
	datapathCloseReasonCLOSE_TIMEOUT: "timeout",
	datapathCloseReasonCLOSE_REMOVED: "removed",
	datapathCloseReasonCLOSE_FLUSHED: "flushed",
	datapathCloseReasonCLOSE_ADDRESS: "address-gone",
}

func (l *Listener) event(raw []byte) (Event, error) {
	var b datapathEvent
	if err := binary.Read(bytes.NewReader(raw), binary.NativeEndian, &b); err != nil {
		return Event{}, fmt.Errorf("read an event: %w", err)
	}
	e := Event{
		Time:     wallClock(b.Time),
		Ifindex:  int(b.Ifindex),
		From:     int(b.From),
		To:       int(b.To),
		Protocol: packetProtocol(b),
		Src:      addrPort(b.Tuple.Src, b.Tuple.Sport),
		Dst:      addrPort(b.Tuple.Dst, b.Tuple.Dport),
	}
	if e.Ifindex != 0 {
		e.Hook = hookNames[b.Hook]
	}
	if b.Kind < eventOpen {
		e.Kind, e.Reason, e.Direction = EventDrop, reasonName(datapathDropReason(b.Kind)), directionName(b.Direction)
		e.Length, e.Translated = int(b.Len), b.Translated != 0
		e.SrcMAC, e.DstMAC = slices.Clone(b.Smac[:]), slices.Clone(b.Dmac[:])
		return e, nil
	}
	e.FlowKind, e.Slot = kindName(b.Flow), b.Slot
	e.TranslatedSrc, e.TranslatedDst = addrPort(b.Xlat.Src, b.Xlat.Sport), addrPort(b.Xlat.Dst, b.Xlat.Dport)
	if e.Kind = EventOpen; b.Kind == eventClose {
		e.Kind, e.Why = EventClose, closeNames[b.Why]
		e.Packets, e.ReplyPackets = b.Packets[0], b.Packets[1]
		e.Bytes, e.ReplyBytes = b.Bytes[0], b.Bytes[1]
		e.Age = time.Duration(b.Age) * l.tick
	}
	return e, nil
}

// packetProtocol names what a packet is, as far as its headers were read.
func packetProtocol(b datapathEvent) string {
	if !fromAddr(b.Tuple.Src).IsValid() {
		switch t := bigEndian(b.EthProto); t {
		case 0:
			return "unknown"
		case unix.ETH_P_ARP:
			return "arp"
		case unix.ETH_P_IP:
			return "ip"
		case unix.ETH_P_IPV6:
			return "ipv6"
		default:
			return fmt.Sprintf("0x%04x", t)
		}
	}
	switch b.Tuple.Proto {
	case 1, uint8(TCP), uint8(UDP):
		return protocolName(b.Tuple.Proto)
	}
	return strconv.Itoa(int(b.Tuple.Proto))
}

// wallClock tells the time of a moment that programs call so.
func wallClock(monotonic uint64) time.Time {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return time.Now()
	}
	return time.Now().Add(time.Duration(monotonic) - time.Duration(ts.Nano()))
}
