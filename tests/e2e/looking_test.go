package e2e

import (
	"testing"

	"github.com/ebnet/ebnet/tests/netlab"
)

// endpointStats is an item of ebnet stats, as far as tests read it.
type endpointStats struct {
	Endpoint       string
	State          string
	Received, Sent *struct{ Packets, Bytes, Dropped uint64 }
	Conversations  int
	Drops          []struct {
		Direction, Reason string
		Packets           uint64
	}
}

func statsOf(t *testing.T, h *netlab.Host, endpoint string) endpointStats {
	t.Helper()
	var list netlab.List[endpointStats]
	h.JSON(t, &list, "stats", endpoint)
	if len(list.Items) != 1 || list.Items[0].Received == nil || list.Items[0].Sent == nil {
		t.Fatalf("stats of %s: %+v", endpoint, list.Items)
	}
	return list.Items[0]
}

// TestPrivilegedStats: what an endpoint received and sent is counted whole, in both
// directions, also what the fast path puts past the host's end of its link.
func TestPrivilegedStats(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8080:80/udp")
		before := statsOf(t, s.Host, s.w1.Endpoint)
		const datagrams, size = 20, 1000
		for range datagrams {
			if _, err := s.Internet.EchoUDP(at(netlab.HostAddr, 8080), size, works); err != nil {
				t.Fatal(err)
			}
		}
		after := statsOf(t, s.Host, s.w1.Endpoint)
		const header = 14 + 20 + 8
		for direction, d := range map[string][2]struct{ Packets, Bytes, Dropped uint64 }{
			"received": {*before.Received, *after.Received}, "sent": {*before.Sent, *after.Sent},
		} {
			packets, bytes := d[1].Packets-d[0].Packets, d[1].Bytes-d[0].Bytes
			// A few ARP packets may be among them; the service puts the peer's address in front.
			if packets < datagrams || packets > datagrams+6 || bytes < datagrams*(size+header) || bytes > datagrams*(size+header+60) {
				t.Errorf("%s: %d packets, %d bytes for %d datagrams of %d bytes", direction, packets, bytes, datagrams, size)
			}
		}
		// A datagram a conversation, of another source port each.
		if after.Conversations < datagrams {
			t.Errorf("%d conversations, want at least %d", after.Conversations, datagrams)
		}
		s.Host.Ebnet(t, "network", "create", "other")
		other := s.Container(t, "other")
		other.Connect(t, "other")
		if err := s.w1.Ping(t, other.Addr, 1, 56); err == nil {
			t.Error("another network was reached")
		}
		dropped := statsOf(t, s.Host, s.w1.Endpoint).Drops
		if len(dropped) != 1 || dropped[0].Direction != "sent" || dropped[0].Reason != "other-network" || dropped[0].Packets == 0 {
			t.Errorf("drops: %+v", dropped)
		}
	})
}
