package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/ebnet/ebnet/cmd/internal/network"
	"github.com/ebnet/ebnet/cmd/internal/trusted"
)

func (p *program) upCommand() *cli.Command {
	return &cli.Command{
		Name:  "up",
		Usage: "load the datapath and make the host what is recorded",
		Description: describe("Loads the datapath or replaces it in place, hooks the uplinks, creates the network\n"+
			"default if there is none, applies everything recorded and repairs what differs.\n"+
			"It may run at any time, any number of times.\n\n"+
			"Programs of another version are replaced under the running connections. If their\n"+
			"conversations cannot be carried over, it says so and changes nothing without --yes.\n\n"+
			"Timeouts: "+strings.Join(network.TimeoutNames(), ", ")+".",
			"ebnet up",
			"ebnet up --uplink eth0 --fast-path=off",
			"ebnet up --timeout tcp-established=2h --timeout icmp=default"),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "file", Aliases: []string{"f"}, Usage: "apply the networks, endpoints and ports of `FILE` (YAML or JSON; - is stdin)"},
			&cli.BoolFlag{Name: "prune", Usage: "remove what FILE does not name", DisableDefaultText: true},
			&cli.StringSliceFlag{Name: "uplink", Usage: "`DEV` that leads outside; may be repeated (default: detected)"},
			&cli.StringFlag{Name: "fast-path", Usage: "`on|off`: redirect past the bridge and the kernel's routing", DefaultText: "as recorded, else on"},
			&cli.IntFlag{Name: "max-flows", Usage: "`N` confirmed conversations at most", DefaultText: "as recorded, else 262144"},
			&cli.BoolFlag{Name: "restore", Usage: "first put the copy of the last good state in the place of a damaged one, which is kept", DisableDefaultText: true},
			&cli.StringSliceFlag{Name: "timeout", Usage: "`NAME=DURATION` that a silent conversation lives, as 90s, 2h or default; may be repeated (default: as recorded)"},
			&cli.BoolFlag{Name: "yes", Usage: "replace another version's datapath even if that cuts conversations", DisableDefaultText: true},
		},
		Action: p.up,
	}
}

func (p *program) up(c *cli.Context) error {
	if _, err := arguments(c, 0, 0); err != nil {
		return err
	}
	request, err := p.upRequest(c)
	if err != nil {
		return err
	}
	if c.Bool("restore") {
		if err := p.restore(c); err != nil || c.Bool("dry-run") {
			return err
		}
	}
	return p.change(c, func(h *network.Host) (view, error) {
		report, err := h.Up(request)
		if err != nil {
			return view{}, err
		}
		for _, name := range report.Gone {
			p.warn(fmt.Sprintf("endpoint %q: its namespace is gone; ebnet disconnect %s forgets it", name, name))
		}
		for _, w := range report.Warnings {
			p.warn(w)
		}
		return view{report, lines(upLine(report))}, nil
	})
}

// restore puts the copy of the state back, or prints that it would.
func (p *program) restore(c *cli.Context) error {
	var steps []string
	aside, err := network.Restore(p.options(c, func(s string) { steps = append(steps, s) }))
	switch {
	case err != nil:
		return err
	case c.Bool("dry-run"):
		return p.print(stepsView(steps))
	case aside != "":
		p.warn("the damaged state was kept as " + aside)
	}
	return nil
}

func (p *program) upRequest(c *cli.Context) (network.UpRequest, error) {
	r := network.UpRequest{Uplinks: c.StringSlice("uplink"), MaxFlows: c.Int("max-flows"), Prune: c.Bool("prune"), Yes: c.Bool("yes")}
	if c.IsSet("max-flows") && r.MaxFlows < 1 {
		return r, usage("--max-flows", fmt.Sprintf("%d is not at least 1", r.MaxFlows), "")
	}
	var err error
	if r.Timeouts, err = network.ParseTimeouts("--timeout", c.StringSlice("timeout")); err != nil {
		return r, err
	}
	switch v := c.String("fast-path"); v {
	case "":
	case "on", "off":
		on := v == "on"
		r.FastPath = &on
	default:
		return r, usage("--fast-path", quote(v)+" is neither on nor off", "")
	}
	if !c.IsSet("file") {
		if r.Prune {
			return r, usage("--prune", "has a meaning only with -f FILE", "")
		}
		return r, nil
	}
	r.File, err = p.readConfig(c.String("file"))
	return r, err
}

func (p *program) readConfig(path string) (*network.Config, error) {
	in := p.stdin
	if path != "-" {
		f, err := trusted.Open(path)
		if err != nil {
			return nil, fileError(path, err)
		}
		defer f.Close()
		in = f
	}
	return network.ReadConfig(in)
}

// fileError tells a file that is not there from one that cannot be read.
func fileError(path string, err error) error {
	e := &network.Error{What: "file " + quote(path), Why: "cannot be read", Kind: network.ErrFailed, Err: err}
	switch {
	case os.IsNotExist(err):
		e.Why, e.Kind = "does not exist", network.ErrNotFound
	case errors.Is(err, trusted.ErrLink):
		e.Why = errors.Unwrap(err).Error()
	case os.IsPermission(err):
		e.Why, e.Kind = "is not readable to this user", network.ErrUnsupported
	}
	return e
}

func upLine(r network.UpReport) string {
	state := "up"
	if !r.Changed {
		state = "up, nothing to change"
	}
	uplinks := strings.Join(r.Uplinks, " ")
	if uplinks == "" {
		uplinks = "none"
	}
	return fmt.Sprintf("%s: uplinks %s, %s, %s, %s", state, uplinks,
		count(r.Networks, "network"), count(r.Endpoints, "endpoint"), count(r.Ports, "published port"))
}

// count is a number with its noun.
func count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}
