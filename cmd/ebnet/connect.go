package main

import (
	"github.com/urfave/cli/v2"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

func (p *program) connectCommand() *cli.Command {
	return &cli.Command{
		Name:      "connect",
		Usage:     "give a network namespace an endpoint in a network",
		ArgsUsage: "NETWORK NETNS",
		Description: describe("NETNS is a name under /run/netns, a path or pid:N. Prints the endpoint's name. The link\n"+
			"is up, addressed and routed when the command returns.",
			"ebnet connect default web",
			"ebnet connect default pid:4711 --name web --ip 172.18.0.9 -p 8080:80"),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "name", Usage: "`NAME` of the endpoint", DefaultText: "that of the namespace"},
			&cli.StringSliceFlag{Name: "ip", Usage: "`IP` of the endpoint (default: the next free one)"},
			&cli.StringFlag{Name: "mac", Usage: "`MAC` of the endpoint", DefaultText: "made from its address"},
			&cli.StringFlag{Name: "ifname", Usage: "`IFNAME` inside the namespace", DefaultText: "eth0"},
			publishFlag(),
			fromFlag(),
			labelFlag(),
			&cli.BoolFlag{Name: "no-default-route", Usage: "leave the default route alone, for a second network", DisableDefaultText: true},
		},
		Action: p.connect,
	}
}

func publishFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "publish", Aliases: []string{"p"},
		Usage: "publish `SPEC`, [HOSTIP:][HOSTPORT[-END]:]PORT[-END][/tcp|/udp]; may be repeated"}
}

func fromFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "from", Usage: "only sources in `CIDR` may use the ports; may be repeated (default: all)"}
}

func (p *program) connect(c *cli.Context) error {
	args, err := arguments(c, 2, 2)
	if err != nil {
		return err
	}
	request, err := connectRequest(c, args[0], args[1])
	if err != nil {
		return err
	}
	return p.change(c, func(h *network.Host) (view, error) {
		info, err := h.Connect(request)
		return view{info, lines(info.Name)}, err
	})
}

func connectRequest(c *cli.Context, networkName, ns string) (r network.ConnectRequest, err error) {
	r = network.ConnectRequest{
		Network:        networkName,
		NetNS:          ns,
		Name:           c.String("name"),
		IfName:         c.String("ifname"),
		NoDefaultRoute: c.Bool("no-default-route"),
	}
	if err = network.CheckName("network", networkName); err != nil {
		return r, err
	}
	if r.Name != "" {
		if err = network.CheckName("endpoint", r.Name); err != nil {
			return r, err
		}
	}
	if r.IPs, err = parseAll(c, "ip", network.ParseAddr); err != nil {
		return r, err
	}
	if s := c.String("mac"); s != "" {
		if r.MAC, err = network.ParseMAC("--mac", s); err != nil {
			return r, err
		}
	}
	if r.Ports, err = portSpecs(c.StringSlice("publish")); err != nil {
		return r, err
	}
	if r.From, err = parseAll(c, "from", network.ParseSource); err != nil {
		return r, err
	}
	if len(r.From) > 0 && len(r.Ports) == 0 {
		return r, usage("--from", "there is no port to restrict", "publish one with -p SPEC")
	}
	r.Labels, err = network.ParseLabels("--label", c.StringSlice("label"))
	return r, err
}

// portSpecs reads ports to publish.
func portSpecs(specs []string) ([]network.PortSpec, error) {
	var out []network.PortSpec
	for _, s := range specs {
		spec, err := network.ParsePortSpec(s)
		if err != nil {
			return nil, err
		}
		out = append(out, spec)
	}
	return out, nil
}
