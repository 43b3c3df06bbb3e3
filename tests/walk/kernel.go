package walk

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/ebnet/ebnet/tests/netlab"
)

// reservedPorts is where the kernel is told which ports to give to nobody.
const reservedPorts = "net/ipv4/ip_local_reserved_ports"

// checkKernel compares the kernel and the state file with the model, given what the nouns
// show.
func (w *Walk) checkKernel(seen observed) {
	w.tb.Helper()
	w.Counts.Checks++
	r, err := w.readState()
	if err == nil {
		err = r.check(&w.model)
	}
	if err != nil {
		w.fail("state file: %v", err)
	}
	for _, err := range []error{
		w.checkHost(seen), w.checkSpaces(), w.checkReserved(), w.checkPins(seen), w.checkMaps(seen, r),
	} {
		if err != nil {
			w.fail("kernel: %v", err)
		}
	}
}

// device is a network device with its IPv4 addresses.
type device struct {
	name, mac string
	index     int
	mtu       int
	up        bool
	addrs     []netip.Prefix
}

func devices(n *netlab.Node) (all []device, err error) {
	err = n.Do(func() error {
		links, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, l := range links {
			d := device{name: l.Name, mac: l.HardwareAddr.String(), index: l.Index, mtu: l.MTU, up: l.Flags&net.FlagUp != 0}
			addrs, err := l.Addrs()
			if err != nil {
				return err
			}
			for _, a := range addrs {
				if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
					d.addrs = append(d.addrs, p)
				}
			}
			all = append(all, d)
		}
		return nil
	})
	return all, err
}

// route is an IPv4 route of the main table.
type route struct {
	device  string
	dst     netip.Prefix
	gateway netip.Addr // the zero Addr: none
}

func routes(n *netlab.Node) (all []route, err error) {
	var table []byte
	err = n.Do(func() (err error) {
		table, err = os.ReadFile("/proc/thread-self/net/route")
		return err
	})
	if err != nil {
		return nil, err
	}
	for i, line := range strings.Split(strings.TrimSpace(string(table)), "\n") {
		f := strings.Fields(line)
		if i == 0 || len(f) < 8 {
			continue
		}
		dst, gateway, mask := hexAddr(f[1]), hexAddr(f[2]), net.IPMask(hexAddr(f[7]).AsSlice())
		bits, _ := mask.Size()
		r := route{device: f[0], dst: netip.PrefixFrom(dst, bits)}
		if !gateway.IsUnspecified() {
			r.gateway = gateway
		}
		all = append(all, r)
	}
	return all, nil
}

// hexAddr reads an address as /proc/net/route has it: the machine's word, little-endian.
func hexAddr(s string) netip.Addr {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 4 {
		return netip.Addr{}
	}
	slices.Reverse(b)
	return netip.AddrFrom4([4]byte(b))
}

// checkHost compares the host's devices: its own, a bridge for each network, a veth for
// each endpoint that is there.
func (w *Walk) checkHost(seen observed) error {
	have, err := devices(w.lab.Host.Node)
	if err != nil {
		return err
	}
	want := map[string]Network{}
	links := []string{"lo", netlab.UplinkLink}
	if w.model.Up {
		for _, n := range w.model.Networks {
			want[n.Bridge] = n
			links = append(links, n.Bridge)
		}
	}
	for _, e := range seen.endpoints {
		if w.model.linked(w.model.Endpoints[e.Name]) {
			links = append(links, e.HostIfName)
		}
	}
	slices.Sort(links)
	if found := names(have, func(d device) string { return d.name }); !slices.Equal(found, links) {
		return fmt.Errorf("devices of the host are %v, want %v", found, links)
	}
	for _, d := range have {
		n, ok := want[d.name]
		if !ok {
			continue
		}
		addrs := []netip.Prefix{netip.PrefixFrom(n.Gateway, n.Subnet.Bits())}
		if !slices.Equal(d.addrs, addrs) || d.mtu != n.MTU || !d.up {
			return fmt.Errorf("bridge %s has addresses %v, mtu %d, up %v, want %v, %d and up", d.name, d.addrs, d.mtu, d.up, addrs, n.MTU)
		}
	}
	return nil
}

