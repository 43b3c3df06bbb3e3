package soak

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/ebnet/ebnet/tests/netlab"
)

// sample is what is held at one time. What is the lab's own is counted by what its pinned
// maps are used by, so that others on the machine do not matter.
type sample struct {
	Seconds float64 `json:"seconds"`

	// Of the lab: bytes of its maps as the kernel charges them, programs that use its
	// maps, links of those programs, pins, devices of the host, the state file's bytes.
	Maps     int `json:"map_bytes"`
	Programs int `json:"programs"`
	Links    int `json:"links"`
	Pins     int `json:"pins"`
	Devices  int `json:"devices"`
	State    int `json:"state_bytes"`

	// What the kernel has allocated for the commands and the traffic, in kB; -1: not to be
	// seen. Maps are in it.
	Kernel int `json:"kernel_kb"`

	// Of the machine, in kB: /proc/meminfo.
	Unreclaimable int `json:"slab_unreclaimable_kb"`
	PerCPU        int `json:"percpu_kb"`
	Namespaces    int `json:"net_namespaces"` // active objects of the slab cache, -1: not to be seen
}

// takeSample looks at everything once. Objects that vanish meanwhile are passed over.
func takeSample(tb testing.TB, h *netlab.Host, g *group, begin time.Time) sample {
	tb.Helper()
	s := sample{Seconds: time.Since(begin).Seconds(), Devices: len(h.Links(tb)), Kernel: -1, Namespaces: -1}
	if g.dir != "" {
		var err error
		if s.Kernel, err = g.usage(); err != nil {
			tb.Errorf("kernel memory: %v", err)
		}
	}
	pins := h.Pins(tb)
	s.Pins = len(pins)
	own := map[ebpf.MapID]bool{}
	for _, path := range pins {
		if filepath.Base(filepath.Dir(path)) != "maps" {
			continue
		}
		m, err := ebpf.LoadPinnedMap(path, nil)
		if err != nil {
			continue
		}
		if info, err := m.Info(); err == nil {
			id, _ := info.ID()
			own[id] = true
			bytes, _ := info.Memlock()
			s.Maps += int(bytes)
		}
		m.Close()
	}
	programs := ownPrograms(own)
	s.Programs = len(programs)
	it := new(link.Iterator)
	for it.Next() {
		if info, err := it.Link.Info(); err == nil && programs[info.Program] {
			s.Links++
		}
	}
	it.Close()
	if info, err := os.Stat(filepath.Join(h.State, "ebnet.db")); err == nil {
		s.State = int(info.Size())
	}
	s.Unreclaimable, s.PerCPU = meminfo("SUnreclaim:"), meminfo("Percpu:")
	if line := find("/proc/slabinfo", "net_namespace"); len(line) > 1 {
		s.Namespaces, _ = strconv.Atoi(line[1])
	}
	return s
}

// ownPrograms are those in the kernel that use one of the maps, pinned or not.
func ownPrograms(maps map[ebpf.MapID]bool) map[ebpf.ProgramID]bool {
	own := map[ebpf.ProgramID]bool{}
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) || err != nil {
			return own
		}
		id = next
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue
		}
		if info, err := p.Info(); err == nil {
			used, _ := info.MapIDs()
			own[id] = slices.ContainsFunc(used, func(m ebpf.MapID) bool { return maps[m] })
			if !own[id] {
				delete(own, id)
			}
		}
		p.Close()
	}
}

func meminfo(name string) int {
	line := find("/proc/meminfo", name)
	if len(line) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(line[1])
	return n
}

// find returns the words of the line that starts with the word.
func find(path, word string) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if words := strings.Fields(lines.Text()); len(words) > 0 && words[0] == word {
			return words
		}
	}
	return nil
}

// line sums up one number of all samples.
type line struct {
	What   string  `json:"what"`
	First  float64 `json:"first"`
	Median float64 `json:"median"`
	Last   float64 `json:"last"`
	Slope  float64 `json:"slope_per_minute"` // least squares
	Growth float64 `json:"growth"`           // median of the last third less that of the first one
	Bound  float64 `json:"bound,omitempty"`  // of the growth; 0: only told
	Why    string  `json:"why,omitempty"`    // this bound
}

// warm is when conversations that are over are given back as fast as new ones come: the
// sweeper looks at each within a minute.
const warm = 90 * time.Second

// lines sums the samples up. Only a whole soak is long enough to bound what grows and
// shrinks with the traffic; the samples of its beginning are left out there.
func lines(samples []sample, long bool) []line {
	late := samples
	if long {
		late = slices.DeleteFunc(slices.Clone(samples), func(s sample) bool { return s.Seconds < warm.Seconds() })
	}
	names := "endpoints and networks of the walk come and go, and its names allow for no more at a time"
	all := []line{
		fit("bytes of maps", late, func(s sample) int { return s.Maps }),
		fit("kernel memory without maps (kB)", late, func(s sample) int { return s.Kernel - s.Maps>>10 }),
		fit("programs", samples, func(s sample) int { return s.Programs }).bounded(18, "a set that was replaced may wait to be freed"),
		fit("links", samples, func(s sample) int { return s.Links }).bounded(26, names),
		fit("pins", samples, func(s sample) int { return s.Pins }).bounded(26, names),
		fit("devices of the host", samples, func(s sample) int { return s.Devices }).bounded(20, names),
		fit("bytes of the state file", samples, func(s sample) int { return s.State }).bounded(384<<10,
			"the file has room for the most that was ever recorded and for a copy, and grows in steps; a record of 300 bytes left in each operation would be more"),
		fit("machine: slab not reclaimable (kB)", late, func(s sample) int { return s.Unreclaimable }),
		fit("machine: per-CPU memory (kB)", late, func(s sample) int { return s.PerCPU }),
		fit("machine: network namespaces", samples, func(s sample) int { return s.Namespaces }),
	}
	if long {
		all[0] = all[0].bounded(2<<20, "some 6,000 conversations of 700 bytes are held, more or less by the load; one that stayed in each second would be the half of this")
		if len(late) > 0 && late[0].Kernel >= 0 {
			all[1] = all[1].bounded(4<<10, "one pair of devices in each hundred operations, at 16 kB, or one set of programs in each minute, at 500 kB, would be more")
		}
	}
	return all
}

func (l line) bounded(growth float64, why string) line {
	l.Bound, l.Why = growth, why
	return l
}

func (l line) flat() bool { return l.Bound == 0 || l.Growth <= l.Bound }

func (l line) String() string {
	return fmt.Sprintf("%-45s %12.0f %12.0f %12.0f %12.1f %12.0f", l.What, l.First, l.Median, l.Last, l.Slope, l.Growth)
}

func fit(what string, samples []sample, of func(sample) int) line {
	values := make([]float64, len(samples))
	var t, v, tt, tv float64
	for i, s := range samples {
		x, y := s.Seconds/60, float64(of(s))
		values[i] = y
		t, v, tt, tv = t+x, v+y, tt+x*x, tv+x*y
	}
	n := float64(len(samples))
	l := line{What: what}
	if len(values) == 0 {
		return l
	}
	l.First, l.Last, l.Median = values[0], values[len(values)-1], median(values)
	if d := n*tt - t*t; d > 0 {
		l.Slope = (n*tv - t*v) / d
	}
	third := (len(values) + 2) / 3
	l.Growth = median(values[len(values)-third:]) - median(values[:third])
	return l
}

func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	return s[len(s)/2]
}
