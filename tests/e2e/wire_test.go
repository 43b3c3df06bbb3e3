package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/tests/netlab"
)

const (
	protoICMP = 1
	protoTCP  = 6
	protoUDP  = 17
)

// TCP flags, and types of ICMP messages.
const (
	flagFIN, flagSYN, flagRST, flagPSH, flagACK                     = 1, 2, 4, 8, 16
	echoReply, unreachable, echoRequest, timeExceeded, badParameter = 0, 3, 8, 11, 12
)

// wire is an IPv4 packet as a raw socket sends it and a packet socket gets it.
type wire struct {
	proto, ttl uint8
	src, dst   netip.AddrPort // ICMP: the identifier as the port of src
	flags      uint8          // TCP
	seq, ack   uint32
	kind, code uint8  // ICMP
	mtu        uint16 // of fragmentation needed
	quoted     *wire  // in an ICMP error
	unsummed   bool   // UDP without a checksum
	payload    string
	wrong      bool // a checksum that does not fit
}

// bytes encodes the packet with right checksums.
func (w wire) bytes() []byte {
	l4 := w.transport()
	ip := make([]byte, 20, 20+len(l4))
	ip[0], ip[8], ip[9] = 0x45, w.ttl, w.proto
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(l4)))
	src, dst := w.src.Addr().As4(), w.dst.Addr().As4()
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])
	binary.BigEndian.PutUint16(ip[10:], ^checksum(0, ip))
	return append(ip, l4...)
}

func (w wire) transport() []byte {
	var l4 []byte
	at := 0
	switch w.proto {
	case protoTCP:
		l4, at = make([]byte, 20), 16
		binary.BigEndian.PutUint32(l4[4:], w.seq)
		binary.BigEndian.PutUint32(l4[8:], w.ack)
		l4[12], l4[13] = 5<<4, w.flags
		binary.BigEndian.PutUint16(l4[14:], 0xffff)
	case protoUDP:
		l4, at = make([]byte, 8), 6
		binary.BigEndian.PutUint16(l4[4:], uint16(8+len(w.payload)))
	case protoICMP:
		l4, at = make([]byte, 8), 2
		l4[0], l4[1] = w.kind, w.code
		if w.quoted != nil {
			binary.BigEndian.PutUint16(l4[6:], w.mtu)
			w.payload = string(w.quoted.bytes()[:28]) // what every router quotes (RFC 792)
		} else {
			binary.BigEndian.PutUint16(l4[4:], w.src.Port())
		}
	}
	if w.proto != protoICMP {
		binary.BigEndian.PutUint16(l4, w.src.Port())
		binary.BigEndian.PutUint16(l4[2:], w.dst.Port())
	}
	l4 = append(l4, w.payload...)
	if !w.unsummed {
		binary.BigEndian.PutUint16(l4[at:], ^checksum(w.pseudo(len(l4)), l4))
	}
	return l4
}

// pseudo is the sum of the pseudo header.
func (w wire) pseudo(length int) uint32 {
	if w.proto == protoICMP {
		return 0
	}
	src, dst := w.src.Addr().As4(), w.dst.Addr().As4()
	return uint32(checksum(0, src[:])) + uint32(checksum(0, dst[:])) + uint32(w.proto) + uint32(length)
}

// checksum is the sum of RFC 1071, not complemented.
func checksum(start uint32, b []byte) uint16 {
	s := start
	for i, c := range b {
		s += uint32(c) << (8 * (1 - i%2))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// readWire decodes what bytes encodes. cut: as an ICMP error quotes it.
func readWire(b []byte, cut bool) (w wire, ok bool) {
	if len(b) < 28 || b[0] != 0x45 {
		return w, false
	}
	w = wire{ttl: b[8], proto: b[9]}
	l4 := b[20:]
	if !cut {
		l4 = b[20:binary.BigEndian.Uint16(b[2:])] // a frame may be padded
	}
	word := func(at int) uint16 { return binary.BigEndian.Uint16(l4[at:]) }
	sport, dport := word(0), word(2)
	header := 8
	switch w.proto {
	case protoTCP:
		if !cut {
			w.seq, w.ack, w.flags = binary.BigEndian.Uint32(l4[4:]), binary.BigEndian.Uint32(l4[8:]), l4[13]
			header = int(l4[12]>>4) * 4
		}
	case protoUDP:
		w.unsummed = word(6) == 0
	case protoICMP:
		w.kind, w.code = l4[0], l4[1]
		sport, dport = word(4), 0
		if w.kind == unreachable || w.kind == timeExceeded || w.kind == badParameter {
			sport, w.mtu = 0, word(6)
			if q, ok := readWire(l4[8:], true); ok {
				w.quoted = &q
			}
		}
	}
	w.src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:16])), sport)
	w.dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:20])), dport)
	if w.quoted == nil && !cut { // how much is quoted, and its checksum, is the quoting one's business
		w.payload = string(l4[header:])
	}
	w.wrong = checksum(0, b[:20]) != 0xffff || !cut && !w.unsummed && checksum(w.pseudo(len(l4)), l4) != 0xffff
	return w, true
}

