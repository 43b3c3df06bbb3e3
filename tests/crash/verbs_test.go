package crash

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ebnet/ebnet/tests/netlab"
)

// TestPrivilegedVerbs: whatever a command was doing when it was killed, the conversations of
// others go on, and one `ebnet up` makes the host one where the command has been carried out, or
// never was; then the command can be given again. A command of which one request fails leaves
// the host as it was.
//
// Each verb is killed once, and made to fail once, at every kind of fail-point that it has,
// by chance at one of several of the kind; with EBNET_CRASH=full at every single one.
func TestPrivilegedVerbs(t *testing.T) {
	bin := netlab.FailpointBinary(t)
	t.Run("busy", func(t *testing.T) {
		t.Parallel()
		busy(t, bin).sweep(t, verbs...)
	})
	t.Run("idle", func(t *testing.T) {
		t.Parallel()
		idle(t, bin).sweep(t, hostVerbs...)
	})
	t.Run("clsact", func(t *testing.T) {
		t.Parallel()
		busy(t, bin, "EBNET_TCX=off").sweep(t, filterVerbs...)
	})
	t.Run("clsact idle", func(t *testing.T) {
		t.Parallel()
		idle(t, bin, "EBNET_TCX=off").sweep(t, hostFilterVerbs...)
	})
}

// TestPrivilegedHalfLoaded: a command that is killed while the maps are pinned, which one request
// of the library does, leaves some of them.
func TestPrivilegedHalfLoaded(t *testing.T) {
	s := idle(t, netlab.FailpointBinary(t))
	up := verb{args: []string{"up"}}
	s.Host.Up(t)
	want := s.snapshot(t)
	for range 5 {
		s.Host.Ebnet(t, "down", "--purge")
		list := filepath.Join(t.TempDir(), "points")
		// The first one after all maps are pinned.
		if r := s.with(t, up, "fail:100000,list:"+list); r.Code != 0 {
			t.Fatal(r)
		}
		loaded := slices.Index(read(t, list), "load the programs") + 2
		s.Host.Ebnet(t, "down", "--purge")
		if r := s.with(t, up, killAt(loaded)); r.Code != -1 {
			t.Fatal(r)
		}
		pins := s.Host.Pins(t)
		if len(pins) < 20 {
			t.Fatalf("pins after the kill: %v", pins)
		}
		for _, i := range s.random.Perm(len(pins))[:s.random.IntN(len(pins))] {
			if err := os.Remove(pins[i]); err != nil {
				t.Fatal(err)
			}
		}
		s.up(t)
		if d := cmp.Diff(want, s.snapshot(t)); d != "" {
			t.Errorf("(-want +have):\n%s", d)
		}
		if s.up(t) {
			t.Error("the second up changed something")
		}
	}
}

// TestPrivilegedNoFailpoints: the ebnet that people get has none.
func TestPrivilegedNoFailpoints(t *testing.T) {
	l := netlab.New(t)
	list := filepath.Join(t.TempDir(), "points")
	l.Host.Env = []string{"EBNET_FAILPOINT=kill:1,fail:1,list:" + list}
	l.Host.Up(t)
	if _, err := os.Stat(list); !os.IsNotExist(err) {
		t.Errorf("a list of fail-points was written: %v", err)
	}
	bin, err := os.ReadFile(netlab.Binary())
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(bin, []byte("EBNET_FAILPOINT")) {
		t.Error("the binary knows of EBNET_FAILPOINT")
	}
}

const (
	connectC1 = "connect default $c1 --name c1 --ip 172.18.7.7 -p 9000-9009:9000-9009 -p 40000:80/udp --from 198.51.100.0/24"
	connectC2 = "connect default $c2 --name c2 --ip 172.18.7.8 -p 9100:80"
	exposeC1  = "expose c1 9000-9009:9000-9009 40000-40009:80-89/udp 127.0.0.1:9100:90 198.51.100.2:9101:91 --from 198.51.100.0/24"
	createWeb = "network create web --subnet 10.7.0.0/24 --label a=b"
)

