package netdev

import (
	"slices"
	"testing"
)

func TestPrivilegedCheckBridge(t *testing.T) {
	newHost(t)
	b := testBridge()
	_, err := CheckBridge(b)
	wantError(t, err, ErrNotFound)
	mustEnsureBridge(t, b)
	if wrong, err := CheckBridge(b); len(wrong) > 0 || err != nil {
		t.Errorf("a new bridge: %q, %v", wrong, err)
	}
	other := b
	other.MAC = []byte{2, 0, 0, 0, 0, 9}
	other.MTU--
	other.Addrs = append(slices.Clone(b.Addrs), b.Addrs[0].Masked())
	if _, err := setDeviceSysctl("ipv4", b.Name, "forwarding", "0"); err != nil {
		t.Fatal(err)
	}
	if wrong, err := CheckBridge(other); len(wrong) != 4 || err != nil {
		t.Errorf("a bridge with another MAC address, MTU and without forwarding and an address: %q, %v", wrong, err)
	}
}
