package walk

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
)

// Model is what ebnet should be: what was asked of it, and the namespaces that are there.
// Values of maps are never changed in place, so that a copy of the maps is a copy of all.
type Model struct {
	Up       bool // the datapath is loaded
	FastPath bool

	Networks  map[string]Network
	Endpoints map[string]Endpoint

	// Spaces are the namespaces that exist, by name, and which of that name it is: one
	// that is made again is another one.
	Spaces map[string]int
}

// Network is a network of the model. What ebnet chooses is zero until it is seen.
type Network struct {
	Name    string
	Subnet  netip.Prefix
	Range   netip.Prefix // the zero Prefix: the whole subnet
	Gateway netip.Addr
	Aux     netip.Addr // the zero Addr: none
	Bridge  string     // "": chosen by ebnet
	MTU     int
	SNAT    netip.Addr

	Internal, NoICC, NoMasquerade, Routed bool

	Kept bool // the walk leaves it alone
}

// Endpoint is an endpoint of the model. What ebnet chooses is zero until it is seen.
type Endpoint struct {
	Name, Network  string
	Space          string // "" for that of `ebnet run`
	Incarnation    int    // which namespace of that name
	IfName         string
	IP             netip.Addr
	MAC            string
	NoDefaultRoute bool
	Ports          []Port // in no order

	// Aside says that an `ebnet up` has found the namespace gone, and so has taken the
	// endpoint out of the datapath.
	Aside bool

	Kept bool // the walk leaves it alone
}

// Port is a published port or range of them.
type Port struct {
	Protocol string
	HostIP   netip.Addr // the zero Addr: any
	HostPort uint16     // 0 until ebnet's choice is seen
	Port     uint16
	Count    int
	From     []netip.Prefix
	Direct   bool // of a routed network: HostIP and HostPort are the endpoint's own
}

// hostEnd and end are the last ports of both ranges.
func (p Port) hostEnd() uint16 { return p.HostPort + uint16(p.Count-1) }
func (p Port) end() uint16     { return p.Port + uint16(p.Count-1) }

// meets reports whether both cannot be published.
func (p Port) meets(o Port) bool {
	return p.Protocol == o.Protocol && p.Direct == o.Direct &&
		p.HostPort <= o.hostEnd() && o.HostPort <= p.hostEnd() &&
		(!p.HostIP.IsValid() || !o.HostIP.IsValid() || p.HostIP == o.HostIP)
}

func newModel() Model {
	return Model{FastPath: true, Networks: map[string]Network{}, Endpoints: map[string]Endpoint{}, Spaces: map[string]int{}}
}

func (m *Model) clone() Model {
	c := *m
	c.Networks, c.Endpoints, c.Spaces = maps.Clone(m.Networks), maps.Clone(m.Endpoints), maps.Clone(m.Spaces)
	return c
}

// alive reports whether the endpoint's namespace is there.
func (m *Model) alive(e Endpoint) bool {
	return e.Space != "" && m.Spaces[e.Space] == e.Incarnation && e.Incarnation > 0
}

// linked reports whether the endpoint has its devices.
func (m *Model) linked(e Endpoint) bool { return m.Up && m.alive(e) }

// members are the names of a network's endpoints, sorted.
func (m *Model) members(network string) (names []string) {
	for _, e := range m.Endpoints {
		if e.Network == network {
			names = append(names, e.Name)
		}
	}
	slices.Sort(names)
	return names
}

// ports calls yield for all published ports.
func (m *Model) ports(yield func(Endpoint, Port)) {
	for _, e := range m.Endpoints {
		for _, p := range e.Ports {
			yield(e, p)
		}
	}
}

// taken reports whether a port cannot be published because of another.
func (m *Model) taken(p Port) (taken bool) {
	m.ports(func(_ Endpoint, o Port) { taken = taken || p.meets(o) })
	return taken
}

