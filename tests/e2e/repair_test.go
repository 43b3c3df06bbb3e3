package e2e

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ebnet/ebnet/tests/netlab"
)

// plant is a site with all that can be broken: two networks, ports of every kind, and containers that talk all the
// time.
type plant struct {
	*site
	b1     *netlab.Container // of network blue, whose conversations nothing here concerns
	hidden *netlab.Service   // at w1, where nobody outside may come
	asked  *netlab.Service   // at w1, port 95
	mode   string

	out, in *netlab.Echo      // of b1
	leaks   []*netlab.Sniffer // packets outside with addresses of containers
	stop    chan struct{}     // ends the talk
	talk    sync.WaitGroup
}

const (
	hiddenPort = 81
	askedPort  = 95
)

// strayAddr is one that a container takes without being given it.
var strayAddr = netip.MustParseAddr("172.18.9.9")

func newPlant(t *testing.T, l *netlab.Lab, mode string) *plant {
	t.Helper()
	p := &plant{site: newSite(t, l, mode), mode: mode, stop: make(chan struct{})}
	p.Host.Up(t, "--uplink", netlab.UplinkLink)
	p.Host.Ebnet(t, "network", "create", "blue", "--subnet", "10.9.0.0/24")
	p.b1 = p.Container(t, "b1")
	p.b1.Connect(t, "blue", "-p", "8090:80")
	p.b1.Serve(t, containerPort)
	p.hidden, p.asked = p.w1.Serve(t, hiddenPort), p.w1.Serve(t, askedPort)
	w1 := p.w1.Endpoint
	p.Host.Ebnet(t, "expose", w1, "8080:80/tcp", "8080:80/udp", "9000-9009:90-99/tcp", "40000:80")
	p.Host.Ebnet(t, "expose", w1, "9100:80", "--from", netlab.InternetAddr.String()+"/32")
	p.Host.Ebnet(t, "expose", w1, "9101:81", "--from", "203.0.113.0/24")
	p.Internet.Run(t, "ip", "route", "add", "172.16.0.0/12", "via", netlab.HostAddr.String())
	for _, a := range []netip.Addr{p.w1.Addr, p.w2.Addr, p.b1.Addr, strayAddr} {
		p.leaks = append(p.leaks, p.Internet.Sniff(t, a))
	}
	p.chatter(p.w1.Node, at(netlab.InternetAddr, 9))
	p.chatter(p.Internet, at(p.w1.Addr, hiddenPort))
	p.chatter(p.Internet, at(netlab.HostAddr, 9101))
	t.Cleanup(func() {
		close(p.stop)
		p.talk.Wait()
		p.out.Close()
		p.in.Close()
	})
	p.dial(t)
	return p
}

// chatter sends datagrams from new sockets, a few from each, and from one that stays.
func (p *plant) chatter(from *netlab.Node, to netip.AddrPort) {
	p.talk.Go(func() {
		old, _ := from.Dial("udp", netip.AddrPort{}, to, works)
		if old != nil {
			defer old.Close()
		}
		for {
			c, err := from.Dial("udp", netip.AddrPort{}, to, works)
			for range 3 {
				select {
				case <-p.stop:
					if err == nil {
						c.Close()
					}
					return
				case <-time.After(3 * time.Millisecond):
				}
				if err == nil {
					_, _ = c.Write([]byte("hello")) // what cannot be sent does not leak
				}
				if old != nil {
					_, _ = old.Write([]byte("hello"))
				}
			}
			if err == nil {
				c.Close()
			}
		}
	})
}

// dial opens the conversations that are to last.
func (p *plant) dial(t *testing.T) {
	t.Helper()
	if p.out != nil {
		p.out.Close()
		p.in.Close()
	}
	var err error
	if p.out, err = p.b1.DialEcho(netip.AddrPort{}, at(netlab.InternetAddr, internetPort)); err != nil {
		t.Fatal(err)
	}
	if p.in, err = p.Internet.DialEcho(netip.AddrPort{}, at(netlab.HostAddr, 8090)); err != nil {
		t.Fatal(err)
	}
}

func (p *plant) lasts(t *testing.T) {
	t.Helper()
	if err := p.out.Say("out"); err != nil {
		t.Errorf("a connection of an endpoint that nothing was done to: %v", err)
	}
	if err := p.in.Say("in"); err != nil {
		t.Errorf("a connection to a port that nothing was done to: %v", err)
	}
}

