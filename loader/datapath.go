package loader

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/loader/failpoint"
)

// Datapath is the pinned datapath of one host. It may be used by one goroutine
// at a time; callers that change it hold the state's lock.
type Datapath struct {
	pins   layout
	links  layout // where links are pinned: as pins, but for a staged one
	about  datapathAbout
	maps   map[string]*ebpf.Map
	progs  map[Hook]*ebpf.Program
	ids    map[Hook]ebpf.ProgramID // of progs, where it was asked for
	staged *staging                // nil once it is in charge
}

var hooks = []Hook{FromContainer, FromUplink, ToUplink, FromBridge, ToBridge}

// programs are the hooks' programs and those that Go runs itself.
var programs = slices.Concat([]Hook{clockProgram, forgetProgram, sweepProgram}, hooks, slices.Sorted(maps.Keys(socketHooks)))

const (
	clockProgram  Hook = "clock"
	forgetProgram Hook = "forget"
	sweepProgram  Hook = "start_sweep"
)

// Load puts the programs and maps into the kernel and pins them below bpffs, or
// replaces the programs of the datapath that is pinned there: maps stay, links are
// updated one by one and atomically each, so no flow is lost. changed is false when
// what is pinned already is what was asked for.
//
// A datapath of another layout (see FindHandover) stays in charge until Swap, so that
// the one returned can be told everything before packets meet it.
//
// Returns ErrUnsupported, ErrPermission or ErrConflict.
func Load(bpffs string, cfg Config) (dp *Datapath, changed bool, err error) {
	dp, changed, err = load(bpffs, cfg)
	if errors.Is(err, ErrUnsupported) {
		err = nameMissing(err)
	}
	if err == nil {
		err = dp.forgetListeners()
	}
	return dp, changed, err
}

func load(bpffs string, cfg Config) (dp *Datapath, changed bool, err error) {
	if cfg.MaxFlows == 0 {
		cfg.MaxFlows = DefaultMaxFlows
	}
	if cfg.Timeouts == (Timeouts{}) {
		cfg.Timeouts = DefaultTimeouts
	}
	kernel, err := probe(cfg)
	if err != nil {
		return nil, false, err
	}
	about, err := describe(cfg, kernel)
	if err != nil {
		return nil, false, err
	}
	from, err := inCharge(bpffs)
	if err == nil && from != layoutOf(bpffs) {
		dp, err := stage(bpffs, from, about, kernel)
		return dp, true, err
	}
	if err != nil && !errors.Is(err, ErrNotLoaded) {
		return nil, false, err
	}
	dp, changed, err = loadHere(bpffs, about, kernel)
	if err == nil {
		// A Swap that was cut short goes on.
		if err = takeOver(bpffs, dp.pins, nil); err != nil {
			_ = dp.Close()
		}
	}
	return dp, changed, err
}

// loadHere is Load where no other layout is in charge.
func loadHere(bpffs string, about datapathAbout, kernel kernel) (dp *Datapath, changed bool, err error) {
	old, err := openHere(bpffs)
	if err == nil {
		sound := old.about.MaxFlows == old.flowsRoom()
		old.about.MaxFlows = old.flowsRoom()
		if err := old.mayBecome(about); err != nil {
			_ = old.Close()
			return nil, false, err
		}
		if sound && old.about == about && old.complete() {
			return old, false, nil
		}
		_ = old.Close()
	} else if !errors.Is(err, ErrNotLoaded) {
		return nil, false, err
	}
	fresh := err != nil
	if dp, err = replace(bpffs, about, kernel); err != nil && fresh && !anyLinks(bpffs) {
		err = errors.Join(err, Remove(bpffs))
	}
	return dp, true, err
}

// anyLinks reports whether programs are attached, be it to half a datapath.
func anyLinks(bpffs string) bool {
	all, err := layouts(bpffs)
	for _, l := range all {
		if entries, _ := os.ReadDir(l.links()); len(entries) > 0 {
			return true
		}
	}
	return err != nil
}

