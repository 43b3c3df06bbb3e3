package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of /proc/stat, 1/100 s on every architecture that Go runs on.
const tick = 10 * time.Millisecond

// cpuTime is how long all CPUs of the machine together have worked and have been idle.
type cpuTime struct{ busy, idle time.Duration }

func readCPUTime() (cpuTime, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return cpuTime{}, err
	}
	return parseCPUTime(string(b))
}

// parseCPUTime reads the first line of /proc/stat. Time that a hypervisor gave to others is
// neither work nor idle; a guest's is in the user's already.
func parseCPUTime(stat string) (t cpuTime, err error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 || fields[0] != "cpu" {
		return t, fmt.Errorf("/proc/stat starts with %q", line)
	}
	var ticks [7]time.Duration // user, nice, system, idle, iowait, irq, softirq
	for i := range ticks {
		n, err := strconv.ParseInt(fields[i+1], 10, 64)
		if err != nil {
			return t, fmt.Errorf("/proc/stat: %w", err)
		}
		ticks[i] = time.Duration(n) * tick
	}
	t.idle = ticks[3] + ticks[4]
	t.busy = ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6]
	return t, nil
}

// since is what has been added since an earlier reading.
func (t cpuTime) since(before cpuTime) cpuTime {
	return cpuTime{t.busy - before.busy, t.idle - before.idle}
}

// share is the part of the time that was work.
func (t cpuTime) share() float64 {
	if t.busy+t.idle <= 0 {
		return 0
	}
	return float64(t.busy) / float64(t.busy+t.idle)
}
