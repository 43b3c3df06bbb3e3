package e2e

import (
	"bufio"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/ebnet/ebnet/tests/netlab"
)

// TestPrivilegedRun: a command runs in a namespace with an endpoint, and
// everything is gone when it ends.
func TestPrivilegedRun(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		links := len(s.Host.Links(t))
		r := s.Host.TryEbnet(t, "run", "--", "ping", "-n", "-c", "1", "-W", "2", netlab.InternetAddr.String())
		if r.Code != 0 || !strings.Contains(r.Stdout, "1 received") {
			t.Errorf("ping in ebnet run: %v", r)
		}
		r = s.Host.TryEbnet(t, "run", "--network", "default", "--name", "guest", "--",
			"sh", "-c", "cat /proc/net/dev; kill -TERM $$")
		if r.Code != 128+15 || !strings.Contains(r.Stdout, "eth0") {
			t.Errorf("want the links and the exit status of a command that SIGTERM ended: %v", r)
		}
		if r = s.Host.TryEbnet(t, "run", "--", "sh", "-c", "exit 7"); r.Code != 7 {
			t.Errorf("want the exit status 7 of the command: %v", r)
		}
		signalsArePassedOn(t, s)
		if endpoints := s.Host.Endpoints(t); len(endpoints) != 2 {
			t.Errorf("endpoints after ebnet run are %v, want w1 and w2", endpoints)
		}
		if now := len(s.Host.Links(t)); now != links {
			t.Errorf("%d links after ebnet run, %d before", now, links)
		}
	})
}

// signalsArePassedOn sends ebnet run a signal that its command answers with an
// exit status of its own.
func signalsArePassedOn(t *testing.T, s *site) {
	t.Helper()
	args := s.Host.Command("run", "--", "sh", "-c", `trap "exit 5" TERM; echo ready; while :; do sleep 0.02; done`)
	cmd := exec.Command(args[0], args[1:]...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Host.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Errorf("the command said %q (%v)", line, err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // the exit status says it all
	if code := cmd.ProcessState.ExitCode(); code != 5 {
		t.Errorf("exit status %d after SIGTERM, want the command's 5", code)
	}
}
