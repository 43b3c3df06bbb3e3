package netlab

import (
	"encoding/json"
	"net/netip"
	"strings"
	"sync"
	"testing"
)

// Host is the namespace that ebnet runs in.
type Host struct {
	*Node

	State, BPFFS string   // directories, ebnet's --state and --bpffs
	Cgroup       string   // ebnet's --cgroup; empty: not given
	Env          []string // for each run of ebnet, as KEY=VALUE
	Bin          string   // of another build; empty: the one under test

	ran  bool
	seen map[object]bool // eBPF objects that were pinned at some time
}

// Flags are the global flags that bind ebnet to the lab.
func (h *Host) Flags() []string {
	flags := []string{"--state", h.State, "--bpffs", h.BPFFS}
	if h.Cgroup != "" {
		flags = append(flags, "--cgroup", h.Cgroup)
	}
	return flags
}

// Command is the whole command line of an ebnet command.
func (h *Host) Command(args ...string) []string {
	h.ran = true
	binary := Binary()
	if h.Bin != "" {
		binary = h.Bin
	}
	return append(append([]string{binary}, h.Flags()...), args...)
}

// TryEbnet runs ebnet and returns how it went.
func (h *Host) TryEbnet(tb testing.TB, args ...string) Result {
	tb.Helper()
	return h.Try(tb, h.Env, h.Command(args...)...)
}

// Ebnet runs ebnet, which must succeed, and returns its standard output.
func (h *Host) Ebnet(tb testing.TB, args ...string) string {
	tb.Helper()
	r := h.TryEbnet(tb, args...)
	if r.Code != 0 {
		tb.Fatal(r)
	}
	return r.Stdout
}

// Up runs ebnet up.
func (h *Host) Up(tb testing.TB, args ...string) {
	tb.Helper()
	h.Ebnet(tb, append([]string{"up"}, args...)...)
	h.Remember(tb)
}

// JSON runs ebnet with -o json and decodes its output into v.
func (h *Host) JSON(tb testing.TB, v any, args ...string) {
	tb.Helper()
	out := h.Ebnet(tb, append([]string{"-o", "json"}, args...)...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		tb.Fatalf("output of ebnet %v: %v\n%s", args, err, out)
	}
}

// List is the shape of ebnet's lists.
type List[T any] struct {
	V     int `json:"v"`
	Items []T `json:"items"`
}

// Status is what ebnet status tells, as far as tests read it.
type Status struct {
	Features struct {
		Attach   string `json:"attach"` // "tcx" or "clsact"
		FastPath bool   `json:"fast_path"`
	} `json:"features"`
	Maps []struct {
		Name string `json:"name"`
		Used int    `json:"used"`
		Max  int    `json:"max"`
	} `json:"maps"`
	Drops []struct {
		Endpoint string `json:"endpoint"`
		Reason   string `json:"reason"`
		Packets  uint64 `json:"packets"`
	} `json:"drops"`
	Listeners int `json:"listeners"`
}

// Status returns the state of the datapath.
func (h *Host) Status(tb testing.TB) Status {
	tb.Helper()
	var s Status
	h.JSON(tb, &s, "status")
	return s
}

// Endpoint is an item of ebnet endpoint ls, as far as tests read it.
type Endpoint struct {
	Name     string     `json:"name"`
	Network  string     `json:"network"`
	IPv4     netip.Addr `json:"ipv4"`
	MAC      string     `json:"mac"`
	Ifname   string     `json:"ifname"`
	HostLink string     `json:"host_ifname"`
	Ifindex  int        `json:"ifindex"`
	State    string     `json:"state"`
}

// Endpoints returns the endpoints by name.
func (h *Host) Endpoints(tb testing.TB) map[string]Endpoint {
	tb.Helper()
	var list List[Endpoint]
	h.JSON(tb, &list, "endpoint", "ls")
	endpoints := make(map[string]Endpoint)
	for _, e := range list.Items {
		endpoints[e.Name] = e
	}
	return endpoints
}

