package e2e

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/ebnet/ebnet/tests/netlab"
)

// benchTraces are what a benchmark could leave: namespaces, mounts, cgroups and directories
// with the prefix of its names.
func benchTraces(t *testing.T) []string {
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
		if strings.Contains(line, "/ebb") {
			traces = append(traces, line)
		}
	}
	return traces
}

// leavesNoTrace checks that nothing is left of a benchmark. Another one may be at work on the
// machine, whose traces were there before.
func leavesNoTrace(t *testing.T, before []string) {
	t.Helper()
	for _, trace := range benchTraces(t) {
		if !slices.Contains(before, trace) {
			t.Errorf("the benchmark left %s", trace)
		}
	}
}

// benchReport is what ebnet bench measured, as far as tests read it.
type benchReport struct {
	V        int  `json:"v"`
	Complete bool `json:"complete"`
	LeftOut  []struct {
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

// TestPrivilegedBench: every peer moves packets by every way, the files are written, and
// nothing is left.
func TestPrivilegedBench(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces and eBPF")
	}
	before := benchTraces(t)
	dir := filepath.Join(t.TempDir(), "report")
	peers := []string{"veth", "redirect", "route", "nftables", "iptables", "ebnet", "ebnet-slow"}
	cases := []string{"pps/out", "pps/out-reply", "pps/in", "pps/in-reply", "pps/inside"}
	cmd := exec.Command(netlab.Binary(), "-o", "json", "bench", "--case", "pps", "--rounds", "1", "--seconds", "0.02", "--out", dir)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("ebnet bench: %v", err)
	}
	leavesNoTrace(t, before)
	written, err := os.ReadFile(filepath.Join(dir, "report.json"))
	if err != nil || string(written) != string(out) {
		t.Errorf("report.json (%v) is not what was printed:\n%s", err, written)
	}
	var r benchReport
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if r.V != 1 || !r.Complete || len(r.LeftOut) > 0 {
		t.Errorf("version %d, complete: %t, left out: %v", r.V, r.Complete, r.LeftOut)
	}
	figures := r.figures()
	for _, c := range cases {
		for _, p := range peers {
			if samples := figures[c+" "+p]; len(samples) != 1 || samples[0] < 1000 {
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
	before := benchTraces(t)
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
			continue
		}
		if code := cmd.ProcessState.ExitCode(); code != 128+int(s) {
			t.Errorf("exit status %d after %v", code, s)
		}
		leavesNoTrace(t, before)
		var r benchReport
		if err := json.Unmarshal([]byte(out.String()), &r); err != nil {
			t.Fatalf("%v\n%s", err, out.String())
		}
		if r.Complete || len(r.figures()["pps/out ebnet"]) == 0 {
			t.Errorf("after %v: complete: %t, figures %v", s, r.Complete, r.figures())
		}
	}
}
