package bench

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/loader/netdev"
)

// engineTools are what a Docker Engine with a container takes.
var engineTools = []string{"dockerd", "docker", "busybox", "unshare"}

// errNoEngine says that a Docker Engine is installed and does not run, as within most
// containers.
var errNoEngine = errors.New("no Docker Engine runs here")

// idle is the end of a command line that makes a container which does nothing. As the first
// process of its namespace it would not obey the signal that usually stops containers.
var idle = []string{"--stop-signal", "KILL", imageName, "/busybox", "sleep", "1000000"}

const (
	imageName     = "bench"
	containerName = "c1" // of a site's only one; Docker wants two characters
)

// engine is a Docker Engine of the benchmark's own: in a namespace, with all its files in
// one directory, its cgroups under one name, and mounts that end with it.
type engine struct {
	host   *node
	dir    string
	group  string // name of its cgroups, unique
	log    *os.File
	exited chan struct{}
	daemon *os.Process // nil: not started
}

// startEngine starts an engine. Its rules and bridges go with the host's namespace, the rest
// by Close. proxy is whether it starts a process for each published port, as by default.
//
// Returns errNoEngine if it ends, or does not answer.
func startEngine(ctx context.Context, host *node, dir, group string, proxy bool) (*engine, error) {
	e := &engine{host: host, dir: dir, group: group, exited: make(chan struct{})}
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		e.log, err = os.Create(filepath.Join(dir, "log"))
	}
	if err == nil {
		err = e.start(proxy)
	}
	if err == nil {
		err = e.answers(ctx)
	}
	if err == nil {
		err = e.importImage(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// start starts dockerd, which ends with this process however that ends: the thread that has
// forked it waits for it.
func (e *engine) start(proxy bool) error {
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "dockerd",
		"--data-root", filepath.Join(e.dir, "data"), "--exec-root", filepath.Join(e.dir, "exec"),
		"--pidfile", filepath.Join(e.dir, "pid"), "--host", e.socket(),
		"--config-file", filepath.Join(e.dir, "none.json"), // not the host's
		"--cgroup-parent", "/"+e.group, "--storage-driver", "vfs",
		"--userland-proxy="+strconv.FormatBool(proxy))
	cmd.Stdout, cmd.Stderr = e.log, e.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := os.WriteFile(filepath.Join(e.dir, "none.json"), []byte("{}\n"), 0o600); err != nil {
		return err
	}
	started := make(chan error, 1)
	go func() {
		defer close(e.exited)
		err := e.host.do(func() error {
			if err := cmd.Start(); err != nil {
				return err
			}
			e.daemon = cmd.Process
			started <- nil
			_ = cmd.Wait() // the log says why
			return nil
		})
		if err != nil {
			started <- fmt.Errorf("%w: %w", errNoEngine, err)
		}
	}()
	return <-started
}

// answerLimit is how long an engine may take to answer first.
const answerLimit = 30 * time.Second

func (e *engine) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	for {
		_, err := e.docker(ctx, "version")
		if err == nil {
			return nil
		}
		select {
		case <-e.exited:
			return fmt.Errorf("%w: %s", errNoEngine, e.lastWords())
		case <-ctx.Done():
			return fmt.Errorf("%w: it does not answer: %w", errNoEngine, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (e *engine) socket() string { return "unix://" + filepath.Join(e.dir, "sock") }

// docker runs a command of the client and returns its output.
func (e *engine) docker(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "docker", append([]string{"--host", e.socket()}, args...)...)
	// Neither the user's settings nor an engine that the user works with.
	cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+e.dir, "DOCKER_CONTEXT=", "DOCKER_HOST=", "DOCKER_TLS_VERIFY=")
	return finish(e.host, cmd)
}

// lastWords is the last line of the engine's log.
func (e *engine) lastWords() string {
	log, _ := os.ReadFile(e.log.Name())
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	return lines[len(lines)-1]
}

// importImage makes an image of one file.
func (e *engine) importImage(ctx context.Context) error {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	busybox, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var image bytes.Buffer
	w := tar.NewWriter(&image)
	if err := w.WriteHeader(&tar.Header{Name: "busybox", Mode: 0o755, Size: int64(len(busybox))}); err != nil {
		return err
	}
	_, _ = w.Write(busybox) // to memory
	_ = w.Close()
	file := filepath.Join(e.dir, "image.tar")
	if err := os.WriteFile(file, image.Bytes(), 0o600); err != nil {
		return err
	}
	_, err = e.docker(ctx, "import", file, imageName)
	return err
}

// container starts an idle container with the client's arguments, and returns its namespace
// under a name.
func (e *engine) container(ctx context.Context, name string, args ...string) (*node, error) {
	if _, err := e.docker(ctx, slices.Concat([]string{"run", "-d", "--name", name}, args, idle)...); err != nil {
		return nil, err
	}
	pid, err := e.docker(ctx, "inspect", "-f", "{{.State.Pid}}", name)
	if err != nil {
		return nil, err
	}
	n := &node{name: e.host.name + "-" + name}
	if err := e.host.run(ctx, "ip", "netns", "attach", n.name, strings.TrimSpace(pid)); err != nil {
		return nil, err
	}
	if n.ns, err = netdev.OpenNS(n.name); err != nil {
		return nil, errors.Join(err, netdev.DeleteNamed(n.name))
	}
	return n, nil
}

// stopLimit is how long an engine may take to stop its containers and to end.
const stopLimit = 20 * time.Second

// Close ends the engine and takes away what it leaves.
func (e *engine) Close() error {
	if e.daemon != nil {
		_ = e.daemon.Signal(unix.SIGTERM) // it may have ended
		select {
		case <-e.exited:
		case <-time.After(stopLimit): // with thousands of ports it takes minutes
			_ = e.daemon.Kill()
			<-e.exited
		}
	}
	err := killRest(e.host, e.group)
	if e.log != nil {
		_ = e.log.Close() // nothing is written any more
	}
	return errors.Join(err, removeCgroups(e.group), os.RemoveAll(e.dir))
}

// killRest ends what an engine leaves that was not given the time to end: containers, the
// processes between it and them, and those that stand for published ports.
func killRest(host *node, group string) error {
	for end := time.Now().Add(stopLimit); ; time.Sleep(20 * time.Millisecond) {
		rest, err := processesIn(host)
		if err != nil {
			return err
		}
		pids := cgroupProcesses(group)
		for pid := range rest {
			pids = append(pids, pid)
		}
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("processes of a Docker Engine do not end: %v", pids)
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended
		}
	}
}

// sweepNode takes away a namespace that a killed run has left, with the engine that may be at
// work there, or what is left of it.
func sweepNode(name string) {
	if ns, err := netdev.OpenNS(name); err == nil {
		_ = killRest(&node{name: name, ns: ns}, name) // see sweep
		_ = ns.Close()
	}
	_ = removeCgroups(name)
	_ = netdev.DeleteNamed(name)
}

// cgroupDirs are the cgroups of one name at the top of each hierarchy.
func cgroupDirs(name string) []string {
	mounts, _ := os.ReadFile("/proc/self/mounts") // none: no cgroups either
	var dirs []string
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) < 3 || (f[2] != "cgroup" && f[2] != "cgroup2") {
			continue
		}
		dir := filepath.Join(f[1], name)
		if _, err := os.Stat(dir); err == nil {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// cgroupProcesses are the processes in the cgroups of one name, and in those below.
func cgroupProcesses(name string) []int {
	var pids []int
	for _, dir := range cgroupDirs(name) {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.Name() != "cgroup.procs" {
				return nil // gone meanwhile
			}
			procs, _ := os.ReadFile(path)
			for _, word := range strings.Fields(string(procs)) {
				if pid, err := strconv.Atoi(word); err == nil {
					pids = append(pids, pid)
				}
			}
			return nil
		})
	}
	slices.Sort(pids)
	return slices.Compact(pids)
}

