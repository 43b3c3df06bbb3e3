package loader

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// kernel is what the running kernel offers, by trying.
type kernel struct {
	HZ       uint32 // timer interrupts a second
	TickNS   uint32 // nanoseconds between two of them
	FIBFlags uint32 // flags that bpf_fib_lookup knows
	TCX      bool
	Netns    uint64 // cookie of the network namespace
}

// Flags of bpf_fib_lookup and the first kernel with each.
const (
	fibSkipNeigh = 1 << 2 // BPF_FIB_LOOKUP_SKIP_NEIGH, Linux 6.3
	fibSrc       = 1 << 4 // BPF_FIB_LOOKUP_SRC, Linux 6.7
)

func probe(cfg Config) (kernel, error) {
	var k kernel
	if err := rlimit.RemoveMemlock(); err != nil {
		return k, fmt.Errorf("raise the memory lock limit: %w", permission(err))
	}
	tick, err := jiffy()
	if err != nil {
		return k, err
	}
	k.TickNS = uint32(tick)
	k.HZ = uint32((time.Second + tick/2) / tick)
	if k.Netns, err = netnsCookie(); err != nil {
		return k, err
	}
	for _, flag := range []uint32{fibSkipNeigh, fibSrc} {
		ok, err := fibKnows(flag)
		if err != nil {
			return k, err
		}
		if ok {
			k.FIBFlags |= flag
		}
	}
	if cfg.DisableTCX {
		return k, nil
	}
	k.TCX, err = haveTCX()
	return k, err
}

// jiffy returns the length of a timer tick. The coarse clock ticks with it, so that is
// the clock's resolution.
func jiffy() (time.Duration, error) {
	var res unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &res); err != nil || res.Nsec <= 0 {
		return 0, fmt.Errorf("read the resolution of the coarse clock: %w", err)
	}
	return time.Duration(res.Nsec), nil
}

// netnsCookie returns what socket programs see of the present network namespace
// (SO_NETNS_COOKIE, Linux 5.14).
func netnsCookie() (uint64, error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open a socket: %w", permission(err))
	}
	defer func() { _ = unix.Close(s) }()
	cookie, err := unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("%w: read the network namespace's cookie: %w", ErrUnsupported, err)
	}
	return cookie, nil
}

// fibKnows asks bpf_fib_lookup about interface 0 with the flag: a kernel that does
// not know it says EINVAL before it looks for the interface, the others ENODEV.
func fibKnows(flag uint32) (bool, error) {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "probe_fib",
		Type: ebpf.SchedCLS,
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R6, 0),
			asm.StoreMem(asm.RFP, -8, asm.R6, asm.DWord),
			asm.StoreMem(asm.RFP, -16, asm.R6, asm.DWord),
			asm.StoreMem(asm.RFP, -24, asm.R6, asm.DWord),
			asm.StoreMem(asm.RFP, -32, asm.R6, asm.DWord),
			asm.StoreMem(asm.RFP, -40, asm.R6, asm.DWord),
			asm.StoreMem(asm.RFP, -48, asm.R6, asm.DWord),
			asm.StoreMem(asm.RFP, -56, asm.R6, asm.DWord),
			asm.StoreMem(asm.RFP, -64, asm.R6, asm.DWord),
			asm.StoreImm(asm.RFP, -64, unix.AF_INET, asm.Byte), // struct bpf_fib_lookup: family
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -64),
			asm.Mov.Imm(asm.R3, 64),
			asm.Mov.Imm(asm.R4, int32(flag)),
			asm.FnFibLookup.Call(),
			asm.Return(),
		},
		License: "Dual BSD/GPL",
	})
	if err != nil {
		return false, fmt.Errorf("load a program: %w", explain(err))
	}
	defer func() { _ = prog.Close() }()
	ret, err := prog.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
	if err != nil {
		return false, fmt.Errorf("run a program: %w", explain(err))
	}
	return int32(ret) != -int32(unix.EINVAL), nil
}

// haveTCX tries to attach to an interface that cannot exist.
func haveTCX() (bool, error) {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:         "probe_tcx",
		Type:         ebpf.SchedCLS,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
		License:      "Dual BSD/GPL",
	})
	if err != nil {
		return false, fmt.Errorf("load a program: %w", explain(err))
	}
	defer func() { _ = prog.Close() }()
	_, err = link.AttachTCX(link.TCXOptions{Interface: 1<<31 - 1, Program: prog, Attach: ebpf.AttachTCXIngress})
	return !errors.Is(err, ebpf.ErrNotSupported), nil
}

// explain makes an error of the ebpf library one of this package's.
func explain(err error) error {
	var missing *ebpf.VerifierError
	switch {
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	case errors.As(err, &missing):
		return fmt.Errorf("%w: the verifier refuses: %w", ErrUnsupported, err)
	case errors.Is(err, ebpf.ErrMapIncompatible):
		return fmt.Errorf("%w: %w", ErrConflict, err)
	}
	return permission(err)
}
