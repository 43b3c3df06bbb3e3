package soak

import (
	"fmt"
	"sort"
	"strings"
	"testing"

	"github.com/ebnet/ebnet/tests/netlab"
)

// Where packets are dropped, by whose device that is.
const (
	atKept    = "endpoint left alone"
	atRubbish = "endpoint that sends rubbish"
	atWalk    = "endpoint of the walk"
	atUplink  = "uplink"
	atBridge  = "bridge"
)

// cause is why packets are dropped.
type cause struct {
	why  string
	rare bool // at most one in each operation
}

// explained are the causes that what was done gives, by where and reason; all others are
// unexplained.
var explained = map[string]map[string]cause{
	atRubbish: {
		"spoofed-address": {why: "it sends from an address that is not its own"},
		"spoofed-mac":     {why: "it sends from a MAC address that is not its own"},
		"malformed":       {why: "it sends packets with cut headers"},
		"fragment":        {why: "it sends fragments without a first one"},
		"loopback":        {why: "it sends to 127.0.0.0/8"},
	},
	atKept: {
		"source-not-allowed": {why: "it tries published ports that are open to others only (--from)"},
	},
	atWalk: {
		"unpublished":     {why: "they answer datagrams whose port has been closed meanwhile"},
		"spoofed-address": {why: "those with two links answer by the one with the default route what came by the other"},
		"other-network":   {why: "they answer an endpoint of another network when the port has been closed, or by another of their links"},
		"no-flow":         {why: "their connections go on for a moment when the port has been closed"},
		"internal":        {why: "they ask their way out of internal networks too"},
		"unknown-device":  {why: "they send while they are connected or removed", rare: true},
	},
	atUplink: {
		"source-not-allowed": {why: "published ports are tried that are open to others only (--from)"},
		"direct-access":      {why: "rubbish from outside goes straight to an endpoint's address"},
		"fragment":           {why: "rubbish from inside, with the fast path off"},
		"unpublished":        {why: "what endpoints of the walk answer, with the fast path off"},
		"no-flow":            {why: "what goes on for a moment after a port has been closed, with the fast path off"},
		"internal":           {why: "endpoints ask their way out of internal networks, with the fast path off"},
		"spoofed-address":    {why: "an endpoint is removed while its datagram is on its way, with the fast path off", rare: true},
	},
}

// drops counts packets by where and why, also of devices that are gone.
type drops struct {
	seen map[dropped]uint64
}

type dropped struct{ where, device, reason string }

func (d *drops) look(tb testing.TB, h *netlab.Host) {
	tb.Helper()
	var status struct {
		Drops []struct {
			Reason   string `json:"reason"`
			Endpoint string `json:"endpoint"`
			Device   string `json:"device"`
			Packets  uint64 `json:"packets"`
		} `json:"drops"`
	}
	h.JSON(tb, &status, "status")
	now := map[dropped]uint64{}
	for _, s := range status.Drops {
		now[dropped{where(s.Endpoint, s.Device), s.Device, s.Reason}] += s.Packets
	}
	for k, n := range now {
		d.seen[k] = max(d.seen[k], n)
	}
}

func where(endpoint, device string) string {
	switch {
	case device == netlab.UplinkLink:
		return atUplink
	case endpoint == rubbishName:
		return atRubbish
	case strings.HasPrefix(endpoint, "k"):
		return atKept
	case strings.HasPrefix(device, "veb") || device == "":
		return atWalk
	}
	return atBridge
}

// dropLine is how many packets were dropped somewhere for a reason.
type dropLine struct {
	Where   string `json:"where"`
	Reason  string `json:"reason"`
	Packets uint64 `json:"packets"`
	Why     string `json:"why"` // "": unexplained
}

func (d *drops) lines(operations int) []dropLine {
	sums := map[dropped]uint64{}
	for k, n := range d.seen {
		sums[dropped{where: k.where, reason: k.reason}] += n
	}
	var all []dropLine
	for k, n := range sums {
		c := explained[k.where][k.reason]
		if c.rare && n > uint64(operations) {
			c.why = ""
		}
		all = append(all, dropLine{k.where, k.reason, n, c.why})
	}
	sort.Slice(all, func(i, j int) bool {
		return fmt.Sprint(all[i].Where, all[i].Reason) < fmt.Sprint(all[j].Where, all[j].Reason)
	})
	return all
}
