package netlab

import (
	"encoding/binary"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// Sniffer counts the IPv4 packets that come into a namespace from one address.
type Sniffer struct{ packets atomic.Int64 }

// Sniff starts counting, on all devices of the namespace; it ends with the test.
func (n *Node) Sniff(tb testing.TB, from netip.Addr) *Sniffer {
	tb.Helper()
	var file *os.File
	err := n.Do(func() error {
		protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_IP))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(protocol))
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
			if size >= 20 && netip.AddrFrom4([4]byte(buf[12:16])) == from {
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
