package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ebnet/ebnet/cmd/internal/bench/report"
)

// firstPort is the first of the published ports, on the host and inside: above those that
// services of the host use.
const firstPort = 1024

// The sizes at which publishing is measured.
var publishSizes = []int{1, 1000, 60000}

// Where containers of peers other than ebnet are, as Docker numbers its first network.
const (
	peerBridge    = "docker0"
	peerNetwork   = "172.17.0.0/16"
	peerGateway   = "172.17.0.1/16"
	peerContainer = "172.17.0.2"
)

// publishing is the errand of publishing TCP ports, all at once, each to the same port of a
// container that is there, and of closing them again.
func publishing(l *controlLab) errand {
	about := "Wall time of the command, or of all the commands that it takes. " +
		"iptables: three rules a port by a call each, as Docker's, but without Docker's look before each call. " +
		"iptables-restore: the same rules in one load of the whole table. nftables: elements of a map in one transaction. " +
		"cni: the portmap plugin. docker: docker start with -p, and docker rm -f, which start and end the container as well."
	return errand{
		do: report.Case{Name: "publish/ports", Title: "Publish TCP ports", Group: "publish",
			Unit: "s", Better: "lower", Axis: "published ports", Note: about},
		undo: report.Case{Name: "unpublish/ports", Title: "Close published TCP ports", Group: "unpublish",
			Unit: "s", Better: "lower", Axis: "published ports", Note: about},
		contenders: []*contender{
			publisher("ebnet", "", l, seconds(0.02, 0.03, 0.12), func(ctx context.Context, s *site) error { return l.ebnetPublishes(ctx, s) }),
			publisher("nftables", "", l, seconds(0.02, 0.05, 2), func(ctx context.Context, s *site) error { return l.nftablesPublishes(ctx, s) }, "nft"),
			publisher("iptables-restore", "iptables", l, seconds(0.03, 0.3, 8), func(ctx context.Context, s *site) error { return l.restorePublishes(ctx, s) }, "iptables-restore"),
			publisher("iptables", "", l, seconds(0.05, 60), func(ctx context.Context, s *site) error { return l.iptablesPublishes(ctx, s) }, "iptables", "iptables-restore"),
			publisher("cni", "", l, seconds(0.2, 60), func(ctx context.Context, s *site) error { return l.cniPublishes(ctx, s) }, "iptables", cniPlugin("bridge"), cniPlugin("portmap")),
			publisher("docker", "", l, seconds(2, 140), func(ctx context.Context, s *site) error { return l.dockerPublishes(ctx, s, true) }, engineTools...),
			publisher("docker-no-proxy", "docker", l, seconds(2, 120), func(ctx context.Context, s *site) error { return l.dockerPublishes(ctx, s, false) }, engineTools...),
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

// quickLimit is how long one round of a contender may take in a quick run.
const quickLimit = time.Second

// publisher is a contender that is run at the first of publishSizes, as many as there are
// estimates.
func publisher(peer, family string, l *controlLab, estimates []time.Duration,
	build func(context.Context, *site) error, tools ...string) *contender {
	c := &contender{peer: peer, family: family, tools: tools, build: build, count: true, tooLong: make(map[int]string)}
	for i, size := range publishSizes {
		switch {
		case i >= len(estimates):
			c.tooLong[size] = "takes hours, one port after another"
		case l.quick && (estimates[i] > quickLimit || size > 1000):
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

// bridgeSite gives a site its host: a namespace with a bridge, as Docker has it.
func (l *controlLab) bridgeSite(ctx context.Context, s *site) (err error) {
	if s.host, err = s.node(ctx, l.siteName()); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"link", "add", peerBridge, "type", "bridge"},
		{"address", "add", peerGateway, "dev", peerBridge},
		{"link", "set", peerBridge, "up"},
	} {
		if err := s.host.run(ctx, append([]string{"ip"}, args...)...); err != nil {
			return err
		}
	}
	return nil
}

// siteName is a new name for a namespace.
func (l *controlLab) siteName() string {
	l.sites++
	return fmt.Sprintf("%scontrol%d", l.prefix, l.sites)
}

func (l *controlLab) ebnetPublishes(ctx context.Context, s *site) error {
	e, err := l.newEbnet(ctx, s)
	if err != nil {
		return err
	}
	c, err := s.node(ctx, s.host.name+"-"+containerName)
	if err != nil {
		return err
	}
	if err := e.run(ctx, "connect", "default", c.name, "--name", containerName); err != nil {
		return err
	}
	s.do = func(ctx context.Context, size int) error {
		ports := fmt.Sprintf("%d-%d", firstPort, firstPort+size-1)
		return e.run(ctx, "expose", containerName, ports+":"+ports)
	}
	s.undo = func(ctx context.Context, size int) error { return e.run(ctx, "unexpose", containerName) }
	return nil
}

// nftBase is what is there before any port: the equivalent of Docker's rules, with a map in
// place of a rule a port.
const nftBase = `table ip engine {
	map ports { type inet_proto . inet_service : ipv4_addr . inet_service; }
	chain prerouting {
		type nat hook prerouting priority dstnat;
		fib daddr type local dnat ip to meta l4proto . th dport map @ports
	}
	chain output {
		type nat hook output priority -100;
		ip daddr != 127.0.0.0/8 fib daddr type local dnat ip to meta l4proto . th dport map @ports
	}
	chain postrouting {
		type nat hook postrouting priority srcnat;
		ip saddr ` + peerNetwork + ` oifname != "` + peerBridge + `" masquerade
		ip saddr ` + peerNetwork + ` oifname "` + peerBridge + `" ct status dnat masquerade
	}
	chain forward {
		type filter hook forward priority filter;
		oifname "` + peerBridge + `" ct state established,related accept
		oifname "` + peerBridge + `" ct status dnat accept
		iifname "` + peerBridge + `" accept
		oifname "` + peerBridge + `" drop
	}
}
`

func (l *controlLab) nftablesPublishes(ctx context.Context, s *site) error {
	if err := l.bridgeSite(ctx, s); err != nil {
		return err
	}
	nft := func(ctx context.Context, input string) error {
		cmd := exec.CommandContext(ctx, "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(input)
		_, err := finish(s.host, cmd)
		return err
	}
	var add, remove string
	s.ready = func(_ context.Context, size int) error {
		var put, keys strings.Builder
		for port := firstPort; port < firstPort+size; port++ {
			fmt.Fprintf(&put, "tcp . %d : %s . %d,", port, peerContainer, port)
			fmt.Fprintf(&keys, "tcp . %d,", port)
		}
		add = "add element ip engine ports { " + put.String() + " }\n"
		remove = "delete element ip engine ports { " + keys.String() + " }\n"
		return nil
	}
	s.do = func(ctx context.Context, _ int) error { return nft(ctx, add) }
	s.undo = func(ctx context.Context, _ int) error { return nft(ctx, remove) }
	return nft(ctx, nftBase)
}

// engineRule is a rule that Docker writes.
type engineRule struct{ table, chain, text string }

// portRules are those of a published port.
func portRules(port int) []engineRule {
	p := strconv.Itoa(port)
	return []engineRule{
		{"nat", "DOCKER", "! -i " + peerBridge + " -p tcp -m tcp --dport " + p + " -j DNAT --to-destination " + peerContainer + ":" + p},
		{"filter", "DOCKER", "-d " + peerContainer + "/32 ! -i " + peerBridge + " -o " + peerBridge + " -p tcp -m tcp --dport " + p + " -j ACCEPT"},
		{"nat", "POSTROUTING", "-s " + peerContainer + "/32 -d " + peerContainer + "/32 -p tcp -m tcp --dport " + p + " -j MASQUERADE"},
	}
}

// dockerTables are Docker's rules with so many published ports, as iptables-restore reads
// them.
func dockerTables(ports int) string {
	var nat, filter strings.Builder
	nat.WriteString("*nat\n:DOCKER - [0:0]\n" +
		"-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n" +
		"-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER\n" +
		"-A POSTROUTING -s " + peerNetwork + " ! -o " + peerBridge + " -j MASQUERADE\n" +
		"-A DOCKER -i " + peerBridge + " -j RETURN\n")
	filter.WriteString("*filter\n:FORWARD DROP [0:0]\n:DOCKER - [0:0]\n:DOCKER-USER - [0:0]\n" +
		":DOCKER-ISOLATION-STAGE-1 - [0:0]\n:DOCKER-ISOLATION-STAGE-2 - [0:0]\n" +
		"-A FORWARD -j DOCKER-USER\n-A FORWARD -j DOCKER-ISOLATION-STAGE-1\n" +
		"-A FORWARD -o " + peerBridge + " -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n" +
		"-A FORWARD -o " + peerBridge + " -j DOCKER\n" +
		"-A FORWARD -i " + peerBridge + " ! -o " + peerBridge + " -j ACCEPT\n" +
		"-A FORWARD -i " + peerBridge + " -o " + peerBridge + " -j ACCEPT\n" +
		"-A DOCKER-ISOLATION-STAGE-1 -i " + peerBridge + " ! -o " + peerBridge + " -j DOCKER-ISOLATION-STAGE-2\n" +
		"-A DOCKER-ISOLATION-STAGE-1 -j RETURN\n" +
		"-A DOCKER-ISOLATION-STAGE-2 -o " + peerBridge + " -j DROP\n" +
		"-A DOCKER-ISOLATION-STAGE-2 -j RETURN\n-A DOCKER-USER -j RETURN\n")
	for port := firstPort; port < firstPort+ports; port++ {
		for _, r := range portRules(port) {
			text := &nat
			if r.table == "filter" {
				text = &filter
			}
			text.WriteString("-A " + r.chain + " " + r.text + "\n")
		}
	}
	return nat.String() + "COMMIT\n" + filter.String() + "COMMIT\n"
}

func (l *controlLab) restorePublishes(ctx context.Context, s *site) error {
	if err := l.bridgeSite(ctx, s); err != nil {
		return err
	}
	restore := func(ctx context.Context, tables string) error { return l.restoreTables(ctx, s.host, tables) }
	with, without := "", dockerTables(0)
	s.ready = func(_ context.Context, size int) error {
		with = dockerTables(size)
		return nil
	}
	s.do = func(ctx context.Context, _ int) error { return restore(ctx, with) }
	s.undo = func(ctx context.Context, _ int) error { return restore(ctx, without) }
	return restore(ctx, without)
}

// restoreTables replaces the rules of a namespace.
func (l *controlLab) restoreTables(ctx context.Context, n *node, tables string) error {
	cmd := l.xtables(ctx, "iptables-restore")
	cmd.Stdin = strings.NewReader(tables)
	_, err := finish(n, cmd)
	return err
}

// xtables is a command of iptables that waits for nobody else's, and lets nobody else wait.
func (l *controlLab) xtables(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE="+filepath.Join(l.dir, "xtables.lock"))
	return cmd
}

func (l *controlLab) iptablesPublishes(ctx context.Context, s *site) error {
	if err := l.bridgeSite(ctx, s); err != nil {
		return err
	}
	each := func(verb string) func(context.Context, int) error {
		return func(ctx context.Context, size int) error {
			for port := firstPort; port < firstPort+size; port++ {
				for _, r := range portRules(port) {
					args := append([]string{"iptables", "--wait", "-t", r.table, verb, r.chain}, strings.Fields(r.text)...)
					if _, err := finish(s.host, l.xtables(ctx, args...)); err != nil {
						return err
					}
				}
			}
			return nil
		}
	}
	s.do, s.undo = each("-A"), each("-D")
	return l.restoreTables(ctx, s.host, dockerTables(0))
}