// leased reports whether an endpoint of the network has the address.
func (m *Model) leased(network string, ip netip.Addr) bool {
	for _, e := range m.Endpoints {
		if e.Network == network && e.IP == ip {
			return true
		}
	}
	return false
}

// window is where the network's addresses are given from.
func (n Network) window() netip.Prefix {
	if n.Range.IsValid() {
		return n.Range
	}
	return n.Subnet
}

// reserved reports whether the address is never given.
func (n Network) reserved(ip netip.Addr) bool {
	return ip == n.Gateway || ip == n.Aux || ip == n.Subnet.Addr() || ip == last(n.Subnet)
}

// available is how many addresses can still be given; many in a subnet that ebnet chooses.
func (m *Model) available(n Network) (free uint64) {
	w := n.window()
	if !w.IsValid() {
		return 1 << 12
	}
	free = 1 << (32 - w.Bits())
	for _, ip := range []netip.Addr{n.Subnet.Addr(), last(n.Subnet), n.Gateway, n.Aux} {
		if ip.IsValid() && w.Contains(ip) {
			free--
		}
	}
	for _, name := range m.members(n.Name) {
		if w.Contains(m.Endpoints[name].IP) {
			free--
		}
	}
	return free
}

// last is the IPv4 address of the prefix with all host bits set.
func last(p netip.Prefix) netip.Addr {
	a := p.Addr().As4()
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])|(1<<(32-p.Bits())-1))
	return netip.AddrFrom4(a)
}

// The exit statuses of a command.
const (
	done        = 0
	failed      = 1
	invalid     = 2
	unsupported = 3
	conflict    = 4
	notFound    = 5
)

// createNetwork is `ebnet network create`, of a request that is valid in itself.
func (m *Model) createNetwork(n Network) int {
	if _, ok := m.Networks[n.Name]; ok {
		return conflict
	}
	if n.Routed {
		n.NoMasquerade = true
	}
	if n.Subnet.IsValid() && !n.Gateway.IsValid() {
		gateway := n.window().Addr()
		for n.reserved(gateway) {
			gateway = gateway.Next()
		}
		n.Gateway = gateway
	}
	if n.MTU == 0 {
		n.MTU = 1500
	}
	if n.Name == "default" && n.Bridge == "" {
		n.Bridge = "ebnet0"
	}
	for _, o := range m.Networks {
		if n.Subnet.IsValid() && n.Subnet.Overlaps(o.Subnet) || n.Bridge != "" && n.Bridge == o.Bridge {
			return conflict
		}
	}
	m.Networks[n.Name] = n
	return done
}

// connect is `ebnet connect`; the address of what is asked for is in e.
func (m *Model) connect(e Endpoint, specs []Spec, from []netip.Prefix) int {
	n, ok := m.Networks[e.Network]
	if !ok || e.Space != "" && m.Spaces[e.Space] == 0 {
		return notFound
	}
	if !m.Up {
		return failed
	}
	if _, ok := m.Endpoints[e.Name]; ok {
		return conflict
	}
	e.Incarnation = m.Spaces[e.Space]
	for _, o := range m.Endpoints {
		if m.alive(o) && o.Space == e.Space && o.IfName == e.IfName {
			return conflict
		}
	}
	switch {
	case !e.IP.IsValid():
		if m.available(n) == 0 {
			return conflict
		}
	case !n.Subnet.Contains(e.IP):
		return invalid
	case n.reserved(e.IP) || m.leased(n.Name, e.IP):
		return conflict
	}
	for _, name := range m.members(n.Name) {
		if e.MAC != "" && m.Endpoints[name].MAC == e.MAC {
			return conflict
		}
	}
	code := m.publish(&e, n, specs, from)
	if code == done && e.IfName == "lo" {
		code = conflict // found when the link is made
	}
	if code == done {
		m.Endpoints[e.Name] = e
	}
	return code
}

