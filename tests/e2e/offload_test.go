package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/tests/netlab"
)

// offloads are what a device may be asked to leave to the software or to do, by ethtool -K.
var offloads = []struct{ name, features string }{
	{"as it is", ""},
	{"no checksums", "tx off"},
	{"no segments", "tx on tso off gso off"},
	{"whole segments", "tso on gso on gro on"},
	{"no checksums, but segments put together", "tx off gro on"},
}

// TestPrivilegedOffloads: what is sent arrives, whoever computes the checksums of it and cuts it
// up; and datagrams without a checksum have none that is wrong.
func TestPrivilegedOffloads(t *testing.T) {
	l := netlab.New(t)
	s := newSite(t, l, modes[0])
	s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8080:80/tcp", "8080:80/udp")
	ways := []struct {
		name string
		from *netlab.Node
		to   netip.AddrPort
	}{
		{"masqueraded", s.w1.Node, at(netlab.InternetAddr, internetPort)},
		{"published", s.Internet, at(netlab.HostAddr, 8080)},
		{"by the port from inside", s.w2.Node, at(netlab.HostAddr, 8080)},
		{"neighbours", s.w2.Node, at(s.w1.Addr, containerPort)},
	}
	var talks []*talk
	for _, w := range ways {
		for _, summed := range []bool{true, false} {
			talk := newTalk(t, w.name, w.from, w.to, summed)
			talks = append(talks, talk)
		}
	}
	for end := time.Now().Add(2500 * time.Millisecond); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		for _, talk := range talks { // until they count as streams
			talk.say(t, 10)
		}
	}
	for _, o := range offloads {
		t.Run(o.name, func(t *testing.T) {
			if o.features != "" {
				for node, device := range map[*netlab.Node]string{
					s.w1.Node: "eth0", s.w2.Node: "eth0", s.Internet: netlab.InternetLink, s.Host.Node: netlab.UplinkLink,
				} {
					node.Run(t, append([]string{"ethtool", "-K", device}, strings.Fields(o.features)...)...)
				}
			}
			for _, talk := range talks {
				for _, size := range []int{1, 2, 9, 700, 1301, 1400, 4000} {
					talk.say(t, size)
				}
			}
			for _, w := range ways {
				segmented(t, w.name, w.from, w.to)
			}
			for _, w := range ways {
				bulk(t, w.from, w.to, 2<<20)
			}
		})
	}
	if n := dropped(t, s, "rewrite"); n != 0 {
		t.Errorf("%d packets that could not be changed", n)
	}
}

// talk is a conversation of datagrams with a [netlab.Service].
type talk struct {
	name string
	conn net.Conn
}

// newTalk begins one whose datagrams have checksums or not.
func newTalk(t *testing.T, name string, from *netlab.Node, to netip.AddrPort, summed bool) *talk {
	t.Helper()
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		var failure error
		err := raw.Control(func(fd uintptr) {
			if !summed {
				failure = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1)
			}
		})
		return errors.Join(err, failure)
	}}
	var c net.Conn
	if err := from.Do(func() (err error) {
		c, err = d.DialContext(context.Background(), "udp4", to.String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &talk{name: fmt.Sprintf("%s, checksums %v", name, summed), conn: c}
}

// say sends a datagram and checks what comes back.
func (k *talk) say(t *testing.T, size int) {
	t.Helper()
	sent, buf := make([]byte, size), make([]byte, 64<<10)
	for i := range sent {
		sent[i] = byte(rand.Uint32())
	}
	if _, err := k.conn.Write(sent); err != nil {
		t.Fatalf("%s: %v", k.name, err)
	}
	_ = k.conn.SetReadDeadline(time.Now().Add(works))
	n, err := k.conn.Read(buf)
	if err != nil {
		t.Fatalf("%s: %d bytes: %v", k.name, size, err)
	}
	if _, back, _ := bytes.Cut(buf[:n], []byte(" ")); !bytes.Equal(back, sent) {
		t.Fatalf("%s: %d bytes came back as %d others", k.name, size, len(back))
	}
}

// segmented sends datagrams that the socket hands down as one packet (UDP_SEGMENT), and checks
// that all come back.
func segmented(t *testing.T, name string, from *netlab.Node, to netip.AddrPort) {
	t.Helper()
	const size, count = 600, 20
	k := newTalk(t, name, from, to, true)
	k.say(t, 10) // the first one opens the conversation
	raw, err := k.conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failure error
	err = raw.Control(func(fd uintptr) {
		failure = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size)
	})
	if err := errors.Join(err, failure); err != nil {
		t.Fatal(err)
	}
	sent := make([]byte, size*count)
	for i := range sent {
		sent[i] = byte(i / size)
	}
	_, err = k.conn.Write(sent)
	if errors.Is(err, unix.EIO) { // a device without checksums, before Linux 6.11
		return
	}
	if err != nil {
		t.Fatalf("%s: segments: %v", name, err)
	}
	got, buf := map[byte]bool{}, make([]byte, 64<<10)
	_ = k.conn.SetReadDeadline(time.Now().Add(works))
	for len(got) < count {
		n, err := k.conn.Read(buf)
		if err != nil {
			t.Fatalf("%s: %d of %d segments came back: %v", name, len(got), count, err)
		}
		if _, back, _ := bytes.Cut(buf[:n], []byte(" ")); len(back) != size || !bytes.Equal(back, bytes.Repeat(back[:1], size)) {
			t.Fatalf("%s: a segment came back as %d other bytes", name, len(back))
		} else {
			got[back[0]] = true
		}
	}
}
