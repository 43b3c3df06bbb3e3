package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"

	"github.com/urfave/cli/v2"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

func (p *program) portsCommand() *cli.Command {
	return &cli.Command{
		Name:        "ports",
		Usage:       "list published ports",
		ArgsUsage:   "[ENDPOINT]",
		Description: describe("A range is one line.", "ebnet ports", "ebnet ports web -o json"),
		Action:      p.ports,
	}
}

func (p *program) ports(c *cli.Context) error {
	endpoint, err := endpointArgument(c)
	if err != nil {
		return err
	}
	return p.look(c, func(h *network.Host) (view, error) {
		all, err := h.Ports(endpoint)
		return view{listOf(all), func(w io.Writer) { portTable(w, all) }}, err
	})
}

func portTable(w io.Writer, all []network.PortInfo) {
	var rows [][]string
	for _, p := range all {
		rows = append(rows, []string{p.Endpoint, p.Protocol, hostAddress(p), containerAddress(p), sourceList(p.From, ",")})
	}
	table(w, "ENDPOINT PROTOCOL HOST CONTAINER FROM", rows)
}

// portMapping is HOSTIP:HOSTPORT -> IP:PORT/PROTO.
func portMapping(p network.PortInfo) string {
	return hostAddress(p) + " -> " + containerAddress(p) + "/" + p.Protocol
}

// portSources says who may use the port, where not everyone may.
func portSources(p network.PortInfo) string {
	if len(p.From) == 0 {
		return ""
	}
	return " from " + sourceList(p.From, ", ")
}

// sourceList names the first few; JSON has all.
func sourceList(from []netip.Prefix, sep string) string {
	const shown = 4
	if len(from) <= shown {
		return join(from, sep)
	}
	return fmt.Sprintf("%s%sand %d more", join(from[:shown], sep), sep, len(from)-shown)
}

func hostAddress(p network.PortInfo) string {
	return net.JoinHostPort(p.HostIP, portRange(p.HostPort, p.HostPortEnd))
}

func containerAddress(p network.PortInfo) string {
	return net.JoinHostPort(p.IP, portRange(p.Port, p.PortEnd))
}

func portRange(first, last uint16) string {
	if last <= first {
		return fmt.Sprint(first)
	}
	return fmt.Sprintf("%d-%d", first, last)
}
