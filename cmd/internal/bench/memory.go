package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/cmd/internal/bench/report"
)

// memoryCases are what conversations cost of the kernel's memory.
var memoryCases = []report.Case{{
	Name: "memory/flow", Title: "Kernel memory of a confirmed conversation", Group: "memory",
	Unit: "bytes", Better: "lower",
	Note: "TCP connections from a container to outside, all open at once. Bytes of kernel memory that go to the maps of " +
		"conversations, by what the kernel counts for these maps, for each connection; slab_bytes is the same by what the " +
		"allocator has handed out, in its classes of size, and after_bytes is what is still counted a minute after all have ended.",
}}

// Connections are opened by this many ports of the container, from the first one on, to
// memoryPort outside.
const (
	memoryFlows     = 20000
	memoryFirstPort = 20000
	memoryPort      = 7100
)

// flowMaps are the maps that grow with confirmed conversations.
var flowMaps = []string{"flows", "sweep_queue"}

// planMemory measures ebnet alone: of others the kernel does not count it.
func planMemory(ctx context.Context, l *lab, o *Options) (plan, error) {
	p := plan{cases: o.wanted(memoryCases)}
	if len(p.cases) == 0 || !o.wantsPeer("ebnet") {
		return p, ctx.Err()
	}
	c := &controlLab{lab: l}
	first := true // which takes a minute longer
	p.jobs = []job{{caseName: memoryCases[0].Name, peer: "ebnet", estimate: 17 * time.Second, run: func(ctx context.Context) (sample, error) {
		wait := first
		first = false
		return c.flowMemory(ctx, wait)
	}}}
	return p, ctx.Err()
}

// flowMemory opens connections by an ebnet of its own, which has had none, and reads what they
// cost. If it is to wait, it ends them and looks whether they cost anything then.
func (l *controlLab) flowMemory(ctx context.Context, wait bool) (_ sample, err error) {
	s := &site{}
	defer func() { err = errors.Join(err, s.close()) }()
	e, err := l.newEbnet(ctx, s)
	if err != nil {
		return sample{}, err
	}
	if err := e.run(ctx, "connect", "default", e.container.name, "--name", containerName); err != nil {
		return sample{}, err
	}
	server, err := listen(end{e.outside, outsideLink, outsideAddr}, memoryPort, memoryFlows)
	if err != nil {
		return sample{}, err
	}
	// With the listener end the connections that it was never asked for.
	s.later(func() error { return unix.Close(server) })
	before, err := e.readMemory()
	if err != nil {
		return sample{}, err
	}
	if err := connectMany(ctx, e.container, netip.AddrPortFrom(outsideAddr, memoryPort), memoryFlows); err != nil {
		return sample{}, err
	}
	open, err := e.readMemory()
	if err != nil {
		return sample{}, err
	}
	out := sample{value: (open.maps - before.maps) / memoryFlows, extra: make(map[string]float64)}
	if open.slabs > 0 {
		out.extra["slab_bytes"] = (open.slabs - before.slabs) / memoryFlows
	}
	if wait {
		after, err := e.forget(ctx, before)
		if err != nil {
			return sample{}, err
		}
		out.extra["after_bytes"] = (after.maps - before.maps) / memoryFlows
	}
	return out, nil
}

// forgetLimit is how long ebnet may take to let go of ended conversations: the sweep comes by
// once a minute.
const forgetLimit = 70 * time.Second

// forget ends all conversations and returns the memory in use when it has come down to what it
// was before, or does not come down any more.
func (e *ebnetCommand) forget(ctx context.Context, before memory) (m memory, err error) {
	if err := e.run(ctx, "flows", "--flush"); err != nil {
		return memory{}, err
	}
	for end := time.Now().Add(forgetLimit); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(time.Second) {
		if m, err = e.readMemory(); err != nil || m.maps <= before.maps {
			return m, err
		}
	}
	return m, ctx.Err()
}

// memory is what the kernel's memory is used for, in bytes.
type memory struct {
	maps  float64 // by the maps of conversations, as counted for them
	slabs float64 // by objects of all sizes that maps may take; 0: the kernel does not tell
}

func (e *ebnetCommand) readMemory() (m memory, err error) {
	for _, name := range flowMaps {
		size, err := mapMemory(filepath.Join(e.lab.bpffs(), e.name, "v*", "maps", name))
		if err != nil {
			return memory{}, fmt.Errorf("memory of map %s: %w", name, err)
		}
		m.maps += size
	}
	if info, err := os.ReadFile("/proc/slabinfo"); err == nil {
		m.slabs = slabBytes(string(info))
	}
	return m, nil
}

// mapMemory returns what the kernel accounts for a map by its pin.
func mapMemory(pattern string) (float64, error) {
	pins, err := filepath.Glob(pattern)
	if err != nil {
		return 0, err
	}
	if len(pins) != 1 {
		return 0, fmt.Errorf("%d pins, not one", len(pins))
	}
	m, err := ebpf.LoadPinnedMap(pins[0], &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return 0, err
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		return 0, err
	}
	size, ok := info.Memlock()
	if !ok {
		return 0, errors.New("this kernel does not tell")
	}
	return float64(size), nil
}

// slabBytes sums up, from /proc/slabinfo, the objects in the classes of size that serve whoever
// has no class of his own and is charged for it, as maps are.
func slabBytes(info string) float64 {
	var sum float64
	for line := range strings.Lines(info) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[0], "kmalloc-cg-") {
			continue
		}
		active, err := strconv.ParseFloat(f[1], 64)
		if err != nil {
			continue
		}
		size, err := strconv.ParseFloat(f[3], 64)
		if err == nil {
			sum += active * size
		}
	}
	return sum
}

// listen opens a socket that takes so many connections without being asked for one.
func listen(e end, port uint16, backlog int) (fd int, err error) {
	if err := e.setSysctl("net/core/somaxconn", strconv.Itoa(backlog)); err != nil {
		return -1, err
	}
	if err := e.do(func() error {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return err
	}); err != nil {
		return -1, err
	}
	err = firstError(
		func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) },
		func() error { return unix.Bind(fd, sockaddr(netip.AddrPortFrom(e.addr, port))) },
		func() error { return unix.Listen(fd, backlog) },
	)
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("listen at %s:%d: %w", e.addr, port, err)
	}
	return fd, nil
}

// connectMany opens connections, and takes its own ends of them away without a word: for all
// others they are open.
func connectMany(ctx context.Context, n *node, to netip.AddrPort, count int) error {
	return n.do(func() error {
		for port := memoryFirstPort; port < memoryFirstPort+count; port++ {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := connectSilently(netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(port)), to); err != nil {
				return fmt.Errorf("connect from port %d: %w", port, err)
			}
		}
		return nil
	})
}

func connectSilently(from, to netip.AddrPort) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// The answer to SYN must not be waited for without end, as it would be for minutes.
	wait := unix.NsecToTimeval((5 * time.Second).Nanoseconds())
	return firstError(
		func() error { return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait) },
		func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) },
		func() error { return unix.Bind(fd, sockaddr(from)) },
		func() error { return connect(fd, to) },
		func() error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1) },
	)
}

// connect waits for the connection whatever signals the Go runtime sends itself meanwhile.
func connect(fd int, to netip.AddrPort) error {
	for {
		switch err := unix.Connect(fd, sockaddr(to)); err {
		case unix.EINTR: // and goes on
		case unix.EISCONN:
			return nil
		default:
			return err
		}
	}
}
