package netdev

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// AliasPrefix starts the alias (IFLA_IFALIAS) of every device that is ebnet's.
const AliasPrefix = "ebnet:"

// MaxNameLen is the longest name of a device, in bytes (IFNAMSIZ less the NUL).
const MaxNameLen = unix.IFNAMSIZ - 1

// loopbackIndex is the index of lo in every namespace (LOOPBACK_IFINDEX).
const loopbackIndex = 1

// Link is a network device as the kernel reports it.
type Link struct {
	Index       int
	Name        string
	MAC         net.HardwareAddr // empty where the device has none
	MTU         int              // bytes
	Alias       string
	Kind        string // "bridge", "veth", … as the kernel names it; "device" for hardware
	Up          bool   // administratively
	Carrier     bool   // up, and so is what is at the other end
	Ethernet    bool   // ARPHRD_ETHER
	Loopback    bool
	Doomed      bool   // DeleteLinks was about to delete it
	MasterIndex int    // 0: none
	Master      string // name of the device with MasterIndex; only Links fills it
	PeerIndex   int    // of a veth: index of the other end in its own namespace
}

// Ours reports whether the device is one of ebnet's.
func (l Link) Ours() bool { return strings.HasPrefix(l.Alias, AliasPrefix) }

// CheckName returns ErrInvalid with the reason unless name can be the name of a
// device: 1 to MaxNameLen bytes of printable ASCII without '/', ':', '%' or
// blanks; "." and "..", and "all" and "default", which are taken in sysctl, cannot.
func CheckName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("interface name: %w: empty", ErrInvalid)
	case len(name) > MaxNameLen:
		return fmt.Errorf("interface name %q: %w: longer than %d bytes", name, ErrInvalid, MaxNameLen)
	case name == "." || name == ".." || name == "all" || name == "default":
		return fmt.Errorf("interface name %q: %w: reserved", name, ErrInvalid)
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c > '~' || strings.IndexByte("/:%", c) >= 0 {
			return fmt.Errorf("interface name %q: %w: character %q", name, ErrInvalid, c)
		}
	}
	return nil
}

// checkMAC returns ErrInvalid unless mac is an Ethernet address of one station.
func checkMAC(mac net.HardwareAddr) error {
	if len(mac) != 6 || mac[0]&1 != 0 || mac.String() == "00:00:00:00:00:00" {
		return fmt.Errorf("MAC address %s: %w: not a unicast Ethernet address", mac, ErrInvalid)
	}
	return nil
}

// checkMTU returns ErrInvalid for what no Ethernet device can have: below IPv4's
// minimum (RFC 791) or above the longest packet.
func checkMTU(mtu int) error {
	if mtu < 68 || mtu > 65535 {
		return fmt.Errorf("MTU %d: %w: not between 68 and 65535", mtu, ErrInvalid)
	}
	return nil
}

// DeleteLink removes one of ebnet's devices; the other end of a veth goes with
// it. When it returns, the device is gone.
//
// Returns ErrNotFound, ErrInvalid if the device is not ours, ErrPermission.
func DeleteLink(ifindex int) error {
	return withHandle(func(h *handle) error {
		l, err := h.LinkByIndex(ifindex)
		return deleteLink(h, l, err, fmt.Sprintf("interface %d", ifindex))
	})
}

// DeleteLinkByName is DeleteLink by name.
func DeleteLinkByName(name string) error {
	return withHandle(func(h *handle) error {
		l, err := h.LinkByName(name)
		return deleteLink(h, l, err, "interface "+name)
	})
}

func deleteLink(h *handle, l netlink.Link, err error, what string) error {
	if err != nil {
		return fmt.Errorf("delete %s: %w", what, sentinel(err))
	}
	if link := fromNetlink(l); !link.Ours() {
		return fmt.Errorf("delete %s (%s): %w: it is not ebnet's", what, link.Name, ErrInvalid)
	}
	if err := h.LinkDel(l); err != nil {
		return fmt.Errorf("delete %s: %w", what, sentinel(err))
	}
	return nil
}

// DeleteLinks removes many of ebnet's devices at once: the kernel's waiting, which
// is nearly all that removing a device costs, is then paid once. Devices that
// are not there are no error.
//
// Returns ErrInvalid if one of the devices is not ours (nothing is removed
// then), ErrPermission.
func DeleteLinks(ifindexes ...int) error {
	if len(ifindexes) == 0 {
		return nil
	}
	return withHandle(func(h *handle) error {
		links, err := retryDump(h.LinkList)
		if err != nil {
			return fmt.Errorf("list interfaces: %w", sentinel(err))
		}
		used := make(map[uint32]bool)
		var doomed []netlink.Link
		for _, l := range links {
			used[l.Attrs().Group] = true
			if !slices.Contains(ifindexes, l.Attrs().Index) {
				continue
			}
			if !fromNetlink(l).Ours() {
				return fmt.Errorf("delete interface %s: %w: it is not ebnet's", l.Attrs().Name, ErrInvalid)
			}
			doomed = append(doomed, l)
		}
		return deleteGroup(h, doomed, used)
	})
}