// describe says what will be pinned.
func describe(cfg Config, k kernel) (datapathAbout, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return datapathAbout{}, fmt.Errorf("inspect the network namespace: %w", err)
	}
	sum := sha256.New()
	sum.Write(_DatapathBytes)
	if err := json.NewEncoder(sum).Encode([]any{cfg, k}); err != nil {
		return datapathAbout{}, err
	}
	about := datapathAbout{
		Netns:    st.Ino,
		Secret:   cfg.Secret,
		MaxFlows: uint32(cfg.MaxFlows),
		FastPath: flag(cfg.FastPath),
		NoTcx:    flag(!k.TCX),
		Timeouts: cfg.Timeouts.seconds(),
	}
	copy(about.Fingerprint[:], sum.Sum(nil))
	return about, nil
}

func flag(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

// mayBecome checks what a replacement in place cannot change.
func (d *Datapath) mayBecome(about datapathAbout) error {
	switch {
	case d.about.Netns != about.Netns:
		return fmt.Errorf("%s belongs to another network namespace: %w", d.pins, ErrConflict)
	case d.about.MaxFlows != about.MaxFlows:
		return fmt.Errorf("the flow table holds %d conversations and cannot be resized while it is in use: %w",
			d.about.MaxFlows, ErrConflict)
	case d.about.NoTcx != about.NoTcx:
		return fmt.Errorf("programs are attached in the other way (tcx or clsact): %w", ErrConflict)
	}
	return nil
}

// flowsRoom returns how many conversations the flow table really has room for, or what is said of it
// where its pin is gone.
func (d *Datapath) flowsRoom() uint32 {
	m, err := d.pinned("flows")
	if err != nil {
		return d.about.MaxFlows
	}
	return m.MaxEntries() / 2
}

// Current reports whether what is pinned is what this build would load with the same
// configuration: Load would replace nothing.
func (d *Datapath) Current() (bool, error) {
	cfg := d.Config()
	k, err := probe(cfg)
	if err != nil {
		return false, err
	}
	about, err := describe(cfg, k)
	if err == nil && about != d.about && cfg.DisableTCX {
		// A kernel without tcx was asked for it, perhaps.
		cfg.DisableTCX = false
		about, err = describe(cfg, k)
	}
	return about == d.about && d.complete(), err
}

// replace loads the object, with the maps that are pinned, and swaps programs.
func replace(bpffs string, about datapathAbout, k kernel) (*Datapath, error) {
	pins, err := makePins(bpffs)
	if err != nil {
		return nil, err
	}
	if err := restoreMaps(pins); err != nil {
		return nil, err
	}
	spec, err := configured(about, k)
	if err != nil {
		return nil, err
	}
	coll, err := collect(spec, pins)
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	if err := disown(coll.Maps["about"]); err != nil {
		return nil, err
	}
	if err := prepare(pins); err != nil {
		return nil, err
	}
	if err := repin(pins, coll); err != nil {
		return nil, err
	}
	if err := startSweep(coll.Programs[string(sweepProgram)]); err != nil {
		return nil, err
	}
	if err := writeAbout(coll.Maps["about"], about); err != nil {
		return nil, err
	}
	if err := pins.removeStale(spec); err != nil {
		return nil, err
	}
	return openHere(bpffs)
}

// disown makes what is pinned nobody's while programs are swapped: a command that is killed leaves a mixture,
// which the next Load of any build replaces.
func disown(m *ebpf.Map) error {
	var about datapathAbout
	if err := m.Lookup(uint32(0), &about); err != nil {
		return fmt.Errorf("read map about: %w", permission(err))
	}
	if about.MaxFlows == 0 {
		return nil
	}
	about.Fingerprint = [32]uint8{}
	return writeAbout(m, about)
}

// removeStale removes the pins of maps and programs that this version does not have.
func (l layout) removeStale(spec *ebpf.CollectionSpec) error {
	maps := func(name string) bool {
		m := spec.Maps[name]
		return name == "clock_offset" || m != nil && m.Pinning == ebpf.PinByName
	}
	progs := func(name string) bool { return slices.Contains(programs, Hook(name)) }
	for dir, wanted := range map[string]func(string) bool{l.maps(): maps, l.progs(): progs} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("list %s: %w", dir, permission(err))
		}
		for _, e := range entries {
			if wanted(e.Name()) {
				continue
			}
			if err := unpin(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("remove %s: %w", filepath.Join(dir, e.Name()), permission(err))
			}
		}
	}
	return nil
}

