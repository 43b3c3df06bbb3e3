package netlab

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// streamPeriod is the time between two datagrams of a stream's side.
const streamPeriod = 3 * time.Millisecond

// side is one end of a stream: it counts up in the datagrams it sends, and
// keeps the highest number it has received, and how many.
type side struct {
	sent, received atomic.Uint64
	count          atomic.Uint64
	peer           atomic.Pointer[netip.AddrPort] // nil until known
}

// Stream is a UDP conversation in which both ends send numbered datagrams all
// the time, until the test ends.
type Stream struct {
	client, server side
}

// sockets opens the two ends of a stream.
func (n *Node) sockets(tb testing.TB, local netip.AddrPort, server *Node, port uint16) (here, there *net.UDPConn) {
	tb.Helper()
	here, err := n.ListenUDP(local)
	if err != nil {
		tb.Fatal(err)
	}
	there, err = server.ListenUDP(netip.AddrPortFrom(netip.IPv4Unspecified(), port))
	if err != nil {
		here.Close()
		tb.Fatal(err)
	}
	return here, there
}

// Stream starts a stream from a socket of client to remote, where it reaches
// the node server at port. The zero local leaves the client's socket to the
// kernel.
func (n *Node) Stream(tb testing.TB, local, remote netip.AddrPort, server *Node, port uint16) *Stream {
	tb.Helper()
	if !local.IsValid() {
		local = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	}
	here, there := n.sockets(tb, local, server, port)
	s := &Stream{}
	s.client.peer.Store(&remote)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { s.client.send(here, stop) })
	wg.Go(func() { s.server.send(there, stop) })
	wg.Go(func() { s.client.receive(here, remote) })
	wg.Go(func() { s.server.receive(there, netip.AddrPort{}) })
	tb.Cleanup(func() {
		close(stop)
		here.Close()
		there.Close()
		wg.Wait()
	})
	return s
}

// send sends the next number to the peer every period; what cannot be sent is
// lost, as any datagram may be.
func (s *side) send(pc *net.UDPConn, stop chan struct{}) {
	tick := time.NewTicker(streamPeriod)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		if peer := s.peer.Load(); peer != nil {
			number := s.sent.Add(1)
			_, _ = pc.WriteToUDPAddrPort(binary.BigEndian.AppendUint64(nil, number), *peer)
		}
	}
}

// receive takes numbers from the peer only, if one is given; otherwise it
// learns the peer from the first datagram.
func (s *side) receive(pc *net.UDPConn, only netip.AddrPort) {
	buf := make([]byte, 64)
	for {
		n, from, err := pc.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if n != 8 || only.IsValid() && from != only {
			continue
		}
		s.peer.CompareAndSwap(nil, &from)
		if number := binary.BigEndian.Uint64(buf); number > s.received.Load() {
			s.received.Store(number)
		}
		s.count.Add(1)
	}
}

// Peer is the client's address as the server sees it.
func (s *Stream) Peer() netip.AddrPort {
	if p := s.server.peer.Load(); p != nil {
		return *p
	}
	return netip.AddrPort{}
}

// WaitFlowing returns when both ends have received a number that was sent
// after the call.
func (s *Stream) WaitFlowing(tb testing.TB) {
	tb.Helper()
	toServer, toClient := s.client.sent.Load(), s.server.sent.Load()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(streamPeriod) {
		if s.server.received.Load() > toServer && s.client.received.Load() > toClient {
			return
		}
	}
	tb.Fatalf("udp stream does not flow: client %d sent, %d received; server %d sent, %d received",
		s.client.sent.Load(), s.client.received.Load(), s.server.sent.Load(), s.server.received.Load())
}

// Lost is how many datagrams have not come, of those up to the highest number that has.
func (s *Stream) Lost() (lost uint64) {
	for _, side := range []*side{&s.client, &s.server} {
		received := side.received.Load() // before the count, which follows it
		lost += received - min(received, side.count.Load())
	}
	return lost
}

// Cut notes what has been sent until now, see [Cut.Check].
func (s *Stream) Cut() Cut {
	return Cut{s, s.client.sent.Load(), s.server.sent.Load()}
}

// Cut is a moment in a stream's life after which nothing may arrive.
type Cut struct {
	stream             *Stream
	toServer, toClient uint64
}

// Check lets the stream go on for a hundred datagrams each way and fails the
// test if one arrived that was sent after the cut.
func (c Cut) Check(tb testing.TB) {
	tb.Helper()
	s := c.stream
	for s.client.sent.Load() < c.toServer+100 || s.server.sent.Load() < c.toClient+100 {
		time.Sleep(streamPeriod)
	}
	if n := s.server.received.Load(); n > c.toServer {
		tb.Errorf("datagram %d reached the server, all after %d were to be cut off", n, c.toServer)
	}
	if n := s.client.received.Load(); n > c.toClient {
		tb.Errorf("datagram %d reached the client, all after %d were to be cut off", n, c.toClient)
	}
}

// Sent is how many datagrams have been sent, both ways.
func (s *Stream) Sent() uint64 { return s.client.sent.Load() + s.server.sent.Load() }
