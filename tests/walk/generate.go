package walk

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/ebnet/ebnet/tests/netlab"
)

// What operations choose from: few of each, so that they meet.
const (
	networkNames  = 6
	endpointNames = 16
	spaceNames    = 10
)

// choice is a kind of operation and how often it is tried.
type choice struct {
	weight int
	make   func() *op // nil: not possible now
}

// next makes an operation for the present state.
func (w *Walk) next() *op {
	if !w.model.Up && w.chance(0.4) {
		return w.upOp()
	}
	for {
		if o := w.choose(); o != nil {
			return o
		}
	}
}

func (w *Walk) choose() *op {
	choices := []choice{
		{220, w.connectOp}, {130, w.disconnectOp}, {170, w.exposeOp}, {100, w.unexposeOp},
		{80, w.createOp}, {60, w.removeOp}, {10, w.pruneOp}, {40, w.upOp}, {20, w.fastPathOp},
		{50, w.fileOp}, {30, w.leaveOp}, {40, w.enterOp}, {40, w.runOp}, {20, w.flushOp}, {60, w.refusedOp},
		{12, w.downOp}, {3, w.purgeOp},
	}
	total := 0
	for _, c := range choices {
		total += c.weight
	}
	at := w.ops.IntN(total)
	for _, c := range choices {
		if at -= c.weight; at < 0 {
			return c.make()
		}
	}
	return nil
}

func (w *Walk) chance(p float64) bool { return w.ops.Float64() < p }

// pick returns one of the values; the zero value of none.
func pick[T any](w *Walk, from []T) (v T) {
	if len(from) > 0 {
		v = from[w.ops.IntN(len(from))]
	}
	return v
}

// networks are the names of those that the walk may change.
func (w *Walk) networks() (names []string) {
	for _, name := range slices.Sorted(maps.Keys(w.model.Networks)) {
		if !w.model.Networks[name].Kept {
			names = append(names, name)
		}
	}
	return names
}

func (w *Walk) endpoints() (names []string) {
	for _, name := range slices.Sorted(maps.Keys(w.model.Endpoints)) {
		if !w.model.Endpoints[name].Kept {
			names = append(names, name)
		}
	}
	return names
}

// spaces are the names of the namespaces that exist and that the walk may change.
func (w *Walk) spaces() (names []string) {
	for _, name := range sortedKeys(w.model.Spaces) {
		if w.nodes[name] != nil {
			names = append(names, name)
		}
	}
	return names
}

// anEndpoint is mostly one that exists.
func (w *Walk) anEndpoint() string {
	if have := w.endpoints(); len(have) > 0 && w.chance(0.93) {
		return pick(w, have)
	}
	return fmt.Sprintf("e%02d", w.ops.IntN(endpointNames))
}

func (w *Walk) aNetwork() string {
	if have := w.networks(); len(have) > 0 && w.chance(0.93) {
		return pick(w, have)
	}
	return fmt.Sprintf("n%d", w.ops.IntN(networkNames))
}

// networkRequest is a random network; mostly of a name that is free.
func (w *Walk) networkRequest() (Network, []string) {
	n := Network{Name: fmt.Sprintf("n%d", w.ops.IntN(networkNames))}
	if _, ok := w.model.Networks["default"]; !ok && w.chance(0.3) {
		n.Name = "default"
	}
	args := []string{"network", "create", n.Name}
	add := func(name, value string) { args = append(args, name, value) }
	switch w.ops.IntN(10) {
	case 0:
		n.Subnet = netip.MustParsePrefix("10.1.0.0/24")
	case 1:
		n.Subnet = netip.MustParsePrefix("10.1.0.64/26") // within the one above
	case 2:
		n.Subnet = netip.MustParsePrefix("10.3.0.0/30") // one endpoint fits in
	case 3:
		n.Subnet, n.Range = netip.MustParsePrefix("10.4.0.0/16"), netip.MustParsePrefix("10.4.8.0/29")
		add("--ip-range", n.Range.String())
	case 4:
		n.Subnet, n.Gateway = netip.MustParsePrefix("10.5.0.0/24"), netip.MustParseAddr("10.5.0.254")
		add("--gateway", n.Gateway.String())
	case 5:
		n.Subnet, n.Aux = netip.MustParsePrefix("10.6.0.0/28"), netip.MustParseAddr("10.6.0.1")
		add("--aux-address", "router="+n.Aux.String())
	case 6:
		n.Subnet = netip.MustParsePrefix("172.18.0.0/17") // in the way of the first default pool
	}
	if n.Subnet.IsValid() {
		add("--subnet", n.Subnet.String())
	}
	switch w.ops.IntN(12) {
	case 0:
		n.Internal, args = true, append(args, "--internal")
	case 1:
		n.NoICC, args = true, append(args, "--no-icc")
	case 2:
		n.NoMasquerade, args = true, append(args, "--no-masquerade")
	case 3:
		n.Routed = true
		add("--mode", "routed")
	case 4:
		n.SNAT = netlab.HostAddr2
		add("--snat-address", n.SNAT.String())
	case 5:
		n.MTU = 1400
		add("--mtu", "1400")
	case 6:
		n.Bridge = fmt.Sprintf("bridge%d", w.ops.IntN(2))
		add("--bridge", n.Bridge)
	}
	return n, args
}

