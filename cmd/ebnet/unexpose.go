package main

import (
	"github.com/urfave/cli/v2"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

func (p *program) unexposeCommand() *cli.Command {
	return &cli.Command{
		Name:      "unexpose",
		Usage:     "close published ports",
		ArgsUsage: "ENDPOINT [SPEC...]",
		Description: describe("Without SPEC all ports of the endpoint. It takes effect at once, for open conversations too.\n"+
			"Prints those that were closed.",
			"ebnet unexpose web 8080:80",
			"ebnet unexpose web"),
		Action: p.unexpose,
	}
}

func (p *program) unexpose(c *cli.Context) error {
	args, err := arguments(c, 1, -1)
	if err != nil {
		return err
	}
	if err := network.CheckName("endpoint", args[0]); err != nil {
		return err
	}
	specs, err := portSpecs(args[1:])
	if err != nil {
		return err
	}
	return p.change(c, func(h *network.Host) (view, error) {
		before, err := h.Ports(args[0])
		if err != nil {
			return view{}, err
		}
		if err := h.Unexpose(args[0], specs); err != nil {
			return view{}, err
		}
		after, err := h.Ports(args[0])
		return portsView(missing(before, after)), err
	})
}

// missing returns the ports of before that are not in after.
func missing(before, after []network.PortInfo) []network.PortInfo {
	type place struct {
		protocol, ip string
		port         uint16
	}
	at := func(p network.PortInfo) place { return place{p.Protocol, p.HostIP, p.HostPort} }
	kept := map[place]bool{}
	for _, p := range after {
		kept[at(p)] = true
	}
	var out []network.PortInfo
	for _, p := range before {
		if !kept[at(p)] {
			out = append(out, p)
		}
	}
	return out
}
