package netlab

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// torrentWindow is how many datagrams of a torrent are under way at once in one direction: few enough for
// the receiver's buffer, so that one that does not come was lost on its way.
const torrentWindow = 64

// torrentPatience is how long a datagram may be under way before it is lost.
const torrentPatience = 2 * time.Second

// Torrent is a UDP conversation in which both ends send numbered datagrams, as fast as the other takes them
// or at a pace, until Stop. Each says whose it is, and each end sees where it comes from.
type Torrent struct {
	Name     string
	pause    time.Duration // before each datagram
	up, down flood         // from the client, and to it
	stop     chan struct{}
	senders  sync.WaitGroup
	wg       sync.WaitGroup // of the receivers
	socks    [2]*net.UDPConn

	mu    sync.Mutex
	wrong []string // what is not as it was sent
}

// flood is one direction.
type flood struct {
	id             uint64
	sent, received atomic.Uint64
	lost           atomic.Uint64
	peer           atomic.Pointer[netip.AddrPort] // of the sender, as the receiver sees it
}

var torrents atomic.Uint64 // so far, for their ids

// Torrent starts one from a socket of n to remote, where it reaches server at port. With a pause it
// does not go at full rate.
func (n *Node) Torrent(tb testing.TB, name string, pause time.Duration, remote netip.AddrPort, server *Node, port uint16) *Torrent {
	tb.Helper()
	t := &Torrent{Name: name, pause: pause, stop: make(chan struct{})}
	t.up.id, t.down.id = torrents.Add(1), torrents.Add(1)
	here, there := n.sockets(tb, netip.AddrPortFrom(netip.IPv4Unspecified(), 0), server, port)
	t.socks = [2]*net.UDPConn{here, there}
	t.down.peer.Store(&remote) // nobody else may answer
	t.senders.Go(func() { t.send(&t.up, here, func() netip.AddrPort { return remote }) })
	t.wg.Go(func() { t.receive(&t.up, there) })
	t.wg.Go(func() { t.receive(&t.down, here) })
	t.senders.Go(func() { t.send(&t.down, there, func() netip.AddrPort { return t.Peer() }) })
	tb.Cleanup(func() { t.Stop() })
	for end := time.Now().Add(patience); t.down.received.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("torrent %s does not flow", name)
		}
	}
	return t
}

// Peer is the client's address as the server sees it; the zero value until it does.
func (t *Torrent) Peer() netip.AddrPort {
	if p := t.up.peer.Load(); p != nil {
		return *p
	}
	return netip.AddrPort{}
}

func (t *Torrent) send(f *flood, pc *net.UDPConn, to func() netip.AddrPort) {
	var waiting time.Time // since when the window is full
	for {
		select {
		case <-t.stop:
			return
		default:
		}
		remote := to()
		open := int64(f.sent.Load()) - int64(f.received.Load()) - int64(f.lost.Load())
		switch {
		case !remote.IsValid():
			time.Sleep(time.Millisecond)
		case open < torrentWindow:
			waiting = time.Time{}
			if t.pause > 0 {
				time.Sleep(t.pause)
			}
			number := f.sent.Add(1)
			text := binary.BigEndian.AppendUint64(nil, f.id)
			if _, err := pc.WriteToUDPAddrPort(binary.BigEndian.AppendUint64(text, number), remote); err != nil {
				f.lost.Add(1)
			}
		case waiting.IsZero():
			waiting = time.Now()
		case time.Since(waiting) > torrentPatience:
			f.lost.Add(uint64(open))
		default:
			time.Sleep(20 * time.Microsecond)
		}
	}
}

func (t *Torrent) receive(f *flood, pc *net.UDPConn) {
	buf := make([]byte, 64)
	for {
		n, from, err := pc.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		f.peer.CompareAndSwap(nil, &from)
		switch {
		case n != 16 || binary.BigEndian.Uint64(buf) != f.id:
			t.note("%d bytes of another conversation came from %v: %x", n, from, buf[:n])
		case from != *f.peer.Load():
			t.note("datagram %d came from %v, those before from %v", binary.BigEndian.Uint64(buf[8:]), from, *f.peer.Load())
		default:
			f.received.Add(1)
		}
	}
}

func (t *Torrent) note(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.wrong) < 20 {
		t.wrong = append(t.wrong, fmt.Sprintf(format, args...))
	}
}

// TorrentReport is what a torrent came to.
type TorrentReport struct {
	Sent, Lost uint64
	Wrong      []string // what came from elsewhere than before, or was another's
}

// Stop ends the torrent once, waits for what is under way and says what it came to. Stopping twice is no error.
func (t *Torrent) Stop() TorrentReport {
	select {
	case <-t.stop:
	default:
		close(t.stop)
		t.senders.Wait()
		for end := time.Now().Add(torrentPatience); time.Now().Before(end) && t.underWay() > 0; {
			time.Sleep(time.Millisecond)
		}
		t.socks[0].Close()
		t.socks[1].Close()
		t.wg.Wait()
	}
	r := TorrentReport{Wrong: t.wrong}
	for _, f := range []*flood{&t.up, &t.down} {
		r.Sent += f.sent.Load()
		r.Lost += f.sent.Load() - min(f.sent.Load(), f.received.Load())
	}
	return r
}

func (t *Torrent) underWay() (n uint64) {
	for _, f := range []*flood{&t.up, &t.down} {
		n += f.sent.Load() - min(f.sent.Load(), f.received.Load())
	}
	return n
}
