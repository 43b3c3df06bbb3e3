package netdev

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addDefaultRoute sends everything else to the gateway, which is on the link.
// A default route that exists is left alone and reported as ErrExists.
func addDefaultRoute(h *handle, ifindex int, gateway netip.Addr) error {
	route := &netlink.Route{LinkIndex: ifindex, Gw: gateway.AsSlice()}
	if err := h.RouteAdd(route); err != nil {
		return fmt.Errorf("add default route by %s: %w", gateway, sentinel(err))
	}
	return nil
}

// addSubnetRoute adds the route that the kernel adds with an address.
func addSubnetRoute(h *handle, ifindex int, p netip.Prefix) error {
	route := &netlink.Route{
		LinkIndex: ifindex, Dst: toIPNet(p.Masked()), Scope: unix.RT_SCOPE_LINK, Protocol: unix.RTPROT_KERNEL,
	}
	if p.Addr().Is4() {
		route.Src = p.Addr().AsSlice()
	}
	if err := h.RouteAdd(route); err != nil {
		return fmt.Errorf("add route to %s: %w", p.Masked(), sentinel(err))
	}
	return nil
}

// HostPrefixes returns what the host already routes or owns, of both families:
// the unicast routes of all tables but local, and the subnets of the devices'
// addresses. Default routes are left out, also those in two halves (0.0.0.0/1
// and 128.0.0.0/1) that VPNs set, and so are link-local subnets of IPv6. Masked,
// sorted, without duplicates.
func HostPrefixes() (prefixes []netip.Prefix, err error) {
	err = withHandle(func(h *handle) error {
		routes, err := retryDump(func() ([]netlink.Route, error) {
			return h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return fmt.Errorf("list routes: %w", sentinel(err))
		}
		for _, r := range routes {
			if r.Type == unix.RTN_UNICAST && r.Table != unix.RT_TABLE_LOCAL {
				prefixes = append(prefixes, fromIPNet(r.Dst))
			}
		}
		addrs, err := listAddrs(h)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			prefixes = append(prefixes, fromIPNet(a.IPNet), fromIPNet(a.Peer))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i, p := range prefixes {
		prefixes[i] = p.Masked()
	}
	prefixes = slices.DeleteFunc(prefixes, func(p netip.Prefix) bool {
		return !p.IsValid() || p.Bits() <= 1 || p.Addr().Is6() && p.Addr().IsLinkLocalUnicast()
	})
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	return slices.Compact(prefixes), nil
}

func listAddrs(h *handle) ([]netlink.Addr, error) {
	addrs, err := retryDump(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", sentinel(err))
	}
	return addrs, nil
}

// Where resolvers are found; the second file has the real ones where the first
// names only the local stub of systemd-resolved.
const (
	resolvConf = "/etc/resolv.conf"
	stubConf   = "/run/systemd/resolve/resolv.conf"
)

// Resolvers returns the nameservers of a file in the form of resolv.conf(5), in
// its order, without zones; "" means those of the host. A file that is not there
// has none; lines that cannot be understood are skipped, as the resolver does.
func Resolvers(path string) ([]netip.Addr, error) {
	paths := []string{path}
	if path == "" {
		paths = []string{resolvConf, stubConf}
	}
	var addrs []netip.Addr
	for _, p := range paths {
		more, err := readResolvers(p)
		if err != nil {
			return nil, fmt.Errorf("read resolvers: %w", err)
		}
		for _, a := range more {
			if !slices.Contains(addrs, a) {
				addrs = append(addrs, a)
			}
		}
	}
	return addrs, nil
}

func readResolvers(path string) ([]netip.Addr, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, sentinel(err)
	}
	defer f.Close()
	var addrs []netip.Addr
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if addr, err := netip.ParseAddr(fields[1]); err == nil {
			addrs = append(addrs, addr.Unmap().WithZone(""))
		}
	}
	return addrs, lines.Err()
}
