package bench

import (
	"testing"
	"time"
)

func TestParseCPUTime(t *testing.T) {
	before, err := parseCPUTime("cpu  100 5 50 1000 20 3 7 400 60 1\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
	if err != nil {
		t.Fatal(err)
	}
	// Time that a hypervisor took (400) is none of ours, and a guest's (60) is in the user's.
	if want := (cpuTime{busy: 1650 * time.Millisecond, idle: 10200 * time.Millisecond}); before != want {
		t.Errorf("read %+v, want %+v", before, want)
	}
	after := cpuTime{before.busy + 3*time.Second, before.idle + time.Second}
	if share := after.since(before).share(); share != 0.75 {
		t.Errorf("share %v, want 0.75", share)
	}
	if share := (cpuTime{}).share(); share != 0 {
		t.Errorf("share %v of no time, want 0", share)
	}
	for _, stat := range []string{"", "cpu 1 2 3\n", "intr 1 2 3 4 5 6 7 8\n", "cpu 1 2 3 4 x 6 7 8\n"} {
		if _, err := parseCPUTime(stat); err == nil {
			t.Errorf("%q is understood", stat)
		}
	}
}
