package netlab

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// Sniffer counts packets that come into a namespace.
type Sniffer struct{ packets atomic.Int64 }

// Sniff starts counting the IPv4 packets from one address, on all devices of the
// namespace; it ends with the test.
func (n *Node) Sniff(tb testing.TB, from netip.Addr) *Sniffer {
	tb.Helper()
	return n.sniff(tb, unix.SOCK_DGRAM, unix.ETH_P_IP, func(packet []byte) bool {
		return len(packet) >= 20 && netip.AddrFrom4([4]byte(packet[12:16])) == from
	})
}

// SniffFrames is [Node.Sniff] for the frames that hold a piece, of any protocol.
func (n *Node) SniffFrames(tb testing.TB, piece []byte) *Sniffer {
	tb.Helper()
	return n.sniff(tb, unix.SOCK_RAW, unix.ETH_P_ALL, func(frame []byte) bool { return bytes.Contains(frame, piece) })
}

func (n *Node) sniff(tb testing.TB, kind int, ethertype uint16, counts func([]byte) bool) *Sniffer {
	tb.Helper()
	var file *os.File
	err := n.Do(func() error {
		protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, ethertype))
		fd, err := unix.Socket(unix.AF_PACKET, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(protocol))
		if err == nil {
			file = os.NewFile(uintptr(fd), "packet socket")
		}
		return err
	})
	if err != nil {
		tb.Fatalf("sniff in %s: %v", n.Name, err)
	}
	s := &Sniffer{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 64<<10)
		for {
			size, err := file.Read(buf)
			if err != nil {
				return
			}
			if counts(buf[:size]) {
				s.packets.Add(1)
			}
		}
	}()
	tb.Cleanup(func() {
		file.Close()
		<-done
	})
	return s
}

// Packets is how many packets have been counted.
func (s *Sniffer) Packets() int64 { return s.packets.Load() }
