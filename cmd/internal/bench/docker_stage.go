package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
)

// buildDocker lets a Docker Engine make the network and two containers, as its users do. Who
// reaches the published port from outside passes its rules, not its proxy.
func buildDocker(ctx context.Context, l *lab, peer string) (_ *stage, err error) {
	s := &stage{seenAs: hostAddr, published: netip.AddrPortFrom(hostAddr, publishedPort)}
	if s.outside, s.host, err = l.uplinked(ctx, peer); err != nil {
		return nil, err
	}
	e, err := startEngine(ctx, s.host, filepath.Join(l.dir, peer), s.host.name, true)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		} else {
			l.closers = append(l.closers, e)
		}
	}()
	version, err := e.docker(ctx, "version", "-f", "{{.Server.Version}}")
	if err != nil {
		return nil, err
	}
	s.note = "Docker Engine " + strings.TrimSpace(version) + "."
	if _, err := e.docker(ctx, "network", "create", "--subnet", subnet.String(), "--gateway", gatewayAddr.String(),
		"-o", "com.docker.network.bridge.name="+bridgeLink, "bench"); err != nil {
		return nil, err
	}
	for _, c := range []struct {
		name string
		addr netip.Addr
		at   *end
		args []string
	}{
		{"c1", c1Addr, &s.c1, []string{
			"-p", fmt.Sprintf("%d:%d/udp", publishedPort, servicePort), "-p", fmt.Sprintf("%d:%d/tcp", publishedPort, servicePort),
		}},
		{"c2", c2Addr, &s.c2, nil},
	} {
		n, err := e.container(ctx, c.name, slices.Concat([]string{"--network", "bench", "--ip", c.addr.String()}, c.args)...)
		if err != nil {
			return nil, err
		}
		l.nodes = append(l.nodes, n)
		*c.at = end{n, containerLink, c.addr}
	}
	return s, nil
}
