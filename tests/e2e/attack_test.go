package e2e

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/ebnet/ebnet/tests/netlab"
)

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// TestPrivilegedAttackOnNeighbours: a container cannot play the gateway, a neighbour, a
// router or a DHCP server for the others on its bridge. Each forgery is preceded by an
// honest frame of the same kind, if there is one, and counted by its reason.
func TestPrivilegedAttackOnNeighbours(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		own, victim := s.w1.MAC(t, "eth0"), s.w2.MAC(t, "eth0")
		gateway := s.Host.Network(t, "default").Gateways[0]
		fromW1 := func(frame []byte) attack { return attack{from: s.w1.Node, device: "eth0", to: s.w2.Node, frame: frame} }

		fromW1(arp(own, broadcast, 1, own, s.w1.Addr, s.w2.Addr)).succeeds(t)
		fromW1(arp(own, victim, 2, own, s.w1.Addr, s.w2.Addr)).succeeds(t)
		for _, to := range []net.HardwareAddr{broadcast, victim} {
			for op := range uint16(2) {
				fromW1(arp(own, to, 1+op, own, gateway, s.w2.Addr)).fails(t, s, "spoofed-arp")
				fromW1(arp(own, to, 1+op, own, gateway, gateway)).fails(t, s, "spoofed-arp") // gratuitous
				fromW1(arp(own, to, 1+op, s.Host.MAC(t, "ebnet0"), s.w1.Addr, s.w2.Addr)).fails(t, s, "spoofed-arp")
				fromW1(arp(victim, to, 1+op, victim, s.w2.Addr, gateway)).fails(t, s, "spoofed-arp")
			}
		}
		for _, to := range []net.HardwareAddr{{0x33, 0x33, 0, 0, 0, 1}, broadcast, victim} {
			fromW1(routerAdvertisement(own, to)).fails(t, s, "address-family")
		}
		offer := netlab.Frame{From: own, Src: at(s.w1.Addr, 1067), Payload: "an offer"}
		for dst, to := range map[netip.Addr]net.HardwareAddr{
			netip.MustParseAddr("255.255.255.255"): broadcast, s.w2.Addr: victim,
		} {
			offer.To, offer.Dst = to, at(dst, 68)
			offer.Src = at(s.w1.Addr, 1067)
			fromW1(offer.Bytes()).succeeds(t)
			offer.Src = at(s.w1.Addr, 67)
			fromW1(offer.Bytes()).fails(t, s, "dhcp-server")
			offer.Src = at(gateway, 67)
			fromW1(offer.Bytes()).fails(t, s, "spoofed-address")
		}
	})
}

