package netlab

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a peer may keep a conversation waiting that is to work.
const patience = 30 * time.Second

// Service answers on one TCP and one UDP port of a node. Over TCP a client
// sends one line:
//
//	who            answered by the client's address
//	echo           every further line is sent back
//	send N SEED    answered by N bytes of the stream that SEED yields
//	recv N         N bytes follow, answered by their SHA-256 in hex
//
// A UDP datagram is answered by the client's address, a space and the datagram.
type Service struct {
	Port uint16

	mu    sync.Mutex
	peers []netip.AddrPort // of all connections and datagrams, in order
	conns map[net.Conn]bool
}

// Serve starts a service on all IPv4 addresses of the node; port 0 takes a
// free one. It ends with the test.
func (n *Node) Serve(tb testing.TB, port uint16) *Service {
	tb.Helper()
	s := &Service{conns: make(map[net.Conn]bool)}
	ln, err := n.ListenTCP(netip.AddrPortFrom(netip.IPv4Unspecified(), port))
	if err != nil {
		tb.Fatalf("serve in %s: %v", n.Name, err)
	}
	s.Port = ln.Addr().(*net.TCPAddr).AddrPort().Port()
	pc, err := n.ListenUDP(netip.AddrPortFrom(netip.IPv4Unspecified(), s.Port))
	if err != nil {
		ln.Close()
		tb.Fatalf("serve in %s: %v", n.Name, err)
	}
	if err := tellAsked(pc); err != nil {
		tb.Error(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { s.accept(ln) })
	wg.Go(func() { s.answer(pc) })
	tb.Cleanup(func() {
		ln.Close()
		pc.Close()
		s.mu.Lock()
		for c := range s.conns {
			c.Close()
		}
		s.mu.Unlock()
		wg.Wait()
	})
	return s
}

// Hits is how many connections and datagrams have come in.
func (s *Service) Hits() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.peers)
}

// Peers are the addresses that they came from, in order.
func (s *Service) Peers() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.peers)
}

func (s *Service) note(peer netip.AddrPort) netip.AddrPort {
	peer = netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.peers = append(s.peers, peer)
	return peer
}

func (s *Service) accept(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		peer := s.note(c.RemoteAddr().(*net.TCPAddr).AddrPort())
		s.mu.Lock()
		s.conns[c] = true
		s.mu.Unlock()
		go func() {
			// A conversation that breaks off shows at the client.
			_ = converse(c, peer)
			c.Close()
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		}()
	}
}

func converse(c net.Conn, peer netip.AddrPort) error {
	r := bufio.NewReaderSize(c, 64<<10)
	line, err := r.ReadString('\n')
	if err != nil {
		return err
	}
	words := strings.Fields(line)
	switch {
	case len(words) == 1 && words[0] == "who":
		_, err = fmt.Fprintln(c, peer)
	case len(words) == 1 && words[0] == "echo":
		for err == nil {
			if line, err = r.ReadString('\n'); err == nil {
				_, err = io.WriteString(c, line)
			}
		}
	case len(words) == 3 && words[0] == "send":
		size, _ := strconv.ParseInt(words[1], 10, 64)
		_, err = io.CopyN(c, content(words[2]), size)
	case len(words) == 2 && words[0] == "recv":
		size, _ := strconv.ParseInt(words[1], 10, 64)
		sum := sha256.New()
		if _, err = io.CopyN(sum, r, size); err == nil {
			_, err = fmt.Fprintln(c, hexSum(sum))
		}
	default:
		_, err = fmt.Fprintf(c, "not understood: %q\n", line)
	}
	return err
}

// answer answers datagrams from the address that they were sent to, which the kernel
// would not choose of its own accord where the node has several.
func (s *Service) answer(pc *net.UDPConn) {
	buf, oob := make([]byte, 64<<10), make([]byte, 64)
	for {
		n, oobn, _, peer, err := pc.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			return
		}
		seen := s.note(peer)
		// One reply that cannot be sent is one datagram lost.
		_, _, _ = pc.WriteMsgUDPAddrPort(fmt.Appendf(nil, "%v %s", seen, buf[:n]), asked(oob[:oobn]), peer)
	}
}

// tellAsked makes the kernel say with each datagram which address it was sent to.
func tellAsked(pc *net.UDPConn) error {
	raw, err := pc.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	err = raw.Control(func(fd uintptr) { failure = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1) })
	return errors.Join(err, failure)
}

// asked is the control message that sends from the address which a received one names;
// nil if it names none.
func asked(oob []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) == 0 || len(messages[0].Data) < unix.SizeofInet4Pktinfo {
		return nil
	}
	// struct in_pktinfo: the interface, the local address, the packet's destination.
	return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte(messages[0].Data[8:12])})
}

// content is an endless stream of bytes that depends on seed alone.
func content(seed string) io.Reader {
	return rand.NewChaCha8(sha256.Sum256([]byte(seed)))
}

func hexSum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }
