package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ebnet/ebnet/tests/netlab"
)

const (
	large        = 8192 // bytes of a datagram that is sent in fragments
	fragmentSize = 1480 // of one of them, as the kernel cuts for an MTU of 1500
)

// TestPrivilegedFragments: datagrams in fragments go wherever small ones go. The
// datapath cannot hold what comes before the fragment with the ports: that is dropped,
// and counted, but any other order will do.
func TestPrivilegedFragments(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8080:80/udp")
		t.Run("large datagrams", func(t *testing.T) {
			echoesLarge(t, s.w1.Node, at(netlab.InternetAddr, internetPort), netlab.HostAddr)
			echoesLarge(t, s.Internet, at(netlab.HostAddr, 8080), netlab.InternetAddr)
			echoesLarge(t, s.w2.Node, at(netlab.HostAddr, 8080), s.w2.Addr)
			echoesLarge(t, s.w1.Node, at(netlab.HostAddr, 8080), s.Host.Network(t, "default").Gateways[0])
			echoesLarge(t, s.w1.Node, at(s.w2.Addr, containerPort), s.w1.Addr)
			if err := s.w1.Ping(t, netlab.InternetAddr, 3, 8000); err != nil {
				t.Errorf("large ping: %v", err)
			}
		})
		gateway, own := s.Host.MAC(t, "ebnet0"), s.w1.MAC(t, "eth0")
		t.Run("out", func(t *testing.T) {
			anyOrderButFirstLast(t, s, fragmentWay{s.w1.Node, "eth0", s.Internet, netlab.Frame{
				From: own, To: gateway, Src: at(s.w1.Addr, 5000), Dst: at(netlab.InternetAddr, 5001)}, 5001})
		})
		t.Run("published", func(t *testing.T) {
			s.Host.Ebnet(t, "expose", s.w1.Endpoint, "5002:5003/udp")
			anyOrderButFirstLast(t, s, fragmentWay{s.Internet, netlab.InternetLink, s.w1.Node, netlab.Frame{
				From: s.Internet.MAC(t, netlab.InternetLink), To: s.Host.MAC(t, netlab.UplinkLink),
				Src: at(netlab.InternetAddr, 5000), Dst: at(netlab.HostAddr, 5002)}, 5003})
		})
		t.Run("published from inside", func(t *testing.T) {
			s.Host.Ebnet(t, "expose", s.w2.Endpoint, "5004:5005/udp")
			anyOrderButFirstLast(t, s, fragmentWay{s.w1.Node, "eth0", s.w2.Node, netlab.Frame{
				From: own, To: gateway, Src: at(s.w1.Addr, 5000), Dst: at(netlab.HostAddr, 5004)}, 5005})
		})
	})
}

// echoesLarge checks that large datagrams come back, the very first one too.
func echoesLarge(t *testing.T, from *netlab.Node, to netip.AddrPort, seen netip.Addr) {
	t.Helper()
	for range 10 {
		peer, err := from.EchoUDP(to, large, works)
		if err != nil {
			t.Errorf("%d bytes from %s to %v: %v", large, from.Name, to, err)
			return
		}
		if peer.Addr() != seen {
			t.Errorf("%s to %v is seen to come from %v, want %v", from.Name, to, peer, seen)
		}
	}
}

// fragmentWay is where forged fragments are sent and where they are to arrive.
type fragmentWay struct {
	from   *netlab.Node
	device string
	to     *netlab.Node
	frame  netlab.Frame
	port   uint16 // at to
}

func anyOrderButFirstLast(t *testing.T, s *site, w fragmentWay) {
	pc, err := w.to.ListenUDP(at(netip.IPv4Unspecified(), w.port))
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	w.frame.Payload = strings.Repeat("0123456789", large/10)
	id := uint16(1)
	arrives := func(order ...int) bool {
		t.Helper()
		id++
		fragments := w.frame.Fragments(id, fragmentSize)
		for _, i := range order {
			w.from.Forge(t, w.device, fragments[i])
		}
		_ = pc.SetReadDeadline(time.Now().Add(blocked))
		buf := make([]byte, 64<<10)
		n, _, err := pc.ReadFromUDPAddrPort(buf)
		if err == nil && string(buf[:n]) != w.frame.Payload {
			t.Errorf("order %v: %d bytes arrive changed", order, n)
		}
		return err == nil
	}
	for _, order := range [][]int{{0, 1, 2, 3, 4, 5}, {0, 5, 4, 3, 2, 1}, {0, 2, 1, 4, 3, 5}} {
		if !arrives(order...) {
			t.Errorf("fragments in order %v: no datagram arrives", order)
		}
	}
	before := dropped(t, s, "fragment")
	if arrives(1, 2, 3, 4, 5, 0) {
		t.Error("the first fragment last: the datagram arrives, so all that says otherwise can go")
	}
	if dropped(t, s, "fragment") == before {
		t.Error("the first fragment last: no drop counted")
	}
}

// dropped is how many packets have been dropped for a reason.
func dropped(t *testing.T, s *site, reason string) (packets uint64) {
	t.Helper()
	for _, d := range s.Host.Status(t).Drops {
		if d.Reason == reason {
			packets += d.Packets
		}
	}
	return packets
}