// works sends real packets every way.
func (p *plant) works(t *testing.T) {
	t.Helper()
	gateway := netip.MustParseAddr("172.18.0.1")
	reaches(t, p.w1.Node, "tcp", at(netlab.InternetAddr, internetPort), netlab.HostAddr)
	reaches(t, p.w2.Node, "udp", at(netlab.InternetAddr, internetPort), netlab.HostAddr)
	for port, protocol := range map[uint16]string{8080: "tcp", 9005: "tcp", 40000: "tcp", 9100: "tcp"} {
		reaches(t, p.Internet, protocol, at(netlab.HostAddr, port), netlab.InternetAddr)
	}
	reaches(t, p.Internet, "udp", at(netlab.HostAddr, 8080), netlab.InternetAddr)
	reaches(t, p.w1.Node, "tcp", at(p.w2.Addr, containerPort), p.w1.Addr)
	reaches(t, p.w2.Node, "tcp", at(netlab.HostAddr, 8080), p.w2.Addr)
	reaches(t, p.Host.Node, "tcp", at(p.w1.Addr, containerPort), gateway)
}

// closed fails the test if anything has leaked.
func (p *plant) closed(t *testing.T) {
	t.Helper()
	for i, s := range p.leaks {
		if n := s.Packets(); n != 0 {
			t.Errorf("%d packets left with the container's address (%d)", n, i)
			p.leaks[i] = p.Internet.Sniff(t, []netip.Addr{p.w1.Addr, p.w2.Addr, p.b1.Addr, strayAddr}[i])
		}
	}
	if peers := p.hidden.Peers(); slices.ContainsFunc(peers, func(a netip.AddrPort) bool { return a.Addr() == netlab.InternetAddr }) {
		t.Errorf("a port that is not published, or not for everybody, was reached from outside: %v", peers)
	}
}

// up runs ebnet up, which must say whether it changed something.
func (p *plant) up(t *testing.T, changed bool, flags ...string) netlab.Result {
	t.Helper()
	r := p.Host.TryEbnet(t, append([]string{"up", "-o", "json"}, flags...)...)
	if r.Code != 0 || strings.Contains(r.Stdout, `"changed":true`) != changed {
		t.Errorf("want changed to be %v of %v", changed, r)
	}
	return r
}

// breakage is something that somebody does, and what is to come of it.
type breakage struct {
	name string
	do   func(t *testing.T, p *plant)

	check string // of doctor, that tells of it
	what  string // part of what it says

	upFlags   []string      // of the up that mends
	unchanged bool          // nothing is to be mended
	wait      time.Duration // until the packets that are under way show it
	cuts      bool          // it concerns every conversation
	open      string        // why packets get out until it is mended
	openSlow  string        // the same without the fast path
	after     func(t *testing.T, p *plant)
}

// host is what is done by a command in the host's namespace; VETH is w1's device there.
func host(words string) func(*testing.T, *plant) {
	return func(t *testing.T, p *plant) {
		t.Helper()
		veth := p.Host.Endpoints(t)[p.w1.Endpoint].HostLink
		p.Host.Run(t, strings.Fields(strings.ReplaceAll(words, "VETH", veth))...)
	}
}

// inside is what is done in w1.
func inside(commands ...string) func(*testing.T, *plant) {
	return func(t *testing.T, p *plant) {
		t.Helper()
		for _, c := range commands {
			p.w1.Run(t, strings.Fields(c)...)
		}
	}
}

func inTurn(fs ...func(*testing.T, *plant)) func(*testing.T, *plant) {
	return func(t *testing.T, p *plant) {
		t.Helper()
		for _, f := range fs {
			f(t, p)
		}
	}
}

func detach(pattern string) func(*testing.T, *plant) {
	return func(t *testing.T, p *plant) { p.Host.DetachLinks(t, "links/"+pattern) }
}

func unpin(pattern string) func(*testing.T, *plant) {
	return func(t *testing.T, p *plant) { p.Host.Unpin(t, pattern) }
}

