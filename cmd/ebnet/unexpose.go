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
	name, specs, err := endpointSpecs(c, 0)
	if err != nil {
		return err
	}
	return p.change(c, func(h *network.Host) (view, error) {
		ports, err := h.Unexpose(name, specs)
		return portsView(ports), err
	})
}
