package bench

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"

	"github.com/ebnet/ebnet/loader/netdev"
)

// node is a network namespace of the benchmark's own.
type node struct {
	name string // below /run/netns
	ns   *netdev.NS
}

// newNode makes a namespace with its loopback device up.
func newNode(ctx context.Context, name string) (*node, error) {
	ns, err := netdev.CreateNamed(name)
	if err != nil {
		return nil, err
	}
	n := &node{name: name, ns: ns}
	if err := n.run(ctx, "ip", "link", "set", "lo", "up"); err != nil {
		_ = n.close() // the first failure tells more
		return nil, err
	}
	return n, nil
}

// close takes the namespace away, and all devices in it.
func (n *node) close() error {
	err := netdev.DeleteNamed(n.name)
	if closing := n.ns.Close(); err == nil {
		err = closing
	}
	return err
}

// do runs fn on a thread inside the namespace, see netdev.Do.
func (n *node) do(fn func() error) error { return netdev.Do(n.ns, fn) }

// start starts a command inside the namespace. The caller waits for it.
func (n *node) start(cmd *exec.Cmd) error {
	return n.do(cmd.Start) // the child is forked by the thread that is there
}

// run runs a command inside the namespace to its end.
func (n *node) run(ctx context.Context, args ...string) error {
	_, err := n.output(ctx, args...)
	return err
}

// output runs a command inside the namespace and returns its standard output.
func (n *node) output(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := n.start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
