package netdev

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Holder is a socket that keeps others from binding a port.
type Holder struct {
	Addr    netip.Addr // bound address, unspecified for any
	Port    uint16
	PID     int    // 0: not found (gone, or of another pid namespace)
	Command string // name of the process, "" if not found
}

// PortHolder returns who holds the port in the calling thread's namespace, if
// anyone, so that a bind to addr would fail. See PortHolders.
func PortHolder(proto uint8, addr netip.Addr, port uint16) (h Holder, ok bool, err error) {
	holders, err := PortHolders(proto, addr, port, port)
	if err != nil || len(holders) == 0 {
		return Holder{}, false, err
	}
	return holders[0], true, nil
}

// PortHolders returns who holds ports first to last in the calling thread's
// namespace, by port, at most one for each port, in one look at the kernel's
// tables. proto is unix.IPPROTO_TCP or IPPROTO_UDP.
//
// A socket holds a port if bind(2) of another to addr would collide with it:
// 0.0.0.0 collides with every IPv4 address, :: with every IPv6 address and,
// where the socket found is not IPv6-only, with IPv4 too; addr itself, if ::, is
// taken as IPv6-only, and the zero addr as 0.0.0.0 and :: at once. In TCP the
// sockets that listen or are bound but not connected count (the latter are seen
// since Linux 6.8), in UDP all.
//
// Returns ErrInvalid for another protocol, ErrUnsupported if the kernel cannot
// list its sockets.
func PortHolders(proto uint8, addr netip.Addr, first, last uint16) ([]Holder, error) {
	if proto != unix.IPPROTO_TCP && proto != unix.IPPROTO_UDP {
		return nil, fmt.Errorf("protocol %d: %w: neither TCP nor UDP", proto, ErrInvalid)
	}
	var found []socket
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := dumpSockets(proto, family, first, last, func(s socket) {
			if s.port >= first && s.port <= last && s.collides(addr.Unmap()) {
				found = append(found, s)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(found, func(a, b socket) int { return cmp.Compare(a.port, b.port) })
	found = slices.CompactFunc(found, func(a, b socket) bool { return a.port == b.port })
	return describe(found), nil
}

// socket is what of a socket matters for bind(2).
type socket struct {
	addr   netip.Addr
	port   uint16
	v6only bool
	inode  uint32
}

// collides reports whether a bind to want (zero: any of both families) would.
func (s socket) collides(want netip.Addr) bool {
	own := s.addr.Unmap()
	switch {
	case !want.IsValid():
		return true
	case own.Is6() && own.IsUnspecified() && want.Is4():
		return !s.v6only
	case own.Is4() != want.Is4():
		return false
	}
	return own.IsUnspecified() || want.IsUnspecified() || own == want.WithZone("")
}

// States of TCP sockets that hold their port against a new listener, as bits of
// inet_diag_req_v2.idiag_states (net/tcp_states.h). Kernels before 6.8 do not
// know the second and leave it out.
const (
	tcpListen        = 1 << 10
	tcpBoundInactive = 1 << 13
	anyState         = 1<<32 - 1
)

// inetDiagMsgLen is the size of struct inet_diag_msg, which attributes follow.
const inetDiagMsgLen = 72

// inetDiagSKV6Only is INET_DIAG_SKV6ONLY of linux/inet_diag.h.
const inetDiagSKV6Only = 11

// diagRequest is struct inet_diag_req_v2 of linux/inet_diag.h.
type diagRequest struct {
	family, proto uint8
	states        uint32
	port          uint16 // 0: all
}

func (r diagRequest) Len() int { return 56 }

func (r diagRequest) Serialize() []byte {
	b := make([]byte, r.Len())
	b[0], b[1] = r.family, r.proto
	binary.NativeEndian.PutUint32(b[4:], r.states)
	binary.BigEndian.PutUint16(b[8:], r.port)
	return b
}

// listSockets returns the kernel's messages about the sockets that a request asks for.
func listSockets(r diagRequest) ([][]byte, error) {
	req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	req.AddData(r)
	msgs, err := retryDump(func() ([][]byte, error) { return req.Execute(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY) })
	if errors.Is(err, unix.ENOENT) && r.family == unix.AF_INET6 {
		return nil, nil // the kernel has no IPv6
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, netlink.ErrNotImplemented) {
		return nil, fmt.Errorf("list sockets: %w: needs CONFIG_INET_TCP_DIAG and CONFIG_INET_UDP_DIAG (%w)", ErrUnsupported, err)
	}
	if err != nil {
		return nil, fmt.Errorf("list sockets: %w", sentinel(err))
	}
	return msgs, nil
}

// dumpSockets calls yield for the sockets of a protocol and family that may hold
// a port from first to last; it may call it for others.
func dumpSockets(proto, family uint8, first, last uint16, yield func(socket)) error {
	r := diagRequest{family: family, proto: proto, states: anyState}
	if proto == unix.IPPROTO_TCP {
		r.states = tcpListen | tcpBoundInactive
	}
	if first == last {
		r.port = first
	}
	msgs, err := listSockets(r)
	if err != nil {
		return err
	}
	for _, m := range msgs {
		s, err := parseSocket(m)
		if err != nil {
			return fmt.Errorf("list sockets: %w", err)
		}
		yield(s)
	}
	return nil
}

// parseSocket reads a struct inet_diag_msg and its attributes.
func parseSocket(m []byte) (socket, error) {
	if len(m) < inetDiagMsgLen {
		return socket{}, fmt.Errorf("answer of %d bytes: %w", len(m), ErrInvalid)
	}
	s := socket{
		port:  binary.BigEndian.Uint16(m[4:]),
		inode: binary.NativeEndian.Uint32(m[68:]),
	}
	if m[0] == unix.AF_INET {
		s.addr = netip.AddrFrom4([4]byte(m[8:12]))
		return s, nil
	}
	s.addr = netip.AddrFrom16([16]byte(m[8:24]))
	v6only, err := findAttr(m[inetDiagMsgLen:], inetDiagSKV6Only)
	s.v6only = len(v6only) > 0 && v6only[0] != 0
	return s, err
}

// describe looks up whose the sockets are. The walk through all processes is
// paid only if there is something to look up.
func describe(found []socket) []Holder {
	if len(found) == 0 {
		return nil
	}
	owners := make(map[uint32]int, len(found)) // inode → pid
	for _, s := range found {
		owners[s.inode] = 0
	}
	findOwners(owners)
	holders := make([]Holder, len(found))
	for i, s := range found {
		pid := owners[s.inode]
		holders[i] = Holder{Addr: s.addr.Unmap(), Port: s.port, PID: pid, Command: command(pid)}
	}
	return holders
}

// findOwners fills in the lowest pid that has each of the sockets open.
// Processes that vanish or may not be looked into are passed over.
func findOwners(owners map[uint32]int) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		dir := "/proc/" + p.Name() + "/fd/"
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			inode, ok := socketInode(dir + fd.Name())
			if !ok {
				continue
			}
			if old, wanted := owners[inode]; wanted && (old == 0 || pid < old) {
				owners[inode] = pid
			}
		}
	}
}

// socketInode reads a link such as "socket:[12345]".
func socketInode(path string) (inode uint32, ok bool) {
	target, err := os.Readlink(path)
	if err != nil {
		return 0, false
	}
	number, ok := strings.CutPrefix(target, "socket:[")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 32)
	return uint32(n), err == nil
}

func command(pid int) string {
	if pid == 0 {
		return ""
	}
	name, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(name))
}
