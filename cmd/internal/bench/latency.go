package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/cmd/internal/bench/report"
)

const (
	rrNote  = "One byte there and one back, again and again, by one TCP connection; client and server are threads on the same CPU, for half the time of a measurement."
	crrNote = "Connect, one byte there and one back, close, again and again; client and server are threads on the same CPU, for half the time of a measurement. " +
		"What the host tracks is flushed before each."
)

// latencyCases are one thing after another by TCP.
var latencyCases = []report.Case{
	{Name: "rr/out", Title: "Request and response, container to outside", Group: "rr", Unit: "requests/s", Note: rrNote},
	{Name: "rr/in", Title: "Request and response, outside to published port", Group: "rr", Unit: "requests/s", Note: rrNote},
	{Name: "rr/inside", Title: "Request and response, container to container", Group: "rr", Unit: "requests/s", Note: rrNote},
	{Name: "crr/out", Title: "Connections, container to outside", Group: "crr", Unit: "connections/s", Note: crrNote},
	{Name: "crr/in", Title: "Connections, outside to published port", Group: "crr", Unit: "connections/s", Note: crrNote},
}

func init() {
	for i := range latencyCases {
		latencyCases[i].Better = "higher"
	}
}

// latencyWarmUp is how long it goes on before it is measured.
const latencyWarmUp = 10 * time.Millisecond

func planLatency(ctx context.Context, l *lab, o *Options) (plan, error) {
	d := half(o.Seconds)
	last := 0 // stranger that was used, on any stage
	return planOn(ctx, l, o, latencyCases, streamPeers(), func(s *stage, c report.Case) (job, error) {
		group, name, _ := strings.Cut(c.Name, "/")
		w := s.way(name)
		j := job{estimate: d + latencyWarmUp + 10*time.Millisecond}
		if group == "rr" {
			j.run = func(ctx context.Context) (sample, error) { return l.requests(ctx, w, d) }
			return j, nil
		}
		j.estimate += 30 * time.Millisecond // flush
		j.run = func(ctx context.Context) (sample, error) {
			if err := l.flush(ctx, s); err != nil {
				return sample{}, err
			}
			return l.connections(ctx, w, d, &last)
		}
		return j, firstError(
			func() error { return s.meetStrangers(ctx) },
			// More than all rounds together leave in the minute that each stays.
			func() error { return w.client.setSysctl("net/ipv4/tcp_max_tw_buckets", "1000000") },
		)
	})
}

// requests measures one byte there and one back by one connection.
func (l *lab) requests(ctx context.Context, w way, d time.Duration) (sample, error) {
	c, err := w.connect()
	if err != nil {
		return sample{}, err
	}
	defer c.abort()
	for _, fd := range []int{c.client, c.server} {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return sample{}, err
		}
	}
	return l.face(w, func() error { return answer(c.server) }, func() { c.shutdown() }, func(t *times) error {
		return t.repeat(ctx, d, func() error { return ask(c.client) })
	})
}

// face lets the client and the server of a way work on the lab's CPU, each on a thread of its own
// where it belongs, until the client has done, and makes a sample of the times that it took.
func (l *lab) face(w way, server func() error, stop func(), client func(*times) error) (sample, error) {
	serving := make(chan error, 1)
	go func() { serving <- w.server.onCPU(l.cpu, server) }()
	var t times
	err := w.client.onCPU(l.cpu, func() error { return client(&t) })
	stop()
	if err := errors.Join(err, <-serving); err != nil {
		return sample{}, err
	}
	return t.sample()
}

// ask sends a request and waits for the response.
func ask(fd int) error {
	data := [1]byte{'?'}
	n, err := write(fd, data[:])
	if err == nil && n == 1 {
		n, err = read(fd, data[:])
	}
	if err == nil && n != 1 {
		err = errors.New("the server ended the connection")
	}
	if err != nil {
		return fmt.Errorf("request: %w", err)
	}
	return nil
}

// answer responds to each request until the client ends the connection.
func answer(fd int) error {
	var data [1]byte
	for {
		n, err := read(fd, data[:])
		if err == nil && n == 1 {
			n, err = write(fd, data[:])
		}
		if err != nil {
			return fmt.Errorf("response: %w", err)
		}
		if n == 0 {
			return nil
		}
	}
}

