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

func openLock(path string, create bool) (*os.File, error) {
	if !create {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return f, fileError(path, err)
	}
	if err := failpoint.Do("make directory", "state", func() error { return os.MkdirAll(filepath.Dir(path), 0o700) }); err != nil {
		return nil, fileError(filepath.Dir(path), err)
	}
	if err := failpoint.Reach("create", path); err != nil {
		return nil, fileError(path, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	return f, fileError(path, err)
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
	if err := syscall.Flock(fd, how|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) {
		return err
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

// fileError gives an error of the state's files its kind; nil stays nil.
func fileError(path string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission):
		return &Error{What: path, Why: "permission denied", Hint: "run as root", Kind: ErrUnsupported, Err: err}
	case errors.Is(err, syscall.EROFS):
		return &Error{What: path, Why: "read-only file system", Hint: "choose another directory with --state", Kind: ErrFailed, Err: err}
	}
	return failed(path, err)
}
