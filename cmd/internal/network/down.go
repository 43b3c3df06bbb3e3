package network

import (
	"errors"
	"slices"

	"github.com/ebnet/ebnet/loader"
	"github.com/ebnet/ebnet/loader/netdev"
)

// Down takes the devices and the datapath away; the state stays unless purge.
// Programs go last, so that no packet passes where they were a moment before.
//
// Down is not undone: when it fails it goes on with the rest, and run again it
// finishes. What is gone already is no error.
func (h *Host) Down(purge bool) error {
	if _, err := h.datapath(); errors.Is(err, ErrConflict) {
		return explain(err)
	}
	links, err := h.k.Links()
	if err != nil {
		return explain(err)
	}
	var errs []error
	try := func(text string, do func() error) {
		if text != "" {
			h.say("%s", text)
		}
		if h.o.DryRun {
			return
		}
		if err := do(); err != nil {
			errs = append(errs, err)
		}
	}
	var ours []int
	for _, l := range links {
		if l.Ours() {
			h.say("remove the device %s", l.Name)
			ours = append(ours, l.Index)
		}
	}
	// All at once, since the kernel's waiting for one is as long as for a thousand.
	try("", func() error { return h.k.DeleteLinks(ours...) })
	try("unhook the uplinks", h.unhookUplinks)
	if len(errs) == 0 {
		try("remove the datapath", func() error { return h.k.Remove(h.o.BPFFS) })
	}
	try("", h.releasePorts)
	if purge && len(errs) == 0 {
		try("forget everything recorded", h.state.remove)
	}
	if err := errors.Join(errs...); err != nil {
		return explain(err)
	}
	h.say("done")
	return nil
}

// releasePorts takes the reserved ports that are ours back, where they are: those of
// another namespace, left by a reboot or with it, are only forgotten.
func (h *Host) releasePorts() error {
	if err := h.checkNamespace(); err != nil {
		return h.state.change(true, func(t *tx) error { return t.putReservedPorts(nil) })
	}
	return h.reserve(new(loader.PortSet))
}

// unhookUplinks removes clsact filters, which have no pin that could go.
func (h *Host) unhookUplinks() error {
	dp, err := h.datapath()
	if errors.Is(err, loader.ErrNotLoaded) {
		return nil
	}
	if err != nil {
		return h.unhookRecorded() // damaged pins, and those of another version, go with the rest
	}
	defer func() {
		_ = dp.Close()
		h.dp = nil
	}()
	uplinks, err := dp.Uplinks()
	if err != nil || dp.TCX() {
		return err
	}
	for _, ifindex := range uplinks {
		for _, hook := range []loader.Hook{loader.FromUplink, loader.ToUplink} {
			if err := h.k.DetachFilter(ifindex, hook.Ingress()); err != nil && !errors.Is(err, netdev.ErrNotFound) {
				return err
			}
		}
	}
	return h.unhookRecorded() // who was killed may have hooked one that the datapath was not told of
}

// unhookRecorded is unhookUplinks for what no datapath tells of.
func (h *Host) unhookRecorded() error {
	var host hostRecord
	if err := h.state.view(func(t *tx) (err error) {
		host, err = t.host()
		return err
	}); err != nil {
		return err
	}
	all, err := h.k.DetectUplinks()
	if err != nil {
		return err
	}
	for _, name := range slices.Concat(host.Uplinks, host.Sides) {
		if l, err := h.k.UplinkByName(name); err == nil {
			all = append(all, l)
		}
	}
	for _, l := range all {
		for _, ingress := range []bool{true, false} {
			if err := h.k.DetachFilter(l.Ifindex, ingress); err != nil && !errors.Is(err, netdev.ErrNotFound) {
				return err
			}
		}
	}
	return nil
}