// Network is an item of ebnet network ls, as far as tests read it.
type Network struct {
	Name     string         `json:"name"`
	Subnets  []netip.Prefix `json:"subnets"`
	Gateways []netip.Addr   `json:"gateways"`
	Bridge   string         `json:"bridge"`
}

// Network returns one network; it must exist.
func (h *Host) Network(tb testing.TB, name string) Network {
	tb.Helper()
	var list List[Network]
	h.JSON(tb, &list, "network", "ls")
	for _, n := range list.Items {
		if n.Name == name && len(n.Subnets) > 0 && len(n.Gateways) > 0 {
			return n
		}
	}
	tb.Fatalf("no network %s with a subnet and a gateway in %+v", name, list.Items)
	return Network{}
}

// Rules are the host's packet filter rules of every kind, as a person lists
// them; empty where there are none.
func (h *Host) Rules(tb testing.TB) string {
	tb.Helper()
	var rules strings.Builder
	for _, list := range []string{"nft list ruleset", "iptables-save", "ip6tables-save"} {
		for line := range strings.Lines(h.Run(tb, strings.Fields(list)...)) {
			if !strings.HasPrefix(line, "#") { // a comment carries the date
				rules.WriteString(line)
			}
		}
	}
	return rules.String()
}

// CheckRules fails the test if the rules are not what they were at first.
func (l *Lab) CheckRules(tb testing.TB) {
	tb.Helper()
	if rules := l.Host.Rules(tb); rules != l.firstRules {
		tb.Errorf("packet filter rules of the host are\n%s\nwere\n%s", rules, l.firstRules)
	}
}

// DropForwarded sets the policy of the host's FORWARD chain to DROP, as a
// careful person or a Docker engine does.
func (l *Lab) DropForwarded(tb testing.TB) {
	tb.Helper()
	l.Host.Run(tb, "iptables", "-P", "FORWARD", "DROP")
	l.firstRules = l.Host.Rules(tb)
}

// Container is a namespace that ebnet connects to networks.
type Container struct {
	*Node

	Endpoint string     // its name in ebnet
	Addr     netip.Addr // once connected

	host *Host
}

// ConnectAll connects containers to a network, several ebnet at a time, and
// checks that no address was given twice.
func (l *Lab) ConnectAll(tb testing.TB, network string, parallel int, containers []*Container) {
	tb.Helper()
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for _, c := range containers {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if r := l.Host.TryEbnet(tb, "connect", network, c.Name, "--name", c.Endpoint); r.Code != 0 {
				tb.Error(r)
			}
		})
	}
	wg.Wait()
	if tb.Failed() {
		tb.FailNow()
	}
	endpoints := l.Host.Endpoints(tb)
	owners := make(map[netip.Addr]string)
	for _, c := range containers {
		c.Addr = endpoints[c.Endpoint].IPv4
		if other, taken := owners[c.Addr]; taken || !c.Addr.Is4() {
			tb.Fatalf("address %v of %s was given to %q too", c.Addr, c.Endpoint, other)
		}
		owners[c.Addr] = c.Endpoint
	}
}

// Connect connects the container; args are further flags of ebnet connect.
func (c *Container) Connect(tb testing.TB, network string, args ...string) {
	tb.Helper()
	c.host.Ebnet(tb, append([]string{"connect", network, c.Name, "--name", c.Endpoint}, args...)...)
	e, ok := c.host.Endpoints(tb)[c.Endpoint]
	if !ok || !e.IPv4.Is4() {
		tb.Fatalf("no endpoint %s with an address after connect: %+v", c.Endpoint, e)
	}
	c.Addr = e.IPv4
}

// Vanish deletes the container's namespace, as it ends with its last process.
func (c *Container) Vanish(tb testing.TB) {
	tb.Helper()
	if err := batch("netns del " + c.Name + "\n"); err != nil {
		tb.Fatal(err)
	}
}

// Appear makes a namespace of that name again after [Container.Vanish]: another one.
func (c *Container) Appear(tb testing.TB) {
	tb.Helper()
	if err := batch("netns add " + c.Name + "\n"); err != nil {
		tb.Fatal(err)
	}
	c.Run(tb, "ip", "link", "set", "lo", "up")
}