func (w *Walk) createOp() *op {
	n, args := w.networkRequest()
	return command(w.model, "network create", func(m *Model) int { return m.createNetwork(n) }, args...)
}

// removeOp removes a network or two, with their endpoints or without.
func (w *Walk) removeOp() *op {
	names, force := []string{w.aNetwork()}, w.chance(0.3)
	if w.chance(0.1) {
		if other := w.aNetwork(); other != names[0] {
			names = append(names, other)
		}
	}
	if !force && w.chance(0.5) { // an empty one, if there is one
		for _, name := range w.networks() {
			if len(w.model.members(name)) == 0 {
				names = []string{name}
			}
		}
	}
	o := &op{kind: "network rm", args: append([]string{"network", "rm"}, names...)}
	if force {
		o.kind, o.args = "network rm --force", append(o.args, "--force")
	}
	p := play(w.model)
	for _, name := range names { // what will be refused is found before anything goes
		trial := w.model.clone()
		if o.code = trial.removeNetwork(name, force); o.code != done {
			o.trail = p.trail
			return o
		}
	}
	for _, name := range names {
		p.step(func(m *Model) int { return m.removeNetwork(name, force) })
	}
	o.trail = p.trail
	return o
}

func (w *Walk) pruneOp() *op {
	p := play(w.model)
	for _, name := range slices.Sorted(maps.Keys(w.model.Networks)) {
		if len(w.model.members(name)) == 0 && name != "default" {
			if w.model.Networks[name].Kept {
				return nil
			}
			p.step(func(m *Model) int { return m.removeNetwork(name, false) })
		}
	}
	return &op{kind: "network prune", args: []string{"network", "prune"}, trail: p.trail}
}

// endpointRequest is a random endpoint of a network of the model.
func (w *Walk) endpointRequest(m *Model, name, network string) (r request, ok bool) {
	r.e = Endpoint{Name: name, Network: network, Space: pick(w, w.spaces()), IfName: "eth0"}
	if r.e.Space == "" {
		return r, false
	}
	switch w.ops.IntN(12) {
	case 0, 1, 2:
		r.e.IfName = "eth1"
	case 3:
		r.e.IfName = "lo"
	}
	for _, o := range m.Endpoints {
		if !m.alive(o) || o.Space != r.e.Space {
			continue
		}
		if o.Network == network { // twice in one network confuses the namespace's own routing
			return r, false
		}
		r.e.NoDefaultRoute = r.e.NoDefaultRoute || !o.NoDefaultRoute
	}
	if !r.e.NoDefaultRoute && w.chance(0.1) {
		r.e.NoDefaultRoute = true
	}
	if w.chance(0.35) {
		r.specs, r.from = w.specs(1+w.ops.IntN(2)), w.sources()
	}
	return r, true
}

