package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/cmd/internal/bench/report"
)

// newFlowsCases are conversations that begin.
var newFlowsCases = []report.Case{{
	Name: "newflows/udp", Title: "New conversations, container to outside", Group: "newflows", Unit: "flows/s", Better: "higher",
	Note: "Datagrams of 18 bytes, each to another address, by one socket and one CPU, counted at the far end; " +
		"up to 60,000 in half the time of a measurement. What the host tracks is flushed before. arrived is the share that did.",
}}

const (
	newFlowsMost = 60_000
	newFlowsPort = 6004 // of the client
)

// newFlowsProbe is the stranger to whom it is tried whether datagrams arrive as they must.
var newFlowsProbe = stranger(newFlowsMost + 1)

func planNewFlows(ctx context.Context, l *lab, o *Options) (plan, error) {
	d := half(o.Seconds)
	return planOn(ctx, l, o, newFlowsCases, builders, func(s *stage, _ report.Case) (job, error) {
		return job{
			estimate: d + 50*time.Millisecond,
			run:      func(ctx context.Context) (sample, error) { return l.newFlows(ctx, s, d) },
		}, s.meetStrangers(ctx)
	})
}

// newFlows begins as many conversations as it can.
func (l *lab) newFlows(ctx context.Context, s *stage, d time.Duration) (sample, error) {
	fd, err := udpSocket(s.c1, newFlowsPort)
	if err != nil {
		return sample{}, err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := s.tryStranger(fd); err != nil {
		return sample{}, err
	}
	if err := l.flush(ctx, s); err != nil {
		return sample{}, err
	}
	sink, err := l.far.sink(s.outside, servicePort)
	if err != nil {
		return sample{}, err
	}
	var f flood
	err = onCPU(l.cpu, func() error {
		before, err := l.far.count()
		if err != nil {
			return err
		}
		start := time.Now()
		if f.sent, err = sendToStrangers(ctx, fd, d); err != nil {
			return err
		}
		f.took = time.Since(start)
		after, err := l.far.count()
		f.arrived = after - before
		return err
	})
	if err := errors.Join(err, sink.Close()); err != nil {
		return sample{}, err
	}
	if f.arrived == 0 {
		return sample{}, fmt.Errorf("none of %d datagrams arrived", f.sent)
	}
	return sample{value: float64(f.arrived) / f.took.Seconds(), extra: map[string]float64{
		"ns": float64(f.took.Nanoseconds()) / float64(f.arrived), "arrived": float64(f.arrived) / float64(f.sent),
	}}, nil
}

// tryStranger sends to a stranger who tells where it comes from.
func (s *stage) tryStranger(fd int) error {
	at, err := udpSocket(end{s.outside.node, s.outside.device, newFlowsProbe}, servicePort)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(at) }()
	var buffer [64]byte
	for range tries {
		if err = unix.Sendto(fd, payload, 0, sockaddr(netip.AddrPortFrom(newFlowsProbe, servicePort))); err != nil {
			return err
		}
		var sender unix.Sockaddr
		_, sender, err = unix.Recvfrom(at, buffer[:], 0)
		if from, ok := sender.(*unix.SockaddrInet4); ok && err == nil {
			if addr := netip.AddrFrom4(from.Addr); addr != s.seenAs {
				return fmt.Errorf("those outside see %s as the source, not %s", addr, s.seenAs)
			}
			return nil
		}
	}
	return fmt.Errorf("no datagram arrives: %w", err)
}

// sendToStrangers sends one datagram to each of them, for some time at most.
func sendToStrangers(ctx context.Context, fd int, d time.Duration) (total uint64, err error) {
	b := newBatch(payload)
	var names [batchSize]unix.RawSockaddrInet4
	for i := range names {
		names[i] = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: swap16(servicePort)}
		b.headers[i].hdr.Name = (*byte)(unsafe.Pointer(&names[i]))
		b.headers[i].hdr.Namelen = unix.SizeofSockaddrInet4
	}
	most := newFlowsLimit()
	for end := time.Now().Add(d); total+batchSize <= most && time.Now().Before(end); {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		for i := range names {
			names[i].Addr = stranger(int(total) + i).As4()
		}
		sent, err := b.send(fd)
		if err != nil {
			return total, err
		}
		total += uint64(sent)
	}
	return total, nil
}

// newFlowsLimit is how many conversations are begun at most: with more than connection tracking
// has room for, dropping others would be measured.
func newFlowsLimit() uint64 {
	b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_max")
	if err != nil {
		return newFlowsMost // it is not there, and neither are the peers that use it
	}
	limit, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || limit == 0 { // 0: none
		return newFlowsMost
	}
	return min(newFlowsMost, limit*9/10)
}
