package bench

import (
	"errors"
	"fmt"
	"io"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/ebnet/ebnet/loader/netdev"
)

// farEnd counts what arrives at the far end of a way, see program sink.
type farEnd struct {
	objects programObjects
}

func newFarEnd() (*farEnd, error) {
	f := &farEnd{}
	if err := loadProgramObjects(&f.objects, nil); err != nil {
		return nil, fmt.Errorf("load the counter of the far end: %w", err)
	}
	return f, nil
}

func (f *farEnd) Close() error { return f.objects.Close() }

// sink lets a device swallow the packets to a port until it is closed.
func (f *farEnd) sink(e end, port uint16) (io.Closer, error) {
	if err := f.objects.SinkPort.Set(swap16(port)); err != nil {
		return nil, err
	}
	return attach(e.node, e.device, f.objects.Sink)
}

// count is how many packets were swallowed so far.
func (f *farEnd) count() (total uint64, err error) {
	var each []uint64
	if err := f.objects.Sunk.Lookup(uint32(0), &each); err != nil {
		return 0, err
	}
	for _, n := range each {
		total += n
	}
	return total, nil
}

// attach attaches a program to a device's ingress, as ebnet does: by tcx where the kernel has
// it, else as a filter. The closer takes it off again.
func attach(n *node, device string, program *ebpf.Program) (closer io.Closer, err error) {
	dev, err := n.device(device)
	if err != nil {
		return nil, err
	}
	err = n.do(func() error {
		closer, err = link.AttachTCX(link.TCXOptions{Interface: dev.Index, Program: program, Attach: ebpf.AttachTCXIngress})
		if errors.Is(err, ebpf.ErrNotSupported) {
			closer, err = filter{n, dev.Index}, netdev.AttachFilter(dev.Index, true, program.FD(), "bench")
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("attach to %s of %s: %w", device, n.name, err)
	}
	return closer, nil
}

// filter is a program that is attached as a filter.
type filter struct {
	node    *node
	ifindex int
}

func (f filter) Close() error {
	return f.node.do(func() error { return netdev.DetachFilter(f.ifindex, true) })
}

// swap16 brings a port into network byte order; ebnet runs on little-endian machines.
func swap16(port uint16) uint16 { return port<<8 | port>>8 }