func (w *Walk) connectOp() *op {
	name := fmt.Sprintf("e%02d", w.ops.IntN(endpointNames))
	network := w.aNetwork()
	r, ok := w.endpointRequest(&w.model, name, network)
	if !ok {
		return nil
	}
	space := w.lab.Name + "-" + r.e.Space
	if w.chance(0.3) {
		space = "/run/netns/" + space
	}
	args := []string{"connect", network, space, "--name", name, "--ifname", r.e.IfName}
	if n, ok := w.model.Networks[network]; ok && w.chance(0.2) {
		r.e.IP = w.anAddress(n)
		args = append(args, "--ip", r.e.IP.String())
	}
	if w.chance(0.1) {
		r.e.MAC = fmt.Sprintf("02:00:5e:00:00:%02x", w.ops.IntN(6))
		args = append(args, "--mac", r.e.MAC)
	}
	if r.e.NoDefaultRoute {
		args = append(args, "--no-default-route")
	}
	for _, s := range r.specs {
		args = append(args, "-p", s.String())
	}
	if len(r.specs) == 0 {
		r.from = nil
	}
	for _, f := range r.from {
		args = append(args, "--from", f.String())
	}
	return command(w.model, "connect", func(m *Model) int { return m.connect(r.e, r.specs, r.from) }, args...)
}

// anAddress is one of the network's subnet, or beside it.
func (w *Walk) anAddress(n Network) netip.Addr {
	switch w.ops.IntN(8) {
	case 0:
		return netip.MustParseAddr("10.99.0.1")
	case 1:
		return n.Gateway
	}
	ip := n.Subnet.Addr()
	for range w.ops.IntN(7) {
		ip = ip.Next()
	}
	return ip
}

func (w *Walk) disconnectOp() *op {
	names := []string{w.anEndpoint()}
	if w.chance(0.15) {
		if other := w.anEndpoint(); other != names[0] {
			names = append(names, other)
		}
	}
	o := &op{kind: "disconnect", args: append([]string{"disconnect"}, names...)}
	p := play(w.model)
	for _, name := range names {
		if _, ok := w.model.Endpoints[name]; !ok { // found before anything goes
			o.code, o.trail = notFound, p.trail
			return o
		}
	}
	for _, name := range names {
		p.step(func(m *Model) int { return m.disconnect(name) })
	}
	o.trail = p.trail
	return o
}

// specs are random ports to publish.
func (w *Walk) specs(count int) (specs []Spec) {
	for range count {
		s := Spec{Protocol: pick(w, []string{"tcp", "udp"})}
		s.HostIP = pick(w, []netip.Addr{{}, {}, {}, netlab.HostAddr, netlab.HostAddr2, w.loopback})
		size := 1
		if w.chance(0.25) {
			size += w.ops.IntN(4)
		}
		s.Port = uint16(80 + w.ops.IntN(12))
		s.End = s.Port + uint16(size-1)
		switch w.ops.IntN(5) {
		case 0: // any of the ephemeral range
		case 1, 2:
			s.HostPort = uint16(8000 + w.ops.IntN(24))
		case 3:
			s.HostPort = uint16(40000 + w.ops.IntN(12)) // reserved with the kernel
		case 4: // the first free of a range
			s.HostPort, s.End, size = uint16(9000+w.ops.IntN(4)), s.Port, 1
			s.HostEnd = s.HostPort + uint16(1+w.ops.IntN(4))
		}
		if s.HostPort != 0 && s.HostEnd == 0 {
			s.HostEnd = s.HostPort + uint16(size-1)
		}
		specs = append(specs, s)
	}
	return specs
}

// sources are random ones, sorted; mostly none.
func (w *Walk) sources() []netip.Prefix {
	all := []netip.Prefix{
		netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("198.51.100.1/32"),
	}
	switch w.ops.IntN(10) {
	case 0:
		return all[:1]
	case 1:
		return all[1:]
	}
	return nil
}

func (w *Walk) exposeOp() *op {
	name := w.anEndpoint()
	specs, from := w.specs(1+w.ops.IntN(3)), w.sources()
	args := []string{"expose", name}
	for _, s := range specs {
		args = append(args, s.String())
	}
	for _, f := range from {
		args = append(args, "--from", f.String())
	}
	return command(w.model, "expose", func(m *Model) int { return m.expose(name, specs, from) }, args...)
}

