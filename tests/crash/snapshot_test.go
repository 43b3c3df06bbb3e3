package crash

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/ebnet/ebnet/tests/netlab"
)

// snapshot is what can be seen of a host: what the nouns tell and what the kernel has, in
// words that do not change when a device is made anew.
type snapshot struct {
	Networks  map[string]string // by name
	Endpoints map[string]string
	Links     map[string]string // by name, endpoints' by their alias
	Addrs     []string
	Near      []string // neighbours and forwarding entries that do not expire
	Filters   []string
	Pins      []string
	Entries   map[string]int // of maps
	Reserved  string         // ports
	Files     []string       // of the state, and temporary ones
	Inside    []string       // addresses and routes of containers
	Doctor    string         // what it says
}

func (s *stage) snapshot(t *testing.T) *snapshot {
	t.Helper()
	snap := &snapshot{
		Networks: s.items(t, "network", "ls"), Endpoints: s.items(t, "endpoint", "ls"), // with their ports
		Entries:  s.Host.Entries(t),
		Doctor:   s.Host.TryEbnet(t, "doctor").Stdout,
		Reserved: s.Host.Sysctl(t, "net/ipv4/ip_local_reserved_ports"),
		Files:    append(files(t, s.Host.State), files(t, s.tmp)...),
	}
	names := s.links(t, snap)
	for _, line := range s.table(t, "ip", "-o", "address", "show") {
		if !strings.Contains(line, "inet6 fe80:") { // the kernel's own, at some time
			snap.Addrs = append(snap.Addrs, rename(line, names))
		}
	}
	for _, line := range append(s.table(t, "ip", "neighbour", "show", "nud", "permanent"), s.table(t, "bridge", "fdb", "show")...) {
		if !strings.Contains(line, "33:33:") && !strings.Contains(line, "01:00:5e") {
			snap.Near = append(snap.Near, rename(line, names))
		}
	}
	for _, line := range s.table(t, "tc", "qdisc", "show") {
		if strings.Contains(line, "clsact") {
			snap.Filters = append(snap.Filters, rename(line, names))
		}
	}
	indices := make(map[string]string)
	for name, index := range s.Host.Links(t) {
		indices["-"+strconv.Itoa(index)] = "-" + names[name]
	}
	for _, path := range s.Host.Pins(t) {
		name := filepath.Base(path)
		if i := strings.LastIndexByte(name, '-'); i > 0 && indices[name[i:]] != "" {
			name = name[:i] + indices[name[i:]]
		}
		snap.Pins = append(snap.Pins, name)
	}
	for _, c := range s.containers {
		if c.Endpoint == bystander {
			continue // it has its conversations
		}
		for _, line := range append(table(t, c.Node, "ip", "-o", "address", "show"), table(t, c.Node, "ip", "route", "show")...) {
			snap.Inside = append(snap.Inside, c.Endpoint+": "+rename(line, nil))
		}
	}
	for _, lines := range [][]string{snap.Addrs, snap.Near, snap.Filters, snap.Pins, snap.Inside} {
		slices.Sort(lines)
	}
	return snap
}

// items lists what a noun tells, by names; what changes with each device is left out.
func (s *stage) items(t *testing.T, noun ...string) map[string]string {
	t.Helper()
	var list netlab.List[map[string]any]
	s.Host.JSON(t, &list, noun...)
	items := make(map[string]string)
	for _, item := range list.Items {
		name := fmt.Sprint(item["name"])
		delete(item, "ifindex")
		delete(item, "host_ifname")
		text, err := json.Marshal(item)
		if err != nil {
			t.Fatal(err)
		}
		items[name] = string(text)
	}
	return items
}

