package loader

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
)

// reasons are the texts of enum drop_reason in bpf/abi.h, by its values.
var reasons = [datapathDropReasonDROP_REASONS]string{
	datapathDropReasonDROP_MALFORMED:      "malformed",
	datapathDropReasonDROP_UNKNOWN_DEVICE: "unknown-device",
	datapathDropReasonDROP_SPOOFED_MAC:    "spoofed-mac",
	datapathDropReasonDROP_SPOOFED_ADDR:   "spoofed-address",
	datapathDropReasonDROP_SPOOFED_ARP:    "spoofed-arp",
	datapathDropReasonDROP_FAMILY:         "address-family",
	datapathDropReasonDROP_OTHER_NETWORK:  "other-network",
	datapathDropReasonDROP_ICC:            "icc",
	datapathDropReasonDROP_INTERNAL:       "internal",
	datapathDropReasonDROP_NOT_UPLINK:     "not-uplink",
	datapathDropReasonDROP_NO_FLOW:        "no-flow",
	datapathDropReasonDROP_RETIRED:        "unpublished",
	datapathDropReasonDROP_PROTOCOL:       "protocol",
	datapathDropReasonDROP_FRAGMENT:       "fragment",
	datapathDropReasonDROP_NO_PORT:        "no-source-port",
	datapathDropReasonDROP_TABLE_FULL:     "table-full",
	datapathDropReasonDROP_NO_SOURCE:      "no-source-address",
	datapathDropReasonDROP_DIRECT:         "direct-access",
	datapathDropReasonDROP_FORWARDED:      "forwarded",
	datapathDropReasonDROP_TTL:            "ttl",
	datapathDropReasonDROP_REWRITE:        "rewrite",
	datapathDropReasonDROP_REDIRECT:       "redirect",
	datapathDropReasonDROP_ADDRESS_GONE:   "source-address-gone",
	datapathDropReasonDROP_SOURCE:         "source-not-allowed",
	datapathDropReasonDROP_DHCP_SERVER:    "dhcp-server",
	datapathDropReasonDROP_LOOPBACK:       "loopback",
}

// Drops returns the drop counters that are not zero.
func (d *Datapath) Drops() ([]Drops, error) {
	var all []Drops
	err := d.eachDrop(func(key datapathDropKey, sum datapathDropCount) {
		reason := fmt.Sprintf("reason-%d", key.Reason)
		if int(key.Reason) < len(reasons) {
			reason = reasons[key.Reason]
		}
		all = append(all, Drops{Ifindex: int(key.Ifindex), Reason: reason, Packets: sum.Packets, Bytes: sum.Bytes})
	})
	return all, err
}

// ForgetDrops removes the counters of a device that is gone.
func (d *Datapath) ForgetDrops(ifindex int) error {
	for reason := range datapathDropReasonDROP_REASONS {
		if err := d.remove("drops", datapathDropKey{Ifindex: uint32(ifindex), Reason: reason}); err != nil {
			return err
		}
	}
	return nil
}

// eachDrop sums the CPUs' counters.
func (d *Datapath) eachDrop(yield func(datapathDropKey, datapathDropCount)) error {
	m, err := d.pinned("drops")
	if err != nil {
		return err
	}
	var (
		key  datapathDropKey
		cpus []datapathDropCount
	)
	it := m.Iterate()
	for it.Next(&key, &cpus) {
		var sum datapathDropCount
		for _, c := range cpus {
			sum.Packets += c.Packets
			sum.Bytes += c.Bytes
		}
		yield(key, sum)
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return fmt.Errorf("read map drops: %w", err)
	}
	return nil
}

// Usage tells how full the maps that can fill are.
func (d *Datapath) Usage() ([]MapUse, error) {
	var all []MapUse
	for _, c := range []struct {
		name  string
		count func(*ebpf.Map) (int, error)
	}{
		{"flows", count[datapathTuple, datapathFlow]},
		{"flows_new", count[datapathTuple, datapathFlow]},
		{"endpoints", count[datapathAddr, datapathEndpoint]},
		{"services", count[datapathServiceKey, datapathService]},
		{"sources", count[datapathSourceKey, uint32]},
		{"uplinks", count[uint32, datapathUplink]},
		{"fragments", count[datapathFragmentKey, datapathFragment]},
		{"peers", count[datapathPeerKey, datapathPeer]},
	} {
		m, err := d.pinned(c.name)
		if err != nil {
			return nil, err
		}
		used, err := c.count(m)
		if err != nil {
			return nil, fmt.Errorf("count map %s: %w", c.name, err)
		}
		all = append(all, MapUse{Name: c.name, Used: used, Max: int(m.MaxEntries())})
	}
	return all, nil
}

// count returns the number of entries.
func count[K, V any](m *ebpf.Map) (int, error) {
	n := 0
	err := each(m, func(*K, *V) bool { n++; return true })
	return n, err
}

// each calls yield for every entry until it returns false, in batches.
func each[K, V any](m *ebpf.Map, yield func(*K, *V) bool) error {
	const batch = 4096
	var (
		keys   = make([]K, batch)
		values = make([]V, batch)
		cursor ebpf.MapBatchCursor
	)
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return permission(err)
		}
		for i := range n {
			if !yield(&keys[i], &values[i]) {
				return nil
			}
		}
		if err != nil { // ErrKeyNotExist: that was the last batch
			return nil
		}
	}
}

// Shares lists the slots that have confirmed conversations, or were refused some.
func (d *Datapath) Shares() ([]Share, error) {
	m, err := d.pinned("shares")
	if err != nil {
		return nil, err
	}
	var all []Share
	if err := each(m, func(slot *uint32, s *datapathShare) bool {
		if *s != (datapathShare{}) {
			all = append(all, Share{Slot: *slot, Held: max(0, int(s.Held)), Refused: int(s.Refused)})
		}
		return true
	}); err != nil {
		return nil, fmt.Errorf("read map shares: %w", err)
	}
	return all, nil
}

// Sweep is the state of the timer that reclaims conversations.
type Sweep struct {
	Confirmed int           // conversations in its queue
	Rounds    uint64        // since it was started
	Took      time.Duration // the last round
	Longest   time.Duration // of all rounds
}

// Sweep tells how reclaiming goes.
func (d *Datapath) Sweep() (Sweep, error) {
	m, err := d.pinned("sweepers")
	if err != nil {
		return Sweep{}, err
	}
	var s datapathSweeper
	if err := m.Lookup(uint32(0), &s); err != nil {
		return Sweep{}, fmt.Errorf("read map sweepers: %w", permission(err))
	}
	return Sweep{Confirmed: int(s.Tail - s.Head), Rounds: s.Rounds, Took: time.Duration(s.Took), Longest: time.Duration(s.Longest)}, nil
}
