package bench

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// process is what one process occupies.
type process struct {
	name     string
	resident float64 // bytes, each shared page counted whole
	share    float64 // bytes, each shared page counted in parts; 0 where the kernel does not tell
}

// processesIn returns the processes in a namespace by their ids, but for this one, a thread of
// which may be there.
func processesIn(n *node) (map[int]process, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	found := make(map[int]process)
	for _, dir := range dirs {
		var ns unix.Stat_t
		if unix.Stat(filepath.Join(dir, "ns/net"), &ns) != nil || ns.Ino != n.ns.Inode || ns.Dev != n.ns.Dev {
			continue // elsewhere, or gone meanwhile
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return nil, err
		}
		if pid == os.Getpid() {
			continue
		}
		p, err := readProcess(dir)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("memory of a process: %w", err)
		}
		found[pid] = p
	}
	return found, nil
}

func readProcess(dir string) (process, error) {
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return process{}, err
	}
	p := process{name: field(string(status), "Name:"), resident: kilobytes(string(status), "VmRSS:")}
	if rollup, err := os.ReadFile(filepath.Join(dir, "smaps_rollup")); err == nil {
		p.share = kilobytes(string(rollup), "Pss:")
	}
	return p, nil
}

// field returns the first word after a label at the start of a line.
func field(text, label string) string {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, label); ok {
			if words := strings.Fields(value); len(words) > 0 {
				return words[0]
			}
		}
	}
	return ""
}

// kilobytes returns such a field in bytes, 0 if it is not there.
func kilobytes(text, label string) float64 {
	n, _ := strconv.ParseFloat(field(text, label), 64)
	return n * 1024
}

// stays sums up the processes that have come to stay. A container's shim is there for the
// container, whatever it publishes.
func stays(before, after map[int]process) map[string]float64 {
	sum := map[string]float64{"processes": 0, "rss_bytes": 0, "pss_bytes": 0}
	for pid, p := range after {
		if _, old := before[pid]; old || strings.HasPrefix(p.name, "containerd-shim") {
			continue
		}
		sum["processes"]++
		sum["rss_bytes"] += p.resident
		sum["pss_bytes"] += p.share
	}
	return sum
}
