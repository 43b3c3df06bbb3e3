package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/ebnet/ebnet/loader/failpoint"
)

// socketHooks are the programs on the sockets of the host's processes, by where they
// attach.
var socketHooks = map[Hook]ebpf.AttachType{
	"connect4":     ebpf.AttachCGroupInet4Connect,
	"connect6":     ebpf.AttachCGroupInet6Connect,
	"sendmsg4":     ebpf.AttachCGroupUDP4Sendmsg,
	"sendmsg6":     ebpf.AttachCGroupUDP6Sendmsg,
	"recvmsg4":     ebpf.AttachCGroupUDP4Recvmsg,
	"recvmsg6":     ebpf.AttachCGroupUDP6Recvmsg,
	"getpeername4": ebpf.AttachCgroupInet4GetPeername,
	"getpeername6": ebpf.AttachCgroupInet6GetPeername,
	"post_bind4":   ebpf.AttachCGroupInet4PostBind,
	"post_bind6":   ebpf.AttachCGroupInet6PostBind,
}

// AttachSockets attaches the socket programs to a cgroup2 directory, by pinned links;
// they act on the host's own network namespace alone. changed is false if they are
// there already.
func (d *Datapath) AttachSockets(cgroup string) (changed bool, err error) {
	id, err := cgroupID(cgroup)
	if err != nil {
		return false, err
	}
	for hook, where := range socketHooks {
		if d.socketAttached(hook, id) {
			continue
		}
		changed = true
		if err := d.attachSocket(hook, where, cgroup); err != nil {
			return changed, errors.Join(err, d.DetachSockets())
		}
	}
	return changed, nil
}

func (d *Datapath) attachSocket(hook Hook, where ebpf.AttachType, cgroup string) error {
	path := d.links.socket(hook)
	if err := detach(path); err != nil {
		return fmt.Errorf("detach %s: %w", hook, err)
	}
	prog, err := d.program(hook)
	if err != nil {
		return err
	}
	if err := failpoint.Reach("attach", string(hook)); err != nil {
		return err
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: where, Program: prog})
	if err != nil {
		return fmt.Errorf("attach %s to cgroup %s: %w", hook, cgroup, explain(err))
	}
	defer func() { _ = l.Close() }()
	if err := pinAt(l, path); err != nil {
		return fmt.Errorf("pin %s: %w", hook, permission(err))
	}
	return nil
}

// DetachSockets removes the socket programs' links. Links that are not there are no
// error.
func (d *Datapath) DetachSockets() error {
	var errs []error
	for hook := range socketHooks {
		if err := detach(d.links.socket(hook)); err != nil {
			errs = append(errs, fmt.Errorf("detach %s: %w", hook, err))
		}
	}
	return errors.Join(errs...)
}

// SocketsAttached reports whether all socket programs run on some cgroup.
func (d *Datapath) SocketsAttached() bool {
	for hook := range socketHooks {
		if !d.socketAttached(hook, 0) {
			return false
		}
	}
	return true
}

// socketAttached reports whether the hook's program has a live link to the cgroup with
// the id; 0: to any.
func (d *Datapath) socketAttached(hook Hook, cgroup uint64) bool {
	l, err := link.LoadPinnedLink(d.links.socket(hook), nil)
	if err != nil {
		return false
	}
	defer func() { _ = l.Close() }()
	info, err := l.Info()
	if err != nil || info.Cgroup() == nil || info.Cgroup().CgroupId == 0 {
		return false
	}
	return cgroup == 0 || info.Cgroup().CgroupId == cgroup
}

// cgroupID returns what links call a cgroup2 directory: its inode.
func cgroupID(dir string) (uint64, error) {
	st, err := os.Stat(dir)
	if err != nil {
		return 0, fmt.Errorf("inspect cgroup %s: %w", dir, permission(err))
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !st.IsDir() {
		return 0, fmt.Errorf("cgroup %s: %w", dir, fs.ErrInvalid)
	}
	return sys.Ino, nil
}

// isSocketHook: socket programs are pinned and replaced as the others, but not by device.
func isSocketHook(h Hook) bool {
	_, ok := socketHooks[h]
	return ok
}

// Peer is a socket of the host that talks to a published port.
type Peer struct {
	Cookie uint64         // the socket's, as in struct inet_diag_sockid
	Remote netip.AddrPort // the endpoint's
}

// ForgetPeers returns the sockets that were led to the published ports of these slots, and
// forgets what they called them. Some may be closed, or talk to others by now.
func (d *Datapath) ForgetPeers(slots ...uint32) ([]Peer, error) {
	keys, err := removeIf(d, "peers", func(_ *datapathPeerKey, p *datapathPeer) bool { return slices.Contains(slots, p.Slot) })
	all := make([]Peer, len(keys))
	for i, k := range keys {
		all[i] = Peer{Cookie: k.Cookie, Remote: addrPort(k.Addr, k.Port)}
	}
	return all, err
}
