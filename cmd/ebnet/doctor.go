package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

func (p *program) doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "look for what is wrong, and say how to mend it",
		Description: describe("Looks at the host and at what is loaded, and changes nothing: missing programs and devices, programs\n"+
			"of others before ebnet's, host settings, addresses and namespaces that are gone, leftovers, full maps,\n"+
			"published ports that a process or a rule of nftables has too (rules of iptables-legacy are not seen).\n"+
			"Exit status 1 if anything is wrong.",
			"ebnet doctor", "ebnet doctor -o json"),
		Action: p.doctor,
	}
}

func (p *program) doctor(c *cli.Context) error {
	if _, err := arguments(c, 0, 0); err != nil {
		return err
	}
	healthy := true
	err := p.look(c, func(h *network.Host) (view, error) {
		d, err := h.Examine()
		healthy = d.Healthy
		return view{d, func(w io.Writer) { diagnosisText(w, d) }}, err
	})
	if err == nil && !healthy {
		return statusError{status: 1}
	}
	return err
}

func diagnosisText(w io.Writer, d network.Diagnosis) {
	for _, f := range d.Items {
		_, _ = fmt.Fprintf(w, "%s\n    %s\n    mend: %s\n", f.What, f.Why, f.Mend)
	}
	if d.Healthy {
		_, _ = fmt.Fprintf(w, "nothing is wrong: %s made\n", count(d.Checks, "check"))
		return
	}
	_, _ = fmt.Fprintf(w, "\n%s found by %s\n", count(len(d.Items), "problem"), count(d.Checks, "check"))
}