// answer is the packet back, with the ports that this one has.
func (w wire) answer(payload string) wire {
	back := wire{proto: w.proto, ttl: 64, src: w.dst, dst: w.src, payload: payload, unsummed: w.unsummed}
	if w.proto == protoICMP {
		back.src, back.dst = at(w.dst.Addr(), w.src.Port()), at(w.src.Addr(), 0)
	}
	return back
}

// refusal is an ICMP error about this packet.
func (w wire) refusal(by netip.Addr, kind, code uint8, mtu uint16) wire {
	return wire{proto: protoICMP, ttl: 64, src: at(by, 0), dst: at(w.src.Addr(), 0), kind: kind, code: code, mtu: mtu, quoted: &w}
}

// end is a place where packets are sent by raw frames, and recorded as they come in. The
// kernel there is kept from answering.
type end struct {
	*netlab.Node
	name     string
	from, to net.HardwareAddr // of frames that it sends
	raw      int              // the socket that it sends by
	device   int

	mu  sync.Mutex
	got []wire
}

func newEnd(t *testing.T, n *netlab.Node, name, device string, gateway net.HardwareAddr) *end {
	t.Helper()
	n.Run(t, "nft", "add table ip quiet; add chain ip quiet input { type filter hook input priority 0; policy drop; }")
	e := &end{Node: n, name: name, from: n.MAC(t, device), to: gateway, device: n.Links(t)[device]}
	var file *os.File
	err := n.Do(func() error {
		protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_IP))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(protocol))
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "packet socket")
		e.raw, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatalf("open packet sockets in %s: %v", n.Name, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.record(file)
	}()
	t.Cleanup(func() {
		_ = file.Close()
		<-done
		_ = unix.Close(e.raw)
	})
	return e
}

func (e *end) record(file *os.File) {
	buf := make([]byte, 64<<10)
	for {
		size, err := file.Read(buf)
		if err != nil {
			return
		}
		if w, ok := readWire(buf[:size], false); ok {
			e.mu.Lock()
			e.got = append(e.got, w)
			e.mu.Unlock()
		}
	}
}

// received is what has come in from a number on.
func (e *end) received(from int) []wire {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]wire{}, e.got[from:]...)
}

func (e *end) send(t *testing.T, w wire) {
	t.Helper()
	frame := append(append(append([]byte{}, e.to...), e.from...), 0x08, 0x00)
	frame = append(frame, w.bytes()...)
	if err := unix.Sendto(e.raw, frame, 0, &unix.SockaddrLinklayer{Ifindex: e.device}); err != nil {
		t.Fatalf("send from %s: %v", e.name, err)
	}
}

// calm waits until want packets have come in at the ends, and no more of them for a moment.
// A negative want is unknown: then it waits for longer, above all if nothing comes.
func calm(ends []*end, from []int, want int) (all [][]wire) {
	const moment = 40 * time.Millisecond
	start, last, n := time.Now(), time.Now(), 0
	for {
		all = nil
		now := 0
		for i, e := range ends {
			all = append(all, e.received(from[i]))
			now += len(all[i])
		}
		if now != n {
			n, last = now, time.Now()
		}
		quiet, enough := moment, n >= want || time.Since(start) > works/4
		switch {
		case want < 0 && n == 0:
			quiet = 8 * moment
		case want < 0:
			quiet = 3 * moment
		}
		if enough && time.Since(last) > quiet {
			return all
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// describe writes a packet with the names of what it carries; a port that no script knows
// is a translated one.
func (w wire) describe(name func(netip.Addr) string, known map[uint16]bool) string {
	port := func(p uint16) string {
		if known[p] || p == 0 {
			return fmt.Sprint(p)
		}
		return "translated"
	}
	tuple := fmt.Sprintf("%s:%s > %s:%s", name(w.src.Addr()), port(w.src.Port()), name(w.dst.Addr()), port(w.dst.Port()))
	var s strings.Builder
	switch w.proto {
	case protoTCP:
		fmt.Fprintf(&s, "tcp %s flags %#x", tuple, w.flags)
	case protoUDP:
		fmt.Fprintf(&s, "udp %s", tuple)
	default:
		fmt.Fprintf(&s, "icmp %d/%d %s", w.kind, w.code, tuple)
	}
	if w.quoted != nil {
		q := *w.quoted
		q.ttl, q.unsummed = 0, false // as the packet was where the error was made
		fmt.Fprintf(&s, " mtu %d about (%s)", w.mtu, q.describe(name, known))
	} else if w.payload != "" {
		fmt.Fprintf(&s, " %q", w.payload)
	}
	if w.ttl > 0 {
		fmt.Fprintf(&s, " ttl %d", w.ttl)
	}
	if w.unsummed {
		s.WriteString(" without a checksum")
	}
	if w.wrong {
		s.WriteString(" with a wrong checksum")
	}
	return s.String()
}
