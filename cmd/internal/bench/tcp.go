package bench

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a call on a TCP socket waits before the measurement has failed. It is
// longer than the kernel waits before it sends the first packet of a connection again.
const patience = 2 * time.Second

// tcpSocketAt opens a socket at an end.
func tcpSocketAt(e end) (fd int, err error) {
	err = e.do(func() error {
		fd, err = tcpSocket()
		return err
	})
	return fd, err
}

// tcpSocket opens a socket where the calling thread is.
func tcpSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("TCP socket: %w", err)
	}
	return fd, nil
}

// limitWaits lets calls on a socket, and on those that it accepts, end after patience.
func limitWaits(fd int) error {
	wait := unix.NsecToTimeval(patience.Nanoseconds())
	return firstError(
		func() error { return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait) },
		func() error { return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait) },
	)
}

// listen opens the socket of the server of a way.
func (w way) listen() (fd int, err error) {
	if fd, err = tcpSocketAt(w.server); err != nil {
		return -1, err
	}
	at := netip.AddrPortFrom(w.server.addr, w.serverPort)
	err = firstError(
		func() error { return limitWaits(fd) },
		func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) },
		func() error { return unix.Bind(fd, sockaddr(at)) },
		func() error { return unix.Listen(fd, 1024) },
	)
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("listen at %s of %s: %w", at, w.server.name, err)
	}
	return fd, nil
}

// dial connects a socket that was opened at the client's end, from its address and any port.
func (w way) dial(fd int) error {
	from := unix.SockaddrInet4{Addr: w.client.addr.As4()}
	return firstError(
		func() error { return limitWaits(fd) },
		// The port is to be chosen when the destination is known, as without bind.
		func() error { return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1) },
		func() error { return unix.Bind(fd, &from) },
		func() error { return again(func() error { return unix.Connect(fd, sockaddr(w.to)) }) },
	)
}

// accept takes a connection and checks that it comes from the client, translated as it must be.
func (w way) accept(listener int) (fd int, err error) {
	var sender unix.Sockaddr
	err = again(func() error {
		fd, sender, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("%s: accept at %s: %w", w.name, w.server.name, err)
	}
	from, ok := sender.(*unix.SockaddrInet4)
	if !ok || netip.AddrFrom4(from.Addr) != w.seenAs {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("%s: %s sees %v as the source, not %s", w.name, w.server.name, sender, w.seenAs)
	}
	return fd, nil
}

// again calls a system call again as long as a signal interrupts it; the runtime sends some to
// its threads.
func again(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// connection is a TCP connection with both its sockets.
type connection struct{ client, server int }

// connect opens a connection by a way.
func (w way) connect() (c connection, err error) {
	c = connection{-1, -1}
	listener, err := w.listen()
	if err != nil {
		return c, err
	}
	defer func() { _ = unix.Close(listener) }()
	if c.client, err = tcpSocketAt(w.client); err != nil {
		return c, err
	}
	if err = w.dial(c.client); err != nil {
		err = fmt.Errorf("%s from %s to %s: %w", w.name, w.client.name, w.to, err)
	} else {
		c.server, err = w.accept(listener)
	}
	if err != nil {
		c.abort()
	}
	return c, err
}

// shutdown ends all calls that wait for the connection.
func (c connection) shutdown() {
	for _, fd := range []int{c.client, c.server} {
		_ = unix.Shutdown(fd, unix.SHUT_RDWR) // fails if the other side has ended it already
	}
}

// abort closes both sockets and throws away what is still under way.
func (c connection) abort() {
	for _, fd := range []int{c.client, c.server} {
		if fd >= 0 {
			_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			_ = unix.Close(fd)
		}
	}
}

// read and write are the system calls on a TCP socket. At the end of the connection they
// transfer 0 bytes.
func read(fd int, data []byte) (n int, err error)  { return transfer(unix.Read, fd, data) }
func write(fd int, data []byte) (n int, err error) { return transfer(unix.Write, fd, data) }

func transfer(call func(int, []byte) (int, error), fd int, data []byte) (n int, err error) {
	err = again(func() error {
		n, err = call(fd, data)
		return err
	})
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		return 0, nil
	case errors.Is(err, unix.EAGAIN):
		err = fmt.Errorf("nothing moves for %v", patience)
	}
	return 0, err
}
