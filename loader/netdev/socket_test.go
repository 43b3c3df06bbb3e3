package netdev

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCollides(t *testing.T) {
	for _, test := range []struct {
		own    string
		v6only bool
		want   string // "" is the zero address
		expect bool
	}{
		{"0.0.0.0", false, "", true},
		{"0.0.0.0", false, "10.0.0.1", true},
		{"0.0.0.0", false, "::", false},
		{"10.0.0.1", false, "0.0.0.0", true},
		{"10.0.0.1", false, "10.0.0.1", true},
		{"10.0.0.1", false, "10.0.0.2", false},
		{"127.0.0.1", false, "", true},
		{"::", false, "0.0.0.0", true},
		{"::", false, "10.0.0.1", true},
		{"::", true, "10.0.0.1", false},
		{"::", true, "0.0.0.0", false},
		{"::", true, "", true},
		{"::1", false, "0.0.0.0", false},
		{"::1", false, "::", true},
		{"::ffff:10.0.0.1", false, "10.0.0.1", true},
		{"::ffff:10.0.0.1", false, "10.0.0.2", false},
		{"::ffff:0.0.0.0", false, "10.0.0.2", true},
	} {
		s := socket{addr: netip.MustParseAddr(test.own), v6only: test.v6only}
		var want netip.Addr
		if test.want != "" {
			want = netip.MustParseAddr(test.want)
		}
		if s.collides(want) != test.expect {
			t.Errorf("%+v: not %t", test, test.expect)
		}
	}
}

