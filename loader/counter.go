package loader

import (
	"errors"
	"fmt"
	"slices"
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

// reasonName names a reason, also one of another version's.
func reasonName(r datapathDropReason) string {
	if int(r) < len(reasons) {
		return reasons[r]
	}
	return fmt.Sprintf("reason-%d", r)
}

// DropReasons lists the names of all reasons, in the order of their numbers.
func DropReasons() []string { return slices.Clone(reasons[1:]) }

// Directions of a packet, as the container sees it.
const (
	Sent     = "sent"
	Received = "received"
)

func directionName(d datapathDirection) string {
	if d == datapathDirectionRECEIVED {
		return Received
	}
	return Sent
}

// Drops returns the drop counters that are not zero, without those of endpoints that are
// gone.
func (d *Datapath) Drops() ([]Drops, error) {
	gens, err := d.generations()
	if err != nil {
		return nil, err
	}
	var all []Drops
	err = d.eachDrop(func(key *datapathDropKey, cpus []datapathDropCount) {
		drops := Drops{Ifindex: int(key.Ifindex), Slot: key.Slot, Direction: directionName(key.Direction), Reason: reasonName(key.Reason)}
		gen := gens(key.Slot)
		for _, c := range cpus {
			if c.Gen == gen {
				drops.Packets += c.Packets
				drops.Bytes += c.Bytes
			}
		}
		if drops.Packets > 0 {
			all = append(all, drops)
		}
	})
	return all, err
}

// ForgetDrops removes the counters of a device that is gone.
func (d *Datapath) ForgetDrops(ifindex int) error {
	var keys []datapathDropKey
	if err := d.eachDrop(func(key *datapathDropKey, _ []datapathDropCount) {
		if key.Ifindex == uint32(ifindex) {
			keys = append(keys, *key)
		}
	}); err != nil {
		return err
	}
	return d.removeDrops(keys)
}

// ForgetEndpointDrops removes the counters of an endpoint that is gone, by the devices where
// there may be some: it takes no longer for those that others have.
func (d *Datapath) ForgetEndpointDrops(e Endpoint) error {
	at := []uint32{0, uint32(e.Ifindex)}
	uplinks, err := d.Uplinks()
	if err != nil {
		return err
	}
	for _, i := range uplinks {
		at = append(at, uint32(i))
	}
	networks, err := d.pinned("networks")
	if err != nil {
		return err
	}
	var net datapathNetwork
	if err := networks.Lookup(e.Network, &net); err != nil {
		return fmt.Errorf("read map networks: %w", permission(err))
	}
	at = append(at, net.Bridge)
	keys := dropKeys(0, uint32(e.Ifindex)) // from its device before that was the endpoint's, or after
	for _, i := range at {
		keys = append(keys, dropKeys(e.Slot, i)...)
	}
	return d.removeDrops(keys)
}

// dropKeys are those of all reasons for an endpoint at a device.
func dropKeys(slot, ifindex uint32) []datapathDropKey {
	var keys []datapathDropKey
	for reason := range datapathDropReasonDROP_REASONS {
		for _, direction := range []datapathDirection{datapathDirectionSENT, datapathDirectionRECEIVED} {
			keys = append(keys, datapathDropKey{Ifindex: ifindex, Slot: slot, Reason: reason, Direction: direction})
		}
	}
	return keys
}

func (d *Datapath) removeDrops(keys []datapathDropKey) error {
	for _, key := range keys {
		if err := d.remove("drop_counts", key); err != nil {
			return err
		}
	}
	return nil
}

// eachDrop calls yield for each counter, with its value on each CPU.
func (d *Datapath) eachDrop(yield func(*datapathDropKey, []datapathDropCount)) error {
	m, err := d.pinned("drop_counts")
	if err != nil {
		return err
	}
	if err := eachPerCPU(m, yield); err != nil {
		return fmt.Errorf("read map drop_counts: %w", err)
	}
	return nil
}

// eachPerCPU is each for a map that has a value for each CPU.
func eachPerCPU[K, V any](m *ebpf.Map, yield func(*K, []V)) error {
	const batch = 512
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	var (
		keys   = make([]K, batch)
		values = make([]V, batch*cpus)
		cursor ebpf.MapBatchCursor
	)
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return permission(err)
		}
		for i := range n {
			yield(&keys[i], values[i*cpus:(i+1)*cpus])
		}
		if err != nil {
			return nil
		}
	}
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
		{"sweep_queue", count[uint64, datapathQueued]},
		{"endpoints", count[datapathAddr, datapathEndpoint]},
		{"devices", count[uint32, datapathDevice]},
		{"subnets", count[datapathSubnetKey, uint32]},
		{"services", count[datapathServiceKey, datapathService]},
		{"sources", count[datapathSourceKey, uint32]},
		{"uplinks", count[uint32, datapathUplink]},
		{"locals", count[datapathAddr, datapathLocalKind]},
		{"fragments", count[datapathFragmentKey, datapathFragment]},
		{"peers", count[datapathPeerKey, datapathPeer]},
		{"exhausted", count[datapathServiceKey, uint32]},
		{"drop_counts", countPerCPU[datapathDropKey, datapathDropCount]},
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

func countPerCPU[K, V any](m *ebpf.Map) (int, error) {
	n := 0
	err := eachPerCPU(m, func(*K, []V) { n++ })
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
