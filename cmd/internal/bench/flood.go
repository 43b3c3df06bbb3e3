package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// batchSize is how many datagrams one system call sends.
const batchSize = 64

// mmsghdr is struct mmsghdr of sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

// batch is what sendmmsg is given: the same datagram many times, by a connected socket.
type batch struct {
	headers [batchSize]mmsghdr
	iovec   unix.Iovec
	data    []byte
}

func newBatch(data []byte) *batch {
	b := &batch{data: data}
	b.iovec.Base = &data[0]
	b.iovec.SetLen(len(data))
	for i := range b.headers {
		b.headers[i].hdr.Iov = &b.iovec
		b.headers[i].hdr.SetIovlen(1)
	}
	return b
}

// send sends the batch once and returns how many datagrams were taken. It is a raw system
// call: it never waits, and the scheduler would cost more than a packet.
func (b *batch) send(fd int) (int, error) {
	sent, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.headers[0])), batchSize, 0, 0, 0)
	switch {
	case errno == 0:
		return int(sent), nil
	case errors.Is(errno, unix.ENOBUFS), errors.Is(errno, unix.EAGAIN), errors.Is(errno, unix.EINTR), errors.Is(errno, unix.ECONNREFUSED):
		return 0, nil
	}
	return 0, fmt.Errorf("sendmmsg: %w", errno)
}

// flood is what a flood of datagrams came to.
type flood struct {
	sent, arrived uint64
	took          time.Duration
}

// warmUp is how long a flood runs before it is counted.
const warmUp = 20 * time.Millisecond

// flood sends datagrams by a socket for some time, on the lab's CPU, and counts those that
// count tells of at the far end. With veth devices a packet's whole way is work of the CPU that
// sends it.
func (l *lab) flood(ctx context.Context, fd int, count func() (uint64, error), d time.Duration) (f flood, err error) {
	b := newBatch(payload)
	return l.floodBy(ctx, func() (int, error) { return b.send(fd) }, count, d)
}

// floodBy is flood with a function that sends a batch and tells how much of it was taken.
func (l *lab) floodBy(ctx context.Context, send func() (int, error), count func() (uint64, error), d time.Duration) (f flood, err error) {
	err = onCPU(l.cpu, func() error {
		if _, err := sendFor(ctx, send, warmUp); err != nil {
			return err
		}
		before, err := count()
		if err != nil {
			return err
		}
		start := time.Now()
		if f.sent, err = sendFor(ctx, send, d); err != nil {
			return err
		}
		f.took = time.Since(start)
		after, err := count()
		f.arrived = after - before
		return err
	})
	return f, err
}

// sendFor sends again and again.
func sendFor(ctx context.Context, send func() (int, error), d time.Duration) (total uint64, err error) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		for range 8 {
			sent, err := send()
			if err != nil {
				return total, err
			}
			total += uint64(sent)
		}
	}
	return total, nil
}

// onCPU runs fn on a thread that stays on one CPU.
func onCPU(cpu int, fn func() error) error {
	result := make(chan error, 1)
	go func() {
		result <- firstError(func() error { return stayOn(cpu) }, fn)
	}()
	return <-result
}

// onCPU is the same on a thread inside the namespace.
func (n *node) onCPU(cpu int, fn func() error) error {
	return n.do(func() error { return firstError(func() error { return stayOn(cpu) }, fn) })
}

// stayOn keeps the calling goroutine on its thread, and that on one CPU.
func stayOn(cpu int) error {
	// Never unlocked: the thread ends with the goroutine, and its affinity with it.
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("stay on CPU %d: %w", cpu, err)
	}
	return nil
}
