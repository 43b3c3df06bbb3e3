package loader

import (
	"errors"
	"fmt"
	"os"
	"testing"
)

// A kernel that runs the tests has all that is required; an error is not blamed on it then.
func TestPrivilegedRequirements(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: needs root to try what the kernel has")
	}
	for _, r := range requirements {
		if err := r.probe(); err != nil {
			t.Errorf("%s (%s): %v", r.name, r.since, err)
		}
	}
	err := fmt.Errorf("%w: something else", ErrUnsupported)
	if got := nameMissing(err); got != err {
		t.Errorf("named: %v", got)
	}
}

// What is missing is named, all of it.
func TestNameMissing(t *testing.T) {
	was := requirements
	t.Cleanup(func() { requirements = was })
	requirements = []requirement{
		{"one", "Linux 98", func() error { return errors.New("no") }},
		{"two", "Linux 99", func() error { return nil }},
		{"three", "Linux 100", func() error { return errors.New("no") }},
	}
	want := "not supported by this kernel: it lacks one (Linux 98), three (Linux 100)"
	err := missingOf(errors.New("first"))
	if err.Error() != want || !errors.Is(err, ErrUnsupported) {
		t.Errorf("got %v, want %s", err, want)
	}
}
