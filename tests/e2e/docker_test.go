package e2e

import (
	"archive/tar"
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/tests/netlab"
)

// TestPrivilegedDocker: a Docker Engine and ebnet on one host, each with containers and
// published ports of its own, which reach each other by the host's addresses and not else.
func TestPrivilegedDocker(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		d := startDocker(t, s)
		theirs := d.run(t, "-p", "9090:80/tcp", "-p", "9090:80/udp")
		service := theirs.Serve(t, containerPort)
		theirAddr := netip.MustParseAddr(strings.TrimSpace(d.docker(t, "inspect", "-f", "{{.NetworkSettings.IPAddress}}", "d1")))
		for _, p := range protocols {
			reaches(t, s.w2.Node, p, at(netlab.HostAddr, 9090), s.w2.Addr)
		}
		s.Host.Up(t) // now that there is Docker's bridge
		s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8080:80/tcp", "8080:80/udp")
		server, docker, ebnet := at(netlab.InternetAddr, internetPort), at(netlab.HostAddr, 9090), at(netlab.HostAddr, 8080)

		for _, p := range protocols {
			reaches(t, theirs, p, server, netlab.HostAddr)
			reaches(t, s.Internet, p, docker, netlab.InternetAddr)
			reaches(t, s.w1.Node, p, server, netlab.HostAddr)
			reaches(t, s.Internet, p, ebnet, netlab.InternetAddr)
			reaches(t, s.w2.Node, p, ebnet, s.w2.Addr)
			reaches(t, s.w2.Node, p, docker, s.w2.Addr)
			reaches(t, theirs, p, ebnet, theirAddr)
			isBlocked(t, s.w1.Node, p, at(theirAddr, containerPort), service)
			isBlocked(t, theirs, p, at(s.w1.Addr, containerPort), s.at1)
		}
		pings(t, theirs, netlab.InternetAddr)
		pings(t, s.w1.Node, netlab.InternetAddr)
		t.Run("all at once", func(t *testing.T) {
			var wg sync.WaitGroup
			for from, to := range map[*netlab.Node][]netip.AddrPort{
				theirs: {server, ebnet}, s.Internet: {docker, ebnet}, s.w1.Node: {server, docker}, s.w2.Node: {docker, ebnet},
			} {
				for _, to := range to {
					wg.Go(func() { bulk(t, from, to, 4<<20) })
				}
			}
			wg.Wait()
		})
		t.Run("Docker ends", func(t *testing.T) {
			d.stop(t)
			for _, p := range protocols {
				reaches(t, s.w1.Node, p, server, netlab.HostAddr)
				reaches(t, s.Internet, p, ebnet, netlab.InternetAddr)
			}
		})
	})
}

// docker is an engine that runs in the host's namespace, with all its files in one
// directory, and with mounts that end with it.
type docker struct {
	site   *site
	dir    string
	cmd    *exec.Cmd
	exited chan struct{}
	log    *os.File
	nodes  []*netlab.Node
}

// startDocker starts an engine that ends with the test, or skips the test.
func startDocker(t *testing.T, s *site) *docker {
	t.Helper()
	for _, tool := range []string{"dockerd", "docker", "busybox"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIP: no Docker Engine here: %v", err)
		}
	}
	// The name of a socket must be short.
	dir, err := os.MkdirTemp("", "ebd")
	if err != nil {
		t.Fatal(err)
	}
	d := &docker{site: s, dir: dir, exited: make(chan struct{})}
	t.Cleanup(func() { d.clean(t) })
	if d.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	defer d.log.Close()
	d.cmd = exec.Command("unshare", "--mount", "--propagation", "private", "dockerd",
		"--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"), "--host", d.socket(), "--iptables=true",
		"--cgroup-parent", "/"+filepath.Base(dir), "--storage-driver", "vfs")
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	if err := s.Host.Start(d.cmd); err != nil {
		t.Skipf("SKIP: start dockerd: %v", err)
	}
	go func() {
		_ = d.cmd.Wait() // the log says why
		close(d.exited)
	}()
	for deadline := time.Now().Add(2 * works); d.try(t, "version").Code != 0; {
		select {
		case <-d.exited:
			t.Skipf("SKIP: dockerd does not run here:\n%s", d.lastWords())
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Skipf("SKIP: dockerd does not answer:\n%s", d.lastWords())
		}
	}
	d.importImage(t)
	return d
}

