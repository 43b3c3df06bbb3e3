package e2e

import (
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ebnet/ebnet/tests/netlab"
)

// installed runs make install, for the ebnet under test, below a directory, and returns it.
func installed(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	makeTarget(t, "install", root)
	return root
}

func makeTarget(t *testing.T, target, root string) {
	t.Helper()
	cmd := exec.Command("make", "-C", "../..", "-o", "build", target, "BUILT="+netlab.Binary(), "DESTDIR="+root, "RUNDIR="+root+"/run")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make %s: %v\n%s", target, err, out)
	}
}

// files lists the files below a directory, with their modes.
func files(t *testing.T, root string) map[string]fs.FileMode {
	t.Helper()
	all := map[string]fs.FileMode{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			all[strings.TrimPrefix(path, root)] = info.Mode()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

const (
	unitDir = "/usr/local/lib/systemd/system"
	hookDir = "/etc/networkd-dispatcher"
)

// TestPrivilegedInstall: everything is where it is looked for, with the modes that it needs; uninstall takes
// all of it away.
func TestPrivilegedInstall(t *testing.T) {
	if _, err := exec.LookPath("make"); err != nil {
		t.Skip("SKIP: make is not installed")
	}
	root := installed(t)
	want := map[string]fs.FileMode{
		"/usr/local/bin/ebnet": 0o755, "/usr/local/share/bash-completion/completions/ebnet": 0o644,
		unitDir + "/ebnet.service": 0o644, unitDir + "/ebnet-changed.service": 0o644, unitDir + "/ebnet-changed.path": 0o644,
	}
	for _, state := range []string{"routable", "degraded", "carrier", "no-carrier", "off", "configured"} {
		want[hookDir+"/"+state+".d/50-ebnet"] = 0o755
	}
	found := files(t, root)
	for name, mode := range want {
		if found[name] != mode {
			t.Errorf("%s has mode %v, want %v", name, found[name], mode)
		}
	}
	if len(found) != len(want) {
		t.Errorf("installed are %v", found)
	}
	for name := range found {
		text, err := os.ReadFile(root + name)
		if err != nil || strings.Contains(string(text), "@BINDIR@") && !strings.HasSuffix(name, "/ebnet") || len(text) == 0 {
			t.Errorf("%s (%v) is\n%s", name, err, text)
		}
	}
	t.Run("systemd reads the units", func(t *testing.T) { verifyUnits(t, root) })
	makeTarget(t, "uninstall", root)
	if left := files(t, root); len(left) != 0 {
		t.Errorf("left by uninstall: %v", left)
	}
}

// verifyUnits has systemd read the units. What they start is not in its place here.
func verifyUnits(t *testing.T, root string) {
	t.Helper()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("SKIP: systemd-analyze is not installed")
	}
	var units []string
	for _, name := range []string{"ebnet.service", "ebnet-changed.service", "ebnet-changed.path"} {
		text, err := os.ReadFile(root + unitDir + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(root, name)
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), "/usr/local/bin/", root+"/usr/local/bin/")), 0o644); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(path)
		units = append(units, path)
	}
	out, err := exec.Command("systemd-analyze", append([]string{"verify", "--man=no", "--recursive-errors=no"}, units...)...).CombinedOutput()
	if err != nil || strings.Contains(string(out), "ebnet") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// unitSettings returns the values of a setting of an installed unit.
func unitSettings(t *testing.T, root, unit, setting string) (values []string) {
	t.Helper()
	text, err := os.ReadFile(root + unitDir + "/" + unit)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), setting+"="); ok {
			values = append(values, value)
		}
	}
	return values
}

// dispatch does what networkd-dispatcher does when a device gets into a state, and then what systemd does if that made the
// file that the path unit looks for. It returns whether that was so.
func dispatch(t *testing.T, h *netlab.Host, root, device, state string) bool {
	t.Helper()
	hook := filepath.Join(root, hookDir, state+".d", "50-ebnet")
	if r := h.Try(t, []string{"IFACE=" + device, "STATE=" + state}, "unshare", "--mount", "sh", "-c", "mount -t sysfs sysfs /sys && exec "+hook); r.Code != 0 {
		t.Fatal(r)
	}
	if _, err := os.Stat(unitSettings(t, root, "ebnet-changed.path", "PathExists")[0]); err != nil {
		return false
	}
	for _, setting := range []string{"ExecStartPre", "ExecStart"} {
		words := strings.Fields(unitSettings(t, root, "ebnet-changed.service", setting)[0])
		if setting == "ExecStart" {
			if words[0] != "/usr/local/bin/ebnet" {
				t.Fatalf("the unit starts %v", words)
			}
			words = append(limited(t, root), h.Command(words[1:]...)...)
		}
		if r := h.Try(t, h.Env, words...); r.Code != 0 {
			t.Fatal(r)
		}
	}
	return true
}