// addressLimit is how many connections are made with one address outside: well below half the
// number of ephemeral ports, of which connect takes the odd ones before it searches among all of
// them, which would soon be most of what is measured. Those in TIME_WAIT hold a port against their
// other address alone, so with fresh addresses neither the ports run out, nor is any conversation
// of before taken up again, and clients are left with the port range and settings that they have
// everywhere.
const addressLimit = 4 << 10

// connections measures connections by a way, each of one request. The addresses of the outside
// are strangers, from the one after the last that was used.
func (l *lab) connections(ctx context.Context, w way, d time.Duration, last *int) (sample, error) {
	listener, err := w.anywhere().listen()
	if err != nil {
		return sample{}, err
	}
	defer func() { _ = unix.Close(listener) }()
	first := w.beyond(stranger(*last + 1))
	made, to := 0, first
	connect := func() error {
		if made%addressLimit == 0 {
			*last++
			to = w.beyond(stranger(*last))
		}
		made++
		return to.once()
	}
	stop := func() { _ = unix.Shutdown(listener, unix.SHUT_RDWR) } // ends accept
	return l.face(w, func() error { return first.serve(listener) }, stop, func(t *times) error {
		return t.repeat(ctx, d, connect)
	})
}

// anywhere is the way with a server at all addresses that are outside.
func (w way) anywhere() way {
	if w.name == "out" {
		w.server.addr = netip.IPv4Unspecified()
	}
	return w
}

// beyond is the way from or to another address outside.
func (w way) beyond(addr netip.Addr) way {
	if w.name == "out" {
		w.server.addr, w.to = addr, netip.AddrPortFrom(addr, w.to.Port())
	} else {
		w.client.addr, w.seenAs = addr, addr
	}
	return w
}

// once makes a connection for one request, on a thread where the client is. It closes it first, so that its side keeps it in
// TIME_WAIT, as with most protocols.
func (w way) once() error {
	fd, err := tcpSocket()
	if err != nil {
		return err
	}
	if err = w.dial(fd); err != nil {
		err = fmt.Errorf("%s from %s to %s: %w", w.name, w.client.name, w.to, err)
	} else {
		err = ask(fd)
	}
	return errors.Join(err, unix.Close(fd))
}

// serve answers one connection after another, until the listener is shut down. The first one's
// source is checked; the others come the same way.
func (w way) serve(listener int) error {
	fd, err := w.accept(listener)
	for err == nil {
		err = errors.Join(answer(fd), unix.Close(fd))
		if err == nil {
			err = again(func() error {
				fd, err = acceptAny(listener)
				return err
			})
			if errors.Is(err, unix.EINVAL) { // shut down
				return nil
			}
		}
	}
	return err
}

// acceptAny takes a connection without asking where it comes from.
func acceptAny(listener int) (int, error) {
	fd, _, errno := unix.Syscall6(unix.SYS_ACCEPT4, uintptr(listener), 0, 0, unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// times are how long each of many repetitions took.
type times struct {
	each []time.Duration
	all  time.Duration
}

// repeat does something again and again for some time.
func (t *times) repeat(ctx context.Context, d time.Duration, do func() error) error {
	t.each = make([]time.Duration, 0, 1<<17)
	for end := time.Now().Add(latencyWarmUp); time.Now().Before(end); {
		if err := do(); err != nil {
			return err
		}
	}
	start := time.Now()
	for last := start; t.all < d; {
		if err := do(); err != nil {
			return err
		}
		now := time.Now()
		t.each = append(t.each, now.Sub(last))
		last, t.all = now, now.Sub(start)
		if len(t.each)%64 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// sample is how many there were by second, and the times below which most of them took.
func (t *times) sample() (sample, error) {
	if len(t.each) == 0 {
		return sample{}, errors.New("nothing was done in time")
	}
	slices.Sort(t.each)
	below := func(thousandths int) float64 {
		return float64(t.each[(len(t.each)*thousandths+999)/1000-1].Nanoseconds())
	}
	return sample{value: float64(len(t.each)) / t.all.Seconds(), extra: map[string]float64{
		"p50_ns": below(500), "p90_ns": below(900), "p99_ns": below(990), "p999_ns": below(999),
	}}, nil
}
