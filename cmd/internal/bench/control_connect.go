package bench

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"
)

const connectNote = "Wall time of one command. cni: the bridge plugin with host-local, masquerading as ebnet does; " +
	"cni-no-masquerade: the same without. docker: docker network connect, a further network of a running container."

// connecting is the errand of connecting a container that is there, and of disconnecting it.
func connecting(l *controlLab) errand {
	cni := func(masquerade bool) func(context.Context, *site) error {
		return func(ctx context.Context, s *site) error { return l.cniConnects(ctx, s, masquerade) }
	}
	bridge, hostLocal := cniPlugin("bridge"), cniPlugin("host-local")
	return errand{
		do: controlCases[2], undo: controlCases[3],
		contenders: []*contender{
			connector("ebnet", "", 50*time.Millisecond, l.ebnetConnects),
			connector("cni", "", 90*time.Millisecond, cni(true), "iptables", bridge, hostLocal),
			connector("cni-no-masquerade", "cni", 30*time.Millisecond, cni(false), bridge, hostLocal),
			connector("docker", "", 150*time.Millisecond, l.dockerConnects, engineTools...),
		},
	}
}

// connector is a contender that connects one container.
func connector(peer, family string, estimate time.Duration,
	build func(context.Context, *site) error, tools ...string) *contender {
	return &contender{
		peer: peer, family: family, tools: tools, build: build,
		sizes: []int{1}, estimate: func(int) time.Duration { return estimate },
	}
}

// ebnetCommand is an ebnet with a host, an intent and a container of its own.
type ebnetCommand struct {
	lab                      *lab
	name                     string // of its state and its pins
	outside, host, container *node
}

// newEbnet makes a host with an uplink, brings ebnet up there, and makes a container that is
// not connected.
func (l *controlLab) newEbnet(ctx context.Context, s *site) (*ebnetCommand, error) {
	e := &ebnetCommand{lab: l.lab, name: l.siteName()}
	var err error
	if e.outside, err = s.node(ctx, e.name+"-out"); err != nil {
		return nil, err
	}
	if e.container, err = s.node(ctx, e.name+"-"+containerName); err != nil {
		return nil, err
	}
	if e.host, err = s.node(ctx, e.name); err != nil {
		return nil, err
	}
	s.host = e.host
	if err := e.outside.ip(ctx, "link add srv0 type veth peer name up0 netns "+e.name,
		"address add "+outsideAddr.String()+"/24 dev srv0", "link set srv0 up"); err != nil {
		return nil, err
	}
	if err := e.host.ip(ctx, "address add "+hostAddr.String()+"/24 dev up0", "link set up0 up",
		"route add default via "+outsideAddr.String()); err != nil {
		return nil, err
	}
	s.later(e.down)
	return e, e.run(ctx, "up")
}

func (e *ebnetCommand) run(ctx context.Context, args ...string) error {
	return e.host.run(ctx, e.lab.command(e.name, args...)...)
}

// down takes everything away, after an interruption as well.
func (e *ebnetCommand) down() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	return errors.Join(e.run(ctx, "down", "--purge"), os.RemoveAll(filepath.Join(e.lab.dir, e.name)))
}

// closeLimit is how long what cleans up may take.
const closeLimit = time.Minute

func (l *controlLab) ebnetConnects(ctx context.Context, s *site) error {
	e, err := l.newEbnet(ctx, s)
	if err != nil {
		return err
	}
	s.do = func(ctx context.Context, _ int) error {
		return e.run(ctx, "connect", "default", e.container.name, "--name", containerName)
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
