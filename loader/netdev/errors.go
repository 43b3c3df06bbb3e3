package netdev

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

var (
	// ErrNotFound says that the namespace, device or address is not there.
	ErrNotFound = errors.New("not found")

	// ErrExists says that the name is taken by something that is not ours to change.
	ErrExists = errors.New("exists already")

	// ErrInvalid says that an argument can never work: a malformed name, a file
	// that is no network namespace.
	ErrInvalid = errors.New("invalid")

	// ErrPermission says that the caller lacks a capability (CAP_NET_ADMIN or
	// CAP_SYS_ADMIN).
	ErrPermission = errors.New("not permitted")

	// ErrUnsupported says that the running kernel lacks a feature.
	ErrUnsupported = errors.New("not supported by this kernel")

	// ErrBusy says that the kernel object is in use and cannot go or change now.
	ErrBusy = errors.New("in use")
)

// sentinel joins the package's sentinel to a kernel error, so that callers
// decide by errors.Is and people still read the kernel's word.
func sentinel(err error) error {
	var kind error
	switch {
	case err == nil:
		return nil
	case notFound(err), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ESRCH):
		kind = ErrNotFound
	case errors.Is(err, unix.EEXIST):
		kind = ErrExists
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		kind = ErrPermission
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		kind = ErrUnsupported
	case errors.Is(err, unix.EBUSY):
		kind = ErrBusy
	default:
		return err
	}
	return fmt.Errorf("%w (%w)", kind, err)
}
