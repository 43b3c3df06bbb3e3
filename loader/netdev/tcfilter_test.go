package netdev

import (
	"slices"
	"testing"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// mustProgram loads "return -1" (TC_ACT_UNSPEC) as a classifier.
func mustProgram(t *testing.T) int {
	t.Helper()
	insns := [][8]byte{{0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, {0x95}}
	license := []byte("GPL\x00")
	// The start of union bpf_attr for BPF_PROG_LOAD.
	attr := struct {
		progType, count uint32
		insns, license  uint64
	}{
		progType: unix.BPF_PROG_TYPE_SCHED_CLS, count: uint32(len(insns)),
		insns: uint64(uintptr(unsafe.Pointer(&insns[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0]))),
	}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		t.Fatalf("load a program: %v", errno)
	}
	t.Cleanup(func() { _ = unix.Close(int(fd)) })
	return int(fd)
}

func wantFilter(t *testing.T, dev int, ingress, want bool) (progID int) {
	t.Helper()
	id, ok, err := FilterAttached(dev, ingress)
	if err != nil || ok != want || ok && id == 0 {
		t.Fatalf("ingress %t: program %d, attached %t, %v", ingress, id, ok, err)
	}
	return id
}

func wantClsact(t *testing.T, dev int, want bool) {
	t.Helper()
	list, err := netlink.QdiscList(linkRef(dev))
	if err != nil {
		t.Fatal(err)
	}
	found := slices.ContainsFunc(list, func(q netlink.Qdisc) bool { return q.Type() == "clsact" })
	if found != want {
		t.Fatalf("clsact there: %t, want %t", found, want)
	}
}

func mustAttachFilter(t *testing.T, dev int, ingress bool, progFD int) {
	t.Helper()
	if err := AttachFilter(dev, ingress, progFD, "nd_test"); err != nil {
		t.Fatal(err)
	}
}

func TestPrivilegedFilter(t *testing.T) {
	newHost(t)
	dev := addPair(t, "up0", 1500)
	wantFilter(t, dev, true, false)
	first, second := mustProgram(t), mustProgram(t)
	for _, ingress := range []bool{true, false} {
		mustAttachFilter(t, dev, ingress, first)
		before := wantFilter(t, dev, ingress, true)
		mustAttachFilter(t, dev, ingress, second)
		if after := wantFilter(t, dev, ingress, true); after == before {
			t.Fatalf("program %d was not replaced", before)
		}
		list, err := netlink.FilterList(linkRef(dev), filterParent(ingress))
		if err != nil || len(list) != 1 {
			t.Fatalf("filters %v, %v", list, err)
		}
	}
	for _, ingress := range []bool{true, false} {
		wantClsact(t, dev, true)
		if err := DetachFilter(dev, ingress); err != nil {
			t.Fatal(err)
		}
		wantFilter(t, dev, ingress, false)
	}
	wantClsact(t, dev, false)
	wantError(t, AttachFilter(9999, true, first, "nd_test"), ErrNotFound)
	if err := DetachFilter(9999, true); err != nil {
		t.Fatal(err)
	}
}

func TestPrivilegedForeignFilterStays(t *testing.T) {
	newHost(t)
	dev := addPair(t, "up0", 1500)
	prog := mustProgram(t)
	mustAttachFilter(t, dev, true, prog)
	foreign := &netlink.BpfFilter{
		FilterAttrs:  netlink.FilterAttrs{LinkIndex: dev, Parent: filterParent(false), Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL},
		Fd:           prog,
		Name:         "foreign",
		DirectAction: true,
	}
	if err := netlink.FilterAdd(foreign); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, ingress := range []bool{true, false} {
			if err := DetachFilter(dev, ingress); err != nil {
				t.Fatal(err)
			}
		}
	}
	list, err := netlink.FilterList(linkRef(dev), filterParent(false))
	if err != nil || len(list) != 1 {
		t.Fatalf("filters %v, %v", list, err)
	}
}