func (w *Walk) unexposeOp() *op {
	name := w.anEndpoint()
	if w.chance(0.8) { // one that has ports, if there is one
		var with []string
		for _, e := range w.endpoints() {
			if len(w.model.Endpoints[e].Ports) > 0 {
				with = append(with, e)
			}
		}
		if len(with) > 0 {
			name = pick(w, with)
		}
	}
	args := []string{"unexpose", name}
	var specs []Spec
	if e := w.model.Endpoints[name]; w.chance(0.8) {
		for range 1 + w.ops.IntN(2) {
			s := pick(w, w.specs(1))
			if len(e.Ports) > 0 && w.chance(0.9) {
				s = pick(w, e.Ports).spec()
			}
			specs, args = append(specs, s), append(args, s.String())
		}
	}
	return command(w.model, "unexpose", func(m *Model) int { return m.unexpose(name, specs) }, args...)
}

func (w *Walk) upOp() *op {
	return command(w.model, "up", func(m *Model) int { m.up(); return done }, "up")
}

func (w *Walk) fastPathOp() *op {
	on := w.chance(0.6)
	value := map[bool]string{true: "on", false: "off"}[on]
	return command(w.model, "up --fast-path", func(m *Model) int { m.up(); m.FastPath = on; return done }, "up", "--fast-path="+value)
}

func (w *Walk) downOp() *op {
	if w.o.Stay {
		return nil
	}
	return command(w.model, "down", func(m *Model) int { m.Up = false; return done }, "down")
}

func (w *Walk) purgeOp() *op {
	if w.o.Stay {
		return nil
	}
	return command(w.model, "down --purge", func(m *Model) int { m.purge(); return done }, "down", "--purge")
}

