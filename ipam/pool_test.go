package ipam

import (
	"math"
	"net/netip"
	"testing"
)

func TestAcquireCycles(t *testing.T) {
	p := mustOpen(t, config("10.0.0.0/29", "10.0.0.1"), NewMemStore())
	wantAcquired(t, p, "10.0.0.2", "10.0.0.3", "10.0.0.4")
	mustRelease(t, p, "10.0.0.3")
	wantAcquired(t, p, "10.0.0.5", "10.0.0.6", "10.0.0.3")
	if p.Used() != 5 || p.Available() != 0 {
		t.Errorf("used %d, available %d", p.Used(), p.Available())
	}
	_, err := p.Acquire()
	wantError(t, err, ErrExhausted, "subnet 10.0.0.0/29: exhausted: all 5 addresses are in use")
	mustRelease(t, p, "10.0.0.6")
	wantAcquired(t, p, "10.0.0.6")
}

// A container that restarts again and again in a nearly full pool.
func TestFreedAddressIsNotNext(t *testing.T) {
	p := mustOpen(t, config("10.0.0.0/29", "10.0.0.1"), NewMemStore())
	wantAcquired(t, p, "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5")
	mustRelease(t, p, "10.0.0.5")
	wantAcquired(t, p, "10.0.0.6")
	mustRelease(t, p, "10.0.0.6")
	wantAcquired(t, p, "10.0.0.5")

	// One asked for by name lies before the cursor.
	p = mustOpen(t, config("10.0.0.0/24", "10.0.0.1"), NewMemStore())
	mustRequest(t, p, "10.0.0.4", "10.0.0.3", "10.0.0.2")
	mustRelease(t, p, "10.0.0.4", "10.0.0.2", "10.0.0.3")
	wantAcquired(t, p, "10.0.0.5")
}

func TestRequestReasons(t *testing.T) {
	c := config("10.0.0.0/24", "10.0.0.1")
	c.Range = netip.MustParsePrefix("10.0.0.128/25")
	c.Reserved = map[string]netip.Addr{"printer": netip.MustParseAddr("10.0.0.200")}
	p := mustOpen(t, c, NewMemStore())
	mustRequest(t, p, "10.0.0.5", "10.0.0.128")
	wantAcquired(t, p, "10.0.0.129")
	if p.Used() != 3 || p.Available() != 128-2-2 {
		t.Errorf("used %d, available %d", p.Used(), p.Available())
	}
	for _, tc := range []struct {
		addr     string
		sentinel error
		text     string
	}{
		{"10.0.0.5", ErrInUse, "address 10.0.0.5: already in use"},
		{"10.0.0.129", ErrInUse, "address 10.0.0.129: already in use"},
		{"10.0.0.0", ErrReserved, "address 10.0.0.0: reserved: it is the network address of subnet 10.0.0.0/24"},
		{"10.0.0.255", ErrReserved, "address 10.0.0.255: reserved: it is the broadcast address of subnet 10.0.0.0/24"},
		{"10.0.0.1", ErrReserved, "address 10.0.0.1: reserved: it is the gateway of subnet 10.0.0.0/24"},
		{"10.0.0.200", ErrReserved, "address 10.0.0.200: reserved: it is auxiliary address printer of subnet 10.0.0.0/24"},
		{"10.0.1.5", ErrOutside, "address 10.0.1.5: outside the subnet 10.0.0.0/24"},
		{"fd00::5", ErrOutside, "address fd00::5: outside the subnet 10.0.0.0/24"},
		{"::ffff:10.0.0.9", ErrOutside, ""},
	} {
		a := netip.MustParseAddr(tc.addr)
		wantError(t, p.Request(a), tc.sentinel, tc.text)
		if tc.sentinel != ErrInUse {
			wantError(t, p.Release(a), tc.sentinel, tc.text)
		}
	}
	wantError(t, p.Request(netip.Addr{}), ErrOutside, "")
	wantError(t, p.Release(netip.MustParseAddr("10.0.0.77")), ErrNotLeased, "address 10.0.0.77: not leased")
	mustRelease(t, p, "10.0.0.5")
	wantError(t, p.Release(netip.MustParseAddr("10.0.0.5")), ErrNotLeased, "")
	wantAcquired(t, p, "10.0.0.130") // a refusal breaks nothing
}

