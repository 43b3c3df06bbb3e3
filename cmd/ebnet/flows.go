package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

// watchInterval is how often flows --watch shows them.
const watchInterval = time.Second

func (p *program) flowsCommand() *cli.Command {
	return &cli.Command{
		Name:  "flows",
		Usage: "show tracked conversations, or delete them",
		Description: describe("With --watch they are shown again every second until interrupted; in JSON one list a line.",
			"ebnet flows --endpoint web",
			"ebnet flows --watch --limit 20",
			"ebnet flows --flush --endpoint web"),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "endpoint", Usage: "only those of `NAME`"},
			&cli.IntFlag{Name: "limit", Usage: "show `N` at most", DefaultText: "all"},
			&cli.BoolFlag{Name: "watch", Usage: "show them again every second", DisableDefaultText: true},
			&cli.BoolFlag{Name: "flush", Usage: "delete them and print how many", DisableDefaultText: true},
		},
		Action: p.flows,
	}
}

func (p *program) flows(c *cli.Context) error {
	if _, err := arguments(c, 0, 0); err != nil {
		return err
	}
	filter := network.FlowFilter{Endpoint: c.String("endpoint"), Limit: c.Int("limit")}
	if c.IsSet("limit") && filter.Limit < 1 {
		return usage("--limit", fmt.Sprintf("%d is not at least 1", filter.Limit), "")
	}
	switch {
	case c.Bool("flush") && (c.Bool("watch") || c.IsSet("limit")):
		return usage("--flush", "goes neither with --watch nor with --limit", "")
	case c.Bool("flush"):
		return p.flushFlows(c, filter)
	case c.Bool("watch"):
		return p.watchFlows(c, filter)
	}
	return p.showFlows(c, filter)
}

func (p *program) showFlows(c *cli.Context, filter network.FlowFilter) error {
	return p.look(c, func(h *network.Host) (view, error) {
		all, err := h.Flows(filter)
		return view{listOf(all), func(w io.Writer) { flowTable(w, all) }}, err
	})
}

func (p *program) flushFlows(c *cli.Context, filter network.FlowFilter) error {
	return p.change(c, func(h *network.Host) (view, error) {
		n, err := h.FlushFlows(filter)
		return view{struct {
			Flushed int `json:"flushed"`
		}{n}, lines(count(n, "flow") + " deleted")}, err
	})
}

// watchFlows opens the host anew each time, so that the lock is free between.
func (p *program) watchFlows(c *cli.Context, filter network.FlowFilter) error {
	interrupted := make(chan os.Signal, 1)
	// Not notify for the first: shells start background jobs with it ignored.
	signal.Notify(interrupted, syscall.SIGINT)
	notify(interrupted, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(interrupted)
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for first := true; ; first = false {
		if !p.json {
			if _, err := io.WriteString(p.stdout, p.betweenFrames(first)); err != nil {
				return fmt.Errorf("%w: %w", errPrint, err)
			}
		}
		if err := p.showFlows(c, filter); err != nil {
			return err
		}
		select {
		case <-interrupted:
			return nil
		case <-tick.C:
		}
	}
}

// betweenFrames clears a terminal; elsewhere frames are an empty line apart.
func (p *program) betweenFrames(first bool) string {
	if f, ok := p.stdout.(*os.File); ok {
		if st, err := f.Stat(); err == nil && st.Mode()&os.ModeCharDevice != 0 {
			return "\x1b[H\x1b[2J"
		}
	}
	if first {
		return ""
	}
	return "\n"
}

func flowTable(w io.Writer, all []network.FlowInfo) {
	var rows [][]string
	for _, f := range all {
		rows = append(rows, []string{f.Protocol, f.State, f.Kind, f.Endpoint, f.Src, f.Dst, f.TranslatedSrc, f.TranslatedDst,
			fmt.Sprint(f.Packets), fmt.Sprint(f.Bytes), fmt.Sprintf("%ds", f.Expires)})
	}
	table(w, "PROTOCOL STATE KIND ENDPOINT SRC DST TRANSLATED-SRC TRANSLATED-DST PACKETS BYTES EXPIRES", rows)
}
