package ipam

import "errors"

var (
	// ErrInvalid says that a pool cannot be configured like this.
	ErrInvalid = errors.New("not valid")

	// ErrExhausted says that every address of the window, or every default
	// subnet, is taken.
	ErrExhausted = errors.New("exhausted")

	// ErrInUse says that the address is leased already.
	ErrInUse = errors.New("already in use")

	// ErrReserved says that the address is never leased; the error that wraps
	// it says what it is reserved for.
	ErrReserved = errors.New("reserved")

	// ErrOutside says that the address is not one of the subnet.
	ErrOutside = errors.New("outside the subnet")

	// ErrNotLeased says that the address to release is free.
	ErrNotLeased = errors.New("not leased")

	// ErrCorrupt says that what the store holds cannot be what a pool of this
	// configuration has put there.
	ErrCorrupt = errors.New("stored leases are corrupt")
)
