package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/ebnet/ebnet/tests/netlab"
)

// leavesNoTrace checks that nothing is left of a benchmark, by the names that its process gives:
// to namespaces, mounts, cgroups and directories. Others may be at work on the machine.
func leavesNoTrace(t *testing.T, run *exec.Cmd) {
	t.Helper()
	var traces []string
	for _, pattern := range []string{"/run/netns/ebb*", "/sys/fs/cgroup/ebb*", "/sys/fs/cgroup/*/ebb*", filepath.Join(os.TempDir(), "ebb*")} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		traces = append(traces, found...)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		traces = append(traces, line)
	}
	own := regexp.MustCompile(fmt.Sprintf(`/ebb%d\b`, run.Process.Pid))
	for _, trace := range traces {
		if own.MatchString(trace) {
			t.Errorf("the benchmark left %s", trace)
		}
	}
}

// benchReport is what ebnet bench measured, as far as tests read it.
type benchReport struct {
	V        int  `json:"v"`
	Complete bool `json:"complete"`
	Targets  []struct {
		Name  string `json:"name"`
		Known bool   `json:"known"`
	} `json:"targets"`
	LeftOut []struct {
		Peer, Case, Why string
	} `json:"left_out"`
	Cases []struct {
		Name   string `json:"name"`
		Series []struct {
			Peer   string `json:"peer"`
			Points []struct {
				Samples []float64 `json:"samples"`
			} `json:"points"`
		} `json:"series"`
	} `json:"cases"`
}

// figures are the samples of each peer by case and peer.
func (r benchReport) figures() map[string][]float64 {
	figures := make(map[string][]float64)
	for _, c := range r.Cases {
		for _, s := range c.Series {
			for _, p := range s.Points {
				figures[c.Name+" "+s.Peer] = append(figures[c.Name+" "+s.Peer], p.Samples...)
			}
		}
	}
	return figures
}

// TestPrivilegedBench: every peer moves packets by every way, the files are written, targets are
// computed, and nothing is left.
func TestPrivilegedBench(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces and eBPF")
	}
	dir := filepath.Join(t.TempDir(), "report")
	streams := []string{"loopback", "veth", "redirect", "route", "nftables", "iptables", "ebnet", "ebnet-slow"}
	peers := map[string][]string{ // by group
		"pps": streams[1:], "tcp": streams, "rr": streams, "crr": streams, "newflows": streams[1:],
		"host": {"plain", "nftables", "iptables", "ebnet", "ebnet-slow"},
	}
	cases := []string{
		"pps/out", "pps/out-reply", "pps/in", "pps/in-reply", "pps/inside",
		"tcp/out-1", "tcp/out-4", "tcp/in-1", "tcp/in-4", "tcp/inside-1", "tcp/inside-4",
		"rr/out", "rr/in", "rr/inside", "crr/out", "crr/in", "newflows/udp", "host/out", "host/in", "host/tcp",
	}
	groups := "pps,tcp,rr,crr,newflows,host"
	all := strings.Join(append(streams, "plain"), ",")
	cmd := exec.Command(netlab.Binary(), "-o", "json", "bench", "--peer", all, "--case", groups, "--rounds", "1", "--seconds", "0.02", "--out", dir)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("ebnet bench: %v", err)
	}
	leavesNoTrace(t, cmd)
	written, err := os.ReadFile(filepath.Join(dir, "report.json"))
	if err != nil || string(written) != string(out) {
		t.Errorf("report.json (%v) is not what was printed:\n%s", err, written)
	}
	for name, start := range map[string]string{"report.csv": "case,peer,", "report.html": "<!", "report.svg": "<svg "} {
		if content, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !strings.HasPrefix(strings.ToLower(string(content)), start) {
			t.Errorf("%s (%v) starts with %.40q, want %q", name, err, content, start)
		}
	}
	var r benchReport
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if r.V != 1 || !r.Complete || len(r.LeftOut) > 0 {
		t.Errorf("version %d, complete: %t, left out: %v", r.V, r.Complete, r.LeftOut)
	}
	known := 0
	for _, target := range r.Targets {
		if target.Known {
			known++
		}
	}
	// Those of ratios of what was measured: what packets cost beyond the pair may be less than
	// nothing in so short a time.
	if known < 20 {
		t.Errorf("%d targets are known: %v", known, r.Targets)
	}
	figures := r.figures()
	for _, c := range cases {
		group, _, _ := strings.Cut(c, "/")
		for _, p := range peers[group] {
			if samples := figures[c+" "+p]; len(samples) != 1 || samples[0] < 300 {
				t.Errorf("%s by %s: samples %v, want one of a working network", c, p, samples)
			}
		}
	}
}