// mustSocket makes a socket bound to addr and closes it with the test.
func mustSocket(t *testing.T, kind int, addr netip.AddrPort, v6only bool) int {
	t.Helper()
	family, sockaddr := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(addr.Port())})
	if addr.Addr().Is6() {
		family = unix.AF_INET6
		sockaddr = &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
	} else {
		sockaddr.(*unix.SockaddrInet4).Addr = addr.Addr().As4()
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if v6only {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Bind(fd, sockaddr); err != nil {
		t.Fatalf("bind %s: %v", addr, err)
	}
	return fd
}

func mustListen(t *testing.T, addr string, v6only bool) int {
	t.Helper()
	fd := mustSocket(t, unix.SOCK_STREAM, netip.MustParseAddrPort(addr), v6only)
	if err := unix.Listen(fd, 8); err != nil {
		t.Fatal(err)
	}
	return fd
}

func setLoopbackUp(t *testing.T) {
	t.Helper()
	h, err := newHandle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.LinkSetUp(linkRef(loopbackIndex)); err != nil {
		t.Fatal(err)
	}
}

// bindSockets makes one socket of each sort at ports 8001 to 8008.
func bindSockets(t *testing.T) {
	t.Helper()
	setLoopbackUp(t)
	mustListen(t, "0.0.0.0:8001", false)
	mustListen(t, "127.0.0.1:8002", false)
	mustListen(t, "[::]:8003", false)
	mustListen(t, "[::]:8004", true)
	mustSocket(t, unix.SOCK_STREAM, netip.MustParseAddrPort("127.0.0.1:8005"), false)
	mustSocket(t, unix.SOCK_DGRAM, netip.MustParseAddrPort("0.0.0.0:8006"), false)
	udp := mustSocket(t, unix.SOCK_DGRAM, netip.MustParseAddrPort("127.0.0.1:8007"), false)
	if err := unix.Connect(udp, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	// A connected TCP socket owns its port against nobody but its like.
	client := mustSocket(t, unix.SOCK_STREAM, netip.MustParseAddrPort("127.0.0.1:8008"), false)
	if err := unix.Connect(client, &unix.SockaddrInet4{Port: 8001, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
}

func TestPrivilegedPortHolder(t *testing.T) {
	newHost(t)
	bindSockets(t)
	for _, test := range []struct {
		proto uint8
		addr  string
		port  uint16
		held  bool
	}{
		{unix.IPPROTO_TCP, "", 8001, true}, {unix.IPPROTO_TCP, "127.0.0.1", 8001, true}, {unix.IPPROTO_UDP, "", 8001, false},
		{unix.IPPROTO_TCP, "0.0.0.0", 8002, true}, {unix.IPPROTO_TCP, "127.0.0.1", 8002, true}, {unix.IPPROTO_TCP, "127.0.0.2", 8002, false},
		{unix.IPPROTO_TCP, "0.0.0.0", 8003, true}, {unix.IPPROTO_TCP, "10.0.0.1", 8003, true},
		{unix.IPPROTO_TCP, "0.0.0.0", 8004, false}, {unix.IPPROTO_TCP, "", 8004, true}, {unix.IPPROTO_TCP, "::1", 8004, true},
		{unix.IPPROTO_UDP, "0.0.0.0", 8006, true}, {unix.IPPROTO_TCP, "", 8006, false},
		{unix.IPPROTO_UDP, "0.0.0.0", 8007, true}, {unix.IPPROTO_UDP, "10.0.0.1", 8007, false},
		{unix.IPPROTO_TCP, "0.0.0.0", 8008, false}, {unix.IPPROTO_TCP, "", 8010, false},
	} {
		var addr netip.Addr
		if test.addr != "" {
			addr = netip.MustParseAddr(test.addr)
		}
		h, held, err := PortHolder(test.proto, addr, test.port)
		if err != nil {
			t.Fatal(err)
		}
		if held != test.held {
			t.Errorf("%+v: held %t by %+v", test, held, h)
		}
		if held && (h.PID != os.Getpid() || h.Command == "" || h.Port != test.port) {
			t.Errorf("%+v: held by %+v", test, h)
		}
	}
}

func TestPrivilegedPortHolders(t *testing.T) {
	newHost(t)
	bindSockets(t)
	var ports []uint16
	holders, err := PortHolders(unix.IPPROTO_TCP, netip.IPv4Unspecified(), 8000, 60000)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range holders {
		ports = append(ports, h.Port)
	}
	if len(ports) < 3 || ports[0] != 8001 || ports[1] != 8002 || ports[2] != 8003 {
		t.Errorf("holders %+v", holders)
	}
	if !hasBoundInactive(t) {
		t.Log("this kernel does not list TCP sockets that are bound only")
	} else if len(ports) != 4 || ports[3] != 8005 {
		t.Errorf("holders %+v", holders)
	}
	_, err = PortHolders(unix.IPPROTO_SCTP, netip.Addr{}, 1, 2)
	wantError(t, err, ErrInvalid)
}

// hasBoundInactive tells by the kernel's release, 6.8 or later.
func hasBoundInactive(t *testing.T) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	release := unix.ByteSliceToString(u.Release[:])
	if n, err := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 || err != nil {
		t.Fatalf("release %q: %v", release, err)
	}
	return major > 6 || major == 6 && minor >= 8
}

func BenchmarkPrivilegedPortHolders(b *testing.B) {
	newHost(b)
	for b.Loop() {
		if _, err := PortHolders(unix.IPPROTO_TCP, netip.Addr{}, 1, 65535); err != nil {
			b.Fatal(err)
		}
	}
}

func TestParsePortRanges(t *testing.T) {
	got, err := parsePortRanges("8080,9000-9100")
	if err != nil || len(got) != 2 || got[0] != (PortRange{8080, 8080}) || got[1] != (PortRange{9000, 9100}) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := parsePortRanges(""); err != nil || got != nil {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{",", "1-", "2-1", "70000", "x"} {
		_, err := parsePortRanges(bad)
		wantError(t, err, ErrInvalid)
	}
}

func TestPrivilegedLocalPorts(t *testing.T) {
	newHost(t)
	for name, value := range map[string]string{"ip_local_port_range": "40000 41000", "ip_local_reserved_ports": "40500,40600-40700"} {
		if err := os.WriteFile(netSysctl+"ipv4/"+name, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := LocalPortRange(); err != nil || r != (PortRange{40000, 41000}) {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := LocalReservedPorts(); err != nil || len(r) != 2 || r[1] != (PortRange{40600, 40700}) {
		t.Errorf("%v, %v", r, err)
	}
}

func TestResolvers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	text := "# nameserver 1.1.1.1\n; x\nnameserver 192.168.1.1\nsearch lan\nnameserver\tfe80::1%eth0 \nnameserver bad\nnameserver 192.168.1.1\nnameserver\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Resolvers(path)
	if err != nil || len(got) != 2 || got[0].String() != "192.168.1.1" || got[1].String() != "fe80::1" {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := Resolvers(path + strings.Repeat("x", 3)); err != nil || got != nil {
		t.Errorf("missing file: %v, %v", got, err)
	}
}
