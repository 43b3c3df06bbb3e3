package netdev

import "testing"

func TestPrivilegedPeerTraffic(t *testing.T) {
	newHost(t)
	bridge := mustEnsureBridge(t, testBridge())
	veth := mustCreateVeth(t, testVeth(bridge, 2, newContainer(t)))
	all, err := PeerTraffic(veth, bridge, 1, 4711)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := all[veth]; !ok || len(all) != 1 {
		t.Errorf("counters %+v, want those of %d alone", all, veth)
	}
	if all, err := PeerTraffic(); len(all) != 0 || err != nil {
		t.Errorf("of no devices: %+v, %v", all, err)
	}
}
