package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/loader/failpoint"
)

// lockWait is how long a command waits for others before it gives up.
const lockWait = 60 * time.Second

// takeLock locks DIR/lock, exclusively or shared. If the file does not exist and
// is not to be created, there is nothing to lock and the result is nil.
//
// Who may create the file and holds the exclusive lock writes who it is into the file, for the error
// of those that waited in vain.
func takeLock(dir string, exclusive, create bool, wait time.Duration) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	for deadline := time.Now().Add(wait); ; {
		f, err := openLock(path, create)
		if create && purged(err) && time.Now().Before(deadline) {
			continue
		}
		if f == nil || err != nil {
			return nil, err
		}
		if err := flock(f, exclusive, time.Until(deadline)); err != nil {
			who := holder(f)
			_ = f.Close()
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				return nil, failed("lock "+path, err)
			}
			return nil, conflict("state "+dir, "in use by %s for more than %s", who, wait.Round(time.Second)).
				hint("wait until that command ends, or end it")
		}
		// `ebnet down --purge` removes the file; a lock on a removed file locks nothing.
		if sameFile(f, path) {
			if create {
				signLock(f)
			}
			return f, nil
		}
		_ = f.Close()
	}
}

// purged reports whether a file could not be created because a purge removed the directory just then: it is
// not there, or was for the one who wanted to make it.
func purged(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrExist) }

func openLock(path string, create bool) (*os.File, error) {
	dir := filepath.Dir(path)
	if create {
		if err := makeDir(dir); err != nil {
			return nil, err
		}
	}
	if err := checkDir("state", dir, create); err != nil {
		return nil, err
	}
	how := os.O_RDONLY
	if create {
		how = os.O_RDWR | os.O_CREATE
		if err := failpoint.Reach("create", path); err != nil {
			return nil, fileError("state "+path, err)
		}
	}
	f, err := os.OpenFile(path, how|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	switch {
	case !create && errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, unix.ELOOP):
		return nil, failed("state "+path, errors.New("the lock is a symbolic link"))
	case err != nil:
		return nil, fileError("state "+path, err)
	}
	if err := checkLock(f, create); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// checkLock refuses to write into what may be somebody else's file: the lock is written over.
func checkLock(f *os.File, write bool) error {
	info, err := f.Stat()
	if err != nil {
		return failed("state "+f.Name(), err)
	}
	if st := info.Sys().(*syscall.Stat_t); !info.Mode().IsRegular() || st.Nlink > 1 {
		return failed("state "+f.Name(), errors.New("the lock is no file of ebnet's own"))
	}
	if write && info.Mode().Perm() != 0o600 {
		return fileError("state "+f.Name(), f.Chmod(0o600))
	}
	return nil
}

// makeDir makes the state's directory and those above it.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	return fileError("state "+dir, failpoint.Do("make directory", "state", func() error { return os.MkdirAll(dir, 0o700) }))
}

// checkDir refuses a directory in which others than root and this user can put files: links to what ebnet
// would then write, or a state or pins of theirs. With tighten, one of our own is closed to them instead. One that
// is not there is no error.
func checkDir(what, dir string, tighten bool) error {
	what += " " + dir
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return nil
	case err != nil:
		return fileError(what, err)
	case !info.IsDir():
		return failed(what, errors.New("it is no directory"))
	}
	owner := int(info.Sys().(*syscall.Stat_t).Uid)
	if owner != 0 && owner != os.Geteuid() {
		return unsupported(what, "the directory belongs to user %d, who can change what is in it", owner).
			hint("choose another directory, or chown it")
	}
	if tighten && owner == os.Geteuid() && info.Mode().Perm()&0o077 != 0 {
		return fileError(what, os.Chmod(dir, 0o700))
	}
	shared := tighten || info.Mode()&os.ModeSticky == 0 // in a sticky one what is ours stays ours
	if shared && info.Mode().Perm()&0o022 != 0 {
		return unsupported(what, "others can write into the directory (its mode is %04o)", info.Mode().Perm()).
			hint("chmod 0700 %s", dir)
	}
	return nil
}

// flock waits for the lock in the kernel's queue, which is fair and costs
// nothing while waiting. Returns os.ErrDeadlineExceeded; the waiting thread is
// left behind then, until the process ends.
func flock(f *os.File, exclusive bool, wait time.Duration) error {
	how := syscall.LOCK_SH
	if exclusive {
		how = syscall.LOCK_EX
	}
	fd := int(f.Fd())
	if !exclusive {
		letGoFirst(f, wait)
	}
	if err := syscall.Flock(fd, how|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) {
		return err
	}
	if exclusive {
		queueUp(f)
		defer leaveQueue(f)
	}
	done := make(chan error, 1)
	go func() {
		err := syscall.Flock(fd, how)
		for errors.Is(err, syscall.EINTR) {
			err = syscall.Flock(fd, how)
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(wait):
		return os.ErrDeadlineExceeded
	}
}

func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}

// signLock is for people; that it fails harms nothing.
func signLock(f *os.File) {
	text := fmt.Sprintf("%d %s\n", os.Getpid(), strings.Join(os.Args, " "))
	if failpoint.Reach("sign", f.Name()) == nil && f.Truncate(0) == nil {
		_, _ = f.WriteAt([]byte(text), 0)
	}
}

func holder(f *os.File) string {
	b := make([]byte, 200)
	n, _ := f.ReadAt(b, 0)
	line, _, _ := strings.Cut(string(b[:n]), "\n")
	pid, command, ok := strings.Cut(line, " ")
	id, err := strconv.Atoi(pid)
	if !ok || err != nil || errors.Is(syscall.Kill(id, 0), syscall.ESRCH) {
		return "another command"
	}
	return fmt.Sprintf("process %d (%s)", id, command)
}

// fileError gives an error with a file its kind; nil stays nil.
func fileError(what string, err error) error {
	if err == nil {
		return nil
	}
	e := failed(what, err)
	e.Why = reason(err)
	switch {
	case errors.Is(err, fs.ErrPermission):
		e.Why, e.Kind = "permission denied", ErrUnsupported
		return e.hint("run as root")
	case errors.Is(err, syscall.EROFS):
		return e.hint("make it writable, or choose another directory with --state")
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return e.hint("make room, then run the command again")
	}
	return e
}
