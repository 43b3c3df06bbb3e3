package main

import (
	"github.com/urfave/cli/v2"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

func (p *program) exposeCommand() *cli.Command {
	return &cli.Command{
		Name:      "expose",
		Usage:     "publish ports of an endpoint on the host",
		ArgsUsage: "ENDPOINT SPEC...",
		Description: describe("SPEC is [HOSTIP:][HOSTPORT[-END]:]PORT[-END][/tcp|/udp]. Ranges map one to one; a host\n"+
			"range onto one port takes the first free one; without a host port a free one is found.\n"+
			"On 127.0.0.1 a port is for processes of the host alone. In a routed network the ports are\n"+
			"those of the endpoint's own address, and what SPEC says of the host's is ignored.\n"+
			"All or nothing. Prints ENDPOINT HOSTIP:HOSTPORT -> IP:PORT/PROTO, a line for each SPEC.",
			"ebnet expose web 8080:80",
			"ebnet expose web 198.51.100.2:5353:53/udp 9000-9010:9000-9010",
			"ebnet expose web 8443:443 --from 192.0.2.0/24 --from 203.0.113.7"),
		Flags:  []cli.Flag{fromFlag()},
		Action: p.expose,
	}
}

func (p *program) expose(c *cli.Context) error {
	name, specs, err := endpointSpecs(c, 1)
	if err != nil {
		return err
	}
	from, err := parseAll(c, "from", network.ParseSource)
	if err != nil {
		return err
	}
	return p.change(c, func(h *network.Host) (view, error) {
		ports, err := h.Expose(name, specs, from)
		return portsView(ports), err
	})
}

// endpointSpecs reads the arguments ENDPOINT SPEC..., with least specs at least.
func endpointSpecs(c *cli.Context, least int) (name string, specs []network.PortSpec, err error) {
	args, err := arguments(c, 1+least, -1)
	if err != nil {
		return "", nil, err
	}
	if err := network.CheckName("endpoint", args[0]); err != nil {
		return "", nil, err
	}
	specs, err = portSpecs(args[1:])
	return args[0], specs, err
}

// portsView shows ports as expose prints them.
func portsView(ports []network.PortInfo) view {
	var ls []string
	for _, port := range ports {
		ls = append(ls, port.Endpoint+" "+portMapping(port))
	}
	return view{listOf(ports), lines(ls...)}
}
