package datapath

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/ebnet/ebnet/loader"
)

// older is the layout that the tests call the present one, as if another version had loaded it.
const older = "v9"

// heritage is a datapath of another version, with links and a conversation.
type heritage struct {
	*host
	cfg   loader.Config
	links map[string]link.ID // by the names of their pins
	about []byte
}

var heritageHooks = map[loader.Hook]func(h *host) int{
	loader.FromUplink:    func(h *host) int { return h.uplink },
	loader.ToUplink:      func(h *host) int { return h.uplink },
	loader.FromContainer: func(h *host) int { return h.a },
	loader.FromBridge:    func(h *host) int { return h.bridge },
}

func newHeritage(t *testing.T) *heritage {
	t.Helper()
	h := &heritage{cfg: loader.Config{FastPath: true, MaxFlows: 4096, Secret: 7}}
	h.host = newHostWith(t, h.cfg)
	if !h.dp.TCX() {
		t.Skip("SKIP: this kernel has no tcx (Linux 6.6), and clsact filters are package netdev's")
	}
	for hook, device := range heritageHooks {
		must(t, h.dp.Attach(hook, device(h.host)))
	}
	establish(h.host, 5000)
	h.links = h.linkIDs(filepath.Join(h.dir, "v2"))
	m := h.aboutOf("v2")
	about, err := m.LookupBytes(uint32(0))
	must(t, err)
	must(t, m.Close())
	h.about = about
	must(t, h.dp.Close())
	must(t, os.Rename(filepath.Join(h.dir, "v2"), filepath.Join(h.dir, older)))
	return h
}

func (h *heritage) linkIDs(dir string) map[string]link.ID {
	h.Helper()
	ids := map[string]link.ID{}
	entries, err := os.ReadDir(filepath.Join(dir, "links"))
	must(h.TB, err)
	for _, e := range entries {
		l, err := link.LoadPinnedLink(filepath.Join(dir, "links", e.Name()), nil)
		must(h.TB, err)
		info, err := l.Info()
		must(h.TB, err)
		must(h.TB, l.Close())
		ids[e.Name()] = info.ID
	}
	return ids
}

func (h *heritage) aboutOf(version string) *ebpf.Map {
	h.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(h.dir, version, "maps", "about"), nil)
	must(h.TB, err)
	return m
}

// setAbout makes a layout's datapath complete, or not.
func (h *heritage) setAbout(version string, complete bool) {
	h.Helper()
	m := h.aboutOf(version)
	defer func() { _ = m.Close() }()
	value := make([]byte, len(h.about))
	if complete {
		value = h.about
	}
	must(h.TB, m.Put(uint32(0), value))
}

// swapLinks gives some links the present layout's programs and moves their pins, as a swap does that is
// then cut short.
func (h *heritage) swapLinks(n int) {
	h.Helper()
	for _, name := range slices.Sorted(maps.Keys(h.links))[:n] {
		hook, _, _ := strings.Cut(name, "-")
		prog, err := ebpf.LoadPinnedProgram(filepath.Join(h.dir, "v2", "progs", hook), nil)
		must(h.TB, err)
		path := filepath.Join(h.dir, older, "links", name)
		l, err := link.LoadPinnedLink(path, nil)
		must(h.TB, err)
		must(h.TB, l.Update(prog))
		must(h.TB, l.Close())
		must(h.TB, prog.Close())
		must(h.TB, os.Rename(path, filepath.Join(h.dir, "v2", "links", name)))
	}
}

// load is Load with everything that a command does then.
func (h *heritage) load(wantStaged bool) {
	h.Helper()
	dp, _, err := loader.Load(h.dir, h.cfg)
	must(h.TB, err)
	if dp.Staged() != wantStaged {
		h.Errorf("staged is %v", dp.Staged())
	}
	h.dp = dp
	h.Cleanup(func() { _ = dp.Close() })
	h.fill()
	must(h.TB, dp.Swap())
}

// check wants the present layout alone, the same links with its programs, and the conversation.
func (h *heritage) check() {
	h.Helper()
	entries, err := os.ReadDir(h.dir)
	must(h.TB, err)
	var dirs []string
	for _, e := range entries {
		if e.IsDir() {
			dirs = append(dirs, e.Name())
		}
	}
	if !slices.Equal(dirs, []string{"v2"}) {
		h.Errorf("layouts: %v", dirs)
	}
	for name, id := range h.linkIDs(filepath.Join(h.dir, "v2")) {
		if h.links[name] != id {
			h.Errorf("link %s is %d, was %d", name, id, h.links[name])
		}
	}
	for hook, device := range heritageHooks {
		if !h.dp.Attached(hook, device(h.host)) {
			h.Errorf("%s does not run", hook)
		}
	}
	h.expect(loader.FromContainer, h.a, fromA(tcp, ack, 5000, remote, 80), loader.Redirect, nil)
	h.reply(fromOutside(tcp, ack, remote, 80, hostAddr, 5000))
	if s, err := h.dp.Sweep(); err != nil || s.Confirmed == 0 {
		h.Errorf("what reclaims conversations has %d of them, %v", s.Confirmed, err)
	}
	if current, err := h.dp.Current(); err != nil || !current {
		h.Errorf("current is %v, %v", current, err)
	}
}

