package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ebnet/ebnet/cmd/internal/bench/report"
)

const bulkNote = "Writes and reads of 256 KiB, each stream's sender and receiver on threads that all CPUs may run, for half the time of a measurement. " +
	"cpu_busy is the part of all CPUs' time that was work, cpu_ns_per_byte that work by byte; what else runs on the machine counts too."

// bulkCases are TCP streams that send as fast as they can.
var bulkCases = []report.Case{
	{Name: "tcp/out-1", Title: "TCP bulk, container to outside, 1 stream"},
	{Name: "tcp/out-4", Title: "TCP bulk, container to outside, 4 streams"},
	{Name: "tcp/in-1", Title: "TCP bulk, outside to published port, 1 stream"},
	{Name: "tcp/in-4", Title: "TCP bulk, outside to published port, 4 streams"},
	{Name: "tcp/inside-1", Title: "TCP bulk, container to container, 1 stream"},
	{Name: "tcp/inside-4", Title: "TCP bulk, container to container, 4 streams"},
}

func init() {
	for i := range bulkCases {
		c := &bulkCases[i]
		c.Group, c.Unit, c.Better, c.Note = "tcp", "bit/s", "higher", bulkNote
	}
}

func planBulk(ctx context.Context, l *lab, o *Options) (plan, error) {
	return planOn(ctx, l, o, bulkCases, streamPeers(), func(s *stage, c report.Case) (job, error) {
		name, streams := strings.TrimPrefix(c.Name, "tcp/"), 1
		if strings.HasSuffix(name, "-4") {
			streams = 4
		}
		return bulkJob(s.way(name[:len(name)-2]), streams, o), nil
	})
}

// bulkJob moves data by a way.
func bulkJob(w way, streams int, o *Options) job {
	d := half(o.Seconds)
	return job{
		estimate: d + bulkWarmUp + 10*time.Millisecond,
		run: func(ctx context.Context) (sample, error) {
			b := &bulk{}
			s, err := b.measure(ctx, w, streams, d)
			return s, errors.Join(err, b.end())
		},
	}
}

// bulkWarmUp is how long streams run before they are measured: TCP finds its rate, and its
// buffers their size.
const bulkWarmUp = 60 * time.Millisecond

// bulkSize is how much a system call is given to send, or asks for.
const bulkSize = 256 << 10

// bulk is streams at work.
type bulk struct {
	connections []connection
	arrived     atomic.Int64 // bytes
	ending      atomic.Bool
	workers     sync.WaitGroup
	failure     atomic.Pointer[error] // the first
}

// measure starts the streams and counts what arrives for some time.
func (b *bulk) measure(ctx context.Context, w way, streams int, d time.Duration) (s sample, err error) {
	for range streams {
		c, err := w.connect()
		if err != nil {
			return s, err
		}
		b.connections = append(b.connections, c)
	}
	for _, c := range b.connections {
		b.work(func(data []byte) (int, error) { return write(c.client, data) })
		b.work(func(data []byte) (int, error) {
			n, err := read(c.server, data)
			b.arrived.Add(int64(n))
			return n, err
		})
	}
	if err := sleep(ctx, bulkWarmUp); err != nil {
		return s, err
	}
	before, err := readCPUTime()
	if err != nil {
		return s, err
	}
	bytes, start := b.arrived.Load(), time.Now()
	if err := sleep(ctx, d); err != nil {
		return s, err
	}
	took := time.Since(start)
	bytes = b.arrived.Load() - bytes
	after, err := readCPUTime()
	if err != nil {
		return s, err
	}
	if bytes == 0 {
		return s, fmt.Errorf("%s: no byte arrives", w.name)
	}
	worked := after.since(before)
	return sample{value: 8 * float64(bytes) / took.Seconds(), extra: map[string]float64{
		"cpu_ns_per_byte": float64(worked.busy.Nanoseconds()) / float64(bytes), "cpu_busy": worked.share(),
	}}, nil
}

// work does a transfer again and again on a thread of its own, until the connection ends.
func (b *bulk) work(transfer func(data []byte) (int, error)) {
	b.workers.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		data := make([]byte, bulkSize)
		for {
			n, err := transfer(data)
			if n > 0 && err == nil {
				continue
			}
			if err == nil {
				err = errors.New("the connection ended by itself")
			}
			if !b.ending.Load() {
				b.failure.CompareAndSwap(nil, &err)
			}
			return
		}
	})
}

// end ends the streams, and returns what was wrong with one.
func (b *bulk) end() error {
	b.ending.Store(true)
	for _, c := range b.connections {
		c.shutdown()
	}
	b.workers.Wait()
	for _, c := range b.connections {
		c.abort()
	}
	if err := b.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// sleep waits, or returns the error of a run that is interrupted meanwhile.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
