package main

import (
	"github.com/urfave/cli/v2"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

func (p *program) downCommand() *cli.Command {
	return &cli.Command{
		Name:  "down",
		Usage: "take the datapath and the devices away",
		Description: describe("What is recorded stays, and ebnet up brings it back; with --purge it goes too.",
			"ebnet down",
			"ebnet down --purge"),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "purge", Usage: "forget networks, endpoints and ports too", DisableDefaultText: true},
		},
		Action: p.down,
	}
}

func (p *program) down(c *cli.Context) error {
	if _, err := arguments(c, 0, 0); err != nil {
		return err
	}
	purge := c.Bool("purge")
	return p.change(c, func(h *network.Host) (view, error) {
		if err := h.Down(purge); err != nil {
			return view{}, err
		}
		text := "down"
		if purge {
			text = "down, nothing is recorded any more"
		}
		return view{struct {
			Purged bool `json:"purged"`
		}{purge}, lines(text)}, nil
	})
}
