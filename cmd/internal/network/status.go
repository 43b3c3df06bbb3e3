package network

import (
	"cmp"
	"errors"
	"math"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/ebnet/ebnet/loader"
	"github.com/ebnet/ebnet/loader/netdev"
)

// counts are those of a state.
type counts struct{ networks, endpoints, ports int }

func (t *tx) counts() (c counts, err error) {
	c.networks = t.Bucket(networksBucket).Stats().KeyN
	c.endpoints = t.Bucket(endpointsBucket).Stats().KeyN
	for _, space := range []byte{byte(loader.TCP), byte(loader.UDP), byte(loader.TCP) | directPorts, byte(loader.UDP) | directPorts} {
		t.published(space, math.MaxUint16, func(k portKey) bool {
			c.ports += int(k.last()) - int(k.first()) + 1
			return true
		})
	}
	return c, nil
}

// owners are the endpoints by device, and what has a slot.
type owners struct {
	devices map[int]string
	slots   map[uint32]ShareInfo
}

func newOwners() owners { return owners{devices: map[int]string{}, slots: map[uint32]ShareInfo{}} }

// Status shows the host, whether ebnet is up or not.
func (h *Host) Status() (StatusInfo, error) {
	s := StatusInfo{
		Uplinks: []UplinkInfo{}, Sides: []UplinkInfo{}, Maps: []MapInfo{}, Drops: []DropInfo{}, Shares: []ShareInfo{}, Incomplete: []string{},
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return StatusInfo{}, failed("kernel", err)
	}
	s.Kernel = strings.TrimSpace(string(release))
	var host hostRecord
	owners := newOwners()
	err = h.state.view(func(t *tx) (err error) {
		if host, err = t.host(); err != nil {
			return err
		}
		return s.read(t, owners)
	})
	if err == nil {
		s.Features.FastPath, s.Features.MaxFlows = host.FastPath, cmp.Or(host.MaxFlows, loader.DefaultMaxFlows)
		s.Timeouts = timeoutSeconds(host.timeouts())
		err = h.live(&s, owners)
		isSide := func(l UplinkInfo) bool { return slices.Contains(host.Sides, l.Name) }
		for _, l := range s.Uplinks {
			if isSide(l) {
				s.Sides = append(s.Sides, l)
			}
		}
		s.Uplinks = slices.DeleteFunc(s.Uplinks, isSide)
	}
	if err != nil {
		return StatusInfo{}, explain(err)
	}
	return s, nil
}

// read fills in what the state knows, and who owns what.
func (s *StatusInfo) read(t *tx, owners owners) error {
	c, err := t.counts()
	if err != nil {
		return err
	}
	s.Networks, s.Endpoints, s.Ports = c.networks, c.endpoints, c.ports
	networks, err := list[networkRecord](t, networksBucket)
	if err != nil {
		return err
	}
	for _, n := range networks {
		if n.Status != applied {
			s.Incomplete = append(s.Incomplete, quoted("network", n.Name))
		}
	}
	endpoints, err := list[endpointRecord](t, endpointsBucket)
	if err != nil {
		return err
	}
	for _, e := range endpoints {
		owners.devices[e.Ifindex], owners.slots[e.Slot] = e.Name, ShareInfo{Endpoint: e.Name}
		if e.Status != applied {
			s.Incomplete = append(s.Incomplete, quoted("endpoint", e.Name))
			continue
		}
		ports, err := t.portsOf(e.Name)
		if err != nil {
			return err
		}
		for _, p := range ports {
			owners.slots[p.Slot] = ShareInfo{Endpoint: e.Name, Port: p.hostAddr() + "/" + protocolName(p.Protocol)}
			if p.Status != applied {
				s.Incomplete = append(s.Incomplete, "port "+portList([]*portRecord{p}, e))
			}
		}
	}
	return nil
}