// TestPrivilegedAttackFromLAN: somebody on the uplink's wire, who may send any frame to the
// host, reaches neither containers by their addresses nor what is published on loopback.
func TestPrivilegedAttackFromLAN(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		gateway := s.Host.Network(t, "default").Gateways[0]
		loopback := netip.MustParseAddr("127.0.0.1")
		s.Host.Ebnet(t, "expose", s.w1.Endpoint, "5000:5001/udp", "127.0.0.1:5002:5001/udp")
		f := netlab.Frame{From: s.Internet.MAC(t, netlab.InternetLink), To: s.Host.MAC(t, netlab.UplinkLink), Src: at(netlab.InternetAddr, 4000)}
		// What arrives is recognized by its content: all else may be translated.
		content := strings.Repeat("from the wire next door ", 2)
		f.Payload = content
		from := func(to *netlab.Node, src netip.Addr, dst netip.AddrPort) attack {
			f.Src, f.Dst = at(src, 4000), dst
			return attack{s.Internet, netlab.InternetLink, to, f.Bytes(), []byte(content)}
		}
		from(s.w1.Node, netlab.InternetAddr, at(netlab.HostAddr, 5000)).succeeds(t)
		from(s.w1.Node, netlab.InternetAddr, at(s.w1.Addr, 5001)).fails(t, s, "direct-access")
		from(s.w1.Node, netlab.InternetAddr, at(s.w1.Addr, 5000)).fails(t, s, "direct-access")
		from(s.w1.Node, netlab.InternetAddr, at(gateway, 5000)).fails(t, s, "direct-access")
		from(s.w1.Node, s.w2.Addr, at(netlab.HostAddr, 5000)).fails(t, s, "spoofed-address")
		from(s.w1.Node, gateway, at(netlab.HostAddr, 5000)).fails(t, s, "spoofed-address")
		from(s.w1.Node, s.w2.Addr, at(s.w1.Addr, 5001)).fails(t, s, "spoofed-address")
		// What is not ebnet's to judge: the host's kernel drops it, forwarding nothing.
		for _, dst := range []netip.AddrPort{
			at(loopback, 5002), at(loopback, 5000), at(netip.MustParseAddr("127.0.0.2"), 5002), // RFC 1122 3.2.1.3
			at(netlab.HostAddr, 5002),                        // published on loopback only
			at(netip.MustParseAddr("198.51.100.99"), 5000),   // of nobody
			at(netip.MustParseAddr("203.0.113.9"), 5000),     // of somebody else
			at(netip.MustParseAddr("198.51.100.255"), 5000),  // broadcast
			at(netip.MustParseAddr("255.255.255.255"), 5000), // broadcast
			at(netip.MustParseAddr("224.0.0.1"), 5000),       // multicast
		} {
			from(s.w1.Node, netlab.InternetAddr, dst).fails(t, s, "")
		}
		from(s.w1.Node, loopback, at(netlab.HostAddr, 5000)).fails(t, s, "")
		from(s.w1.Node, netlab.InternetAddr, at(netlab.HostAddr, 5000)).succeeds(t)
	})
}

// attack is a frame and where it is to arrive, or not.
type attack struct {
	from   *netlab.Node
	device string
	to     *netlab.Node
	frame  []byte
	piece  []byte // by which it is recognized; nil: all but the Ethernet addresses
}

func (a attack) sniff(t *testing.T) *netlab.Sniffer {
	t.Helper()
	if a.piece == nil {
		a.piece = a.frame[12:]
	}
	return a.to.SniffFrames(t, a.piece)
}

func (a attack) send(t *testing.T) func() {
	return func() {
		t.Helper()
		a.from.ForgeBytes(t, a.device, a.frame)
	}
}

// succeeds: it is honest.
func (a attack) succeeds(t *testing.T) {
	t.Helper()
	arrives(t, a.sniff(t), a.send(t))
}

// fails: it does not arrive, and is counted for the reason if one is given.
func (a attack) fails(t *testing.T, s *site, reason string) {
	t.Helper()
	before := dropped(t, s, reason)
	staysAway(t, a.sniff(t), a.send(t))
	if reason != "" && dropped(t, s, reason) < before+3 {
		t.Errorf("%s counted %d times, want 3 more", reason, dropped(t, s, reason)-before)
	}
}

// arp encodes an ARP message of the sender sha, spa, as RFC 826 has it.
func arp(from, to net.HardwareAddr, op uint16, sha net.HardwareAddr, spa, tpa netip.Addr) []byte {
	b := append(append([]byte{}, to...), from...)
	b = append(b, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4)
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(append(b, sha...), spa.AsSlice()...)
	return append(append(b, make([]byte, 6)...), tpa.AsSlice()...)
}

// routerAdvertisement encodes one (RFC 4861 4.2) to all nodes; its checksum, which would
// have to be right only where it arrives, is not.
func routerAdvertisement(from, to net.HardwareAddr) []byte {
	b := append(append([]byte{}, to...), from...)
	b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 16, 58, 255)
	b = append(b, netip.MustParseAddr("fe80::1").AsSlice()...)
	b = append(b, netip.MustParseAddr("ff02::1").AsSlice()...)
	return append(b, 134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0)
}
