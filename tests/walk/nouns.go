package walk

import (
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/ebnet/ebnet/tests/netlab"
)

// observed is what the nouns show.
type observed struct {
	networks  []shownNetwork
	endpoints []shownEndpoint
	ports     []shownPort
}

type shownNetwork struct {
	Name       string         `json:"name"`
	Subnets    []netip.Prefix `json:"subnets"`
	Gateways   []netip.Addr   `json:"gateways"`
	IPRanges   []netip.Prefix `json:"ip_ranges"`
	Bridge     string         `json:"bridge"`
	MTU        int            `json:"mtu"`
	Internal   bool           `json:"internal"`
	ICC        bool           `json:"icc"`
	Masquerade bool           `json:"masquerade"`
	Mode       string         `json:"mode"`
	SNAT       string         `json:"snat_address"`
	Endpoints  int            `json:"endpoints"`
	Addresses  struct {
		Used      uint64 `json:"used"`
		Available uint64 `json:"available"`
	} `json:"addresses"`
}

type shownEndpoint struct {
	Name       string      `json:"name"`
	Network    string      `json:"network"`
	IPv4       netip.Addr  `json:"ipv4"`
	MAC        string      `json:"mac"`
	IfName     string      `json:"ifname"`
	HostIfName string      `json:"host_ifname"`
	Ifindex    int         `json:"ifindex"`
	NetNS      string      `json:"netns"`
	State      string      `json:"state"`
	Ports      []shownPort `json:"ports"`
}

type shownPort struct {
	Endpoint    string         `json:"endpoint"`
	Protocol    string         `json:"protocol"`
	HostIP      netip.Addr     `json:"host_ip"`
	HostPort    uint16         `json:"host_port"`
	HostPortEnd uint16         `json:"host_port_end"`
	IP          netip.Addr     `json:"ip"`
	Port        uint16         `json:"port"`
	PortEnd     uint16         `json:"port_end"`
	From        []netip.Prefix `json:"from"`
}

func (w *Walk) observe() (o observed) {
	w.tb.Helper()
	var networks netlab.List[shownNetwork]
	w.lab.Host.JSON(w.tb, &networks, "network", "ls")
	var endpoints netlab.List[shownEndpoint]
	w.lab.Host.JSON(w.tb, &endpoints, "endpoint", "ls")
	var ports netlab.List[shownPort]
	w.lab.Host.JSON(w.tb, &ports, "ports")
	return observed{networks.Items, endpoints.Items, ports.Items}
}

// unseen reports whether ebnet has chosen something that the model does not know.
func (m *Model) unseen() bool {
	for _, n := range m.Networks {
		if !n.Subnet.IsValid() || n.Bridge == "" {
			return true
		}
	}
	for _, e := range m.Endpoints {
		unknown := func(p Port) bool { return p.HostPort == 0 || p.Direct && !p.HostIP.IsValid() }
		if !e.IP.IsValid() || e.MAC == "" || slices.ContainsFunc(e.Ports, unknown) {
			return true
		}
	}
	return false
}

// match returns the model with what ebnet has chosen filled in, or what is not as it says.
func (m *Model) match(o observed, lab *netlab.Lab) (Model, error) {
	next := m.clone()
	if have, want := names(o.networks, func(n shownNetwork) string { return n.Name }), sortedKeys(m.Networks); !slices.Equal(have, want) {
		return next, fmt.Errorf("networks are %v, want %v", have, want)
	}
	for _, shown := range o.networks {
		n := m.Networks[shown.Name]
		if err := n.learn(shown); err != nil {
			return next, fmt.Errorf("network %s: %w", shown.Name, err)
		}
		next.Networks[n.Name] = n
	}
	if have, want := names(o.endpoints, func(e shownEndpoint) string { return e.Name }), sortedKeys(m.Endpoints); !slices.Equal(have, want) {
		return next, fmt.Errorf("endpoints are %v, want %v", have, want)
	}
	for _, shown := range o.endpoints {
		e := m.Endpoints[shown.Name]
		if err := e.learn(shown, &next, lab); err != nil {
			return next, fmt.Errorf("endpoint %s: %w", shown.Name, err)
		}
		next.Endpoints[e.Name] = e
	}
	if err := next.consistent(o); err != nil {
		return next, err
	}
	return next, nil
}

