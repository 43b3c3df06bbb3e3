package trusted

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

const stranger = 12345 // a user that nobody is

// tree makes a directory with links of ours and of a stranger's.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "real/deep"), 0o700),
		os.WriteFile(filepath.Join(dir, "real/file"), []byte("secret"), 0o600),
		os.Symlink("real", filepath.Join(dir, "ours")),
		os.Symlink(filepath.Join(dir, "ours/deep/../file"), filepath.Join(dir, "oursfile")),
		os.Symlink("loop", filepath.Join(dir, "loop")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// theirs makes a link that belongs to the stranger.
func theirs(t *testing.T, target, path string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: needs root to make a link of another user")
	}
	if err := errors.Join(os.Symlink(target, path), os.Lchown(path, stranger, stranger)); err != nil {
		t.Fatal(err)
	}
}

func TestOpen(t *testing.T) {
	dir := tree(t)
	for _, name := range []string{"real/file", "ours/file", "oursfile", "ours/../real/./file", "ours/deep/../file"} {
		f, err := Open(filepath.Join(dir, name))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if b, err := io.ReadAll(f); string(b) != "secret" || err != nil {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		_ = f.Close()
	}
	if _, err := Open(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := Open(filepath.Join(dir, "loop")); !errors.Is(err, unix.ELOOP) {
		t.Error(err)
	}
	t.Chdir(dir)
	f, err := Open("ours/file")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, path := range []string{"/dev/fd", "/proc/self/fd"} { // as shells name pipes
		again, err := Open(fmt.Sprintf("%s/%d", path, f.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(again); string(b) != "secret" || err != nil {
			t.Errorf("%s: %q, %v", path, b, err)
		}
		_ = again.Close()
	}
}

func TestOpenStranger(t *testing.T) {
	dir := tree(t)
	theirs(t, "real", filepath.Join(dir, "bad"))
	theirs(t, "real/file", filepath.Join(dir, "badfile"))
	if err := os.Symlink("bad/file", filepath.Join(dir, "viabad")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bad/file", "badfile", "viabad", "ours/../bad/deep"} {
		path := filepath.Join(dir, name)
		if name == "ours/../bad/deep" {
			path = dir + "/" + name // Join would clean it
		}
		if _, err := Open(path); !errors.Is(err, ErrLink) {
			t.Errorf("%s: %v", name, err)
		}
		if err := Check(path); !errors.Is(err, ErrLink) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Replace(filepath.Join(dir, "bad/new"), nil, 0o600); !errors.Is(err, ErrLink) {
		t.Error(err)
	}
}

func TestCheck(t *testing.T) {
	dir := tree(t)
	for _, path := range []string{dir, filepath.Join(dir, "none/deeper"), filepath.Join(dir, "oursfile"), "/proc/self/ns/net", "/proc/thread-self/fd/0", "", "."} {
		if err := Check(path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestReplace(t *testing.T) {
	dir := tree(t)
	if err := Replace(filepath.Join(dir, "oursfile"), []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(filepath.Join(dir, "oursfile"))
	if err != nil || info.Mode() != 0o644 {
		t.Errorf("%v, %v", info, err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "real/file")); string(b) != "secret" {
		t.Errorf("what the link led to is now %q", b)
	}
	if err := Replace(filepath.Join(dir, "ours/file"), []byte("by a link of ours"), 0o600); err != nil {
		t.Error(err)
	}
	if err := Replace(filepath.Join(dir, "real/deep"), nil, 0o600); !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EEXIST) {
		t.Errorf("a directory: %v", err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "real"))
	if err != nil || len(entries) != 2 {
		t.Errorf("left: %v, %v", entries, err)
	}
}
