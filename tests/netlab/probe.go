package netlab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// ListenTCP opens a listener in the namespace.
func (n *Node) ListenTCP(addr netip.AddrPort) (ln *net.TCPListener, err error) {
	err = n.Do(func() (err error) {
		ln, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(addr))
		return err
	})
	return ln, err
}

// ListenUDP opens a UDP socket in the namespace.
func (n *Node) ListenUDP(addr netip.AddrPort) (pc *net.UDPConn, err error) {
	err = n.Do(func() (err error) {
		pc, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(addr))
		return err
	})
	return pc, err
}

// Dial connects from the namespace; network is "tcp" or "udp". The zero local
// leaves the address and port to the kernel.
func (n *Node) Dial(network string, local, remote netip.AddrPort, timeout time.Duration) (c net.Conn, err error) {
	d := net.Dialer{Timeout: timeout}
	switch {
	case !local.IsValid():
	case network == "tcp":
		d.LocalAddr = net.TCPAddrFromAddrPort(local)
	default:
		d.LocalAddr = net.UDPAddrFromAddrPort(local)
	}
	err = n.Do(func() (err error) {
		c, err = d.DialContext(context.Background(), network+"4", remote.String())
		return err
	})
	return c, err
}

// dialService opens a TCP connection and sends the request line.
func (n *Node) dialService(local, remote netip.AddrPort, request string, timeout time.Duration) (net.Conn, error) {
	c, err := n.Dial("tcp", local, remote, timeout)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(max(timeout, patience)))
	if _, err := fmt.Fprintln(c, request); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Who asks a [Service] which address it sees this node come from; network is
// "tcp" or "udp". Lost datagrams are sent again until timeout.
func (n *Node) Who(network string, remote netip.AddrPort, timeout time.Duration) (netip.AddrPort, error) {
	return n.WhoFrom(network, netip.AddrPort{}, remote, timeout)
}

// WhoFrom is [Node.Who] with the local address and port given.
func (n *Node) WhoFrom(network string, local, remote netip.AddrPort, timeout time.Duration) (netip.AddrPort, error) {
	if network == "udp" {
		return n.whoUDP(local, remote, timeout)
	}
	c, err := n.dialService(local, remote, "who", timeout)
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer c.Close()
	line, err := io.ReadAll(c)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.ParseAddrPort(strings.TrimSpace(string(line)))
}

func (n *Node) whoUDP(local, remote netip.AddrPort, timeout time.Duration) (netip.AddrPort, error) {
	// Connected: an answer from another address or port does not count.
	c, err := n.Dial("udp", local, remote, timeout)
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer c.Close()
	buf := make([]byte, 2048)
	for end := time.Now().Add(timeout); time.Now().Before(end); {
		if _, err = c.Write([]byte("hello")); err != nil {
			time.Sleep(10 * time.Millisecond) // an ICMP error of the datagram before
			continue
		}
		_ = c.SetReadDeadline(time.Now().Add(150 * time.Millisecond))
		var size int
		if size, err = c.Read(buf); err == nil {
			seen, text, _ := strings.Cut(string(buf[:size]), " ")
			if text != "hello" {
				return netip.AddrPort{}, fmt.Errorf("datagram came back as %q", text)
			}
			return netip.ParseAddrPort(seen)
		}
	}
	return netip.AddrPort{}, fmt.Errorf("udp %v: no answer: %w", remote, err)
}

