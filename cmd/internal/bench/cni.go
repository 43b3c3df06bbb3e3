package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// cniDirs are where packages put CNI plugins.
var cniDirs = []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"}

// cniPlugin is the path of a plugin: where it is, or else where it is to be first.
func cniPlugin(name string) string {
	for _, dir := range cniDirs {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return filepath.Join(cniDirs[0], name)
}

// cni is a container and a network, as the plugins are told of them.
type cni struct {
	host, container *node
	network         map[string]any // the bridge plugin's configuration
	lock            string         // of iptables, as a variable
}

// newCNI makes a host and a container for plugins.
func (l *controlLab) newCNI(ctx context.Context, s *site, masquerade bool) (_ *cni, err error) {
	name := l.siteName()
	if s.host, err = s.node(ctx, name); err != nil {
		return nil, err
	}
	container, err := s.node(ctx, name+"-"+containerName)
	if err != nil {
		return nil, err
	}
	leases := filepath.Join(l.dir, name)
	s.later(func() error { return os.RemoveAll(leases) })
	return &cni{host: s.host, container: container, lock: l.xtablesLock(), network: map[string]any{
		"cniVersion": "0.4.0", "name": "bench", "type": "bridge",
		"bridge": "cni0", "isGateway": true, "ipMasq": masquerade,
		"ipam": map[string]any{
			"type": "host-local", "dataDir": leases,
			"ranges": [][]any{{map[string]any{"subnet": subnet.String()}}},
			"routes": []any{map[string]any{"dst": "0.0.0.0/0"}},
		},
	}}, nil
}

// call runs a plugin and returns its result.
func (c *cni) call(ctx context.Context, plugin, verb string, config map[string]any) (string, error) {
	input, err := json.Marshal(config)
	if err != nil {
		return "", err
	}
	path := cniPlugin(plugin)
	cmd := exec.CommandContext(ctx, path)
	cmd.Stdin = strings.NewReader(string(input))
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID=bench", "CNI_IFNAME=eth0",
		c.lock,
		"CNI_NETNS="+c.container.ns.Path, "CNI_PATH="+filepath.Dir(path))
	out, err := finish(c.host, cmd)
	if err != nil {
		return "", fmt.Errorf("%s: %w", verb, err)
	}
	return out, nil
}

func (l *controlLab) cniPublishes(ctx context.Context, s *site) error {
	c, err := l.newCNI(ctx, s, true)
	if err != nil {
		return err
	}
	connected, err := c.call(ctx, "bridge", "ADD", c.network)
	if err != nil {
		return err
	}
	config := map[string]any{
		"cniVersion": "0.4.0", "name": "bench", "type": "portmap", "snat": true,
		"capabilities": map[string]any{"portMappings": true}, "prevResult": json.RawMessage(connected),
	}
	s.ready = func(_ context.Context, size int) error {
		var ports []any
		for port := firstPort; port < firstPort+size; port++ {
			ports = append(ports, map[string]any{"hostPort": port, "containerPort": port, "protocol": "tcp"})
		}
		config["runtimeConfig"] = map[string]any{"portMappings": ports}
		return nil
	}
	s.do = func(ctx context.Context, _ int) error {
		_, err := c.call(ctx, "portmap", "ADD", config)
		return err
	}
	s.undo = func(ctx context.Context, _ int) error {
		_, err := c.call(ctx, "portmap", "DEL", config)
		return err
	}
	return nil
}
