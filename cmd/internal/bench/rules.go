package bench

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// published is a port of the host that leads to one of a container.
type published struct {
	proto    string
	hostPort int
	addr     string
	port     int
}

// theService is the port that is published on every stage.
var theService = []published{
	{proto: "udp", hostPort: publishedPort, addr: c1Addr.String(), port: servicePort},
	{proto: "tcp", hostPort: publishedPort, addr: c1Addr.String(), port: servicePort},
}

// dockerRules are the rules that Docker (20.10 to 28) writes for one bridge network with
// published ports, for iptables-restore.
func dockerRules(ports []published) string {
	var nat, filter strings.Builder
	var hairpin strings.Builder
	for _, p := range ports {
		fmt.Fprintf(&hairpin, "-A POSTROUTING -s %s/32 -d %s/32 -p %s -m %s --dport %d -j MASQUERADE\n", p.addr, p.addr, p.proto, p.proto, p.port)
		fmt.Fprintf(&nat, "-A DOCKER ! -i br0 -p %s -m %s --dport %d -j DNAT --to-destination %s:%d\n", p.proto, p.proto, p.hostPort, p.addr, p.port)
		fmt.Fprintf(&filter, "-A DOCKER -d %s/32 ! -i br0 -o br0 -p %s -m %s --dport %d -j ACCEPT\n", p.addr, p.proto, p.proto, p.port)
	}
	return `*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s ` + subnet.String() + ` ! -o br0 -j MASQUERADE
` + hairpin.String() + `-A DOCKER -i br0 -j RETURN
` + nat.String() + `COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o br0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o br0 -j DOCKER
-A FORWARD -i br0 ! -o br0 -j ACCEPT
-A FORWARD -i br0 -o br0 -j ACCEPT
` + filter.String() + `-A DOCKER-ISOLATION-STAGE-1 -i br0 ! -o br0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o br0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
`
}

// nftRules are what people write for nftables who want the same: one map for all published
// ports, and most packets accepted by the first rule.
func nftRules(ports []published) string {
	var elements []string
	for _, p := range ports {
		elements = append(elements, fmt.Sprintf("%s . %d : %s . %d", p.proto, p.hostPort, p.addr, p.port))
	}
	return `table ip bench {
	map published {
		type inet_proto . inet_service : ipv4_addr . inet_service
		elements = { ` + strings.Join(elements, ", ") + ` }
	}
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		iifname != "br0" fib daddr type local dnat ip to meta l4proto . th dport map @published
	}
	chain output {
		type nat hook output priority -100; policy accept;
		ip daddr != 127.0.0.0/8 fib daddr type local dnat ip to meta l4proto . th dport map @published
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr ` + subnet.String() + ` oifname != "br0" masquerade
		iifname "br0" oifname "br0" ct status dnat masquerade
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		iifname "br0" accept
		oifname "br0" ct status dnat accept
	}
}
`
}

// buildIptables makes a host as the Docker Engine makes it.
func buildIptables(ctx context.Context, l *lab, peer string) (*stage, error) {
	s, err := l.bridged(ctx, peer, true)
	if err != nil {
		return nil, err
	}
	version, err := exec.CommandContext(ctx, "iptables", "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("iptables --version: %w", err)
	}
	s.note = "Rules by " + strings.TrimSpace(string(version)) + "."
	return s, firstError(
		func() error { return s.host.setSysctl(bridgeCallsRules, "1") },
		func() error { return s.host.restoreRules(ctx, l, dockerRules(theService)) },
	)
}

// restoreRules loads rules of iptables, under a lock of the lab's own.
func (n *node) restoreRules(ctx context.Context, l *lab, rules string) error {
	_, err := n.feed(ctx, rules, "env", "XTABLES_LOCKFILE="+l.dir+"/xtables.lock", "iptables-restore")
	return err
}

// buildNftables makes a host that does with nftables what the one of Docker does. Bridged
// packets pass the rules there too, or containers of a bridge could not be told apart.
func buildNftables(ctx context.Context, l *lab, peer string) (*stage, error) {
	s, err := l.bridged(ctx, peer, true)
	if err != nil {
		return nil, err
	}
	return s, firstError(
		func() error { return s.host.setSysctl(bridgeCallsRules, "1") },
		func() error {
			_, err := s.host.feed(ctx, nftRules(theService), "nft", "-f", "-")
			return err
		},
	)
}
