package main

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

// watchInterval is how often flows --watch shows them, unless --interval says.
const watchInterval = time.Second

func (p *program) flowsCommand() *cli.Command {
	return &cli.Command{
		Name:  "flows",
		Usage: "show tracked conversations, or delete them",
		Description: describe("Only those that fit all the flags are shown, or deleted. With --watch they are shown again and again until\n"+
			"interrupted, in JSON one list a line; ebnet monitor --flows tells of each one that begins and ends.\n\n"+
			"States: "+strings.Join(network.FlowStates, ", "),
			"ebnet flows --endpoint web",
			"ebnet flows --protocol tcp --port 443 --dst 203.0.113.0/24",
			"ebnet flows --watch --limit 20",
			"ebnet flows --flush --endpoint web --kind dnat"),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "endpoint", Usage: "only those of `NAME`"},
			&cli.StringFlag{Name: "protocol", Usage: "only those of `PROTOCOL`, tcp, udp or icmp"},
			&cli.StringFlag{Name: "kind", Usage: "only those of `KIND`, " + strings.Join(network.FlowKinds, ", ")},
			&cli.StringFlag{Name: "in-state", Usage: "only those in `STATE`"},
			&cli.IntFlag{Name: "port", Usage: "only those with `PORT` on either side, before or after translation", DefaultText: "any"},
			&cli.StringFlag{Name: "src", Usage: "only those from `CIDR`, before or after translation"},
			&cli.StringFlag{Name: "dst", Usage: "only those to `CIDR`, before or after translation"},
			&cli.IntFlag{Name: "limit", Usage: "show `N` at most", DefaultText: "all"},
			&cli.BoolFlag{Name: "watch", Usage: "show them again and again", DisableDefaultText: true},
			&cli.DurationFlag{Name: "interval", Usage: "with --watch: `TIME` from one to the next", Value: watchInterval},
			&cli.BoolFlag{Name: "flush", Usage: "delete them and print how many", DisableDefaultText: true},
		},
		Action: p.flows,
	}
}

func (p *program) flows(c *cli.Context) error {
	if _, err := arguments(c, 0, 0); err != nil {
		return err
	}
	filter, err := flowFilter(c)
	if err != nil {
		return err
	}
	switch {
	case c.Bool("flush") && (c.Bool("watch") || c.IsSet("limit")):
		return usage("--flush", "goes neither with --watch nor with --limit", "")
	case c.IsSet("interval") && !c.Bool("watch"):
		return usage("--interval", "goes only with --watch", "")
	case c.Duration("interval") < minInterval:
		return usage("--interval", fmt.Sprintf("%s is not at least %s", c.Duration("interval"), minInterval), "")
	case c.Bool("flush"):
		return p.flushFlows(c, filter)
	case c.Bool("watch"):
		return p.watchFlows(c, filter)
	}
	return p.showFlows(c, filter)
}

// minInterval leaves the machine some time for other things.
const minInterval = 10 * time.Millisecond

func flowFilter(c *cli.Context) (network.FlowFilter, error) {
	f := network.FlowFilter{Endpoint: c.String("endpoint"), Protocol: c.String("protocol"), Kind: c.String("kind"),
		State: c.String("in-state"), Limit: c.Int("limit")}
	if c.IsSet("limit") && f.Limit < 1 {
		return f, usage("--limit", fmt.Sprintf("%d is not at least 1", f.Limit), "")
	}
	if port := c.Int("port"); c.IsSet("port") && (port < 1 || port > 65535) {
		return f, usage("--port", fmt.Sprintf("%d is not between 1 and 65535", port), "")
	}
	f.Port = uint16(c.Int("port"))
	for name, to := range map[string]*netip.Prefix{"src": &f.Src, "dst": &f.Dst} {
		if !c.IsSet(name) {
			continue
		}
		var err error
		if *to, err = addressOrPrefix(c.String(name)); err != nil {
			return f, usage("--"+name, quote(c.String(name))+" is neither an address nor a subnet", "")
		}
	}
	return f, f.Check()
}

// addressOrPrefix takes an address for the subnet that has no other.
func addressOrPrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(s)
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
	tick := time.NewTicker(c.Duration("interval"))
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
