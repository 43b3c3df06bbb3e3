package datapath

import (
	"net/netip"
	"testing"

	"github.com/ebnet/ebnet/loader"
)

// askInside opens the conversation of B with a port that A has published, and returns the
// packet of B's.
func askInside(h *host) packet {
	h.Helper()
	h.publish(loader.TCP, netip.Addr{}, 8080, 80)
	ask := asB(fromA(tcp, syn, 5000, hostAddr2, 8080))
	h.expect(loader.FromContainer, h.b, ask, loader.Redirect, nil)
	return ask
}

// Outside, with an endpoint's address and ports, is not taken for the endpoint.
func TestPrivilegedForgedConversation(t *testing.T) {
	h := newHost(t, true)
	inside := askInside(h)
	h.expect(loader.FromContainer, h.a, fromA(tcp, syn, 5000, remote, 3000), loader.Redirect, nil)
	h.reply(fromOutside(tcp, syn|ack, remote, 3000, hostAddr, 5000))
	for name, sent := range map[string]packet{
		"to a published port":   inside,
		"in a masqueraded flow": fromA(tcp, ack, 5000, remote, 3000),
	} {
		forged := fromOutside(tcp, rst, sent.src.Addr(), sent.src.Port(), sent.dst.Addr(), sent.dst.Port())
		if verdict, out := h.run(loader.FromUplink, h.uplink, forged); verdict == loader.Redirect {
			t.Errorf("%s: %v went on as %v", name, forged, out)
		}
	}
}
