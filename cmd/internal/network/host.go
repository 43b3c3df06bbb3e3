package network

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/loader"
	"github.com/ebnet/ebnet/loader/failpoint"
	"github.com/ebnet/ebnet/loader/netdev"
)

// Host is the network namespace the process runs in, with its state. It may be
// used by one goroutine at a time, which does not change its namespace.
type Host struct {
	o     Options
	k     kernel
	state *state
	lock  *os.File // nil: nothing to lock
	verb  bool     // may change things
	umask int      // before it was opened, if verb
	dp    datapath // nil until datapath finds it
}

// Open opens the host's state, creating it with the first change. A state that
// does not exist is an empty one. While a Host is open for ReadWrite, Open waits
// in every other process, up to a minute.
//
// Returns ErrConflict when it has waited in vain, ErrFailed for a damaged state,
// ErrUnsupported without the privileges.
func Open(o Options, access Access) (*Host, error) {
	if err := checkPaths(o); err != nil {
		return nil, err
	}
	return open(o, access, linux{}, lockWait)
}

func open(o Options, access Access, k kernel, wait time.Duration) (*Host, error) {
	h := &Host{o: o, k: k, verb: access == ReadWrite && !o.DryRun}
	if h.verb {
		h.umask = unix.Umask(0o077) // files and pins have the modes that they are given
	}
	var err error
	if h.lock, err = takeLock(o.StateDir, access == ReadWrite, h.verb, wait); err != nil {
		_ = h.Close()
		return nil, err
	}
	if h.state, err = openState(o, access); err != nil {
		_ = h.Close()
		return nil, err
	}
	return h, nil
}

// Close releases what Open took. Closing twice is no error.
func (h *Host) Close() error {
	var errs []error
	if h.dp != nil {
		errs = append(errs, h.dp.Close())
		h.dp = nil
	}
	if h.state != nil {
		errs = append(errs, h.state.close())
		if h.state.unnamed && h.verb && sameFile(h.lock, h.lock.Name()) {
			// The lock protects nothing; who waits for it sees that the file is
			// gone and begins anew.
			_ = failpoint.Do("remove", h.lock.Name(), func() error { return os.Remove(h.lock.Name()) })
			_ = failpoint.Do("remove directory", "state", func() error { return os.Remove(h.o.StateDir) }) // if empty
		}
		h.state = nil
	}
	if h.lock != nil {
		errs = append(errs, h.lock.Close())
		h.lock = nil
	}
	if h.verb {
		unix.Umask(h.umask)
		h.verb = false
	}
	return errors.Join(errs...)
}

// datapath opens what is loaded, once. Returns loader.ErrNotLoaded, loader.ErrOtherVersion, or
// ErrConflict if that serves another namespace: the devices here are not those
// that the state speaks of.
func (h *Host) datapath() (datapath, error) {
	if h.dp != nil {
		return h.dp, nil
	}
	dp, err := h.k.Open(h.o.BPFFS)
	if errors.Is(err, loader.ErrOtherVersion) {
		return nil, errors.Join(h.checkNamespace(), err)
	}
	if err != nil {
		return nil, err
	}
	if err := h.checkNamespace(); err != nil {
		_ = dp.Close()
		return nil, err
	}
	h.dp = dp
	return dp, nil
}

func (h *Host) checkNamespace() error {
	var host hostRecord
	err := h.state.view(func(t *tx) (err error) {
		host, err = t.host()
		return err
	})
	if err != nil || host.NSInode == 0 {
		return err
	}
	ns, err := h.k.CurrentNS()
	if err != nil {
		return err
	}
	defer h.k.CloseNS(ns)
	if ns.Dev != host.NSDev || ns.Inode != host.NSInode {
		return conflict("state "+h.o.StateDir, "ebnet is up in another network namespace with it").
			hint("run the command there, or give --state and --bpffs directories of this one's own")
	}
	return nil
}

// loaded is datapath for those who do without it too: nil if nothing is loaded.
func (h *Host) loaded() (datapath, error) {
	dp, err := h.datapath()
	if errors.Is(err, loader.ErrNotLoaded) {
		return nil, nil
	}
	return dp, err
}

