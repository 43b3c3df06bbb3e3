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

// explained are the reasons that what was done gives, by where; all others are unexplained.
var explained = map[string]map[string]string{
	atRubbish: {
		"spoofed-address": "it sends from addresses that are not its own",
		"spoofed-mac":     "it sends from a MAC address that is not its own",
		"malformed":       "it sends packets with cut headers",
		"fragment":        "it sends fragments without a first one",
		"loopback":        "it sends to 127.0.0.0/8",
	},
	atWalk: {
		"unpublished": "they answer datagrams whose port has been closed meanwhile",
		"no-flow":     "their connections go on for a moment when the port has been closed or flows were flushed",
		"internal":    "they ask their way out of internal networks too",
	},
	atUplink: {
		"source-not-allowed": "published ports are tried that are open to others only (--from)",
		"direct-access":      "rubbish from outside goes straight to an endpoint's address",
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

func (d *drops) lines() []dropLine {
	sums := map[dropped]uint64{}
	for k, n := range d.seen {
		sums[dropped{where: k.where, reason: k.reason}] += n
	}
	var all []dropLine
	for k, n := range sums {
		all = append(all, dropLine{k.where, k.reason, n, explained[k.where][k.reason]})
	}
	sort.Slice(all, func(i, j int) bool {
		return fmt.Sprint(all[i].Where, all[i].Reason) < fmt.Sprint(all[j].Where, all[j].Reason)
	})
	return all
}
