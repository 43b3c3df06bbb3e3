package datapath

import (
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/loader"
)

// onTwoCPUs runs f on two threads at once, each on a CPU of its own if there are two,
// and starts each round together.
func (h *host) onTwoCPUs(rounds int, between func(), f func(cpu, round int)) {
	h.Helper()
	var start, end sync.WaitGroup
	step := make([]chan int, 2)
	for cpu := range step {
		step[cpu] = make(chan int)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends here
			if err := netns.Set(h.ns); err != nil {
				h.Errorf("enter the namespace: %v", err)
			}
			var set unix.CPUSet
			set.Set(cpu % runtime.NumCPU())
			_ = unix.SchedSetaffinity(0, &set) // where it fails the race is only less likely
			for round := range step[cpu] {
				start.Done()
				start.Wait()
				f(cpu, round)
				end.Done()
			}
		}()
	}
	for round := range rounds {
		start.Add(2)
		end.Add(2)
		for cpu := range step {
			step[cpu] <- round
		}
		end.Wait()
		between()
	}
	for cpu := range step {
		close(step[cpu])
	}
}

// out runs from_container and returns what left, if it did. Safe on any thread.
func (h *host) out(p packet) (packet, bool) {
	verdict, frame, err := h.dp.Run(loader.FromContainer, p.frame(), loader.RunContext{Ifindex: h.a})
	if err != nil {
		h.Errorf("run: %v", err)
		return packet{}, false
	}
	if problem := verify(frame); problem != "" {
		h.Errorf("%v: %s", p, problem)
	}
	return parse(frame), verdict == loader.Redirect
}

func (h *host) flush() {
	h.Helper()
	_, err := h.dp.FlushFlows(func(loader.Flow) bool { return true })
	must(h.TB, err)
}

// Two CPUs get the first packets of the same conversations at the same time: both must
// translate each to the same port, and one conversation is there of each.
func TestPrivilegedRaceOpening(t *testing.T) {
	h := newHost(t, true)
	h.out(fromA(udp, 0, 1, remote, 1)) // opens the program's descriptor before there are two threads
	h.flush()
	const flows = 200
	var got [2][flows]netip.AddrPort
	h.onTwoCPUs(40, func() {
		for i := range flows {
			if got[0][i] != got[1][i] || !got[0][i].IsValid() {
				t.Errorf("flow %d left as %v and as %v", i, got[0][i], got[1][i])
			}
		}
		seen := map[netip.AddrPort]bool{}
		must(t, h.dp.Flows(func(f loader.Flow) bool {
			if seen[f.TranslatedSrc] {
				t.Errorf("%v is used twice", f.TranslatedSrc)
			}
			seen[f.TranslatedSrc] = true
			return true
		}))
		if len(seen) != flows {
			t.Errorf("%d conversations, want %d", len(seen), flows)
		}
		if err := h.dp.CheckPairs(); err != nil {
			t.Error(err)
		}
		h.flush()
	}, func(cpu, _ int) {
		for i := range flows {
			p, ok := h.out(fromA(udp, 0, uint16(40000+i), remote, 53)) // ports that are not allowed
			if got[cpu][i] = p.src; !ok {
				got[cpu][i] = netip.AddrPort{}
			}
		}
	})
}

// Two CPUs compete for the last ports: each is given once, and all of them are.
func TestPrivilegedRaceForPorts(t *testing.T) {
	h := newHost(t, true)
	const ports = 60
	var few loader.PortSet
	few.Add(20000, ports)
	must(t, h.dp.SetSourcePorts(&few))
	h.out(fromA(udp, 0, 1, remote, 1))
	h.flush()
	var got [2][]netip.AddrPort
	h.onTwoCPUs(20, func() {
		seen := map[netip.AddrPort]bool{}
		for _, p := range append(got[0], got[1]...) {
			if seen[p] {
				t.Errorf("%v was given twice", p)
			}
			seen[p] = true
		}
		if len(seen) != ports {
			t.Errorf("%d ports were given, want %d", len(seen), ports)
		}
		if err := h.dp.CheckPairs(); err != nil {
			t.Error(err)
		}
		got = [2][]netip.AddrPort{}
		h.flush()
	}, func(cpu, _ int) {
		for i := range ports {
			if p, ok := h.out(fromA(udp, 0, uint16(40000+1000*cpu+i), remote, 53)); ok {
				got[cpu] = append(got[cpu], p.src)
			}
		}
	})
}

