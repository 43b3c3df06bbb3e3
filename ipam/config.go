package ipam

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
)

// Config says which addresses a pool has and which of them it may give.
type Config struct {
	// Subnet has its host bits zero. IPv4: up to /31; IPv6: /64 to /127.
	Subnet netip.Prefix

	// Range is the part of Subnet that Acquire draws from; the zero value
	// means all of it.
	Range netip.Prefix

	// Gateway is never leased. The zero value means that there is none.
	Gateway netip.Addr

	// Reserved are the auxiliary addresses by name; they are never leased.
	Reserved map[string]netip.Addr
}

// Blocks whose addresses cannot be those of endpoints.
var unusable = []struct {
	prefix netip.Prefix
	why    string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "means \"this network\" (RFC 1122)"},
	{netip.MustParsePrefix("127.0.0.0/8"), "is loopback"},
	{netip.MustParsePrefix("224.0.0.0/4"), "is multicast"},
	{netip.MustParsePrefix("255.255.255.255/32"), "is the limited broadcast address"},
	{netip.MustParsePrefix("::/127"), "is unspecified and loopback"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "maps IPv4"},
	{netip.MustParsePrefix("fe80::/10"), "is link-local"},
	{netip.MustParsePrefix("ff00::/8"), "is multicast"},
}

// Validate reports the first thing that is wrong with c, as an ErrInvalid: a
// subnet or range with host bits, a subnet with fewer than two addresses or
// (IPv6) more than 2^64, or of a block no endpoint can use; a range, gateway
// or auxiliary address outside the subnet; a gateway or auxiliary address that
// is the network's or broadcast address, or used twice.
func (c Config) Validate() error {
	if err := checkSubnet(c.Subnet); err != nil {
		return err
	}
	if err := checkRange(c.Subnet, c.Range); err != nil {
		return err
	}
	taken := map[netip.Addr]string{}
	if c.Gateway != (netip.Addr{}) {
		if err := checkMember(c.Subnet, "gateway", c.Gateway); err != nil {
			return err
		}
		taken[c.Gateway] = "the gateway"
	}
	for _, name := range slices.Sorted(maps.Keys(c.Reserved)) {
		a, what := c.Reserved[name], "auxiliary address "+name
		if err := checkMember(c.Subnet, what, a); err != nil {
			return err
		}
		if by, ok := taken[a]; ok {
			return fmt.Errorf("%s: %w: %s is %s already", what, ErrInvalid, a, by)
		}
		taken[a] = what
	}
	return nil
}

func checkSubnet(s netip.Prefix) error {
	switch {
	case !s.IsValid():
		return fmt.Errorf("subnet: %w: there is none", ErrInvalid)
	case s != s.Masked():
		return fmt.Errorf("subnet %s: %w: host bits are set, the subnet is %s", s, ErrInvalid, s.Masked())
	case s.IsSingleIP():
		return fmt.Errorf("subnet %s: %w: it is a single address", s, ErrInvalid)
	}
	if hostBits(s) > 64 {
		return fmt.Errorf("subnet %s: %w: an IPv6 subnet is a /64 or smaller", s, ErrInvalid)
	}
	return checkUsable(s)
}

func checkUsable(s netip.Prefix) error {
	for _, u := range unusable {
		if s.Overlaps(u.prefix) {
			return fmt.Errorf("subnet %s: %w: %s %s", s, ErrInvalid, u.prefix, u.why)
		}
	}
	return nil
}

func checkRange(s, r netip.Prefix) error {
	switch {
	case r == (netip.Prefix{}):
		return nil
	case !r.IsValid():
		return fmt.Errorf("range: %w: no such prefix", ErrInvalid)
	case r != r.Masked():
		return fmt.Errorf("range %s: %w: host bits are set, the range is %s", r, ErrInvalid, r.Masked())
	case r.Bits() < s.Bits() || !s.Contains(r.Addr()):
		return fmt.Errorf("range %s: %w: outside subnet %s", r, ErrInvalid, s)
	}
	return nil
}

