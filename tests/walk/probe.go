package walk

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/ebnet/ebnet/tests/netlab"
)

// How long what must work may take, and how long what must not is waited for.
const (
	reachable   = 5 * time.Second
	unreachable = 150 * time.Millisecond
)

// Probe sends a little traffic: to ports that are published and to some that are not,
// between endpoints, and out.
func (w *Walk) Probe() {
	w.tb.Helper()
	if !w.model.Up {
		return
	}
	for _, err := range []error{w.probePublished(), w.probeUnpublished(), w.probeNeighbours(), w.probeOut()} {
		if err != nil {
			w.fail("traffic: %v", err)
		}
	}
}

func (w *Walk) probed(what string) { w.Counts.Probes[what]++ }

// among returns one of those, of the endpoints that have a namespace, for which is holds.
// The choice is not of what decides on operations: it depends on what was killed.
func (w *Walk) among(is func(Endpoint, Network) bool) (e Endpoint, ok bool) {
	var all []Endpoint
	for _, name := range sortedKeys(w.model.Endpoints) {
		if e := w.model.Endpoints[name]; w.model.linked(e) && !e.Kept && is(e, w.model.Networks[e.Network]) {
			all = append(all, e)
		}
	}
	if len(all) == 0 {
		return e, false
	}
	return all[w.timing.IntN(len(all))], true
}

// probePublished uses one published port from outside.
func (w *Walk) probePublished() error {
	outside := func(p Port) bool { return !p.Direct && p.HostIP != w.loopback }
	e, ok := w.among(func(e Endpoint, _ Network) bool { return !e.NoDefaultRoute && slices.ContainsFunc(e.Ports, outside) })
	if !ok {
		return nil
	}
	open := slices.DeleteFunc(slices.Clone(e.Ports), func(p Port) bool { return !outside(p) })
	p := open[w.timing.IntN(len(open))]
	i := uint16(w.timing.IntN(p.Count))
	host := p.HostIP
	if !host.IsValid() {
		host = []netip.Addr{netlab.HostAddr, netlab.HostAddr2}[w.timing.IntN(2)]
	}
	allowed := len(p.From) == 0 || slices.ContainsFunc(p.From, func(f netip.Prefix) bool { return f.Contains(netlab.InternetAddr) })
	what := "published port"
	if !allowed {
		what = "published port from elsewhere"
	}
	w.probed(what)
	return w.reaches(w.lab.Internet, p.Protocol, netip.AddrPortFrom(host, p.HostPort+i), e, p.Port+i, allowed)
}

// probeUnpublished tries a port that nobody has published.
func (w *Walk) probeUnpublished() error {
	p := Port{Protocol: "tcp", HostPort: uint16(8000 + w.timing.IntN(24)), Count: 1}
	if w.model.taken(p) {
		return nil
	}
	w.probed("unpublished port")
	c, err := w.lab.Internet.Dial("tcp", netip.AddrPort{}, netip.AddrPortFrom(netlab.HostAddr, p.HostPort), unreachable)
	if err == nil {
		c.Close()
		return fmt.Errorf("somebody answers at port %d, which is not published", p.HostPort)
	}
	return nil
}

// probeNeighbours tries one endpoint from another: of the same network, where that is not
// closed, and of another one.
func (w *Walk) probeNeighbours() error {
	from, ok := w.among(func(e Endpoint, _ Network) bool { return !e.NoDefaultRoute })
	if !ok {
		return nil
	}
	member := func(network string) bool { // the client's namespace is
		for _, e := range w.model.Endpoints {
			if w.model.linked(e) && e.Space == from.Space && e.Network == network {
				return true
			}
		}
		return false
	}
	near, ok := w.among(func(e Endpoint, _ Network) bool { return e.Network == from.Network && e.Space != from.Space })
	if ok {
		closed := w.model.Networks[from.Network].NoICC
		w.probed(map[bool]string{false: "neighbour", true: "closed neighbour"}[closed])
		if err := w.reaches(w.node(from.Space), "tcp", netip.AddrPortFrom(near.IP, 99), near, 99, !closed); err != nil {
			return err
		}
	}
	far, ok := w.among(func(e Endpoint, _ Network) bool { return e.Space != from.Space && !member(e.Network) })
	if !ok {
		return nil
	}
	w.probed("endpoint of another network")
	return w.reaches(w.node(from.Space), "tcp", netip.AddrPortFrom(far.IP, 99), far, 99, false)
}

