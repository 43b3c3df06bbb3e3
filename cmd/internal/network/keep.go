package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/loader/failpoint"
)

// The files beside the state, all in its directory and replaced as a whole.
const (
	copySuffix    = ".bak"      // the state as the last command left it
	schemaSuffix  = ".schema-"  // and a number: before it was migrated from that schema
	damagedSuffix = ".damaged-" // and a number: what --restore put aside; never removed
	freshSuffix   = ".new"      // half written
)

func (s *state) copyPath() string { return s.path() + copySuffix }

// copies are the files beside the state that go with it.
func (s *state) copies() []string {
	all := []string{s.copyPath(), s.path() + freshSuffix, s.copyPath() + freshSuffix}
	for schema := firstSchema; schema < schemaVersion; schema++ {
		path := fmt.Sprint(s.path(), schemaSuffix, schema)
		all = append(all, path, path+freshSuffix)
	}
	return all
}

// openRegular opens a file to read it, and nothing but a regular file: opening others may block
// or do something.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return nil, fmt.Errorf("%w: it is no regular file", errCorrupt)
	}
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		_ = f.Close()
		return nil, errors.Join(err, fmt.Errorf("%w: it is no regular file", errCorrupt))
	}
	return f, nil
}

// replaceIn gives the file called name in dir the content that write writes, or leaves it as it
// was, also when the power fails. Nobody but ebnet writes into dir.
func replaceIn(dir, name string, write func(*os.File) error) error {
	err := renewIn(dir, name, write)
	if err == nil {
		err = syncDir(dir)
	}
	return err
}

