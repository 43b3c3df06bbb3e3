package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// pinnedMaps are the maps that have a pin, by the fields that bpf2go made for them: reading the object
// would cost more than all else that an Up without anything to do does.
var pinnedMaps = func() (names []string) {
	specs := reflect.TypeFor[datapathMapSpecs]()
	for i := range specs.NumField() {
		if name := specs.Field(i).Tag.Get("ebpf"); !slices.Contains(transient, name) {
			names = append(names, name)
		}
	}
	return append(names, "clock_offset")
}()

// complete reports whether everything that is to be pinned is.
func (d *Datapath) complete() bool {
	there := func(path string) bool {
		_, err := os.Stat(path)
		return err == nil
	}
	for _, name := range pinnedMaps {
		if !there(d.pins.mapPin(name)) {
			return false
		}
	}
	for _, p := range programs {
		if !there(d.pins.program(string(p))) {
			return false
		}
	}
	return there(d.links.links())
}

// restoreMaps pins maps again whose pin was removed, if programs of ours still use them, so that
// their flows live on. Maps that nobody has any more are made anew when the programs are loaded.
func restoreMaps(pins layout) error {
	lost := map[string]bool{}
	for _, name := range pinnedMaps {
		if _, err := os.Stat(pins.mapPin(name)); errors.Is(err, os.ErrNotExist) && name != "clock_offset" {
			lost[name] = true
		}
	}
	if len(lost) == 0 {
		return nil
	}
	ids, err := usedMaps(pins)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := restoreMap(pins, id, lost); err != nil {
			return err
		}
	}
	return nil
}

// restoreMap pins the map, if it is a lost one.
func restoreMap(pins layout, id ebpf.MapID, lost map[string]bool) error {
	m, err := ebpf.NewMapFromID(id)
	if errors.Is(err, os.ErrNotExist) {
		return nil // gone with its program
	}
	if err != nil {
		return fmt.Errorf("open map %d: %w", id, permission(err))
	}
	defer func() { _ = m.Close() }()
	info, err := m.Info()
	if err != nil {
		return fmt.Errorf("inspect map %d: %w", id, permission(err))
	}
	if !lost[info.Name] {
		return nil
	}
	delete(lost, info.Name)
	if err := makeDir(pins.maps()); err != nil {
		return fmt.Errorf("create %s: %w", pins.maps(), permission(err))
	}
	if err := pinAt(m, pins.mapPin(info.Name)); err != nil {
		return fmt.Errorf("pin map %s: %w", info.Name, permission(err))
	}
	return nil
}

// usedMaps returns the maps of the programs that are pinned, or that run by pinned links.
func usedMaps(pins layout) (ids []ebpf.MapID, err error) {
	for _, p := range pinnedPrograms(pins) {
		info, infoErr := p.Info()
		if infoErr == nil {
			used, _ := info.MapIDs()
			ids = append(ids, used...)
		}
		err = errors.Join(err, infoErr, p.Close())
	}
	slices.Sort(ids)
	return slices.Compact(ids), err
}

// pinnedPrograms opens what can be opened; what cannot is replaced by the load that follows.
func pinnedPrograms(pins layout) (all []*ebpf.Program) {
	each := func(dir string, open func(path string) (*ebpf.Program, error)) {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if p, err := open(filepath.Join(dir, e.Name())); err == nil {
				all = append(all, p)
			}
		}
	}
	each(pins.progs(), func(path string) (*ebpf.Program, error) { return ebpf.LoadPinnedProgram(path, nil) })
	each(pins.links(), func(path string) (*ebpf.Program, error) {
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return nil, err
		}
		defer func() { _ = l.Close() }()
		info, err := l.Info()
		if err != nil {
			return nil, err
		}
		return ebpf.NewProgramFromID(info.Program)
	})
	return all
}