// EchoUDP sends a datagram of size bytes to a [Service], once, and checks that it comes
// back as it was sent, with this node's address as the service saw it in front.
func (n *Node) EchoUDP(remote netip.AddrPort, size int, timeout time.Duration) (netip.AddrPort, error) {
	c, err := n.Dial("udp", netip.AddrPort{}, remote, timeout)
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer c.Close()
	sent := make([]byte, size)
	_, _ = io.ReadFull(content(c.LocalAddr().String()), sent) // never fails
	if _, err := c.Write(sent); err != nil {
		return netip.AddrPort{}, err
	}
	_ = c.SetReadDeadline(time.Now().Add(timeout))
	buf := make([]byte, 64<<10)
	got, err := c.Read(buf)
	if err != nil {
		return netip.AddrPort{}, err
	}
	seen, back, _ := bytes.Cut(buf[:got], []byte(" "))
	if !bytes.Equal(back, sent) {
		return netip.AddrPort{}, fmt.Errorf("%d bytes came back as %d others", size, len(back))
	}
	return netip.ParseAddrPort(string(seen))
}

// Download fetches size bytes from a [Service] and compares them with what it
// must have sent.
func (n *Node) Download(remote netip.AddrPort, size int64) error {
	seed := fmt.Sprintf("down-%d", size)
	c, err := n.dialService(netip.AddrPort{}, remote, fmt.Sprintf("send %d %s", size, seed), patience)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(4 * patience))
	got := sha256.New()
	if received, err := io.Copy(got, c); err != nil || received != size {
		return fmt.Errorf("received %d of %d bytes: %v", received, size, err)
	}
	want := sha256.New()
	if _, err := io.CopyN(want, content(seed), size); err != nil {
		return err
	}
	if hexSum(got) != hexSum(want) {
		return fmt.Errorf("%d bytes arrived changed", size)
	}
	return nil
}

// Upload sends size bytes to a [Service] and compares the sum it reports.
func (n *Node) Upload(remote netip.AddrPort, size int64) error {
	c, err := n.dialService(netip.AddrPort{}, remote, fmt.Sprintf("recv %d", size), patience)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(4 * patience))
	want := sha256.New()
	if sent, err := io.Copy(c, io.TeeReader(io.LimitReader(content("up"), size), want)); err != nil {
		return fmt.Errorf("sent %d of %d bytes: %w", sent, size, err)
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return fmt.Errorf("no answer after %d bytes: %w", size, err)
	}
	if strings.TrimSpace(line) != hexSum(want) {
		return fmt.Errorf("%d bytes arrived changed", size)
	}
	return nil
}

// Ping sends echo requests with ping(8), count of them, size bytes of payload
// each; all must be answered.
func (n *Node) Ping(tb testing.TB, to netip.Addr, count, size int) error {
	tb.Helper()
	r := n.Try(tb, nil, "ping", "-n", "-i", "0.05", "-W", "1",
		"-c", fmt.Sprint(count), "-s", fmt.Sprint(size), to.String())
	if r.Code != 0 || !strings.Contains(r.Stdout, " 0% packet loss") {
		return fmt.Errorf("%v", r)
	}
	return nil
}

// Echo is an open conversation with a [Service].
type Echo struct {
	conn   net.Conn
	reader *bufio.Reader
}

// DialEcho opens a conversation over TCP that lasts until Close.
func (n *Node) DialEcho(local, remote netip.AddrPort) (*Echo, error) {
	c, err := n.Dial("tcp", local, remote, patience)
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(c, "echo\n"); err != nil {
		c.Close()
		return nil, err
	}
	return &Echo{c, bufio.NewReader(c)}, nil
}

// Say sends a line and checks that the same comes back.
func (e *Echo) Say(line string) error { return e.SayWithin(line, patience) }

// SayWithin is Say with a limit of its own, for what is to stay unanswered.
func (e *Echo) SayWithin(line string, limit time.Duration) error {
	_ = e.conn.SetDeadline(time.Now().Add(limit))
	if _, err := fmt.Fprintln(e.conn, line); err != nil {
		return err
	}
	back, err := e.reader.ReadString('\n')
	if err != nil {
		return err
	}
	if back != line+"\n" {
		return fmt.Errorf("said %q, heard %q", line, back)
	}
	return nil
}

// Close ends the conversation.
func (e *Echo) Close() { e.conn.Close() }
