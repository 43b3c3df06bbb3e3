package loader

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// shape is what must be so of a map before it is read or written: type, and sizes of keys and values.
type shape struct {
	kind       ebpf.MapType
	key, value uint32
}

// shapes are those of bpf/maps.h. A short command does not parse the object, so they are here once more, and a
// test compares.
var shapes = map[string]shape{
	"about":        {ebpf.Array, 4, 88},
	"callers":      {ebpf.Array, 4, 8},
	"clock_offset": {ebpf.Array, 4, 8}, // .bss
	"devices":      {ebpf.Hash, 4, 48},
	"drop_counts":  {ebpf.PerCPUHash, 12, 24},
	"endpoints":    {ebpf.Hash, 16, 20},
	"exhausted":    {ebpf.LRUHash, 20, 4},
	"flows":        {ebpf.Hash, 40, 128},
	"flows_new":    {ebpf.LRUHash, 40, 128},
	"fragments":    {ebpf.LRUHash, 40, 72},
	"gens":         {ebpf.Array, 4, 4},
	"inner":        {ebpf.Array, 4, 8},
	"listening":    {ebpf.Array, 4, 144},
	"locals":       {ebpf.Hash, 16, 4},
	"near_uplinks": {ebpf.Array, 4, 8},
	"nears":        {ebpf.Array, 4, 24},
	"networks":     {ebpf.Array, 4, 68},
	"peers":        {ebpf.LRUHash, 32, 24},
	"ports":        {ebpf.Array, 4, 24},
	"rings":        {ebpf.ArrayOfMaps, 4, 4},
	"services":     {ebpf.Hash, 20, 40},
	"shares":       {ebpf.Array, 4, 8},
	"sources":      {ebpf.LPMTrie, 24, 4},
	"subnets":      {ebpf.LPMTrie, 20, 4},
	"sweep_queue":  {ebpf.Hash, 8, 48},
	"sweepers":     {ebpf.Array, 4, 64},
	"told":         {ebpf.PerCPUArray, 4, 40},
	"uplinks":      {ebpf.Hash, 4, 40},
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
