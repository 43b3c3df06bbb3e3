package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/loader/failpoint"
)

// Groups of maps that only make sense together: all of one are carried from one layout to
// another, or none is.
var (
	// conversing hold the conversations. Where they cannot be carried, conversations end.
	conversing = []string{"flows", "flows_new", "sweep_queue", "sweepers", "gens", "shares"}

	// recorded are written by Go from what is recorded, and are written anew.
	recorded = []string{"endpoints", "devices", "networks", "subnets", "services", "sources", "ports", "uplinks"}

	// hinting stand for those (see hints.go) and go with them.
	hinting = []string{"inner", "nears", "near_uplinks"}
)

// Handover says what becomes of a datapath of another layout when Load replaces it.
type Handover struct {
	ABI  int      // of the datapath that is there
	Lost []string // maps with conversations that this build cannot read, sorted
	Cut  int      // conversations that end with them, those that are over but not yet reclaimed too
}

// FindHandover looks for a datapath of another layout that Load would replace, and
// changes nothing. Returns ErrNotLoaded if there is none.
func FindHandover(bpffs string) (Handover, error) {
	from, err := inCharge(bpffs)
	if err != nil {
		return Handover{}, err
	}
	if from == layoutOf(bpffs) {
		return Handover{}, ErrNotLoaded
	}
	h := Handover{ABI: from.abi()}
	head, err := from.head()
	if err != nil {
		return h, err
	}
	spec, err := sized(head.MaxFlows)
	if err != nil {
		return h, err
	}
	c, err := from.compare(spec)
	if err != nil || len(c.lost) == 0 {
		return h, err
	}
	h.Lost = c.lost
	h.Cut, err = from.conversations()
	return h, err
}

// ErrOtherVersion says that the datapath is one of another layout, which Load replaces and
// nothing else understands.
var ErrOtherVersion = errors.New("another version of ebnet loaded the datapath")

func (l layout) abi() int {
	n, _ := strconv.Atoi(strings.TrimPrefix(filepath.Base(string(l)), "v"))
	return n
}

// layouts returns all that are below bpffs, this build's too.
func layouts(bpffs string) ([]layout, error) {
	dirs, err := OtherLayouts(bpffs)
	if err != nil {
		return nil, err
	}
	all := []layout{layoutOf(bpffs)}
	for _, dir := range dirs {
		all = append(all, layout(dir))
	}
	return all, nil
}

// aboutHead is how struct about begins in every layout.
type aboutHead struct {
	Fingerprint [32]uint8
	Netns       uint64
	Secret      uint64
	MaxFlows    uint32 // 0: the datapath is not complete
	FastPath    uint32
	NoTcx       uint32
}

// head reads the beginning of a layout's map about. Returns ErrNotLoaded where the datapath is not
// complete.
func (l layout) head() (head aboutHead, err error) {
	m, err := l.pinnedMap("about")
	if err != nil {
		return head, err
	}
	if m == nil {
		return head, ErrNotLoaded
	}
	defer func() { _ = m.Close() }()
	if m.Type() != ebpf.Array || m.KeySize() != 4 {
		return head, fmt.Errorf("map about in %s is not ebnet's: it is a %v: %w", l, m.Type(), ErrConflict)
	}
	raw, err := m.LookupBytes(uint32(0))
	if err != nil {
		return head, fmt.Errorf("read map about: %w", permission(err))
	}
	if _, err := binary.Decode(raw, binary.NativeEndian, &head); err != nil || head.MaxFlows == 0 {
		return head, ErrNotLoaded
	}
	return head, nil
}

// revoke makes a layout's datapath one that is not complete.
func (l layout) revoke() error {
	m, err := l.pinnedMap("about")
	if m == nil || err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	return writeAbout(m, make([]byte, m.ValueSize()))
}

// inCharge returns the layout whose datapath is complete: there is at most one, see Swap. Returns
// ErrNotLoaded.
func inCharge(bpffs string) (layout, error) {
	all, err := layouts(bpffs)
	if err != nil {
		return "", err
	}
	for _, l := range all {
		if _, err := l.head(); err == nil {
			return l, nil
		} else if !errors.Is(err, ErrNotLoaded) {
			return "", err
		}
	}
	return "", ErrNotLoaded
}

// comparison says what becomes of each map.
type comparison struct {
	kept      []string             // the very same map goes on
	converted map[string]converter // copied
	lost      []string             // conversations that cannot be carried
}

func (c *comparison) carries(name string) bool {
	return slices.Contains(c.kept, name) || c.converted[name] != nil
}

