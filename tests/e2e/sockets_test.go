package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/tests/netlab"
)

// socketsArg, as the first argument, makes the test binary a process of the lab's
// cgroup that opens sockets and tells what they see: the socket programs act on
// such processes alone.
const socketsArg = "open-sockets"

// saw is what a process sees.
type saw struct {
	Err   string         // name of the error number; "" if it worked
	Peer  netip.AddrPort // getpeername
	From  netip.AddrPort // of the datagram received
	Seen  netip.AddrPort // how the service sees the process
	Bound []uint16       // what bind or connect chose

	Waited time.Duration // from the start to the end
}

// sockets runs an operation in a process of the lab's cgroup and of node's namespace:
//
//	dial PROTOCOL FAMILY ADDR   connect, ask the service, getpeername
//	hold PROTOCOL FAMILY ADDR   connect, say a word, and wait for the end of it
//	send PROTOCOL FAMILY ADDR   sendto and recvmsg on a socket that is not connected
//	bind PROTOCOL FAMILY ADDR   bind; FAMILY may be 6only
//	any PROTOCOL FAMILY N ADDR  bind port 0 N times, and connect N times to ADDR
//
// FAMILY is 4 or 6; of 6, an IPv4 ADDR is mapped.
func sockets(t *testing.T, s *site, node *netlab.Node, args ...string) (result saw) {
	t.Helper()
	if s.Host.Cgroup == "" {
		t.Skip("SKIP: there is no cgroup2 mount here")
	}
	dir, err := os.Open(s.Host.Cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, append([]string{socketsArg}, args...)...)
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if err := node.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %v: %s", args, err, problems.String())
	}
	if err := json.Unmarshal(out.Bytes(), &result); err != nil {
		t.Fatalf("%v: %v: %s", args, err, out.String())
	}
	return result
}

// socketsMain is that process.
func socketsMain(args []string) {
	var result saw
	start := time.Now()
	err := openSockets(args, &result)
	result.Waited = time.Since(start)
	var number unix.Errno
	switch {
	case errors.As(err, &number):
		result.Err = unix.ErrnoName(number)
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_ = json.NewEncoder(os.Stdout).Encode(result)
}

func openSockets(args []string, result *saw) error {
	to, err := netip.ParseAddrPort(args[len(args)-1])
	if err != nil {
		return err
	}
	if args[0] == "any" {
		n, err := strconv.Atoi(args[3])
		if err != nil {
			return err
		}
		return chooseAny(args[1], args[2], n, to, result)
	}
	fd, err := newSocket(args[1], args[2])
	if err != nil {
		return err
	}
	switch args[0] {
	case "dial":
		return dial(fd, args[1], sockaddr(args[2], to), result)
	case "hold":
		return hold(fd, sockaddr(args[2], to))
	case "send":
		return send(fd, sockaddr(args[2], to), result)
	}
	return unix.Bind(fd, sockaddr(args[2], to))
}

func newSocket(protocol, family string) (fd int, err error) {
	kind, domain := unix.SOCK_STREAM, unix.AF_INET
	if protocol == "udp" {
		kind = unix.SOCK_DGRAM
	}
	if family != "4" {
		domain = unix.AF_INET6
	}
	if fd, err = unix.Socket(domain, kind, 0); err != nil {
		return fd, err
	}
	limit := unix.NsecToTimeval((3 * time.Second).Nanoseconds())
	err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit))
	if family == "6only" {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1))
	}
	return fd, err
}

func sockaddr(family string, a netip.AddrPort) unix.Sockaddr {
	if family == "4" {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// dial connects and asks a service who is there.
func dial(fd int, protocol string, to unix.Sockaddr, result *saw) error {
	if err := unix.Connect(fd, to); err != nil {
		return err
	}
	question := "who\n"
	if protocol == "udp" {
		question = "hello"
	}
	if _, err := unix.Write(fd, []byte(question)); err != nil {
		return err
	}
	if err := answer(fd, result); err != nil {
		return err
	}
	peer, err := unix.Getpeername(fd)
	result.Peer = addrPort(peer)
	return err
}

// hold returns the error that ends a connection, or EAGAIN if nothing does for long.
func hold(fd int, to unix.Sockaddr) error {
	limit := unix.NsecToTimeval(works.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return err
	}
	if err := unix.Connect(fd, to); err != nil {
		return err
	}
	if _, err := unix.Write(fd, []byte("echo\nhello\n")); err != nil {
		return err
	}
	for {
		n, err := unix.Read(fd, make([]byte, 256))
		if err != nil || n == 0 {
			return err
		}
	}
}

// send asks on a socket that is not connected.
func send(fd int, to unix.Sockaddr, result *saw) error {
	if err := unix.Sendto(fd, []byte("hello"), 0, to); err != nil {
		return err
	}
	return answer(fd, result)
}

func answer(fd int, result *saw) (err error) {
	buf := make([]byte, 256)
	n, _, _, from, err := unix.Recvmsg(fd, buf, nil, 0)
	if err != nil {
		return err
	}
	result.From = addrPort(from)
	seen, _, _ := strings.Cut(strings.TrimSpace(string(buf[:n])), " ")
	result.Seen, err = netip.ParseAddrPort(seen)
	return err
}

// chooseAny lets the kernel choose ports, by bind and by connect.
func chooseAny(protocol, family string, n int, to netip.AddrPort, result *saw) error {
	for i := range 2 * n {
		fd, err := newSocket(protocol, family)
		if err != nil {
			return err
		}
		// Closed by an RST, so that the port is free at once.
		if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return err
		}
		if i < n {
			err = unix.Bind(fd, sockaddr(family, netip.AddrPortFrom(netip.IPv4Unspecified(), 0)))
		} else {
			err = unix.Connect(fd, sockaddr(family, to))
		}
		if err != nil {
			return err
		}
		own, err := unix.Getsockname(fd)
		if err != nil {
			return err
		}
		result.Bound = append(result.Bound, addrPort(own).Port())
		unix.Close(fd)
	}
	return nil
}
