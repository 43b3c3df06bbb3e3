package netlab

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// netnsDir is where ip(8) keeps named network namespaces.
const netnsDir = "/run/netns"

// commandLimit ends a command that hangs; nothing here should come near it.
const commandLimit = 90 * time.Second

// Node is a network namespace of the lab.
type Node struct {
	Name string // as ip netns knows it
}

// Path is the file that stands for the namespace.
func (n *Node) Path() string { return filepath.Join(netnsDir, n.Name) }

// Do runs fn on a thread inside the namespace. Sockets that fn opens stay in
// the namespace and may be used from any goroutine afterwards; fn itself must
// not start goroutines that open any.
func (n *Node) Do(fn func() error) error {
	target, err := os.Open(n.Path())
	if err != nil {
		return err
	}
	defer target.Close()

	runtime.LockOSThread()
	origin, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer origin.Close()
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter namespace %s: %w", n.Name, err)
	}
	failure := fn()
	if err := unix.Setns(int(origin.Fd()), unix.CLONE_NEWNET); err != nil {
		// The thread stays locked, so the runtime ends it with the goroutine.
		return fmt.Errorf("leave namespace %s: %w", n.Name, err)
	}
	runtime.UnlockOSThread()
	return failure
}

// Result is what a command left.
type Result struct {
	Args           []string
	Code           int // exit status, -1 if a signal ended it
	Stdout, Stderr string
}

// String is the command and all it said, for messages of tests.
func (r Result) String() string {
	return fmt.Sprintf("%s\nexit status %d\nstdout:\n%s\nstderr:\n%s", strings.Join(r.Args, " "), r.Code, r.Stdout, r.Stderr)
}

// Start starts a command in the namespace. The caller waits for it.
func (n *Node) Start(cmd *exec.Cmd) error {
	// The child is forked by the thread that Do put into the namespace.
	return n.Do(cmd.Start)
}

// Try runs a command in the namespace and returns how it went, env added to
// its environment. Only a command that cannot be started or does not end fails
// the test. Try may be called from any goroutine.
func (n *Node) Try(tb testing.TB, env []string, args ...string) Result {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := n.Start(cmd); err != nil {
		tb.Errorf("run %s: %v", strings.Join(args, " "), err)
		return Result{Args: args, Code: -1, Stderr: err.Error()}
	}
	_ = cmd.Wait() // the exit status says it all
	if ctx.Err() != nil {
		tb.Errorf("%s: still running after %v, killed", strings.Join(args, " "), commandLimit)
	}
	return Result{Args: args, Code: cmd.ProcessState.ExitCode(), Stdout: stdout.String(), Stderr: stderr.String()}
}

// Run runs a command in the namespace, which must succeed, and returns its
// standard output.
func (n *Node) Run(tb testing.TB, args ...string) string {
	tb.Helper()
	r := n.Try(tb, nil, args...)
	if r.Code != 0 {
		tb.Fatalf("in %s: %v", n.Name, r)
	}
	return r.Stdout
}

// Links returns the interface indices of the namespace's devices by name.
func (n *Node) Links(tb testing.TB) map[string]int {
	tb.Helper()
	links := make(map[string]int)
	err := n.Do(func() error {
		ifs, err := net.Interfaces()
		for _, i := range ifs {
			links[i.Name] = i.Index
		}
		return err
	})
	if err != nil {
		tb.Fatalf("links of %s: %v", n.Name, err)
	}
	return links
}

// Sysctl returns a setting of the namespace, by its path below /proc/sys.
func (n *Node) Sysctl(tb testing.TB, path string) string {
	tb.Helper()
	var value []byte
	err := n.Do(func() (err error) {
		value, err = os.ReadFile(filepath.Join("/proc/sys", path))
		return err
	})
	if err != nil {
		tb.Fatalf("sysctl of %s: %v", n.Name, err)
	}
	return strings.TrimSpace(string(value))
}

// SetSysctl changes a setting of the namespace.
func (n *Node) SetSysctl(tb testing.TB, path, value string) {
	tb.Helper()
	err := n.Do(func() error { return os.WriteFile(filepath.Join("/proc/sys", path), []byte(value), 0) })
	if err != nil {
		tb.Fatalf("sysctl of %s: %v", n.Name, err)
	}
}