func writeAbout(m *ebpf.Map, about any) error {
	err := failpoint.Do("write map", "about", func() error { return m.Put(uint32(0), about) })
	if err != nil {
		return fmt.Errorf("write map about: %w", permission(err))
	}
	return nil
}

// collect loads the programs, with the maps that are pinned and new ones for what is not.
func collect(spec *ebpf.CollectionSpec, pins layout) (*ebpf.Collection, error) {
	if err := failpoint.Reach("load the programs", ""); err != nil {
		return nil, err
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		Maps: ebpf.MapOptions{PinPath: pins.maps()},
	})
	if err != nil {
		return nil, fmt.Errorf("load the programs: %w", explain(err))
	}
	return coll, nil
}

// prepare makes the pinned maps fit for programs of this version.
func prepare(pins layout) error {
	d := newDatapath(pins)
	defer func() { _ = d.Close() }()
	for _, name := range slices.Concat(transient, former) { // as other versions pin them
		if err := unpin(pins.mapPin(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", pins.mapPin(name), err)
		}
	}
	return d.rebuildHints()
}

func newDatapath(pins layout) *Datapath {
	return &Datapath{pins: pins, links: pins, maps: map[string]*ebpf.Map{}, progs: map[Hook]*ebpf.Program{}, ids: map[Hook]ebpf.ProgramID{}}
}

// startSweep starts the timer that reclaims conversations. The kernel may have no memory for
// it at the moment, since it does not wait for any there.
func startSweep(p *ebpf.Program) error {
	var ret uint32
	for range 100 {
		var err error
		if err = failpoint.Reach("run program", "start_sweep"); err == nil {
			ret, err = p.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
		}
		if err != nil {
			return fmt.Errorf("run program start_sweep: %w", explain(err))
		}
		if ret == 0 {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("start the timer that reclaims conversations: %w", unix.Errno(-int32(ret)))
}

// repin swaps the programs at every link and then the pins, so that a command that
// finds the old pins still finds programs that work.
func repin(pins layout, coll *ebpf.Collection) error {
	entries, err := os.ReadDir(pins.links())
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, e := range entries {
		at, ok := parseLink(e.Name())
		if hook := Hook(e.Name()); isSocketHook(hook) {
			if err := updateLink(pins.socket(hook), coll.Programs[string(hook)]); err != nil {
				return fmt.Errorf("replace %s: %w", hook, err)
			}
		}
		if !ok {
			continue
		}
		if err := updateLink(pins.link(at.Hook, at.Ifindex), coll.Programs[string(at.Hook)]); err != nil {
			return fmt.Errorf("replace %s on interface %d: %w", at.Hook, at.Ifindex, err)
		}
	}
	return pinPrograms(pins, coll)
}

// pinPrograms pins the programs, and their clock, in place of others.
func pinPrograms(pins layout, coll *ebpf.Collection) error {
	if err := pinOver(coll.Maps[".bss"], pins.mapPin("clock_offset")); err != nil {
		return err
	}
	for _, p := range programs {
		if err := pinOver(coll.Programs[string(p)], pins.program(string(p))); err != nil {
			return err
		}
	}
	return nil
}

type pinner interface {
	Pin(string) error
	Unpin() error
}

func pinAt(o pinner, path string) error {
	return failpoint.Do("pin", path, func() error { return o.Pin(path) })
}

func unpin(path string) error {
	return failpoint.Do("remove pin", path, func() error { return os.Remove(path) })
}

// pinOver pins an object in place of another; there is no moment without a pin.
func pinOver(o pinner, path string) error {
	next := path + "-next"
	if err := unpin(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", next, err)
	}
	if err := pinAt(o, next); err != nil {
		return fmt.Errorf("pin %s: %w", path, permission(err))
	}
	if err := failpoint.Do("rename pin", next, func() error { return os.Rename(next, path) }); err != nil {
		_ = os.Remove(next)
		return fmt.Errorf("pin %s: %w", path, err)
	}
	return nil
}

// updateLink swaps the program of a pinned link. A link whose device is gone does
// nothing any more, and its pin goes.
func updateLink(path string, prog *ebpf.Program) error {
	gone := prog == nil
	if !gone {
		var err error
		if gone, err = giveProgram(path, prog); err != nil {
			return err
		}
	}
	if gone {
		return unpin(path)
	}
	return nil
}

// configured returns the object with its constants and sizes set.
func configured(about datapathAbout, k kernel) (*ebpf.CollectionSpec, error) {
	spec, err := sized(about.MaxFlows)
	if err != nil {
		return nil, err
	}
	for name, value := range map[string]any{
		"fast_path":    about.FastPath,
		"hash_secret":  about.Secret,
		"hz":           k.HZ,
		"tick_ns":      k.TickNS,
		"fib_flags":    k.FIBFlags,
		"netns_cookie": k.Netns,
		"flows_share":  max(about.MaxFlows/2, 1),

		"timeout_tcp_syn":         about.Timeouts[0],
		"timeout_tcp_established": about.Timeouts[1],
		"timeout_tcp_half_closed": about.Timeouts[2],
		"timeout_tcp_closed":      about.Timeouts[3],
		"timeout_udp_unreplied":   about.Timeouts[4],
		"timeout_udp_replied":     about.Timeouts[5],
		"timeout_icmp":            about.Timeouts[6],
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("set %s: %w", name, err)
		}
	}
	return spec, nil
}

// sized returns the object with its maps as they will be.
func sized(maxFlows uint32) (*ebpf.CollectionSpec, error) {
	spec, err := loadDatapath()
	if err != nil {
		return nil, fmt.Errorf("read the object: %w", err)
	}
	spec.Maps["flows"].MaxEntries = 2 * maxFlows
	spec.Maps["sweep_queue"].MaxEntries = 2*maxFlows + 1024 // the same one may be in it twice for a while
	for name, m := range spec.Maps {
		if name[0] != '.' && !slices.Contains(transient, name) {
			m.Pinning = ebpf.PinByName
		}
	}
	return spec, nil
}

// Open finds the pinned datapath. Returns ErrNotLoaded if there is none, ErrOtherVersion
// if there is one of another layout.
func Open(bpffs string) (*Datapath, error) {
	d, err := openHere(bpffs)
	if errors.Is(err, ErrNotLoaded) {
		if other, oerr := inCharge(bpffs); oerr == nil && other != layoutOf(bpffs) {
			return nil, ErrOtherVersion
		}
	}
	return d, err
}

// openHere is Open without regard to other layouts.
func openHere(bpffs string) (*Datapath, error) {
	d := newDatapath(layoutOf(bpffs))
	m, err := d.pinned("about")
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return nil, ErrNotLoaded
		}
		return nil, err
	}
	if err := m.Lookup(uint32(0), &d.about); err != nil {
		_ = d.Close()
		return nil, fmt.Errorf("read map about: %w", err)
	}
	if d.about.MaxFlows == 0 { // created, but never finished
		_ = d.Close()
		return nil, ErrNotLoaded
	}
	if err := d.about.check(); err != nil {
		_ = d.Close()
		return nil, err
	}
	return d, nil
}

// Close releases the file descriptors; the kernel keeps everything.
func (d *Datapath) Close() error {
	var errs []error
	for _, m := range d.maps {
		errs = append(errs, m.Close())
	}
	for _, p := range d.progs {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}

// Config returns what the programs were loaded with.
func (d *Datapath) Config() Config {
	return Config{
		FastPath:   d.about.FastPath == 1,
		MaxFlows:   int(d.about.MaxFlows),
		Secret:     d.about.Secret,
		Timeouts:   timeoutsOf(d.about.Timeouts),
		DisableTCX: d.about.NoTcx == 1,
	}
}

// program opens a pinned program, and remembers it until Close.
func (d *Datapath) program(hook Hook) (*ebpf.Program, error) {
	if p := d.progs[hook]; p != nil {
		return p, nil
	}
	p, err := ebpf.LoadPinnedProgram(d.pins.program(string(hook)), nil)
	if err != nil {
		return nil, fmt.Errorf("open program %s: %w", hook, explain(err))
	}
	d.progs[hook] = p
	return p, nil
}
