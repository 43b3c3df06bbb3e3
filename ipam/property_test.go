package ipam

import (
	"errors"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// oracle is a pool as slow and plain as can be: a map and a walk.
type oracle struct {
	addrs  []netip.Addr // of the subnet, in order
	window netip.Prefix
	fixed  map[netip.Addr]bool
	leased map[netip.Addr]bool
	last   int // index of the address given or passed last
}

func newOracle(c Config) *oracle {
	o := &oracle{window: c.window(), fixed: map[netip.Addr]bool{}, leased: map[netip.Addr]bool{}}
	for a := c.Subnet.Addr(); c.Subnet.Contains(a); a = a.Next() {
		o.addrs = append(o.addrs, a)
	}
	n := len(o.addrs)
	for i, a := range o.addrs {
		if a.Next() == o.window.Addr() {
			o.last = i
		}
	}
	if n > 2 {
		o.fixed[o.addrs[0]] = true
		if c.Subnet.Addr().Is4() {
			o.fixed[o.addrs[n-1]] = true
		}
	}
	if c.Gateway.IsValid() {
		o.fixed[c.Gateway] = true
	}
	for _, a := range c.Reserved {
		o.fixed[a] = true
	}
	if o.window.Addr() == o.addrs[0] {
		o.last = n - 1
	}
	return o
}

// next returns the index of what acquire gives next, or -1.
func (o *oracle) next() int {
	for step := 1; step <= len(o.addrs); step++ {
		i := (o.last + step) % len(o.addrs)
		if a := o.addrs[i]; o.window.Contains(a) && !o.fixed[a] && !o.leased[a] {
			return i
		}
	}
	return -1
}

func (o *oracle) acquire() (netip.Addr, error) {
	i := o.next()
	if i < 0 {
		return netip.Addr{}, ErrExhausted
	}
	o.last = i
	o.leased[o.addrs[i]] = true
	return o.addrs[i], nil
}

func (o *oracle) request(a netip.Addr) error {
	if err := o.member(a); err != nil {
		return err
	}
	if o.leased[a] {
		return ErrInUse
	}
	o.leased[a] = true
	return nil
}

func (o *oracle) release(a netip.Addr) error {
	if err := o.member(a); err != nil {
		return err
	}
	if !o.leased[a] {
		return ErrNotLeased
	}
	delete(o.leased, a)
	if i := o.next(); i >= 0 && o.addrs[i] == a {
		o.last = i
	}
	return nil
}

func (o *oracle) member(a netip.Addr) error {
	if a.Less(o.addrs[0]) || o.addrs[len(o.addrs)-1].Less(a) {
		return ErrOutside
	}
	if o.fixed[a] {
		return ErrReserved
	}
	return nil
}

func (o *oracle) available() (n uint64) {
	for _, a := range o.addrs {
		if o.window.Contains(a) && !o.fixed[a] && !o.leased[a] {
			n++
		}
	}
	return n
}

// drawConfig draws a valid configuration of at most 512 addresses.
func drawConfig(t *rapid.T) Config {
	size := rapid.IntRange(1, 9).Draw(t, "host bits")
	base := netip.MustParseAddr(rapid.SampledFrom([]string{"10.4.8.0", "fd00::8:0"}).Draw(t, "base"))
	c := Config{Subnet: netip.PrefixFrom(base, base.BitLen()-size).Masked()}
	member := func(label string) netip.Addr {
		return address(c.Subnet.Addr(), rapid.Uint64Range(0, 1<<size-1).Draw(t, label))
	}
	if rapid.Bool().Draw(t, "with range") {
		bits := rapid.IntRange(c.Subnet.Bits(), base.BitLen()).Draw(t, "range bits")
		c.Range = netip.PrefixFrom(member("range"), bits).Masked()
	}
	if rapid.Bool().Draw(t, "with gateway") {
		c.Gateway = member("gateway")
		if c.Validate() != nil {
			c.Gateway = netip.Addr{}
		}
	}
	c.Reserved = map[string]netip.Addr{}
	for range rapid.IntRange(0, 1<<size).Draw(t, "auxiliary") {
		a := member("aux")
		c.Reserved[a.String()] = a
		if c.Validate() != nil {
			delete(c.Reserved, a.String())
		}
	}
	return c
}

// model is a pool and the oracle that says what it must do.
type model struct {
	cfg    Config
	shift  uint
	store  Store
	pool   *Pool
	oracle *oracle
}

// TestPoolIsOracle lets a pool with chunks of 4 to 4096 bits, so up to 5
// levels, do what the oracle does: every grant, refusal and count is the same,
// also after it was opened again, and no address is given twice.
func TestPoolIsOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{cfg: drawConfig(t), store: NewMemStore()}
		m.shift = uint(rapid.SampledFrom([]int{2, 3, 6, chunkShift}).Draw(t, "shift"))
		m.oracle = newOracle(m.cfg)
		m.open(t)
		t.Repeat(map[string]func(*rapid.T){
			"acquire": m.acquire,
			"acquire many": func(t *rapid.T) {
				for range rapid.IntRange(0, len(m.oracle.addrs)).Draw(t, "n") {
					m.acquire(t)
				}
			},
			"request": func(t *rapid.T) {
				a := m.drawAddr(t)
				if err, want := m.pool.Request(a), m.oracle.request(a); !errors.Is(err, want) {
					t.Fatalf("request %s: %v, want %v", a, err, want)
				}
			},
			"release": func(t *rapid.T) { m.release(t, m.drawAddr(t)) },
			"release many": func(t *rapid.T) {
				stride := rapid.IntRange(1, 3).Draw(t, "stride")
				for i := 0; i < len(m.oracle.addrs); i += stride {
					m.release(t, m.oracle.addrs[i])
				}
			},
			"reopen": func(t *rapid.T) {
				if rapid.Bool().Draw(t, "overlay") {
					m.store = NewOverlay(m.store)
				}
				m.open(t)
			},
			"": m.compare,
		})
	})
}

