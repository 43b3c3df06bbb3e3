package soak

import (
	"bytes"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/ebnet/ebnet/tests/netlab"
)

// pinger is a ping(8) at work.
type pinger struct {
	cmd *exec.Cmd
	out bytes.Buffer
}

// startPing sends echo requests for that long.
func startPing(tb testing.TB, from *netlab.Node, to netip.Addr, length time.Duration) *pinger {
	tb.Helper()
	p := &pinger{}
	p.cmd = exec.Command("ping", "-n", "-q", "-i", "0.1", "-w", strconv.Itoa(int(length.Seconds())), to.String())
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	if err := from.Start(p.cmd); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
	})
	return p
}

// echoes are requests and answers.
type echoes struct {
	Sent     int `json:"sent"`
	Answered int `json:"answered"`
}

var pingSummary = regexp.MustCompile(`(\d+) packets transmitted, (\d+) received`)

func (p *pinger) wait(tb testing.TB) (e echoes) {
	tb.Helper()
	_ = p.cmd.Wait() // what it says counts
	m := pingSummary.FindSubmatch(p.out.Bytes())
	if m == nil {
		tb.Errorf("ping says %q", p.out.String())
		return e
	}
	if _, err := fmt.Sscan(string(m[1])+" "+string(m[2]), &e.Sent, &e.Answered); err != nil {
		tb.Error(err)
	}
	return e
}
