package soak

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ebnet/ebnet/tests/netlab"
	"github.com/ebnet/ebnet/tests/walk"
)

// traffic is all that is sent. Its counts are of what it did and saw.
type traffic struct {
	lab     *netlab.Lab
	history *history
	wg      sync.WaitGroup
	stop    chan struct{}
	pause   atomic.Int64 // nanoseconds between what one worker does

	mu        sync.Mutex
	broken    []string
	listeners map[string][]io.Closer // by namespace of the walk

	conversations, datagrams, answers, said, rubbish, bytes atomic.Int64
}

func newTraffic(lab *netlab.Lab) *traffic {
	t := &traffic{lab: lab, history: newHistory(), stop: make(chan struct{}), listeners: map[string][]io.Closer{}}
	t.pause.Store(int64(2 * time.Millisecond))
	return t
}

// end stops all workers, once.
func (t *traffic) end() {
	select {
	case <-t.stop:
		return
	default:
		close(t.stop)
	}
	t.mu.Lock()
	for _, ls := range t.listeners {
		closeAll(ls)
	}
	t.mu.Unlock()
	t.wg.Wait()
}

func closeAll(cs []io.Closer) {
	for _, c := range cs {
		c.Close()
	}
}

// broke notes what must not happen.
func (t *traffic) broke(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.broken = append(t.broken, fmt.Sprintf(format, args...))
}

// every runs work again and again until the end, as often as the governor lets it.
func (t *traffic) every(work func()) {
	t.repeat(func() time.Duration { return time.Duration(t.pause.Load()) }, work)
}

// each runs work again and again until the end, with a pause that stays the same.
func (t *traffic) each(pause time.Duration, work func()) {
	t.repeat(func() time.Duration { return pause }, work)
}

func (t *traffic) repeat(pause func() time.Duration, work func()) {
	t.wg.Go(func() {
		for {
			select {
			case <-t.stop:
				return
			case <-time.After(pause()):
				work()
			}
		}
	})
}

// bulk is how much one download is.
const bulk = 256 << 10

// download fetches bytes over a connection, which must arrive as they were sent.
func (t *traffic) download(from *netlab.Node, at netip.AddrPort) {
	if err := from.Download(at, bulk); err != nil {
		select {
		case <-t.stop:
		default:
			t.broke("a download from %v: %v", at, err)
		}
		return
	}
	t.bytes.Add(bulk)
}

