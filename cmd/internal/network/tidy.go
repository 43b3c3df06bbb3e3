package network

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/ebnet/ebnet/loader"
	"github.com/ebnet/ebnet/loader/netdev"
)

// tidySteps remove from the kernel what is ours but not recorded, or recorded
// by a command that was killed. They are not undone: what nobody asked for is
// better gone, whatever happens next.
func (u *bringUp) tidySteps() []step {
	text := ""
	if !u.left.none() {
		text = fmt.Sprintf("undo what killed commands left: %d networks, %d endpoints, %d ports",
			len(u.left.networks), len(u.left.endpoints), len(u.left.ports))
	}
	return []step{
		{text: text, do: u.tidyPorts},
		{do: u.tidyEndpoints},
		{do: u.tidyNetworks},
		{do: u.tidyLinks},
		{do: u.tidyUplinks},
	}
}

func (u *bringUp) tidyPorts() error {
	if len(u.left.ports) == 0 {
		return nil
	}
	u.changed()
	return u.h.unpublish(u.h.dp, &networkRecord{}, &endpointRecord{}, u.left.ports)
}

// tidyEndpoints also ends the flows of endpoints that are gone from the tables already: what
// removed them may have been killed before that.
func (u *bringUp) tidyEndpoints() error {
	for _, e := range u.left.endpoints {
		u.changed()
		gone := e.datapath(0)
		gone.Ifindex = 0 // the index may be another's by now
		if err := u.h.dp.DeleteEndpoint(gone); err != nil {
			return err
		}
	}
	have, err := u.h.dp.Endpoints()
	if err != nil {
		return err
	}
	recorded := make(map[uint32]*endpointRecord, len(u.endpoints)) // by slot
	for _, e := range u.endpoints {
		recorded[e.Slot] = e
	}
	for _, d := range have {
		if e := recorded[d.Slot]; e != nil && slices.Contains(d.Addrs, e.IP) {
			continue
		}
		u.changed()
		if err := u.h.dp.DeleteEndpoint(d); err != nil {
			return err
		}
	}
	return nil
}

func (u *bringUp) tidyNetworks() error {
	for _, n := range u.left.networks {
		u.changed()
		if err := u.h.dp.DeleteNetwork(n.datapath(0)); err != nil {
			return err
		}
	}
	have, err := u.h.dp.Networks()
	if err != nil {
		return err
	}
	for _, id := range have {
		if slices.ContainsFunc(u.networks, func(n *networkRecord) bool { return n.ID == id }) {
			continue
		}
		u.changed()
		if err := u.h.dp.DeleteNetwork(loader.Network{ID: id}); err != nil {
			return err
		}
	}
	return nil
}

// tidyLinks deletes devices: those with an alias of ours that nothing recorded
// has, and those of commands killed before they could set it.
func (u *bringUp) tidyLinks() error {
	links, err := u.h.k.Links()
	if err != nil {
		return err
	}
	wanted := map[string]string{} // alias → name
	for _, n := range u.networks {
		wanted[bridgeAlias(n.Name)] = n.Bridge
	}
	for _, e := range u.endpoints {
		wanted[e.alias()] = e.HostIfName
	}
	renamed := renamedVeths(links, wanted)
	for _, l := range links {
		var err error
		switch {
		case l.Ours() && wanted[l.Alias] != l.Name && !renamed[l.Index]:
			err = u.h.deleteLink(l.Index)
		case unfinished(l, &u.left):
			err = u.h.k.DeleteUnfinished(l.Index)
		case l.Ours() && l.Doomed:
			err = u.h.k.SpareLink(l.Index)
		default:
			continue
		}
		if u.changed(); err != nil && !errors.Is(err, netdev.ErrNotFound) {
			return err
		}
	}
	return u.tidyNeighbours()
}

// unfinished reports whether a command was killed while it made the device. Those of what is
// recorded are finished instead.
func unfinished(l netdev.Link, left *leftovers) bool {
	if l.Alias != "" {
		return false
	}
	switch l.Kind {
	case "veth":
		return slices.ContainsFunc(left.endpoints, func(e *endpointRecord) bool { return e.HostIfName == l.Name })
	case "bridge":
		return slices.ContainsFunc(left.networks, func(n *networkRecord) bool { return n.Bridge == l.Name && bytes.Equal(n.bridgeMAC(), l.MAC) })
	}
	return false
}

func (u *bringUp) tidyNeighbours() error {
	for _, e := range u.left.endpoints {
		i := slices.IndexFunc(u.networks, func(n *networkRecord) bool { return n.Name == e.Network })
		if i < 0 {
			continue // gone with the bridge
		}
		if err := u.h.forgetNeighbour(u.networks[i], e); err != nil {
			return err
		}
	}
	return nil
}

// renamedVeths returns the devices that somebody has given another name, and that can have theirs again.
func renamedVeths(links []netdev.Link, wanted map[string]string) map[int]bool {
	taken, found := map[string]bool{}, map[int]bool{}
	for _, l := range links {
		taken[l.Name] = true
	}
	for _, l := range links {
		if name := wanted[l.Alias]; l.Kind == "veth" && l.Ours() && name != "" && !taken[name] {
			taken[name], found[l.Index] = true, true
		}
	}
	return found
}

func (u *bringUp) tidyUplinks() error {
	have, err := u.h.dp.Uplinks()
	if err != nil {
		return err
	}
	for _, ifindex := range have {
		if u.hooks(ifindex) {
			continue
		}
		u.changed()
		for _, hook := range []loader.Hook{loader.FromUplink, loader.ToUplink} {
			if err := u.h.detach(u.h.dp, hook, ifindex); err != nil {
				return err
			}
		}
		if err := u.h.dp.DeleteUplink(ifindex); err != nil {
			return err
		}
	}
	return nil
}

// tidyAttachments removes links that are pinned for devices which are neither
// uplinks nor ours, most often because they are gone: here or before.
func (u *bringUp) tidyAttachments() error {
	if !u.h.dp.TCX() {
		return nil
	}
	have, err := u.h.dp.Attachments()
	if err != nil {
		return err
	}
	links, err := u.h.k.Links()
	if err != nil {
		return err
	}
	keep := map[loader.Attachment]bool{}
	for _, l := range slices.Concat(u.uplinks, u.sides) {
		keep[loader.Attachment{Hook: loader.FromUplink, Ifindex: l.Ifindex}] = true
		keep[loader.Attachment{Hook: loader.ToUplink, Ifindex: l.Ifindex}] = true
	}
	for _, l := range ownAliases(links) {
		for _, hook := range []loader.Hook{loader.FromContainer, loader.FromBridge, loader.ToBridge} {
			keep[loader.Attachment{Hook: hook, Ifindex: l.Index}] = true
		}
	}
	for _, a := range have {
		if keep[a] {
			continue
		}
		u.changed()
		if err := u.h.dp.Detach(a.Hook, a.Ifindex); err != nil {
			return err
		}
		_ = u.h.dp.ForgetDrops(a.Ifindex)
	}
	return nil
}
