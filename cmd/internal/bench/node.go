package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/ebnet/ebnet/loader/netdev"
)

// node is a network namespace of the benchmark's own.
type node struct {
	name string // below /run/netns
	ns   *netdev.NS
}

// newNode makes a namespace with its loopback device up. It knows IPv4 only, so that no
// device sends anything of its own accord, and forwards nothing.
func newNode(ctx context.Context, name string) (*node, error) {
	ns, err := netdev.CreateNamed(name)
	if err != nil {
		return nil, err
	}
	n := &node{name: name, ns: ns}
	for _, s := range [][2]string{
		{"net/ipv6/conf/all/disable_ipv6", "1"}, {"net/ipv6/conf/default/disable_ipv6", "1"},
		{"net/ipv4/ip_forward", "0"}, // a new namespace inherits the machine's value
	} {
		if err == nil {
			err = n.setSysctl(s[0], s[1])
		}
	}
	if err == nil {
		err = n.run(ctx, "ip", "link", "set", "lo", "up")
	}
	if err != nil {
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
	return n.feed(ctx, "", args...)
}

// feed is output for a command that reads input.
func (n *node) feed(ctx context.Context, input string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	// What a key sends to the terminal's processes is the benchmark's alone to obey.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	err := n.start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// ip runs commands of ip(8), one a line.
func (n *node) ip(ctx context.Context, lines ...string) error {
	_, err := n.feed(ctx, strings.Join(lines, "\n")+"\n", "ip", "-batch", "-")
	return err
}

// setSysctl changes a setting of the namespace, by its path below /proc/sys. One that this
// kernel does not have is left alone.
func (n *node) setSysctl(path, value string) error {
	err := n.do(func() error { return os.WriteFile(filepath.Join("/proc/sys", path), []byte(value), 0) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// device returns a device of the namespace.
func (n *node) device(name string) (link *net.Interface, err error) {
	err = n.do(func() error {
		link, err = net.InterfaceByName(name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("device %s of %s: %w", name, n.name, err)
	}
	return link, nil
}