// round breaks it, sees that it is closed and told of, mends it and sees that it works.
func (p *plant) round(t *testing.T, b breakage) {
	t.Helper()
	if p.mode == modes[1] && b.openSlow != "" {
		b.open = b.openSlow
	}
	b.do(t, p)
	time.Sleep(max(b.wait, 40*time.Millisecond))
	if b.open == "" {
		p.closed(t)
	}
	switch found := []finding(nil); b.check {
	case "":
	case "?":
		if len(examine(t, p.Host)) == 0 {
			t.Error("doctor finds nothing")
		}
	default:
		found = examine(t, p.Host)
		is := func(f finding) bool { return f.Check == b.check && strings.Contains(f.What+": "+f.Why, b.what) }
		if !slices.ContainsFunc(found, is) {
			t.Errorf("doctor says %+v, want one of check %s about %q", found, b.check, b.what)
		}
	}
	p.up(t, !b.unchanged, b.upFlags...)
	if b.open != "" {
		p.forgetLeaks(t)
	}
	p.works(t)
	if b.cuts {
		p.dial(t)
	}
	p.lasts(t)
	if found := examine(t, p.Host); len(found) != 0 {
		t.Errorf("after up doctor says %+v", found)
	}
	p.up(t, false)
	p.closed(t)
	if b.after != nil {
		b.after(t, p)
	}
}

func (p *plant) forgetLeaks(t *testing.T) {
	for i, a := range []netip.Addr{p.w1.Addr, p.w2.Addr, p.b1.Addr, strayAddr} {
		p.leaks[i] = p.Internet.Sniff(t, a)
	}
}

var deviceBreakages = []breakage{
	{name: "bridge deleted", do: host("ip link delete ebnet0"), check: "bridges", what: "bridge ebnet0"},
	{name: "bridge down", do: host("ip link set ebnet0 down"), check: "bridges", what: "it is down"},
	{name: "bridge renamed", do: inTurn(host("ip link set ebnet0 down"), host("ip link set ebnet0 name br9"), host("ip link set br9 up")), check: "bridges", what: "is gone"},
	{name: "gateway deleted", do: host("ip address flush dev ebnet0"), check: "bridges", what: "lost the address"},
	{name: "bridge MTU", do: host("ip link set ebnet0 mtu 1400"), check: "bridges", what: "MTU is 1400"},
	{name: "bridge MAC", do: host("ip link set ebnet0 address 02:00:00:00:00:99"), check: "bridges", what: "MAC address"},
	{name: "bridge alias", do: host("ip link set ebnet0 alias mine"), check: "bridges", what: "is gone"},
	{name: "bridge forwarding", do: host("sysctl -w net.ipv4.conf.ebnet0.forwarding=0"), check: "bridges", what: "forwarding"},
	{name: "route to the subnet deleted", do: host("ip route delete 172.18.0.0/16 dev ebnet0"), check: "bridges", what: "route"},
	{name: "port out of bridge", do: host("ip link set VETH nomaster"), check: "links", what: "no port"},
	{name: "link deleted", do: host("ip link delete VETH"), check: "endpoints", what: "the link is gone"},
	{name: "link down", do: host("ip link set VETH down"), check: "links", what: "down"},
	{name: "link renamed", do: inTurn(host("ip link set VETH down"), host("ip link set VETH name strange0")), check: "endpoints", what: "the link is gone"},
	{name: "link alias", do: host("ip link set VETH alias mine"), check: "endpoints", what: "the link is gone"},
	{name: "link MTU", do: host("ip link set VETH mtu 1300"), check: "links", what: "MTU is 1300"},
	{name: "learning", do: host("ip link set VETH type bridge_slave learning on"), check: "links", what: "learns"},
	{name: "forwarding entry", do: func(t *testing.T, p *plant) {
		p.Host.Run(t, "bridge", "fdb", "del", p.Host.Endpoints(t)[p.w1.Endpoint].MAC, "dev", p.Host.Endpoints(t)[p.w1.Endpoint].HostLink, "master")
	}, check: "links", what: "lost its entry"},
	{name: "neighbour deleted", do: func(t *testing.T, p *plant) { p.Host.Run(t, "ip", "neigh", "del", p.w1.Addr.String(), "dev", "ebnet0") },
		check: "links", what: "neighbour"},
	{name: "neighbour altered", do: func(t *testing.T, p *plant) {
		p.Host.Run(t, "ip", "neigh", "replace", p.w1.Addr.String(), "lladdr", "02:00:00:00:00:99", "dev", "ebnet0", "nud", "permanent")
	}, check: "links", what: "neighbour"},
	{name: "address deleted inside", do: inside("ip address flush dev eth0"), check: "links", what: "lost the address"},
	{name: "address added inside", do: inside("ip address add 172.18.9.9/16 dev eth0"), check: "links", what: "172.18.9.9"},
	{name: "address changed inside", do: inside("ip address flush dev eth0", "ip address add 172.18.9.9/16 dev eth0",
		"ip route add default via 172.18.0.1"), check: "links", what: "172.18.9.9"},
	{name: "route deleted inside", do: inside("ip route delete default"), check: "links", what: "default route"},
	{name: "route changed inside", do: inside("ip route replace default via 172.18.0.77"), check: "links", what: "default route"},
	{name: "down inside", do: inside("ip link set eth0 down"), check: "links", what: "is down"},
	{name: "renamed inside", do: inside("ip link set eth0 down", "ip link set eth0 name lan0", "ip link set lan0 up"), check: "links", what: "called lan0"},
	{name: "MAC inside", do: inside("ip link set eth0 address 02:00:00:00:00:99"), check: "links", what: "MAC address 02:00"},
	{name: "MTU inside", do: inside("ip link set eth0 mtu 1200"), check: "links", what: "MTU 1200"},
	{name: "moved out", do: func(t *testing.T, p *plant) { p.w1.Run(t, "ip", "link", "set", "eth0", "netns", p.Internet.Name) },
		check: "links", what: "left its namespace"},
	{name: "reserved ports", do: host("sysctl -w net.ipv4.ip_local_reserved_ports=35000"), check: "ports", what: "port 40000",
		after: host("sysctl -w net.ipv4.ip_local_reserved_ports=40000")},
	{name: "two at once", do: inTurn(host("ip link delete ebnet0"), inside("ip address flush dev eth0"), unpin("maps/services"))},
}

