package netdev

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// newHandle opens a netlink socket in the calling thread's namespace. Each
// function opens its own, so that the package keeps no state and a socket never
// outlives a change of namespace; opening one costs some 10 µs.
func newHandle() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", sentinel(err))
	}
	return h, nil
}

// withHandle runs fn with a netlink socket in the calling thread's namespace.
func withHandle(fn func(h *netlink.Handle) error) error {
	h, err := newHandle()
	if err != nil {
		return err
	}
	defer h.Close()
	return fn(h)
}
