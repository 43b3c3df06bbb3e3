package netlab

import (
	"net"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// AttachFirst puts a program that decides nothing before all others on a device's hook,
// by tcx, as another tool may do, and returns what takes it away.
func (n *Node) AttachFirst(tb testing.TB, device string, ingress bool) (detach func()) {
	tb.Helper()
	where := ebpf.AttachTCXEgress
	if ingress {
		where = ebpf.AttachTCXIngress
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "foreign", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}, // TCX_NEXT
	})
	if err != nil {
		tb.Fatal(err)
	}
	defer prog.Close()
	var l link.Link
	err = n.Do(func() error {
		dev, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		l, err = link.AttachTCX(link.TCXOptions{Interface: dev.Index, Program: prog, Attach: where, Anchor: link.Head()})
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return func() { _ = l.Close() }
}
