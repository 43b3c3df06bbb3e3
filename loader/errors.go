package loader

import "errors"

var (
	// ErrNotLoaded says that no datapath is pinned in the given directory.
	ErrNotLoaded = errors.New("the datapath is not loaded")

	// ErrNotFound says that the object is not in the datapath.
	ErrNotFound = errors.New("not found in the datapath")

	// ErrConflict says that the pinned datapath cannot become what was asked
	// for without being removed first, or belongs to another host.
	ErrConflict = errors.New("conflict with the pinned datapath")

	// ErrFull says that a map has no room for another entry.
	ErrFull = errors.New("map is full")

	// ErrUnsupported says that the running kernel lacks a feature; the error
	// that wraps it names the feature and the first version that has it.
	ErrUnsupported = errors.New("not supported by this kernel")

	// ErrPermission says that the caller lacks a capability.
	ErrPermission = errors.New("not permitted")
)
