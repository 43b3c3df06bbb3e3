package netdev

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// dumpAttempts bounds how often a dump is repeated before it counts as failed.
const dumpAttempts = 10

// retryDump runs a netlink dump until no change came between its parts: a
// result with netlink.ErrDumpInterrupted may lack entries or have them twice.
func retryDump[T any](dump func() (T, error)) (T, error) {
	for attempt := 1; ; attempt++ {
		v, err := dump()
		if attempt == dumpAttempts || !errors.Is(err, netlink.ErrDumpInterrupted) {
			return v, err
		}
	}
}