// removeCgroups takes away the cgroups of one name, and those below.
func removeCgroups(name string) error {
	var errs []error
	for _, top := range cgroupDirs(name) {
		var dirs []string
		_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) { // what is inside comes later
			if err := unix.Rmdir(dir); err != nil && err != unix.ENOENT {
				errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dir, err))
			}
		}
	}
	return errors.Join(errs...)
}

// newEngine makes a host with an engine for a site.
func (l *controlLab) newEngine(ctx context.Context, s *site, proxy bool) (_ *engine, err error) {
	name := l.siteName()
	if s.host, err = s.node(ctx, name); err != nil {
		return nil, err
	}
	e, err := startEngine(ctx, s.host, filepath.Join(l.dir, name), name, proxy)
	if err == nil {
		s.later(e.Close)
	}
	return e, err
}

// dockerPublishes times the start and the removal of a container, since Docker publishes no
// port of one that runs.
func (l *controlLab) dockerPublishes(ctx context.Context, s *site, proxy bool) error {
	e, err := l.newEngine(ctx, s, proxy)
	if err != nil {
		return err
	}
	s.ready = func(ctx context.Context, size int) error {
		ports := portRange(size)
		_, err := e.docker(ctx, slices.Concat([]string{"create", "--name", containerName, "-p", ports + ":" + ports}, idle)...)
		return err
	}
	s.do = func(ctx context.Context, _ int) error {
		_, err := e.docker(ctx, "start", containerName)
		return err
	}
	s.undo = func(ctx context.Context, _ int) error {
		_, err := e.docker(ctx, "rm", "-f", containerName)
		return err
	}
	return nil
}