// hookBreakages are of programs.
var hookBreakages = []breakage{
	{name: "from_container detached", do: detach("from_container-*"), check: "endpoints", what: "from_container is not attached"},
	{name: "from_uplink detached", do: detach("from_uplink-*"), check: "uplinks", what: "from_uplink is not attached"},
	{name: "to_bridge detached", do: detach("to_bridge-*"), check: "bridges", what: "to_bridge is not attached"},
	{name: "from_bridge detached", do: detach("from_bridge-*"), check: "bridges", what: "from_bridge is not attached"},
	{name: "to_uplink detached", do: detach("to_uplink-*"), check: "uplinks", what: "to_uplink is not attached",
		openSlow: "without the fast path it is what translates"},
	{name: "socket programs detached", do: detach("[cgsrp]*[46]"), check: "sockets", what: "socket hooks"},
	{name: "links unpinned", do: unpin("links/from_*"), check: "endpoints", what: "from_container is not attached"},
	{name: "all links detached", do: detach("*"), check: "uplinks", what: "is not attached",
		open: "no program is left that could drop anything"},
	{name: "links directory", do: unpin("links"), open: "no program is left that could drop anything"},
	{name: "all pins", do: unpin("*"), cuts: true, check: "datapath", open: "no program is left that could drop anything"},
	{name: "bpf file system unmounted", do: func(t *testing.T, p *plant) { p.RemountBPF(t) }, cuts: true, check: "datapath",
		open: "no program is left that could drop anything"},
}

// pathBreakages are those where it matters which way packets take.
var pathBreakages = []string{"bridge deleted", "bridge down", "gateway deleted", "bridge MAC", "bridge forwarding", "route to the subnet deleted",
	"port out of bridge", "link deleted", "learning", "forwarding entry", "neighbour altered", "address changed inside", "MAC inside", "two at once"}

// TestPrivilegedRepair: whatever somebody does to devices, addresses, routes, programs and pins, doctor tells,
// up mends, and what it did not concern goes on.
func TestPrivilegedRepair(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode[2:], func(t *testing.T) {
			t.Parallel()
			p := newPlant(t, netlab.New(t), mode)
			p.works(t)
			if t.Failed() {
				t.FailNow()
			}
			for _, b := range slices.Concat(deviceBreakages, uplinkBreakages, hookBreakages) {
				if mode == modes[0] || !slices.ContainsFunc(deviceBreakages, func(d breakage) bool { return d.name == b.name }) || slices.Contains(pathBreakages, b.name) {
					t.Run(b.name, func(t *testing.T) { p.round(t, b) })
				}
			}
		})
	}
}