// TestPrivilegedBenchInterrupted: a run that a signal ends tells what it has measured and
// leaves nothing; what a killed one leaves, the next one takes away.
func TestPrivilegedBenchInterrupted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces and eBPF")
	}
	var killed *exec.Cmd
	for _, s := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGINT} {
		var out strings.Builder
		cmd := exec.Command(netlab.Binary(), "-o", "json", "bench", "--peer", "veth,ebnet", "--case", "pps/out", "--rounds", "1000", "--seconds", "0.02")
		cmd.Stdout = &out
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		progress := bufio.NewReader(stderr)
		for line := ""; err == nil && !strings.Contains(line, "round 2 of"); {
			line, err = progress.ReadString('\n')
		}
		go func() { _, _ = io.Copy(io.Discard, progress) }() // or it would wait for somebody to read
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // the exit status says it all
		if s == syscall.SIGKILL {
			killed = cmd
			continue
		}
		leavesNoTrace(t, killed)
		if code := cmd.ProcessState.ExitCode(); code != 128+int(s) {
			t.Errorf("exit status %d after %v", code, s)
		}
		leavesNoTrace(t, cmd)
		var r benchReport
		if err := json.Unmarshal([]byte(out.String()), &r); err != nil {
			t.Fatalf("%v\n%s", err, out.String())
		}
		if r.Complete || len(r.figures()["pps/out ebnet"]) == 0 {
			t.Errorf("after %v: complete: %t, figures %v", s, r.Complete, r.figures())
		}
	}
}

// TestPrivilegedBenchScale: every peer climbs its curves, with as many conversations as the
// curve says, and nothing is left. Sizes are small here.
func TestPrivilegedBenchScale(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces and eBPF")
	}
	for _, test := range []struct {
		cases, most string
		points      map[string]int // by case and peer
	}{
		{"scale/ports,scale/flows", "1000", map[string]int{
			"scale/ports veth": 3, "scale/ports nftables": 3, "scale/ports iptables": 3, "scale/ports ebnet": 3,
			"scale/flows veth": 2, "scale/flows redirect": 2, "scale/flows lookup": 2, "scale/flows lookup-write": 2,
			"scale/flows nftables": 2, "scale/flows iptables": 2, "scale/flows ebnet": 2,
		}},
		{"scale/endpoints,scale/networks", "10", map[string]int{
			"scale/endpoints veth": 2, "scale/endpoints ebnet": 2, "scale/networks veth": 2, "scale/networks ebnet": 2,
		}},
	} {
		t.Run(test.cases, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(netlab.Binary(), "-o", "json", "bench", "--case", test.cases, "--max-size", test.most, "--rounds", "1", "--seconds", "0.02")
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("ebnet bench: %v", err)
			}
			leavesNoTrace(t, cmd)
			var r benchReport
			if err := json.Unmarshal(out, &r); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if !r.Complete || len(r.LeftOut) > 0 {
				t.Errorf("complete: %t, left out: %v", r.Complete, r.LeftOut)
			}
			figures := r.figures()
			for name, n := range test.points {
				if samples := figures[name]; len(samples) != n || slices.Min(samples) < 300 {
					t.Errorf("%s: samples %v, want %d of a working network", name, samples, n)
				}
			}
		})
	}
}
