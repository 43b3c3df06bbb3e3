package ipam

import (
	"fmt"
	"net/netip"
)

// Predefined is a block from which subnets of one size are cut, lowest first.
type Predefined struct {
	Base netip.Prefix // host bits zero
	Bits int          // prefix length of the subnets: at least Base's
}

// DefaultPools returns 172.18.0.0/16 to 172.31.0.0/16, then 192.168.0.0/20 to
// 192.168.240.0/20.
func DefaultPools() []Predefined {
	return []Predefined{
		{netip.MustParsePrefix("172.18.0.0/15"), 16},
		{netip.MustParsePrefix("172.20.0.0/14"), 16},
		{netip.MustParsePrefix("172.24.0.0/13"), 16},
		{netip.MustParsePrefix("192.168.0.0/16"), 20},
	}
}

// Subnets returns the first subnet of pools that overlaps none of used: other
// networks, the host's routes, its resolvers as single addresses.
//
// A default route covers every subnet and forbids none, nor do the two to eight
// routes that tunnels put in its place: prefixes up to /2 (IPv6: /3) in used
// are passed over.
//
// Returns ErrExhausted if none is free, ErrInvalid for a pool whose subnets
// cannot be those of a network.
func Subnets(pools []Predefined, used []netip.Prefix) (netip.Prefix, error) {
	var block []netip.Prefix
	for _, u := range used {
		if u.IsValid() && !isDefaultRoute(u) {
			block = append(block, u.Masked())
		}
	}
	for _, p := range pools {
		if err := p.validate(); err != nil {
			return netip.Prefix{}, err
		}
		if s, ok := p.firstFree(block); ok {
			return s, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("default address pools: %w: every subnet overlaps a network, a route or a resolver", ErrExhausted)
}

// Overlaps returns the first of others that shares an address with a.
func Overlaps(a netip.Prefix, others []netip.Prefix) (netip.Prefix, bool) {
	for _, o := range others {
		if a.Overlaps(o) {
			return o, true
		}
	}
	return netip.Prefix{}, false
}

func isDefaultRoute(p netip.Prefix) bool {
	if p.Addr().Is4() {
		return p.Bits() <= 2
	}
	return p.Bits() <= 3
}

func (p Predefined) validate() error {
	if !p.Base.IsValid() || p.Base != p.Base.Masked() || p.Bits < p.Base.Bits() {
		return fmt.Errorf("default address pool %s, size /%d: %w", p.Base, p.Bits, ErrInvalid)
	}
	if err := checkSubnet(netip.PrefixFrom(p.Base.Addr(), p.Bits)); err != nil {
		return fmt.Errorf("default address pool %s: %w", p.Base, err)
	}
	return checkUsable(p.Base)
}

// firstFree returns the first subnet of p that overlaps none of used. Whatever
// stands in the way is left behind for good, so there are at most len(used)
// rounds, however many subnets p has.
func (p Predefined) firstFree(used []netip.Prefix) (netip.Prefix, bool) {
	for a := p.Base.Addr(); p.Base.Contains(a); {
		s := netip.PrefixFrom(a, p.Bits)
		u, taken := Overlaps(s, used)
		if !taken {
			return s, true
		}
		if u.Bits() > s.Bits() {
			u = s
		}
		a = lastAddr(u).Next()
	}
	return netip.Prefix{}, false
}