// compare finds out which of the layout's maps the object of this build can go on with.
func (l layout) compare(spec *ebpf.CollectionSpec) (*comparison, error) {
	c := &comparison{converted: map[string]converter{}}
	for name, m := range spec.Maps {
		if m.Pinning != ebpf.PinByName || name == "about" {
			continue
		}
		old, err := l.pinnedMap(name)
		if err != nil {
			return nil, err
		}
		if old == nil {
			continue
		}
		same, err := sameLayout(old, m)
		_ = old.Close()
		if err != nil {
			return nil, err
		}
		if same {
			c.kept = append(c.kept, name)
		} else if fn := converters[conversion{name, l.abi(), ABI}]; fn != nil {
			c.converted[name] = fn
		}
	}
	for _, name := range conversing {
		if !c.carries(name) {
			c.lost = append(c.lost, name)
		}
	}
	slices.Sort(c.lost)
	if len(c.lost) > 0 {
		c.drop(conversing)
	}
	if slices.ContainsFunc(recorded, func(name string) bool { return !slices.Contains(c.kept, name) }) {
		c.drop(recorded)
		c.drop(hinting)
	}
	return c, nil
}

func (c *comparison) drop(names []string) {
	for _, name := range names {
		delete(c.converted, name)
	}
	c.kept = slices.DeleteFunc(c.kept, func(name string) bool { return slices.Contains(names, name) })
}

// conversations counts them without knowing more of an entry than that there are two of each.
func (l layout) conversations() (int, error) {
	n := 0
	for _, name := range []string{"flows", "flows_new"} {
		m, err := l.pinnedMap(name)
		if err != nil {
			return 0, err
		}
		if m == nil {
			continue
		}
		var key, value []byte
		it := m.Iterate()
		for it.Next(&key, &value) {
			n++
		}
		err = it.Err()
		_ = m.Close()
		if err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
			return 0, fmt.Errorf("read map %s: %w", name, permission(err))
		}
	}
	return (n + 1) / 2, nil
}

// staging is what a Datapath that waits for its Swap knows of the one that is in charge.
type staging struct {
	from       layout
	comparison *comparison
	programs   map[Hook]ebpf.ProgramID // of the other, as far as they are asked for
}

// stage loads the object beside the datapath of another layout, with the maps that are carried. No
// packet reaches it before Swap.
func stage(bpffs string, from layout, about datapathAbout, k kernel) (*Datapath, error) {
	if err := from.mayBecome(about); err != nil {
		return nil, err
	}
	// What a command left that was killed: the datapath in charge gets all links, and the place
	// beside it is empty.
	if err := takeOver(bpffs, from, nil); err != nil {
		return nil, err
	}
	d, err := stageBeside(bpffs, from, about, k)
	if err != nil {
		return nil, errors.Join(err, layoutOf(bpffs).remove())
	}
	return d, nil
}

