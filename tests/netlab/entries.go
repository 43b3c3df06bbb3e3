package netlab

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"path/filepath"
	reflection "reflect" // reflect is a function of this package
	"slices"
	"testing"

	"github.com/cilium/ebpf"
)

// Entries counts the entries of the pinned maps by their names, those of an array that are
// not all zero, and of ports those that are published. Maps that packets fill are not among them, nor what only ever grows.
func (h *Host) Entries(tb testing.TB) map[string]int {
	tb.Helper()
	entries := make(map[string]int)
	for _, name := range []string{"endpoints", "devices", "nears", "networks", "subnets", "inner", "services", "ports", "sources", "uplinks", "near_uplinks"} {
		paths, err := filepath.Glob(filepath.Join(h.BPFFS, "v*", "maps", name))
		if err != nil || len(paths) > 1 {
			tb.Fatalf("maps called %s: %v (%v)", name, paths, err)
		}
		if len(paths) == 0 {
			continue
		}
		n, err := countEntries(paths[0])
		if err != nil {
			tb.Fatalf("count map %s: %v", name, err)
		}
		entries[name] = n
	}
	return entries
}

func countEntries(path string) (n int, err error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return 0, err
	}
	defer m.Close()
	const batch = 4096
	// In batches: arrays have thousands. The sizes are known only now.
	rows := func(size uint32) any {
		row := reflection.ArrayOf(int(size), reflection.TypeFor[byte]())
		return reflection.MakeSlice(reflection.SliceOf(row), batch, batch).Interface()
	}
	var cursor ebpf.MapBatchCursor
	for keys, values := rows(m.KeySize()), rows(m.ValueSize()); ; {
		got, err := m.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return 0, err
		}
		for i := range got {
			value := reflection.ValueOf(values).Index(i).Bytes()
			switch {
			case filepath.Base(path) == "ports":
				// struct port_word of bpf/abi.h: the second word is what is published.
				n += bits.OnesCount64(binary.NativeEndian.Uint64(value[8:]))
			case m.Type() != ebpf.Array || slices.ContainsFunc(value, func(b byte) bool { return b != 0 }):
				n++
			}
		}
		if err != nil { // that was the last one
			return n, nil
		}
	}
}
