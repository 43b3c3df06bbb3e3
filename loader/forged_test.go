package loader

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

func TestShapes(t *testing.T) {
	spec, err := loadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range spec.Maps {
		if name == ".bss" {
			name = "clock_offset"
		}
		if name[0] == '.' || slices.Contains(transient, name) {
			continue
		}
		if want := (shape{m.Type, m.KeySize, m.ValueSize}); shapes[name] != want {
			t.Errorf("map %s is %+v, the object's %+v", name, shapes[name], want)
		}
	}
}

// forgeable loads a datapath for the test to damage.
func forgeable(t *testing.T) (bpffs string, d *Datapath) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: needs root to load programs")
	}
	bpffs = filepath.Join(t.TempDir(), "bpf")
	d, _, err := Load(bpffs, Config{MaxFlows: 1000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = d.Close()
		if err := Remove(bpffs); err != nil {
			t.Error(err)
		}
	})
	return bpffs, d
}

// readEverything calls what reads maps, and returns the errors by what was called.
func readEverything(d *Datapath) map[string]error {
	errs := map[string]error{}
	note := func(name string, _ any, err error) { errs[name] = err }
	call := func(name string, v any, err error) { note(name, v, err) }
	v1, err := d.Networks()
	call("Networks", v1, err)
	v2, err := d.Endpoints()
	call("Endpoints", v2, err)
	v3, err := d.PublishedCount()
	call("PublishedCount", v3, err)
	v4, err := d.Shares()
	call("Shares", v4, err)
	v5, err := d.Uplinks()
	call("Uplinks", v5, err)
	call("Flows", nil, d.Flows(func(f Flow) bool { _ = fmt.Sprint(f); return true }))
	v6, err := d.Drops()
	call("Drops", v6, err)
	v7, err := d.Usage()
	call("Usage", v7, err)
	v8, err := d.Sweep()
	call("Sweep", v8, err)
	v9, err := d.LocalAddrs()
	call("LocalAddrs", v9, err)
	v10, err := d.ForgetPeers(1, 2, 3)
	call("ForgetPeers", v10, err)
	v11, err := d.FlushFlows(func(Flow) bool { return true })
	call("FlushFlows", v11, err)
	call("SetSourcePorts", nil, d.SetSourcePorts(new(PortSet)))
	call("SetLocalAddrs", nil, d.SetLocalAddrs([]netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil))
	n := Network{ID: 1, Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}, Gateways: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, MTU: 1500}
	call("PutNetwork", nil, d.PutNetwork(n))
	e := Endpoint{Slot: 1, Network: 1, Ifindex: 7, Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}, MAC: []byte{2, 0, 0, 0, 0, 1}}
	call("PutEndpoint", nil, d.PutEndpoint(e))
	p := Publication{Slot: 2, Protocol: TCP, HostPort: 80, Count: 2, Network: 1, Ifindex: 7, MAC: e.MAC, Addr: e.Addrs[0], Port: 80, From: n.Subnets}
	call("Publish", nil, d.Publish(p))
	call("Unpublish", nil, d.Unpublish(p))
	call("DeleteEndpoint", nil, d.DeleteEndpoint(e))
	call("DeleteNetwork", nil, d.DeleteNetwork(n))
	return errs
}

// TestPrivilegedForgedValues fills the maps with what no ebnet writes: nothing may panic, and what is listed
// can be deleted.
func TestPrivilegedForgedValues(t *testing.T) {
	_, d := forgeable(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	random := func(n uint32) []byte {
		b := make([]byte, n)
		for i := range b {
			if b[i] = byte(rnd.Uint32()); rnd.IntN(4) == 0 {
				b[i] = 0xFF
			}
		}
		return b
	}
	for _, name := range slices.Sorted(maps.Keys(shapes)) {
		m, err := d.pinned(name)
		if err != nil {
			t.Fatal(err)
		}
		switch s := shapes[name]; s.kind {
		case ebpf.Hash, ebpf.LRUHash:
			for range 50 {
				if err := m.Put(random(s.key), random(s.value)); err != nil {
					t.Errorf("map %s: %v", name, err)
				}
			}
		case ebpf.Array:
			if name == "about" || name == "sweepers" || name == "listening" { // the kernel refuses, or has more to it
				continue
			}
			for i := range min(m.MaxEntries(), 100) {
				if err := m.Put(i, random(s.value)); err != nil {
					t.Errorf("map %s: %v", name, err)
				}
			}
		}
	}
	for what, err := range readEverything(d) {
		if err != nil && !strings.Contains(err.Error(), "full") {
			t.Logf("%s: %v", what, err) // an error is right, and so is none
		}
	}
	endpoints, err := d.Endpoints()
	if err != nil || len(endpoints) < 50 {
		t.Fatalf("%d endpoints, %v", len(endpoints), err)
	}
	for _, e := range endpoints {
		if err := d.DeleteEndpoint(e); err != nil {
			t.Errorf("delete what was forged, %+v: %v", e, err)
		}
	}
	if endpoints, err = d.Endpoints(); err != nil || len(endpoints) > 0 {
		t.Errorf("left: %v, %v", endpoints, err)
	}
}

// TestPrivilegedForgedPins pins maps of others under names of ebnet's.
func TestPrivilegedForgedPins(t *testing.T) {
	bpffs, d := forgeable(t)
	_ = d.Close()
	pins := layoutOf(bpffs)
	for _, name := range slices.Sorted(maps.Keys(shapes)) {
		for _, forged := range []*ebpf.MapSpec{
			{Type: ebpf.Hash, KeySize: shapes[name].key, ValueSize: shapes[name].value + 4, MaxEntries: 4},
			{Type: ebpf.Hash, KeySize: 1, ValueSize: 1, MaxEntries: 4},
			{Type: ebpf.Array, KeySize: 4, ValueSize: 4096, MaxEntries: 1},
			{Type: ebpf.RingBuf, MaxEntries: 4096},
		} {
			m, err := ebpf.NewMap(forged)
			if err != nil {
				t.Fatal(err)
			}
			aside := pins.mapPin(name) + "-aside"
			if err := errors.Join(os.Rename(pins.mapPin(name), aside), m.Pin(pins.mapPin(name))); err != nil {
				t.Fatal(err)
			}
			opened, err := Open(bpffs)
			if (name == "about") != (err != nil) || err != nil && !errors.Is(err, ErrConflict) {
				t.Errorf("map %s: open: %v", name, err)
			}
			if err == nil {
				for what, err := range readEverything(opened) {
					if err != nil && (!errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "map "+name+" is not ebnet's")) {
						t.Errorf("map %s forged, %s: %v", name, what, err)
					}
				}
				_ = opened.Close()
			}
			if name == "about" {
				if _, _, err := Load(bpffs, Config{MaxFlows: 1000}); !errors.Is(err, ErrConflict) {
					t.Errorf("map %s: load: %v", name, err)
				}
			}
			_ = m.Close()
			if err := os.Rename(aside, pins.mapPin(name)); err != nil {
				t.Fatal(err)
			}
			if name != "about" {
				break // one of each is enough
			}
		}
	}
	again, err := Open(bpffs)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	m, err := again.pinned("about")
	if err != nil {
		t.Fatal(err)
	}
	for _, about := range []datapathAbout{{MaxFlows: 1<<32 - 1}, {MaxFlows: 1, FastPath: 2}, {MaxFlows: 1, NoTcx: 1 << 31}} {
		if err := m.Put(uint32(0), about); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(bpffs); !errors.Is(err, ErrConflict) {
			t.Errorf("%+v: %v", about, err)
		}
	}
}
