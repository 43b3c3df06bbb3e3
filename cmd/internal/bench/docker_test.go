package bench

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPrivilegedDockerStage sends datagrams by each way through Docker's network and back, with
// the translations that the stage promises.
func TestPrivilegedDockerStage(t *testing.T) {
	l := newControlLab(t)
	i := slices.IndexFunc(builders, func(b builder) bool { return b.peer == "docker" })
	s, err := l.stage(t.Context(), builders[i])
	if err != nil {
		if errors.Is(err, errNoEngine) || strings.Contains(err.Error(), "not installed") {
			t.Skipf("SKIP: %v", err)
		}
		t.Fatal(err)
	}
	for _, name := range []string{"out", "in", "inside"} {
		c, err := converse(s.way(name))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.exchange(); err != nil {
			t.Error(err)
		}
		_ = c.Close() // never fails
	}
}

// TestPrivilegedSweepNode ends what stands in a namespace, and takes the namespace and the
// cgroups of its name away.
func TestPrivilegedSweepNode(t *testing.T) {
	l := newControlLab(t)
	n, err := newNode(t.Context(), l.name+"-swept")
	if err != nil {
		t.Fatal(err)
	}
	defer n.ns.Close()
	left := exec.Command("sleep", "60")
	if err := n.start(left); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- left.Wait() }()
	if dir := cgroupDir(n.name); dir != "" {
		if err := os.MkdirAll(dir+"/below", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sweepNode(n.name)
	select {
	case err := <-ended:
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(interface{ Signal() unix.Signal }).Signal() != unix.SIGKILL {
			t.Errorf("the process ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the process goes on")
		_ = left.Process.Kill()
	}
	if dirs := cgroupDirs(n.name); len(dirs) > 0 {
		t.Errorf("cgroups left: %v", dirs)
	}
}
