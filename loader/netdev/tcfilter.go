package netdev

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Filters have one fixed place on each side of a device, so that attaching again
// replaces in one step. Not priority 1, which others take by default.
const (
	filterPriority = 0xeb
	filterHandle   = 0xeb
)

func filterParent(ingress bool) uint32 {
	if ingress {
		return netlink.HANDLE_MIN_INGRESS
	}
	return netlink.HANDLE_MIN_EGRESS
}

func clsact(ifindex int) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: ifindex,
		Handle:    netlink.MakeHandle(0xffff, 0),
		Parent:    netlink.HANDLE_CLSACT,
	}}
}

// AttachFilter attaches a program to the device as a direct-action clsact
// filter, in place of what AttachFilter attached there before; no packet passes
// in between without one or the other. The kernel keeps the program, progFD can
// be closed. name is what tc shows, at most 255 bytes.
//
// Returns ErrNotFound if there is no such device, ErrExists if another kind of
// filter or an ingress qdisc is in the place, ErrUnsupported, ErrPermission.
func AttachFilter(ifindex int, ingress bool, progFD int, name string) error {
	return withHandle(func(h *handle) error {
		added := h.QdiscAdd(clsact(ifindex))
		if added != nil && !errors.Is(added, unix.EEXIST) {
			return fmt.Errorf("add clsact to interface %d: %w", ifindex, filterError(added))
		}
		err := h.FilterReplace(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: ifindex,
				Parent:    filterParent(ingress),
				Handle:    filterHandle,
				Protocol:  unix.ETH_P_ALL,
				Priority:  filterPriority,
			},
			Fd:           progFD,
			Name:         name,
			DirectAction: true,
		})
		if err != nil {
			if added == nil {
				_ = h.QdiscDel(clsact(ifindex))
			}
			return fmt.Errorf("attach %s to interface %d: %w", name, ifindex, filterError(err))
		}
		return nil
	})
}

// filterError reads a kernel's answer: ENOENT is a kind of qdisc or filter that
// the kernel does not have, not a missing device (ENODEV).
func filterError(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: needs CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF (%w)", ErrUnsupported, err)
	}
	return sentinel(err)
}

// DetachFilter removes what AttachFilter attached, and the clsact qdisc if
// nothing else is attached to it on either side. A filter or device that is not
// there is no error.
//
// Returns ErrPermission.
func DetachFilter(ifindex int, ingress bool) error {
	return withHandle(func(h *handle) error {
		own, err := findFilter(h, ifindex, ingress)
		if err != nil || own == nil {
			return err
		}
		filters := 0
		for _, side := range []bool{true, false} {
			there, err := listFilters(h, ifindex, side)
			if err != nil {
				return err
			}
			filters += len(there)
		}
		if filters > 1 {
			err = h.FilterDel(own)
		} else { // in one request, or an empty qdisc would be left by whoever is killed between two
			err = h.QdiscDel(clsact(ifindex))
		}
		if err != nil && !gone(err) {
			return fmt.Errorf("detach %s from interface %d: %w", own.Name, ifindex, sentinel(err))
		}
		return nil
	})
}

// FilterAttached returns the kernel's id of the program that AttachFilter
// attached. A device that is not there has none.
func FilterAttached(ifindex int, ingress bool) (progID int, ok bool, err error) {
	err = withHandle(func(h *handle) error {
		f, err := findFilter(h, ifindex, ingress)
		if f != nil {
			progID, ok = f.Id, true
		}
		return err
	})
	return progID, ok, err
}

// findFilter returns nil if there is none.
func findFilter(h *handle, ifindex int, ingress bool) (*netlink.BpfFilter, error) {
	list, err := listFilters(h, ifindex, ingress)
	for _, f := range list {
		bpf, isBPF := f.(*netlink.BpfFilter)
		if isBPF && bpf.Priority == filterPriority && bpf.Handle == filterHandle {
			return bpf, nil
		}
	}
	return nil, err
}

func listFilters(h *handle, ifindex int, ingress bool) ([]netlink.Filter, error) {
	list, err := retryDump(func() ([]netlink.Filter, error) {
		return h.FilterList(linkRef(ifindex), filterParent(ingress))
	})
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list filters of interface %d: %w", ifindex, sentinel(err))
	}
	return list, nil
}

// gone reports that the device, its qdisc or the filter is not there. Without
// the qdisc the kernel answers EINVAL.
func gone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL)
}
