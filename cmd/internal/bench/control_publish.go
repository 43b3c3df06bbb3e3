package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// firstPort is the first of the published ports, on the host and inside: above those that
// services of the host use.
const firstPort = 1024

// The sizes at which publishing is measured.
var publishSizes = []int{1, 1000, 60000}

const publishNote = "Wall time of the command, or of all the commands that it takes. " +
	"iptables: three rules a port by a call each, as Docker's, but without Docker's look before each call. " +
	"iptables-restore: the same rules in one load of the whole table. nftables: elements of a map in one transaction. " +
	"cni: the portmap plugin. docker: docker start with -p, and docker rm -f, which start and end the container as well."

// publishing is the errand of publishing TCP ports, all at once, each to the same port of a
// container that is there, and of closing them again.
func publishing(l *controlLab) errand {
	docker := func(proxy bool) func(context.Context, *site) error {
		return func(ctx context.Context, s *site) error { return l.dockerPublishes(ctx, s, proxy) }
	}
	return errand{
		do: controlCases[0], undo: controlCases[1],
		contenders: []*contender{
			l.publisher("ebnet", "", seconds(0.02, 0.03, 0.12), l.ebnetPublishes),
			l.publisher("nftables", "", seconds(0.02, 0.03, 0.8), l.nftablesPublishes, "nft"),
			l.publisher("iptables-restore", "iptables", seconds(0.06, 0.13, 5), l.restorePublishes, "iptables-restore"),
			l.publisher("iptables", "", seconds(0.06, 70), l.iptablesPublishes, "iptables", "iptables-restore"),
			l.publisher("cni", "", seconds(0.15, 45), l.cniPublishes, "iptables", cniPlugin("bridge"), cniPlugin("portmap")),
			l.publisher("docker", "", seconds(2, 115), docker(true), engineTools...),
			l.publisher("docker-no-proxy", "docker", seconds(2, 105), docker(false), engineTools...),
		},
	}
}

// seconds is how long doing and undoing takes at each of publishSizes, as far as it is to be
// run at all.
func seconds(s ...float64) []time.Duration {
	var durations []time.Duration
	for _, s := range s {
		durations = append(durations, time.Duration(s*float64(time.Second)))
	}
	return durations
}

// quickRound is how long one round of a contender may take in a quick run.
const quickRound = time.Second

// publisher is a contender that is run at the first of publishSizes, as many as there are
// estimates.
func (l *controlLab) publisher(peer, family string, estimates []time.Duration,
	build func(context.Context, *site) error, tools ...string) *contender {
	c := &contender{peer: peer, family: family, tools: tools, build: build, count: true, tooLong: make(map[int]string)}
	for i, size := range publishSizes {
		switch {
		case i >= len(estimates):
			c.tooLong[size] = "takes hours, one after another"
		case l.quick && (estimates[i] > quickRound || size > 1000):
			c.tooLong[size] = "takes too long for a quick run"
		default:
			c.sizes = append(c.sizes, size)
		}
	}
	c.estimate = func(size int) time.Duration {
		for i := range estimates {
			if publishSizes[i] == size {
				return estimates[i]
			}
		}
		return 0
	}
	return c
}

// bridgeSite gives a site its host: a namespace with a bridge.
func (l *controlLab) bridgeSite(ctx context.Context, s *site) (err error) {
	if s.host, err = s.node(ctx, l.siteName()); err != nil {
		return err
	}
	return s.host.ip(ctx, "link add "+bridgeLink+" type bridge",
		"address add "+gatewayAddr.String()+"/16 dev "+bridgeLink, "link set "+bridgeLink+" up")
}

// siteName is a new name for a namespace.
func (l *controlLab) siteName() string {
	l.sites++
	return fmt.Sprintf("%s-control%d", l.name, l.sites)
}

func (l *controlLab) ebnetPublishes(ctx context.Context, s *site) error {
	e, err := l.newEbnet(ctx, s)
	if err != nil {
		return err
	}
	if err := e.run(ctx, "connect", "default", e.container.name, "--name", containerName); err != nil {
		return err
	}
	s.do = func(ctx context.Context, size int) error {
		ports := portRange(size)
		return e.run(ctx, "expose", containerName, ports+":"+ports)
	}
	s.undo = func(ctx context.Context, size int) error { return e.run(ctx, "unexpose", containerName) }
	return nil
}

