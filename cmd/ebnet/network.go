package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

func (p *program) networkCommand() *cli.Command {
	return &cli.Command{
		Name:  "network",
		Usage: "create, show and remove networks",
		Subcommands: []*cli.Command{
			p.networkCreateCommand(),
			{
				Name:        "ls",
				Usage:       "list the networks",
				Description: describe("One line a network.", "ebnet network ls", "ebnet network ls -o json"),
				Action:      p.networkList,
			},
			{
				Name:      "inspect",
				Usage:     "show networks in full",
				ArgsUsage: "NETWORK...",
				Description: describe("In JSON always a list, also for one network.",
					"ebnet network inspect default", "ebnet network inspect default web -o json"),
				Action: p.networkInspect,
			},
			{
				Name:        "rm",
				Usage:       "remove networks",
				ArgsUsage:   "NETWORK...",
				Description: describe("Refused while a network has endpoints, unless with --force.", "ebnet network rm web", "ebnet network rm --force web"),
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "force", Usage: "remove the endpoints too", DisableDefaultText: true},
				},
				Action: p.networkRemove,
			},
			{
				Name:        "prune",
				Usage:       "remove the networks without endpoints",
				Description: describe("The network default stays. Prints the names of those removed.", "ebnet network prune"),
				Action:      p.networkPrune,
			},
		},
	}
}

func (p *program) networkCreateCommand() *cli.Command {
	return &cli.Command{
		Name:      "create",
		Usage:     "create a network",
		ArgsUsage: "NAME",
		Description: describe("Prints the name. Without a subnet the first free one of the default pools is taken.",
			"ebnet network create web",
			"ebnet network create web --subnet 10.5.0.0/24 --gateway 10.5.0.1 --label tier=front",
			"ebnet network create lab --mode routed --subnet 10.6.0.0/24"),
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "subnet", Usage: "`CIDR` of the network; may be repeated (default: a free one)"},
			&cli.StringSliceFlag{Name: "ip-range", Usage: "`CIDR` within a subnet that endpoints' addresses come from"},
			&cli.StringSliceFlag{Name: "gateway", Usage: "`IP` of the bridge (default: the subnet's first)"},
			&cli.StringSliceFlag{Name: "aux-address", Usage: "`NAME=IP` that is never given to an endpoint"},
			&cli.BoolFlag{Name: "ipv6", Usage: "give addresses of IPv6 too (not supported yet)", DisableDefaultText: true},
			&cli.BoolFlag{Name: "internal", Usage: "no way out or in", DisableDefaultText: true},
			&cli.BoolFlag{Name: "no-icc", Usage: "endpoints do not reach each other", DisableDefaultText: true},
			&cli.BoolFlag{Name: "no-masquerade", Usage: "what leaves keeps the endpoint's address", DisableDefaultText: true},
			&cli.StringFlag{Name: "mode", Usage: "`nat|routed`; routed translates nothing, published ports are those of the endpoints' own addresses", DefaultText: "nat"},
			&cli.StringSliceFlag{Name: "snat-address", Usage: "`IP` of the host that what leaves gets as its source (default: the uplink's)"},
			&cli.IntFlag{Name: "mtu", Usage: "`N` bytes", DefaultText: "that of the uplink"},
			&cli.StringFlag{Name: "bridge", Usage: "`IFNAME` of the bridge", DefaultText: "br- and 8 hex digits"},
			labelFlag(),
		},
		Action: p.networkCreate,
	}
}

func labelFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "label", Usage: "`K=V` to remember; may be repeated"}
}

func (p *program) networkCreate(c *cli.Context) error {
	args, err := arguments(c, 1, 1)
	if err != nil {
		return err
	}
	request, err := networkRequest(c, args[0])
	if err != nil {
		return err
	}
	return p.change(c, func(h *network.Host) (view, error) {
		info, err := h.CreateNetwork(request)
		return view{info, lines(info.Name)}, err
	})
}

func networkRequest(c *cli.Context, name string) (r network.NetworkRequest, err error) {
	r = network.NetworkRequest{
		Name:       name,
		IPv6:       c.Bool("ipv6"),
		Internal:   c.Bool("internal"),
		ICC:        !c.Bool("no-icc"),
		Masquerade: !c.Bool("no-masquerade"),
		Mode:       c.String("mode"),
		MTU:        c.Int("mtu"),
		Bridge:     c.String("bridge"),
	}
	if err = network.CheckName("network", name); err != nil {
		return r, err
	}
	if c.IsSet("mtu") && r.MTU == 0 {
		return r, usage("--mtu", "0 is not the size of a packet", "")
	}
	if r.Subnets, err = parseAll(c, "subnet", network.ParsePrefix); err != nil {
		return r, err
	}
	if r.IPRanges, err = parseAll(c, "ip-range", network.ParsePrefix); err != nil {
		return r, err
	}
	if r.Gateways, err = parseAll(c, "gateway", network.ParseAddr); err != nil {
		return r, err
	}
	if r.SNATAddrs, err = parseAll(c, "snat-address", network.ParseAddr); err != nil {
		return r, err
	}
	if r.Aux, err = network.ParseAux("--aux-address", c.StringSlice("aux-address")); err != nil {
		return r, err
	}
	r.Labels, err = network.ParseLabels("--label", c.StringSlice("label"))
	return r, err
}

