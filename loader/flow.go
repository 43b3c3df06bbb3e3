package loader

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/ebnet/ebnet/loader/failpoint"
)

// half is one entry of the flow tables.
type half struct {
	flow      datapathFlow
	confirmed bool
}

// Flows calls yield for each live conversation until it returns false. A conversation
// that is opened, confirmed or ended meanwhile may be missed.
func (d *Datapath) Flows(yield func(Flow) bool) error {
	halves, err := d.halves()
	if err != nil {
		return err
	}
	now, err := d.jiffies()
	if err != nil {
		return err
	}
	gens, err := d.generations()
	if err != nil {
		return err
	}
	for key, h := range halves {
		if h.flow.Half != datapathFlowHalfHALF_ORIG || gens(h.flow.Slot) != h.flow.Gen {
			continue
		}
		f := d.newFlow(key, h, halves[reverse(h.flow.Xlat)], now)
		if f.Expires > 0 && !yield(f) {
			return nil
		}
	}
	return nil
}

// halves reads both tables; an entry on its way is in both, and the confirmed counts.
func (d *Datapath) halves() (map[datapathTuple]half, error) {
	all := map[datapathTuple]half{}
	early, err := d.pinned("flows_new")
	if err != nil {
		return nil, err
	}
	if err := each(early, func(k *datapathTuple, v *datapathFlow) bool {
		all[*k] = half{flow: *v}
		return true
	}); err != nil {
		return nil, fmt.Errorf("read map flows_new: %w", err)
	}
	confirmed, err := d.pinned("flows")
	if err != nil {
		return nil, err
	}
	if err := each(confirmed, func(k *datapathTuple, v *datapathFlow) bool {
		all[*k] = half{flow: *v, confirmed: true}
		return true
	}); err != nil {
		return nil, fmt.Errorf("read map flows: %w", err)
	}
	return all, nil
}

func reverse(t datapathTuple) datapathTuple {
	t.Src, t.Dst, t.Sport, t.Dport = t.Dst, t.Src, t.Dport, t.Sport
	return t
}

// newFlow puts both directions of a conversation together. now is in jiffies.
func (d *Datapath) newFlow(key datapathTuple, orig, reply half, now clock) Flow {
	f := orig.flow
	last := max(f.LastSeen, reply.flow.LastSeen)
	state, idle := d.life(key.Proto, f.Seen, f.PeerSeen)
	return Flow{
		Protocol:      protocolName(key.Proto),
		State:         state,
		Kind:          kindName(f.Kind),
		Src:           addrPort(key.Src, key.Sport),
		Dst:           addrPort(key.Dst, key.Dport),
		TranslatedSrc: addrPort(f.Xlat.Src, f.Xlat.Sport),
		TranslatedDst: addrPort(f.Xlat.Dst, f.Xlat.Dport),
		Slot:          f.Slot,
		Packets:       f.Packets + reply.flow.Packets,
		Bytes:         f.Bytes + reply.flow.Bytes,
		Confirmed:     orig.confirmed,
		Expires:       idle - now.since(last),
	}
}

// life names the state of a conversation and returns how long it may be silent in it; as
// timeout_of() in bpf/flow.h.
func (d *Datapath) life(proto uint8, seen, peer datapathFlowSeen) (string, time.Duration) {
	t := timeoutsOf(d.about.Timeouts)
	const syn, fin, rst = datapathFlowSeenSEEN_SYN, datapathFlowSeenSEEN_FIN, datapathFlowSeenSEEN_RST
	switch {
	case proto == 1 && peer == 0:
		return "unreplied", t.ICMP
	case proto == 1:
		return "replied", t.ICMP
	case proto == uint8(UDP) && peer == 0:
		return "unreplied", t.UDPUnreplied
	case proto == uint8(UDP):
		return "replied", t.UDPReplied
	case (seen|peer)&rst != 0, seen&peer&fin != 0:
		return "closed", t.TCPClosed
	case (seen|peer)&fin != 0:
		return "half-closed", t.TCPHalfClosed
	case seen&peer&syn != 0:
		return "established", t.TCPEstablished
	}
	return "syn", t.TCPSyn
}

func protocolName(p uint8) string {
	switch p {
	case uint8(TCP):
		return "tcp"
	case uint8(UDP):
		return "udp"
	}
	return "icmp"
}

func kindName(k datapathFlowKind) string {
	switch k {
	case datapathFlowKindFLOW_SNAT:
		return "snat"
	case datapathFlowKindFLOW_DNAT:
		return "dnat"
	case datapathFlowKindFLOW_HAIRPIN:
		return "hairpin"
	case datapathFlowKindFLOW_HOST:
		return "host"
	}
	return "direct"
}

func addrPort(a datapathAddr, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(fromAddr(a), bigEndian(port))
}

// FlushFlows deletes the flows for which match returns true and returns how
// many conversations that were.
func (d *Datapath) FlushFlows(match func(Flow) bool) (int, error) {
	halves, err := d.halves()
	if err != nil {
		return 0, err
	}
	now, err := d.jiffies()
	if err != nil {
		return 0, err
	}
	gens, err := d.generations()
	if err != nil {
		return 0, err
	}
	n := 0
	for key, h := range halves {
		if gens(h.flow.Slot) != h.flow.Gen {
			continue // void already; some keep the tuple of an unpublished port closed
		}
		if h.flow.Half != datapathFlowHalfHALF_ORIG || !match(d.newFlow(key, h, halves[reverse(h.flow.Xlat)], now)) {
			continue
		}
		if err := d.forget(key); err != nil {
			return n, err
		}
		n++
	}
	return n, d.forgetExhausted()
}

// forgetExhausted lets searches for a source port be made again at once.
func (d *Datapath) forgetExhausted() error {
	_, err := removeIf(d, "exhausted", func(*datapathServiceKey, *uint32) bool { return true })
	return err
}

// forget ends a conversation by the tuple of its first packet. A program does it, since
// only the programs can keep the count of the owner's share.
func (d *Datapath) forget(key datapathTuple) error {
	p, err := d.program(forgetProgram)
	if err != nil {
		return err
	}
	data := make([]byte, 64)
	if _, err := binary.Encode(data, binary.NativeEndian, key); err != nil {
		return err
	}
	if err := failpoint.Do("run program", "forget", func() error {
		_, err := p.Run(&ebpf.RunOptions{Data: data})
		return err
	}); err != nil {
		return fmt.Errorf("run program forget: %w", permission(err))
	}
	return nil
}

// clock is a moment in the datapath's time.
type clock struct {
	jiffies uint32 // the low half
	tick    time.Duration
}

// since returns how long ago a stamp was. Stamps may be a moment ahead of the clock.
func (c clock) since(stamp uint64) time.Duration {
	return time.Duration(int32(c.jiffies-uint32(stamp))) * c.tick
}

// jiffies asks the kernel for its time.
func (d *Datapath) jiffies() (clock, error) {
	p, err := d.program(clockProgram)
	if err != nil {
		return clock{}, err
	}
	now, err := p.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
	if err != nil {
		return clock{}, fmt.Errorf("run program clock: %w", permission(err))
	}
	tick, err := jiffy()
	return clock{jiffies: now, tick: tick}, err
}

// generations returns a function that tells the generation of a slot.
func (d *Datapath) generations() (func(uint32) uint32, error) {
	m, err := d.pinned("gens")
	if err != nil {
		return nil, err
	}
	known := map[uint32]uint32{}
	return func(slot uint32) uint32 {
		gen, ok := known[slot]
		if !ok && m.Lookup(slot, &gen) == nil {
			known[slot] = gen
		}
		return gen
	}, nil
}
