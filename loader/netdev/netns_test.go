package netdev

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestResolveNS(t *testing.T) {
	cwd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ ref, want string }{
		{"web", "/run/netns/web"},
		{"pid:42", "/proc/42/ns/net"},
		{"/run/netns/../netns/x", "/run/netns/x"},
		{"./x", filepath.Join(cwd, "x")},
		{"../x", filepath.Join(filepath.Dir(cwd), "x")},
		{"", ""}, {".", ""}, {"..", ""}, {"a\x00b", ""}, {"/a\x00b", ""}, {strings.Repeat("n", 256), ""},
		{"pid:", ""}, {"pid:0", ""}, {"pid:-1", ""}, {"pid:+1", ""}, {"pid:1x", ""}, {"pid:99999999999", ""},
	} {
		path, err := ResolveNS(test.ref)
		if path != test.want || (err != nil) != (test.want == "") {
			t.Errorf("ResolveNS(%q) = %q, %v; want %q", test.ref, path, err, test.want)
		}
		if test.want == "" {
			wantError(t, err, ErrInvalid)
		}
	}
}

func TestOpenNSErrors(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		ref  string
		want error
	}{
		{"nd-missing", ErrNotFound}, {"/nd/missing", ErrNotFound}, {"pid:2147483647", ErrNotFound},
		{plain, ErrInvalid}, {plain + "/below", ErrNotFound}, {"/proc/self/ns/mnt", ErrInvalid}, {"/dev/null", ErrInvalid}, {"/", ErrInvalid},
	} {
		ns, err := OpenNS(test.ref)
		if err == nil {
			t.Errorf("OpenNS(%q) = %v", test.ref, ns)
			continue
		}
		wantError(t, err, test.want)
	}
}

func TestPrivilegedNamedNS(t *testing.T) {
	needRoot(t)
	name := fmt.Sprintf("nd-%d", os.Getpid())
	ns, err := CreateNamed(name)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	_, err = CreateNamed(name)
	wantError(t, err, ErrExists)
	again, err := OpenNS(name)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	own, err := CurrentNS()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if !SameNS(ns, again) || SameNS(ns, own) {
		t.Fatalf("created %+v, opened %+v, own %+v", ns, again, own)
	}
	err = Do(ns, func() error {
		inside, err := CurrentNS()
		if err != nil {
			return err
		}
		defer inside.Close()
		if !SameNS(inside, ns) {
			return fmt.Errorf("in %+v", inside)
		}
		// Do inside Do comes back to where it was.
		if err := Do(own, func() error { return nil }); err != nil {
			return err
		}
		links, err := Links()
		if err == nil && (len(links) == 0 || links[0].Index != loopbackIndex || !links[0].Loopback) {
			err = fmt.Errorf("first device %+v", links[0])
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := DeleteNamed(name); err != nil {
		t.Fatal(err)
	}
	wantError(t, DeleteNamed(name), ErrNotFound)
	for _, bad := range []string{"../x", "", "..", "a/b"} {
		_, err := CreateNamed(bad)
		wantError(t, err, ErrInvalid)
		wantError(t, DeleteNamed(bad), ErrInvalid)
	}
}
