package network

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/ebnet/ebnet/loader"
)

func TestParsePortSpec(t *testing.T) {
	ip := netip.MustParseAddr
	for _, tt := range []struct {
		in   string
		want PortSpec
	}{
		{"80", PortSpec{Port: 80, End: 80, Protocol: loader.TCP}},
		{"80/tcp", PortSpec{Port: 80, End: 80, Protocol: loader.TCP}},
		{"53/udp", PortSpec{Port: 53, End: 53, Protocol: loader.UDP}},
		{"8080:80", PortSpec{HostPort: 8080, HostEnd: 8080, Port: 80, End: 80, Protocol: loader.TCP}},
		{"8080-8090:80", PortSpec{HostPort: 8080, HostEnd: 8090, Port: 80, End: 80, Protocol: loader.TCP}},
		{"1-65535:1-65535/udp", PortSpec{HostPort: 1, HostEnd: 65535, Port: 1, End: 65535, Protocol: loader.UDP}},
		{"8000-8010", PortSpec{Port: 8000, End: 8010, Protocol: loader.TCP}},
		{"0.0.0.0:80:80", PortSpec{HostIP: ip("0.0.0.0"), HostPort: 80, HostEnd: 80, Port: 80, End: 80, Protocol: loader.TCP}},
		{"192.0.2.1:80", PortSpec{HostIP: ip("192.0.2.1"), Port: 80, End: 80, Protocol: loader.TCP}},
		{"[2001:db8::1]:8080:80/udp", PortSpec{HostIP: ip("2001:db8::1"), HostPort: 8080, HostEnd: 8080, Port: 80, End: 80, Protocol: loader.UDP}},
		{"[::]:80", PortSpec{HostIP: ip("::"), Port: 80, End: 80, Protocol: loader.TCP}},
	} {
		got, err := ParsePortSpec(tt.in)
		if err != nil || got != tt.want {
			t.Errorf("ParsePortSpec(%q) = %+v, %v; want %+v", tt.in, got, err, tt.want)
		}
	}
}

func TestParsePortSpecRefuses(t *testing.T) {
	for _, tt := range []struct {
		in   string
		kind error
	}{
		{"", ErrInvalid},
		{":80", ErrInvalid},
		{"80:", ErrInvalid},
		{"::80", ErrInvalid},
		{"9090-9089:80", ErrInvalid},
		{"9090-:80", ErrInvalid},
		{"-9090:80", ErrInvalid},
		{"70000:80", ErrInvalid},
		{"65536", ErrInvalid},
		{"0:80", ErrInvalid},
		{"80:0", ErrInvalid},
		{"-1", ErrInvalid},
		{"+80", ErrInvalid},
		{" 80", ErrInvalid},
		{"080", ErrInvalid},
		{"http", ErrInvalid},
		{"80/icmp", ErrInvalid},
		{"80/", ErrInvalid},
		{"80/TCP", ErrInvalid},
		{"80/tcp/udp", ErrInvalid},
		{"8080:80-90", ErrInvalid},
		{"8080-8081:80-90", ErrInvalid},
		{"1-2-3:80", ErrInvalid},
		{"1.2.3:80:80", ErrInvalid},
		{"1.2.3.4", ErrInvalid},
		{"1.2.3.4::80", ErrInvalid},
		{"1.2.3.4:80:80:80", ErrInvalid},
		{"1.2.3.400:80:80", ErrInvalid},
		{"2001:db8::1:80:80", ErrInvalid},
		{"[2001:db8::1]80", ErrInvalid},
		{"[2001:db8::1:80", ErrInvalid},
		{"[1.2.3.4]:80:80", ErrInvalid},
		{"[::ffff:1.2.3.4]:80:80", ErrInvalid},
		{"[fe80::1%eth0]:80:80", ErrInvalid},
		{"٣٣", ErrInvalid},
		{"80/sctp", ErrUnsupported},
		{"8080:80/SCTP", ErrUnsupported},
	} {
		got, err := ParsePortSpec(tt.in)
		if !errors.Is(err, tt.kind) || got != (PortSpec{}) {
			t.Errorf("ParsePortSpec(%q) = %+v, %v; want %v", tt.in, got, err, tt.kind)
		}
	}
}

func FuzzParsePortSpec(f *testing.F) {
	for _, s := range []string{"80", "8080:80", "1-9:1-9/udp", "0.0.0.0:1:2", "[2001:db8::1]:1-9:2/tcp", "9090-9089:80", "[::]", "80/sctp", ":80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePortSpec(s)
		if err != nil {
			if code := ExitCode(err); code != 2 && code != 3 {
				t.Fatalf("%q: exit code %d", s, code)
			}
			return
		}
		if p.Port == 0 || p.End < p.Port || p.HostEnd < p.HostPort {
			t.Fatalf("%q parsed to %+v", s, p)
		}
		if n := p.hostCount(); n != 0 && n != p.Count() && p.Count() != 1 {
			t.Fatalf("%q parsed to %d host ports for %d", s, n, p.Count())
		}
		again, err := ParsePortSpec(p.String())
		if err != nil || again != p {
			t.Fatalf("%q parsed to %+v, whose string %q to %+v, %v", s, p, p, again, err)
		}
	})
}
