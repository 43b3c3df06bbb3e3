package netlab

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// prefix starts the name of all that labs make; the id of the process that
// made it follows.
const prefix = "ebl"

// sweep takes away the labs of test runs that were killed: a run that is
// interrupted has no time to do so itself.
func sweep() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	for _, dir := range dirs {
		name := filepath.Base(dir)
		var pid int
		if _, err := fmt.Sscanf(name, prefix+"%d-", &pid); err != nil || running(pid) {
			continue
		}
		fmt.Fprintln(os.Stderr, "netlab: sweeping up", name)
		namespaces, _ := filepath.Glob(filepath.Join(netnsDir, name+"-*"))
		for _, path := range namespaces {
			if err := batch("netns del " + filepath.Base(path) + "\n"); err != nil {
				fmt.Fprintln(os.Stderr, "netlab:", err)
			}
		}
		_ = unix.Unmount(filepath.Join(dir, "bpf"), 0) // may be unmounted already
		if cgroup := cgroupDir(name); cgroup != "" {
			_ = os.Remove(cgroup) // may be gone already
		}
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintln(os.Stderr, "netlab:", err)
		}
	}
}

// running reports whether there is a process with the id.
func running(pid int) bool { return unix.Kill(pid, 0) != unix.ESRCH }
