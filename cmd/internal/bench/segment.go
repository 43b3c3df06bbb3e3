package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// segmentSize is that of a TCP segment without data in an IPv4 packet without options.
const segmentSize = 40

// The TCP flags that are needed here.
const (
	flagSYN = 2
	flagACK = 16
)

// First sequence numbers of clients and servers. The latter is REFLECT_SEQ in
// bpf/bench.bpf.c.
const (
	clientSeq = 1000
	serverSeq = 2000
)

// A conversation has its own pair of source port and destination address (of those for
// measurements, RFC 2544). The ports are such as translation leaves alone.
const (
	firstSourcePort = 10000
	sourcePorts     = 1000
)

// tcpTuple is the i-th conversation of a container, as the container sends it.
func tcpTuple(i int) (from, to netip.AddrPort) {
	const first = 198<<24 | 18<<16 | 1
	var server [4]byte
	binary.BigEndian.PutUint32(server[:], uint32(first+i/sourcePorts))
	return netip.AddrPortFrom(c1Addr, uint16(firstSourcePort+i%sourcePorts)), netip.AddrPortFrom(netip.AddrFrom4(server), servicePort)
}

// putSegment writes a segment of the i-th conversation: a SYN, or else an ACK of the server's
// SYN-ACK, of which any number is in order.
func putSegment(b []byte, i int, flags byte) {
	from, to := tcpTuple(i)
	be := binary.BigEndian
	clear(b[:segmentSize])
	b[0] = 0x45 // version 4, five words of header
	be.PutUint16(b[2:], segmentSize)
	be.PutUint16(b[6:], 0x4000) // may not be fragmented
	b[8], b[9] = 64, unix.IPPROTO_TCP
	src, dst := from.Addr().As4(), to.Addr().As4()
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	be.PutUint16(b[10:], ^fold(sum16(b[:20])))
	be.PutUint16(b[20:], from.Port())
	be.PutUint16(b[22:], to.Port())
	be.PutUint32(b[24:], clientSeq)
	if flags == flagACK {
		be.PutUint32(b[24:], clientSeq+1)
		be.PutUint32(b[28:], serverSeq+1)
	}
	b[32], b[33] = 5<<4, flags
	be.PutUint16(b[34:], 65535) // window
	// The pseudo header: addresses, protocol and length (RFC 9293 3.1).
	sum := sum16(b[12:20]) + unix.IPPROTO_TCP + (segmentSize - 20) + sum16(b[20:segmentSize])
	be.PutUint16(b[36:], ^fold(sum))
}

// sum16 adds 16-bit words.
func sum16(b []byte) (sum uint32) {
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// shuffled are segments of the first n conversations, in random order: a sender that reads them
// in order is as fast for many as for few, and those on the way find no two in a row.
func shuffled(n int) []byte {
	all := make([]byte, n*segmentSize)
	// The same order in each run.
	for at, i := range rand.New(rand.NewPCG(1, uint64(n))).Perm(n) {
		putSegment(all[at*segmentSize:], i, flagACK)
	}
	return all
}

// segmentSender sends segments as Ethernet frames by a packet socket: there is no socket for each of
// a million conversations.
type segmentSender struct {
	fd      int
	next    int // segment
	frame   [14]byte
	headers [batchSize]mmsghdr
	vectors [batchSize][2]unix.Iovec
}

// newSegmentSender opens a socket at an end whose frames go to a MAC address.
func newSegmentSender(e end, to net.HardwareAddr) (*segmentSender, error) {
	device, err := e.node.device(e.device)
	if err != nil {
		return nil, err
	}
	s := &segmentSender{fd: -1}
	copy(s.frame[:6], to)
	copy(s.frame[6:12], device.HardwareAddr)
	binary.BigEndian.PutUint16(s.frame[12:], unix.ETH_P_IP)
	for i := range s.headers {
		s.vectors[i][0].Base = &s.frame[0]
		s.vectors[i][0].SetLen(len(s.frame))
		s.vectors[i][1].SetLen(segmentSize)
		s.headers[i].hdr.Iov = &s.vectors[i][0]
		s.headers[i].hdr.SetIovlen(2)
	}
	err = e.do(func() error {
		// Protocol 0: it receives nothing.
		s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err == nil {
		err = unix.Bind(s.fd, &unix.SockaddrLinklayer{Ifindex: device.Index})
	}
	if err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("packet socket of %s: %w", e.name, err)
	}
	return s, nil
}

// nextHop is the MAC address of whom an end sends to on the way to an address, once it has done so.
func (e end) nextHop(to netip.Addr) (hop net.HardwareAddr, err error) {
	err = e.do(func() error {
		routes, err := netlink.RouteGet(to.AsSlice())
		if err != nil || len(routes) == 0 {
			return fmt.Errorf("route: %w", err)
		}
		gateway := routes[0].Gw
		if gateway == nil {
			gateway = to.AsSlice()
		}
		neighbours, err := netlink.NeighList(routes[0].LinkIndex, netlink.FAMILY_V4)
		for _, n := range neighbours {
			if n.IP.Equal(gateway) && len(n.HardwareAddr) == 6 {
				hop = n.HardwareAddr
			}
		}
		if err == nil && hop == nil {
			err = fmt.Errorf("no neighbour %s", gateway)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("where %s sends to for %s: %w", e.name, to, err)
	}
	return hop, nil
}

// Close closes the socket.
func (s *segmentSender) Close() error {
	if s.fd >= 0 {
		_ = unix.Close(s.fd) // nothing is buffered in it
	}
	s.fd = -1
	return nil
}

// send sends the next of some segments, as many as one system call takes, and goes round.
func (s *segmentSender) send(all []byte) (int, error) {
	n := len(all) / segmentSize
	if s.next >= n {
		s.next = 0
	}
	at := s.next
	for i := range s.vectors {
		s.vectors[i][1].Base = &all[at*segmentSize]
		if at++; at == n {
			at = 0
		}
	}
	sent, err := s.take(batchSize)
	s.next = (s.next + sent) % n
	return sent, err
}

// sendOnce sends each of some segments once.
func (s *segmentSender) sendOnce(all []byte) error {
	for len(all) > 0 {
		n := min(len(all)/segmentSize, batchSize)
		for i := range n {
			s.vectors[i][1].Base = &all[i*segmentSize]
		}
		sent, err := s.take(n)
		if err != nil {
			return err
		}
		all = all[sent*segmentSize:]
	}
	return nil
}

// take is one system call, see batch.send().
func (s *segmentSender) take(n int) (int, error) {
	sent, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.headers[0])), uintptr(n), 0, 0, 0)
	switch {
	case errno == 0:
		return int(sent), nil
	case errors.Is(errno, unix.ENOBUFS), errors.Is(errno, unix.EAGAIN), errors.Is(errno, unix.EINTR):
		return 0, nil
	}
	return 0, fmt.Errorf("sendmmsg: %w", errno)
}
