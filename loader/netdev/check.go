package netdev

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// CheckBridge tells in words what EnsureBridge would repair at an existing bridge;
// nothing if it is as it should be. Returns ErrNotFound.
func CheckBridge(b Bridge) (wrong []string, err error) {
	err = withHandle(func(h *handle) error {
		l, err := h.LinkByName(b.Name)
		if err != nil {
			return fmt.Errorf("bridge %s: %w", b.Name, sentinel(err))
		}
		wrong, err = checkBridge(h, b, fromNetlink(l))
		return err
	})
	return wrong, err
}

func checkBridge(h *handle, b Bridge, have Link) (wrong []string, err error) {
	add := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if !have.Up {
		add("it is down")
	}
	if !bytes.Equal(have.MAC, b.MAC) {
		add("its MAC address is %s instead of %s", have.MAC, b.MAC)
	}
	if have.MTU != b.MTU {
		add("its MTU is %d instead of %d", have.MTU, b.MTU)
	}
	if same, err := bridgeOptionsSet(have.Index); err != nil {
		return wrong, err
	} else if !same {
		add("its options (spanning tree, multicast snooping) were changed")
	}
	for _, s := range bridgeSysctls {
		value, err := Sysctl("ipv4/conf/" + b.Name + "/" + s.name)
		if err != nil {
			return wrong, err
		}
		if value != s.value {
			add("net.ipv4.conf.%s.%s is %s instead of %s", b.Name, s.name, value, s.value)
		}
	}
	addrs, err := retryDump(func() ([]netlink.Addr, error) {
		return h.AddrList(linkRef(have.Index), netlink.FAMILY_ALL)
	})
	if err != nil {
		return wrong, fmt.Errorf("list addresses of interface %s: %w", b.Name, sentinel(err))
	}
	for _, want := range b.Addrs {
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return fromIPNet(a.IPNet) == want }) {
			add("it has lost the address %s", want)
		}
	}
	if !have.Up || len(wrong) > 0 {
		return wrong, nil // routes go with what is told already
	}
	missing, err := missingRoutes(h, b, have.Index)
	for _, p := range missing {
		add("the host has lost its route to %s", p.Masked())
	}
	return wrong, err
}

// Sysctl reads a setting of the calling thread's namespace by its path below
// /proc/sys/net. Returns ErrNotFound where there is none.
func Sysctl(path string) (string, error) {
	text, err := os.ReadFile(netSysctl + path)
	if err != nil {
		return "", fmt.Errorf("read net.%s: %w", strings.ReplaceAll(path, "/", "."), sentinel(err))
	}
	return strings.TrimSpace(string(text)), nil
}

// Filter is a classic filter on a device.
type Filter struct {
	Kind     string // "bpf", "u32", …
	Name     string // of the program, where it is one
	Priority uint16
}

// String names the filter.
func (f Filter) String() string {
	if f.Name == "" {
		return f.Kind
	}
	return f.Kind + " " + f.Name
}

// FiltersAhead returns the clsact filters that run before the one of AttachFilter,
// nothing if there is none of it. A device that is not there has none.
func FiltersAhead(ifindex int, ingress bool) (ahead []Filter, err error) {
	err = withHandle(func(h *handle) error {
		own, err := findFilter(h, ifindex, ingress)
		if err != nil || own == nil {
			return err
		}
		all, err := listFilters(h, ifindex, ingress)
		for _, f := range all {
			if f.Attrs().Priority >= own.Priority {
				continue
			}
			found := Filter{Kind: f.Type(), Priority: f.Attrs().Priority}
			if bpf, ok := f.(*netlink.BpfFilter); ok {
				found.Name = bpf.Name
			}
			ahead = append(ahead, found)
		}
		return err
	})
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	return ahead, err
}
