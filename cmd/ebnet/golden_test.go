package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares got with testdata/NAME.golden.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; go test -update writes it", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got); go test -update accepts it\n%s", path, diff)
	}
}

// The names of commands and flags are a contract: a change shows up here.
func TestGoldenHelp(t *testing.T) {
	var out strings.Builder
	show := func(args ...string) {
		status, stdout, stderr := call(nil, append(args, "--help")...)
		fmt.Fprintf(&out, "$ %s\n%s%s", strings.Join(append([]string{"ebnet"}, append(args, "--help")...), " "), stdout, stderr)
		if status != 0 {
			t.Errorf("%v: status %d", args, status)
		}
		fmt.Fprintln(&out)
	}
	show()
	for _, c := range testProgram().app().Commands {
		show(c.Name)
		for _, s := range c.Subcommands {
			show(c.Name, s.Name)
		}
	}
	golden(t, "help", out.String())
}

func TestGoldenUsageErrors(t *testing.T) {
	var out strings.Builder
	for _, line := range []string{
		"conect", "network lst", "network create", "connect default", "connect a b c", "ports a b", "stats a b", "stats ../x", "doctor web", "graph web", "graph --format png", "graph --format svg -o json", "metrics web", "metrics --listen :0 --output-file x", "metrics --output-file=", "up now", "expose web",
		"unexpose", "disconnect", "network rm", "network inspect", "endpoint inspect", "endpoint ls web", "flows web", "version 2",
		"completion", "completion tcsh", "run", "status now", "down now", "network ls x", "network prune x",
		"up --fast-path maybe", "up --max-flows 0", "up --max-flows -1", "up --timeout icmp=0", "up --timeout dns=5s", "up --timeout icmp=soon", "up --timeout 5s",
		"expose web 80 --from 10.0.0.1/8", "expose web 80 --from here", "up --prune", "up -f /no/such/file.yaml",
		"flows --limit 0", "flows --flush --watch", "flows --port 0", "flows --port 65536", "flows --src here", "flows --dst 10.0.0.0/33",
		"flows --interval 2s", "flows --watch --interval 0s", "flows --watch --interval soon", "flows --protocol sctp", "flows --kind nat", "flows --in-state open",
		"monitor web", "monitor --rate 0", "monitor --rate 1000001", "monitor --count 0", "monitor --duration -1s", "monitor --duration 5", "monitor --reason icc --reason rain", "network create web --mtu 0", "connect default web --from 10.0.0.0/8",
		"connect default web -p", "--output xml ports", "-o json conect", "-o json up --fast-path maybe", "ports --purge", "ports -output json",
	} {
		status, stdout, stderr := call(nil, strings.Fields(line)...)
		if stdout != "" {
			t.Errorf("%s: stdout %q", line, stdout)
		}
		fmt.Fprintf(&out, "$ ebnet %s\n%s[%d]\n\n", line, stderr, status)
	}
	golden(t, "usage", out.String())
}