// probeOut tries the way out, and by which address it leads.
func (w *Walk) probeOut() error {
	e, ok := w.among(func(e Endpoint, n Network) bool { return !e.NoDefaultRoute && !n.NoMasquerade })
	if !ok {
		return nil
	}
	n := w.model.Networks[e.Network]
	w.probed(map[bool]string{false: "way out", true: "way out of an internal network"}[n.Internal])
	want := netlab.HostAddr
	if n.SNAT.IsValid() {
		want = n.SNAT
	}
	ln, err := w.lab.Internet.ListenTCP(netip.AddrPortFrom(netlab.InternetAddr, 99))
	if err != nil {
		return err
	}
	defer ln.Close()
	limit := reachable
	if n.Internal {
		limit = unreachable
	}
	c, err := w.node(e.Space).Dial("tcp", netip.AddrPort{}, netip.AddrPortFrom(netlab.InternetAddr, 99), limit)
	switch {
	case err == nil && n.Internal:
		c.Close()
		return fmt.Errorf("endpoint %s of an internal network reached the outside", e.Name)
	case err != nil && n.Internal:
		return nil
	case err != nil:
		return fmt.Errorf("endpoint %s does not reach the outside: %w", e.Name, err)
	}
	defer c.Close()
	_ = ln.SetDeadline(time.Now().Add(reachable))
	peer, err := ln.Accept()
	if err != nil {
		return err
	}
	defer peer.Close()
	if from := peer.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); from != want {
		return fmt.Errorf("endpoint %s is seen outside as %v, want %v", e.Name, from, want)
	}
	return nil
}

// reaches opens a server at the endpoint's port and tries it as remote from a node: that it
// answers, or that it does not.
func (w *Walk) reaches(client *netlab.Node, protocol string, remote netip.AddrPort, e Endpoint, port uint16, want bool) error {
	at := netip.AddrPortFrom(e.IP, port)
	stop, err := w.serve(protocol, w.node(e.Space), at, e.Name)
	if err != nil {
		return err
	}
	defer stop()
	limit := reachable
	if !want {
		limit = unreachable
	}
	name, err := ask(client, protocol, remote, limit)
	switch {
	case want && err != nil:
		return fmt.Errorf("from %s, %s %v does not reach endpoint %s: %w", client.Name, protocol, remote, e.Name, err)
	case want && name != e.Name:
		return fmt.Errorf("from %s, %s %v is answered by %q, want endpoint %s", client.Name, protocol, remote, name, e.Name)
	case !want && err == nil:
		return fmt.Errorf("from %s, %s %v is answered by %q, though it is closed", client.Name, protocol, remote, name)
	}
	return nil
}

// serve answers with the name.
func (w *Walk) serve(protocol string, n *netlab.Node, at netip.AddrPort, name string) (stop func(), err error) {
	if protocol == "udp" {
		pc, err := n.ListenUDP(at)
		if err != nil {
			return nil, err
		}
		go func() {
			for b := make([]byte, 64); ; {
				_, peer, err := pc.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				_, _ = pc.WriteToUDPAddrPort([]byte(name), peer)
			}
		}()
		return func() { pc.Close() }, nil
	}
	ln, err := n.ListenTCP(at)
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, name)
			c.Close()
		}
	}()
	return func() { ln.Close() }, nil
}

// ask returns the name that is answered, sending datagrams again until the limit.
func ask(n *netlab.Node, protocol string, remote netip.AddrPort, limit time.Duration) (string, error) {
	c, err := n.Dial(protocol, netip.AddrPort{}, remote, limit)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if protocol == "tcp" {
		_ = c.SetDeadline(time.Now().Add(limit))
		name, err := io.ReadAll(c)
		return string(name), err
	}
	b := make([]byte, 64)
	for end := time.Now().Add(limit); time.Now().Before(end); {
		_, _ = c.Write([]byte("who"))
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		var size int
		if size, err = c.Read(b); err == nil {
			return string(b[:size]), nil
		}
	}
	return "", fmt.Errorf("no answer: %w", err)
}
