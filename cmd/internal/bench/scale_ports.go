package bench

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// The ports that are published around publishedPort: port p of the host leads to port
// p - portOffset of the container.
const (
	portOffset = publishedPort - servicePort
	lowestPort = 3000
)

// portsCurve: the more ports are published, the longer are the rules of whoever has rules.
func portsCurve(p *pps) curve {
	at := func(peer string, build func(context.Context, *lab, string) (*stage, error),
		grow func(context.Context, *stage, int, int) error,
	) *oneWay {
		return &oneWay{pps: p, name: "scale/ports", peer: peer, way: "in", build: build, grow: grow}
	}
	return curve{
		name: "scale/ports", sizes: []int{1, 100, 1000, 10000, 60000},
		peers: []scalePeer{
			{peer: "veth", climber: at("veth", buildPair, nil)},
			{peer: "nftables", needs: []string{"nft"}, climber: at("nftables", buildNftables, p.lab.publishNft), pace: 20 * time.Microsecond},
			{
				peer: "iptables", needs: []string{"iptables", "iptables-restore"},
				climber: at("iptables", buildIptables, p.lab.publishIptables), pace: 200 * time.Microsecond,
			},
			{peer: "ebnet", climber: at("ebnet", buildEbnet, p.lab.publishEbnet), pace: 20 * time.Microsecond},
		},
	}
}

// publishedRange is the range of n published ports, with publishedPort among them: not the first one,
// if there are several.
func publishedRange(n int) (first, last int) {
	first = max(publishedPort-n/2, lowestPort)
	return first, first + n - 1
}

// newPorts are the ranges by which that of n ports is larger than that of fewer.
func newPorts(from, to int) (ranges [][2]int) {
	oldFirst, oldLast := publishedRange(max(from, 1)) // the first one is published by whoever builds the stage
	first, last := publishedRange(to)
	if first < oldFirst {
		ranges = append(ranges, [2]int{first, oldFirst - 1})
	}
	if oldLast < last {
		ranges = append(ranges, [2]int{oldLast + 1, last})
	}
	return ranges
}

func (l *lab) publishEbnet(ctx context.Context, s *stage, from, to int) error {
	var specs []string
	for _, r := range newPorts(from, to) {
		specs = append(specs, fmt.Sprintf("%d-%d:%d-%d/udp", r[0], r[1], r[0]-portOffset, r[1]-portOffset))
	}
	if specs == nil {
		return nil
	}
	return l.ebnetOn(ctx, s, s.peer, append([]string{"expose", "c1"}, specs...)...)
}

func (l *lab) publishNft(ctx context.Context, s *stage, from, to int) error {
	var elements []string
	for _, r := range newPorts(from, to) {
		for port := r[0]; port <= r[1]; port++ {
			elements = append(elements, fmt.Sprintf("udp . %d : %s . %d", port, c1Addr, port-portOffset))
		}
	}
	if elements == nil {
		return nil
	}
	_, err := s.host.feed(ctx, "add element ip bench published { "+strings.Join(elements, ", ")+" }\n", "nft", "-f", "-")
	return err
}

// publishIptables loads all rules anew, which is the fastest way to many. Conversations stay.
func (l *lab) publishIptables(ctx context.Context, s *stage, _, to int) error {
	if to == 1 {
		return nil
	}
	var ports []published
	first, last := publishedRange(to)
	for port := first; port <= last; port++ {
		ports = append(ports, published{"udp", port, c1Addr.String(), port - portOffset})
	}
	return s.host.restoreRules(ctx, l, dockerRules(ports))
}