// deleteGroup puts the devices into a group that nobody uses and deletes that.
func deleteGroup(h *handle, doomed []netlink.Link, used map[uint32]bool) error {
	if len(doomed) == 0 {
		return nil
	}
	// Drawn at random, so that another process that does the same, or sets up a
	// group of its own just now, has another one.
	group := doomedGroups | rand.Uint32()>>8
	for used[group] {
		group = doomedGroups | rand.Uint32()>>8
	}
	for _, l := range doomed {
		err := sentinel(h.LinkSetGroup(l, int(group)))
		if err != nil && !errors.Is(err, ErrNotFound) {
			return fmt.Errorf("delete interface %s: %w", l.Attrs().Name, err)
		}
	}
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	err := execute("delete links", req, unix.NETLINK_ROUTE)
	if err = sentinel(err); err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("delete %d interfaces: %w", len(doomed), err)
	}
	return nil
}

// doomedGroups are the 16,777,216 groups that deleteGroup draws from: whoever is killed
// there leaves devices in one.
const doomedGroups = 0x6b << 24

// SpareLink takes a device out of the group that a killed DeleteLinks has left it in.
//
// Returns ErrNotFound, ErrPermission.
func SpareLink(ifindex int) error {
	return withHandle(func(h *handle) error {
		if err := h.LinkSetGroup(linkRef(ifindex), 0); err != nil {
			return fmt.Errorf("set group of interface %d: %w", ifindex, sentinel(err))
		}
		return nil
	})
}

// DeleteUnfinished removes a bridge or veth without an alias: the alias cannot be set by the
// request that creates a device, so this is what a command leaves that was killed while it made
// one. That it is ebnet's the caller knows by its name.
//
// Returns ErrNotFound, ErrInvalid if it is not such a device, ErrPermission.
func DeleteUnfinished(ifindex int) error {
	return withHandle(func(h *handle) error {
		l, err := h.LinkByIndex(ifindex)
		if err == nil {
			if link := fromNetlink(l); link.Alias != "" || link.Kind != "veth" && link.Kind != "bridge" {
				return fmt.Errorf("delete interface %d (%s): %w: it is not one that was left unfinished", ifindex, link.Name, ErrInvalid)
			}
			err = h.LinkDel(l)
		}
		if err != nil {
			return fmt.Errorf("delete interface %d: %w", ifindex, sentinel(err))
		}
		return nil
	})
}

// LinkByName returns a device of the current namespace. Returns ErrNotFound.
func LinkByName(name string) (link Link, err error) {
	err = withHandle(func(h *handle) error {
		l, err := h.LinkByName(name)
		if err != nil {
			return fmt.Errorf("interface %s: %w", name, sentinel(err))
		}
		link = fromNetlink(l)
		return nil
	})
	return link, err
}

// LinkByIndex returns a device of the current namespace. Returns ErrNotFound.
func LinkByIndex(ifindex int) (link Link, err error) {
	err = withHandle(func(h *handle) error {
		l, err := h.LinkByIndex(ifindex)
		if err != nil {
			return fmt.Errorf("interface %d: %w", ifindex, sentinel(err))
		}
		link = fromNetlink(l)
		return nil
	})
	return link, err
}

// Links returns the devices of the current namespace in the kernel's order.
func Links() (links []Link, err error) {
	err = withHandle(func(h *handle) error {
		links, err = listLinks(h)
		return err
	})
	return links, err
}

func listLinks(h *handle) ([]Link, error) {
	list, err := retryDump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", sentinel(err))
	}
	links := make([]Link, len(list))
	names := make(map[int]string, len(list))
	for i, l := range list {
		links[i] = fromNetlink(l)
		names[links[i].Index] = links[i].Name
	}
	for i := range links {
		links[i].Master = names[links[i].MasterIndex]
	}
	return links, nil
}

func fromNetlink(l netlink.Link) Link {
	a := l.Attrs()
	link := Link{
		Index:       a.Index,
		Name:        a.Name,
		MAC:         a.HardwareAddr,
		MTU:         a.MTU,
		Alias:       a.Alias,
		Kind:        l.Type(),
		Up:          a.RawFlags&unix.IFF_UP != 0,
		Carrier:     a.RawFlags&unix.IFF_LOWER_UP != 0,
		Ethernet:    a.EncapType == "ether",
		Loopback:    a.RawFlags&unix.IFF_LOOPBACK != 0,
		Doomed:      a.Group>>24 == doomedGroups>>24,
		MasterIndex: a.MasterIndex,
	}
	if link.Kind == "veth" {
		link.PeerIndex = a.ParentIndex
	}
	return link
}

// notFound reports whether netlink found no such device.
func notFound(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing)
}