// publish gives e the ports, all or none.
func (m *Model) publish(e *Endpoint, n Network, specs []Spec, from []netip.Prefix) int {
	if len(specs) == 0 {
		return done
	}
	if n.Internal {
		return invalid
	}
	ports := slices.Clone(e.Ports)
	for _, s := range specs {
		p := Port{Protocol: s.Protocol, HostIP: s.HostIP, HostPort: s.HostPort, Port: s.Port, Count: s.count(), From: from}
		inTheWay := func() bool {
			return m.taken(p) || slices.ContainsFunc(ports, p.meets)
		}
		switch {
		case n.Routed:
			p.Direct, p.HostIP, p.HostPort = true, e.IP, p.Port
			if slices.ContainsFunc(ports, p.meets) {
				return conflict
			}
		case s.HostPort == 0: // seen later
		case s.hostCount() > p.Count:
			for inTheWay() {
				if p.HostPort++; p.hostEnd() > s.HostEnd {
					return conflict
				}
			}
		case inTheWay():
			return conflict
		}
		ports = append(ports, p)
	}
	e.Ports = ports
	return done
}

// expose is `ebnet expose`.
func (m *Model) expose(name string, specs []Spec, from []netip.Prefix) int {
	e, ok := m.Endpoints[name]
	switch {
	case !ok:
		return notFound
	case !m.Up:
		return failed
	case !m.alive(e):
		return conflict
	}
	code := m.publish(&e, m.Networks[e.Network], specs, from)
	if code == done {
		m.Endpoints[name] = e
	}
	return code
}

// unexpose is `ebnet unexpose`.
func (m *Model) unexpose(name string, specs []Spec) int {
	e, ok := m.Endpoints[name]
	if !ok {
		return notFound
	}
	for _, s := range specs {
		if !slices.ContainsFunc(e.Ports, s.means) {
			return notFound
		}
	}
	e.Ports = slices.DeleteFunc(slices.Clone(e.Ports), func(p Port) bool {
		return len(specs) == 0 || slices.ContainsFunc(specs, func(s Spec) bool { return s.means(p) })
	})
	m.Endpoints[name] = e
	return done
}

func (m *Model) disconnect(name string) int {
	if _, ok := m.Endpoints[name]; !ok {
		return notFound
	}
	delete(m.Endpoints, name)
	return done
}

// removeNetwork is `ebnet network rm` of one network.
func (m *Model) removeNetwork(name string, force bool) int {
	members := m.members(name)
	if _, ok := m.Networks[name]; !ok {
		return notFound
	}
	if len(members) > 0 && !force {
		return conflict
	}
	for _, e := range members {
		delete(m.Endpoints, e)
	}
	delete(m.Networks, name)
	return done
}

// up is `ebnet up` without a file.
func (m *Model) up() {
	m.Up = true
	if _, ok := m.Networks["default"]; !ok {
		m.createNetwork(Network{Name: "default"})
	}
	for name, e := range m.Endpoints {
		e.Aside = !m.alive(e)
		m.Endpoints[name] = e
	}
}

// purge is `ebnet down --purge`.
func (m *Model) purge() {
	spaces := m.Spaces
	*m = newModel()
	m.Spaces = spaces
}

// Target is where a published port is reached.
type Target struct {
	Protocol string
	At       netip.AddrPort
}

// Serving says which endpoint's namespace each published port of the host leads to, by the
// host's addresses outside.
func (m *Model) Serving(host ...netip.Addr) map[Target]string {
	serving := map[Target]string{}
	m.ports(func(e Endpoint, p Port) {
		if p.Direct || !m.linked(e) {
			return
		}
		for _, ip := range host {
			if p.HostIP.IsValid() && p.HostIP != ip {
				continue
			}
			for i := range p.Count {
				serving[Target{p.Protocol, netip.AddrPortFrom(ip, p.HostPort+uint16(i))}] = e.Space
			}
		}
	})
	return serving
}
