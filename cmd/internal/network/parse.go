package network

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
)

var nameRE = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$`)

// CheckName says whether name is a valid name of a what ("network", "endpoint").
// Returns ErrInvalid.
func CheckName(what, name string) error {
	if err := checkName(what, name); err != nil {
		return err
	}
	return nil
}

func checkName(what, name string) *Error {
	if !nameRE.MatchString(name) {
		return invalid(fmt.Sprintf("%s %q", what, name), "malformed name").
			hint("names are 1 to 63 of a-z A-Z 0-9 _ . - and start with a letter or digit")
	}
	return nil
}

// ParseAddr reads an address without prefix or zone. As in the other Parse
// functions, what names the flag in the error, which is ErrInvalid.
func ParseAddr(what, s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return netip.Addr{}, invalid(what, "%q is no address", s)
	case a.Zone() != "" || a.Is4In6():
		return netip.Addr{}, invalid(what, "%q is not a plain address", s)
	}
	return a, nil
}

// ParsePrefix reads a subnet, refusing one with host bits set.
func ParsePrefix(what, s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, invalid(what, "%q is no subnet", s).hint("write ADDRESS/LENGTH, e.g. 10.1.0.0/16")
	}
	if p != p.Masked() {
		return netip.Prefix{}, invalid(what, "%s has host bits set", s).hint("the subnet of that address is %s", p.Masked())
	}
	return p, nil
}

// ParseSource reads a subnet, or an address, which stands for itself alone.
func ParseSource(what, s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" && !a.Is4In6() {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return ParsePrefix(what, s)
}

// Source is a prefix that a file may give as an address too, see ParseSource.
type Source struct{ netip.Prefix }

// UnmarshalText is ParseSource.
func (s *Source) UnmarshalText(text []byte) (err error) {
	s.Prefix, err = ParseSource("source", string(text))
	return err
}

// ParseMAC reads a unicast Ethernet address that is not reserved.
func ParseMAC(what, s string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	if err != nil {
		return nil, invalid(what, "%q is no MAC address", s).hint("write six bytes, e.g. 02:00:5e:00:00:01")
	}
	if err := checkMAC(what, mac); err != nil {
		return nil, err
	}
	return mac, nil
}

// bridgeOUI starts the MAC addresses of bridges, endpointOUI those that
// endpoints get by default; the address follows.
var (
	bridgeOUI   = [2]byte{0x06, 0xeb}
	endpointOUI = [2]byte{0x02, 0xeb}
)

func checkMAC(what string, mac net.HardwareAddr) *Error {
	switch {
	case len(mac) != 6:
		return invalid(what, "%s is not 6 bytes long", mac)
	case mac[0]&1 != 0:
		return invalid(what, "%s is a multicast address", mac)
	case mac.String() == "00:00:00:00:00:00":
		return invalid(what, "the address is zero")
	case [2]byte(mac[:2]) == bridgeOUI:
		return invalid(what, "%s is reserved: 06:eb starts the addresses of bridges", mac)
	}
	return nil
}

func defaultMAC(oui [2]byte, ip netip.Addr) net.HardwareAddr {
	b := ip.As16()
	return append(net.HardwareAddr{oui[0], oui[1]}, b[12:]...)
}

// ParseLabels reads K=V pairs; a key given twice is an error.
func ParseLabels(what string, kvs []string) (map[string]string, error) {
	labels := make(map[string]string, len(kvs))
	for _, kv := range kvs {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return nil, invalid(what, "%q is not KEY=VALUE", kv)
		}
		if _, twice := labels[k]; twice {
			return nil, invalid(what, "%q is given twice", k)
		}
		labels[k] = v
	}
	return labels, nil
}

// ParseAux reads NAME=IP pairs; a name given twice is an error.
func ParseAux(what string, kvs []string) (map[string]netip.Addr, error) {
	pairs, err := ParseLabels(what, kvs)
	if err != nil {
		return nil, err
	}
	aux := make(map[string]netip.Addr, len(pairs))
	for name, s := range pairs {
		if err := CheckName(what, name); err != nil {
			return nil, err
		}
		if aux[name], err = ParseAddr(what, s); err != nil {
			return nil, err
		}
	}
	return aux, nil
}
