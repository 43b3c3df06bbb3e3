package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// endpointsCurve: a network with more and more endpoints.
func endpointsCurve(p *pps) curve {
	at := func(peer string, build func(context.Context, *lab, string) (*stage, error),
		grow func(context.Context, *stage, int, int) error,
	) *crowd {
		return &crowd{oneWay: oneWay{pps: p, name: "scale/endpoints", peer: peer, way: "out", build: build, grow: grow}}
	}
	return curve{
		name: "scale/endpoints", sizes: []int{1, 10, 100, 500},
		peers: []scalePeer{
			{peer: "veth", climber: at("veth", buildPair, nil)},
			{peer: "ebnet", climber: at("ebnet", buildEmptyEbnet(), p.lab.connectMany), pace: 30 * time.Millisecond},
		},
	}
}

// networksCurve: more and more networks with an endpoint each.
func networksCurve(p *pps) curve {
	at := func(peer string, build func(context.Context, *lab, string) (*stage, error),
		grow func(context.Context, *stage, int, int) error,
	) *oneWay {
		return &oneWay{pps: p, name: "scale/networks", peer: peer, way: "out", build: build, grow: grow}
	}
	return curve{
		name: "scale/networks", sizes: []int{1, 10, 100},
		peers: []scalePeer{
			{peer: "veth", climber: at("veth", buildPair, nil)},
			{peer: "ebnet", climber: at("ebnet", buildEmptyEbnet(), p.lab.createMany), pace: 50 * time.Millisecond},
		},
	}
}

// crowd measures the way to a neighbour too, once there is one.
type crowd struct {
	oneWay
	inside *conversation
}

func (c *crowd) climb(ctx context.Context, size int) (err error) {
	if err := c.oneWay.climb(ctx, size); err != nil {
		return err
	}
	if size > 1 && c.inside == nil {
		c.inside, err = c.open("inside")
	}
	return err
}

func (c *crowd) run(ctx context.Context) (sample, error) {
	s, err := c.oneWay.run(ctx)
	if err != nil || c.inside == nil {
		return s, err
	}
	inside, err := c.pps.run(ctx, c.name+" inside", c.peer, c.inside, false)
	if err != nil {
		return s, err
	}
	s.extra["inside"], s.extra["inside_ns"] = inside.value, inside.extra["ns"]
	if net, ok := inside.extra["net_ns"]; ok {
		s.extra["inside_net_ns"] = net
	}
	return s, nil
}

// fileOfMany is a file for `ebnet up -f`, by which many things are made in one go.
type fileOfMany struct {
	Networks  []networkOfMany  `json:"networks,omitempty"`
	Endpoints []endpointOfMany `json:"endpoints"`
}

type networkOfMany struct {
	Name    string         `json:"name"`
	Subnets []netip.Prefix `json:"subnets"`
}

type endpointOfMany struct {
	Name    string       `json:"name"`
	Network string       `json:"network"`
	NetNS   string       `json:"netns"`
	IPs     []netip.Addr `json:"ips,omitempty"`
	IfName  string       `json:"ifname"`
}

// connectMany brings the network from one number of endpoints to another. The second one is the
// neighbour that all stages have.
func (l *lab) connectMany(ctx context.Context, s *stage, from, to int) error {
	var many fileOfMany
	for i := max(from, 1) + 1; i <= to; i++ {
		e := endpointOfMany{Name: fmt.Sprintf("c%d", i), Network: "bench", IfName: containerLink}
		if i == 2 {
			e.NetNS, e.IPs = s.c2.name, []netip.Addr{c2Addr}
		} else {
			n, err := l.node(ctx, s.peer+"-"+e.Name)
			if err != nil {
				return err
			}
			e.NetNS = n.name
		}
		many.Endpoints = append(many.Endpoints, e)
	}
	return l.apply(ctx, s, many)
}

// createMany brings the host from one number of networks to another.
func (l *lab) createMany(ctx context.Context, s *stage, from, to int) error {
	var many fileOfMany
	for i := max(from, 1) + 1; i <= to; i++ {
		n, err := l.node(ctx, fmt.Sprintf("%s-n%d", s.peer, i))
		if err != nil {
			return err
		}
		name := fmt.Sprintf("bench%d", i)
		many.Networks = append(many.Networks, networkOfMany{
			Name: name, Subnets: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(100 + i), 0, 0}), 16)},
		})
		many.Endpoints = append(many.Endpoints, endpointOfMany{Name: fmt.Sprintf("n%d", i), Network: name, NetNS: n.name, IfName: containerLink})
	}
	return l.apply(ctx, s, many)
}

// apply adds what a file names.
func (l *lab) apply(ctx context.Context, s *stage, many fileOfMany) error {
	if len(many.Endpoints) == 0 {
		return nil
	}
	b, err := json.Marshal(many)
	if err != nil {
		return err
	}
	file := filepath.Join(l.dir, s.peer+".json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return err
	}
	return l.ebnetOn(ctx, s, s.peer, "up", "-f", file)
}
