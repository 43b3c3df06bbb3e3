package network

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/ebnet/ebnet/loader"
	"github.com/ebnet/ebnet/loader/netdev"
)

// The directions of packets, as the container sees them.
const (
	Received = loader.Received
	Sent     = loader.Sent
)

// StatsInfo shows what an endpoint has received and sent since its link was made, and
// what of it was dropped.
type StatsInfo struct {
	Endpoint      string             `json:"endpoint"`
	Network       string             `json:"network"`
	State         string             `json:"state"`
	Received      *TrafficInfo       `json:"received"` // nil: not known, the link is gone
	Sent          *TrafficInfo       `json:"sent"`
	Conversations int                `json:"conversations"` // tracked ones that it takes part in
	Drops         []EndpointDropInfo `json:"drops"`
}

// TrafficInfo counts in one direction, at the container's end of the link. Dropped is
// what the kernel dropped at that device, by no reason of ebnet's.
type TrafficInfo struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
	Dropped uint64 `json:"dropped"`
}

// EndpointDropInfo counts the packets from or to an endpoint that ebnet dropped for one reason.
type EndpointDropInfo struct {
	Direction string `json:"direction"`
	Reason    string `json:"reason"`
	Packets   uint64 `json:"packets"`
	Bytes     uint64 `json:"bytes"`
}

// Stats counts what the endpoints have received and sent, by name; "" means all of them.
// It works without a datapath too. Returns ErrNotFound for an unknown endpoint.
//
// Packets are counted by the container's end of the link: the host's end does not see
// what the fast path puts into the container. Drops on the way in, at uplinks, bridges or other
// containers' links, are an endpoint's where its address, a conversation or a published port
// tells whose they would have been; Status has the others too. What one endpoint sends to another is
// both's.
func (h *Host) Stats(endpoint string) ([]StatsInfo, error) {
	endpoints, err := h.someEndpoints(endpoint)
	if err != nil {
		return nil, err
	}
	var veths []int
	for _, e := range endpoints {
		if e.Ifindex != 0 {
			veths = append(veths, e.Ifindex)
		}
	}
	traffic, err := h.k.PeerTraffic(veths...)
	if err != nil {
		return nil, explain(err)
	}
	dp, err := h.loaded()
	if err != nil {
		return nil, explain(err)
	}
	drops, conversations, err := h.statsOf(dp)
	if err != nil {
		return nil, explain(err)
	}
	infos := []StatsInfo{}
	for _, e := range endpoints {
		s := StatsInfo{Endpoint: e.Name, Network: e.Network, State: e.State,
			Conversations: conversations[e.Name], Drops: []EndpointDropInfo{}}
		if t, ok := traffic[e.Ifindex]; ok && e.Ifindex != 0 {
			s.Received, s.Sent = trafficInfos(t)
		}
		s.Drops = append(s.Drops, drops[e.Name]...)
		infos = append(infos, s)
	}
	return infos, nil
}

// someEndpoints returns all endpoints, or the one.
func (h *Host) someEndpoints(name string) ([]EndpointInfo, error) {
	if name == "" {
		return h.Endpoints("")
	}
	e, err := h.Endpoint(name)
	return []EndpointInfo{e}, err
}

func trafficInfos(t netdev.Traffic) (received, sent *TrafficInfo) {
	return &TrafficInfo{t.RxPackets, t.RxBytes, t.RxDropped}, &TrafficInfo{t.TxPackets, t.TxBytes, t.TxDropped}
}

// statsOf returns the drops of each endpoint and how many conversations it takes part in, from
// a datapath if there is one.
func (h *Host) statsOf(dp datapath) (map[string][]EndpointDropInfo, map[string]int, error) {
	if dp == nil {
		return nil, nil, nil
	}
	names, err := h.names()
	if err != nil {
		return nil, nil, err
	}
	all, err := dp.Drops()
	if err != nil {
		return nil, nil, err
	}
	conversations, err := conversations(dp, names)
	return endpointDrops(all, names), conversations, err
}

// names are those of the endpoints, by what programs know of them.
type names struct {
	devices map[int]string    // by the host's end of the link
	slots   map[uint32]string // by what an endpoint or one of its ports lives and dies with
	addrs   map[netip.Addr]string
}

func (h *Host) names() (names, error) {
	n := names{map[int]string{}, map[uint32]string{}, map[netip.Addr]string{}}
	err := h.state.view(func(t *tx) error {
		endpoints, err := list[endpointRecord](t, endpointsBucket)
		if err != nil {
			return err
		}
		for _, e := range endpoints {
			n.addrs[e.IP] = e.Name
			if e.Ifindex != 0 {
				n.devices[e.Ifindex] = e.Name
			}
		}
		return t.Bucket(slotsBucket).ForEach(func(k, name []byte) error {
			n.slots[slotOf(k)] = string(name)
			return nil
		})
	})
	return n, err
}

// endpointDrops sums the drops of each endpoint over devices.
func endpointDrops(all []loader.Drops, names names) map[string][]EndpointDropInfo {
	type kind struct{ endpoint, direction, reason string }
	sums := map[kind]dropSum{}
	for _, d := range all {
		k := kind{names.slots[d.Slot], d.Direction, d.Reason}
		if d.Slot == 0 { // of its device, before programs knew whose that is
			k.endpoint = names.devices[d.Ifindex]
		}
		sums[k] = dropSum{sums[k].packets + d.Packets, sums[k].bytes + d.Bytes}
	}
	drops := map[string][]EndpointDropInfo{}
	for k, n := range sums {
		if k.endpoint != "" {
			drops[k.endpoint] = append(drops[k.endpoint], EndpointDropInfo{k.direction, k.reason, n.packets, n.bytes})
		}
	}
	for _, ds := range drops {
		slices.SortFunc(ds, func(a, b EndpointDropInfo) int {
			return cmp.Or(cmp.Compare(a.Reason, b.Reason), cmp.Compare(b.Direction, a.Direction))
		})
	}
	return drops
}

// conversations counts those that each endpoint takes part in; one between two endpoints
// is both's. What belongs to nobody is under "".
func conversations(dp datapath, names names) (map[string]int, error) {
	n := map[string]int{}
	err := dp.Flows(func(f loader.Flow) bool {
		owner, from, to := names.slots[f.Slot], names.addrs[f.Src.Addr()], names.addrs[f.TranslatedDst.Addr()]
		n[owner]++
		if from != owner && from != "" {
			n[from]++
		}
		if to != owner && to != from && to != "" {
			n[to]++
		}
		return true
	})
	return n, err
}

// slotOf is the inverse of numberKey.
func slotOf(key []byte) uint32 {
	if len(key) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(key)
}