func (m *model) open(t *rapid.T) {
	var err error
	if m.pool, err = open(m.cfg, m.store, m.shift); err != nil {
		t.Fatal(err)
	}
}

// drawAddr draws an address of the subnet or right beside it.
func (m *model) drawAddr(t *rapid.T) netip.Addr {
	n := uint64(len(m.oracle.addrs))
	return address(m.cfg.Subnet.Addr(), rapid.Uint64Range(0, n+1).Draw(t, "offset")-1)
}

func (m *model) acquire(t *rapid.T) {
	a, err := m.pool.Acquire()
	want, wantErr := m.oracle.acquire()
	if a != want || !errors.Is(err, wantErr) {
		t.Fatalf("acquire: %v, error %v, want %v, %v", a, err, want, wantErr)
	}
}

func (m *model) release(t *rapid.T, a netip.Addr) {
	if err, want := m.pool.Release(a), m.oracle.release(a); !errors.Is(err, want) {
		t.Fatalf("release %s: %v, want %v", a, err, want)
	}
}

func (m *model) compare(t *rapid.T) {
	used, available := uint64(len(m.oracle.leased)), m.oracle.available()
	if m.pool.Used() != used || m.pool.Available() != available {
		t.Fatalf("used %d, available %d, want %d, %d", m.pool.Used(), m.pool.Available(), used, available)
	}
	if err := check(m.pool); err != nil {
		t.Fatal(err)
	}
}

// TestFullCycle frees one address of a pool and takes all the others before it
// comes again.
func TestFullCycle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := drawConfig(t)
		p, err := open(c, NewMemStore(), 3)
		if err != nil {
			t.Fatal(err)
		}
		if p.Available() == 0 {
			t.Skip("everything is reserved")
		}
		for range rapid.Uint64Range(1, p.Available()).Draw(t, "before") {
			mustAcquire(t, p)
		}
		a := mustAcquireOrLast(t, p)
		if err := p.Release(a); err != nil {
			t.Fatal(err)
		}
		for p.Available() > 1 {
			if got := mustAcquire(t, p); got == a {
				t.Fatalf("%s was reused with %d others free", a, p.Available())
			}
		}
		if got := mustAcquire(t, p); got != a {
			t.Fatalf("acquired %s, want %s", got, a)
		}
	})
}

// mustAcquireOrLast acquires an address, or returns the one given last.
func mustAcquireOrLast(t *rapid.T, p *Pool) netip.Addr {
	if p.Available() > 0 {
		return mustAcquire(t, p)
	}
	for off := p.hi; ; off-- {
		a := address(p.cfg.Subnet.Addr(), off)
		if used, err := p.Leased(a); err == nil && used {
			return a
		}
	}
}