func names[T any](items []T, name func(T) string) (all []string) {
	for _, i := range items {
		all = append(all, name(i))
	}
	slices.Sort(all)
	return all
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// learn fills in what was chosen and compares the rest.
func (n *Network) learn(s shownNetwork) error {
	if len(s.Subnets) != 1 || len(s.Gateways) != 1 {
		return fmt.Errorf("subnets %v, gateways %v: want one of each", s.Subnets, s.Gateways)
	}
	if !n.Subnet.IsValid() {
		n.Subnet, n.Gateway = s.Subnets[0], s.Subnets[0].Addr().Next()
	}
	if n.Bridge == "" {
		sum := fnv.New32a()
		sum.Write([]byte(n.Name))
		n.Bridge = fmt.Sprintf("br-%08x", sum.Sum32())
	}
	mode := "nat"
	if n.Routed {
		mode = "routed"
	}
	var ranges []netip.Prefix
	if n.Range.IsValid() {
		ranges = append(ranges, n.Range)
	}
	snat := ""
	if n.SNAT.IsValid() {
		snat = n.SNAT.String()
	}
	return firstWrong(
		differs("subnet", s.Subnets[0], n.Subnet), differs("gateway", s.Gateways[0], n.Gateway),
		differs("ranges", fmt.Sprint(s.IPRanges), fmt.Sprint(ranges)), differs("bridge", s.Bridge, n.Bridge),
		differs("mtu", s.MTU, n.MTU), differs("internal", s.Internal, n.Internal), differs("icc", s.ICC, !n.NoICC),
		differs("masquerade", s.Masquerade, !n.NoMasquerade), differs("mode", s.Mode, mode), differs("snat", s.SNAT, snat))
}

func differs[T comparable](what string, have, want T) error {
	if have != want {
		return fmt.Errorf("%s is %v, want %v", what, have, want)
	}
	return nil
}

func firstWrong(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *Endpoint) learn(s shownEndpoint, m *Model, lab *netlab.Lab) error {
	n := m.Networks[e.Network]
	if !e.IP.IsValid() {
		if e.IP = s.IPv4; !n.window().Contains(e.IP) || n.reserved(e.IP) {
			return fmt.Errorf("address %v is not one of the network's", e.IP)
		}
	}
	if e.MAC == "" {
		ip := e.IP.As4()
		e.MAC = fmt.Sprintf("02:eb:%02x:%02x:%02x:%02x", ip[0], ip[1], ip[2], ip[3])
	}
	state := "gone"
	if m.linked(*e) {
		state = "up"
	}
	space := strings.TrimPrefix(s.NetNS, "/run/netns/")
	if e.Space == "" && strings.HasPrefix(space, "/proc/") {
		space = lab.Name + "-"
	}
	if err := firstWrong(
		differs("network", s.Network, e.Network), differs("address", s.IPv4, e.IP), differs("mac", s.MAC, e.MAC),
		differs("ifname", s.IfName, e.IfName), differs("namespace", space, lab.Name+"-"+e.Space), differs("state", s.State, state),
	); err != nil {
		return err
	}
	return e.learnPorts(s.Ports)
}

// learnPorts finds the port that each shown one is; those of which ebnet has chosen
// something come last.
func (e *Endpoint) learnPorts(shown []shownPort) error {
	left := slices.Clone(e.Ports)
	e.Ports = nil
	found := make([]bool, len(shown))
	for _, known := range []bool{true, false} {
		for at, s := range shown {
			if found[at] {
				continue
			}
			p := s.port()
			if known && p.HostPort == 0 {
				return fmt.Errorf("a port without a host port is shown: %+v", s)
			}
			i := slices.IndexFunc(left, func(want Port) bool { return want.is(p, known, e.IP) })
			if i < 0 {
				continue
			}
			found[at] = true
			p.Direct = left[i].Direct
			if left = slices.Delete(left, i, i+1); s.IP != e.IP {
				return fmt.Errorf("port %v leads to %v, want %v", p.spec(), s.IP, e.IP)
			}
			e.Ports = append(e.Ports, p)
		}
	}
	if len(left) > 0 || len(e.Ports) != len(shown) {
		return fmt.Errorf("ports are %+v, of which %+v are expected; %+v are missing", shown, e.Ports, left)
	}
	return nil
}

func (s shownPort) port() Port {
	p := Port{Protocol: s.Protocol, HostIP: s.HostIP, HostPort: s.HostPort, Port: s.Port, Count: int(s.PortEnd) - int(s.Port) + 1, From: s.From}
	if s.HostIP == netip.IPv4Unspecified() {
		p.HostIP = netip.Addr{}
	}
	if len(s.From) == 0 {
		p.From = nil
	}
	return p
}

// is reports whether p, which is shown, is the port; unless known, one of which ebnet has
// chosen the host port from the ephemeral range.
func (want Port) is(p Port, known bool, endpoint netip.Addr) bool {
	host := want.HostIP
	if want.Direct {
		host = endpoint
	}
	chosen := want.HostPort == 0
	return p.Protocol == want.Protocol && p.HostIP == host && p.Port == want.Port && p.Count == want.Count &&
		slices.Equal(p.From, want.From) && chosen != known &&
		(p.HostPort == want.HostPort || chosen && p.HostPort >= ephemeralFirst && p.hostEnd() <= ephemeralLast)
}

// The range that Linux takes ports for clients from unless it is told otherwise.
const (
	ephemeralFirst = 32768
	ephemeralLast  = 60999
)

// consistent checks what the nouns say of one another, and that nothing is given twice.
func (m *Model) consistent(o observed) error {
	for _, s := range o.networks {
		n, members := m.Networks[s.Name], m.members(s.Name)
		if err := firstWrong(
			differs("count of endpoints", s.Endpoints, len(members)),
			differs("count of used addresses", s.Addresses.Used, uint64(len(members))),
			differs("count of available addresses", s.Addresses.Available, m.available(n)),
		); err != nil {
			return fmt.Errorf("network %s: %w", s.Name, err)
		}
		for other, on := range m.Networks {
			if other != s.Name && on.Subnet.Overlaps(n.Subnet) {
				return fmt.Errorf("networks %s and %s overlap: %v, %v", s.Name, other, n.Subnet, on.Subnet)
			}
		}
	}
	owners := map[netip.Addr]string{}
	for _, e := range m.Endpoints {
		if by, ok := owners[e.IP]; ok {
			return fmt.Errorf("address %v belongs to %s and to %s", e.IP, by, e.Name)
		}
		owners[e.IP] = e.Name
	}
	var all []Port
	m.ports(func(_ Endpoint, p Port) { all = append(all, p) })
	for i, p := range all {
		if slices.ContainsFunc(all[:i], p.meets) {
			return fmt.Errorf("port %v is published twice", p.spec())
		}
	}
	shown := 0
	for _, e := range o.endpoints {
		for _, p := range e.Ports {
			shown++
			same := func(o shownPort) bool { return fmt.Sprint(o) == fmt.Sprint(p) }
			if !slices.ContainsFunc(o.ports, same) {
				return errors.New("ebnet ports does not show what ebnet endpoint ls shows")
			}
		}
	}
	return differs("count of ebnet ports", len(o.ports), shown)
}