// While one CPU confirms conversations, which moves them from one table to the other,
// packets of both directions on the other one must find them all the same.
func TestPrivilegedRaceConfirming(t *testing.T) {
	h := newHost(t, true)
	const flows = 100
	prepare := func() {
		for i := range uint16(flows) {
			h.out(fromA(tcp, syn, 5000+i, remote, 80))
			h.reply(fromOutside(tcp, syn|ack, remote, 80, hostAddr, 5000+i))
		}
	}
	prepare()
	h.onTwoCPUs(40, func() {
		h.confirm(flows)
		if err := h.dp.CheckPairs(); err != nil {
			t.Error(err)
		}
		h.flush()
		prepare()
	}, func(cpu, _ int) {
		for i := range uint16(flows) {
			if _, ok := h.out(fromA(tcp, ack, 5000+i, remote, 80)); !ok {
				t.Errorf("cpu %d: the endpoint's packet of conversation %d was not sent", cpu, i)
			}
			frame := fromOutside(tcp, ack, remote, 80, hostAddr, 5000+i).frame()
			verdict, _, err := h.dp.Run(loader.FromUplink, frame, loader.RunContext{Ifindex: h.uplink})
			if err != nil || verdict != loader.Redirect {
				t.Errorf("cpu %d: the answer of conversation %d: verdict %d, %v", cpu, i, verdict, err)
			}
		}
	})
}

// While one CPU opens and confirms conversations, another ends all that it finds: what is
// left is whole, and the count of the owner's share is right.
func TestPrivilegedRaceEnding(t *testing.T) {
	h := newHost(t, true)
	h.reply(fromOutside(tcp, syn|ack, remote, 80, hostAddr, h.expect(loader.FromContainer, h.a,
		fromA(tcp, syn, 4999, remote, 80), loader.Redirect, nil).src.Port())) // what both CPUs use is open by now
	must(t, h.dp.ForgetAll())
	h.onTwoCPUs(60, func() {
		if err := h.dp.CheckPairs(); err != nil {
			t.Error(err)
		}
		if n, held := h.confirmed(), h.share(1).Held; n != held {
			t.Errorf("%d conversations are confirmed, and %d are counted", n, held)
		}
	}, func(cpu, _ int) {
		if cpu == 1 {
			for range 10 {
				if err := h.dp.ForgetAll(); err != nil {
					t.Error(err)
				}
			}
			return
		}
		for i := range uint16(100) {
			sent, _ := h.out(fromA(tcp, syn, 5000+i, remote, 80))
			answer := fromOutside(tcp, syn|ack, remote, 80, hostAddr, sent.src.Port()).frame()
			if _, _, err := h.dp.Run(loader.FromUplink, answer, loader.RunContext{Ifindex: h.uplink}); err != nil {
				t.Error(err)
			}
			h.out(fromA(tcp, ack, 5000+i, remote, 80))
		}
	})
	must(t, h.dp.ForgetAll())
	if held := h.share(1).Held; held != 0 {
		t.Errorf("%d are counted when there is none", held)
	}
}

// confirm waits until conversations 5000 and up are confirmed. The move to the table that
// nothing evicts fails where the kernel's allocator has nothing left at the moment, and
// the next packet, of either direction, tries again.
func (h *host) confirm(flows int) {
	h.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		n := 0
		must(h.TB, h.dp.Flows(func(f loader.Flow) bool {
			if f.State != "established" {
				h.Errorf("%+v", f)
			}
			if n++; !f.Confirmed {
				h.reply(fromOutside(tcp, ack, remote, 80, hostAddr, f.Src.Port()))
				n--
			}
			return true
		}))
		if n == flows {
			return
		}
		if time.Now().After(deadline) {
			h.Fatalf("%d of %d conversations are confirmed", n, flows)
		}
	}
}
