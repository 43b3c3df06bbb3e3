package walk

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// op is an operation: a command line and what the model expects of it.
type op struct {
	kind  string
	args  []string
	stdin string

	// trail are the states that the command passes through, the first being the one
	// before it and the last the one after it.
	trail []Model
	code  int

	inside string // the endpoint of `ebnet run`, whose namespace goes with it
	lab    func() // done instead of a command
	line   string // what that is
}

// player plays an operation on a model, step by step.
type player struct{ trail []Model }

func play(m Model) *player { return &player{[]Model{m.clone()}} }

// now is the present state.
func (p *player) now() *Model { return &p.trail[len(p.trail)-1] }

// step changes the state; one that is refused changes nothing.
func (p *player) step(change func(*Model) int) int {
	next := p.now().clone()
	code := change(&next)
	if code == done {
		p.trail = append(p.trail, next)
	}
	return code
}

// command makes the operation of a command that is one step.
func command(m Model, kind string, change func(*Model) int, args ...string) *op {
	p := play(m)
	code := p.step(change)
	return &op{kind: kind, args: args, trail: p.trail, code: code}
}

// refused makes the operation of a command that changes nothing.
func refused(m Model, kind string, code int, args ...string) *op {
	return command(m, kind, func(*Model) int { return code }, args...)
}

// request is what `ebnet connect` and a file of `ebnet up -f` ask for.
type request struct {
	e     Endpoint
	specs []Spec
	from  []netip.Prefix
}

// file is what `ebnet up -f` reads.
type file struct {
	Networks  []fileNetwork  `json:"networks"`
	Endpoints []fileEndpoint `json:"endpoints"`
}

type fileNetwork struct {
	Name     string         `json:"name"`
	Subnets  []netip.Prefix `json:"subnets,omitempty"`
	Internal bool           `json:"internal,omitempty"`

	want Network
}

type fileEndpoint struct {
	Name           string         `json:"name"`
	Network        string         `json:"network"`
	NetNS          string         `json:"netns"`
	IfName         string         `json:"ifname"`
	Ports          []string       `json:"ports,omitempty"`
	From           []netip.Prefix `json:"from,omitempty"`
	NoDefaultRoute bool           `json:"no_default_route,omitempty"`

	want request
}

// upFile is `ebnet up -f -`.
func upFile(m Model, f file, prune bool) *op {
	text, err := json.Marshal(f)
	if err != nil {
		panic(err) // of a constant shape
	}
	o := &op{kind: "up -f", args: []string{"up", "-f", "-"}, stdin: string(text)}
	if prune {
		o.kind, o.args = "up -f --prune", append(o.args, "--prune")
	}
	p := play(m)
	p.step(func(m *Model) int { m.up(); return done })
	if prune {
		p.prune(f)
	}
	var undo []func(*Model) int
	for _, n := range f.Networks {
		if o.code = p.fileNetwork(n, &undo); o.code != done {
			break
		}
	}
	for _, e := range f.Endpoints {
		if o.code != done {
			break
		}
		o.code = p.fileEndpoint(e, prune, &undo)
	}
	if o.code != done {
		for _, back := range slices.Backward(undo) {
			p.step(back)
		}
	}
	o.trail = p.trail
	return o
}

// prune removes the endpoints that the file does not name, then the empty networks.
func (p *player) prune(f file) {
	for _, name := range slices.Sorted(maps.Keys(p.now().Endpoints)) {
		if !slices.ContainsFunc(f.Endpoints, func(e fileEndpoint) bool { return e.Name == name }) {
			p.step(func(m *Model) int { return m.disconnect(name) })
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.now().Networks)) {
		named := slices.ContainsFunc(f.Networks, func(n fileNetwork) bool { return n.Name == name })
		if !named && name != "default" && len(p.now().members(name)) == 0 {
			p.step(func(m *Model) int { return m.removeNetwork(name, false) })
		}
	}
}

func (p *player) fileNetwork(n fileNetwork, undo *[]func(*Model) int) int {
	if have, ok := p.now().Networks[n.Name]; ok {
		if len(n.Subnets) > 0 && n.Subnets[0] != have.Subnet {
			return conflict
		}
		return done
	}
	code := p.step(func(m *Model) int { return m.createNetwork(n.want) })
	if code == done {
		*undo = append(*undo, func(m *Model) int { return m.removeNetwork(n.Name, true) })
	}
	return code
}

func (p *player) fileEndpoint(e fileEndpoint, prune bool, undo *[]func(*Model) int) int {
	have, ok := p.now().Endpoints[e.Name]
	if !ok {
		code := p.step(func(m *Model) int { return m.connect(e.want.e, e.want.specs, e.want.from) })
		if code == done {
			*undo = append(*undo, func(m *Model) int { return m.disconnect(e.Name) })
		}
		return code
	}
	if have.Network != e.Network {
		return conflict
	}
	same := func(p Port, s Spec) bool { return s.means(p) && slices.Equal(p.From, e.want.from) }
	var missing []Spec
	for _, s := range e.want.specs {
		if !slices.ContainsFunc(have.Ports, func(p Port) bool { return same(p, s) }) {
			missing = append(missing, s)
		}
	}
	for _, port := range have.Ports {
		wanted := slices.ContainsFunc(e.want.specs, func(s Spec) bool { return same(port, s) })
		if !prune || wanted {
			continue
		}
		p.step(func(m *Model) int { return m.unexpose(e.Name, []Spec{port.spec()}) })
	}
	if len(missing) == 0 {
		return done
	}
	code := p.step(func(m *Model) int { return m.expose(e.Name, missing, e.want.from) })
	if code == done {
		*undo = append(*undo, func(m *Model) int { return m.unexpose(e.Name, missing) })
	}
	return code
}

// commandLine is the operation as a person would type it.
func (o *op) commandLine() string {
	line := o.line
	if o.args != nil {
		line = "ebnet"
		for _, a := range o.args {
			line += " " + a
		}
	}
	if o.stdin != "" {
		line += fmt.Sprintf(" <<< '%s'", o.stdin)
	}
	return line
}