// uplinkBreakages are what a network manager does.
var uplinkBreakages = []breakage{
	{name: "uplink MTU", do: host("ip link set up0 mtu 1400"), check: "maps", what: "map uplinks", after: host("ip link set up0 mtu 1500")},
	{name: "address added to the uplink", do: host("ip address add 198.51.100.44/24 dev up0"), check: "maps", what: "map locals"},
	{name: "address of the uplink removed", do: host("ip address delete 198.51.100.44/24 dev up0"), unchanged: true},
	{name: "uplink down and up", do: inTurn(host("ip link set up0 down"), host("ip link set up0 up"), defaultRoute), unchanged: true},
	{name: "uplink made anew", do: newUplink, check: "uplinks", what: "the device is gone", wait: 1200 * time.Millisecond, cuts: true},
	{name: "uplink renamed", do: inTurn(host("ip link set up0 down"), host("ip link set up0 name wan0"), host("ip link set wan0 up"), func(t *testing.T, p *plant) {
		p.Host.Run(t, "ip", "route", "add", "default", "via", netlab.InternetAddr.String())
	}), check: "uplinks", what: "there is no such device", wait: 1200 * time.Millisecond, upFlags: []string{"--uplink", "wan0"}},
	{name: "uplink renamed back", do: inTurn(host("ip link set wan0 down"), host("ip link set wan0 name up0"), host("ip link set up0 up"), defaultRoute),
		check: "uplinks", what: "there is no such device", upFlags: []string{"--uplink", netlab.UplinkLink}},
}

func defaultRoute(t *testing.T, p *plant) {
	p.Host.Run(t, "ip", "route", "replace", "default", "via", netlab.InternetAddr.String())
}

// newUplink deletes the uplink, and makes another of its name.
func newUplink(t *testing.T, p *plant) {
	p.Host.Run(t, "ip", "link", "delete", netlab.UplinkLink)
	p.Internet.Run(t, "ip", "link", "add", netlab.InternetLink, "type", "veth", "peer", "name", netlab.UplinkLink, "netns", p.Host.Name)
	p.Internet.Run(t, "ip", "address", "add", netlab.InternetAddr.String()+"/24", "dev", netlab.InternetLink)
	p.Internet.Run(t, "ip", "link", "set", netlab.InternetLink, "up")
	for _, a := range []netip.Addr{netlab.HostAddr, netlab.HostAddr2} {
		p.Host.Run(t, "ip", "address", "add", a.String()+"/24", "dev", netlab.UplinkLink)
	}
	p.Host.Run(t, "ip", "link", "set", netlab.UplinkLink, "up")
	p.Host.Run(t, "ip", "route", "add", "default", "via", netlab.InternetAddr.String())
	p.Internet.Run(t, "ip", "route", "add", "172.16.0.0/12", "via", netlab.HostAddr.String())
	p.Renoted(t)
}

