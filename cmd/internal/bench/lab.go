package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/loader/netdev"
)

// prefix starts the name of all that a benchmark makes; the id of the process that made it
// follows, and then "-" or nothing.
const prefix = "ebb"

// lab is everything that a run has made. Nothing of the host is in it.
type lab struct {
	name   string // of its cgroup and directory; with "-" the prefix of its namespaces
	dir    string // state and pins of the ebnets, temporary files
	cgroup string // empty: there is no cgroup2 here
	ebnet  string // path of the binary that is measured
	cpu    int    // on which one-CPU cases run
	far    *farEnd

	nodes   []*node
	closers []io.Closer // closed in reverse order
	stages  map[string]*stage
	unbuilt map[string]error // why a stage could not be built
}

// newLab makes the lab without stages, after it has swept up what killed runs left.
func newLab(ebnet string) (*lab, error) {
	sweep()
	l := &lab{name: fmt.Sprintf("%s%d", prefix, os.Getpid()), ebnet: ebnet, stages: make(map[string]*stage), unbuilt: make(map[string]error)}
	l.dir = filepath.Join(os.TempDir(), l.name)
	if err := l.makeDirs(); err != nil {
		return nil, errors.Join(err, l.close())
	}
	var err error
	if l.cpu, err = lastCPU(); err == nil {
		l.far, err = newFarEnd()
	}
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	l.closers = append(l.closers, l.far)
	return l, nil
}

func (l *lab) makeDirs() error {
	if err := os.Mkdir(l.dir, 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(l.bpffs(), 0o700); err != nil {
		return err
	}
	if err := unix.Mount("bpf", l.bpffs(), "bpf", 0, ""); err != nil {
		return fmt.Errorf("mount a bpf file system: %w", err)
	}
	dir := cgroupDir(l.name)
	if dir == "" {
		return nil
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("make a cgroup: %w", err)
	}
	l.cgroup = dir
	return nil
}

func (l *lab) bpffs() string { return filepath.Join(l.dir, "bpf") }

// cgroupDir is where the cgroup called name is, or would be; empty if there is no cgroup2
// mount.
func cgroupDir(name string) string {
	mount, err := netdev.CgroupMount()
	if err != nil || mount == "" {
		return ""
	}
	return filepath.Join(mount, name)
}

// lastCPU is the last of those that the process may run on: the first ones serve most
// interrupts.
func lastCPU() (int, error) {
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return 0, fmt.Errorf("allowed CPUs: %w", err)
	}
	last := 0
	for cpu := range 8 * len(allowed) * int(unix.SizeofPtr) {
		if allowed.IsSet(cpu) {
			last = cpu
		}
	}
	return last, nil
}

// node makes a namespace that goes with the lab.
func (l *lab) node(ctx context.Context, name string) (*node, error) {
	n, err := newNode(ctx, l.name+"-"+name)
	if err == nil {
		l.nodes = append(l.nodes, n)
	}
	return n, err
}

// drop takes away the nodes that were made after there were n.
func (l *lab) drop(n int) error {
	var errs []error
	for _, node := range l.nodes[n:] {
		errs = append(errs, node.close())
	}
	l.nodes = l.nodes[:n]
	return errors.Join(errs...)
}

// close takes all of it away. What ebnet pinned goes with the bpf file system, and what it
// attached with the namespaces.
func (l *lab) close() error {
	var errs []error
	for _, c := range slices.Backward(l.closers) {
		errs = append(errs, c.Close())
	}
	errs = append(errs, l.drop(0), remove(l.name))
	return errors.Join(errs...)
}

// remove takes away the directory and the cgroup of a lab.
func remove(name string) error {
	dir := filepath.Join(os.TempDir(), name)
	if !own(dir) {
		return nil
	}
	if err := unix.Unmount(filepath.Join(dir, "bpf"), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil &&
		!errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // is no mount, is not there
		return fmt.Errorf("unmount %s: %w", filepath.Join(dir, "bpf"), err)
	}
	var errs []error
	if cgroup := cgroupDir(name); cgroup != "" {
		if err := os.Remove(cgroup); err != nil && !os.IsNotExist(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}

// own reports whether there is such a directory and it is this user's: in a directory that
// everybody can write to, what has the right name may be somebody's trap.
func own(dir string) bool {
	var st unix.Stat_t
	return unix.Lstat(dir, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && int(st.Uid) == os.Geteuid()
}

// sweep takes away the labs of runs that were killed. What does not go is no reason not to
// measure.
func sweep() {
	var names []string
	for _, pattern := range []string{filepath.Join(os.TempDir(), prefix+"*"), filepath.Join("/run/netns", prefix+"*")} {
		paths, _ := filepath.Glob(pattern) // the pattern is well-formed
		for _, path := range paths {
			names = append(names, filepath.Base(path))
		}
	}
	for _, name := range names {
		var pid int
		if _, err := fmt.Sscanf(name, prefix+"%d", &pid); err != nil {
			continue
		}
		if pid != os.Getpid() && unix.Kill(pid, 0) != unix.ESRCH {
			continue // at work
		}
		if strings.Contains(name, "-") {
			sweepNode(name)
		} else {
			_ = remove(name)
		}
	}
}
