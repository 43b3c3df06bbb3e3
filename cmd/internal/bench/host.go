package bench

import (
	"context"
	"fmt"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/cmd/internal/bench/report"
)

const hostNote = "A process of the host and one outside, by the uplink: none of it has to do with containers. plain is a host without any, the others have a network with published ports. "

// hostCases are what the host's own traffic pays for its containers.
var hostCases = []report.Case{
	{
		Name: "host/out", Title: "Small datagrams, host to outside", Unit: "packets/s",
		Note: hostNote + "Datagrams of 18 bytes sent by sendmmsg on one CPU, counted at the far end. net_ns is the time for one packet less that of plain.",
	},
	{
		Name: "host/in", Title: "Small datagrams, outside to host", Unit: "packets/s",
		Note: hostNote + "Datagrams of 18 bytes sent by sendmmsg on one CPU, counted by the socket that they are for, which drops them. net_ns is the time for one packet less that of plain.",
	},
	{Name: "host/tcp", Title: "TCP bulk, host to outside, 1 stream", Unit: "bit/s", Note: hostNote + bulkNote},
}

func init() {
	for i := range hostCases {
		c := &hostCases[i]
		c.Group, c.Better = "host", "higher"
	}
}

// The ports of hostways, all ephemeral ones: such as the host's processes have and no published
// port is.
const (
	hostPort        = 45_001
	hostServicePort = 45_002
)

// hostWay is a way between the host itself and outside.
func (s *stage) hostWay(name string) way {
	w := way{name: name, clientPort: hostPort, serverPort: hostServicePort}
	host := end{s.host, uplinkLink, hostAddr}
	if name == "host/in" {
		w.client, w.server = s.outside, host
	} else {
		w.client, w.server = host, s.outside
	}
	w.to, w.seenAs = netip.AddrPortFrom(w.server.addr, w.serverPort), w.client.addr
	return w
}

func planHost(ctx context.Context, l *lab, o *Options) (plan, error) {
	p := &pps{lab: l, seconds: o.Seconds, floorOf: plain.peer, floor: make(map[string]float64)}
	l.closers = append(l.closers, p)
	return planOn(ctx, l, o, hostCases, hostPeers(), func(s *stage, c report.Case) (job, error) {
		w := s.hostWay(c.Name)
		if c.Name == "host/tcp" {
			return bulkJob(w, 1, o), nil
		}
		talk, err := converse(w)
		if err != nil {
			return job{}, err
		}
		p.conversations = append(p.conversations, talk)
		run := func(ctx context.Context) (sample, error) { return p.run(ctx, c.Name, s.peer, talk, false) }
		if c.Name == "host/in" {
			run = func(ctx context.Context) (sample, error) { return p.runIntoSocket(ctx, c.Name, s.peer, talk) }
		}
		return job{estimate: p.estimate(), run: run}, nil
	})
}

// runIntoSocket measures the way to a conversation's server once, up to and with its socket: the
// host's rules lie between its device and that.
func (p *pps) runIntoSocket(ctx context.Context, name, peer string, c *conversation) (sample, error) {
	if err := p.prepare(c); err != nil {
		return sample{}, err
	}
	if err := dropAll(c.serverFD); err != nil {
		return sample{}, err
	}
	count := func() (uint64, error) { return dropped(c.serverFD) }
	f, err := p.lab.flood(ctx, c.clientFD, count, time.Duration(p.seconds*float64(time.Second)))
	if taking := unix.SetsockoptInt(c.serverFD, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err == nil {
		err = taking
	}
	f.arrived &= 1<<32 - 1 // the socket's count is one of 32 bits
	return p.sample(name, peer, f, err)
}

// dropAll lets a socket drop all that it receives, and count it.
func dropAll(fd int) error {
	nothing := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K} // keep 0 bytes
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &nothing}); err != nil {
		return fmt.Errorf("filter of a socket: %w", err)
	}
	return nil
}

// dropped is how many datagrams a socket has dropped.
func dropped(fd int) (uint64, error) {
	var info [9]uint32 // SK_MEMINFO_VARS
	const drops = 8    // SK_MEMINFO_DROPS
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, fmt.Errorf("what a socket dropped: %w", errno)
	}
	return uint64(info[drops]), nil
}
