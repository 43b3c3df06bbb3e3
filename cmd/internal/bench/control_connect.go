package bench

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/ebnet/ebnet/cmd/internal/bench/report"
)

// connecting is the errand of connecting a container that is there, and of disconnecting it.
func connecting(l *controlLab) errand {
	about := "Wall time of one command. cni: the bridge plugin with host-local, masquerading as ebnet does; " +
		"cni-no-masquerade: the same without. docker: docker network connect, a further network of a running container."
	connector := func(peer, family string, estimate time.Duration, build func(context.Context, *site) error, tools ...string) *contender {
		c := &contender{peer: peer, family: family, tools: tools, build: build,
			estimate: func(int) time.Duration { return estimate }}
		if l.quick && estimate > quickLimit/2 {
			c.tooLong = map[int]string{1: "takes too long for a quick run"}
		} else {
			c.sizes = []int{1}
		}
		return c
	}
	return errand{
		do: report.Case{Name: "connect/endpoint", Title: "Connect a container", Group: "connect",
			Unit: "s", Better: "lower", Note: about},
		undo: report.Case{Name: "disconnect/endpoint", Title: "Disconnect a container", Group: "disconnect",
			Unit: "s", Better: "lower", Note: about},
		contenders: []*contender{
			connector("ebnet", "", 60*time.Millisecond, func(ctx context.Context, s *site) error { return l.ebnetConnects(ctx, s) }),
			connector("cni", "", 100*time.Millisecond, func(ctx context.Context, s *site) error { return l.cniConnects(ctx, s, true) },
				"iptables", cniPlugin("bridge"), cniPlugin("host-local")),
			connector("cni-no-masquerade", "cni", 40*time.Millisecond, func(ctx context.Context, s *site) error { return l.cniConnects(ctx, s, false) },
				cniPlugin("bridge"), cniPlugin("host-local")),
			connector("docker", "", time.Second, func(ctx context.Context, s *site) error { return l.dockerConnects(ctx, s) }, engineTools...),
		},
	}
}

// ebnetCommand is an ebnet with a host and an intent of its own.
type ebnetCommand struct {
	host  *node
	path  string
	flags []string
}

// newEbnet makes a host with an uplink, and brings ebnet up there.
func (l *controlLab) newEbnet(ctx context.Context, s *site) (_ *ebnetCommand, err error) {
	name := l.siteName()
	outside, err := s.node(ctx, name+"-out")
	if err != nil {
		return nil, err
	}
	if s.host, err = s.node(ctx, name); err != nil {
		return nil, err
	}
	for _, step := range []struct {
		at   *node
		args []string
	}{
		{outside, []string{"link", "add", "srv0", "type", "veth", "peer", "name", "up0", "netns", s.host.name}},
		{outside, []string{"address", "add", "198.51.100.1/24", "dev", "srv0"}},
		{outside, []string{"link", "set", "srv0", "up"}},
		{s.host, []string{"address", "add", "198.51.100.2/24", "dev", "up0"}},
		{s.host, []string{"link", "set", "up0", "up"}},
		{s.host, []string{"route", "add", "default", "via", "198.51.100.1"}},
	} {
		if err := step.at.run(ctx, append([]string{"ip"}, step.args...)...); err != nil {
			return nil, err
		}
	}
	state := filepath.Join(l.dir, name)
	e := &ebnetCommand{host: s.host, path: l.ebnet,
		flags: []string{"--state", state, "--bpffs", filepath.Join(l.bpffs, name)}}
	if l.cgroup != "" {
		e.flags = append(e.flags, "--cgroup", l.cgroup)
	}
	s.later(func() error {
		// What was interrupted is to be cleaned up as well.
		ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
		defer cancel()
		if err := e.run(ctx, "down", "--purge"); err != nil {
			return err
		}
		return os.RemoveAll(state)
	})
	return e, e.run(ctx, "up")
}

// closeLimit is how long what cleans up may take.
const closeLimit = time.Minute

func (e *ebnetCommand) run(ctx context.Context, args ...string) error {
	_, err := finish(e.host, exec.CommandContext(ctx, e.path, append(e.flags[:len(e.flags):len(e.flags)], args...)...))
	return err
}

func (l *controlLab) ebnetConnects(ctx context.Context, s *site) error {
	e, err := l.newEbnet(ctx, s)
	if err != nil {
		return err
	}
	c, err := s.node(ctx, s.host.name+"-"+containerName)
	if err != nil {
		return err
	}
	s.do = func(ctx context.Context, _ int) error {
		return e.run(ctx, "connect", "default", c.name, "--name", containerName)
	}
	s.undo = func(ctx context.Context, _ int) error { return e.run(ctx, "disconnect", containerName) }
	return nil
}

func (l *controlLab) cniConnects(ctx context.Context, s *site, masquerade bool) error {
	b, err := l.newCNI(ctx, s, masquerade)
	if err != nil {
		return err
	}
	s.do = func(ctx context.Context, _ int) error {
		_, err := b.call(ctx, "bridge", "ADD", b.network)
		return err
	}
	s.undo = func(ctx context.Context, _ int) error {
		_, err := b.call(ctx, "bridge", "DEL", b.network)
		return err
	}
	return nil
}

func (l *controlLab) dockerConnects(ctx context.Context, s *site) error {
	e, err := l.newEngine(ctx, s, false)
	if err != nil {
		return err
	}
	if _, err := e.docker(ctx, "network", "create", "second"); err != nil {
		return err
	}
	c, err := e.container(ctx, containerName)
	if err != nil {
		return err
	}
	s.later(c.close)
	s.do = func(ctx context.Context, _ int) error {
		_, err := e.docker(ctx, "network", "connect", "second", containerName)
		return err
	}
	s.undo = func(ctx context.Context, _ int) error {
		_, err := e.docker(ctx, "network", "disconnect", "second", containerName)
		return err
	}
	return nil
}
