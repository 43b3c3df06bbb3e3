package datapath

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"
)

const (
	icmp = 1
	tcp  = 6
	udp  = 17
)

// TCP flags.
const (
	fin = 1
	syn = 2
	rst = 4
	ack = 16
)

// packet is what a test says of a frame; frames are made of it and read back into it.
type packet struct {
	smac, dmac   string
	src, dst     netip.AddrPort // ICMP: the identifier as the port of src
	proto        uint8
	ttl          uint8
	flags        uint8 // TCP
	kind         uint8 // ICMP type
	options      bool  // an IPv4 header with options
	noChecksum   bool  // UDP without a checksum
	fragmentOff  uint16
	moreFragment bool
	payload      string
}

func (p packet) String() string {
	return fmt.Sprintf("%s>%s %v>%v proto %d ttl %d flags %#x kind %d %q", p.smac, p.dmac, p.src, p.dst, p.proto,
		p.ttl, p.flags, p.kind, p.payload)
}

// fromA is a packet of container A to the gateway's Ethernet address.
func fromA(proto, flags uint8, sport uint16, dst netip.Addr, dport uint16) packet {
	return packet{smac: aMAC.String(), dmac: bridgeMAC.String(), proto: proto, flags: flags, ttl: 64,
		src: netip.AddrPortFrom(containerA, sport), dst: netip.AddrPortFrom(dst, dport), payload: "payload"}
}

// fromOutside is a packet that the router sends to the host.
func fromOutside(proto, flags uint8, src netip.Addr, sport uint16, dst netip.Addr, dport uint16) packet {
	return packet{smac: routerMAC.String(), dmac: uplinkMAC.String(), proto: proto, flags: flags, ttl: 60,
		src: netip.AddrPortFrom(src, sport), dst: netip.AddrPortFrom(dst, dport), payload: "from outside"}
}

// frame encodes the packet with right checksums.
func (p packet) frame() []byte {
	var f []byte
	for _, m := range []string{p.dmac, p.smac} {
		hw, _ := net.ParseMAC(m)
		f = append(f, hw...)
	}
	f = append(f, 0x08, 0x00)
	l4 := p.transport()
	header := 20
	if p.options {
		header = 24
	}
	ip := make([]byte, header)
	ip[0] = 0x40 | byte(header/4)
	binary.BigEndian.PutUint16(ip[2:], uint16(header+len(l4)))
	binary.BigEndian.PutUint16(ip[4:], 0x1234)
	off := p.fragmentOff / 8
	if p.moreFragment {
		off |= 0x2000
	}
	binary.BigEndian.PutUint16(ip[6:], off)
	ip[8], ip[9] = p.ttl, p.proto
	src, dst := p.src.Addr().As4(), p.dst.Addr().As4()
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])
	if p.options {
		copy(ip[20:], []byte{1, 1, 1, 0}) // no-operation, no-operation, no-operation, end
	}
	binary.BigEndian.PutUint16(ip[10:], ^sum(0, ip))
	return append(append(f, ip...), l4...)
}

// transport encodes the transport header and payload.
func (p packet) transport() []byte {
	var h []byte
	check := 0
	switch p.proto {
	case tcp:
		h = make([]byte, 20)
		h[12], h[13] = 5<<4, p.flags
		check = 16
	case udp:
		h = make([]byte, 8)
		binary.BigEndian.PutUint16(h[4:], uint16(8+len(p.payload)))
		check = 6
	case icmp:
		h = make([]byte, 8)
		h[0] = p.kind
		binary.BigEndian.PutUint16(h[4:], p.src.Port())
		check = 2
	default:
		return []byte(p.payload)
	}
	if p.proto != icmp {
		binary.BigEndian.PutUint16(h[0:], p.src.Port())
		binary.BigEndian.PutUint16(h[2:], p.dst.Port())
	}
	h = append(h, p.payload...)
	if p.noChecksum || p.fragmentOff > 0 {
		return h
	}
	c := ^sum(p.pseudo(len(h)), h)
	if c == 0 && p.proto == udp {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(h[check:], c)
	return h
}

// pseudo is the sum of the pseudo header (RFC 793 3.1); ICMP has none.
func (p packet) pseudo(length int) uint32 {
	if p.proto == icmp {
		return 0
	}
	src, dst := p.src.Addr().As4(), p.dst.Addr().As4()
	return uint32(sum(0, src[:])) + uint32(sum(0, dst[:])) + uint32(p.proto) + uint32(length)
}

// sum is the Internet checksum's sum (RFC 1071), not complemented.
func sum(start uint32, b []byte) uint16 {
	s := start
	for ; len(b) > 1; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// parse reads a frame that frame made and a program may have changed.
func parse(f []byte) packet {
	p := packet{dmac: net.HardwareAddr(f[0:6]).String(), smac: net.HardwareAddr(f[6:12]).String()}
	ip := f[14:]
	header := int(ip[0]&15) * 4
	p.options = header > 20
	p.ttl, p.proto = ip[8], ip[9]
	off := binary.BigEndian.Uint16(ip[6:])
	p.fragmentOff, p.moreFragment = off&0x1fff*8, off&0x2000 != 0
	src, dst := netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
	l4 := ip[header:]
	var sport, dport uint16
	switch p.proto {
	case tcp:
		sport, dport = binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:])
		p.flags = l4[13]
		l4 = l4[20:]
	case udp:
		sport, dport = binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:])
		p.noChecksum = l4[6] == 0 && l4[7] == 0
		l4 = l4[8:]
	case icmp:
		sport, p.kind = binary.BigEndian.Uint16(l4[4:]), l4[0]
		l4 = l4[8:]
	}
	p.src, p.dst = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	p.payload = string(l4)
	return p
}

// verify computes the checksums of a frame anew; "" if they are right.
func verify(f []byte) string {
	ip := f[14:]
	header := int(ip[0]&15) * 4
	if sum(0, ip[:header]) != 0xffff {
		return "wrong IPv4 header checksum"
	}
	p := parse(f)
	if p.fragmentOff > 0 || p.noChecksum || p.proto != tcp && p.proto != udp && p.proto != icmp {
		return ""
	}
	l4 := ip[header:]
	if sum(p.pseudo(len(l4)), l4) != 0xffff {
		return fmt.Sprintf("wrong checksum of protocol %d", p.proto)
	}
	return ""
}

func seconds(n int) time.Duration { return time.Duration(n) * time.Second }