// renewIn is replaceIn, but that the former content may be back after a failure of power.
func renewIn(dir, name string, write func(*os.File) error) error {
	path := filepath.Join(dir, name)
	fresh := path + freshSuffix
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := failpoint.Reach("create", fresh); err != nil {
		return err
	}
	f, err := os.OpenFile(fresh, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	err = failpoint.Do("write", fresh, func() error { return write(f) })
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = failpoint.Do("rename", fresh, func() error { return os.Rename(fresh, path) })
	}
	if err != nil {
		_ = os.Remove(fresh)
	}
	return err
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// copyTo replaces the file called name beside the state by the pages of f that are in use.
func (s *state) copyTo(name string, f *os.File, size int64) error {
	return replaceIn(s.dir, name, copyOfPages(f, size))
}

func copyOfPages(f *os.File, size int64) func(*os.File) error {
	return func(w *os.File) error {
		_, err := io.CopyN(w, io.NewSectionReader(f, 0, size), size)
		return err
	}
}

// copyOf returns the number of the transaction that the copy is of, 0 if there is no copy or it is damaged.
func (s *state) copyOf() uint64 {
	f, err := openRegular(s.copyPath())
	if err != nil {
		return 0
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	meta, _, err := newestMeta(f, info)
	if err != nil {
		return 0
	}
	return binary.NativeEndian.Uint64(meta[48:])
}

// keepCopy makes the copy what the state is now. It is made after the last commit of a command,
// when nothing but the copy can fail; then the former one stays. That it is the newest after a failure of
// power would take another write of the disk's journal, and the state itself is whole then.
func (s *state) keepCopy() {
	err := func() error {
		f, err := openRegular(s.path())
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		size, err := usedSize(f, info)
		if err != nil {
			return err
		}
		return renewIn(s.dir, stateFile+copySuffix, copyOfPages(f, size))
	}()
	if err != nil && s.warn != nil {
		s.warn(fmt.Sprintf("the copy of the state, %s, is older than the state: %s", s.copyPath(), reason(err)))
	}
}

// room is what a state's file has beyond its pages in use, at least. A verb that has written its intent
// can then write its end too, whether others fill the disk or not: each commit writes at
// most as many pages as there are.
const room = 128 << 10

// roomFor is the size of a file with used bytes in use. Steps are large, since a file that grows is
// slower to write.
func roomFor(used int64) int64 { return (2*used + room + room - 1) / room * room }

// extend makes the file size bytes long and writes zeros behind used.
func extend(f *os.File, used, size int64) error {
	zeros := make([]byte, room)
	for at := used; at < size; at += room {
		if _, err := f.WriteAt(zeros[:min(room, size-at)], at); err != nil {
			return err
		}
	}
	return nil
}

// makeRoom sees that the disk has what the verb will write.
func (s *state) makeRoom() error {
	f, err := os.OpenFile(s.path(), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return s.fault(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return s.fault(err)
	}
	used, err := usedSize(f, info)
	if err != nil {
		return s.corrupt(err)
	}
	want, st := roomFor(used), info.Sys().(*syscall.Stat_t)
	if info.Size() < want || st.Blocks*512 < want {
		if err := failpoint.Do("make room", "", func() error { return extend(f, used, want) }); err != nil {
			_ = f.Truncate(info.Size())
			return s.fault(err)
		}
	}
	s.roomy = true
	return nil
}

// upgrade keeps a copy of the file before its schema becomes another one, and opens it.
func (s *state) upgrade(f *os.File, m image) error {
	if err := s.copyTo(fmt.Sprint(stateFile, schemaSuffix, m.schema), f, m.size); err != nil {
		return s.fault(err)
	}
	return s.open(false)
}

// migrations make a state of the schema that is their key one of the next.
var migrations = map[int]func(*tx) error{
	1: func(*tx) error { return nil }, // without sources, direct ports or SNAT addresses it means the same
}

// migrate makes an opened state one of schemaVersion, in one transaction: the file by a verb, else the
// copy in memory.
func (s *state) migrate(from int) error {
	return s.change(true, func(t *tx) error {
		for schema := from; schema < schemaVersion; schema++ {
			if err := migrations[schema](t); err != nil {
				return fmt.Errorf("migrate from schema %d: %w", schema, err)
			}
		}
		return nil
	})
}

// Restore puts the copy of the last good state in the place of one that is damaged or lost, which stays
// in the directory under another name, and returns that; "" if there was none.
//
// Returns ErrConflict if the state is not damaged, ErrFailed if there is no copy that is good.
func Restore(o Options) (aside string, err error) {
	if err := checkPaths(o); err != nil {
		return "", err
	}
	defer unix.Umask(unix.Umask(0o077))
	lock, err := takeLock(o.StateDir, true, true, lockWait)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	s := &state{dir: o.StateDir, writer: o.Version}
	switch _, err := s.verify(s.path()); {
	case err == nil:
		return "", conflict("state "+s.path(), "it is not damaged, nothing is to be restored")
	case !errors.Is(err, errCorrupt) && !errors.Is(err, fs.ErrNotExist):
		return "", explain(err)
	}
	f, m, err := s.openVerified(s.copyPath())
	if err != nil {
		return "", (&Error{What: "state " + s.copyPath(), Why: "the copy cannot be used: " + reason(err), Kind: ErrFailed, Err: err}).
			hint("restore the state from elsewhere, or move both files away and run `ebnet up` to begin anew")
	}
	defer f.Close()
	if o.Step != nil {
		o.Step("put the copy " + s.copyPath() + " in the place of the state")
	}
	if o.DryRun {
		return "", nil
	}
	return s.restore(f, m.size)
}

func (s *state) restore(good *os.File, size int64) (aside string, err error) {
	if _, err := os.Lstat(s.path()); err == nil {
		for n := 1; ; n++ {
			aside = fmt.Sprint(s.path(), damagedSuffix, n)
			if _, err := os.Lstat(aside); errors.Is(err, fs.ErrNotExist) {
				break
			}
		}
		if err := failpoint.Do("rename", s.path(), func() error { return os.Rename(s.path(), aside) }); err != nil {
			return "", s.fault(err)
		}
	}
	// What is killed here finds the state lost, and the copy still there.
	if err := s.copyTo(stateFile, good, size); err != nil {
		if aside != "" {
			_ = os.Rename(aside, s.path())
		}
		return "", s.fault(err)
	}
	return aside, nil
}

// verify reads a file as a state of the present schema or an older one.
func (s *state) verify(path string) (image, error) {
	f, m, err := s.openVerified(path)
	if f != nil {
		_ = f.Close()
	}
	return m, err
}

func (s *state) openVerified(path string) (*os.File, image, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, image{}, err
	}
	m, err := s.inspect(f)
	if err == nil {
		at := &state{dir: s.dir}
		if err = at.openCopy(f, m); err == nil {
			err = at.check(m)
			_ = at.db.Close()
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, image{}, err
	}
	return f, m, nil
}

// corrupt is the error for a damaged file, with the way out.
func (s *state) corrupt(why error) *Error {
	return &Error{
		What: "state " + s.path(),
		Why:  fmt.Sprintf("the file is damaged (%s); it was left as it is", damage(why)),
		Hint: s.wayOut(),
		Kind: ErrFailed,
		Err:  errCorrupt,
	}
}

// lost is the error for a state that is not there though it was.
func (s *state) lost() *Error {
	return &Error{
		What: "state " + s.path(),
		Why:  "the file is missing, and its copy is there",
		Hint: s.wayOut(),
		Kind: ErrFailed,
		Err:  errCorrupt,
	}
}

func (s *state) wayOut() string {
	const anew = "move the file away and run `ebnet up` to begin anew"
	f, err := openRegular(s.copyPath())
	if err == nil {
		defer f.Close()
		if _, err = readImage(f); err == nil {
			info, _ := f.Stat()
			return fmt.Sprintf("`ebnet up --restore` goes back to the copy %s of %s (%s ago) and keeps the damaged file; or %s",
				s.copyPath(), info.ModTime().Format(time.DateTime), time.Since(info.ModTime()).Round(time.Second), "move both away and run `ebnet up` to begin anew")
		}
	}
	return fmt.Sprintf("there is no good copy in %s; restore one from elsewhere, or %s", s.copyPath(), anew)
}

// damage is why without the word that all such errors start with.
func damage(why error) string {
	return strings.TrimPrefix(oneLine(why), errCorrupt.Error()+": ")
}

func (s *state) newer(m image) *Error {
	by := "another ebnet"
	if m.writer != "" {
		by = "ebnet " + m.writer
	}
	return &Error{
		What: "state " + s.path(),
		Why:  fmt.Sprintf("written by %s: its schema is %d, this ebnet's is %d", by, m.schema, schemaVersion),
		Hint: fmt.Sprintf("use that ebnet; or go back to what was before it, if there is a file %s%s%d", s.path(), schemaSuffix, schemaVersion),
		Kind: ErrUnsupported,
	}
}

// isFileFault reports whether err is one that the system has with files.
func isFileFault(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno)
}

// reason is why a file could not be read or written, without its name.
func reason(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	return oneLine(err)
}

// fault is the error for a file of the state that cannot be read or written.
func (s *state) fault(err error) error {
	if errors.Is(err, errCorrupt) {
		return s.corrupt(err)
	}
	return fileError("state "+s.path(), err)
}
