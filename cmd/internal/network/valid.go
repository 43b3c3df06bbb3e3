package network

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ebnet/ebnet/loader"
	"github.com/ebnet/ebnet/loader/netdev"
)

// A record is refused where it is read if it says what no ebnet can have written: names end up in
// paths and netlink messages, slots and ids in arrays of the datapath.

func (s status) valid() error {
	if s != applied && s != pending && s != removing {
		return fmt.Errorf("status %q", s)
	}
	return nil
}

// wrongUnless returns an error of these words if ok is false.
func wrongUnless(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format, args...)
}

// first returns the first error.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (n *networkRecord) valid() error {
	if err := first(
		wrongUnless(nameRE.MatchString(n.Name), "name %q", n.Name),
		wrongUnless(n.ID > 0 && n.ID < loader.MaxNetworks, "id %d", n.ID),
		wrongUnless(len(n.Subnets) == 1 && len(n.Gateways) == 1 && len(n.IPRanges) <= 1, "%d subnets, %d gateways", len(n.Subnets), len(n.Gateways)),
		netdev.CheckName(n.Bridge),
		wrongUnless(n.MTU >= 68 && n.MTU <= 65535, "MTU %d", n.MTU),
		wrongUnless(n.Mode == ModeNAT || n.Mode == ModeRouted, "mode %q", n.Mode),
		wrongUnless(!n.SNAT.IsValid() || n.SNAT.Is4(), "SNAT address %s", n.SNAT),
		n.Status.valid(),
	); err != nil {
		return err
	}
	subnet, gateway := n.Subnets[0], n.Gateways[0]
	return first(
		wrongUnless(subnet.IsValid() && subnet.Addr().Is4() && subnet == subnet.Masked(), "subnet %s", subnet),
		wrongUnless(subnet.Contains(gateway), "gateway %s", gateway),
	)
}

func (e *endpointRecord) valid() error {
	mac, err := net.ParseMAC(e.MAC)
	return first(
		wrongUnless(nameRE.MatchString(e.Name), "name %q", e.Name),
		wrongUnless(nameRE.MatchString(e.Network), "network %q", e.Network),
		wrongUnless(e.Slot > 0 && e.Slot < loader.MaxSlots, "slot %d", e.Slot),
		wrongUnless(e.IP.Is4(), "address %s", e.IP),
		wrongUnless(err == nil && len(mac) == 6 && mac[0]&1 == 0, "MAC address %q", e.MAC),
		netdev.CheckName(e.IfName),
		netdev.CheckName(e.HostIfName),
		wrongUnless(e.Ifindex >= 0, "interface index %d", e.Ifindex),
		wrongUnless(filepath.IsAbs(e.NSPath) && filepath.Clean(e.NSPath) == e.NSPath && !strings.ContainsRune(e.NSPath, 0),
			"path %q of its namespace", e.NSPath),
		e.Status.valid(),
	)
}

func (p *portRecord) valid() error {
	fits := func(first uint16) bool { return first > 0 && p.Count > 0 && int(first)+p.Count <= 1<<16 }
	for _, from := range p.From {
		if !from.IsValid() || !from.Addr().Is4() {
			return fmt.Errorf("source %s", from)
		}
	}
	return first(
		wrongUnless(nameRE.MatchString(p.Endpoint), "endpoint %q", p.Endpoint),
		wrongUnless(p.Slot > 0 && p.Slot < loader.MaxSlots, "slot %d", p.Slot),
		wrongUnless(p.Protocol == loader.TCP || p.Protocol == loader.UDP, "protocol %d", p.Protocol),
		wrongUnless(!p.HostIP.IsValid() || p.HostIP.Is4(), "host address %s", p.HostIP),
		wrongUnless(fits(p.HostPort) && fits(p.Port), "ports %d and %d, %d of them", p.HostPort, p.Port, p.Count),
		wrongUnless(!p.Direct || p.HostIP.IsValid(), "a direct port without an address"),
		p.Status.valid(),
	)
}

func (h *hostRecord) valid() error {
	for _, name := range slices.Concat(h.Uplinks, h.Sides) {
		if err := netdev.CheckName(name); err != nil {
			return err
		}
	}
	return first(
		wrongUnless(h.MaxFlows >= 0, "max_flows %d", h.MaxFlows),
		wrongUnless(!strings.ContainsRune(h.Cgroup, 0), "cgroup %q", h.Cgroup),
	)
}

// inconsistencies says where records do not go together. Each is one that other records deny, which
// takes a damaged file, a bug or a forged state.
func (t *tx) inconsistencies() ([]string, error) {
	c := &consistency{t: t, slots: map[uint32]string{}, used: map[string]uint64{}}
	for _, check := range []func() error{c.networks, c.endpoints, c.ports, c.indexes} {
		if err := check(); err != nil {
			return nil, err
		}
	}
	if _, err := t.host(); err != nil {
		return nil, err
	}
	_, err := t.reservedPorts()
	return c.wrong, err
}

type consistency struct {
	t     *tx
	slots map[uint32]string // owners by what they say themselves
	used  map[string]uint64 // addresses of endpoints, by network
	wrong []string
}

func (c *consistency) unless(ok bool, format string, args ...any) {
	if !ok {
		c.wrong = append(c.wrong, fmt.Sprintf(format, args...))
	}
}