func (d *docker) socket() string { return "unix://" + filepath.Join(d.dir, "sock") }

func (d *docker) try(t *testing.T, args ...string) netlab.Result {
	t.Helper()
	return d.site.Host.Try(t, nil, append([]string{"docker", "-H", d.socket()}, args...)...)
}

// docker runs a command of the client, which must succeed, and returns its output.
func (d *docker) docker(t *testing.T, args ...string) string {
	t.Helper()
	r := d.try(t, args...)
	if r.Code != 0 {
		t.Fatalf("%v\n%s", r, d.lastWords())
	}
	return r.Stdout
}

// lastWords are the end of the engine's log.
func (d *docker) lastWords() string {
	log, _ := os.ReadFile(filepath.Join(d.dir, "log"))
	return string(log[max(0, len(log)-2000):])
}

// importImage makes an image of one file.
func (d *docker) importImage(t *testing.T) {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	busybox, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var image bytes.Buffer
	w := tar.NewWriter(&image)
	if err := w.WriteHeader(&tar.Header{Name: "busybox", Mode: 0o755, Size: int64(len(busybox))}); err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(busybox) // to memory
	_ = w.Close()
	file := filepath.Join(d.dir, "image.tar")
	if err := os.WriteFile(file, image.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	d.docker(t, "import", file, "busybox")
}

// run starts a container that does nothing and returns its namespace, in which the test
// does it.
func (d *docker) run(t *testing.T, args ...string) *netlab.Node {
	t.Helper()
	if r := d.try(t, append(append([]string{"run", "-d", "--name", "d1"}, args...), "busybox", "/busybox", "sleep", "600")...); r.Code != 0 {
		t.Skipf("SKIP: Docker runs no container here: %v\n%s", r, d.lastWords())
	}
	pid := strings.TrimSpace(d.docker(t, "inspect", "-f", "{{.State.Pid}}", "d1"))
	n := &netlab.Node{Name: d.site.Name + "-d1"}
	d.site.Host.Run(t, "ip", "netns", "attach", n.Name, pid)
	d.nodes = append(d.nodes, n)
	return n
}

// stop removes the containers and ends the engine; twice is no error.
func (d *docker) stop(t *testing.T) {
	t.Helper()
	for _, n := range d.nodes {
		d.site.Host.Run(t, "ip", "netns", "del", n.Name)
	}
	if len(d.nodes) > 0 {
		d.try(t, "rm", "-f", "d1")
	}
	d.nodes = nil
	if d.cmd == nil || d.cmd.Process == nil {
		return
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-d.exited:
	case <-time.After(works):
		t.Errorf("dockerd does not end:\n%s", d.lastWords())
		_ = d.cmd.Process.Kill()
		<-d.exited
	}
}

// clean takes away what the engine leaves: its bridge, its rules, its groups, its files.
func (d *docker) clean(t *testing.T) {
	d.stop(t)
	h := d.site.Host
	h.Try(t, nil, "ip", "link", "del", "docker0") // it may not have come that far
	h.Run(t, "nft", "flush", "ruleset")
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + filepath.Base(d.dir))
	for _, group := range groups {
		if err := unix.Rmdir(group); err != nil {
			t.Errorf("remove a cgroup of Docker's: %v", err)
		}
	}
	if err := os.RemoveAll(d.dir); err != nil {
		t.Errorf("remove Docker's files: %v", err)
	}
}
