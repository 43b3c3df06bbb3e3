package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/loader/failpoint"
)

// TCX reports whether programs attach by tcx links. If not, the caller attaches
// ProgramFD(hook) by a clsact filter and detaches it likewise.
func (d *Datapath) TCX() bool { return d.about.NoTcx == 0 }

// ProgramID returns the kernel's id of a hook's program, or -1 if it is not pinned.
func (d *Datapath) ProgramID(hook Hook) int {
	id, err := d.programID(hook)
	if err != nil {
		return -1
	}
	return int(id)
}

// ProgramFD returns the file descriptor of a hook's program, valid until Close, or
// -1 if it is not pinned.
func (d *Datapath) ProgramFD(hook Hook) int {
	p, err := d.program(hook)
	if err != nil {
		return -1
	}
	return p.FD()
}

// Attach attaches the hook's program to a device by a pinned tcx link; if it is
// attached there already, nothing happens.
//
// It becomes the first on its hook, since a program that accepts a packet ends the
// chain, and then no guard of ours would see it. Ours goes on to the others with what
// it does not decide. Only on an uplink's ingress it is the last: what filters there
// today goes on to filter what enters published ports.
func (d *Datapath) Attach(hook Hook, ifindex int) error {
	if d.Attached(hook, ifindex) {
		return nil
	}
	prog, err := d.program(hook)
	if err != nil {
		return err
	}
	if d.linked(hook, ifindex) {
		// Another one's program runs there; no packet passes between the two.
		if gone, err := giveProgram(d.links.link(hook, ifindex), prog); err == nil && !gone {
			return nil
		}
	}
	if err := d.Detach(hook, ifindex); err != nil {
		return err
	}
	where := ebpf.AttachTCXEgress
	if hook.Ingress() {
		where = ebpf.AttachTCXIngress
	}
	opts := link.TCXOptions{Interface: ifindex, Program: prog, Attach: where}
	if hook != FromUplink {
		opts.Anchor = link.Head()
	}
	if err := failpoint.Reach("attach", string(hook)); err != nil {
		return err
	}
	l, err := link.AttachTCX(opts)
	if err != nil {
		return fmt.Errorf("attach %s to interface %d: %w", hook, ifindex, explain(err))
	}
	defer func() { _ = l.Close() }()
	if err := pinAt(l, d.links.link(hook, ifindex)); err != nil {
		return fmt.Errorf("pin %s of interface %d: %w", hook, ifindex, permission(err))
	}
	return nil
}

// Detach removes the link. A link that is not there is no error.
func (d *Datapath) Detach(hook Hook, ifindex int) error {
	if err := detach(d.links.link(hook, ifindex)); err != nil {
		return fmt.Errorf("detach %s from interface %d: %w", hook, ifindex, err)
	}
	return nil
}

// detach ends a pinned link and removes its pin. Removing the pin alone would end it
// too, but only some time later, and until then no other can take its place.
func detach(path string) error {
	l, err := link.LoadPinnedLink(path, nil)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err == nil:
		err = errors.Join(failpoint.Do("detach", path, l.Detach), l.Close())
		if err != nil && !errors.Is(err, unix.ENOLINK) { // ENOLINK: its device is gone
			return permission(err)
		}
	}
	if err := unpin(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return permission(err)
	}
	return nil
}

// Attachments lists the pinned tcx links; those whose device is gone too.
func (d *Datapath) Attachments() ([]Attachment, error) {
	entries, err := os.ReadDir(d.links.links())
	if err != nil {
		return nil, fmt.Errorf("list links: %w", permission(err))
	}
	var all []Attachment
	for _, e := range entries {
		if at, ok := parseLink(e.Name()); ok {
			all = append(all, at)
		}
	}
	return all, nil
}

// Attached reports whether the hook's program, as it is pinned now, runs at the device
// by a live tcx link.
func (d *Datapath) Attached(hook Hook, ifindex int) bool {
	program, ok := d.linkedProgram(hook, ifindex)
	return ok && d.runs(hook, program)
}

// linked reports whether any program runs at the device by the hook's link.
func (d *Datapath) linked(hook Hook, ifindex int) bool {
	_, ok := d.linkedProgram(hook, ifindex)
	return ok
}

func (d *Datapath) linkedProgram(hook Hook, ifindex int) (id ebpf.ProgramID, ok bool) {
	l, err := link.LoadPinnedLink(d.links.link(hook, ifindex), nil)
	if err != nil {
		return 0, false
	}
	defer func() { _ = l.Close() }()
	info, err := l.Info()
	if err != nil || info.TCX() == nil || int(info.TCX().Ifindex) != ifindex {
		return 0, false
	}
	return info.Program, true
}

// Program is somebody's program on a hook.
type Program struct {
	ID   uint32
	Name string // as its owner called it, "" if that is not known
	Link uint32 // the link that it is attached by; 0: by none
}

// String names the program as bpftool does.
func (p Program) String() string {
	if p.Name == "" {
		return strconv.FormatUint(uint64(p.ID), 10)
	}
	return fmt.Sprintf("%d (%s)", p.ID, p.Name)
}

// Ahead lists the programs that run before the hook's own on a device where that is to be
// the first, by tcx. It is nil where the own one does not run, and for FromUplink, which
// leaves the others their turn on purpose.
func (d *Datapath) Ahead(hook Hook, ifindex int) ([]Program, error) {
	if hook == FromUplink || !d.TCX() || !d.Attached(hook, ifindex) {
		return nil, nil
	}
	own, err := d.programID(hook)
	if err != nil {
		return nil, err
	}
	where := ebpf.AttachTCXEgress
	if hook.Ingress() {
		where = ebpf.AttachTCXIngress
	}
	chain, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: where})
	if err != nil {
		return nil, fmt.Errorf("list programs on interface %d: %w", ifindex, permission(err))
	}
	var ahead []Program
	for _, p := range chain.Programs {
		if p.ID == own {
			return ahead, nil
		}
		l, _ := p.LinkID()
		ahead = append(ahead, Program{ID: uint32(p.ID), Name: programName(p.ID), Link: uint32(l)})
	}
	return nil, nil // ours has just gone
}

func (d *Datapath) programID(hook Hook) (ebpf.ProgramID, error) {
	if id, known := d.ids[hook]; known {
		return id, nil
	}
	prog, err := d.program(hook)
	if err != nil {
		return 0, err
	}
	info, err := prog.Info()
	if err != nil {
		return 0, fmt.Errorf("inspect program %s: %w", hook, permission(err))
	}
	id, _ := info.ID()
	d.ids[hook] = id
	return id, nil
}

// programName returns "" for a program that has no name or is gone.
func programName(id ebpf.ProgramID) string {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return ""
	}
	defer func() { _ = p.Close() }()
	info, err := p.Info()
	if err != nil {
		return ""
	}
	return info.Name
}