// Another version's datapath is taken over whole, from whatever moment of a swap, in either direction, that a killed
// command has left; links go on without an end, and conversations with them.
func TestPrivilegedHandover(t *testing.T) {
	for name, test := range map[string]struct {
		left   func(h *heritage)
		staged bool
	}{
		"as it was": {func(*heritage) {}, true},
		"a staged one was left": {func(h *heritage) {
			dp, _, err := loader.Load(h.dir, h.cfg)
			must(t, err)
			must(t, dp.Close())
		}, true},
		"half a staged one was left": {func(h *heritage) {
			must(t, os.MkdirAll(filepath.Join(h.dir, "v2", "maps"), 0o700))
		}, true},
		"neither is complete": {func(h *heritage) {
			dp, _, err := loader.Load(h.dir, h.cfg)
			must(t, err)
			must(t, dp.Close())
			h.setAbout(older, false)
		}, false},
		"the new one is complete": {func(h *heritage) {
			dp, _, err := loader.Load(h.dir, h.cfg)
			must(t, err)
			must(t, dp.Close())
			h.setAbout(older, false)
			h.setAbout("v2", true)
		}, false},
		"some links are swapped": {func(h *heritage) {
			dp, _, err := loader.Load(h.dir, h.cfg)
			must(t, err)
			must(t, dp.Close())
			h.setAbout(older, false)
			h.setAbout("v2", true)
			h.swapLinks(2)
		}, false},
		"all links are swapped": {func(h *heritage) {
			dp, _, err := loader.Load(h.dir, h.cfg)
			must(t, err)
			must(t, dp.Close())
			h.setAbout(older, false)
			h.setAbout("v2", true)
			h.swapLinks(len(h.links))
		}, false},
		"the other direction, some links swapped": {func(h *heritage) {
			dp, _, err := loader.Load(h.dir, h.cfg)
			must(t, err)
			must(t, dp.Close())
			h.swapLinks(2)
		}, true},
		"the older one is half removed": {func(h *heritage) {
			dp, _, err := loader.Load(h.dir, h.cfg)
			must(t, err)
			must(t, dp.Swap())
			must(t, dp.Close())
			must(t, os.MkdirAll(filepath.Join(h.dir, older, "maps"), 0o700))
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHeritage(t)
			test.left(h)
			h.load(test.staged)
			h.check()
		})
	}
}

// Until Swap the other version's datapath does all the work; giving up leaves nothing.
func TestPrivilegedHandoverAbandoned(t *testing.T) {
	h := newHeritage(t)
	if _, err := loader.Open(h.dir); !errors.Is(err, loader.ErrOtherVersion) {
		t.Fatalf("open: %v", err)
	}
	dp, _, err := loader.Load(h.dir, h.cfg)
	must(t, err)
	for hook, device := range heritageHooks {
		if !dp.Attached(hook, device(h.host)) {
			t.Errorf("%s does not run", hook)
		}
	}
	must(t, dp.Attach(loader.FromContainer, h.b)) // an endpoint that comes meanwhile
	must(t, dp.Detach(loader.FromContainer, h.b))
	must(t, dp.Abandon())
	if _, err := os.Stat(filepath.Join(h.dir, "v2")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was staged is there still: %v", err)
	}
	for name, id := range h.linkIDs(filepath.Join(h.dir, older)) {
		if h.links[name] != id {
			t.Errorf("link %s is %d, was %d", name, id, h.links[name])
		}
	}
	for name, cfg := range map[string]loader.Config{
		"another table size": {FastPath: true, MaxFlows: 1000, Secret: 7},
		"another attachment": {FastPath: true, MaxFlows: 4096, Secret: 7, DisableTCX: true},
	} {
		if _, _, err := loader.Load(h.dir, cfg); !errors.Is(err, loader.ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	h.load(true)
	h.check()
}

// replaceMap makes a map of the older layout one with other types.
func (h *heritage) replaceMap(name string, change func(*ebpf.MapSpec)) {
	h.Helper()
	path := filepath.Join(h.dir, older, "maps", name)
	old, err := ebpf.LoadPinnedMap(path, nil)
	must(h.TB, err)
	spec := &ebpf.MapSpec{Type: old.Type(), KeySize: old.KeySize(), ValueSize: old.ValueSize(),
		MaxEntries: old.MaxEntries(), Flags: old.Flags()}
	must(h.TB, old.Close())
	change(spec)
	m, err := ebpf.NewMap(spec)
	must(h.TB, err)
	must(h.TB, os.Remove(path))
	must(h.TB, m.Pin(path))
	must(h.TB, m.Close())
}

// What is not known to be the same is not taken over; conversations only go together.
func TestPrivilegedHandoverOfOtherMaps(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*ebpf.MapSpec)
		lost   []string
		cut    int
	}{
		"endpoints":   {func(s *ebpf.MapSpec) { s.ValueSize += 4 }, nil, 0},
		"services":    {func(s *ebpf.MapSpec) { s.MaxEntries *= 2 }, nil, 0},
		"drop_counts": {func(s *ebpf.MapSpec) { s.ValueSize += 8 }, nil, 0},
		"gens":        {func(s *ebpf.MapSpec) { s.ValueSize = 8 }, []string{"gens"}, 1},
		"shares":      {func(*ebpf.MapSpec) {}, []string{"shares"}, 1}, // the same size, and no types to prove it
		"sweepers":    {func(s *ebpf.MapSpec) { s.ValueSize += 8 }, []string{"sweepers"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHeritage(t)
			h.replaceMap(name, test.change)
			o, err := loader.FindHandover(h.dir)
			must(t, err)
			if o.ABI != 9 || o.Cut != test.cut || !slices.Equal(o.Lost, test.lost) {
				t.Errorf("handover %+v, want %v lost and %d conversations cut", o, test.lost, test.cut)
			}
			h.load(true)
			if test.cut == 0 {
				h.check()
				return
			}
			n := 0
			must(t, h.dp.Flows(func(loader.Flow) bool { n++; return true }))
			if n != 0 {
				t.Errorf("%d conversations", n)
			}
			establish(h.host, 5001)
		})
	}
}