func TestRangeExhausted(t *testing.T) {
	c := config("10.0.0.0/16", "10.0.0.1")
	c.Range = netip.MustParsePrefix("10.0.9.4/30")
	p := mustOpen(t, c, NewMemStore())
	wantAcquired(t, p, "10.0.9.4", "10.0.9.5", "10.0.9.6", "10.0.9.7")
	_, err := p.Acquire()
	wantError(t, err, ErrExhausted, "subnet 10.0.0.0/16: exhausted: all 4 addresses of range 10.0.9.4/30 are in use")
	mustRequest(t, p, "10.0.9.8")
	if p.Used() != 5 || p.Available() != 0 {
		t.Errorf("used %d, available %d", p.Used(), p.Available())
	}
}

func TestSmallSubnets(t *testing.T) {
	for _, tc := range []struct {
		subnet, gateway string
		want            []string
	}{
		{"10.0.0.0/31", "", []string{"10.0.0.0", "10.0.0.1"}},
		{"10.0.0.0/31", "10.0.0.0", []string{"10.0.0.1"}},
		{"10.0.0.0/31", "10.0.0.1", []string{"10.0.0.0"}},
		{"10.0.0.0/30", "", []string{"10.0.0.1", "10.0.0.2"}},
		{"10.0.0.0/30", "10.0.0.1", []string{"10.0.0.2"}},
		{"fd00::/127", "", []string{"fd00::", "fd00::1"}},
		{"fd00::/126", "fd00::1", []string{"fd00::2", "fd00::3"}},
	} {
		p := mustOpen(t, config(tc.subnet, tc.gateway), NewMemStore())
		if p.Available() != uint64(len(tc.want)) {
			t.Errorf("%+v: available %d", tc, p.Available())
		}
		wantAcquired(t, p, tc.want...)
		_, err := p.Acquire()
		wantError(t, err, ErrExhausted, "")
	}
	c := config("10.0.0.0/31", "10.0.0.0")
	c.Reserved = map[string]netip.Addr{"peer": netip.MustParseAddr("10.0.0.1")}
	_, err := mustOpen(t, c, NewMemStore()).Acquire()
	wantError(t, err, ErrExhausted, "subnet 10.0.0.0/31: exhausted: every address is reserved, none in use")
}

func TestIPv6IsSparse(t *testing.T) {
	s := NewMemStore()
	p := mustOpen(t, config("fd00:0:0:7::/64", "fd00:0:0:7::1"), s)
	if p.Available() != math.MaxUint64-1 { // 2^64 without the anycast address and the gateway
		t.Errorf("available %d", p.Available())
	}
	wantAcquired(t, p, "fd00:0:0:7::2", "fd00:0:0:7::3")
	wantError(t, p.Request(netip.MustParseAddr("fd00:0:0:7::")), ErrReserved,
		"address fd00:0:0:7::: reserved: it is the subnet-router anycast address of subnet fd00:0:0:7::/64")
	far := []string{"fd00:0:0:7:ffff:ffff:ffff:ffff", "fd00:0:0:7:8000::", "fd00:0:0:7:1234:5678:9abc:def0"}
	mustRequest(t, p, far...)
	wantError(t, p.Request(netip.MustParseAddr(far[0])), ErrInUse, "")
	if p.Used() != 5 || len(s.chunks) != 4 {
		t.Errorf("used %d, %d chunks stored", p.Used(), len(s.chunks))
	}
	wantAcquired(t, p, "fd00:0:0:7::4")
	mustRelease(t, p, far...)
	mustRelease(t, p, "fd00:0:0:7::2", "fd00:0:0:7::3", "fd00:0:0:7::4")
	if p.Used() != 0 || p.Available() != math.MaxUint64-1 || len(s.chunks) != 0 {
		t.Errorf("used %d, available %d, %d chunks stored", p.Used(), p.Available(), len(s.chunks))
	}

	// At the end of the last chunk the cursor wraps instead of overflowing.
	c := config("fd00::/64", "")
	c.Range = netip.MustParsePrefix("fd00::ffff:ffff:ffff:fffe/127")
	p = mustOpen(t, c, NewMemStore())
	wantAcquired(t, p, "fd00::ffff:ffff:ffff:fffe", "fd00::ffff:ffff:ffff:ffff")
	mustRelease(t, p, "fd00::ffff:ffff:ffff:fffe")
	wantAcquired(t, p, "fd00::ffff:ffff:ffff:fffe")

	p = mustOpen(t, config("fd00::/64", ""), NewMemStore())
	p.meta.Cursor = math.MaxUint64
	wantAcquired(t, p, "fd00::ffff:ffff:ffff:ffff", "fd00::1")
}

