package netlab

import (
	"net/netip"
	"testing"
)

// The second uplink and what is behind it, see [Lab.SecondUplink].
const (
	SecondInternetLink = "srv1"
	SecondUplinkLink   = "up1"
)

var (
	SecondInternetAddr = netip.MustParseAddr("192.0.2.1")
	SecondHostAddr     = netip.MustParseAddr("192.0.2.2")
)

// SecondUplink gives the host another device that leads outside, and returns what is
// there: another internet.
func (l *Lab) SecondUplink(tb testing.TB) *Node {
	tb.Helper()
	n := l.node(tb, "inet2")
	n.Run(tb, "ip", "link", "add", SecondInternetLink, "type", "veth",
		"peer", "name", SecondUplinkLink, "netns", l.Host.Name)
	n.Run(tb, "ip", "address", "add", SecondInternetAddr.String()+"/24", "dev", SecondInternetLink)
	n.Run(tb, "ip", "link", "set", SecondInternetLink, "up")
	l.Host.Run(tb, "ip", "address", "add", SecondHostAddr.String()+"/24", "dev", SecondUplinkLink)
	l.Host.Run(tb, "ip", "link", "set", SecondUplinkLink, "up")
	l.firstLinks[SecondUplinkLink] = l.Host.Links(tb)[SecondUplinkLink]
	return n
}
