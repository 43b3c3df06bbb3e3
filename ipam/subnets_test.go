package ipam

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

func prefixes(s ...string) (ps []netip.Prefix) {
	for _, p := range s {
		ps = append(ps, netip.MustParsePrefix(p))
	}
	return ps
}

func TestSubnets(t *testing.T) {
	for _, tc := range []struct {
		used []string
		want string
	}{
		{nil, "172.18.0.0/16"},
		{[]string{"172.17.0.0/16"}, "172.18.0.0/16"},
		{[]string{"172.18.0.0/16"}, "172.19.0.0/16"},
		{[]string{"172.18.7.9/32"}, "172.19.0.0/16"},
		{[]string{"172.20.0.0/16", "172.18.0.0/15"}, "172.21.0.0/16"},
		{[]string{"172.16.0.0/12"}, "192.168.0.0/20"},
		{[]string{"172.16.0.0/12", "192.168.0.1/32", "192.168.17.0/24"}, "192.168.32.0/20"},
		{[]string{"172.18.255.1/24"}, "172.19.0.0/16"}, // host bits do not matter
		{[]string{"0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "::/0", "2000::/3", "fd00::/8"}, "172.18.0.0/16"},
	} {
		got, err := Subnets(DefaultPools(), prefixes(tc.used...))
		if err != nil || got != netip.MustParsePrefix(tc.want) {
			t.Errorf("used %v: %v, error %v, want %s", tc.used, got, err, tc.want)
		}
	}
	got, err := Subnets(DefaultPools(), append(prefixes("172.18.0.0/16"), netip.Prefix{}))
	if err != nil || got != netip.MustParsePrefix("172.19.0.0/16") {
		t.Errorf("with an invalid prefix: %v, error %v", got, err)
	}
}

func TestSubnetsUntilExhausted(t *testing.T) {
	var used []netip.Prefix
	for {
		s, err := Subnets(DefaultPools(), used)
		if err != nil {
			wantError(t, err, ErrExhausted,
				"default address pools: exhausted: every subnet overlaps a network, a route or a resolver")
			break
		}
		if o, ok := Overlaps(s, used); ok {
			t.Fatalf("%s overlaps %s", s, o)
		}
		used = append(used, s)
	}
	if len(used) != 14+16 || used[0].String() != "172.18.0.0/16" || used[13].String() != "172.31.0.0/16" ||
		used[14].String() != "192.168.0.0/20" || used[29].String() != "192.168.240.0/20" {
		t.Errorf("default subnets: %v", used)
	}
}

func TestSubnetsOfHugePool(t *testing.T) {
	pools := []Predefined{{netip.MustParsePrefix("fd00::/8"), 64}}
	got, err := Subnets(pools, prefixes("fd00::/9", "fd80::/64", "fd80:0:0:1::5/128"))
	if err != nil || got != netip.MustParsePrefix("fd80:0:0:2::/64") {
		t.Errorf("%v, error %v", got, err)
	}
	_, err = Subnets(pools, prefixes("fc00::/7"))
	wantError(t, err, ErrExhausted, "")
	end := []Predefined{{netip.MustParsePrefix("fbff:ffff::/32"), 64}}
	_, err = Subnets(end, prefixes("fbff:ffff::/32"))
	wantError(t, err, ErrExhausted, "")
}

func TestSubnetsOfBadPool(t *testing.T) {
	for _, p := range []Predefined{
		{},
		{netip.MustParsePrefix("10.0.0.0/8"), 7},
		{netip.MustParsePrefix("10.0.0.0/8"), 32},
		{netip.MustParsePrefix("10.0.0.0/8"), 33},
		{netip.MustParsePrefix("10.0.0.1/8"), 24},
		{netip.MustParsePrefix("126.0.0.0/7"), 24},
		{netip.MustParsePrefix("fd00::/48"), 56},
	} {
		_, err := Subnets([]Predefined{p}, nil)
		wantError(t, err, ErrInvalid, "")
	}
}

// TestSubnetsIsFirst compares with trying every subnet in turn.
func TestSubnetsIsFirst(t *testing.T) {
	pools := []Predefined{
		{netip.MustParsePrefix("10.0.0.0/26"), 29},
		{netip.MustParsePrefix("10.0.1.0/27"), 30},
	}
	rapid.Check(t, func(t *rapid.T) {
		var used []netip.Prefix
		for range rapid.IntRange(0, 12).Draw(t, "n") {
			a := address(netip.MustParseAddr("10.0.0.0"), rapid.Uint64Range(0, 299).Draw(t, "offset"))
			used = append(used, netip.PrefixFrom(a, rapid.IntRange(26, 32).Draw(t, "bits")))
		}
		var want netip.Prefix
	search:
		for _, p := range pools {
			for a := p.Base.Addr(); p.Base.Contains(a); a = lastAddr(netip.PrefixFrom(a, p.Bits)).Next() {
				s := netip.PrefixFrom(a, p.Bits)
				if _, ok := Overlaps(s, used); !ok {
					want = s
					break search
				}
			}
		}
		got, err := Subnets(pools, used)
		if got != want || (err == nil) != want.IsValid() {
			t.Fatalf("used %v: %v, error %v, want %v", used, got, err, want)
		}
	})
}

func TestOverlaps(t *testing.T) {
	others := prefixes("10.0.0.0/24", "10.1.0.0/16", "fd00::/64")
	for _, tc := range []struct{ a, want string }{
		{"10.0.0.128/25", "10.0.0.0/24"},
		{"10.0.0.0/8", "10.0.0.0/24"},
		{"10.1.2.0/24", "10.1.0.0/16"},
		{"fd00::1/128", "fd00::/64"},
		{"10.0.1.0/24", ""},
		{"fd00:0:0:1::/64", ""},
	} {
		got, ok := Overlaps(netip.MustParsePrefix(tc.a), others)
		if ok != (tc.want != "") || ok && got.String() != tc.want {
			t.Errorf("%s: %v %v, want %s", tc.a, got, ok, tc.want)
		}
	}
}