// has reports whether the bucket has the key with this value.
func (c *consistency) has(bucket, key []byte, value string) bool {
	v := c.t.Bucket(bucket).Get(key)
	return v != nil && string(v) == value
}

func (c *consistency) networks() error {
	networks, err := list[networkRecord](c.t, networksBucket)
	for _, n := range networks {
		c.unless(c.t.Bucket(networksBucket).Get([]byte(n.Name)) != nil, "network %q is recorded under another name", n.Name)
		c.unless(c.has(networkIDs, numberKey(n.ID), n.Name), "network %q: its id %d is another's", n.Name, n.ID)
		c.used[n.Name] = 0
	}
	return err
}

func (c *consistency) endpoints() error {
	endpoints, err := list[endpointRecord](c.t, endpointsBucket)
	if err != nil {
		return err
	}
	for _, e := range endpoints {
		c.unless(c.t.Bucket(endpointsBucket).Get([]byte(e.Name)) != nil, "endpoint %q is recorded under another name", e.Name)
		n, err := get[networkRecord](c.t, networksBucket, []byte(e.Network))
		if err != nil {
			return err
		}
		if n == nil {
			c.unless(false, "endpoint %q: there is no network %q", e.Name, e.Network)
			continue
		}
		pool, err := c.t.pool(n)
		if err != nil {
			return err
		}
		leased, err := pool.Leased(e.IP)
		if err != nil {
			c.unless(false, "endpoint %q: %v", e.Name, err)
			continue
		}
		c.unless(leased, "endpoint %q: its address %s is free", e.Name, e.IP)
		c.own(e.Slot, e.Name, quoted("endpoint", e.Name))
		c.unless(c.has(ifnamesBucket, ifnameKey(e), e.Name), "endpoint %q: its interface %s is another's", e.Name, e.IfName)
		c.unless(c.has(membersBucket, []byte(e.Network+"\x00"+e.Name), ""), "endpoint %q is no member of network %q", e.Name, e.Network)
		c.used[e.Network]++
	}
	for _, name := range slices.Sorted(maps.Keys(c.used)) {
		n, err := c.t.network(name)
		if err != nil {
			return err
		}
		pool, err := c.t.pool(n)
		if err != nil {
			return err
		}
		c.unless(pool.Used() == c.used[name], "network %q: %d addresses are leased to %d endpoints", name, pool.Used(), c.used[name])
	}
	return nil
}

// own notes who has a slot.
func (c *consistency) own(slot uint32, endpoint, what string) {
	c.unless(c.has(slotsBucket, numberKey(slot), endpoint), "%s: its slot %d is another's", what, slot)
	c.unless(c.slots[slot] == "", "%s: its slot %d is that of %s", what, slot, c.slots[slot])
	c.slots[slot] = what
}

func (c *consistency) ports() error {
	return c.t.Bucket(portsBucket).ForEach(func(k, b []byte) error {
		p, err := decode[portRecord](portsBucket, k, b)
		if err != nil {
			return err
		}
		what := fmt.Sprintf("port %s/%s of %q", p.hostAddr(), protocolName(p.Protocol), p.Endpoint)
		key := p.key()
		c.unless(string(key[:]) == string(k), "%s is recorded under another key", what)
		c.unless(c.t.Bucket(endpointsBucket).Get([]byte(p.Endpoint)) != nil, "%s: there is no such endpoint", what)
		c.unless(c.has(portsOfBucket, append([]byte(p.Endpoint+"\x00"), k...), ""), "%s is not among those of its endpoint", what)
		c.own(p.Slot, p.Endpoint, what)
		return nil
	})
}

// indexes looks for entries about what is not there.
func (c *consistency) indexes() error {
	entries := func(bucket []byte, describe string, there func(k, v []byte) bool) error {
		return c.t.Bucket(bucket).ForEach(func(k, v []byte) error {
			c.unless(there(k, v), "%s %q of %q: there is no such thing", describe, k, v)
			return nil
		})
	}
	name := func(bucket, name []byte) bool { return len(name) > 0 && c.t.Bucket(bucket).Get(name) != nil }
	second := func(k []byte) []byte {
		_, after, _ := strings.Cut(string(k), "\x00")
		return []byte(after)
	}
	return first(
		entries(networkIDs, "network id", func(_, v []byte) bool { return name(networksBucket, v) }),
		entries(ifnamesBucket, "interface", func(_, v []byte) bool { return name(endpointsBucket, v) }),
		entries(membersBucket, "member", func(k, _ []byte) bool { return name(endpointsBucket, second(k)) }),
		entries(portsOfBucket, "port", func(k, _ []byte) bool { return name(portsBucket, second(k)) }),
		entries(ipamBucket, "addresses", func(k, _ []byte) bool { return name(networksBucket, k) }),
		entries(slotsBucket, "slot", func(k, _ []byte) bool {
			return len(k) == 4 && c.slots[slotNumber(k)] != ""
		}),
	)
}

// unmarshal is json.Unmarshal, and what the record itself says is wrong with it.
func unmarshal(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return err
	}
	if r, ok := v.(interface{ valid() error }); ok {
		return r.valid()
	}
	return nil
}
