package loader

import "fmt"

// transient are the maps that hold nothing worth keeping: each load has its own, so that
// their layout may change from one version to the next.
var transient = []string{"scratch", "ways"}

// former are the maps of other versions that hold nothing worth keeping: one that goes back to them
// makes its own.
var former = []string{"drops"}

// words of map inner, and the first of map callers
const (
	innerCount  = 1024
	callersKept = 1 // bit of slot 0, which is nobody's: the programs have noted callers all along
)

// rebuildHints makes the maps that spare programs a search agree with those that they
// stand for. It comes before the first program that reads them: the datapath may have been filled by a
// version that did not know of them, and without them its networks would not be known as such.
func (d *Datapath) rebuildHints() error {
	for _, rebuild := range []func() error{d.rebuildInner, d.rebuildNears, d.rebuildNearUplinks, d.rebuildCallers} {
		if err := rebuild(); err != nil {
			return err
		}
	}
	return nil
}

func (d *Datapath) rebuildInner() error {
	all, err := d.subnets()
	if err != nil {
		return err
	}
	return fillPlaces(d, "inner", innerCount, innerWords(all))
}

func (d *Datapath) rebuildNears() error {
	m, err := d.pinned("devices")
	if err != nil {
		return err
	}
	places := map[uint32]datapathNear{}
	if err := each(m, func(ifindex *uint32, dev *datapathDevice) bool {
		if near := nearOf(*ifindex, *dev); near.Addr != 0 {
			places[nearPlace(near.Addr)] = near
		}
		return true
	}); err != nil {
		return fmt.Errorf("read map devices: %w", err)
	}
	return fillPlaces(d, "nears", nears, places)
}

func (d *Datapath) rebuildNearUplinks() error {
	m, err := d.pinned("uplinks")
	if err != nil {
		return err
	}
	places := map[uint32]datapathNearUplink{}
	if err := each(m, func(ifindex *uint32, up *datapathUplink) bool {
		places[*ifindex%nearUplinks] = datapathNearUplink{Ifindex: *ifindex, Flags: uint32(up.Flags)}
		return true
	}); err != nil {
		return fmt.Errorf("read map uplinks: %w", err)
	}
	return fillPlaces(d, "near_uplinks", nearUplinks, places)
}

// rebuildCallers takes every endpoint for one that uses published ports from inside, if programs
// have run that did not note who does. The bit that says so goes last.
func (d *Datapath) rebuildCallers() error {
	m, err := d.pinned("callers")
	if err != nil {
		return err
	}
	var first uint64
	if err := m.Lookup(uint32(0), &first); err != nil {
		return fmt.Errorf("read map callers: %w", permission(err))
	}
	if first&callersKept != 0 {
		return nil
	}
	all, err := d.Endpoints()
	if err != nil {
		return err
	}
	words := map[uint32]uint64{}
	for _, e := range all {
		words[e.Slot/64] |= 1 << (e.Slot % 64)
	}
	for i, word := range words {
		if err := d.put("callers", i, word); err != nil {
			return err
		}
	}
	return d.put("callers", uint32(0), words[0]|callersKept)
}

// fillPlaces makes an array of n what values say, zero where they say nothing.
func fillPlaces[V comparable](d *Datapath, name string, n uint32, values map[uint32]V) error {
	for place := range n {
		if err := changePlace(d, name, place, values[place]); err != nil {
			return err
		}
	}
	return nil
}
