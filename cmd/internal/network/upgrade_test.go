package network

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ebnet/ebnet/loader"
)

// age makes what is loaded the datapath of another version.
func (f *fake) age(h *Host, o loader.Handover) {
	f.handover, f.former, f.dp, h.dp = &o, f.dp, nil, nil
}

// A datapath of another version goes on until everything is ready: what fails before leaves it, and the state, as
// they were.
func TestUpReplacesAnotherVersion(t *testing.T) {
	for _, noTCX := range []bool{false, true} {
		for failAt := 1; ; failAt++ {
			if failAt > 100 {
				t.Fatal("it never ends")
			}
			f := newFake()
			f.noTCX = noTCX
			h := openFake(t, t.TempDir(), f)
			prepareTwo(t, h, f)
			whole, state := f.dump(), dumpState(t, h)
			f.age(h, loader.Handover{ABI: 1})
			f.changes, f.failAt = 0, failAt
			_, err := h.Up(UpRequest{})
			if err == nil {
				if d := cmp.Diff(whole, f.dump()) + cmp.Diff(state, dumpState(t, h)); d != "" || f.handover != nil || f.dp.staged {
					t.Errorf("the other version's datapath is there still: %v\n%s", f.handover != nil, d)
				}
				if failAt < 5 {
					t.Errorf("only %d changes", failAt-1)
				}
				break
			}
			if !errors.Is(err, errInjected) {
				t.Fatalf("change %d: %v", failAt, err)
			}
			if f.handover == nil { // what comes after the swap is finished by the next one
				f.failAt = 0
				must(t)(h.Up(UpRequest{}))
			} else if f.dp != nil {
				t.Errorf("change %d: half a datapath is left", failAt)
			}
			if d := cmp.Diff(state, dumpState(t, h)); d != "" {
				t.Errorf("change %d: the state is another:\n%s", failAt, d)
			}
		}
	}
}

// Conversations are cut only when that is agreed to, and nothing is touched until then.
func TestUpAsksBeforeItCuts(t *testing.T) {
	f := newFake()
	h := openFake(t, t.TempDir(), f)
	prepareTwo(t, h, f)
	state := dumpState(t, h)
	f.age(h, loader.Handover{ABI: 3, Lost: []string{"flows", "gens"}, Cut: 7})
	changes := f.changes
	_, err := h.Up(UpRequest{FastPath: new(bool)})
	wantKind(t, err, ErrConflict)
	for _, want := range []string{"layout 3", "flows, gens", "7 conversations would be cut"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
	if !strings.Contains(Hint(err), "--yes") {
		t.Errorf("hint %q", Hint(err))
	}
	if d := cmp.Diff(state, dumpState(t, h)); d != "" || f.changes != changes {
		t.Errorf("%d changes, state:\n%s", f.changes-changes, d)
	}
	for name, verb := range map[string]func() error{
		"disconnect": func() error { return h.Disconnect("w1") },
		"expose":     func() error { _, err := h.Expose("w1", specs(t, "90:90"), nil); return err },
		"status":     func() error { _, err := h.Status(); return err },
	} {
		err := verb()
		wantKind(t, err, ErrConflict)
		if !strings.Contains(err.Error(), "another version of ebnet loaded the datapath") {
			t.Errorf("%s: %v", name, err)
		}
	}
	d, err := h.Examine()
	if err != nil || d.Healthy {
		t.Errorf("doctor: %+v, %v", d, err)
	}
	must(t)(h.Up(UpRequest{Yes: true}))
	if f.handover != nil {
		t.Error("the other version's datapath is there still")
	}
}