// portRange is so many published ports, as commands take them.
func portRange(size int) string { return fmt.Sprintf("%d-%d", firstPort, firstPort+size-1) }

// ports are so many published ports.
func ports(size int) []published {
	ports := make([]published, size)
	for i := range ports {
		ports[i] = published{proto: "tcp", hostPort: firstPort + i, addr: c1Addr.String(), port: firstPort + i}
	}
	return ports
}

func (l *controlLab) nftablesPublishes(ctx context.Context, s *site) error {
	if err := l.bridgeSite(ctx, s); err != nil {
		return err
	}
	nft := func(ctx context.Context, input string) error {
		_, err := s.host.feed(ctx, input, "nft", "-f", "-")
		return err
	}
	var add, remove string
	s.ready = func(_ context.Context, size int) error {
		var elements, keys strings.Builder
		for _, p := range ports(size) {
			fmt.Fprintf(&elements, "%s . %d : %s . %d,", p.proto, p.hostPort, p.addr, p.port)
			fmt.Fprintf(&keys, "%s . %d,", p.proto, p.hostPort)
		}
		add = "add element ip bench published { " + elements.String() + " }\n"
		remove = "delete element ip bench published { " + keys.String() + " }\n"
		return nil
	}
	s.do = func(ctx context.Context, _ int) error { return nft(ctx, add) }
	s.undo = func(ctx context.Context, _ int) error { return nft(ctx, remove) }
	return nft(ctx, nftRules(theService[:1])) // of UDP; there must be one
}

func (l *controlLab) restorePublishes(ctx context.Context, s *site) error {
	if err := l.bridgeSite(ctx, s); err != nil {
		return err
	}
	restore := func(ctx context.Context, rules string) error {
		cmd := l.xtables(ctx, "iptables-restore")
		cmd.Stdin = strings.NewReader(rules)
		_, err := finish(s.host, cmd)
		return err
	}
	with, without := "", dockerRules(nil)
	s.ready = func(_ context.Context, size int) error {
		with = dockerRules(ports(size))
		return nil
	}
	s.do = func(ctx context.Context, _ int) error { return restore(ctx, with) }
	s.undo = func(ctx context.Context, _ int) error { return restore(ctx, without) }
	return restore(ctx, without)
}

// xtables is a command of iptables that waits for nobody else's, and lets nobody else wait.
func (l *controlLab) xtables(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), l.xtablesLock())
	return cmd
}

func (l *controlLab) xtablesLock() string { return "XTABLES_LOCKFILE=" + l.dir + "/xtables.lock" }

// portRules are those that Docker writes for a published port, as tables and arguments of
// iptables.
func (p published) portRules(verb string) []string {
	port, hostPort := strconv.Itoa(p.port), strconv.Itoa(p.hostPort)
	match := " -p " + p.proto + " -m " + p.proto + " --dport "
	return []string{
		"-t nat " + verb + " DOCKER ! -i " + bridgeLink + match + hostPort + " -j DNAT --to-destination " + p.addr + ":" + port,
		"-t filter " + verb + " DOCKER -d " + p.addr + " ! -i " + bridgeLink + " -o " + bridgeLink + match + port + " -j ACCEPT",
		"-t nat " + verb + " POSTROUTING -s " + p.addr + " -d " + p.addr + match + port + " -j MASQUERADE",
	}
}

func (l *controlLab) iptablesPublishes(ctx context.Context, s *site) error {
	if err := l.bridgeSite(ctx, s); err != nil {
		return err
	}
	each := func(verb string) func(context.Context, int) error {
		return func(ctx context.Context, size int) error {
			for _, p := range ports(size) {
				for _, rule := range p.portRules(verb) {
					if _, err := finish(s.host, l.xtables(ctx, append([]string{"iptables", "--wait"}, strings.Fields(rule)...)...)); err != nil {
						return err
					}
				}
			}
			return nil
		}
	}
	s.do, s.undo = each("-A"), each("-D")
	return s.host.restoreRules(ctx, l.lab, dockerRules(nil))
}