// keepTalking holds a conversation until the end, which nothing may cut.
func (t *traffic) keepTalking(what string, from *netlab.Node, to netip.AddrPort) error {
	e, err := from.DialEcho(netip.AddrPort{}, to)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	t.conversations.Add(1)
	t.wg.Go(func() {
		defer e.Close()
		for i := 0; ; i++ {
			select {
			case <-t.stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
			if err := e.Say(fmt.Sprint(what, i)); err != nil {
				t.broke("the conversation %s was cut: %v", what, err)
				return
			}
			t.said.Add(1)
		}
	})
	return nil
}

// The ports of the walk's endpoints, see package walk: their own ones, and the host's.
const (
	firstInside, lastInside = 80, 95
)

func hostPort() uint16 {
	switch rand.IntN(3) {
	case 0:
		return uint16(8000 + rand.IntN(27))
	case 1:
		return uint16(40000 + rand.IntN(15))
	}
	return uint16(9000 + rand.IntN(8))
}

// question is what is sent to a published port: who should get it is not in it, since the
// receiver is judged by whom the port led to.
type question struct {
	Protocol string
	At       netip.AddrPort
	Sent     int64 // nanoseconds since the traffic began
}

// began is what times in questions count from.
var began = time.Now()

func (q question) arrival(space string) arrival {
	return arrival{walk.Target{Protocol: q.Protocol, At: q.At}, space, began.Add(time.Duration(q.Sent)), time.Now()}
}

func ask(protocol string, at netip.AddrPort) []byte {
	b, err := json.Marshal(question{protocol, at, int64(time.Since(began))})
	if err != nil {
		panic(err) // of a constant shape
	}
	return append(b, '\n')
}

// listen answers questions at all inner ports of a namespace, and asks its way out.
func (t *traffic) listen(c *netlab.Container) {
	var all []io.Closer
	space := c.Endpoint
	for port := uint16(firstInside); port <= lastInside; port++ {
		at := netip.AddrPortFrom(netip.IPv4Unspecified(), port)
		pc, err := c.ListenUDP(at)
		if err != nil {
			t.broke("listen in %s: %v", c.Name, err)
			return
		}
		ln, err := c.ListenTCP(at)
		if err != nil {
			t.broke("listen in %s: %v", c.Name, err)
			return
		}
		all = append(all, pc, ln)
		t.wg.Go(func() { t.answerUDP(pc, space) })
		t.wg.Go(func() { t.answerTCP(ln, space) })
	}
	ctx, cancel := context.WithCancel(context.Background())
	all = append(all, closer(cancel), all[0]) // the socket by which it asks is closed too
	t.wg.Go(func() { t.askOut(ctx, all[0].(*net.UDPConn)) })
	t.mu.Lock()
	t.listeners[c.Name] = all
	t.mu.Unlock()
}

type closer func()

func (c closer) Close() error { c(); return nil }

// silence closes the sockets in a namespace.
func (t *traffic) silence(c *netlab.Container) {
	t.mu.Lock()
	all := t.listeners[c.Name]
	delete(t.listeners, c.Name)
	t.mu.Unlock()
	closeAll(all)
}

func (t *traffic) answerUDP(pc *net.UDPConn, space string) {
	for b := make([]byte, 512); ; {
		n, peer, err := pc.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		var q question
		if json.Unmarshal(b[:n], &q) != nil {
			continue // an answer to askOut
		}
		t.history.arrived(q.arrival(space))
		_, _ = pc.WriteToUDPAddrPort([]byte(space), peer)
	}
}

func (t *traffic) answerTCP(ln *net.TCPListener, space string) {
	for {
		c, err := ln.AcceptTCP()
		if err != nil {
			return
		}
		t.wg.Go(func() {
			defer c.Close()
			// A socket that waits for its peer would keep the namespace for minutes.
			_ = c.SetLinger(0)
			_ = c.SetDeadline(time.Now().Add(time.Second))
			b := make([]byte, 512)
			n, err := c.Read(b)
			var q question
			if err == nil && json.Unmarshal(b[:n], &q) == nil {
				t.history.arrived(q.arrival(space))
				_, _ = io.WriteString(c, space)
				_, _ = c.Read(b) // until the client has closed
			}
		})
	}
}

// askOut sends datagrams outside while the namespace is there; whether there is a way out
// is the walk's business.
func (t *traffic) askOut(ctx context.Context, pc *net.UDPConn) {
	for ctx.Err() == nil {
		time.Sleep(100 * time.Millisecond)
		if _, err := pc.WriteToUDPAddrPort([]byte("out"), netip.AddrPortFrom(netlab.InternetAddr, outsidePort)); err == nil {
			t.datagrams.Add(1)
		}
	}
}

// askUDP sends questions from one socket to whatever ports the walk may have published, so
// that a port is asked by the same client again when it leads elsewhere.
func (t *traffic) askUDP(from *netlab.Node) error {
	pc, err := from.ListenUDP(netip.AddrPortFrom(netip.IPv4Unspecified(), 0))
	if err != nil {
		return err
	}
	t.wg.Go(func() {
		for b := make([]byte, 64); ; {
			if _, _, err := pc.ReadFromUDPAddrPort(b); err != nil {
				return
			}
			t.answers.Add(1)
		}
	})
	t.every(func() {
		at := t.aim("udp")
		if _, err := pc.WriteToUDPAddrPort(ask("udp", at), at); err == nil {
			t.datagrams.Add(1)
		}
	})
	t.wg.Go(func() {
		<-t.stop
		pc.Close()
	})
	return nil
}

// aim is where a port of the walk may be published, mostly where one is.
func (t *traffic) aim(protocol string) netip.AddrPort {
	if open := t.history.open(protocol); len(open) > 0 && rand.IntN(4) > 0 {
		return open[rand.IntN(len(open))]
	}
	return netip.AddrPortFrom([]netip.Addr{netlab.HostAddr, netlab.HostAddr2}[rand.IntN(2)], hostPort())
}

// askTCP opens a connection to a port that may be published.
func (t *traffic) askTCP(from *netlab.Node) {
	at := t.aim("tcp")
	c, err := from.Dial("tcp", netip.AddrPort{}, at, 100*time.Millisecond)
	if err != nil {
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(200 * time.Millisecond))
	if _, err := c.Write(ask("tcp", at)); err != nil {
		return
	}
	b := make([]byte, 64)
	if _, err := c.Read(b); err == nil {
		t.conversations.Add(1)
	}
}

// fetch asks a service that must be there for who asks.
func (t *traffic) fetch(what string, from *netlab.Node, protocol string, at netip.AddrPort) {
	if _, err := from.Who(protocol, at, 10*time.Second); err != nil {
		select {
		case <-t.stop:
		default:
			t.broke("%s does not answer: %v", what, err)
		}
		return
	}
	t.conversations.Add(1)
}

// govern holds the load, of this process and of the commands that it has run, at share CPUs.
func (t *traffic) govern(share float64) {
	t.wg.Go(func() {
		used, at := cpu(), time.Now()
		for {
			select {
			case <-t.stop:
				return
			case <-time.After(time.Second):
			}
			now, then := cpu(), time.Now()
			load := (now - used).Seconds() / then.Sub(at).Seconds()
			pause := float64(t.pause.Load())
			switch {
			case load > share*1.05:
				pause *= 1.25
			case load < share*0.95:
				pause /= 1.25
			}
			t.pause.Store(int64(min(max(pause, 50e3), 100e6)))
			used, at = now, then
		}
	})
}

// cpu is what this process and those that it has waited for have used, as user and in the
// kernel.
func cpu() (total time.Duration) {
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if syscall.Getrusage(who, &u) == nil {
			total += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return total
}