// TestPrivilegedRepairMaps: whatever somebody writes into maps or takes out of them, and whatever pin is removed.
func TestPrivilegedRepairMaps(t *testing.T) {
	l := netlab.New(t)
	p := newPlant(t, l, "--fast-path=on")
	p.works(t)
	for _, name := range []string{"networks", "subnets", "inner", "endpoints", "devices", "nears", "uplinks", "near_uplinks", "services", "sources", "ports", "locals"} {
		for how, do := range map[string]func(*netlab.Map, []byte, []byte){
			"deleted": func(m *netlab.Map, key, _ []byte) { m.Delete(key) },
			"altered": func(m *netlab.Map, key, value []byte) {
				value[0] ^= 1
				m.Put(key, value)
				// And a foreign one beside it.
				if slices.Contains([]string{"networks", "inner", "nears", "near_uplinks", "ports"}, name) {
					key[0] ^= 2 // another place of an array
					value[len(value)/2] ^= 0xff
				} else {
					key[len(key)/2] ^= 1
				}
				m.Put(key, value)
			},
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				p.round(t, breakage{do: func(t *testing.T, p *plant) { p.spoil(t, name, do) }, check: "?"})
			})
		}
	}
	t.Run("published ports closed by their bits", func(t *testing.T) {
		p.round(t, breakage{check: "maps", what: "map ports", do: func(t *testing.T, p *plant) {
			m := p.Host.Map(t, "ports")
			m.Entries(func(key, value []byte) {
				clear(value[8:16])
				m.Put(key, value)
			})
		}})
	})
	t.Run("generations", func(t *testing.T) {
		m := p.Host.Map(t, "gens")
		for slot := range uint32(20) {
			value := m.Zero()
			value[0] = 77
			m.Put(binary.NativeEndian.AppendUint32(nil, slot), value)
		}
		p.works(t) // what was going on is void, what is new is not
		p.up(t, false)
		p.dial(t)
	})
	for _, dir := range []string{"maps", "progs"} {
		for _, name := range p.Host.PinNames(t, dir) {
			t.Run("pin "+dir+"/"+name, func(t *testing.T) {
				p.Host.Unpin(t, dir+"/"+name)
				if name != "about" {
					if found := examine(t, p.Host); len(found) == 0 {
						t.Error("doctor finds nothing")
					}
				}
				p.up(t, true)
				p.lasts(t)
			})
		}
		p.up(t, false)
	}
	t.Run("what is known of the load", func(t *testing.T) {
		m := p.Host.Map(t, "about")
		for _, at := range []int{0, 40, 48, 52} { // fingerprint, secret, room for conversations, fast path
			m.Entries(func(key, value []byte) {
				value[at] ^= 1
				m.Put(key, value)
			})
			p.up(t, true)
			p.lasts(t)
			p.up(t, false)
		}
	})
	p.works(t)
	p.closed(t)
	if found := examine(t, p.Host); len(found) != 0 {
		t.Errorf("at the end doctor says %+v", found)
	}
}

// spoil does something to an entry of a map that is not about network blue.
func (p *plant) spoil(t *testing.T, name string, do func(m *netlab.Map, key, value []byte)) {
	t.Helper()
	m := p.Host.Map(t, name)
	blue := p.Host.Endpoints(t)[p.b1.Endpoint]
	marks := [][]byte{p.b1.Addr.AsSlice(), {10, 9, 0}, binary.NativeEndian.AppendUint32(nil, uint32(blue.Ifindex)),
		binary.BigEndian.AppendUint16(nil, 8090)}
	done := false
	n := m.Entries(func(key, value []byte) {
		of := func(mark []byte) bool { return bytes.Contains(key, mark) || bytes.Contains(value, mark) }
		if !done && (name == "uplinks" || name == "near_uplinks" || name == "inner" || !slices.ContainsFunc(marks, of)) {
			done = true
			do(m, key, value)
		}
	})
	if !done {
		t.Fatalf("none of %d entries of %s will do", n, name)
	}
}

// TestPrivilegedRepairFilters: the same where programs are attached by filters, which outlive pins.
func TestPrivilegedRepairFilters(t *testing.T) {
	l := netlab.New(t)
	l.Host.Env = append(l.Host.Env, "EBNET_TCX=off")
	p := newPlant(t, l, "--fast-path=on")
	filter := "pref 235"
	for _, b := range []breakage{
		{name: "filter of a link", do: host("tc filter delete dev VETH ingress " + filter), check: "endpoints", what: "from_container is not attached"},
		{name: "qdisc of a link", do: host("tc qdisc delete dev VETH clsact"), check: "endpoints", what: "from_container is not attached"},
		{name: "filter of the uplink", do: host("tc filter delete dev up0 ingress " + filter), check: "uplinks", what: "from_uplink is not attached"},
		{name: "qdisc of the uplink", do: host("tc qdisc delete dev up0 clsact"), check: "uplinks", what: "to_uplink is not attached"},
		{name: "qdisc of the bridge", do: host("tc qdisc delete dev ebnet0 clsact"), check: "bridges", what: "to_bridge is not attached"},
		{name: "bridge deleted", do: host("ip link delete ebnet0"), check: "bridges", what: "bridge ebnet0"},
		{name: "all pins", do: unpin("*"), check: "datapath", cuts: true},
		{name: "uplink made anew", do: newUplink, check: "uplinks", what: "the device is gone", wait: 1200 * time.Millisecond, cuts: true},
	} {
		t.Run(b.name, func(t *testing.T) { p.round(t, b) })
	}
}
