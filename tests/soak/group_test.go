package soak

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// group is a memory cgroup that this process and all that it starts are in, so that what
// the kernel allocates for them can be told from what it does for others.
type group struct {
	dir   string // "": there is none
	usage func() (kB int, err error)
}

// enterGroup makes the group and enters it; where the kernel has none, or not for us, the
// result says that nothing is to be seen.
func enterGroup(tb testing.TB) *group {
	tb.Helper()
	g := &group{}
	before, usage := memoryGroup()
	if before == "" {
		tb.Log("no memory cgroup: kernel memory is counted for the whole machine only")
		return g
	}
	parent := before
	if usage == "memory.stat" { // version 2: inner groups have no processes
		parent = "/sys/fs/cgroup"
	}
	sweepGroups(parent)
	dir := filepath.Join(parent, fmt.Sprintf("ebl%d-soak", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		tb.Logf("no memory cgroup: %v", err)
		return g
	}
	move := func(to string) error {
		return os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
	}
	tb.Cleanup(func() {
		if err := move(before); err != nil {
			tb.Errorf("leave the memory cgroup: %v", err)
		}
		if err := os.Remove(dir); err != nil {
			tb.Errorf("remove the memory cgroup: %v", err)
		}
	})
	if err := move(dir); err != nil {
		tb.Logf("no memory cgroup: %v", err)
		return g
	}
	g.dir = dir
	g.usage = func() (int, error) {
		if usage == "memory.stat" {
			words := find(filepath.Join(dir, usage), "kernel")
			if len(words) < 2 {
				return 0, fmt.Errorf("%s of %s has no line of the kernel's", usage, dir)
			}
			bytes, err := strconv.Atoi(words[1])
			return bytes >> 10, err
		}
		text, err := os.ReadFile(filepath.Join(dir, usage))
		if err != nil {
			return 0, err
		}
		bytes, err := strconv.Atoi(strings.TrimSpace(string(text)))
		return bytes >> 10, err
	}
	return g
}

// sweepGroups removes those of runs that were killed.
func sweepGroups(parent string) {
	dirs, _ := filepath.Glob(filepath.Join(parent, "ebl*-soak"))
	for _, dir := range dirs {
		var pid int
		if _, err := fmt.Sscanf(filepath.Base(dir), "ebl%d-soak", &pid); err == nil && unix.Kill(pid, 0) == unix.ESRCH {
			_ = os.Remove(dir) // it is not if it is in use after all
		}
	}
}

// memoryGroup is the directory of the memory cgroup that this process is in, and the file
// there that tells of the kernel's memory. It is "" where the controller is not in use.
func memoryGroup() (dir, usage string) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", ""
	}
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && slices.Contains(strings.Split(f[1], ","), "memory") {
			dir = filepath.Join("/sys/fs/cgroup/memory", f[2])
			if _, err := os.Stat(filepath.Join(dir, "memory.kmem.usage_in_bytes")); err == nil {
				return dir, "memory.kmem.usage_in_bytes"
			}
		}
	}
	control, err := os.ReadFile("/sys/fs/cgroup/cgroup.subtree_control")
	_, path, ok := strings.Cut(string(text), "0::")
	if err != nil || !ok || !strings.Contains(string(control), "memory") {
		return "", ""
	}
	return filepath.Join("/sys/fs/cgroup", strings.TrimSpace(path)), "memory.stat"
}
