package datapath

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/ebnet/ebnet/loader"
)

// predate makes the pinned datapath one that a version filled which knew nothing of the maps
// that stand for others, and whose programs needed less room.
func predate(t *testing.T, dir string) {
	t.Helper()
	maps := filepath.Join(dir, "v2", "maps")
	for _, name := range []string{"nears", "near_uplinks", "inner", "callers"} {
		must(t, os.Remove(filepath.Join(maps, name)))
	}
	room := filepath.Join(maps, "scratch")
	if err := os.Remove(room); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 512, MaxEntries: 1})
	must(t, err)
	must(t, m.Pin(room))
	must(t, m.Close())
	drops, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.PerCPUHash, KeySize: 8, ValueSize: 16, MaxEntries: 64, Flags: 1})
	must(t, err)
	must(t, drops.Pin(filepath.Join(maps, "drops")))
	must(t, drops.Close())
}

// A newer version takes over what an older one made, conversations too, and knows its
// networks and endpoints before its programs see the first packet.
func TestPrivilegedUpgrade(t *testing.T) {
	h := newHost(t, true)
	dir := filepath.Join(t.TempDir(), "bpf")
	dp, _, err := loader.Load(dir, loader.Config{FastPath: true, MaxFlows: 1000})
	must(t, err)
	defer func() { must(t, loader.Remove(dir)) }()
	must(t, h.dp.Close())
	h.dp = dp
	h.fill()
	h.publish(loader.TCP, netip.Addr{}, 8080, 80)
	establish(h, 5000)
	ask := fromB(tcp, syn, 5000, hostAddr, 8080)
	got := h.expect(loader.FromContainer, h.b, ask, loader.Redirect, nil)
	answer := fromA(tcp, syn|ack, 80, containerB, got.src.Port())
	answer.dmac = bMAC.String()

	predate(t, dir)
	h.dp, _, err = loader.Load(dir, loader.Config{FastPath: true, MaxFlows: 1000, Secret: 8})
	must(t, err)
	defer func() { must(t, h.dp.Close()) }()
	if _, err := os.Stat(filepath.Join(dir, "v2", "maps", "drops")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a map that nobody uses is still pinned: %v", err)
	}
	h.expect(loader.FromContainer, h.a, fromA(tcp, ack, 5000, remote, 80), loader.Redirect, nil)
	h.reply(fromOutside(tcp, ack, remote, 80, hostAddr, 5000))
	p := toB()
	h.expect(loader.FromContainer, h.a, p, loader.Redirect, &p)
	p.dmac = bridgeMAC.String()
	h.expect(loader.FromContainer, h.a, p, loader.Redirect, nil)
	h.expectDrop(loader.FromUplink, h.uplink, fromOutside(tcp, syn, remote, 4000, containerA, 22), "direct-access")
	h.expectDrop(loader.FromContainer, h.a, fromA(tcp, syn, 5000, otherNet, 80), "other-network")
	// The published port still answers by the address that it was asked by.
	back := h.expect(loader.FromContainer, h.a, answer, loader.Redirect, nil)
	if back.src != ask.dst || back.dst != ask.src {
		t.Fatalf("answer became %v", back)
	}
}

// What is dug out of an older version's maps is not more than they hold: an endpoint that is
// gone since is not found by what a newer version had noted before.
func TestPrivilegedUpgradeForgetsTheGone(t *testing.T) {
	h := newHost(t, true)
	dir := filepath.Join(t.TempDir(), "bpf")
	dp, _, err := loader.Load(dir, loader.Config{FastPath: true, MaxFlows: 1000})
	must(t, err)
	defer func() { must(t, loader.Remove(dir)) }()
	must(t, h.dp.Close())
	h.dp = dp
	h.fill()
	// As an older version deletes an endpoint.
	for name, key := range map[string]any{"endpoints": mapped(containerB), "devices": uint32(h.b)} {
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, "v2", "maps", name), nil)
		must(t, err)
		must(t, m.Delete(key))
		must(t, m.Close())
	}
	p := toB()
	h.expect(loader.FromContainer, h.a, p, loader.Redirect, nil)
	h.dp, _, err = loader.Load(dir, loader.Config{FastPath: true, MaxFlows: 1000, Secret: 8})
	must(t, err)
	defer func() { must(t, h.dp.Close()) }()
	h.expect(loader.FromContainer, h.a, p, loader.Pass, nil) // the bridge knows nobody
}

// mapped is an address as keys have it.
func mapped(a netip.Addr) [16]byte { return a.As16() }

// fromB is fromA for container B.
func fromB(proto, flags uint8, sport uint16, dst netip.Addr, dport uint16) packet {
	p := fromA(proto, flags, sport, dst, dport)
	p.smac, p.src = bMAC.String(), netip.AddrPortFrom(containerB, sport)
	return p
}

// fillMap makes no room in a pinned map but for what there is.
func (h *host) fillMap(name string) {
	h.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(h.dir, "v2", "maps", name), nil)
	must(h.TB, err)
	defer func() { _ = m.Close() }()
	key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	for i := uint32(1); ; i++ {
		if name == "subnets" {
			binary.NativeEndian.PutUint32(key, 128)
		}
		binary.BigEndian.PutUint32(key[len(key)-4:], i<<8)
		if err := m.Put(key, value); err != nil {
			return
		}
	}
}

// What could be written in part only is not taken for what is there: the next command
// writes it again.
func TestPrivilegedPartlyWritten(t *testing.T) {
	h := newHost(t, true)
	h.fillMap("subnets")
	err := h.dp.PutNetwork(loader.Network{ID: 7, Subnets: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.9.0.1")}, Bridge: h.bridge, BridgeMAC: bridgeMAC, MTU: 1500})
	if !errors.Is(err, loader.ErrFull) {
		t.Fatalf("a full map: %v", err)
	}
	if ids, err := h.dp.Networks(); err != nil || len(ids) != 2 {
		t.Errorf("networks %v, %v", ids, err)
	}
	h.fillMap("devices")
	err = h.dp.PutEndpoint(loader.Endpoint{Slot: 9, Network: 1, Ifindex: 9999, MAC: bMAC,
		Addrs: []netip.Addr{netip.MustParseAddr("172.18.0.9")}})
	if !errors.Is(err, loader.ErrFull) {
		t.Fatalf("a full map: %v", err)
	}
	if all, err := h.dp.Endpoints(); err != nil || len(all) != 3 {
		t.Errorf("endpoints %v, %v", all, err)
	}
}