// links fills in the host's devices and returns what they are called in a snapshot.
func (s *stage) links(t *testing.T, snap *snapshot) (names map[string]string) {
	t.Helper()
	var all []struct {
		Ifname, Ifalias, Master, Group, Address string
		Mtu                                     int
		Flags                                   []string
		Linkinfo                                struct {
			Kind string `json:"info_kind"`
		}
	}
	if err := json.Unmarshal([]byte(s.Host.Run(t, "ip", "-j", "-d", "link")), &all); err != nil {
		t.Fatal(err)
	}
	snap.Links, names = make(map[string]string), make(map[string]string)
	for _, l := range all {
		name := l.Ifname
		if strings.HasPrefix(l.Ifalias, "ebnet:") && l.Linkinfo.Kind == "veth" {
			name = l.Ifalias
		}
		names[l.Ifname] = name
		mac := l.Address
		if l.Linkinfo.Kind == "veth" {
			mac = "" // the host's end has one by chance
		}
		flags := slices.DeleteFunc(l.Flags, func(f string) bool { return f != "UP" })
		snap.Links[name] = fmt.Sprint(l.Linkinfo.Kind, " ", l.Ifalias, " ", l.Master, " ", l.Group, " ", mac, " ", l.Mtu, " ", flags)
	}
	return names
}

func (s *stage) table(t *testing.T, command ...string) []string {
	t.Helper()
	return table(t, s.Host.Node, command...)
}

// table returns the lines of a command's output, sorted.
func table(t *testing.T, n *netlab.Node, command ...string) []string {
	t.Helper()
	return slices.Sorted(strings.Lines(n.Run(t, command...)))
}

var (
	noise = regexp.MustCompile(`^\d+: |valid_lft.*|\\ *|handle \w+|link-netns \S+| +$`)
	ether = regexp.MustCompile(`(?:[0-9a-f]{2}:){5}[0-9a-f]{2}`)
	word  = regexp.MustCompile(`[\w.-]+`)
)

// rename replaces the names of devices by what they are called in a snapshot, and takes
// out what differs from device to device.
func rename(line string, names map[string]string) string {
	line = noise.ReplaceAllString(strings.TrimSpace(line), "")
	line = ether.ReplaceAllStringFunc(line, func(mac string) string {
		if strings.HasPrefix(mac, "02:eb") || strings.HasPrefix(mac, "02:ec") {
			return mac
		}
		return "MAC"
	})
	return word.ReplaceAllStringFunc(line, func(w string) string {
		if to, ok := names[w]; ok {
			return to
		}
		return w
	})
}

// files lists a directory; none is an empty one. An empty lock says nothing.
func files(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// between reports whether every network, endpoint and port of the snapshot is as in one of
// the two others: what is right after one of several changes.
func (s *snapshot) between(a, b *snapshot) bool {
	for _, maps := range [][3]map[string]string{{s.Networks, a.Networks, b.Networks}, {s.Endpoints, a.Endpoints, b.Endpoints}} {
		for name, have := range maps[0] {
			if usedOut(have) != usedOut(maps[1][name]) && usedOut(have) != usedOut(maps[2][name]) {
				return false
			}
		}
	}
	return true
}

var counts = regexp.MustCompile(`"(addresses|endpoints)":(\d+|\{[^}]*\})`)

// usedOut leaves out what depends on other items.
func usedOut(item string) string { return counts.ReplaceAllString(item, "") }

// consistent checks what the kernel has against what the nouns tell.
func (s *snapshot) consistent(t *testing.T) {
	t.Helper()
	up := 0
	for _, e := range s.Endpoints {
		if strings.Contains(e, `"state":"up"`) {
			up++
		}
	}
	if s.Entries["endpoints"] != up || s.Entries["devices"] != up || s.Entries["nears"] != up || s.Entries["networks"] != len(s.Networks) || s.Entries["subnets"] != len(s.Networks) {
		t.Errorf("%d networks, %d endpoints that are up, and in the maps %v", len(s.Networks), up, s.Entries)
	}
	if !strings.HasPrefix(s.Doctor, "nothing is wrong") && !strings.Contains(s.Doctor, "is gone") {
		t.Errorf("the doctor finds:\n%s", s.Doctor)
	}
	for name := range maps.Keys(s.Links) {
		if strings.HasPrefix(name, "veb") {
			t.Errorf("device %s has no owner", name)
		}
	}
}
