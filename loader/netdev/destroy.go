package netdev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Connected names a connected socket.
type Connected struct {
	Cookie uint64 // SO_COOKIE
	Remote netip.AddrPort
}

// Offsets in struct inet_diag_msg: the socket's struct inet_diag_sockid and, from the
// start of the message, members of it.
const (
	diagID     = 4
	diagIDLen  = 48
	diagDport  = diagID + 2
	diagDst    = diagID + 20
	diagCookie = diagID + 40
)

// destroyRequest is struct inet_diag_req_v2 that names one socket.
type destroyRequest struct {
	family, proto uint8
	id            [diagIDLen]byte
}

func (r destroyRequest) Len() int { return 8 + diagIDLen }

func (r destroyRequest) Serialize() []byte {
	b := make([]byte, r.Len())
	b[0], b[1] = r.family, r.proto
	binary.NativeEndian.PutUint32(b[4:], anyState)
	copy(b[8:], r.id[:])
	return b
}

// DestroySockets ends those of the sockets of the calling thread's namespace that are still
// connected to what is said; their owners get ECONNABORTED (SOCK_DESTROY, Linux 4.5).
// Sockets that are gone, or connected to others by now, are no error. It returns how many
// it ended.
//
// Returns ErrUnsupported if the kernel cannot (CONFIG_INET_DIAG_DESTROY).
func DestroySockets(proto uint8, sockets []Connected) (int, error) {
	want := make(map[Connected]bool, len(sockets))
	for _, s := range sockets {
		want[s] = true
	}
	n := 0
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		found, err := connectedSockets(proto, family, want)
		if err != nil {
			return n, err
		}
		for _, r := range found {
			req := nl.NewNetlinkRequest(unix.SOCK_DESTROY, unix.NLM_F_ACK)
			req.AddData(r)
			err := execute("end a socket", req, unix.NETLINK_INET_DIAG)
			switch {
			case errors.Is(err, unix.EOPNOTSUPP):
				return n, fmt.Errorf("end a socket: %w: needs CONFIG_INET_DIAG_DESTROY (%w)", ErrUnsupported, err)
			case err != nil && !errors.Is(err, unix.ENOENT):
				return n, fmt.Errorf("end a socket: %w", sentinel(err))
			case err == nil:
				n++
			}
		}
	}
	return n, nil
}

// connectedSockets finds the wanted ones of a family.
func connectedSockets(proto, family uint8, want map[Connected]bool) ([]destroyRequest, error) {
	msgs, err := listSockets(diagRequest{family: family, proto: proto, states: anyState &^ tcpListen})
	if err != nil {
		return nil, err
	}
	var found []destroyRequest
	for _, m := range msgs {
		if len(m) < inetDiagMsgLen {
			return nil, fmt.Errorf("list sockets: message of %d bytes: %w", len(m), ErrInvalid)
		}
		addr := netip.AddrFrom4([4]byte(m[diagDst:]))
		if family == unix.AF_INET6 {
			addr = netip.AddrFrom16([16]byte(m[diagDst:])).Unmap()
		}
		s := Connected{
			Cookie: binary.NativeEndian.Uint64(m[diagCookie:]),
			Remote: netip.AddrPortFrom(addr, binary.BigEndian.Uint16(m[diagDport:])),
		}
		if want[s] {
			found = append(found, destroyRequest{family: family, proto: proto, id: [diagIDLen]byte(m[diagID:])})
		}
	}
	return found, nil
}
