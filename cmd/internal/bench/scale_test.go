package bench

import (
	"context"
	"encoding/binary"
	"slices"
	"testing"
)

// TestSegments: each conversation has one segment in the order in which they are sent, with
// checksums that are right.
func TestSegments(t *testing.T) {
	const n = 3 * sourcePorts
	all := shuffled(n)
	seen := make(map[[12]byte]bool)
	for b := range slices.Chunk(all, segmentSize) {
		seen[[12]byte(b[12:24])] = true
		if sum := fold(sum16(b[:20])); sum != 0xffff {
			t.Fatalf("% x: sum of the header %#x", b, sum)
		}
		pseudo := sum16(b[12:20]) + uint32(b[9]) + segmentSize - 20
		if sum := fold(pseudo + sum16(b[20:])); sum != 0xffff {
			t.Fatalf("% x: sum of the segment %#x", b, sum)
		}
	}
	if len(seen) != n {
		t.Errorf("%d tuples, want %d", len(seen), n)
	}
	var first [segmentSize]byte
	putSegment(first[:], 0, flagACK)
	if slices.Equal(first[:], all[:segmentSize]) {
		t.Error("the order is that of the conversations")
	}
	if port := binary.BigEndian.Uint16(first[22:]); port != servicePort {
		t.Errorf("to port %d, want %d, which is counted", port, servicePort)
	}
}

// TestPublishedRanges: a larger range has the smaller one in it, and the port that is used, not as
// the first.
func TestPublishedRanges(t *testing.T) {
	published := map[int]bool{publishedPort: true}
	before := 0
	for _, n := range portsCurve(&pps{}).sizes {
		for _, r := range newPorts(before, n) {
			for port := r[0]; port <= r[1]; port++ {
				if published[port] || port-portOffset < 1 || port > 65535 {
					t.Fatalf("port %d for %d ports", port, n)
				}
				published[port] = true
			}
		}
		first, last := publishedRange(n)
		if len(published) != n || last-first+1 != n {
			t.Errorf("%d ports are published, want %d", len(published), n)
		}
		if n > 1 && (publishedPort <= first || publishedPort > last) {
			t.Errorf("of %d to %d, port %d is used", first, last, publishedPort)
		}
		before = n
	}
}

// TestLostConversations: nothing is measured with fewer conversations than the curve says.
func TestLostConversations(t *testing.T) {
	f := &flowsPeer{size: 1000, count: func(*stage) (int, error) { return 999, nil }}
	if _, err := f.run(context.Background()); err == nil {
		t.Error("a sample was taken")
	}
}
