package bench

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// way is one of the ways that packets can take on a stage: from a client to a server, and back.
type way struct {
	name           string // "out", "in" or "inside"
	client, server end
	clientPort     uint16         // of a client that has one of its own
	serverPort     uint16         // where the server is
	to             netip.AddrPort // what the client sends to
	seenAs         netip.Addr     // the client, by the server
}

// The ways that a stage has, and the port of the client on each.
var clientPorts = map[string]uint16{"out": 6001, "in": 6002, "inside": 6003}

func (s *stage) way(name string) way {
	w := way{name: name, clientPort: clientPorts[name], serverPort: servicePort}
	switch name {
	case "in":
		w.client, w.server, w.to, w.seenAs = s.outside, s.c1, s.published, s.outside.addr
	case "inside":
		w.client, w.server, w.to, w.seenAs = s.c1, s.c2, netip.AddrPortFrom(s.c2.addr, servicePort), s.c1.addr
	default:
		w.client, w.server, w.to, w.seenAs = s.c1, s.outside, netip.AddrPortFrom(s.outside.addr, servicePort), s.seenAs
	}
	return w
}

// conversation is an exchange of datagrams by one way, which goes on for the whole run.
type conversation struct {
	way
	clientFD, serverFD int
	established        bool
	last               time.Time // when both sides heard of each other
}

// A conversation counts as established when both sides have been talking for a while: Linux
// tracks it as a stream after 2 s, ebnet confirms it then.
const (
	establishTime = 2300 * time.Millisecond
	keepAlive     = 10 * time.Second // well below every time after which one is forgotten
	forgotten     = 25 * time.Second // below the time after which a young one is
)

// payload is what measured datagrams carry: 18 bytes make the shortest Ethernet frame.
var payload = []byte("ebnet bench, 18 by")

// converse opens the sockets of a conversation.
func converse(w way) (c *conversation, err error) {
	c = &conversation{way: w, clientFD: -1, serverFD: -1}
	if c.serverFD, err = udpSocket(w.server, w.serverPort); err != nil {
		return nil, err
	}
	if c.clientFD, err = udpSocket(w.client, w.clientPort); err == nil {
		err = unix.Connect(c.clientFD, sockaddr(w.to))
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Close closes the sockets.
func (c *conversation) Close() error {
	for _, fd := range []int{c.clientFD, c.serverFD} {
		if fd >= 0 {
			_ = unix.Close(fd) // nothing is buffered in it
		}
	}
	c.clientFD, c.serverFD = -1, -1
	return nil
}

// udpSocket opens a socket with the address of an end and a port, whose reads end after a
// while.
func udpSocket(e end, port uint16) (fd int, err error) {
	err = e.do(func() error {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, err
	}
	wait := unix.NsecToTimeval((300 * time.Millisecond).Nanoseconds())
	err = firstError(
		func() error { return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait) },
		func() error { return unix.Bind(fd, sockaddr(netip.AddrPortFrom(e.addr, port))) },
	)
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("socket of %s at %s:%d: %w", e.name, e.addr, port, err)
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

// ready sees to it that the conversation is established and that datagrams arrive both ways,
// translated as they must be.
func (c *conversation) ready() error {
	if c.established && time.Since(c.last) < keepAlive {
		return c.exchange()
	}
	if c.established && time.Since(c.last) < forgotten {
		if err := c.exchange(); err == nil {
			return nil
		}
	}
	return c.establish()
}

// establish talks both ways until the conversation counts as established.
func (c *conversation) establish() error {
	// The server is connected to the client of before, whose port may be another one now.
	if err := c.disconnectServer(); err != nil {
		return err
	}
	c.established = false
	for end := time.Now().Add(establishTime); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err := c.exchange(); err != nil {
			return err
		}
	}
	c.established = true
	return c.exchange()
}

func (c *conversation) disconnectServer() error {
	var none unix.RawSockaddrAny // AF_UNSPEC is 0
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(c.serverFD), uintptr(unsafe.Pointer(&none)), unix.SizeofSockaddrInet4)
	if errno != 0 {
		return fmt.Errorf("disconnect the socket of %s: %w", c.server.name, errno)
	}
	return nil
}

// tries is how often a datagram is sent again before it is said not to arrive.
const tries = 5

// exchange sends a datagram there and one back.
func (c *conversation) exchange() error {
	from, err := c.deliver(c.clientFD, c.serverFD)
	if err != nil {
		return fmt.Errorf("%s from %s to %s: %w", c.name, c.client.name, c.to, err)
	}
	if from.Addr() != c.seenAs {
		return fmt.Errorf("%s: %s sees %s as the source, not %s", c.name, c.server.name, from, c.seenAs)
	}
	// Connected, a socket sends without looking for the way each time, as the client does.
	if err := unix.Connect(c.serverFD, sockaddr(from)); err != nil {
		return fmt.Errorf("connect the socket of %s: %w", c.server.name, err)
	}
	if from, err = c.deliver(c.serverFD, c.clientFD); err != nil {
		return fmt.Errorf("%s, the answer of %s: %w", c.name, c.server.name, err)
	}
	if from != c.to {
		return fmt.Errorf("%s: the answer comes from %s, not %s", c.name, from, c.to)
	}
	c.last = time.Now()
	return nil
}

// deliver sends a datagram by one socket until another one has it, and returns its source.
func (c *conversation) deliver(by, at int) (from netip.AddrPort, err error) {
	var buffer [64]byte
	for range tries {
		if _, err = unix.Write(by, payload); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			return from, err
		}
		var sender unix.Sockaddr
		_, sender, err = unix.Recvfrom(at, buffer[:], 0)
		if peer, ok := sender.(*unix.SockaddrInet4); ok && err == nil {
			return netip.AddrPortFrom(netip.AddrFrom4(peer.Addr), uint16(peer.Port)), drain(at)
		}
	}
	return from, fmt.Errorf("no datagram arrives: %w", err)
}

// drain throws away what is left in a socket of earlier tries.
func drain(fd int) error {
	var buffer [64]byte
	for {
		_, _, err := unix.Recvfrom(fd, buffer[:], unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return err
		}
	}
}
