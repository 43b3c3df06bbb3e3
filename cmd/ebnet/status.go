package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

func (p *program) statusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show the datapath, its uplinks, counts, map pressure and drops",
		Description: describe("Works without a datapath too and says so.",
			"ebnet status", "ebnet status -o json"),
		Action: p.status,
	}
}

func (p *program) status(c *cli.Context) error {
	if _, err := arguments(c, 0, 0); err != nil {
		return err
	}
	return p.look(c, func(h *network.Host) (view, error) {
		s, err := h.Status()
		return view{s, func(w io.Writer) { statusText(w, s) }}, err
	})
}

func statusText(w io.Writer, s network.StatusInfo) {
	datapath := "not loaded; ebnet up loads it"
	if s.Up {
		datapath = fmt.Sprintf("up: attached by %s, fast path %s, at most %d flows",
			s.Features.Attach, onOff(s.Features.FastPath), s.Features.MaxFlows)
	}
	rows := [][2]string{{"datapath", datapath}, {"kernel", s.Kernel}}
	for _, u := range s.Uplinks {
		rows = append(rows, [2]string{"uplink", uplinkLine(u)})
	}
	if len(s.Uplinks) == 0 {
		rows = append(rows, [2]string{"uplink", "none"})
	}
	for _, u := range s.Sides {
		rows = append(rows, [2]string{"bridge of others", uplinkLine(u)})
	}
	rows = append(rows,
		[2]string{"networks", fmt.Sprint(s.Networks)},
		[2]string{"endpoints", fmt.Sprint(s.Endpoints)},
		[2]string{"published ports", fmt.Sprint(s.Ports)})
	if s.Up {
		rows = append(rows, [2]string{"socket hooks", onOff(s.Features.SocketHooks)})
	}
	if len(s.Timeouts) > 0 {
		rows = append(rows, [2]string{"timeouts", timeoutLine(s.Timeouts)})
	}
	if line := refusedLine(s.Shares); line != "" {
		rows = append(rows, [2]string{"share used up", line})
	}
	if s.Listeners > 0 {
		rows = append(rows, [2]string{"monitors", fmt.Sprint(s.Listeners)})
	}
	for _, i := range s.Incomplete {
		rows = append(rows, [2]string{"incomplete", i + "; ebnet up undoes it"})
	}
	fields(w, rows...)
	if len(s.Maps) > 0 {
		_, _ = fmt.Fprintln(w)
		mapTable(w, s.Maps)
	}
	if len(s.Drops) > 0 {
		_, _ = fmt.Fprintln(w)
		dropTable(w, s.Drops)
	}
}

func timeoutLine(seconds map[string]int) string {
	var words []string
	for _, name := range network.TimeoutNames() {
		words = append(words, fmt.Sprintf("%s %ds", name, seconds[name]))
	}
	return strings.Join(words, ", ")
}

// refusedLine says whose conversations have no room among the confirmed, "" if all have.
func refusedLine(shares []network.ShareInfo) string {
	var words []string
	for _, s := range shares {
		if s.Refused > 0 {
			words = append(words, fmt.Sprintf("%s (%d held, %d refused)", strings.TrimSpace(s.Endpoint+" "+s.Port), s.Held, s.Refused))
		}
	}
	return strings.Join(words, ", ")
}

func uplinkLine(u network.UplinkInfo) string {
	line := fmt.Sprintf("%s (ifindex %d, MTU %d) %s", u.Name, u.Ifindex, u.MTU, join(u.Addrs, " "))
	if !u.Attached {
		line += ", programs not attached"
	}
	return line
}

func mapTable(w io.Writer, maps []network.MapInfo) {
	var rows [][]string
	for _, m := range maps {
		rows = append(rows, []string{m.Name, fmt.Sprint(m.Used), fmt.Sprint(m.Max), fmt.Sprintf("%.1f%%", 100*m.Pressure)})
	}
	table(w, "MAP USED MAX PRESSURE", rows)
}

func dropTable(w io.Writer, drops []network.DropInfo) {
	var rows [][]string
	for _, d := range drops {
		rows = append(rows, []string{d.Reason, d.Endpoint, d.Device, fmt.Sprint(d.Packets), fmt.Sprint(d.Bytes)})
	}
	table(w, "DROPS ENDPOINT DEVICE PACKETS BYTES", rows)
}
