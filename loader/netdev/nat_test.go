package netdev

import (
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPrivilegedDNATs(t *testing.T) {
	newHost(t)
	for _, tool := range []string{"nft", "iptables"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIP: no %s here", tool)
		}
	}
	if all, err := DNATs(); err != nil || len(all) != 0 {
		t.Fatalf("without rules: %v, %v", all, err)
	}
	run := func(stdin string, words ...string) {
		cmd := exec.Command(words[0], words[1:]...)
		cmd.Stdin = strings.NewReader(stdin)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", words, err, out)
		}
	}
	run(`table inet a {
		set ports { type inet_service; flags interval; elements = { 100-102, 200 } }
		chain pre {
			type nat hook prerouting priority dstnat
			tcp dport 8080 dnat ip to 10.0.0.2:80
			udp dport 5000-5009 redirect to :53
			ip daddr 192.0.2.1 tcp dport @ports dnat ip to 10.0.0.3
			tcp dport { 443, 8443 } dnat ip to 10.0.0.4
			dnat ip to tcp dport map { 70 : 10.0.0.6 }
			tcp dport != 9 dnat ip to 10.0.0.5
			tcp dport 22 accept
		}
	}`, "nft", "-f", "-")
	run("", "iptables", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "90:91", "-j", "DNAT", "--to-destination", "10.0.0.2:90")
	run("", "iptables", "-t", "nat", "-A", "PREROUTING", "-p", "udp", "--dport", "53", "-j", "REDIRECT", "--to-ports", "5353")
	run("", "iptables", "-t", "nat", "-A", "POSTROUTING", "-p", "tcp", "--dport", "1", "-j", "MASQUERADE")
	got, err := DNATs()
	if err != nil {
		t.Fatal(err)
	}
	nft := func(proto uint8, addr string, first, last uint16) DNAT {
		d := DNAT{Table: "a", Chain: "pre", Protocol: proto, Ports: PortRange{First: first, Last: last}}
		if addr != "" {
			d.Addr = netip.MustParseAddr(addr)
		}
		return d
	}
	want := []DNAT{
		nft(unix.IPPROTO_TCP, "", 8080, 8080), nft(unix.IPPROTO_UDP, "", 5000, 5009),
		nft(unix.IPPROTO_TCP, "192.0.2.1", 100, 102), nft(unix.IPPROTO_TCP, "192.0.2.1", 200, 200),
		nft(unix.IPPROTO_TCP, "", 443, 443), nft(unix.IPPROTO_TCP, "", 8443, 8443), nft(unix.IPPROTO_TCP, "", 70, 70),
		{Table: "nat", Chain: "PREROUTING", Protocol: unix.IPPROTO_TCP, Ports: PortRange{First: 90, Last: 91}},
		{Table: "nat", Chain: "PREROUTING", Protocol: unix.IPPROTO_UDP, Ports: PortRange{First: 53, Last: 53}},
	}
	for _, d := range want {
		if !slices.Contains(got, d) {
			t.Errorf("no %+v", d)
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %+v", got)
	}
}
