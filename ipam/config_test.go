package ipam

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

type aux = map[string]string

var validateTests = []struct {
	subnet, rng, gateway string
	aux                  aux
	want                 string // part of the error; empty: valid
}{
	{"10.0.0.0/24", "", "10.0.0.1", aux{"a": "10.0.0.2", "b": "10.0.0.3"}, ""},
	{"10.0.0.0/24", "10.0.0.128/25", "10.0.0.1", nil, ""},
	{"10.0.0.0/24", "10.0.0.0/24", "", nil, ""},
	{"10.0.0.0/24", "10.0.0.7/32", "", nil, ""},
	{"10.0.0.0/8", "", "10.255.255.254", nil, ""},
	{"10.0.0.0/31", "", "10.0.0.0", nil, ""},
	{"10.0.0.0/31", "", "10.0.0.1", nil, ""},
	{"fd00::/64", "fd00::1:0/112", "fd00::1", nil, ""},
	{"fd00::/127", "", "fd00::", nil, ""},
	{"fd00::/64", "", "fd00::ffff:ffff:ffff:ffff", nil, ""},

	{"", "", "", nil, "subnet: not valid: there is none"},
	{"10.0.0.1/24", "", "", nil, "host bits are set, the subnet is 10.0.0.0/24"},
	{"10.0.0.0/32", "", "", nil, "single address"},
	{"fd00::/128", "", "", nil, "single address"},
	{"fd00::/63", "", "", nil, "/64 or smaller"},
	{"0.0.0.0/0", "", "", nil, "0.0.0.0/8"},
	{"127.1.0.0/16", "", "", nil, "loopback"},
	{"224.0.0.0/24", "", "", nil, "multicast"},
	{"255.255.255.0/24", "", "", nil, "limited broadcast"},
	{"ff02::/64", "", "", nil, "multicast"},
	{"fe80::/64", "", "", nil, "link-local"},
	{"::/64", "", "", nil, "loopback"},
	{"10.0.0.0/24", "10.0.1.0/25", "", nil, "range 10.0.1.0/25: not valid: outside subnet 10.0.0.0/24"},
	{"10.0.0.0/24", "10.0.0.0/23", "", nil, "outside subnet"},
	{"10.0.0.0/24", "10.0.0.9/25", "", nil, "host bits are set, the range is 10.0.0.0/25"},
	{"10.0.0.0/24", "fd00::/120", "", nil, "outside subnet"},
	{"10.0.0.0/24", "", "10.0.1.1", nil, "gateway 10.0.1.1: not valid: outside subnet 10.0.0.0/24"},
	{"10.0.0.0/24", "", "10.0.0.0", nil, "it is the network address"},
	{"10.0.0.0/24", "", "10.0.0.255", nil, "it is the broadcast address"},
	{"10.0.0.0/24", "", "::ffff:10.0.0.1", nil, "outside subnet"},
	{"10.0.0.0/24", "", "fd00::1", nil, "outside subnet"},
	{"fd00::/64", "", "fd00::", nil, "subnet-router anycast"},
	{"fd00::/64", "", "fd00::1%eth0", nil, "outside subnet"},
	{"10.0.0.0/24", "", "10.0.0.1", aux{"r": "10.0.0.1"}, "auxiliary address r: not valid: 10.0.0.1 is the gateway already"},
	{"10.0.0.0/24", "", "10.0.0.1", aux{"r": "10.0.0.2", "s": "10.0.0.2"}, "10.0.0.2 is auxiliary address r already"},
	{"10.0.0.0/24", "", "10.0.0.1", aux{"r": "10.0.1.2"}, "auxiliary address r 10.0.1.2: not valid: outside subnet"},
	{"10.0.0.0/24", "", "10.0.0.1", aux{"r": "10.0.0.255"}, "it is the broadcast address"},
}

func TestValidate(t *testing.T) {
	for _, tc := range validateTests {
		var c Config
		if tc.subnet != "" {
			c.Subnet = netip.MustParsePrefix(tc.subnet)
		}
		if tc.rng != "" {
			c.Range = netip.MustParsePrefix(tc.rng)
		}
		if tc.gateway != "" {
			c.Gateway = netip.MustParseAddr(tc.gateway)
		}
		for name, a := range tc.aux {
			if c.Reserved == nil {
				c.Reserved = map[string]netip.Addr{}
			}
			c.Reserved[name] = netip.MustParseAddr(a)
		}
		err := c.Validate()
		if tc.want == "" {
			if err != nil {
				t.Errorf("%+v: %v", tc, err)
			}
			continue
		}
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: error %v, want %q", tc, err, tc.want)
		}
		if p, err := Open(c, NewMemStore()); p != nil || !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: opened, error %v", tc, err)
		}
	}
}

func TestValidateInvalidPrefixes(t *testing.T) {
	a := netip.MustParseAddr("10.0.0.0")
	wantError(t, Config{Subnet: netip.PrefixFrom(a, 33)}.Validate(), ErrInvalid, "")
	wantError(t, Config{Subnet: netip.PrefixFrom(a, 24), Range: netip.PrefixFrom(a, 40)}.Validate(), ErrInvalid, "")
	mapped := netip.PrefixFrom(netip.MustParseAddr("::ffff:10.0.0.0"), 120)
	wantError(t, Config{Subnet: mapped}.Validate(), ErrInvalid, "")
}

func TestDefaultGateway(t *testing.T) {
	for _, tc := range []struct{ subnet, rng, want string }{
		{"10.0.0.0/24", "", "10.0.0.1"},
		{"10.0.0.0/8", "", "10.0.0.1"},
		{"10.0.0.0/24", "10.0.0.0/25", "10.0.0.1"},
		{"10.0.0.0/24", "10.0.0.128/25", "10.0.0.128"},
		{"10.0.0.0/24", "10.0.0.254/31", "10.0.0.254"},
		{"10.0.0.0/30", "", "10.0.0.1"},
		{"10.0.0.0/31", "", "10.0.0.0"},
		{"10.0.0.0/31", "10.0.0.1/32", "10.0.0.1"},
		{"fd00::/64", "", "fd00::1"},
		{"fd00::/64", "fd00::a:0/112", "fd00::a:0"},
		{"fd00::/127", "", "fd00::"},
		{"10.0.0.0/24", "10.0.0.0/32", ""},
		{"10.0.0.0/24", "10.0.0.255/32", ""},
		{"10.0.0.0/32", "", ""},
		{"10.0.0.0/24", "10.1.0.0/25", ""},
	} {
		var rng netip.Prefix
		if tc.rng != "" {
			rng = netip.MustParsePrefix(tc.rng)
		}
		a, err := DefaultGateway(netip.MustParsePrefix(tc.subnet), rng)
		if tc.want == "" {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%+v: %v, error %v", tc, a, err)
			}
		} else if err != nil || a != netip.MustParseAddr(tc.want) {
			t.Errorf("%+v: %v, error %v", tc, a, err)
		}
	}
}
