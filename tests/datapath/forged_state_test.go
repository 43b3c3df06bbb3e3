package datapath

import (
	"testing"

	"github.com/ebnet/ebnet/loader"
)

// What an endpoint sends to a published port inside never leaves, not even when the host
// has lost the address and its routing sends it out.
func TestPrivilegedInsideStaysInside(t *testing.T) {
	for _, fast := range []bool{true, false} {
		h := newHost(t, fast)
		ask := askInside(h)
		verdict, out := h.run(loader.ToUplink, h.uplink, ask)
		if verdict != loader.Drop && inner(out.src.Addr()) {
			t.Errorf("fast=%v: verdict %d, leaves as %v", fast, verdict, out)
		}
	}
}

// Outside, with an endpoint's address and ports, neither ends a conversation of the
// endpoint nor keeps it alive.
func TestPrivilegedForgedChangesNothing(t *testing.T) {
	h := newHost(t, true)
	inside := askInside(h)
	h.expect(loader.FromContainer, h.a, fromA(tcp, syn, 5000, remote, 3000), loader.Redirect, nil)
	h.reply(fromOutside(tcp, syn|ack, remote, 3000, hostAddr, 5000))
	for _, sent := range []packet{
		inside,
		fromA(tcp, ack, 5000, remote, 3000),
	} {
		forged := fromOutside(tcp, rst, sent.src.Addr(), sent.src.Port(), sent.dst.Addr(), sent.dst.Port())
		h.run(loader.FromUplink, h.uplink, forged)
	}
	must(t, h.dp.Flows(func(f loader.Flow) bool {
		if f.State == "closed" {
			t.Errorf("closed from outside: %+v", f)
		}
		return true
	}))
}

// A first packet that belongs to no conversation keeps the closed one of its tuple no
// longer.
func TestPrivilegedClosedEndsInTime(t *testing.T) {
	h := newHost(t, true)
	establish(h, 5000)
	h.expect(loader.FromContainer, h.a, fromA(tcp, rst, 5000, remote, 80), loader.Redirect, nil)
	for _, at := range []int{20, 40} {
		must(t, h.dp.SetClockOffset(seconds(at)))
		again := fromOutside(tcp, syn, remote, 80, hostAddr, 5000)
		h.expect(loader.FromUplink, h.uplink, again, loader.Pass, &again)
	}
	h.expectDrop(loader.FromContainer, h.a, fromA(tcp, ack, 5000, remote, 80), "no-flow")
}

// Lengths that contradict each other are no datagram: what follows the datagram in its
// frame is not its ports, and nothing opens.
func TestPrivilegedLengths(t *testing.T) {
	h := newHost(t, true)
	for name, change := range map[string]func(ip []byte){
		"shorter than its transport header": func(ip []byte) { ip[2], ip[3] = 0, 20 },
		"longer than its frame":             func(ip []byte) { ip[2], ip[3] = 5, 0 },
	} {
		frame := fromA(udp, 0, 5000, remote, 53).frame()
		ip := frame[14:]
		change(ip)
		ip[10], ip[11] = 0, 0
		c := ^sum(0, ip[:20])
		ip[10], ip[11] = byte(c>>8), byte(c)
		verdict, _, err := h.dp.Run(loader.FromContainer, frame, loader.RunContext{Ifindex: h.a})
		if must(t, err); verdict == loader.Redirect {
			t.Errorf("%s: sent on", name)
		}
	}
	must(t, h.dp.Flows(func(f loader.Flow) bool {
		t.Errorf("opened %+v", f)
		return true
	}))
}
