package netlab

import (
	"strings"
	"testing"
)

// dump logs what a person would look at first.
func (l *Lab) dump(tb testing.TB) {
	tb.Helper()
	h := l.Host
	show := func(n *Node, args ...string) {
		r := n.Try(tb, nil, args...)
		tb.Logf("in %s: %s (exit status %d)\n%s%s", n.Name, strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	for _, n := range []*Node{l.Internet, h.Node} {
		show(n, "ip", "-d", "link")
		show(n, "ip", "address")
		show(n, "ip", "route")
		show(n, "ip", "neighbour")
	}
	for _, args := range [][]string{
		{"-o", "json", "status"}, {"endpoint", "ls"}, {"ports"}, {"flows", "--limit", "50"},
	} {
		show(h.Node, h.Command(args...)...)
	}
	show(h.Node, "nft", "list", "ruleset")
	show(h.Node, "iptables-save")
	show(h.Node, "nstat", "-a", "-s")
	if len(l.namespaces) > 2 {
		c := &Node{Name: l.namespaces[2]}
		show(c, "ip", "address")
		show(c, "ip", "route")
	}
}
