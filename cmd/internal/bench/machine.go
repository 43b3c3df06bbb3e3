package bench

import (
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/cmd/internal/bench/report"
)

// machine tells where it is measured, as far as can be seen.
func machine(version string, cpu int) report.Machine {
	m := report.Machine{CPU: runtime.GOARCH, CPUs: runtime.NumCPU(), Ebnet: version, PinnedTo: cpu}
	info := procFile("/proc/cpuinfo")
	for _, name := range []string{"model name", "Model", "cpu model"} { // by architecture
		if v := info[name]; v != "" {
			m.CPU = v
			break
		}
	}
	if kb, _, ok := strings.Cut(procFile("/proc/meminfo")["MemTotal"], " "); ok {
		n, _ := strconv.Atoi(kb) // 0 where it is not understood
		m.MemoryMB = n / 1024
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		m.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	m.Virtual = hypervisor(info["flags"])
	return m
}

// hypervisor is the name of what the machine runs on if it is virtual.
func hypervisor(flags string) string {
	for _, path := range []string{"/sys/hypervisor/type", "/sys/class/dmi/id/sys_vendor"} {
		b, err := os.ReadFile(path)
		name := strings.TrimSpace(string(b))
		if err == nil && name != "" && (strings.Contains(path, "hypervisor") || hasFlag(flags)) {
			return name
		}
	}
	if hasFlag(flags) {
		return "unknown"
	}
	return ""
}

// hasFlag reports whether the CPU says that it is a virtual one.
func hasFlag(flags string) bool { return strings.Contains(" "+flags+" ", " hypervisor ") }

// procFile reads lines of the form "name: value"; of several with one name the first holds.
func procFile(path string) map[string]string {
	values := make(map[string]string)
	b, _ := os.ReadFile(path) // nothing is known of what cannot be read
	for line := range strings.Lines(string(b)) {
		name, value, ok := strings.Cut(line, ":")
		name = strings.TrimSpace(name)
		if _, seen := values[name]; ok && !seen {
			values[name] = strings.TrimSpace(value)
		}
	}
	return values
}
