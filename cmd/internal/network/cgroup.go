package network

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/loader"
	"github.com/ebnet/ebnet/loader/netdev"
)

// noSockets is what the host misses without the socket programs.
const noSockets = "published ports cannot be reached from the host itself, and its processes can bind them"

// findCgroup settles where the socket programs attach: the directory asked for, else
// the first cgroup2 mount. There being none is no error.
func (u *bringUp) findCgroup() error {
	dir := u.h.o.Cgroup
	if dir == "" {
		mount, err := u.h.k.CgroupMount()
		if err != nil {
			return err
		}
		if u.host.Cgroup = mount; mount == "" {
			u.warn("no cgroup2 is mounted: %s", noSockets)
		}
		return nil
	}
	u.host.Cgroup = dir
	return u.h.k.CheckCgroup(dir)
}

// socketStep attaches the socket programs where that is possible.
func (u *bringUp) socketStep() step {
	var before, changed bool
	undo := func() error {
		switch {
		case !changed:
			return nil
		case !before || u.was.Cgroup == "":
			return u.h.dp.DetachSockets()
		}
		_, err := u.h.dp.AttachSockets(u.was.Cgroup)
		return err
	}
	return step{
		text: socketText(u.host.Cgroup),
		do: func() (err error) {
			before = u.h.dp.SocketsAttached()
			if u.host.Cgroup == "" {
				return nil
			}
			changed, err = u.h.dp.AttachSockets(u.host.Cgroup)
			if errors.Is(err, loader.ErrUnsupported) {
				changed = false
				u.warn("%s: %s", oneLine(err), noSockets)
				return nil
			}
			switch {
			case err != nil:
				_ = undo() // the error to report is the first one
			case changed:
				u.changed()
			}
			return err
		},
		undo: undo,
	}
}

func socketText(cgroup string) string {
	if cgroup == "" {
		return ""
	}
	return "hook the sockets of cgroup " + cgroup
}

func (linux) CgroupMount() (string, error) { return netdev.CgroupMount() }

// CheckCgroup returns an Error unless dir is in a cgroup2 file system.
func (linux) CheckCgroup(dir string) error {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return notFound("cgroup "+dir, "no such directory")
	case err != nil:
		return fileError(dir, err)
	case st.Type != unix.CGROUP2_SUPER_MAGIC:
		return invalid("cgroup "+dir, "it is in no cgroup2 file system")
	}
	return nil
}
