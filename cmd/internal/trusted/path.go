// Package trusted opens paths that a user has named so that no other user can turn them.
//
// The rule: a symbolic link on the way is followed only if it belongs to root or to the user that
// runs the process; others can make one wherever they can write, and would choose what is read or
// written. Files are written beside their name and then take it, so that a link of that name is replaced.
package trusted

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrLink says that a symbolic link of another user is in the way.
var ErrLink = errors.New("not followed, since that user could lead it anywhere")

// maxLinks is as many as the kernel follows.
const maxLinks = 40

// walk is the way from a directory to what a path names.
type walk struct {
	at    int      // O_PATH, where the way has come to
	left  []string // what is still to go
	links int
}

// resolve goes the way and returns a descriptor (O_PATH) of the file or directory at its end. Links of
// procfs, which only the kernel makes, are followed whoever they belong to.
func resolve(path string) (fd int, err error) {
	w := walk{at: -1}
	defer func() {
		if w.at >= 0 && w.at != fd {
			_ = unix.Close(w.at)
		}
	}()
	if err := w.start(path); err != nil {
		return -1, err
	}
	for len(w.left) > 0 {
		name := w.left[0]
		w.left = w.left[1:]
		next, err := unix.Openat(w.at, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, err
		}
		var st unix.Stat_t
		if err = unix.Fstat(next, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			proc := inProc(next)
			if !proc {
				err = w.follow(next, name, st.Uid)
			}
			_ = unix.Close(next)
			if err != nil {
				return -1, err
			}
			if !proc {
				continue
			}
			if next, err = unix.Openat(w.at, name, unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
				return -1, err
			}
		}
		_ = unix.Close(w.at)
		if w.at = next; err != nil {
			return -1, err
		}
	}
	return w.at, nil
}

// start puts the walk at the beginning of path.
func (w *walk) start(path string) error {
	from := "."
	if filepath.IsAbs(path) {
		from = "/"
	}
	fd, err := unix.Open(from, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if w.at >= 0 {
		_ = unix.Close(w.at)
	}
	w.at = fd
	w.left = append(strings.FieldsFunc(path, func(r rune) bool { return r == '/' }), w.left...)
	return nil
}

// follow goes on where the link leads.
func (w *walk) follow(link int, name string, owner uint32) error {
	if owner != 0 && int(owner) != os.Geteuid() {
		return fmt.Errorf("the symbolic link %s on the way belongs to user %d: %w", name, owner, ErrLink)
	}
	if w.links++; w.links > maxLinks {
		return unix.ELOOP
	}
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(link, "", b)
	if err != nil {
		return err
	}
	target := string(b[:n])
	if filepath.IsAbs(target) {
		return w.start(target)
	}
	w.left = append(strings.FieldsFunc(target, func(r rune) bool { return r == '/' }), w.left...)
	return nil
}

func inProc(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && st.Type == unix.PROC_SUPER_MAGIC
}

// Check returns an error that wraps ErrLink if a link of another user is on the way of path. What is
// not there is no error.
func Check(path string) error {
	fd, err := resolve(path)
	if err == nil {
		return unix.Close(fd)
	}
	if errors.Is(err, ErrLink) {
		return pathError("open", path, err)
	}
	return nil // its user will see
}

// Open opens a file for reading.
func Open(path string) (*os.File, error) {
	fd, err := resolve(path)
	if err != nil {
		return nil, pathError("open", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	// By its descriptor: nobody can put another in its place by now.
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, pathError("open", path, errnoOf(err))
	}
	return f, nil
}

// Replace gives the file at path new content in one step: who reads it sees the old or the new one. A symbolic
// link of that name is replaced, not followed.
func Replace(path string, content []byte, mode fs.FileMode) error {
	if err := replace(path, content, mode); err != nil {
		return pathError("write", path, err)
	}
	return nil
}

func replace(path string, content []byte, mode fs.FileMode) error {
	dir, err := resolve(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(dir) }()
	name := filepath.Base(path)
	// The name does not end as who collects files of a kind wants it.
	fresh := "." + name + "." + rand.Text()[:10]
	fd, err := unix.Openat(dir, fresh, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), path)
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(mode)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = unix.Renameat(dir, fresh, dir, name)
	}
	if err != nil {
		_ = unix.Unlinkat(dir, fresh, 0)
		return errnoOf(err)
	}
	return nil
}

// errnoOf leaves out names that nobody asked for.
func errnoOf(err error) error {
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return errno
	}
	return err
}

func pathError(op, path string, err error) error { return &fs.PathError{Op: op, Path: path, Err: err} }