// live fills in what the datapath knows, if there is one.
func (h *Host) live(s *StatusInfo, owners owners) error {
	dp, err := h.loaded()
	if err != nil || dp == nil {
		return err
	}
	s.Up = true
	cfg := dp.Config()
	s.Features = Features{Attach: "tcx", FastPath: cfg.FastPath, MaxFlows: cfg.MaxFlows, SocketHooks: dp.SocketsAttached()}
	s.Timeouts = timeoutSeconds(cfg.Timeouts)
	if !dp.TCX() {
		s.Features.Attach = "clsact"
	}
	links, err := h.k.Links()
	if err != nil {
		return err
	}
	byIndex := map[int]netdev.Link{}
	for _, l := range links {
		byIndex[l.Index] = l
	}
	if s.Uplinks, err = h.uplinkInfos(dp, byIndex); err != nil {
		return err
	}
	use, err := dp.Usage()
	if err != nil {
		return err
	}
	for _, m := range use {
		s.Maps = append(s.Maps, MapInfo{m.Name, m.Used, m.Max, float64(m.Used) / float64(max(1, m.Max))})
	}
	if s.Shares, err = shareInfos(dp, owners); err != nil {
		return err
	}
	if s.Listeners, err = dp.Listeners(); err != nil {
		return err
	}
	drops, err := dp.Drops()
	if err != nil {
		return err
	}
	for at, d := range sumDrops(drops) {
		s.Drops = append(s.Drops, DropInfo{at.reason, owners.devices[at.ifindex], byIndex[at.ifindex].Name, d.packets, d.bytes})
	}
	slices.SortFunc(s.Drops, func(a, b DropInfo) int {
		return cmp.Or(cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Device, b.Device))
	})
	return nil
}

// dropsAt is where packets were dropped and why.
type dropsAt struct {
	ifindex int
	reason  string
}

type dropSum struct{ packets, bytes uint64 }

// sumDrops sums the drops of all endpoints at a device. What is counted at none is counted at
// its sender's.
func sumDrops(all []loader.Drops) map[dropsAt]dropSum {
	sums := map[dropsAt]dropSum{}
	for _, d := range all {
		if d.Ifindex == 0 {
			continue
		}
		at := dropsAt{d.Ifindex, d.Reason}
		sums[at] = dropSum{sums[at].packets + d.Packets, sums[at].bytes + d.Bytes}
	}
	return sums
}

// shareInfos leaves out slots that nobody has any more.
func shareInfos(dp datapath, owners owners) ([]ShareInfo, error) {
	shares, err := dp.Shares()
	infos := []ShareInfo{}
	for _, s := range shares {
		if info, ok := owners.slots[s.Slot]; ok {
			info.Held, info.Refused = s.Held, s.Refused
			infos = append(infos, info)
		}
	}
	slices.SortFunc(infos, func(a, b ShareInfo) int {
		return cmp.Or(cmp.Compare(a.Endpoint, b.Endpoint), cmp.Compare(a.Port, b.Port))
	})
	return infos, err
}

func (h *Host) uplinkInfos(dp datapath, byIndex map[int]netdev.Link) ([]UplinkInfo, error) {
	infos := []UplinkInfo{}
	indices, err := dp.Uplinks()
	if err != nil {
		return nil, err
	}
	slices.Sort(indices)
	for _, i := range indices {
		l := byIndex[i]
		info := UplinkInfo{Name: l.Name, Ifindex: i, Addrs: []netip.Addr{}, MTU: l.MTU}
		if up, err := h.k.UplinkByName(l.Name); err == nil {
			info.Addrs = append(info.Addrs, up.Addrs...)
		}
		in, err := h.attached(dp, loader.FromUplink, i)
		if err != nil {
			return nil, err
		}
		out, err := h.attached(dp, loader.ToUplink, i)
		if err != nil {
			return nil, err
		}
		info.Attached = in && out
		infos = append(infos, info)
	}
	return infos, nil
}

func (h *Host) attached(dp datapath, hook loader.Hook, ifindex int) (bool, error) {
	if dp.TCX() {
		return dp.Attached(hook, ifindex), nil
	}
	id, there, err := h.k.FilterAttached(ifindex, hook.Ingress())
	if errors.Is(err, netdev.ErrNotFound) {
		return false, nil
	}
	return there && id == dp.ProgramID(hook), err
}