// limited is a command that runs another with the unit's capabilities.
func limited(t *testing.T, root string) []string {
	t.Helper()
	capabilities := unitSettings(t, root, "ebnet-changed.service", "CapabilityBoundingSet")[0]
	if !slices.Equal(unitSettings(t, root, "ebnet.service", "CapabilityBoundingSet"), []string{capabilities}) {
		t.Error("the units have not the same capabilities")
	}
	set := "-all"
	for _, c := range strings.Fields(capabilities) {
		set += ",+" + strings.ToLower(strings.TrimPrefix(c, "CAP_"))
	}
	return []string{"setpriv", "--no-new-privs", "--bounding-set", set, "--inh-caps", "-all"}
}

// TestPrivilegedNewUplink: a way out that nobody has told ebnet of is none, whatever the routes say, until the hook
// has run; an address that is gone is not used.
func TestPrivilegedNewUplink(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode[2:], func(t *testing.T) {
			t.Parallel()
			root := installed(t) // the file by which the hook tells is in it
			s := newSite(t, netlab.New(t), mode)
			s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8080:80")
			out, err := s.w1.DialEcho(netip.AddrPort{}, at(netlab.InternetAddr, internetPort))
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			second := s.SecondUplink(t)
			second.Serve(t, internetPort)
			second.Run(t, "ip", "route", "add", "172.16.0.0/12", "via", netlab.SecondHostAddr.String())
			leaked := []*netlab.Sniffer{second.Sniff(t, s.w1.Addr), s.Internet.Sniff(t, s.w1.Addr)}

			s.Host.Run(t, "ip", "route", "replace", "default", "via", netlab.SecondInternetAddr.String())
			second.Run(t, "ip", "address", "add", behindSecond.String()+"/32", "dev", "lo")
			for _, p := range protocols {
				if peer, err := s.w1.Who(p, at(behindSecond, internetPort), blocked); err == nil {
					t.Errorf("%s by a way out that is not guarded works, as %v", p, peer)
				}
			}
			isBlocked(t, second, "udp", at(s.w1.Addr, containerPort), s.at1)
			isBlocked(t, second, "tcp", at(netlab.SecondHostAddr, 8080), s.at1)
			// A conversation under way that the routes now send there.
			s.Host.Run(t, "ip", "route", "add", netlab.InternetAddr.String()+"/32", "via", netlab.SecondInternetAddr.String())
			if err := out.SayWithin("by another way", 1200*time.Millisecond); err == nil {
				t.Error("a connection goes on by a way out that is not guarded")
			}
			s.Host.Run(t, "ip", "route", "del", netlab.InternetAddr.String()+"/32")
			if found := examine(t, s.Host); len(found) == 0 || found[0].Check != "uplinks" || found[0].What != "device "+netlab.SecondUplinkLink {
				t.Errorf("doctor says %+v", found)
			}
			for _, l := range leaked {
				if n := l.Packets(); n != 0 {
					t.Errorf("%d packets left with the container's address", n)
				}
			}

			if dispatch(t, s.Host, root, s.Host.Endpoints(t)[s.w1.Endpoint].HostLink, "routable") || dispatch(t, s.Host, root, "lo", "routable") {
				t.Error("the hook runs for devices that are no uplinks")
			}
			if !dispatch(t, s.Host, root, netlab.SecondUplinkLink, "routable") {
				t.Error("the hook does nothing")
			}
			for _, p := range protocols {
				reaches(t, s.w1.Node, p, at(behindSecond, internetPort), netlab.SecondHostAddr)
			}
			reaches(t, second, "tcp", at(netlab.SecondHostAddr, 8080), netlab.SecondInternetAddr)
			addressGone(t, s, root)
			for _, l := range leaked {
				if n := l.Packets(); n != 0 {
					t.Errorf("%d packets left with the container's address", n)
				}
			}
			if found := examine(t, s.Host); len(found) != 0 {
				t.Errorf("at the end doctor says %+v", found)
			}
		})
	}
}

// addressGone takes the address that a conversation leaves with away from the uplink.
func addressGone(t *testing.T, s *site, root string) {
	t.Helper()
	out, err := s.w1.DialEcho(netip.AddrPort{}, at(netlab.InternetAddr, internetPort))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	s.Host.Run(t, "ip", "-4", "address", "flush", "dev", netlab.UplinkLink)
	s.Host.Run(t, "ip", "address", "add", movedAddr.String()+"/24", "dev", netlab.UplinkLink)
	time.Sleep(1100 * time.Millisecond) // conversations look once a second
	stale := s.Internet.Sniff(t, netlab.HostAddr)
	if err := out.SayWithin("gone", time.Second); err == nil {
		t.Error("a connection goes on with an address that the host has lost")
	}
	if n := stale.Packets(); n != 0 {
		t.Errorf("%d packets left with the address that is gone", n)
	}
	dispatch(t, s.Host, root, netlab.UplinkLink, "configured")
	for _, p := range protocols {
		reaches(t, s.w1.Node, p, at(netlab.InternetAddr, internetPort), movedAddr)
	}
	reaches(t, s.Internet, "tcp", at(movedAddr, 8080), netlab.InternetAddr)
	for _, a := range []netip.Addr{netlab.HostAddr, netlab.HostAddr2} {
		s.Host.Run(t, "ip", "address", "add", a.String()+"/24", "dev", netlab.UplinkLink)
	}
	dispatch(t, s.Host, root, netlab.UplinkLink, "configured")
}
