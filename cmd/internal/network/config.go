package network

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
)

// Config is what `ebnet up -f` applies: networks, and endpoints with their ports.
type Config struct {
	Networks  []NetworkConfig  `json:"networks"`
	Endpoints []EndpointConfig `json:"endpoints"`
}

// NetworkConfig describes a network; see NetworkRequest for the defaults. ICC and
// Masquerade are true unless set to false.
type NetworkConfig struct {
	Name       string                `json:"name"`
	Subnets    []netip.Prefix        `json:"subnets"`
	IPRanges   []netip.Prefix        `json:"ip_ranges"`
	Gateways   []netip.Addr          `json:"gateways"`
	Aux        map[string]netip.Addr `json:"aux_addresses"`
	IPv6       bool                  `json:"ipv6"`
	Internal   bool                  `json:"internal"`
	ICC        *bool                 `json:"icc"`
	Masquerade *bool                 `json:"masquerade"`
	Mode       string                `json:"mode"`
	SNATAddrs  []netip.Addr          `json:"snat_addresses"`
	MTU        int                   `json:"mtu"`
	Bridge     string                `json:"bridge"`
	Labels     map[string]string     `json:"labels"`
}

// EndpointConfig describes an endpoint; see ConnectRequest for the defaults.
type EndpointConfig struct {
	Name           string            `json:"name"` // not optional
	Network        string            `json:"network"`
	NetNS          string            `json:"netns"`
	IPs            []netip.Addr      `json:"ips"`
	MAC            string            `json:"mac"`
	IfName         string            `json:"ifname"`
	Ports          []PortSpec        `json:"ports"`
	From           []Source          `json:"from"` // of all Ports
	Labels         map[string]string `json:"labels"`
	NoDefaultRoute bool              `json:"no_default_route"`
}

// ReadConfig reads a YAML or JSON file of networks, endpoints and ports, strictly: an
// unknown field is ErrInvalid.
func ReadConfig(r io.Reader) (*Config, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, failed("configuration", err)
	}
	// JSON is YAML too, but its own decoder has the better messages.
	if trimmed := bytes.TrimSpace(data); len(trimmed) > 0 && trimmed[0] != '{' {
		if data, err = yaml.YAMLToJSON(data); err != nil {
			return nil, invalid("configuration", "%s", strings.TrimSpace(yaml.FormatError(err, false, false)))
		}
	}
	c := new(Config)
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(c); err != nil {
		if e, ok := errors.AsType[*Error](err); ok {
			return nil, e
		}
		return nil, invalid("configuration", "%v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, invalid("configuration", "something follows the first document")
	}
	return c, c.check()
}

// check refuses what is named twice or not at all; the rest is for the verbs.
func (c *Config) check() error {
	seen := map[string]bool{}
	name := func(what, name string) error {
		if err := CheckName(what, name); err != nil {
			return err
		}
		key := quoted(what, name)
		if seen[key] {
			return invalid("configuration", "%s is there twice", key)
		}
		seen[key] = true
		return nil
	}
	for _, n := range c.Networks {
		if err := name("network", n.Name); err != nil {
			return err
		}
	}
	for _, e := range c.Endpoints {
		if err := name("endpoint", e.Name); err != nil {
			return err
		}
	}
	return nil
}

func (n NetworkConfig) request() NetworkRequest {
	on := func(b *bool) bool { return b == nil || *b }
	return NetworkRequest{
		Name: n.Name, Subnets: n.Subnets, IPRanges: n.IPRanges, Gateways: n.Gateways, Aux: n.Aux, IPv6: n.IPv6,
		Internal: n.Internal, ICC: on(n.ICC), Masquerade: on(n.Masquerade), Mode: n.Mode, SNATAddrs: n.SNATAddrs, MTU: n.MTU,
		Bridge: n.Bridge, Labels: n.Labels,
	}
}

func (e EndpointConfig) request() (ConnectRequest, error) {
	r := ConnectRequest{
		Network: e.Network, NetNS: e.NetNS, Name: e.Name, IPs: e.IPs, IfName: e.IfName,
		Ports: e.Ports, Labels: e.Labels, NoDefaultRoute: e.NoDefaultRoute,
	}
	if r.Network == "" {
		r.Network = DefaultNetwork
	}
	for _, s := range e.From {
		r.From = append(r.From, s.Prefix)
	}
	var err error
	if e.MAC != "" {
		r.MAC, err = ParseMAC("endpoint "+e.Name, e.MAC)
	}
	return r, err
}

