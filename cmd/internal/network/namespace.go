package network

import (
	"errors"
	"fmt"
	"strings"

	"github.com/ebnet/ebnet/loader/netdev"
)

// identify writes down which namespace the endpoint is in.
func (h *Host) identify(e *endpointRecord, ns *netdev.NS) error {
	cookie, err := h.k.NSCookie(ns)
	if err != nil {
		return err
	}
	boot, err := h.k.BootID()
	if err != nil {
		return err
	}
	e.NSDev, e.NSInode, e.NSCookie, e.Boot = ns.Dev, ns.Inode, cookie, boot
	return nil
}

// openOwn opens the namespace that the endpoint belongs to; the caller closes it. That is the one that it was
// connected to, and no other, as long as the machine runs. After a reboot it is the one that bears
// the recorded name: whoever made the first has made it again. Numbers of processes mean nothing then.
//
// Returns netdev.ErrNotFound if there is none.
func (h *Host) openOwn(e *endpointRecord) (*netdev.NS, error) { return h.openIf(e, h.isOwn) }

// openSame is openOwn for an endpoint whose device is there: then its namespace lives, and its inode is no other's.
func (h *Host) openSame(e *endpointRecord) (*netdev.NS, error) {
	return h.openIf(e, func(e *endpointRecord, ns *netdev.NS) (bool, error) {
		return ns.Dev == e.NSDev && ns.Inode == e.NSInode, nil
	})
}

func (h *Host) openIf(e *endpointRecord, own func(*endpointRecord, *netdev.NS) (bool, error)) (*netdev.NS, error) {
	ns, err := h.k.OpenNS(e.NSPath)
	if errors.Is(err, netdev.ErrInvalid) { // the file is there, and is no namespace
		err = fmt.Errorf("%w: %w", netdev.ErrNotFound, err)
	}
	if err != nil {
		return nil, err
	}
	same, err := own(e, ns)
	if err == nil && !same {
		err = fmt.Errorf("namespace %s of endpoint %s: %w: it is another one now", e.NSPath, e.Name, netdev.ErrNotFound)
	}
	if err != nil {
		h.k.CloseNS(ns)
		return nil, err
	}
	return ns, nil
}

func (h *Host) isOwn(e *endpointRecord, ns *netdev.NS) (bool, error) {
	boot, err := h.k.BootID()
	if err != nil {
		return false, err
	}
	if e.Boot != "" && e.Boot != boot {
		return h.mayInherit(e, ns)
	}
	if ns.Dev != e.NSDev || ns.Inode != e.NSInode {
		return false, nil
	}
	if e.NSCookie == 0 {
		return true, nil
	}
	cookie, err := h.k.NSCookie(ns)
	if errors.Is(err, netdev.ErrPermission) {
		return true, nil // who cannot look in cannot link it either
	}
	return cookie == e.NSCookie, err
}

// mayInherit reports whether ns, of another boot than the record, may be the endpoint's by its name.
func (h *Host) mayInherit(e *endpointRecord, ns *netdev.NS) (bool, error) {
	if strings.HasPrefix(e.NSPath, "/proc/") {
		return false, nil
	}
	host, err := h.k.CurrentNS()
	if err != nil {
		return false, err
	}
	defer h.k.CloseNS(host)
	return !netdev.SameNS(host, ns), nil
}