// mustBeUp is datapath for what cannot be done without it.
func (h *Host) mustBeUp(what string) (datapath, error) {
	dp, err := h.datapath()
	if errors.Is(err, loader.ErrNotLoaded) {
		return nil, &Error{What: what, Why: "ebnet is not up", Hint: "run `ebnet up` first", Kind: ErrFailed, Err: err}
	}
	return dp, err
}

// attach attaches the hook's program to the device in the way the kernel has.
// changed is false if it runs there already.
func (h *Host) attach(dp datapath, hook loader.Hook, ifindex int) (changed bool, err error) {
	if dp.TCX() {
		if dp.Attached(hook, ifindex) {
			return false, nil
		}
		return true, dp.Attach(hook, ifindex)
	}
	id, there, err := h.k.FilterAttached(ifindex, hook.Ingress())
	// Of another version's datapath that still is in charge the filters are right as they are.
	if there && (dp.Staged() || id == dp.ProgramID(hook)) || err != nil {
		return false, err
	}
	return true, h.attachFilter(dp, hook, ifindex)
}

func (h *Host) attachFilter(dp datapath, hook loader.Hook, ifindex int) error {
	return h.k.AttachFilter(ifindex, hook.Ingress(), dp.ProgramFD(hook), string(hook))
}

// renewFilters gives the clsact filters the programs that are loaded now; tcx
// links have them already.
func (h *Host) renewFilters(dp datapath) error {
	if dp.TCX() {
		return nil
	}
	uplinks, err := dp.Uplinks()
	if err != nil {
		return err
	}
	at := map[int][]loader.Hook{}
	for _, ifindex := range uplinks {
		at[ifindex] = []loader.Hook{loader.FromUplink, loader.ToUplink}
	}
	links, err := h.k.Links()
	if err != nil {
		return err
	}
	for _, l := range links {
		switch {
		case !l.Ours():
		case l.Kind == "bridge":
			at[l.Index] = []loader.Hook{loader.FromBridge, loader.ToBridge}
		default:
			at[l.Index] = []loader.Hook{loader.FromContainer}
		}
	}
	for ifindex, hooks := range at {
		for _, hook := range hooks {
			_, there, err := h.k.FilterAttached(ifindex, hook.Ingress())
			if err == nil && there {
				err = h.attachFilter(dp, hook, ifindex)
			}
			if err != nil && !errors.Is(err, netdev.ErrNotFound) {
				return err
			}
		}
	}
	return nil
}

// detach is the inverse of attach; what is not attached is no error.
func (h *Host) detach(dp datapath, hook loader.Hook, ifindex int) error {
	if dp.TCX() {
		return dp.Detach(hook, ifindex)
	}
	return h.k.DetachFilter(ifindex, hook.Ingress())
}

// attachStep is a silent step that attaches the hook to the device that
// ifindex returns by then, and calls note if it was not attached yet.
func (h *Host) attachStep(dp datapath, hook loader.Hook, ifindex func() int, note func()) step {
	var changed bool
	return step{
		do: func() (err error) {
			if changed, err = h.attach(dp, hook, ifindex()); changed {
				note()
			}
			return err
		},
		undo: func() error {
			if !changed {
				return nil
			}
			return h.detach(dp, hook, ifindex())
		},
	}
}

// ownLink returns the device of that name if its alias says that it is ours;
// there being none is no error.
func (h *Host) ownLink(name, alias string) (l netdev.Link, ok bool, err error) {
	l, err = h.k.LinkByName(name)
	switch {
	case errors.Is(err, netdev.ErrNotFound):
		return netdev.Link{}, false, nil
	case err != nil:
		return netdev.Link{}, false, err
	}
	return l, l.Alias == alias, nil
}

// deleteLink removes a device; one that is gone is no error.
func (h *Host) deleteLink(ifindex int) error {
	if err := h.k.DeleteLink(ifindex); err != nil && !errors.Is(err, netdev.ErrNotFound) {
		return err
	}
	return nil
}

func quoted(what, name string) string { return fmt.Sprintf("%s %q", what, name) }

func bridgeAlias(network string) string { return netdev.AliasPrefix + network }
