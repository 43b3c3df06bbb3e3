package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

func (p *program) statsCommand() *cli.Command {
	return &cli.Command{
		Name:      "stats",
		Usage:     "count packets, bytes, drops and conversations of endpoints",
		ArgsUsage: "[ENDPOINT]",
		Description: describe("Received and sent are as the container sees it, counted by its end of the link since that was made:\n"+
			"the host's end (ip -s link) does not see what the fast path puts into the container. A packet that\n"+
			"is not yet cut into segments counts as one. Drops are ebnet's own, those of packets on the way in as far as\n"+
			"it is known whose they are; ebnet status has them all. What one endpoint sends to another is both's.",
			"ebnet stats", "ebnet stats web -o json"),
		Action: p.stats,
	}
}

func (p *program) stats(c *cli.Context) error {
	endpoint, err := endpointArgument(c)
	if err != nil {
		return err
	}
	return p.look(c, func(h *network.Host) (view, error) {
		all, err := h.Stats(endpoint)
		return view{listOf(all), func(w io.Writer) { statsText(w, all) }}, err
	})
}

// endpointArgument returns the command's one argument, "" if it is left out.
func endpointArgument(c *cli.Context) (string, error) {
	args, err := arguments(c, 0, 1)
	if err != nil || len(args) == 0 {
		return "", err
	}
	return args[0], network.CheckName("endpoint", args[0])
}

func statsText(w io.Writer, all []network.StatsInfo) {
	var rows, drops [][]string
	for _, s := range all {
		row := []string{s.Endpoint}
		for _, t := range []*network.TrafficInfo{s.Received, s.Sent} {
			if t == nil {
				row = append(row, "", "", "")
				continue
			}
			row = append(row, fmt.Sprint(t.Packets), fmt.Sprint(t.Bytes), fmt.Sprint(t.Dropped))
		}
		rows = append(rows, append(row, fmt.Sprint(s.Conversations), s.State))
		for _, d := range s.Drops {
			drops = append(drops, []string{d.Reason, s.Endpoint, d.Direction, fmt.Sprint(d.Packets), fmt.Sprint(d.Bytes)})
		}
	}
	table(w, "ENDPOINT RX-PACKETS RX-BYTES RX-DROPPED TX-PACKETS TX-BYTES TX-DROPPED CONVERSATIONS STATE", rows)
	if len(drops) > 0 {
		_, _ = fmt.Fprintln(w)
		table(w, "DROPS ENDPOINT DIRECTION PACKETS BYTES", drops)
	}
}