// Flows lists tracked conversations; none while ebnet is not up. Returns
// ErrNotFound for an unknown endpoint, ErrInvalid for a filter that selects nothing that there is.
func (h *Host) Flows(f FlowFilter) ([]FlowInfo, error) {
	infos := []FlowInfo{}
	err := h.withFlows(f, func(dp datapath, match func(loader.Flow) bool, owner func(uint32) string) error {
		return dp.Flows(func(flow loader.Flow) bool {
			if match(flow) {
				infos = append(infos, flowInfo(flow, owner(flow.Slot)))
			}
			return f.Limit == 0 || len(infos) < f.Limit
		})
	})
	if err != nil {
		return nil, explain(err)
	}
	return infos, nil
}

// FlushFlows deletes tracked conversations and returns how many. A flow of a
// connection that goes on does not come back by itself. Returns ErrNotFound for
// an unknown endpoint.
func (h *Host) FlushFlows(f FlowFilter) (n int, err error) {
	err = h.withFlows(f, func(dp datapath, match func(loader.Flow) bool, _ func(uint32) string) error {
		h.say("delete flows")
		if h.o.DryRun {
			return nil
		}
		n, err = dp.FlushFlows(match)
		return err
	})
	if err != nil {
		return 0, explain(err)
	}
	return n, nil
}

// What a FlowFilter may ask for.
var (
	FlowProtocols = []string{"tcp", "udp", "icmp"}
	FlowKinds     = []string{"snat", "dnat", "hairpin", "direct", "host"}
	FlowStates    = []string{"syn", "established", "half-closed", "closed", "unreplied", "replied"}
)

// Check returns ErrInvalid for what no flow is.
func (f FlowFilter) Check() error {
	for _, c := range []struct {
		what, value string
		known       []string
	}{{"protocol", f.Protocol, FlowProtocols}, {"kind", f.Kind, FlowKinds}, {"state", f.State, FlowStates}} {
		if c.value != "" && !slices.Contains(c.known, c.value) {
			return invalid(quoted(c.what, c.value), "is none of %s", strings.Join(c.known, ", "))
		}
	}
	return nil
}

// matches leaves the endpoint out.
func (f FlowFilter) matches(flow loader.Flow) bool {
	is := func(want, have string) bool { return want == "" || want == have }
	in := func(p netip.Prefix, before, after netip.AddrPort) bool {
		return !p.IsValid() || p.Contains(before.Addr()) || p.Contains(after.Addr())
	}
	return is(f.Protocol, flow.Protocol) && is(f.Kind, flow.Kind) && is(f.State, flow.State) &&
		in(f.Src, flow.Src, flow.TranslatedSrc) && in(f.Dst, flow.Dst, flow.TranslatedDst) &&
		(f.Port == 0 || slices.ContainsFunc([]netip.AddrPort{flow.Src, flow.Dst, flow.TranslatedSrc, flow.TranslatedDst},
			func(a netip.AddrPort) bool { return a.Port() == f.Port }))
}

// withFlows calls fn, if ebnet is up, with what the filter selects and who owns
// a slot.
func (h *Host) withFlows(f FlowFilter, fn func(dp datapath, match func(loader.Flow) bool, owner func(uint32) string) error) error {
	if err := f.Check(); err != nil {
		return err
	}
	dp, err := h.loaded()
	if err != nil {
		return err
	}
	return h.state.view(func(t *tx) error {
		slots := t.Bucket(slotsBucket)
		owner := func(slot uint32) string { return string(slots.Get(numberKey(slot))) }
		match := f.matches
		if f.Endpoint != "" {
			e, err := t.endpoint(f.Endpoint)
			if err != nil {
				return err
			}
			match = func(flow loader.Flow) bool {
				of := owner(flow.Slot) == e.Name || flow.Src.Addr() == e.IP || flow.TranslatedDst.Addr() == e.IP
				return of && f.matches(flow)
			}
		}
		if dp == nil {
			return nil
		}
		return fn(dp, match, owner)
	})
}

func flowInfo(f loader.Flow, endpoint string) FlowInfo {
	return FlowInfo{
		Protocol:      f.Protocol,
		State:         f.State,
		Src:           f.Src.String(),
		Dst:           f.Dst.String(),
		TranslatedSrc: f.TranslatedSrc.String(),
		TranslatedDst: f.TranslatedDst.String(),
		Endpoint:      endpoint,
		Kind:          f.Kind,
		Packets:       f.Packets,
		Bytes:         f.Bytes,
		Expires:       int(math.Ceil(f.Expires.Seconds())),
	}
}
