package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/ebnet/ebnet/loader/failpoint"
)

// conversion names a map and the two layouts between which its entries are carried.
type conversion struct {
	Map      string
	From, To int // EBNET_ABI
}

// converter makes an entry of one layout one of the other. Both are as the kernel has them; the
// slices given are not kept. ok is false for an entry that is not to be carried.
type converter func(key, value []byte) (newKey, newValue []byte, ok bool)

// converters are the known ones. A new EBNET_ABI with another layout of a map of conversations
// (see groups) brings one for each direction, or `ebnet up` has to cut conversations.
//
// Programs of the old layout go on working while entries are carried. What they open meanwhile is
// carried in a second pass, when all packets go to the new ones; what they change meanwhile is not.
var converters = map[conversion]converter{}

// convert carries the entries of a map. In the second pass those that are there already stay
// as they are.
func convert(from, to *ebpf.Map, fn converter, second bool) error {
	flags := ebpf.UpdateAny
	if second {
		flags = ebpf.UpdateNoExist
	}
	var key, value []byte
	it := from.Iterate()
	for it.Next(&key, &value) {
		k, v, ok := fn(key, value)
		if !ok {
			continue
		}
		err := failpoint.Do("convert", "", func() error { return to.Update(k, v, flags) })
		if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return fmt.Errorf("carry an entry of %s: %w", to, full(err))
		}
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return fmt.Errorf("read %s: %w", from, permission(err))
	}
	return nil
}
