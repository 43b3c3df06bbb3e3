package datapath

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/ebnet/ebnet/loader"
)

func TestPrivilegedVerifierBudget(t *testing.T) {
	h := newHost(t, true)
	all, err := h.dp.VerifiedInstructions()
	must(t, err)
	for hook, n := range all {
		t.Logf("%s: %d verified instructions", hook, n)
		if n == 0 || n > 200_000 {
			t.Errorf("%s: %d verified instructions, at most 200,000 are allowed", hook, n)
		}
	}
}

// Loading again changes nothing; with another setting the programs are replaced and
// flows stay; what cannot change is refused.
func TestPrivilegedLoadAgain(t *testing.T) {
	h := newHost(t, true)
	dir := filepath.Join(t.TempDir(), "bpf")
	dp, changed, err := loader.Load(dir, loader.Config{FastPath: true, MaxFlows: 1000})
	must(t, err)
	defer func() { must(t, loader.Remove(dir)) }()
	if !dp.TCX() {
		must(t, dp.Close())
		t.Skip("SKIP: this kernel has no tcx (Linux 6.6), and clsact filters are package netdev's")
	}
	must(t, dp.Attach(loader.FromUplink, h.uplink))
	must(t, dp.Close())
	if !changed {
		t.Fatal("first load changed nothing")
	}
	dp, changed, err = loader.Load(dir, loader.Config{FastPath: true, MaxFlows: 1000})
	must(t, err)
	if changed || !dp.Attached(loader.FromUplink, h.uplink) {
		t.Fatalf("second load: changed %v", changed)
	}
	must(t, dp.PutEndpoint(h.endpointA()))
	must(t, dp.Close())
	dp, changed, err = loader.Load(dir, loader.Config{FastPath: false, MaxFlows: 1000})
	must(t, err)
	eps, err := dp.Endpoints()
	must(t, err)
	if !changed || !dp.Attached(loader.FromUplink, h.uplink) || len(eps) != 1 || dp.Config().FastPath {
		t.Fatalf("replacement: changed %v, endpoints %v, config %+v", changed, eps, dp.Config())
	}
	must(t, dp.Detach(loader.FromUplink, h.uplink))
	if dp.Attached(loader.FromUplink, h.uplink) {
		t.Fatal("still attached")
	}
	must(t, dp.Close())
	if _, _, err := loader.Load(dir, loader.Config{MaxFlows: 2000}); !errors.Is(err, loader.ErrConflict) {
		t.Fatalf("another table size: %v", err)
	}
	if _, err := loader.Open(filepath.Join(t.TempDir(), "nothing")); !errors.Is(err, loader.ErrNotLoaded) {
		t.Fatalf("nothing pinned: %v", err)
	}
}

// Programs of others that accept packets must not keep guards of ours from seeing them,
// whoever came first.
func TestPrivilegedProgramOrder(t *testing.T) {
	h := newHost(t, true)
	if !h.dp.TCX() {
		t.Skip("SKIP: this kernel has no tcx (Linux 6.6)")
	}
	other, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}}) // TC_ACT_OK
	must(t, err)
	defer func() { _ = other.Close() }()
	id := func(p *ebpf.Program) ebpf.ProgramID {
		info, err := p.Info()
		must(t, err)
		id, _ := info.ID()
		return id
	}
	for _, c := range []struct {
		hook  loader.Hook
		where ebpf.AttachType
		dev   int
		first bool
	}{
		{loader.FromContainer, ebpf.AttachTCXIngress, h.a, true},
		{loader.ToUplink, ebpf.AttachTCXEgress, h.uplink, true},
		{loader.FromBridge, ebpf.AttachTCXIngress, h.bridge, true},
		{loader.ToBridge, ebpf.AttachTCXEgress, h.bridge, true},
		{loader.FromUplink, ebpf.AttachTCXIngress, h.uplink, false},
	} {
		l, err := link.AttachTCX(link.TCXOptions{Interface: c.dev, Program: other, Attach: c.where})
		must(t, err)
		defer func() { _ = l.Close() }()
		must(t, h.dp.Attach(c.hook, c.dev))
		got, err := link.QueryPrograms(link.QueryOptions{Target: c.dev, Attach: c.where})
		must(t, err)
		if len(got.Programs) != 2 || (got.Programs[0].ID != id(other)) != c.first {
			t.Errorf("%s: programs %v, the other one is %d", c.hook, got.Programs, id(other))
		}
	}
}