// fileOp applies a file of much that is there and a little that is not.
func (w *Walk) fileOp() *op {
	if !w.model.Up {
		return nil
	}
	var f file
	prune := w.chance(0.3)
	trial := w.model.clone()
	for _, name := range slices.Sorted(maps.Keys(w.model.Networks)) {
		n := w.model.Networks[name]
		if n.Kept || w.chance(0.8) {
			f.Networks = append(f.Networks, fileNetwork{Name: name})
		}
	}
	if w.chance(0.5) {
		n := Network{Name: fmt.Sprintf("n%d", w.ops.IntN(networkNames)), Internal: w.chance(0.2)}
		fn := fileNetwork{Name: n.Name, Internal: n.Internal, want: n}
		if w.chance(0.5) {
			fn.want.Subnet = netip.MustParsePrefix("10.7.0.0/24")
			fn.Subnets = []netip.Prefix{fn.want.Subnet}
		}
		if !slices.ContainsFunc(f.Networks, func(o fileNetwork) bool { return o.Name == n.Name }) {
			f.Networks = append(f.Networks, fn)
			trial.createNetwork(fn.want)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(w.model.Endpoints)) {
		e := w.model.Endpoints[name]
		if e.Kept || w.chance(0.8) {
			f.Endpoints = append(f.Endpoints, w.fileOf(e))
		}
	}
	if w.chance(0.7) {
		name := fmt.Sprintf("e%02d", w.ops.IntN(endpointNames))
		network := pick(w, slices.Sorted(maps.Keys(trial.Networks)))
		r, ok := w.endpointRequest(&trial, name, network)
		named := slices.ContainsFunc(f.Endpoints, func(o fileEndpoint) bool { return o.Name == name })
		if ok && !named && network != "" && !trial.Networks[network].Kept {
			f.Endpoints = append(f.Endpoints, w.fileEndpoint(r))
		}
	}
	return upFile(w.model, f, prune)
}

// fileOf is an endpoint as it is, perhaps with a port less or more.
func (w *Walk) fileOf(e Endpoint) fileEndpoint {
	r := request{e: e}
	if len(e.Ports) > 0 {
		r.from = e.Ports[0].From
	}
	for _, p := range e.Ports {
		if slices.Equal(p.From, r.from) && (e.Kept || w.chance(0.9)) {
			r.specs = append(r.specs, p.spec())
		}
	}
	if !e.Kept && len(r.specs) > 0 && w.chance(0.2) {
		r.specs = append(r.specs, w.specs(1)...)
	}
	return w.fileEndpoint(r)
}

func (w *Walk) fileEndpoint(r request) fileEndpoint {
	if len(r.specs) == 0 {
		r.from = nil
	}
	fe := fileEndpoint{
		Name: r.e.Name, Network: r.e.Network, NetNS: w.lab.Name + "-" + r.e.Space, IfName: r.e.IfName,
		From: r.from, NoDefaultRoute: r.e.NoDefaultRoute, want: r,
	}
	for _, s := range r.specs {
		fe.Ports = append(fe.Ports, s.String())
	}
	return fe
}

// leaveOp lets a namespace vanish, with what is in it.
func (w *Walk) leaveOp() *op {
	name := pick(w, w.spaces())
	if name == "" {
		return nil
	}
	o := command(w.model, "netns del", func(m *Model) int { delete(m.Spaces, name); return done })
	o.line, o.lab = "netns del "+name, func() { w.leave(name) }
	return o
}

// enterOp makes a namespace, perhaps again.
func (w *Walk) enterOp() *op {
	var free []string
	for i := range spaceNames {
		if name := fmt.Sprintf("c%d", i); w.model.Spaces[name] == 0 {
			free = append(free, name)
		}
	}
	name := pick(w, free)
	if name == "" {
		return nil
	}
	w.made++
	incarnation := w.made
	o := command(w.model, "netns add", func(m *Model) int { m.Spaces[name] = incarnation; return done })
	o.line, o.lab = "netns add "+name, func() { w.enter(name) }
	return o
}

// runOp runs a short command in a namespace of its own.
func (w *Walk) runOp() *op {
	status := pick(w, []int{0, 0, 7})
	e := Endpoint{Name: fmt.Sprintf("r%d", w.ops.IntN(3)), Network: w.aNetwork(), IfName: "eth0"}
	args := []string{"run", "--network", e.Network, "--name", e.Name}
	var specs []Spec
	if w.chance(0.4) {
		specs = w.specs(1)
		args = append(args, "-p", specs[0].String())
	}
	args = append(args, "--", "sh", "-c", fmt.Sprintf("exit %d", status))
	p := play(w.model)
	o := &op{kind: "run", args: args, inside: e.Name}
	if o.code = p.step(func(m *Model) int { return m.connect(e, specs, nil) }); o.code == done {
		p.step(func(m *Model) int { return m.disconnect(e.Name) })
		o.code = status
	}
	o.trail = p.trail
	return o
}

func (w *Walk) flushOp() *op {
	if w.o.Stay {
		name := pick(w, w.endpoints())
		if name == "" {
			return nil
		}
		return refused(w.model, "flows --flush", done, "flows", "--flush", "--endpoint", name)
	}
	return refused(w.model, "flows --flush", done, "flows", "--flush")
}

// refusedOp is a command that must be refused, whatever the state.
func (w *Walk) refusedOp() *op {
	c := pick(w, []struct {
		code int
		line string
	}{
		{invalid, "network create bad/name"},
		{invalid, "network create never --subnet 10.1.0.1/24"},
		{unsupported, "network create never --subnet fd00::/64"},
		{invalid, "network create never --mtu 10"},
		{invalid, "network create never --mode odd"},
		{invalid, "network create never --subnet 10.50.0.0/24 --gateway 10.51.0.1"},
		{invalid, "network create never --subnet 10.50.0.0/24 --snat-address 192.0.2.9"},
		{conflict, "network create never --subnet 198.51.100.128/25"},
		{conflict, "network create never --subnet 10.50.0.0/24 --bridge up0"},
		{notFound, "network rm nosuch"},
		{notFound, "network inspect nosuch"},
		{notFound, "connect nosuch " + w.lab.Internet.Name},
		{notFound, "connect default nosuch"},
		{invalid, "connect default"},
		{notFound, "disconnect nosuch"},
		{notFound, "endpoint inspect nosuch"},
		{notFound, "expose nosuch 80"},
		{unsupported, "expose nosuch 80/sctp"},
		{invalid, "expose nosuch 70000:80"},
		{invalid, "expose nosuch"},
		{notFound, "unexpose nosuch"},
		{notFound, "run --network nosuch -- true"},
		{127, "run -- /nosuch"},
		{invalid, "run"},
		{notFound, "up --uplink nosuch"},
		{invalid, "up --fast-path=maybe"},
		{invalid, "up --prune"},
		{notFound, "up -f /nosuch"},
		{notFound, "flows --endpoint nosuch"},
		{invalid, "frobnicate"},
	})
	if w.model.Up && w.chance(0.1) {
		c.code, c.line = conflict, "up --max-flows 5" // of a datapath that is loaded
	}
	return refused(w.model, "refused", c.code, strings.Fields(c.line)...)
}