func testPorts() []network.PortInfo {
	return []network.PortInfo{
		{Endpoint: "web", Protocol: "tcp", HostIP: "0.0.0.0", HostPort: 8080, HostPortEnd: 8080, IP: "172.18.0.2", Port: 80, PortEnd: 80,
			From: []netip.Prefix{}},
		{Endpoint: "web", Protocol: "udp", HostIP: "192.0.2.1", HostPort: 5000, HostPortEnd: 5009, IP: "172.18.0.2", Port: 6000, PortEnd: 6009,
			From: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.0/24")}},
		{Endpoint: "lab1", Protocol: "tcp", HostIP: "10.6.0.2", HostPort: 80, HostPortEnd: 80, IP: "10.6.0.2", Port: 80, PortEnd: 80,
			From: slices.Repeat([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, 7)},
		{Endpoint: "db", Protocol: "tcp", HostIP: "::", HostPort: 1, HostPortEnd: 1, IP: "fd00::2", Port: 1, PortEnd: 1, From: []netip.Prefix{}},
	}
}

func TestGoldenViews(t *testing.T) {
	prefix, gateway := netip.MustParsePrefix("172.18.0.0/16"), netip.MustParseAddr("172.18.0.1")
	net1 := network.NetworkInfo{Name: "default", Subnets: []netip.Prefix{prefix}, Gateways: []netip.Addr{gateway}, IPRanges: []netip.Prefix{},
		Bridge: "ebnet0", MTU: 1500, ICC: true, Masquerade: true, Mode: "nat", Labels: map[string]string{}, Endpoints: 2,
		Addresses: network.AddressUse{Used: 2, Available: 65531}}
	net2 := net1
	net2.Name, net2.Internal, net2.ICC, net2.Masquerade, net2.Endpoints = "shut", true, false, false, 0
	net2.Labels = map[string]string{"b": "<2>", "a": "1"}
	routed := net1
	routed.Name, routed.Mode, routed.Masquerade = "lab", "routed", false
	fixed := net1
	fixed.Name, fixed.SNAT = "fixed", "192.0.2.1"
	web := network.EndpointInfo{Name: "web", Network: "default", IPv4: "172.18.0.2", MAC: "02:eb:ac:12:00:02", IfName: "eth0",
		HostIfName: "veb0000001", Ifindex: 7, NetNS: "web", Ports: testPorts()[:2], Labels: map[string]string{}, State: network.StateUp}
	gone := network.EndpointInfo{Name: "gone", Network: "default", NetNS: "pid:7", Ports: []network.PortInfo{}, State: network.StateGone}
	flow := network.FlowInfo{Protocol: "tcp", State: "established", Src: "172.18.0.2:40000", Dst: "198.51.100.1:80",
		TranslatedSrc: "192.0.2.1:40000", TranslatedDst: "198.51.100.1:80", Endpoint: "web", Kind: "snat", Packets: 10, Bytes: 1000, Expires: 86400}
	status := network.StatusInfo{Up: true, Kernel: "6.18.0", Features: network.Features{Attach: "tcx", FastPath: true, MaxFlows: 262144, SocketHooks: true},
		Sides:    []network.UplinkInfo{{Name: "docker0", Ifindex: 3, Addrs: []netip.Addr{netip.MustParseAddr("172.17.0.1")}, MTU: 1500, Attached: true}},
		Timeouts: map[string]int{"tcp-syn": 60, "tcp-established": 7440, "tcp-half-closed": 120, "tcp-closed": 30, "udp-unreplied": 30, "udp-replied": 180, "icmp": 60},
		Shares:   []network.ShareInfo{{Endpoint: "db", Held: 3}, {Endpoint: "web", Port: "0.0.0.0:8080/tcp", Held: 131072, Refused: 4}},
		Uplinks:  []network.UplinkInfo{{Name: "up0", Ifindex: 2, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, MTU: 1500, Attached: true}},
		Networks: 2, Endpoints: 2, Ports: 12, Maps: []network.MapInfo{{Name: "flows", Used: 26214, Max: 262144, Pressure: 0.1}},
		Drops: []network.DropInfo{{Reason: "direct_access", Device: "up0", Packets: 3, Bytes: 180}}, Incomplete: []string{}}
	stats := []network.StatsInfo{
		{Endpoint: "gone", Network: "default", State: network.StateGone, Drops: []network.EndpointDropInfo{}},
		{Endpoint: "web", Network: "default", State: network.StateUp, Received: &network.TrafficInfo{Packets: 21, Bytes: 982},
			Sent: &network.TrafficInfo{Packets: 22, Bytes: 1362, Dropped: 1}, Conversations: 3,
			Drops: []network.EndpointDropInfo{{Direction: network.Received, Reason: "icc", Packets: 1, Bytes: 60},
				{Direction: network.Sent, Reason: "spoofed-mac", Packets: 2, Bytes: 84}}},
	}
	ill := network.Diagnosis{Checks: 15, Items: []network.Finding{{Check: "datapath", What: "datapath", Why: "nothing is loaded", Mend: "ebnet up"},
		{Check: "endpoints", What: `endpoint "web"`, Why: "its network namespace /run/netns/web is gone", Mend: "ebnet disconnect web"}}}
	well := network.Diagnosis{Healthy: true, Checks: 15, Items: []network.Finding{}}
	nets, endpoints := []network.NetworkInfo{net1, net2, routed, fixed}, []network.EndpointInfo{web, gone}
	var out strings.Builder
	for _, v := range []struct {
		name string
		view view
	}{
		{"network ls", view{listOf(nets), func(w io.Writer) { networkTable(w, nets) }}},
		{"network ls, none", view{listOf[network.NetworkInfo](nil), func(w io.Writer) { networkTable(w, nil) }}},
		{"network inspect", view{listOf(nets[1:2]), func(w io.Writer) { networkFields(w, net2) }}},
		{"network inspect, snat address", view{listOf(nets[3:]), func(w io.Writer) { networkFields(w, fixed) }}},
		{"network create", view{net1, lines(net1.Name)}},
		{"network rm", namesView([]string{"a", "b"})},
		{"network prune, none", namesView(nil)},
		{"endpoint ls", view{listOf(endpoints), func(w io.Writer) { endpointTable(w, endpoints) }}},
		{"endpoint inspect", view{listOf(endpoints[:1]), func(w io.Writer) { endpointFields(w, web) }}},
		{"expose", portsView(testPorts())},
		{"ports", view{listOf(testPorts()), func(w io.Writer) { portTable(w, testPorts()) }}},
		{"flows", view{listOf([]network.FlowInfo{flow}), func(w io.Writer) { flowTable(w, []network.FlowInfo{flow}) }}},
		{"doctor", view{ill, func(w io.Writer) { diagnosisText(w, ill) }}},
		{"doctor, nothing wrong", view{well, func(w io.Writer) { diagnosisText(w, well) }}},
		{"metrics", view{listOf(testMetrics()), func(w io.Writer) { _, _ = w.Write(exposition(testMetrics())) }}},
		{"stats", view{listOf(stats), func(w io.Writer) { statsText(w, stats) }}},
		{"stats, none", view{listOf[network.StatsInfo](nil), func(w io.Writer) { statsText(w, nil) }}},
		{"status", view{status, func(w io.Writer) { statusText(w, status) }}},
		{"status, not up", view{network.StatusInfo{}, func(w io.Writer) { statusText(w, network.StatusInfo{Kernel: "6.18.0"}) }}},
		{"up", view{network.UpReport{Changed: true}, lines(upLine(network.UpReport{Changed: true, Uplinks: []string{"up0"}, Networks: 1}))}},
		{"up again", view{network.UpReport{}, lines(upLine(network.UpReport{}))}},
		{"dry run", stepsView([]string{"one", "two"})},
		{"dry run, nothing to do", stepsView(nil)},
		{"empty object", view{struct{}{}, nil}},
	} {
		fmt.Fprintf(&out, "== %s\n%s%s\n", v.name, printed(t, v.view, false), printed(t, v.view, true))
	}
	golden(t, "views", out.String())
}

func printed(t *testing.T, v view, asJSON bool) string {
	t.Helper()
	var out bytes.Buffer
	p := &program{stdout: &out, json: asJSON}
	if err := p.print(v); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestCompletionScripts(t *testing.T) {
	for _, shell := range shells {
		_, script, _ := call(nil, "completion", shell)
		golden(t, "completion."+shell, script)
		t.Run(shell, func(t *testing.T) { checkSyntax(t, shell, script) })
	}
}

// checkSyntax lets the shell read the script without running it.
func checkSyntax(t *testing.T, shell, script string) {
	t.Helper()
	path, err := exec.LookPath(shell)
	if err != nil {
		t.Skipf("SKIP: there is no %s here to check the script's syntax", shell)
	}
	file := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(path, "-n", file).CombinedOutput(); err != nil {
		t.Errorf("%s -n: %v\n%s", shell, err, out)
	}
}

// bashComplete asks the bash script, with an ebnet that knows the names foo and
// bar, what may follow the words; the last one is at the cursor.
func bashComplete(t *testing.T, words ...string) string {
	t.Helper()
	_, script, _ := call(nil, "completion", "bash")
	var quoted []string
	for _, w := range words {
		quoted = append(quoted, "'"+w+"'")
	}
	script += "\nebnet() { printf 'NAME  X\\nfoo   1\\nbar   2\\n'; }\n" +
		fmt.Sprintf("COMP_WORDS=(%s); COMP_CWORD=%d; _ebnet; echo \"${COMPREPLY[*]}\"\n", strings.Join(quoted, " "), len(words)-1)
	out, err := exec.Command("bash", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestBashCompletion(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("SKIP: no bash here")
	}
	tests := []struct{ line, want string }{
		{"ebnet|net", "network"},
		{"ebnet|network|", "create ls inspect rm prune"},
		{"ebnet|network|create|--su", "--subnet"},
		{"ebnet|network|rm|f", "foo"},
		{"ebnet|network|rm|foo|", "foo bar"},
		{"ebnet|connect|", "foo bar"},
		{"ebnet|-o|j", "json"},
		{"ebnet|ports|--output|=|j", "json"},
		{"ebnet|--state|/x|expose|", "foo bar"},
		{"ebnet|expose|foo|", ""},
		{"ebnet|ports|foo|", ""},
		{"ebnet|endpoint|ls|--network|b", "bar"},
		{"ebnet|up|--fast-path|", "on off"},
		{"ebnet|up|--verb", "--verbose"},
		{"ebnet|completion|", "bash zsh fish"},
		{"ebnet|run|sh|--verb", ""},
	}
	for _, tt := range tests {
		if got := bashComplete(t, strings.Split(tt.line, "|")...); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.line, got, tt.want)
		}
	}
}

// A flag that the scripts know no value for would complete file names.
func TestEveryFlagHasAKind(t *testing.T) {
	for _, pl := range completionTable(testProgram().app()) {
		for _, f := range pl.flags {
			if len(f.names) == 0 || f.usage == "" {
				t.Errorf("%q: flag %v has no usage", pl.path, f.names)
			}
		}
	}
	if got := valueKind(&cli.BoolFlag{Name: "x"}); got != "" {
		t.Errorf("a boolean has the kind %q", got)
	}
}
