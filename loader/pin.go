package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/loader/failpoint"
)

// ABI is the version of the pinned layout, EBNET_ABI in bpf/abi.h. It names the
// directory, so that a build with another layout never reads these maps.
const ABI = 2

// mountSource marks a bpf file system that ebnet mounted, in /proc/mounts, so
// that Remove takes away none that somebody else made.
const mountSource = "ebnet"

// layout is where things are pinned below the directory that the user named.
type layout string

func layoutOf(bpffs string) layout {
	return layout(filepath.Join(bpffs, "v"+strconv.Itoa(ABI)))
}

func (l layout) maps() string           { return filepath.Join(string(l), "maps") }
func (l layout) progs() string          { return filepath.Join(string(l), "progs") }
func (l layout) links() string          { return filepath.Join(string(l), "links") }
func (l layout) mapPin(n string) string { return filepath.Join(l.maps(), n) }
func (l layout) program(n string) string {
	return filepath.Join(l.progs(), n)
}
func (l layout) link(h Hook, ifindex int) string {
	return filepath.Join(l.links(), string(h)+"-"+strconv.Itoa(ifindex))
}

// socket is where the link of a socket program is pinned.
func (l layout) socket(h Hook) string { return filepath.Join(l.links(), string(h)) }

// parseLink is the inverse of layout.link for the file's name.
func parseLink(name string) (Attachment, bool) {
	hook, index, ok := strings.Cut(name, "-")
	ifindex, err := strconv.Atoi(index)
	if !ok || err != nil || ifindex <= 0 {
		return Attachment{}, false
	}
	return Attachment{Hook: Hook(hook), Ifindex: ifindex}, true
}

// isBPFFS reports whether dir is in a bpf file system.
func isBPFFS(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && uint64(st.Type) == uint64(unix.BPF_FS_MAGIC)
}

// makePins creates the directories, and mounts a bpf file system where there is
// none: on /sys/fs/bpf for a directory below it, else on the directory itself.
func makePins(bpffs string) (layout, error) {
	if !isBPFFS(existingParent(bpffs)) {
		target := bpffs
		if strings.HasPrefix(bpffs, "/sys/fs/bpf/") {
			target = "/sys/fs/bpf"
		} else if err := makeDir(bpffs); err != nil {
			return "", fmt.Errorf("create %s: %w", bpffs, permission(err))
		}
		if err := failpoint.Do("mount", target, func() error {
			return unix.Mount(mountSource, target, "bpf", 0, "mode=0700")
		}); err != nil {
			return "", fmt.Errorf("mount a bpf file system on %s: %w", target, permission(err))
		}
	}
	l := layoutOf(bpffs)
	for _, dir := range []string{l.maps(), l.progs(), l.links()} {
		if err := makeDir(dir); err != nil {
			return "", fmt.Errorf("create %s: %w", dir, permission(err))
		}
	}
	return l, nil
}

func makeDir(dir string) error {
	return failpoint.Do("make directory", dir, func() error { return os.MkdirAll(dir, 0o700) })
}

// existingParent returns the deepest part of path that exists.
func existingParent(path string) string {
	for path != "/" && path != "." {
		if _, err := os.Stat(path); err == nil {
			return path
		}
		path = filepath.Dir(path)
	}
	return path
}

// Remove takes all links, programs and maps below bpffs away, of other layouts too, links first so that
// no program runs on half the maps. clsact filters go with their devices or by
// package netdev. Removing nothing is no error.
func Remove(bpffs string) error {
	all, err := layouts(bpffs)
	if err != nil {
		return err
	}
	for _, l := range all {
		if err := l.remove(); err != nil {
			return err
		}
	}
	if mountedByUs(bpffs) {
		if err := failpoint.Do("unmount", bpffs, func() error { return unix.Unmount(bpffs, 0) }); err != nil {
			return fmt.Errorf("unmount %s: %w", bpffs, err)
		}
	}
	err = failpoint.Do("remove directory", bpffs, func() error { return os.Remove(bpffs) })
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) &&
		!errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EACCES) { // the directory above may be another's
		return fmt.Errorf("remove %s: %w", bpffs, permission(err))
	}
	return nil
}

// remove is Remove for one layout.
func (l layout) remove() error {
	entries, err := os.ReadDir(l.links())
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("list links: %w", permission(err))
	}
	for _, e := range entries {
		if err := detach(filepath.Join(l.links(), e.Name())); err != nil {
			return fmt.Errorf("detach %s: %w", e.Name(), err)
		}
	}
	for _, dir := range []string{l.links(), l.progs(), l.maps(), string(l)} {
		if err := removePins(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", dir, permission(err))
		}
	}
	return nil
}

// removePins removes a directory of pins.
func removePins(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		remove := unpin
		if e.IsDir() {
			remove = removePins
		}
		if err := remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return failpoint.Do("remove directory", dir, func() error { return os.Remove(dir) })
}

// mountedByUs reports whether dir is the root of a mount that makePins made.
// /sys/fs/bpf stays: it is the system's usual place and others may use it by now.
func mountedByUs(dir string) bool {
	if dir == "/sys/fs/bpf" {
		return false
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == mountSource && f[1] == dir && f[2] == "bpf" {
			return true
		}
	}
	return false
}

// classified is an error that also is one of this package's.
type classified struct {
	error
	class error
}

func (c classified) Unwrap() []error { return []error{c.error, c.class} }

// permission makes an error of the kernel ErrPermission where the reason is a missing
// capability; the text stays the kernel's.
func permission(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return classified{err, ErrPermission}
	}
	return err
}

// pinned opens a pinned map, and remembers it until Close.
func (d *Datapath) pinned(name string) (*ebpf.Map, error) {
	if m := d.maps[name]; m != nil {
		return m, nil
	}
	m, err := ebpf.LoadPinnedMap(d.pins.mapPin(name), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open map %s: another version of ebnet loaded the datapath, `ebnet up` replaces it: %w", name, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open map %s: %w", name, explain(err))
	}
	if err := checkShape(name, m); err != nil {
		_ = m.Close()
		return nil, err
	}
	d.maps[name] = m
	return m, nil
}

// OtherLayouts returns the directories below bpffs where datapaths of another layout
// are, or were, pinned. That bpffs is not there is no error.
func OtherLayouts(bpffs string) ([]string, error) {
	entries, err := os.ReadDir(bpffs)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", bpffs, permission(err))
	}
	var dirs []string
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), "v")
		if abi, err := strconv.Atoi(number); ok && err == nil && abi != ABI && e.IsDir() {
			dirs = append(dirs, filepath.Join(bpffs, e.Name()))
		}
	}
	return dirs, nil
}