// parseAll reads each value of a repeated flag.
func parseAll[T any](c *cli.Context, flag string, parse func(what, s string) (T, error)) ([]T, error) {
	var out []T
	for _, s := range c.StringSlice(flag) {
		v, err := parse("--"+flag, s)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

func (p *program) networkList(c *cli.Context) error {
	if _, err := arguments(c, 0, 0); err != nil {
		return err
	}
	return p.look(c, func(h *network.Host) (view, error) {
		all, err := h.Networks()
		return view{listOf(all), func(w io.Writer) { networkTable(w, all) }}, err
	})
}

func networkTable(w io.Writer, all []network.NetworkInfo) {
	var rows [][]string
	for _, n := range all {
		rows = append(rows, []string{n.Name, join(n.Subnets, ","), join(n.Gateways, ","), n.Bridge, n.Mode,
			fmt.Sprint(n.MTU), fmt.Sprint(n.Endpoints), networkTraits(n)})
	}
	table(w, "NAME SUBNET GATEWAY BRIDGE MODE MTU ENDPOINTS OPTIONS", rows)
}

// networkTraits names what differs from the usual.
func networkTraits(n network.NetworkInfo) string {
	var ts []string
	for _, t := range []struct {
		on   bool
		name string
	}{{n.Internal, "internal"}, {!n.ICC, "no-icc"}, {!n.Masquerade && n.Mode != network.ModeRouted, "no-masquerade"}, {n.IPv6, "ipv6"}} {
		if t.on {
			ts = append(ts, t.name)
		}
	}
	return strings.Join(ts, ",")
}

func (p *program) networkInspect(c *cli.Context) error {
	names, err := arguments(c, 1, -1)
	if err != nil {
		return err
	}
	return p.look(c, func(h *network.Host) (view, error) {
		all, err := each(names, h.Network)
		return view{listOf(all), func(w io.Writer) {
			for i, n := range all {
				if i > 0 {
					_, _ = fmt.Fprintln(w)
				}
				networkFields(w, n)
			}
		}}, err
	})
}

// each looks every name up.
func each[T any](names []string, get func(string) (T, error)) ([]T, error) {
	var out []T
	for _, n := range names {
		v, err := get(n)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

func networkFields(w io.Writer, n network.NetworkInfo) {
	fields(w,
		[2]string{"name", n.Name},
		[2]string{"subnets", join(n.Subnets, ", ")},
		[2]string{"gateways", join(n.Gateways, ", ")},
		[2]string{"ip ranges", join(n.IPRanges, ", ")},
		[2]string{"bridge", n.Bridge},
		[2]string{"mtu", fmt.Sprint(n.MTU)},
		[2]string{"internal", yesNo(n.Internal)},
		[2]string{"icc", yesNo(n.ICC)},
		[2]string{"masquerade", yesNo(n.Masquerade)},
		[2]string{"mode", n.Mode},
		[2]string{"snat address", n.SNAT},
		[2]string{"ipv6", yesNo(n.IPv6)},
		[2]string{"labels", labels(n.Labels)},
		[2]string{"endpoints", fmt.Sprint(n.Endpoints)},
		[2]string{"addresses", fmt.Sprintf("%d used, %d available", n.Addresses.Used, n.Addresses.Available)},
	)
}

// labels prints labels in the order of their keys.
func labels(m map[string]string) string {
	var kvs []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		kvs = append(kvs, k+"="+m[k])
	}
	return strings.Join(kvs, ", ")
}

// nameItem is the JSON of something that was removed.
type nameItem struct {
	Name string `json:"name"`
}

// namesView shows names, one a line.
func namesView(names []string) view {
	items := []nameItem{}
	for _, n := range names {
		items = append(items, nameItem{n})
	}
	return view{listOf(items), lines(names...)}
}

func (p *program) networkRemove(c *cli.Context) error {
	names, err := arguments(c, 1, -1)
	if err != nil {
		return err
	}
	names, force := unique(names), c.Bool("force")
	return p.change(c, func(h *network.Host) (view, error) {
		// All or nothing: what will be refused is found before anything goes.
		for _, n := range names {
			info, err := h.Network(n)
			if err != nil {
				return view{}, err
			}
			if info.Endpoints > 0 && !force {
				return view{}, h.RemoveNetwork(n, false)
			}
		}
		for _, n := range names {
			if err := h.RemoveNetwork(n, force); err != nil {
				return view{}, err
			}
		}
		return namesView(names), nil
	})
}

// unique drops repeated names and keeps the order.
func unique(names []string) []string {
	var out []string
	for _, n := range names {
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

func (p *program) networkPrune(c *cli.Context) error {
	if _, err := arguments(c, 0, 0); err != nil {
		return err
	}
	return p.change(c, func(h *network.Host) (view, error) {
		names, err := h.PruneNetworks()
		return namesView(names), err
	})
}
