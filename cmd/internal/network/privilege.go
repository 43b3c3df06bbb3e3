package network

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/cmd/internal/trusted"
	"github.com/ebnet/ebnet/loader"
	"github.com/ebnet/ebnet/loader/netdev"
)

// capability is one that ebnet needs for something, see docs/privileges.md.
type capability struct {
	name string
	bit  int
}

var (
	capNetAdmin = capability{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN}
	capSysAdmin = capability{"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN}
	capBPF      = capability{"CAP_BPF", unix.CAP_BPF}
	capPerfmon  = capability{"CAP_PERFMON", unix.CAP_PERFMON}
)

// missing returns the first of the capabilities that this thread has not, and "" if it has all. The kernel does not say which one
// it has missed; each error's are in the order in which it asks for them.
func missing(effective uint64, wanted ...capability) string {
	has := func(bit int) bool { return effective>>bit&1 == 1 }
	for _, c := range wanted {
		implied := (c == capBPF || c == capPerfmon) && has(unix.CAP_SYS_ADMIN)
		if !has(c.bit) && !implied {
			return c.name
		}
	}
	return ""
}

// effective returns the capabilities of this thread, a bit each; all if they cannot be read.
func effective() uint64 {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 1<<64 - 1
	}
	return uint64(data[0].Effective) | uint64(data[1].Effective)<<32
}

// lacking says which capability an error of the packages below is for, "" if it is for none that is missing.
func lacking(err error, effective uint64) string {
	switch {
	case errors.Is(err, loader.ErrUnsupported): // the verifier allows less, and says nothing of that
		return missing(effective, capBPF, capPerfmon)
	case errors.Is(err, loader.ErrPermission):
		return missing(effective, capBPF, capNetAdmin, capSysAdmin)
	case errors.Is(err, netdev.ErrPermission):
		return missing(effective, capNetAdmin, capSysAdmin)
	}
	return ""
}

// checkPaths refuses directories that another user can turn, or put things into.
func checkPaths(o Options) error {
	for _, p := range []struct{ what, dir string }{{"state", o.StateDir}, {"bpffs", o.BPFFS}, {"cgroup", o.Cgroup}} {
		if err := trusted.Check(p.dir); err != nil {
			return &Error{What: p.what + " " + p.dir, Why: errors.Unwrap(err).Error(), Kind: ErrUnsupported, Err: err}
		}
	}
	for _, dir := range []string{o.BPFFS, filepath.Join(o.BPFFS, "v"+strconv.Itoa(loader.ABI))} {
		if err := checkDir("bpffs", dir, false); err != nil {
			return err
		}
	}
	return nil
}

// checkNSPath refuses what leads to a namespace by a link of another user.
func checkNSPath(ref string) error {
	path, err := netdev.ResolveNS(ref)
	if err != nil {
		return err
	}
	if err := trusted.Check(path); err != nil {
		return fmt.Errorf("network namespace %s: %w: %w", ref, netdev.ErrInvalid, errors.Unwrap(err))
	}
	return nil
}
