package main

import (
	"github.com/urfave/cli/v2"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

func (p *program) disconnectCommand() *cli.Command {
	return &cli.Command{
		Name:      "disconnect",
		Usage:     "remove endpoints and their ports",
		ArgsUsage: "ENDPOINT...",
		Description: describe("An endpoint whose namespace is gone already is removed like any other. Prints the names.",
			"ebnet disconnect web",
			"ebnet disconnect web db"),
		Action: p.disconnect,
	}
}

func (p *program) disconnect(c *cli.Context) error {
	names, err := arguments(c, 1, -1)
	if err != nil {
		return err
	}
	names = unique(names)
	return p.change(c, func(h *network.Host) (view, error) {
		// All or nothing: an unknown name is found before anything goes.
		if _, err := each(names, h.Endpoint); err != nil {
			return view{}, err
		}
		for _, n := range names {
			if err := h.Disconnect(n); err != nil {
				return view{}, err
			}
		}
		return namesView(names), nil
	})
}