// applyConfig creates what c names and is not there, and with prune removes what
// it does not name. If it fails, what it created is removed again; what was
// pruned before stays removed.
func (h *Host) applyConfig(c *Config, prune bool) (changed bool, err error) {
	if h.o.DryRun {
		h.sayConfig(c)
		return true, nil
	}
	a := &configRun{h: h, work: work{h: h}}
	if prune {
		if err := a.prune(c); err != nil {
			return a.changed, err
		}
	}
	for _, n := range c.Networks {
		if err := a.network(n); err != nil {
			return false, a.work.undo(explain(err))
		}
	}
	for _, e := range c.Endpoints {
		if err := a.endpoint(e, prune); err != nil {
			return false, a.work.undo(explain(err))
		}
	}
	return a.changed, nil
}

// sayConfig is the dry run: what depends on what is not there yet cannot be
// checked.
func (h *Host) sayConfig(c *Config) {
	for _, n := range c.Networks {
		h.say("create network %q unless it is there", n.Name)
	}
	for _, e := range c.Endpoints {
		h.say("create endpoint %q in %s unless it is there, with ports %v", e.Name, e.NetNS, e.Ports)
	}
}

// configRun is one applyConfig at work. Each verb is a step.
type configRun struct {
	h       *Host
	work    work
	changed bool
}

func (a *configRun) did(undo func() error) {
	a.changed = true
	a.work.done = append(a.work.done, step{undo: undo})
}

func (a *configRun) prune(c *Config) error {
	endpoints, err := a.h.Endpoints("")
	if err != nil {
		return err
	}
	for _, e := range endpoints {
		if slices.ContainsFunc(c.Endpoints, func(o EndpointConfig) bool { return o.Name == e.Name }) {
			continue
		}
		a.changed = true
		if err := a.h.Disconnect(e.Name); err != nil {
			return err
		}
	}
	networks, err := a.h.Networks()
	if err != nil {
		return err
	}
	for _, n := range networks {
		named := slices.ContainsFunc(c.Networks, func(o NetworkConfig) bool { return o.Name == n.Name })
		if named || n.Name == DefaultNetwork || n.Endpoints > 0 { // with endpoints: the next loop says why
			continue
		}
		a.changed = true
		if err := a.h.RemoveNetwork(n.Name, false); err != nil {
			return err
		}
	}
	return nil
}

func (a *configRun) network(n NetworkConfig) error {
	have, err := a.h.Network(n.Name)
	switch {
	case err == nil:
		if len(n.Subnets) > 0 && !slices.Equal(n.Subnets, have.Subnets) {
			return conflict(quoted("network", n.Name), "exists with subnet %v, not %v", have.Subnets, n.Subnets).
				hint("remove the network first")
		}
		return nil
	case !errors.Is(err, ErrNotFound):
		return err
	}
	if _, err := a.h.CreateNetwork(n.request()); err != nil {
		return err
	}
	a.did(func() error { return a.h.RemoveNetwork(n.Name, true) })
	return nil
}

func (a *configRun) endpoint(e EndpointConfig, prune bool) error {
	r, err := e.request()
	if err != nil {
		return err
	}
	have, err := a.h.Endpoint(e.Name)
	switch {
	case err == nil && have.Network != r.Network:
		return conflict(quoted("endpoint", e.Name), "exists in network %q, not %q", have.Network, r.Network).
			hint("disconnect it first")
	case err == nil:
		return a.ports(r, prune)
	case !errors.Is(err, ErrNotFound):
		return err
	}
	if _, err := a.h.Connect(r); err != nil {
		return err
	}
	a.did(func() error { return a.h.Disconnect(e.Name) })
	return nil
}

// ports publishes what an endpoint that is there does not publish yet. A port with
// other sources is not the one that the file names.
func (a *configRun) ports(r ConnectRequest, prune bool) error {
	from, err := sources(quoted("endpoint", r.Name), r.From)
	if err != nil {
		return err
	}
	same := func(p *portRecord, s PortSpec) bool { return p.matches(s) && slices.Equal(p.From, from) }
	var have []*portRecord
	err = a.h.state.view(func(t *tx) (err error) {
		have, err = t.portsOf(r.Name)
		return err
	})
	if err != nil {
		return err
	}
	var missing []PortSpec
	for _, s := range r.Ports {
		if !slices.ContainsFunc(have, func(p *portRecord) bool { return same(p, s) }) {
			missing = append(missing, s)
		}
	}
	if prune {
		for _, p := range have {
			if slices.ContainsFunc(r.Ports, func(s PortSpec) bool { return same(p, s) }) {
				continue
			}
			a.changed = true
			if _, err := a.h.Unexpose(r.Name, []PortSpec{p.spec()}); err != nil {
				return err
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if _, err := a.h.Expose(r.Name, missing, r.From); err != nil {
		return err
	}
	a.did(func() error { _, err := a.h.Unexpose(r.Name, missing); return err })
	return nil
}

// spec is what publishes the same ports.
func (p *portRecord) spec() PortSpec {
	return PortSpec{
		HostIP: p.HostIP, HostPort: p.HostPort, HostEnd: p.hostEnd(),
		Port: p.Port, End: p.end(), Protocol: p.Protocol,
	}
}
