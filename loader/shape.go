package loader

import (
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
)

// shape is what must be so of a map before it is read or written: type, and sizes of keys and values.
type shape struct {
	kind       ebpf.MapType
	key, value uint32
}

// shapeOf is that of a map from K to V.
func shapeOf[K, V any](kind ebpf.MapType) shape {
	return shape{kind, uint32(unsafe.Sizeof(*new(K))), uint32(unsafe.Sizeof(*new(V)))}
}

// shapes are those of bpf/maps.h. A short command does not parse the object, so they are here once more, and a
// test compares.
var shapes = map[string]shape{
	"about":        shapeOf[uint32, datapathAbout](ebpf.Array),
	"callers":      shapeOf[uint32, uint64](ebpf.Array),
	"clock_offset": shapeOf[uint32, uint64](ebpf.Array), // .bss
	"devices":      shapeOf[uint32, datapathDevice](ebpf.Hash),
	"drop_counts":  shapeOf[datapathDropKey, datapathDropCount](ebpf.PerCPUHash),
	"endpoints":    shapeOf[datapathAddr, datapathEndpoint](ebpf.Hash),
	"exhausted":    shapeOf[datapathServiceKey, uint32](ebpf.LRUHash),
	"flows":        shapeOf[datapathTuple, datapathFlow](ebpf.Hash),
	"flows_new":    shapeOf[datapathTuple, datapathFlow](ebpf.LRUHash),
	"fragments":    shapeOf[datapathFragmentKey, datapathFragment](ebpf.LRUHash),
	"gens":         shapeOf[uint32, uint32](ebpf.Array),
	"inner":        shapeOf[uint32, uint64](ebpf.Array),
	"listening":    shapeOf[uint32, datapathListening](ebpf.Array),
	"locals":       shapeOf[datapathAddr, datapathLocalKind](ebpf.Hash),
	"near_uplinks": shapeOf[uint32, datapathNearUplink](ebpf.Array),
	"nears":        shapeOf[uint32, datapathNear](ebpf.Array),
	"networks":     shapeOf[uint32, datapathNetwork](ebpf.Array),
	"peers":        shapeOf[datapathPeerKey, datapathPeer](ebpf.LRUHash),
	"ports":        shapeOf[uint32, datapathPortWord](ebpf.Array),
	"rings":        shapeOf[uint32, uint32](ebpf.ArrayOfMaps),
	"services":     shapeOf[datapathServiceKey, datapathService](ebpf.Hash),
	"shares":       shapeOf[uint32, datapathShare](ebpf.Array),
	"sources":      shapeOf[datapathSourceKey, uint32](ebpf.LPMTrie),
	"subnets":      shapeOf[datapathSubnetKey, uint32](ebpf.LPMTrie),
	"sweep_queue":  shapeOf[uint64, datapathQueued](ebpf.Hash),
	"sweepers":     shapeOf[uint32, datapathSweeper](ebpf.Array),
	"told":         shapeOf[uint32, datapathTold](ebpf.PerCPUArray),
	"uplinks":      shapeOf[uint32, datapathUplink](ebpf.Hash),
}

// checkShape refuses a map of others that is pinned under a name of ours.
func checkShape(name string, m *ebpf.Map) error {
	want, have := shapes[name], shape{m.Type(), m.KeySize(), m.ValueSize()}
	if have == want {
		return nil
	}
	return fmt.Errorf("map %s is not ebnet's: it is a %v of %d to %d bytes, not a %v of %d to %d: %w",
		name, have.kind, have.key, have.value, want.kind, want.key, want.value, ErrConflict)
}

// check refuses what no Load has written.
func (a *datapathAbout) check() error {
	if a.FastPath > 1 || a.NoTcx > 1 || a.MaxFlows > maxMaxFlows {
		return fmt.Errorf("what map about says was not written by ebnet: %w", ErrConflict)
	}
	return nil
}

// maxMaxFlows bounds about.MaxFlows: more entries a map cannot have.
const maxMaxFlows = 1 << 30
