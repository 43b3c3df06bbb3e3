package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

func testGraph() network.GraphInfo {
	addrs := func(ss ...string) (as []netip.Addr) {
		for _, s := range ss {
			as = append(as, netip.MustParseAddr(s))
		}
		return as
	}
	port := func(first, last, to uint16, from ...netip.Prefix) network.PortInfo {
		return network.PortInfo{Endpoint: "web", Protocol: "tcp", HostIP: "0.0.0.0", HostPort: first, HostPortEnd: last,
			IP: "172.18.0.2", Port: to, PortEnd: to + last - first, From: from}
	}
	many := []network.PortInfo{}
	for i := range uint16(portsShown + 3) {
		many = append(many, port(3000+i, 3000+i, 80))
	}
	return network.GraphInfo{
		Up: true,
		Uplinks: []network.UplinkInfo{{Name: "up0", Addrs: addrs("198.51.100.2", "198.51.100.3"), Attached: true},
			{Name: "up<1>&\x01", Addrs: addrs("203.0.113.9")}},
		Sides: []network.UplinkInfo{{Name: "docker0", Addrs: addrs("172.17.0.1"), Attached: true}},
		Networks: []network.GraphNetwork{
			{Network: network.NetworkInfo{Name: "back", Subnets: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")}, Bridge: "br-0a1b2c3d", Internal: true},
				Endpoints: []network.EndpointInfo{{Name: "db", IPv4: "10.20.0.2", State: network.StateUp}}},
			{Network: network.NetworkInfo{Name: "default", Subnets: []netip.Prefix{netip.MustParsePrefix("172.18.0.0/16")}, Bridge: "ebnet0", ICC: true,
				Masquerade: true, Mode: network.ModeNAT}, Endpoints: []network.EndpointInfo{
				{Name: "gone", IPv4: "172.18.0.3", State: network.StateGone},
				{Name: "web", IPv4: "172.18.0.2", IPv6: "fd00::2", State: network.StateUp,
					Ports: []network.PortInfo{port(8080, 8080, 80), port(9000, 9009, 90, netip.MustParsePrefix("10.0.0.0/8"))}},
				{Name: "web2", IPv4: "172.18.0.4", State: network.StateUp, Ports: many},
			}},
			{Network: network.NetworkInfo{Name: "fixed", Bridge: "br-1", ICC: true, Masquerade: true, Mode: network.ModeNAT, SNAT: "198.51.100.3"}},
			{Network: network.NetworkInfo{Name: "lab", Bridge: "br-2", ICC: true, Mode: network.ModeRouted}},
			{Network: network.NetworkInfo{Name: "open", Bridge: "br-3", ICC: true, Mode: network.ModeNAT}},
		},
	}
}

func TestGoldenGraph(t *testing.T) {
	for name, draw := range map[string]func(io.Writer, network.GraphInfo){"graph.txt": graphTree, "graph.svg": graphSVG} {
		var out bytes.Buffer
		draw(&out, testGraph())
		golden(t, name, out.String())
	}
}

// Every picture is well-formed XML that asks for nothing from elsewhere, and has every name.
func TestGraphSVG(t *testing.T) {
	for name, g := range map[string]network.GraphInfo{"full": testGraph(), "up": {Up: true}, "not up": {}} {
		var out bytes.Buffer
		graphSVG(&out, g)
		var texts []string
		for d := xml.NewDecoder(bytes.NewReader(out.Bytes())); ; {
			token, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v\n%s", name, err, out.String())
			}
			switch token := token.(type) {
			case xml.CharData:
				texts = append(texts, string(token))
			case xml.StartElement:
				for _, a := range token.Attr {
					if a.Name.Local == "href" || a.Name.Local == "src" {
						t.Errorf("%s refers to %s", name, a.Value)
					}
				}
			}
		}
		if strings.Contains(out.String(), "url(") || strings.Contains(out.String(), "@import") {
			t.Errorf("%s has a reference in its style", name)
		}
		for _, n := range g.Networks {
			for _, e := range n.Endpoints {
				if !slices.Contains(texts, e.Name) || !slices.Contains(texts, e.IPv4) {
					t.Errorf("%s: no %s with %s", name, e.Name, e.IPv4)
				}
			}
		}
		if name == "full" && !slices.Contains(texts, "uplink up<1>&\uFFFD") {
			t.Errorf("%s: the odd name is not there: %q", name, texts)
		}
	}
}
