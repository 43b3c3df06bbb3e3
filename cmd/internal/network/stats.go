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
	Received = "received"
	Sent     = "sent"
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

// EndpointDropInfo counts the packets of an endpoint that ebnet dropped for one reason.
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
// what the fast path puts into the container. All drops are of what the container sent,
// at the host's end; what is dropped on its way in is dropped at the uplink or bridge,
// before it is known whose it would have been.
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
		if e.Ifindex != 0 {
			s.Drops = append(s.Drops, drops[e.Ifindex]...)
		}
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

// statsOf returns the drops by device and how many conversations each endpoint takes
// part in, from a datapath if there is one.
func (h *Host) statsOf(dp datapath) (map[int][]EndpointDropInfo, map[string]int, error) {
	if dp == nil {
		return nil, nil, nil
	}
	all, err := dp.Drops()
	if err != nil {
		return nil, nil, err
	}
	drops := map[int][]EndpointDropInfo{}
	for _, d := range all {
		drops[d.Ifindex] = append(drops[d.Ifindex], EndpointDropInfo{Sent, d.Reason, d.Packets, d.Bytes})
	}
	for _, ds := range drops {
		slices.SortFunc(ds, func(a, b EndpointDropInfo) int { return cmp.Compare(a.Reason, b.Reason) })
	}
	conversations, err := h.conversations(dp)
	return drops, conversations, err
}

// conversations counts those that each endpoint takes part in; one between two endpoints
// is both's. What belongs to nobody is under "".
func (h *Host) conversations(dp datapath) (map[string]int, error) {
	byAddr, bySlot := map[netip.Addr]string{}, map[uint32]string{}
	err := h.state.view(func(t *tx) error {
		endpoints, err := list[endpointRecord](t, endpointsBucket)
		for _, e := range endpoints {
			byAddr[e.IP] = e.Name
		}
		if err != nil {
			return err
		}
		return t.Bucket(slotsBucket).ForEach(func(k, name []byte) error {
			bySlot[slotOf(k)] = string(name)
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	n := map[string]int{}
	err = dp.Flows(func(f loader.Flow) bool {
		owner, from, to := bySlot[f.Slot], byAddr[f.Src.Addr()], byAddr[f.TranslatedDst.Addr()]
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
