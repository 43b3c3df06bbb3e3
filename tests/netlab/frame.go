package netlab

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// Frame is an Ethernet frame with a UDP datagram, as somebody with a raw socket
// would forge it.
type Frame struct {
	From, To net.HardwareAddr
	VLAN     uint16 // 802.1Q id, 0: no tag
	Src, Dst netip.AddrPort
	Payload  string

	part *part // nil: the whole datagram
}

// part is a fragment of a datagram.
type part struct {
	id         uint16 // of the datagram
	begin, end int    // in the datagram with its header
}

// moreFragments is the flag of all fragments but the last (RFC 791 3.1).
const moreFragments = 1 << 13

// Fragments cuts the datagram into fragments of size bytes, a multiple of 8; id is what
// keeps them together.
func (f Frame) Fragments(id uint16, size int) []Frame {
	var frames []Frame
	total := len(f.datagram())
	for begin := 0; begin < total; begin += size {
		f.part = &part{id, begin, min(begin+size, total)}
		frames = append(frames, f)
	}
	return frames
}

// datagram encodes the UDP header and the payload. The checksum is 0: none (RFC 768).
func (f Frame) datagram() []byte {
	var b []byte
	for _, field := range []uint16{f.Src.Port(), f.Dst.Port(), uint16(8 + len(f.Payload)), 0} {
		b = binary.BigEndian.AppendUint16(b, field)
	}
	return append(b, f.Payload...)
}

// Bytes encodes the frame.
func (f Frame) Bytes() []byte {
	b := append(append([]byte{}, f.To...), f.From...)
	if f.VLAN != 0 {
		b = binary.BigEndian.AppendUint16(b, unix.ETH_P_8021Q)
		b = binary.BigEndian.AppendUint16(b, f.VLAN)
	}
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
	ip := make([]byte, 20)
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	content := f.datagram()
	if p := f.part; p != nil {
		flags := uint16(p.begin / 8)
		if p.end < len(content) {
			flags |= moreFragments
		}
		binary.BigEndian.PutUint16(ip[4:], p.id)
		binary.BigEndian.PutUint16(ip[6:], flags)
		content = content[p.begin:p.end]
	}
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(content)))
	src, dst := f.Src.Addr().As4(), f.Dst.Addr().As4()
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])
	binary.BigEndian.PutUint16(ip[10:], ^fold(sum(ip)))
	return append(append(b, ip...), content...)
}

// Forge sends a frame by a device of the namespace.
func (n *Node) Forge(tb testing.TB, device string, f Frame) {
	tb.Helper()
	n.ForgeBytes(tb, device, f.Bytes())
}

// ForgeBytes is [Node.Forge] for a frame of any kind.
func (n *Node) ForgeBytes(tb testing.TB, device string, frame []byte) {
	tb.Helper()
	err := n.Do(func() error {
		link, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Index})
	})
	if err != nil {
		tb.Fatalf("send a frame by %s of %s: %v", device, n.Name, err)
	}
}

// MAC returns the Ethernet address of a device of the namespace.
func (n *Node) MAC(tb testing.TB, device string) (mac net.HardwareAddr) {
	tb.Helper()
	err := n.Do(func() error {
		link, err := net.InterfaceByName(device)
		if err == nil {
			mac = link.HardwareAddr
		}
		return err
	})
	if err != nil {
		tb.Fatalf("device %s of %s: %v", device, n.Name, err)
	}
	return mac
}