func checkMember(s netip.Prefix, what string, a netip.Addr) error {
	if !s.Contains(a) {
		return fmt.Errorf("%s %s: %w: outside subnet %s", what, a, ErrInvalid, s)
	}
	for _, r := range structural(s) {
		if a == r.addr {
			return fmt.Errorf("%s %s: %w: it is %s", what, a, ErrInvalid, r.why)
		}
	}
	return nil
}

// DefaultGateway returns the first usable address of rng, or of subnet if rng
// is zero. A range of one address has none left for endpoints then. Auxiliary
// addresses are not known here: Validate refuses one that is the gateway.
//
// In a /31 or /127, which has no network and broadcast address, it is the lower
// of the two, and one is left for an endpoint. A network that needs no gateway
// leaves Config.Gateway zero and has both.
//
// Returns an ErrInvalid for a bad subnet or range, and for a range that
// consists of the network or broadcast address alone.
func DefaultGateway(subnet, rng netip.Prefix) (netip.Addr, error) {
	c := Config{Subnet: subnet, Range: rng}
	if err := c.Validate(); err != nil {
		return netip.Addr{}, err
	}
	w := c.window()
	a := w.Addr()
	if checkMember(subnet, "", a) != nil {
		a = a.Next()
	}
	if !w.Contains(a) || checkMember(subnet, "", a) != nil {
		return netip.Addr{}, fmt.Errorf("range %s: %w: no usable address for a gateway", w, ErrInvalid)
	}
	return a, nil
}

// window is the range in effect.
func (c Config) window() netip.Prefix {
	if c.Range == (netip.Prefix{}) {
		return c.Subnet
	}
	return c.Range
}

type reservation struct {
	addr netip.Addr
	why  string
}

// structural lists what a subnet's own form reserves. A /31 (RFC 3021) and a
// /127 (RFC 6164) reserve nothing; IPv6 has no broadcast, and its first address
// is every router's (RFC 4291 section 2.6.1).
func structural(s netip.Prefix) []reservation {
	switch {
	case hostBits(s) <= 1:
		return nil
	case s.Addr().Is6():
		return []reservation{{s.Addr(), "the subnet-router anycast address"}}
	}
	return []reservation{{s.Addr(), "the network address"}, {lastAddr(s), "the broadcast address"}}
}

// reservations lists every address of the subnet that is never leased. c is valid.
func (c Config) reservations() []reservation {
	all := structural(c.Subnet)
	if c.Gateway != (netip.Addr{}) {
		all = append(all, reservation{c.Gateway, "the gateway"})
	}
	for name, a := range c.Reserved {
		all = append(all, reservation{a, "auxiliary address " + name})
	}
	return all
}

// fingerprint tells the stored leases of one configuration from those of
// another: FNV-1a over everything that decides which address may be given.
func (c Config) fingerprint() uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s %s %s", c.Subnet, c.window(), c.Gateway)
	for _, a := range slices.SortedFunc(maps.Values(c.Reserved), netip.Addr.Compare) {
		fmt.Fprintf(h, " %s", a)
	}
	return h.Sum64()
}

func hostBits(p netip.Prefix) int { return p.Addr().BitLen() - p.Bits() }

// lastAddr returns the highest address of p.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// offset returns how far a lies above base; both are of one subnet, which has
// at most 2^64 addresses, so the low halves suffice.
func offset(base, a netip.Addr) uint64 { return low64(a) - low64(base) }

// address is the inverse of offset.
func address(base netip.Addr, off uint64) netip.Addr {
	b := base.As16()
	binary.BigEndian.PutUint64(b[8:], low64(base)+off)
	a := netip.AddrFrom16(b)
	if base.Is4() {
		return a.Unmap()
	}
	return a
}

func low64(a netip.Addr) uint64 {
	b := a.As16()
	return binary.BigEndian.Uint64(b[8:])
}