func TestFillEmpty16(t *testing.T) {
	s := NewMemStore()
	p := mustOpen(t, config("10.1.0.0/16", "10.1.0.1"), s)
	if p.Available() != 65533 {
		t.Fatalf("available %d", p.Available())
	}
	fillEmpty(t, p)
	if len(s.chunks) != 0 {
		t.Errorf("%d chunks stored for no lease", len(s.chunks))
	}
	if p.Available() != 65533 {
		t.Errorf("available %d", p.Available())
	}
}

// TestFillMany leases a million addresses, each once, and finds the last one.
func TestFillMany(t *testing.T) {
	s := NewMemStore()
	p := mustOpen(t, config("10.16.0.0/12", "10.16.0.1"), s)
	prev := p.cfg.Gateway
	for p.Available() > 0 {
		a := mustAcquire(t, p)
		if a != prev.Next() {
			t.Fatalf("acquired %s after %s", a, prev)
		}
		prev = a
	}
	if prev.String() != "10.31.255.254" || p.Used() != 1<<20-3 || len(s.chunks) != 256+1 {
		t.Errorf("last %s, used %d, %d chunks", prev, p.Used(), len(s.chunks))
	}
	for _, a := range []string{"10.16.0.2", "10.20.1.1", "10.31.255.254"} {
		mustRelease(t, p, a)
		wantAcquired(t, p, a)
	}
	_, err := p.Acquire()
	wantError(t, err, ErrExhausted, "")
}

// Auxiliary addresses that fill chunks on their own are jumped over.
func TestReservedChunks(t *testing.T) {
	c := config("10.0.0.0/26", "10.0.0.1")
	c.Reserved = map[string]netip.Addr{}
	for a := netip.MustParseAddr("10.0.0.2"); a != netip.MustParseAddr("10.0.0.40"); a = a.Next() {
		c.Reserved[a.String()] = a
	}
	s := NewMemStore()
	p, err := open(c, s, 2)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(p.reserved[1]); n != 10 { // chunks of 4 within .0 to .39
		t.Errorf("%d chunks reserved", n)
	}
	wantAcquired(t, p, "10.0.0.40", "10.0.0.41")
	mustRelease(t, p, "10.0.0.40")
	for p.Available() > 0 {
		mustAcquire(t, p)
	}
	if err := check(p); err != nil {
		t.Error(err)
	}
}

func TestConfigIsCopied(t *testing.T) {
	c := config("10.0.0.0/24", "10.0.0.1")
	c.Reserved = map[string]netip.Addr{"a": netip.MustParseAddr("10.0.0.2")}
	p := mustOpen(t, c, NewMemStore())
	delete(c.Reserved, "a")
	wantAcquired(t, p, "10.0.0.3")
}

func TestOverlay(t *testing.T) {
	under := NewMemStore()
	c := config("10.0.0.0/29", "10.0.0.1")
	wantAcquired(t, mustOpen(t, c, under), "10.0.0.2", "10.0.0.3")

	dry := NewOverlay(under)
	p := mustOpen(t, c, dry)
	mustRelease(t, p, "10.0.0.2", "10.0.0.3")
	if len(dry.chunks) != 1 {
		t.Errorf("%d chunks in the overlay", len(dry.chunks))
	}
	p = mustOpen(t, c, dry) // the chunk deleted above does not shine through
	if p.Used() != 0 {
		t.Errorf("used %d", p.Used())
	}
	wantAcquired(t, p, "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2", "10.0.0.3")

	wantAcquired(t, mustOpen(t, c, under), "10.0.0.4")
	wantAcquired(t, mustOpen(t, c, NewOverlay(nil)), "10.0.0.2")
}