func stageBeside(bpffs string, from layout, about datapathAbout, k kernel) (*Datapath, error) {
	spec, err := configured(about, k)
	if err != nil {
		return nil, err
	}
	c, err := from.compare(spec)
	if err != nil {
		return nil, err
	}
	pins, err := makePins(bpffs)
	if err != nil {
		return nil, err
	}
	for _, name := range c.kept {
		if err := share(name, from, pins); err != nil {
			return nil, err
		}
	}
	coll, err := collect(spec, pins)
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	if err := pinPrograms(pins, coll); err != nil {
		return nil, err
	}
	d := newDatapath(pins)
	d.about, d.links = about, from
	d.staged = &staging{from: from, comparison: c, programs: map[Hook]ebpf.ProgramID{}}
	if err := d.carry(false); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	if !slices.Contains(c.kept, "ports") {
		// Which ports conversations may use is not known any more.
		err = d.changePorts(func(_ int, w *datapathPortWord) { w.Tracked = ^uint64(0) })
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// share pins a map of one layout in another one too.
func share(name string, from, to layout) error {
	m, err := from.pinnedMap(name)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	twin, err := m.Clone() // which can have a pin of its own
	if err != nil {
		return fmt.Errorf("open map %s: %w", name, err)
	}
	defer func() { _ = twin.Close() }()
	if err := pinAt(twin, to.mapPin(name)); err != nil {
		return fmt.Errorf("pin map %s: %w", name, permission(err))
	}
	return nil
}

// carry converts what is converted.
func (d *Datapath) carry(second bool) error {
	for name, fn := range d.staged.comparison.converted {
		from, err := d.staged.from.pinnedMap(name)
		if err != nil {
			return err
		}
		to, err := d.pinned(name)
		if err == nil {
			err = convert(from, to, fn, second)
		}
		_ = from.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// Staged reports whether the datapath of another layout still is in charge, until Swap.
func (d *Datapath) Staged() bool { return d.staged != nil }

// Swap puts a staged datapath, which has been told everything by now, in charge: it is then complete, and each
// link runs its program from one packet to the next. Of a datapath that is in charge
// it changes nothing.
//
// At every moment at most one is complete, and what a command that is killed leaves is finished by the
// next Load: of this build if this one is complete, of either if none is.
func (d *Datapath) Swap() error {
	if d.staged == nil {
		return nil
	}
	if err := d.rebuildHints(); err != nil {
		return err
	}
	if err := d.staged.from.revoke(); err != nil {
		return err
	}
	if err := d.put("about", uint32(0), d.about); err != nil {
		return err
	}
	s := d.staged
	d.staged, d.links = nil, d.pins
	return takeOver(filepath.Dir(string(d.pins)), d.pins, func() error {
		d.staged = s
		defer func() { d.staged = nil }()
		return d.carry(true)
	})
}

// Abandon takes a staged datapath away; that of the other layout goes on as if nothing had been.
func (d *Datapath) Abandon() error {
	if d.staged == nil {
		return nil
	}
	d.staged = nil
	return errors.Join(d.Close(), d.pins.remove())
}

// mayBecome checks what a replacement cannot change, as that of Datapath does.
func (l layout) mayBecome(about datapathAbout) error {
	head, err := l.head()
	if err != nil {
		return err
	}
	old := Datapath{pins: l}
	old.about.Netns, old.about.MaxFlows, old.about.NoTcx = head.Netns, head.MaxFlows, head.NoTcx
	return old.mayBecome(about)
}

// takeOver gives the programs of a layout to the links of all others, calls last if it is not nil,
// and removes the others.
func takeOver(bpffs string, heir layout, last func() error) error {
	all, err := layouts(bpffs)
	if err != nil {
		return err
	}
	others := slices.DeleteFunc(all, func(l layout) bool {
		_, err := os.Stat(string(l))
		return l == heir || errors.Is(err, os.ErrNotExist)
	})
	if len(others) == 0 {
		return nil
	}
	for _, l := range others {
		if err := heir.takeLinks(l); err != nil {
			return err
		}
	}
	if err := heir.startSweep(); err != nil {
		return err
	}
	if last != nil {
		if err := last(); err != nil {
			return err
		}
	}
	for _, l := range others {
		if err := l.remove(); err != nil {
			return err
		}
	}
	return nil
}

// takeLinks makes another layout's links run this one's programs, and moves their pins here.
func (l layout) takeLinks(from layout) error {
	entries, err := os.ReadDir(from.links())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list links: %w", permission(err))
	}
	for _, e := range entries {
		hook, _, _ := strings.Cut(e.Name(), "-")
		path, place := filepath.Join(from.links(), e.Name()), filepath.Join(l.links(), e.Name())
		if _, err := os.Stat(place); err == nil {
			continue // two of them ran there; the other goes with its layout
		}
		prog, err := ebpf.LoadPinnedProgram(l.program(hook), nil)
		if errors.Is(err, os.ErrNotExist) {
			continue // a hook that there is no more
		}
		if err != nil {
			return fmt.Errorf("open program %s: %w", hook, explain(err))
		}
		gone, err := giveProgram(path, prog)
		_ = prog.Close()
		if err != nil {
			return fmt.Errorf("replace %s: %w", e.Name(), err)
		}
		if gone {
			continue
		}
		if err := failpoint.Do("rename pin", path, func() error { return os.Rename(path, place) }); err != nil {
			return fmt.Errorf("move the pin of %s: %w", e.Name(), permission(err))
		}
	}
	return nil
}

// giveProgram swaps the program of a pinned link. gone is true if its device is.
func giveProgram(path string, prog *ebpf.Program) (gone bool, err error) {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return false, explain(err)
	}
	defer func() { _ = l.Close() }()
	err = failpoint.Do("update link", path, func() error { return l.Update(prog) })
	if errors.Is(err, unix.ENOLINK) {
		return true, nil
	}
	return false, permission(err)
}

// startSweep starts the timer of a layout's programs.
func (l layout) startSweep() error {
	p, err := ebpf.LoadPinnedProgram(l.program(string(sweepProgram)), nil)
	if err != nil {
		return fmt.Errorf("open program %s: %w", sweepProgram, explain(err))
	}
	defer func() { _ = p.Close() }()
	return startSweep(p)
}

// runs reports whether a program is the hook's: this datapath's or, where it is staged, that of the one
// in charge.
func (d *Datapath) runs(hook Hook, id ebpf.ProgramID) bool {
	if own, err := d.programID(hook); err == nil && own == id {
		return true
	}
	if d.staged == nil {
		return false
	}
	other, known := d.staged.programs[hook]
	if !known {
		if p, err := ebpf.LoadPinnedProgram(d.staged.from.program(string(hook)), nil); err == nil {
			if info, err := p.Info(); err == nil {
				other, _ = info.ID()
			}
			_ = p.Close()
		}
		d.staged.programs[hook] = other
	}
	return other != 0 && other == id
}
