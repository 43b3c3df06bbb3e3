package netlab

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"golang.org/x/sys/unix"
)

// prefix starts the name of all that labs make; the id of the process that
// made it follows.
const prefix = "ebl"

// labName is what the name of a lab's directory, and of its namespaces, starts with.
var labName = regexp.MustCompile("^" + prefix + "([0-9]+)-[0-9a-z]+")

// sweep takes away the labs of test runs that were killed: a run that is
// interrupted has no time to do so itself. What was killed while it did may have left only a part.
func sweep() {
	left := make(map[string]bool)
	for _, pattern := range []string{filepath.Join(os.TempDir(), prefix+"*"), filepath.Join(netnsDir, prefix+"*")} {
		paths, _ := filepath.Glob(pattern)
		for _, path := range paths {
			m := labName.FindStringSubmatch(filepath.Base(path))
			if m == nil {
				continue
			}
			if pid, err := strconv.Atoi(m[1]); err == nil && !running(pid) {
				left[m[0]] = true
			}
		}
	}
	for name := range left {
		sweepLab(name)
	}
}

func sweepLab(name string) {
	fmt.Fprintln(os.Stderr, "netlab: sweeping up", name)
	namespaces, _ := filepath.Glob(filepath.Join(netnsDir, name+"-*"))
	for _, path := range namespaces {
		if err := batch("netns del " + filepath.Base(path) + "\n"); err != nil {
			fmt.Fprintln(os.Stderr, "netlab:", err)
		}
	}
	if cgroup := cgroupDir(name); cgroup != "" {
		_ = os.Remove(cgroup) // may be gone already
	}
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), name+"*"))
	for _, dir := range dirs {
		_ = unix.Unmount(filepath.Join(dir, "bpf"), 0) // may be unmounted already
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintln(os.Stderr, "netlab:", err)
		}
	}
}

// running reports whether there is a process with the id.
func running(pid int) bool { return unix.Kill(pid, 0) != unix.ESRCH }
