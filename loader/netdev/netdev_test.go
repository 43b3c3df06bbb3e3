package netdev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// needRoot skips a test that cannot work without privileges.
func needRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("SKIP: needs root to make network namespaces")
	}
}

// newHost moves the test into a network namespace of its own. Its thread stays
// locked, so it ends with the test, and the namespace with it.
func newHost(tb testing.TB) *NS {
	tb.Helper()
	needRoot(tb)
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		tb.Fatalf("unshare: %v", err)
	}
	ns, err := CurrentNS()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = ns.Close() })
	return ns
}

// newContainer makes a network namespace without a name.
func newContainer(tb testing.TB) *NS {
	tb.Helper()
	var ns *NS
	err := onThread(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			ns, err = CurrentNS()
		}
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = ns.Close() })
	return ns
}

func testBridge() Bridge {
	return Bridge{
		Name: "ebt0", Network: "test", MTU: 1400,
		MAC:   net.HardwareAddr{0x06, 0xeb, 10, 9, 0, 1},
		Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/16")},
	}
}

// testVeth is the n-th endpoint of testBridge, n below 2^16.
func testVeth(bridge, n int, ns *NS) Veth {
	addr := netip.AddrFrom4([4]byte{10, 9, byte(n >> 8), byte(n)})
	return Veth{
		HostName: fmt.Sprintf("veb%08x", n), Bridge: bridge, Alias: fmt.Sprintf("ebnet:test/%d", n), MTU: 1400,
		NS: ns, IfName: "eth0", MAC: append(net.HardwareAddr{0x02, 0xeb}, addr.AsSlice()...),
		Addrs: []netip.Prefix{netip.PrefixFrom(addr, 16)}, Gateway: netip.MustParseAddr("10.9.0.1"),
	}
}

func mustEnsureBridge(tb testing.TB, b Bridge) int {
	tb.Helper()
	ifindex, changed, err := EnsureBridge(b)
	if err != nil {
		tb.Fatal(err)
	}
	if !changed {
		tb.Fatal("a new bridge was no change")
	}
	return ifindex
}

func mustCreateVeth(tb testing.TB, v Veth) int {
	tb.Helper()
	ifindex, err := CreateVeth(v)
	if err != nil {
		tb.Fatal(err)
	}
	return ifindex
}

func mustLinks(tb testing.TB) []Link {
	tb.Helper()
	links, err := Links()
	if err != nil {
		tb.Fatal(err)
	}
	return links
}

// settings returns the host-wide switches that ebnet must not touch.
func settings(tb testing.TB) string {
	tb.Helper()
	var out strings.Builder
	patterns := []string{
		"ipv4/ip_forward", "ipv4/conf/all/*", "ipv4/conf/default/*", "ipv4/conf/lo/*",
		"ipv6/conf/all/*", "ipv6/conf/default/*", "ipv6/conf/lo/*",
	}
	for _, p := range patterns {
		files, err := filepath.Glob(netSysctl + p)
		if err != nil {
			tb.Fatal(err)
		}
		for _, f := range files {
			value, _ := os.ReadFile(f) // stable_secret is not readable until set
			fmt.Fprintf(&out, "%s=%s", f, value)
		}
	}
	if !strings.Contains(out.String(), "ip_forward=") || !strings.Contains(out.String(), "all/route_localnet=") {
		tb.Fatal("sysctls were not found")
	}
	return out.String()
}

// sysctl reads a file below net of the calling thread's namespace.
func sysctl(tb testing.TB, name string) string {
	tb.Helper()
	value, err := os.ReadFile(netSysctl + name)
	if err != nil {
		tb.Fatal(err)
	}
	return strings.TrimSpace(string(value))
}

// ping sends one echo request from the calling thread's namespace and waits for
// its answer; it does not try twice.
func ping(to netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	timeout := unix.NsecToTimeval(int64(time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return err
	}
	request := []byte{8, 0, 0, 0, 0xeb, 0x0e, 0, 1}
	sum := uint32(0x0800) + 0xeb0e + 1
	binary.BigEndian.PutUint16(request[2:], ^uint16(sum+sum>>16))
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrInet4{Addr: to.As4()}); err != nil {
		return fmt.Errorf("send to %s: %w", to, err)
	}
	answer := make([]byte, 256)
	for {
		n, _, err := unix.Recvfrom(fd, answer, 0)
		if err != nil {
			return fmt.Errorf("wait for %s: %w", to, err)
		}
		if n >= 28 && answer[20] == 0 && answer[24] == 0xeb && answer[25] == 0x0e {
			return nil
		}
	}
}

func wantError(tb testing.TB, err, want error) {
	tb.Helper()
	if !errors.Is(err, want) {
		tb.Fatalf("got %v, want %v", err, want)
	}
}

// median returns microseconds.
func median(times []time.Duration) float64 {
	slices.Sort(times)
	return float64(times[len(times)/2]) / float64(time.Microsecond)
}
