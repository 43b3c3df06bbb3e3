//go:build !failpoint

package failpoint

// Reach returns the error that is to happen here; nil in a normal build. point says
// what comes next, of what it is done to.
func Reach(point, of string) error { return nil }

// Do carries a request out, unless it is to fail; see [Reach].
func Do(point, of string, request func() error) error { return request() }
