package netdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namedDir is where network namespaces have names, as iproute2 has it.
const namedDir = "/run/netns"

// NS is an open network namespace. It keeps the namespace alive until Close.
type NS struct {
	fd int

	// Dev and Inode identify the namespace while it lives (stat of the nsfs file).
	Dev, Inode uint64

	// Path is what OpenNS resolved its argument to, "" for CurrentNS.
	Path string
}

// ResolveNS returns the path that stands for ref: /run/netns/NAME for a name,
// the cleaned absolute path for a path (anything with a '/'), /proc/N/ns/net
// for "pid:N". It does not look whether the path exists.
//
// Returns ErrInvalid if ref is empty, or neither a name, a path nor a pid.
func ResolveNS(ref string) (path string, err error) {
	if pid, ok := strings.CutPrefix(ref, "pid:"); ok {
		n, err := strconv.ParseUint(pid, 10, 31)
		if err != nil || n == 0 || pid[0] == '+' {
			return "", fmt.Errorf("network namespace %q: %w: no process id after \"pid:\"", ref, ErrInvalid)
		}
		return fmt.Sprintf("/proc/%d/ns/net", n), nil
	}
	if strings.ContainsRune(ref, 0) {
		return "", fmt.Errorf("network namespace %q: %w: NUL in a path", ref, ErrInvalid)
	}
	if strings.ContainsRune(ref, '/') {
		path, err := filepath.Abs(ref)
		if err != nil {
			return "", fmt.Errorf("network namespace %q: %w", ref, err)
		}
		return path, nil
	}
	if err := checkNSName(ref); err != nil {
		return "", err
	}
	return filepath.Join(namedDir, ref), nil
}

// checkNSName returns ErrInvalid unless name is one path element.
func checkNSName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > unix.NAME_MAX || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("network namespace %q: %w name", name, ErrInvalid)
	}
	return nil
}

// OpenNS opens the network namespace ref, see ResolveNS.
//
// Returns ErrNotFound if there is none, ErrInvalid if it is not a network
// namespace, ErrPermission.
func OpenNS(ref string) (*NS, error) {
	path, err := ResolveNS(ref)
	if err != nil {
		return nil, err
	}
	ns, err := openPath(path)
	if err != nil {
		return nil, fmt.Errorf("network namespace %s (%s): %w", ref, path, err)
	}
	ns.Path = path
	return ns, nil
}

func openPath(path string) (*NS, error) {
	// The file system's type is asked for before the file is opened: opening a
	// FIFO blocks, and opening a device may do something.
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENAMETOOLONG) {
			return nil, fmt.Errorf("%w (%w)", ErrNotFound, err)
		}
		return nil, sentinel(err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return nil, fmt.Errorf("%w: not a network namespace", ErrInvalid)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, sentinel(err)
	}
	ns := &NS{fd: fd}
	if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		return nil, errors.Join(fmt.Errorf("%w: not a network namespace", ErrInvalid), ns.Close())
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, errors.Join(sentinel(err), ns.Close())
	}
	ns.Dev, ns.Inode = st.Dev, st.Ino
	return ns, nil
}

// CurrentNS opens the network namespace of the calling thread.
func CurrentNS() (*NS, error) {
	ns, err := openPath("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("own network namespace: %w", err)
	}
	return ns, nil
}

// String returns the path, or what identifies the namespace where there is none.
func (ns *NS) String() string {
	if ns.Path != "" {
		return ns.Path
	}
	return fmt.Sprintf("net:[%d]", ns.Inode)
}

// FD returns the file descriptor, valid until Close.
func (ns *NS) FD() int { return ns.fd }

// Close releases the namespace. Closing twice is no error.
func (ns *NS) Close() error {
	if ns.fd < 0 {
		return nil
	}
	fd := ns.fd
	ns.fd = -1
	return unix.Close(fd)
}

// SameNS reports whether a and b are the same namespace.
func SameNS(a, b *NS) bool { return a.Dev == b.Dev && a.Inode == b.Inode }

// Cookie returns the number that the kernel gave the namespace and gives no other until the next boot
// (SO_NETNS_COOKIE, Linux 5.14); inode numbers are given again.
func (ns *NS) Cookie() (cookie uint64, err error) {
	err = Do(ns, func() error {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open a socket in network namespace %s: %w", ns, sentinel(err))
		}
		defer func() { _ = unix.Close(s) }()
		cookie, err = unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		if err != nil {
			return fmt.Errorf("identify network namespace %s: %w", ns, sentinel(err))
		}
		return nil
	})
	return cookie, err
}

// BootID returns what identifies this run of the kernel: after another one, nothing that identified a
// namespace means anything.
func BootID() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", sentinel(err))
	}
	return strings.TrimSpace(string(text)), nil
}

// Do runs fn in ns on an OS thread of its own. fn must not start goroutines that
// are to act in ns: they run in the process's own namespace.
//
// The thread is discarded if it cannot return to where it was.
//
// Returns fn's error, or ErrPermission if the namespace cannot be entered.
func Do(ns *NS, fn func() error) error {
	return onThread(func() error {
		if err := enter(ns); err != nil {
			return err
		}
		return fn()
	})
}

// enter moves the calling thread into ns, for functions that onThread runs.
func enter(ns *NS) error {
	if err := netns.Set(netns.NsHandle(ns.fd)); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", ns, sentinel(err))
	}
	return nil
}

// onThread runs fn, which may move its thread to another network namespace, on
// a locked thread, and moves the thread back.
func onThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		defer close(result)
		result <- onThisThread(fn)
	}()
	err, returned := <-result
	if !returned {
		// runtime.Goexit in fn, as by t.FailNow.
		return errors.New("the function ended its goroutine")
	}
	return err
}

func onThisThread(fn func() error) error {
	runtime.LockOSThread()
	origin, err := CurrentNS()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		// A thread that is still locked when its goroutine ends is ended with
		// it, so nobody meets one in the wrong namespace.
		if netns.Set(netns.NsHandle(origin.fd)) == nil {
			runtime.UnlockOSThread()
		}
		_ = origin.Close()
	}()
	return fn()
}

// CreateNamed makes a network namespace that stays under /run/netns/NAME, with
// its loopback device down, and returns it open.
//
// Returns ErrExists if the name is taken, ErrInvalid for a malformed name,
// ErrPermission.
func CreateNamed(name string) (ns *NS, err error) {
	if err := checkNSName(name); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(namedDir, 0o755); err != nil {
		return nil, fmt.Errorf("create network namespace %s: %w", name, sentinel(err))
	}
	path := filepath.Join(namedDir, name)
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return nil, fmt.Errorf("create network namespace %s: %w", name, sentinel(err))
	}
	_ = f.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "")
	})
	if err == nil {
		ns, err = OpenNS(path)
	}
	if err != nil {
		_ = unix.Unmount(path, unix.MNT_DETACH)
		_ = unix.Unlink(path)
		return nil, fmt.Errorf("create network namespace %s: %w", name, sentinel(err))
	}
	return ns, nil
}

// DeleteNamed removes the name under /run/netns; the namespace goes when nothing
// uses it any more.
//
// Returns ErrNotFound if there is none of that name, ErrInvalid for a malformed
// name, ErrPermission.
func DeleteNamed(name string) error {
	if err := checkNSName(name); err != nil {
		return err
	}
	path := filepath.Join(namedDir, name)
	// EINVAL: the file is there without its namespace.
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == nil || errors.Is(err, unix.EINVAL) {
		err = unix.Unlink(path)
	}
	if err != nil {
		return fmt.Errorf("delete network namespace %s: %w", name, sentinel(err))
	}
	return nil
}
