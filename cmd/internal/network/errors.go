package network

import (
	"errors"
	"fmt"
)

// The kinds of error, one per decision a caller can take; see ExitCode.
var (
	// ErrFailed is the kind of what has no kind of its own.
	ErrFailed = errors.New("failed")

	// ErrInvalid says that a value cannot be right, whatever the host's state.
	ErrInvalid = errors.New("invalid")

	// ErrUnsupported says that this kernel, these privileges or this version
	// of ebnet cannot do it.
	ErrUnsupported = errors.New("not supported")

	// ErrConflict says that something that exists stands in the way.
	ErrConflict = errors.New("conflict")

	// ErrNotFound says that what was named does not exist.
	ErrNotFound = errors.New("not found")
)

// Error is what the verbs and nouns of this package return.
type Error struct {
	What string // the object, e.g. `network "web"`
	Why  string // what is wrong with it, lower case
	Hint string // the way out, one line, or ""
	Kind error  // one of the Err… variables
	Err  error  // the cause, or nil; not part of the text
}

// Error returns "WHAT: WHY".
func (e *Error) Error() string {
	if e.What == "" {
		return e.Why
	}
	return e.What + ": " + e.Why
}

// Unwrap returns the kind and the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// ExitCode maps an error to the exit status of a command: 0 nil, 2 ErrInvalid,
// 3 ErrUnsupported, 4 ErrConflict, 5 ErrNotFound, 1 everything else.
func ExitCode(err error) int {
	if err == nil {
		return 0
	}
	for _, k := range exitCodes {
		if errors.Is(err, k.kind) {
			return k.code
		}
	}
	return 1
}

var exitCodes = []struct {
	kind error
	code int
}{
	{ErrFailed, 1}, // first: what says it failed is not, by its cause, something else
	{ErrInvalid, 2},
	{ErrUnsupported, 3},
	{ErrConflict, 4},
	{ErrNotFound, 5},
}

// Hint returns the way out of an error, one line, or "".
func Hint(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Hint
	}
	return ""
}

func invalid(what, format string, args ...any) *Error {
	return &Error{What: what, Why: fmt.Sprintf(format, args...), Kind: ErrInvalid}
}

func unsupported(what, format string, args ...any) *Error {
	return &Error{What: what, Why: fmt.Sprintf(format, args...), Kind: ErrUnsupported}
}

func conflict(what, format string, args ...any) *Error {
	return &Error{What: what, Why: fmt.Sprintf(format, args...), Kind: ErrConflict}
}

func notFound(what, format string, args ...any) *Error {
	return &Error{What: what, Why: fmt.Sprintf(format, args...), Kind: ErrNotFound}
}

func failed(what string, err error) *Error {
	return &Error{What: what, Why: err.Error(), Kind: ErrFailed, Err: err}
}

func (e *Error) hint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}
