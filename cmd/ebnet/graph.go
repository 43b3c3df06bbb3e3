package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

func (p *program) graphCommand() *cli.Command {
	return &cli.Command{
		Name:  "graph",
		Usage: "show networks, endpoints, ports and uplinks as a tree or a picture",
		Description: describe("The picture is an SVG that needs nothing else and can be read on light and on dark ground.",
			"ebnet graph", "ebnet graph --format svg > ebnet.svg"),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "format", Usage: "`FORMAT`, text or svg", Value: "text", DefaultText: "text"},
		},
		Action: p.graph,
	}
}

func (p *program) graph(c *cli.Context) error {
	if _, err := arguments(c, 0, 0); err != nil {
		return err
	}
	draw := graphTree
	switch format := c.String("format"); {
	case format != "text" && format != "svg":
		return usage("--format", quote(format)+" is neither text nor svg", "")
	case p.json && c.IsSet("format"):
		return usage("--format", "goes not with --output json", "")
	case format == "svg":
		draw = graphSVG
	}
	return p.look(c, func(h *network.Host) (view, error) {
		g, err := h.Graph()
		return view{g, func(w io.Writer) { draw(w, g) }}, err
	})
}

// branch is a line of the tree and what hangs on it.
type branch struct {
	text string
	sub  []branch
}

func graphTree(w io.Writer, g network.GraphInfo) {
	root := branch{text: "host"}
	if !g.Up {
		root.text += " (not up)"
	}
	for _, u := range g.Uplinks {
		root.sub = append(root.sub, branch{text: deviceLine("uplink", u)})
	}
	for _, u := range g.Sides {
		root.sub = append(root.sub, branch{text: deviceLine("bridge of others", u)})
	}
	for _, n := range g.Networks {
		of := branch{text: strings.TrimSpace("network "+n.Network.Name+" "+join(n.Network.Subnets, " ")) +
			" (" + strings.Join(graphTraits(n.Network), ", ") + ")"}
		for _, e := range n.Endpoints {
			of.sub = append(of.sub, endpointBranch(e))
		}
		root.sub = append(root.sub, of)
	}
	_, _ = fmt.Fprintln(w, root.text)
	root.write(w, "")
}

func deviceLine(kind string, u network.UplinkInfo) string {
	line := strings.TrimSpace(fmt.Sprintf("%s %s %s", kind, u.Name, join(u.Addrs, " ")))
	if !u.Attached {
		line += " (programs not attached)"
	}
	return line
}

func endpointBranch(e network.EndpointInfo) branch {
	b := branch{text: strings.TrimSpace(e.Name + " " + e.IPv4 + " " + e.IPv6)}
	if e.State != network.StateUp {
		b.text += " (" + e.State + ")"
	}
	for _, port := range e.Ports {
		b.sub = append(b.sub, branch{text: portLine(port)})
	}
	return b
}

// portLine leaves out the endpoint's address, which is written beside it.
func portLine(p network.PortInfo) string {
	return hostAddress(p) + " -> " + portRange(p.Port, p.PortEnd) + "/" + p.Protocol + portSources(p)
}

// graphTraits are the bridge and what is not as by default.
func graphTraits(n network.NetworkInfo) []string {
	traits := []string{n.Bridge}
	if n.Mode == network.ModeRouted {
		traits = append(traits, n.Mode)
	}
	if n.SNAT != "" {
		traits = append(traits, "leaves as "+n.SNAT)
	}
	if others := networkTraits(n); others != "" {
		traits = append(traits, strings.Split(others, ",")...)
	}
	return traits
}

// write writes what hangs on the branch, one line each.
func (b branch) write(w io.Writer, indent string) {
	for i, s := range b.sub {
		mark, deeper := "├── ", "│   "
		if i == len(b.sub)-1 {
			mark, deeper = "└── ", "    "
		}
		_, _ = fmt.Fprintln(w, indent+mark+s.text)
		s.write(w, indent+deeper)
	}
}
