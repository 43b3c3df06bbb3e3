package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

func (p *program) endpointCommand() *cli.Command {
	return &cli.Command{
		Name:  "endpoint",
		Usage: "show endpoints",
		Subcommands: []*cli.Command{
			{
				Name:        "ls",
				Usage:       "list the endpoints",
				Description: describe("One line an endpoint.", "ebnet endpoint ls", "ebnet endpoint ls --network default -o json"),
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "network", Usage: "only those of `NAME`"},
				},
				Action: p.endpointList,
			},
			{
				Name:      "inspect",
				Usage:     "show endpoints in full",
				ArgsUsage: "ENDPOINT...",
				Description: describe("In JSON always a list, also for one endpoint.",
					"ebnet endpoint inspect web", "ebnet endpoint inspect web db -o json"),
				Action: p.endpointInspect,
			},
		},
	}
}

func (p *program) endpointList(c *cli.Context) error {
	if _, err := arguments(c, 0, 0); err != nil {
		return err
	}
	return p.look(c, func(h *network.Host) (view, error) {
		all, err := h.Endpoints(c.String("network"))
		return view{listOf(all), func(w io.Writer) { endpointTable(w, all) }}, err
	})
}

func endpointTable(w io.Writer, all []network.EndpointInfo) {
	var rows [][]string
	for _, e := range all {
		rows = append(rows, []string{e.Name, e.Network, e.IPv4, e.IPv6, e.MAC, e.IfName, e.HostIfName, e.NetNS,
			fmt.Sprint(len(e.Ports)), e.State})
	}
	table(w, "NAME NETWORK IPV4 IPV6 MAC IFNAME HOST-IFNAME NETNS PORTS STATE", rows)
}

func (p *program) endpointInspect(c *cli.Context) error {
	names, err := arguments(c, 1, -1)
	if err != nil {
		return err
	}
	return p.look(c, func(h *network.Host) (view, error) {
		all, err := each(names, h.Endpoint)
		return view{listOf(all), func(w io.Writer) {
			for i, e := range all {
				if i > 0 {
					_, _ = fmt.Fprintln(w)
				}
				endpointFields(w, e)
			}
		}}, err
	})
}

func endpointFields(w io.Writer, e network.EndpointInfo) {
	rows := [][2]string{
		{"name", e.Name},
		{"network", e.Network},
		{"ipv4", e.IPv4},
		{"ipv6", e.IPv6},
		{"mac", e.MAC},
		{"ifname", e.IfName},
		{"host ifname", e.HostIfName},
		{"ifindex", fmt.Sprint(e.Ifindex)},
		{"netns", e.NetNS},
		{"labels", labels(e.Labels)},
		{"state", e.State},
	}
	if len(e.Ports) == 0 {
		rows = append(rows, [2]string{"ports", ""})
	}
	for i, port := range e.Ports {
		name := "ports"
		if i > 0 {
			name = ""
		}
		rows = append(rows, [2]string{name, portMapping(port) + portSources(port)})
	}
	fields(w, rows...)
}