// verbs are for a host that is up.
var verbs = []verb{
	{name: "network create", args: []string{createWeb}, reset: ebnet("network rm web")},
	{name: "network rm", args: []string{"network rm web"}, prepare: ebnet(createWeb), reset: ebnet(createWeb), tear: ebnet("network rm web")},
	{name: "connect", args: []string{connectC1}, reset: ebnet("disconnect c1")},
	{
		name: "connect routed", args: []string{"connect routed $c1 --name c1 --ip 10.9.0.7 -p 80"}, composed: true,
		prepare: ebnet("network create routed --mode routed --subnet 10.9.0.0/24"), reset: ebnet("disconnect c1"), tear: ebnet("network rm routed"),
	},
	{name: "disconnect", args: []string{"disconnect c1"}, prepare: ebnet(connectC1), reset: ebnet(connectC1), tear: ebnet("disconnect c1")},
	{name: "disconnect vanished", args: []string{"disconnect v"}, composed: true, prepare: vanished, reset: vanished, tear: ebnet("disconnect v")},
	{name: "expose", args: []string{exposeC1}, prepare: ebnet(plainC1), reset: ebnet("unexpose c1"), tear: ebnet("disconnect c1")},
	{name: "unexpose", args: []string{"unexpose c1"}, prepare: ebnet(plainC1, exposeC1), reset: ebnet(exposeC1), tear: ebnet("disconnect c1")},
	{
		name: "network rm --force", args: []string{"network rm web --force"}, composed: true,
		prepare: ebnet(createWeb, inWeb1, inWeb2), reset: ebnet(createWeb, inWeb1, inWeb2), tear: ebnet("network rm web --force"),
	},
	{
		name: "network prune", args: []string{"network prune"}, partial: true, composed: true,
		prepare: ebnet(createWeb, "network create blue --subnet 10.8.0.0/24"),
		reset:   ebnet(createWeb, "network create blue --subnet 10.8.0.0/24"), tear: ebnet("network prune"),
	},
	{name: "run", args: []string{"run --name r1 -p 9000:80 -- true"}, reset: ebnet(), settle: onlyBystander, composed: true, transient: true},
	{
		name: "flows --flush", args: []string{"flows --flush --endpoint c1"}, wears: true,
		prepare: talking, reset: talking, tear: ebnet("disconnect c1"),
	},
	{name: "up --fast-path off", args: []string{"up --fast-path off"}, reset: ebnet("up --fast-path on")},
	{name: "up -f", args: []string{"up -f $TMP/after --prune"}, partial: true, composed: true, prepare: file, reset: ebnet("up -f $TMP/before --prune"), tear: ebnet("disconnect c2", "network rm web")},
	{name: "up after a kill", args: []string{"up"}, forward: true, composed: true, prepare: killedConnect, reset: killedConnect, tear: ebnet("up")},
}

const (
	plainC1 = "connect default $c1 --name c1 --ip 172.18.7.7"
	inWeb1  = "connect web $c1 --name c1 --ip 10.7.0.7 -p 9000-9009:9000-9009 -p 40000:80/udp"
	inWeb2  = "connect web $c2 --name c2 --ip 10.7.0.8 -p 9100:80"
)

// hostVerbs are for a host where nothing goes on.
var hostVerbs = []verb{
	{name: "up at first", args: []string{"up"}, reset: ebnet("down --purge")},
	{name: "down", args: []string{"down"}, prepare: recorded, reset: ebnet("up"), forward: true, tear: ebnet("down --purge")},
	{name: "up after a reboot", args: []string{"up"}, composed: true, prepare: rebooted, reset: reboot, tear: ebnet("down --purge")},
	{name: "down --purge", args: []string{"down --purge"}, composed: true, prepare: recorded, reset: purgedRecorded, forward: true, tear: ebnet("down --purge")},
}

// filterVerbs and hostFilterVerbs are those that attach programs, where the kernel has no tcx.
var (
	filterVerbs = []verb{
		{name: "network create", args: []string{createWeb}, reset: ebnet("network rm web")},
		{name: "connect", args: []string{connectC1}, reset: ebnet("disconnect c1")},
		{name: "disconnect", args: []string{"disconnect c1"}, prepare: ebnet(connectC1), reset: ebnet(connectC1), tear: ebnet("disconnect c1")},
		{name: "up --fast-path off", args: []string{"up --fast-path off"}, reset: ebnet("up --fast-path on")},
	}
	hostFilterVerbs = []verb{
		{name: "up after a reboot", args: []string{"up"}, prepare: rebooted, reset: reboot, tear: ebnet("down --purge")},
		{name: "down", args: []string{"down"}, prepare: recorded, reset: ebnet("up"), forward: true, tear: ebnet("down --purge")},
	}
)

// idle is a stage where ebnet is not up, with a bpf file system that it is to mount itself.
func idle(t *testing.T, bin string, env ...string) *stage {
	s := newStage(t, bin, env...)
	s.containers = s.Containers(t, "c1", "c2")
	s.Host.BPFFS = filepath.Join(s.mount, "ebnet")
	return s
}