// checkSpaces compares what is in the namespaces.
func (w *Walk) checkSpaces() error {
	for space := range w.model.Spaces {
		node := w.node(space)
		have, err := devices(node)
		if err != nil {
			return err
		}
		table, err := routes(node)
		if err != nil {
			return err
		}
		var wantRoutes []route
		links := []string{"lo"}
		for _, e := range w.model.Endpoints {
			if e.Space != space || !w.model.linked(e) {
				continue
			}
			n := w.model.Networks[e.Network]
			links = append(links, e.IfName)
			wantRoutes = append(wantRoutes, route{e.IfName, n.Subnet, netip.Addr{}})
			if !e.NoDefaultRoute {
				wantRoutes = append(wantRoutes, route{e.IfName, netip.PrefixFrom(netip.IPv4Unspecified(), 0), n.Gateway})
			}
			i := slices.IndexFunc(have, func(d device) bool { return d.name == e.IfName })
			addrs := []netip.Prefix{netip.PrefixFrom(e.IP, n.Subnet.Bits())}
			if i < 0 || !slices.Equal(have[i].addrs, addrs) || have[i].mac != e.MAC || have[i].mtu != n.MTU || !have[i].up {
				return fmt.Errorf("namespace %s has %+v, want %s of endpoint %s with %v, %s and mtu %d", space, have, e.IfName, e.Name, addrs, e.MAC, n.MTU)
			}
		}
		slices.Sort(links)
		if found := names(have, func(d device) string { return d.name }); !slices.Equal(found, links) {
			return fmt.Errorf("devices of namespace %s are %v, want %v", space, found, links)
		}
		if err := sameSet("routes of namespace "+space, table, wantRoutes); err != nil {
			return err
		}
	}
	return nil
}

// node is a namespace of the walk, or one that is kept.
func (w *Walk) node(space string) *netlab.Node {
	return &netlab.Node{Name: w.lab.Name + "-" + space}
}

// sameSet compares without regard to order.
func sameSet[T comparable](what string, have, want []T) error {
	for _, v := range have {
		if !slices.Contains(want, v) {
			return fmt.Errorf("%s: there is %v, which nobody wants", what, v)
		}
	}
	for _, v := range want {
		if !slices.Contains(have, v) {
			return fmt.Errorf("%s: %v is missing", what, v)
		}
	}
	return differs(what, len(have), len(want))
}

// checkReserved compares the ports that the kernel gives to nobody: those that the walk
// has set as the administrator, and published ones of the ephemeral range.
func (w *Walk) checkReserved() error {
	want := map[int]bool{40005: true, 50000: true, 50001: true, 50002: true, 50003: true}
	if w.model.Up {
		w.model.ports(func(_ Endpoint, p Port) {
			for i := range p.Count {
				if port := int(p.HostPort) + i; !p.Direct && port >= ephemeralFirst && port <= ephemeralLast {
					want[port] = true
				}
			}
		})
	}
	var list []int
	for port := range want {
		list = append(list, port)
	}
	var have []int
	for _, r := range strings.Split(w.lab.Host.Sysctl(w.tb, reservedPorts), ",") {
		first, last, ranged := strings.Cut(r, "-")
		if !ranged {
			last = first
		}
		a, err := strconv.Atoi(first)
		b, err2 := strconv.Atoi(last)
		if err != nil || err2 != nil {
			return fmt.Errorf("reserved ports: %q", r)
		}
		for ; a <= b; a++ {
			have = append(have, a)
		}
	}
	return sameSet("reserved ports", have, list)
}

// checkPins compares what is pinned: the datapath itself, and a link for each hook of each
// device. Those of a device that went with its namespace stay until the next `ebnet up`.
func (w *Walk) checkPins(seen observed) error {
	if !w.model.Up {
		return sameSet("pins", w.lab.Host.Pins(w.tb), nil)
	}
	want := slices.Clone(w.pins)
	links := filepath.Join(w.lab.Host.BPFFS, "v2", "links")
	at := w.lab.Host.Links(w.tb)
	add := func(device string, hooks ...string) {
		for _, hook := range hooks {
			want = append(want, filepath.Join(links, hook+"-"+strconv.Itoa(at[device])))
		}
	}
	add(netlab.UplinkLink, "from_uplink", "to_uplink")
	for _, n := range w.model.Networks {
		add(n.Bridge, "from_bridge", "to_bridge")
	}
	stale := 0
	for _, e := range seen.endpoints {
		switch known := w.model.Endpoints[e.Name]; {
		case w.model.linked(known):
			add(e.HostIfName, "from_container")
		case !known.Aside:
			stale++
		}
	}
	have := w.lab.Host.Pins(w.tb)
	have = slices.DeleteFunc(have, func(pin string) bool {
		if stale > 0 && !slices.Contains(want, pin) && strings.Contains(pin, "/from_container-") {
			stale--
			return true
		}
		return false
	})
	return sameSet("pins", have, want)
}
