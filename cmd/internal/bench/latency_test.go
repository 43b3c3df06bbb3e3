package bench

import (
	"testing"
	"time"
)

// TestTimesSample: a thousand repetitions of 1 to 1,000 µs, in any order.
func TestTimesSample(t *testing.T) {
	var each times
	for i := range 1000 {
		took := time.Duration((i*7)%1000+1) * time.Microsecond
		each.each = append(each.each, took)
		each.all += took
	}
	s, err := each.sample()
	if err != nil {
		t.Fatal(err)
	}
	if want := 1000 / 0.5005; s.value < want-0.01 || s.value > want+0.01 {
		t.Errorf("%v a second, want %v", s.value, want)
	}
	for name, want := range map[string]float64{"p50_ns": 500e3, "p90_ns": 900e3, "p99_ns": 990e3, "p999_ns": 999e3} {
		if s.extra[name] != want {
			t.Errorf("%s is %v, want %v", name, s.extra[name], want)
		}
	}
	one := times{each: []time.Duration{7}, all: 7}
	if s, err := one.sample(); err != nil || s.extra["p50_ns"] != 7 || s.extra["p999_ns"] != 7 {
		t.Errorf("one repetition of 7 ns: %v, %v", s, err)
	}
	if s, err := new(times).sample(); err == nil {
		t.Errorf("nothing at all is %v", s)
	}
}

// TestStrangers: as many as a case asks for, all of the prefix and all different.
func TestStrangers(t *testing.T) {
	seen := make(map[string]bool)
	for i := range newFlowsMost + 2 {
		addr := stranger(i)
		if !strangers.Contains(addr) || addr == strangers.Addr() || seen[addr.String()] {
			t.Fatalf("stranger %d is %s", i, addr)
		}
		seen[addr.String()] = true
	}
	for _, i := range []int{1<<17 - 3, 1<<17 - 2, 1 << 20} {
		if addr := stranger(i); !strangers.Contains(addr) || addr.String() == "198.19.255.255" {
			t.Errorf("stranger %d is %s", i, addr)
		}
	}
	if stranger(1<<17-2) != stranger(0) {
		t.Errorf("after the last one comes %s", stranger(1<<17-2))
	}
}

// TestCases: names are their group and a way, and what a report needs is there.
func TestCases(t *testing.T) {
	seen := make(map[string]bool)
	for _, p := range parts() {
		for _, c := range p.cases {
			if seen[c.Name] || c.Title == "" || c.Unit == "" || c.Note == "" || c.Better != "higher" && c.Better != "lower" {
				t.Errorf("case %+v", c)
			}
			seen[c.Name] = true
			if len(c.Name) <= len(c.Group) || c.Name[:len(c.Group)+1] != c.Group+"/" {
				t.Errorf("case %s is of group %s", c.Name, c.Group)
			}
		}
	}
	for _, name := range quickCases {
		if !seen[name] {
			t.Errorf("a quick run has %s, which is no case", name)
		}
	}
}
