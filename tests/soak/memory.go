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

	// Of the machine, in kB: /proc/meminfo.
	Unreclaimable int `json:"slab_unreclaimable_kb"`
	PerCPU        int `json:"percpu_kb"`
	Namespaces    int `json:"net_namespaces"` // active objects of the slab cache, -1: not to be seen
}

// takeSample looks at everything once. Objects that vanish meanwhile are passed over.
func takeSample(tb testing.TB, h *netlab.Host, begin time.Time) sample {
	tb.Helper()
	s := sample{Seconds: time.Since(begin).Seconds(), Devices: len(h.Links(tb)), Namespaces: -1}
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

// lines sums the samples up.
func lines(samples []sample, alone bool) []line {
	all := []line{
		fit("bytes of maps", samples, func(s sample) int { return s.Maps }),
		fit("programs", samples, func(s sample) int { return s.Programs }),
		fit("links", samples, func(s sample) int { return s.Links }),
		fit("pins", samples, func(s sample) int { return s.Pins }),
		fit("devices of the host", samples, func(s sample) int { return s.Devices }),
		fit("bytes of the state file", samples, func(s sample) int { return s.State }),
		fit("slab that cannot be reclaimed (kB, machine)", samples, func(s sample) int { return s.Unreclaimable }),
		fit("per-CPU memory (kB, machine)", samples, func(s sample) int { return s.PerCPU }),
		fit("network namespaces (machine)", samples, func(s sample) int { return s.Namespaces }),
	}
	bound := func(i int, growth float64, why string) { all[i].Bound, all[i].Why = growth, why }
	bound(0, 256<<10, "entries come and go with conversations, which the load keeps below some thousand of 300 bytes; one leaked in each operation would be more in ten minutes")
	bound(1, 12, "a set that was replaced may be waiting to be freed: there are as many programs as in a set")
	bound(2, 20, "endpoints and networks of the walk: its names allow for no more than so many of a difference")
	bound(3, 20, "as links")
	bound(4, 20, "as links")
	bound(5, 64<<10, "the file grows in steps of its pages and never shrinks: to the most that was ever recorded at a time")
	if alone {
		bound(6, 8<<10, "one pair of devices leaked in each tenth operation would be 16 kB each time: more than this in ten minutes")
		bound(7, 1<<10, "the same")
	}
	return all
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
