package netlab

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Flood is a lot of frames, each without payload and with a checksum that is right: TCP
// SYNs or UDP datagrams.
type Flood struct {
	Protocol string // "tcp" or "udp"
	Device   string // by which it is sent
	From, To net.HardwareAddr
	// Next returns source and destination of the i-th frame.
	Next   func(i int) (src, dst netip.AddrPort)
	Frames int
	Limit  time.Duration // after which no more are sent
}

// A flood is sent in batches, so that it is the network that limits it.
const batchSize = 256

// mmsghdr is struct mmsghdr of sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

// Flood sends a flood and returns how many frames the device took.
func (n *Node) Flood(f Flood) (sent int, err error) {
	var fd int
	err = n.Do(func() error {
		link, err := net.InterfaceByName(f.Device)
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: link.Index})
	})
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	frames := make([][]byte, batchSize)
	iovecs := make([]unix.Iovec, batchSize)
	batch := make([]mmsghdr, batchSize)
	for i := range frames {
		frames[i] = f.template()
		iovecs[i].Base = &frames[i][0]
		iovecs[i].SetLen(len(frames[i]))
		batch[i].hdr.Iov = &iovecs[i]
		batch[i].hdr.SetIovlen(1)
	}
	var pin runtime.Pinner // what the kernel is given by address
	defer pin.Unpin()
	for i := range frames {
		pin.Pin(&frames[i][0])
		pin.Pin(&iovecs[i])
	}
	for end := time.Now().Add(f.Limit); sent < f.Frames && time.Now().Before(end); {
		size := min(batchSize, f.Frames-sent)
		for i := range size {
			f.fill(frames[i], sent+i)
		}
		done, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&batch[0])), uintptr(size), 0, 0, 0)
		switch {
		case errno == 0:
			sent += int(done)
		case !errors.Is(errno, unix.ENOBUFS) && !errors.Is(errno, unix.EAGAIN) && !errors.Is(errno, unix.EINTR):
			return sent, errno
		}
	}
	return sent, nil
}

// template is a frame of the flood but for the addresses and what depends on them.
func (f *Flood) template() []byte {
	transport := 8
	if f.Protocol == "tcp" {
		transport = 20
	}
	b := append(append([]byte{}, f.To...), f.From...)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
	b = append(b, make([]byte, 20+transport)...)
	ip, l4 := b[14:], b[34:]
	ip[0], ip[8] = 0x45, 64
	binary.BigEndian.PutUint16(ip[2:], uint16(20+transport))
	if f.Protocol == "tcp" {
		ip[9] = unix.IPPROTO_TCP
		l4[12], l4[13] = 5<<4, 2 // header length, SYN
		binary.BigEndian.PutUint16(l4[14:], 64240)
	} else {
		ip[9] = unix.IPPROTO_UDP
		binary.BigEndian.PutUint16(l4[4:], uint16(transport))
	}
	return b
}

// fill makes the template the i-th frame.
func (f *Flood) fill(b []byte, i int) {
	src, dst := f.Next(i)
	ip, l4 := b[14:34], b[34:]
	from, to := src.Addr().As4(), dst.Addr().As4()
	copy(ip[12:], from[:])
	copy(ip[16:], to[:])
	binary.BigEndian.PutUint16(l4[0:], src.Port())
	binary.BigEndian.PutUint16(l4[2:], dst.Port())
	check := 6 // where in the transport header it is
	if f.Protocol == "tcp" {
		check = 16
		binary.BigEndian.PutUint32(l4[4:], uint32(i)) // sequence number
	}
	binary.BigEndian.PutUint16(ip[10:], 0)
	binary.BigEndian.PutUint16(ip[10:], ^fold(sum(ip)))
	binary.BigEndian.PutUint16(l4[check:], 0)
	pseudo := sum(ip[12:]) + uint32(ip[9]) + uint32(len(l4))
	binary.BigEndian.PutUint16(l4[check:], ^fold(pseudo+sum(l4)))
}

// sum and fold are the internet checksum (RFC 1071), of an even number of bytes.
func sum(b []byte) (s uint32) {
	for i := 0; i < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return s
}

func fold(s uint32) uint16 {
	s = s>>16 + s&0xffff
	return uint16(s>>16 + s)
}

// Reflect sends every UDP datagram that comes in by a device for an address of prefix back
// to its sender, as if there were somebody at each address and port. It ends when stop is
// closed.
func (n *Node) Reflect(device string, prefix netip.Prefix, stop <-chan struct{}) error {
	var fd int
	err := n.Do(func() error {
		link, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_IP))
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(protocol)); err != nil {
			return err
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20) // fewer losses
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000})
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: link.Index})
	})
	if err != nil {
		return err
	}
	go func() {
		defer unix.Close(fd)
		for b := make([]byte, 2048); ; {
			select {
			case <-stop:
				return
			default:
			}
			size, err := unix.Read(fd, b)
			if err == nil && size >= 42 && b[23] == unix.IPPROTO_UDP && prefix.Contains(netip.AddrFrom4([4]byte(b[30:34]))) {
				reflect(b[:size])
				_, _ = unix.Write(fd, b[:size]) // what cannot be sent is lost
			}
		}
	}()
	return nil
}

// reflect exchanges the ends of a frame, which leaves its checksums as they are.
func reflect(b []byte) {
	for _, field := range []struct{ at, size int }{{0, 6}, {26, 4}, {34, 2}} {
		var first [6]byte
		one, other := b[field.at:field.at+field.size], b[field.at+field.size:field.at+2*field.size]
		copy(first[:], one)
		copy(one, other)
		copy(other, first[:])
	}
}
