package soak

import (
	"net/netip"
	"sync"
	"time"

	"github.com/ebnet/ebnet/tests/walk"
)

// history says whom each published port has led to, and when. What arrives is judged later,
// when the operation that was under way has ended and its outcome is known.
type history struct {
	mu       sync.Mutex
	tenures  map[walk.Target][]tenure
	arrivals []arrival
	serving  map[string][]netip.AddrPort // by protocol
	judged   int
	wrong    []arrival
}

// tenure is a time in which a port leads to a namespace.
type tenure struct {
	space    string
	from, to time.Time // to zero: still
}

// arrival is a datagram or connection in a namespace.
type arrival struct {
	target         walk.Target // as it was sent
	space          string      // where it came to
	sent, received time.Time
}

func newHistory() *history { return &history{tenures: map[walk.Target][]tenure{}} }

// kept is how long it is remembered whom a port has led to.
const kept = time.Minute

// changed takes in what an operation may have done. While it was under way each of its
// states was possible.
func (h *history) changed(begin, end time.Time, states []map[walk.Target]string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := states[len(states)-1]
	for target, ts := range h.tenures {
		var left []tenure
		for _, t := range ts {
			if t.to.IsZero() && now[target] != t.space {
				t.to = end
			}
			if t.to.IsZero() || end.Sub(t.to) < kept {
				left = append(left, t)
			}
		}
		if h.tenures[target] = left; len(left) == 0 {
			delete(h.tenures, target)
		}
	}
	for _, state := range states {
		for target, space := range state {
			h.begin(target, tenure{space: space, from: begin, to: end}, now[target] == space)
		}
	}
	h.serving = map[string][]netip.AddrPort{}
	for target := range now {
		if target.At.Port() != keptPort && target.At.Port() != streamPort { // whose peers do not know questions
			h.serving[target.Protocol] = append(h.serving[target.Protocol], target.At)
		}
	}
	h.judge(end)
}

// open are the ports that are published at the moment.
func (h *history) open(protocol string) []netip.AddrPort {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.serving[protocol]
}

// begin adds a tenure unless there is one that goes on.
func (h *history) begin(target walk.Target, t tenure, stays bool) {
	for _, have := range h.tenures[target] {
		if have.space == t.space && (have.to.IsZero() || have.to.Equal(t.to)) {
			return
		}
	}
	if stays {
		t.to = time.Time{}
	}
	h.tenures[target] = append(h.tenures[target], t)
}

// arrived notes an arrival.
func (h *history) arrived(a arrival) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.arrivals = append(h.arrivals, a)
}

// judge looks at the arrivals until end: each must have had a tenure at some time between
// its sending and its receipt.
func (h *history) judge(end time.Time) {
	var later []arrival
	for _, a := range h.arrivals {
		if a.received.After(end) {
			later = append(later, a)
			continue
		}
		h.judged++
		if !h.right(a) {
			h.wrong = append(h.wrong, a)
		}
	}
	h.arrivals = later
}

func (h *history) right(a arrival) bool {
	for _, t := range h.tenures[a.target] {
		if t.space == a.space && !t.from.After(a.received) && (t.to.IsZero() || !t.to.Before(a.sent)) {
			return true
		}
	}
	return false
}
