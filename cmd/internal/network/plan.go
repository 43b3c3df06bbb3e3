package network

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ebnet/ebnet/ipam"
	"github.com/ebnet/ebnet/loader"
	"github.com/ebnet/ebnet/loader/failpoint"
	"github.com/ebnet/ebnet/loader/netdev"
)

// step is one change of the kernel or the state. do and undo may be nil; undo
// takes back exactly what do has done, and is not called if do failed, unless the
// step is partial.
type step struct {
	text    string // for people; "" for what is part of the step before
	do      func() error
	undo    func() error
	partial bool // do may have done a part when it fails, and undo takes that back
}

// apply carries the steps out or, for a dry run, only shows them. If one fails,
// those before it are undone in reverse order and its error is returned; if that
// fails too, the error's hint says so.
func (h *Host) apply(steps []step) error { return (&work{h: h}).do(steps...) }

// work is apply for a plan that becomes known piece by piece.
type work struct {
	h    *Host
	done []step
}

func (w *work) do(steps ...step) error {
	for _, s := range steps {
		if s.text != "" {
			w.h.say("%s", s.text)
		}
		if w.h.o.DryRun {
			continue
		}
		if s.do != nil {
			if err := failpoint.Do("step", s.text, s.do); err != nil {
				if s.partial {
					w.done = append(w.done, s)
				}
				return w.undo(explain(err))
			}
		}
		w.done = append(w.done, s)
	}
	return nil
}

// undo takes everything done so far back. It returns cause.
func (w *work) undo(cause *Error) *Error {
	var left []string
	for _, s := range slices.Backward(w.done) {
		if s.undo == nil {
			continue
		}
		if err := failpoint.Do("undo", s.text, s.undo); err != nil {
			left = append(left, err.Error())
		}
	}
	w.done = nil
	if len(left) == 0 {
		if err := w.h.state.discard(); err != nil {
			left = append(left, err.Error())
		}
	}
	if len(left) > 0 {
		return cause.hint("not everything could be undone (%s); `ebnet up` repairs it", strings.Join(left, "; "))
	}
	return cause
}

// say reports a step.
func (h *Host) say(format string, args ...any) {
	if h.o.Step != nil {
		h.o.Step(fmt.Sprintf(format, args...))
	}
}

// intent records what a verb is about to do, in one transaction. fn checks,
// records and returns the steps; what it returns an error for has not happened.
func (h *Host) intent(fn func(*tx) ([]step, error)) (steps []step, err error) {
	h.state.created = false // by this verb
	err = h.state.change(!h.o.DryRun, func(t *tx) error {
		steps, err = fn(t)
		return err
	})
	if err != nil {
		return nil, explain(err)
	}
	return steps, nil
}

// commit is a step of the state alone.
func (h *Host) commit(text string, do func(*tx) error) step {
	return step{text: text, do: func() error { return h.state.change(true, do) }}
}

// kinds says what the errors of the packages below mean for a command.
var kinds = []struct {
	is, kind error
	hint     string
}{
	{loader.ErrNotLoaded, ErrFailed, "run `ebnet up` first"},
	{loader.ErrOtherVersion, ErrConflict, "`ebnet up` replaces it"},
	{loader.ErrPermission, ErrUnsupported, "run as root"},
	{netdev.ErrPermission, ErrUnsupported, "run as root"},
	{loader.ErrUnsupported, ErrUnsupported, ""},
	{netdev.ErrUnsupported, ErrUnsupported, ""},
	{loader.ErrConflict, ErrConflict, "`ebnet down` removes the datapath, `ebnet up` loads it again"},
	{loader.ErrFull, ErrConflict, ""},
	{netdev.ErrExists, ErrConflict, ""},
	{netdev.ErrBusy, ErrConflict, ""},
	{netdev.ErrNotFound, ErrNotFound, ""},
	{netdev.ErrInvalid, ErrInvalid, ""},
	{ipam.ErrInvalid, ErrInvalid, ""},
	{ipam.ErrOutside, ErrInvalid, ""},
	{ipam.ErrReserved, ErrConflict, ""},
	{ipam.ErrInUse, ErrConflict, ""},
	{ipam.ErrExhausted, ErrConflict, ""},
}

// explain makes any error an *Error; the packages below name the object in the
// text already.
func explain(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	for _, k := range kinds {
		if !errors.Is(err, k.is) {
			continue
		}
		e := &Error{Why: oneLine(err), Hint: k.hint, Kind: k.kind, Err: err}
		if name := lacking(err, effective()); name != "" {
			e.Why += "; " + name + " is missing"
			e.Hint = "run as root, or with the capabilities that docs/privileges.md lists"
		}
		return e
	}
	return &Error{Why: oneLine(err), Kind: ErrFailed, Err: err}
}

// oneLine is the text of an error that may be several joined.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