// endpoints returns how many devices of endpoints there are.
func (s *stage) endpoints(t *testing.T) (n int) {
	for name := range s.Host.Links(t) {
		if strings.HasPrefix(name, "veb") {
			n++
		}
	}
	return n
}

// onlyBystander waits for the kernel to take away what led into namespaces that are gone.
func onlyBystander(t *testing.T, s *stage) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); s.endpoints(t) > 1; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the devices of a namespace that is gone are still there")
		}
	}
}

// vanished connects a namespace and removes it.
func vanished(t *testing.T, s *stage) {
	t.Helper()
	name := s.Name + "-v"
	s.Host.Run(t, "ip", "netns", "add", name)
	s.Host.Ebnet(t, "connect", "default", name, "--name", "v", "--ip", "172.18.7.9", "-p", "9200:80", "-p", "40001:81")
	s.Host.Run(t, "ip", "netns", "delete", name)
	onlyBystander(t, s)
	s.up(t) // sets it aside
}

// talking gives the endpoint flows.
func talking(t *testing.T, s *stage) {
	t.Helper()
	c1 := s.containers[1]
	if s.endpoints(t) == 1 {
		ebnet(plainC1)(t, s)
	}
	for range 3 {
		c, err := c1.Dial("udp", netipZero, internet, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	// The kernel may put what is sent off for a moment.
	var flows struct{ Items []struct{} }
	for end := time.Now().Add(10 * time.Second); len(flows.Items) < 3; time.Sleep(5 * time.Millisecond) {
		if s.Host.JSON(t, &flows, "flows", "--endpoint", "c1"); time.Now().After(end) {
			t.Fatal("the endpoint has no flows")
		}
	}
}

// file writes the two files between which `up -f` changes, and applies the first.
func file(t *testing.T, s *stage) {
	t.Helper()
	const same = "{name: bystander, netns: $bystander, ports: ['8080:80', '5000:5001/udp']}"
	for name, text := range map[string]string{
		"before": "networks: [{name: web, subnets: [10.7.0.0/24]}]\n" +
			"endpoints: [" + same + ", {name: c2, network: web, netns: $c2, ips: [10.7.0.8], ports: ['9100:80']}]\n",
		"after": "networks: [{name: blue, subnets: [10.8.0.0/24]}]\n" +
			"endpoints: [" + same + ", {name: c1, network: blue, netns: $c1, ips: [10.8.0.7], ports: ['9000-9004:80-84', '40000:80/udp']}]\n",
	} {
		if err := os.WriteFile(filepath.Join(s.tmp, name), []byte(s.fill(text)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ebnet("up -f $TMP/before --prune")(t, s)
}

// killedConnect leaves what a command leaves that was killed just before its end.
func killedConnect(t *testing.T, s *stage) {
	t.Helper()
	v := verb{args: s.words(connectC1)}
	list := filepath.Join(t.TempDir(), "points")
	if r := s.with(t, v, "list:"+list); r.Code != 0 {
		t.Fatal(r)
	}
	s.Host.Ebnet(t, "disconnect", "c1")
	points := read(t, list)
	slices.Reverse(points)
	if r := s.with(t, v, killAt(len(points)-slices.Index(points, "commit"))); r.Code != -1 {
		t.Fatal(r)
	}
}

// recorded makes a network, endpoints and ports.
func recorded(t *testing.T, s *stage) {
	t.Helper()
	s.Host.Up(t)
	ebnet(createWeb, inWeb1, connectC2)(t, s)
}

func purgedRecorded(t *testing.T, s *stage) {
	t.Helper()
	ebnet("down --purge")(t, s)
	recorded(t, s)
}

func rebooted(t *testing.T, s *stage) {
	t.Helper()
	recorded(t, s)
	reboot(t, s)
}

// reboot takes away what a reboot does; the containers' namespaces come back as they were.
func reboot(t *testing.T, s *stage) {
	t.Helper()
	for name := range s.Host.Links(t) {
		if strings.HasPrefix(name, "veb") || strings.HasPrefix(name, "br-") || name == "ebnet0" {
			s.Host.Run(t, "ip", "link", "delete", name)
		}
	}
	s.Host.Try(t, nil, "tc", "qdisc", "delete", "dev", netlab.UplinkLink, "clsact") // where it is
	s.Host.SetSysctl(t, "net/ipv4/ip_local_reserved_ports", "\n")
	s.Host.Run(t, "umount", s.Host.BPFFS)
	if err := os.Remove(s.Host.BPFFS); err != nil {
		t.Fatal(err)
	}
}
