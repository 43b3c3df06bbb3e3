package datapath

import (
	"net/netip"
	"testing"

	"github.com/ebnet/ebnet/loader"
)

func toB() packet {
	p := fromA(tcp, syn, 5000, containerB, 80)
	p.dmac = bMAC.String()
	return p
}

func TestPrivilegedNeighbour(t *testing.T) {
	for _, fast := range []bool{true, false} {
		h := newHost(t, fast)
		p := toB()
		h.expect(loader.FromContainer, h.a, p, loader.Redirect, &p) // nothing in it changes
		p.dmac = bridgeMAC.String()
		got := h.expect(loader.FromContainer, h.a, p, loader.Redirect, nil)
		if got.dmac != bMAC.String() {
			t.Fatalf("delivered to %s", got.dmac)
		}
	}
}

func TestPrivilegedOtherNetwork(t *testing.T) {
	h := newHost(t, true)
	p := fromA(tcp, syn, 5000, otherNet, 80)
	h.expectDrop(loader.FromContainer, h.a, p, "other-network")
	p.dst = netip.MustParseAddrPort("198.51.100.2:22") // the host itself
	h.expect(loader.FromContainer, h.a, p, loader.Pass, &p)
	p.dst = netip.AddrPortFrom(gateway, 53)
	h.expect(loader.FromContainer, h.a, p, loader.Pass, &p)
}

func TestPrivilegedSpoofing(t *testing.T) {
	h := newHost(t, true)
	p := fromA(tcp, syn, 5000, remote, 80)
	p.src = netip.AddrPortFrom(containerB, 5000)
	h.expectDrop(loader.FromContainer, h.a, p, "spoofed-address")
	p = fromA(tcp, syn, 5000, remote, 80)
	p.smac = bMAC.String()
	h.expectDrop(loader.FromContainer, h.a, p, "spoofed-mac")
	// Another endpoint's established flow is no way round the check.
	establish(h, 5000)
	h.expectDrop(loader.FromContainer, h.b, fromA(tcp, ack, 5000, remote, 80), "spoofed-mac")
	h.expectDrop(loader.FromContainer, h.uplink, fromA(tcp, ack, 5000, remote, 80), "unknown-device")
}

func TestPrivilegedARP(t *testing.T) {
	h := newHost(t, true)
	for _, c := range []struct {
		name   string
		sender netip.Addr
		sha    []byte
		want   loader.Verdict
	}{
		{"own", containerA, aMAC, loader.Pass},
		{"probe", netip.IPv4Unspecified(), aMAC, loader.Pass},
		{"for the gateway", gateway, aMAC, loader.Drop},
		{"as a neighbour", containerA, bMAC, loader.Drop},
	} {
		frame := append([]byte{255, 255, 255, 255, 255, 255}, aMAC...)
		frame = append(frame, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
		frame = append(frame, c.sha...)
		spa, tpa := c.sender.As4(), containerB.As4()
		frame = append(append(append(frame, spa[:]...), 0, 0, 0, 0, 0, 0), tpa[:]...)
		got, _, err := h.dp.Run(loader.FromContainer, frame, loader.RunContext{Ifindex: h.a})
		if err != nil || got != c.want {
			t.Errorf("%s: verdict %d, want %d, %v", c.name, got, c.want, err)
		}
	}
}

func TestPrivilegedOtherFamilies(t *testing.T) {
	h := newHost(t, true)
	frame := append(append([]byte{0x33, 0x33, 0, 0, 0, 1}, aMAC...), 0x86, 0xdd)
	frame = append(frame, make([]byte, 60)...)
	got, _, err := h.dp.Run(loader.FromContainer, frame, loader.RunContext{Ifindex: h.a})
	if err != nil || got != loader.Drop || h.dropped("address-family") != 1 {
		t.Fatalf("verdict %d, %v, drops %s", got, err, h.drops())
	}
}

// Into a network goes what the host itself sends, not what it forwards for others.
func TestPrivilegedToBridge(t *testing.T) {
	h := newHost(t, true)
	p := fromOutside(tcp, syn, remote, 4000, containerA, 80)
	h.expectDrop(loader.ToBridge, h.bridge, p, "forwarded")
	got, _, err := h.dp.Run(loader.ToBridge, p.frame(), loader.RunContext{Ifindex: h.bridge})
	if err != nil || got != loader.Pass {
		t.Fatalf("the host's own: verdict %d, %v", got, err)
	}
}

func TestPrivilegedMalformed(t *testing.T) {
	h := newHost(t, true)
	whole := fromA(tcp, syn, 5000, remote, 80).frame()
	short := append([]byte{}, whole...)
	short[14] = 0x44 // a header of 16 bytes
	doff := append([]byte{}, whole...)
	doff[14+20+12] = 4 << 4
	for name, frame := range map[string][]byte{"ihl": short, "doff": doff, "cut in TCP": whole[:14+20+10]} {
		got, _, err := h.dp.Run(loader.FromContainer, frame, loader.RunContext{Ifindex: h.a})
		if err != nil || got != loader.Drop {
			t.Errorf("%s: verdict %d, %v", name, got, err)
		}
	}
	if h.dropped("malformed") != 3 {
		t.Errorf("drops %s", h.drops())
	}
}

func TestPrivilegedNoICC(t *testing.T) {
	h := newHost(t, true)
	must(t, h.dp.PutNetwork(loader.Network{ID: 1, Subnets: []netip.Prefix{netip.MustParsePrefix("172.18.0.0/16")},
		Gateways: []netip.Addr{gateway}, Bridge: h.bridge, BridgeMAC: bridgeMAC, MTU: 1500, Masquerade: true}))
	p := toB()
	h.expectDrop(loader.FromContainer, h.a, p, "icc")
	p.dmac = "ff:ff:ff:ff:ff:ff" // a neighbour's address in a frame for all
	h.expectDrop(loader.FromContainer, h.a, p, "icc")
	p.dst = netip.MustParseAddrPort("255.255.255.255:80")
	h.expectDrop(loader.FromContainer, h.a, p, "icc")
	p.dmac, p.dst = bMAC.String(), netip.AddrPortFrom(remote, 80)
	h.expectDrop(loader.FromContainer, h.a, p, "icc")
	p = fromA(tcp, syn, 5000, gateway, 53)
	h.expect(loader.FromContainer, h.a, p, loader.Pass, &p)
	h.expect(loader.FromContainer, h.a, fromA(tcp, syn, 5000, remote, 80), loader.Redirect, nil)
}

func TestPrivilegedInternal(t *testing.T) {
	for _, fast := range []bool{true, false} {
		h := newHost(t, fast)
		h.publish(loader.TCP, netip.Addr{}, 8080, 80)
		must(t, h.dp.PutNetwork(loader.Network{ID: 1, Subnets: []netip.Prefix{netip.MustParsePrefix("172.18.0.0/16")},
			Gateways: []netip.Addr{gateway}, Bridge: h.bridge, BridgeMAC: bridgeMAC, MTU: 1500, ICC: true, Masquerade: true,
			Internal: true}))
		h.expectDrop(loader.FromContainer, h.a, fromA(tcp, syn, 5000, remote, 80), "internal")
		h.expectDrop(loader.ToUplink, h.uplink, fromA(tcp, syn, 5000, remote, 80), "internal")
		in := fromOutside(tcp, syn, remote, 4000, hostAddr, 8080)
		h.expect(loader.FromUplink, h.uplink, in, loader.Pass, &in)
		p := fromA(tcp, syn, 5000, gateway, 53)
		h.expect(loader.FromContainer, h.a, p, loader.Pass, &p)
	}
}
