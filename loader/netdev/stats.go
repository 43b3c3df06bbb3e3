package netdev

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Traffic is what a device has received and sent since it was made. A packet that was
// not cut into segments yet, or is put together already, counts as one.
type Traffic struct {
	RxPackets, RxBytes, RxDropped uint64
	TxPackets, TxBytes, TxDropped uint64
}

// PeerTraffic returns the counters of the other ends of veths, as these see it, by the
// index of the end in the calling thread's namespace. Devices that are no veth, or whose
// other end is gone, are left out.
//
// The other end's, because what a program puts into a namespace by bpf_redirect_peer
// passes the end here by: only the other end counts it. It is asked for through the end
// here (IFLA_TARGET_NETNSID), so its namespace needs no name and is not entered.
//
// Returns ErrPermission.
func PeerTraffic(ifindexes ...int) (map[int]Traffic, error) {
	if len(ifindexes) == 0 {
		return nil, nil
	}
	want := make(map[int]bool, len(ifindexes))
	for _, i := range ifindexes {
		want[i] = true
	}
	all := make(map[int]Traffic, len(ifindexes))
	err := withHandle(func(h *handle) error {
		links, err := retryDump(h.LinkList)
		if err != nil {
			return fmt.Errorf("list interfaces: %w", sentinel(err))
		}
		for _, l := range links {
			a := l.Attrs()
			if !want[a.Index] || l.Type() != "veth" {
				continue
			}
			traffic, err := trafficIn(a.NetNsID, a.ParentIndex)
			switch {
			case errors.Is(err, ErrNotFound):
			case err != nil:
				return fmt.Errorf("read the counters of the peer of %s: %w", a.Name, err)
			default:
				all[a.Index] = traffic
			}
		}
		return nil
	})
	return all, err
}

// trafficIn reads the counters of a device in the namespace that this one knows by the
// id; -1 is this one.
func trafficIn(netns, ifindex int) (Traffic, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(ifindex)
	req.AddData(msg)
	if netns >= 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(netns))))
	}
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if errors.Is(err, unix.EINVAL) { // the id is no namespace's any more
		err = errors.Join(ErrNotFound, err)
	}
	if err != nil {
		return Traffic{}, sentinel(err)
	}
	if len(msgs) != 1 || len(msgs[0]) < unix.SizeofIfInfomsg {
		return Traffic{}, fmt.Errorf("%d answers: %w", len(msgs), ErrInvalid)
	}
	l, err := netlink.LinkDeserialize(nil, msgs[0])
	if err != nil {
		return Traffic{}, err
	}
	s := l.Attrs().Statistics
	if s == nil {
		return Traffic{}, fmt.Errorf("no counters in the answer: %w", ErrInvalid)
	}
	return Traffic{
		RxPackets: s.RxPackets, RxBytes: s.RxBytes, RxDropped: s.RxDropped,
		TxPackets: s.TxPackets, TxBytes: s.TxBytes, TxDropped: s.TxDropped,
	}, nil
}
