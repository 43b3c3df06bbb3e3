package loader

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/ebnet/ebnet/loader/failpoint"
)

// PutNetwork adds a network or replaces what is known of it. Its own entry goes last: a network that
// is there is there wholly, also if a command was killed. What fails for a new one is taken back.
func (d *Datapath) PutNetwork(n Network) error {
	if n.ID == 0 || n.ID >= MaxNetworks {
		return fmt.Errorf("network id %d: out of range", n.ID)
	}
	m, err := d.pinned("networks")
	if err != nil {
		return err
	}
	var had datapathNetwork
	if err := m.Lookup(n.ID, &had); err != nil {
		return fmt.Errorf("read map networks: %w", permission(err))
	}
	if err := d.writeNetwork(n); err != nil {
		if had.Bridge == 0 {
			err = errors.Join(err, d.DeleteNetwork(n))
		}
		return err
	}
	return nil
}

func (d *Datapath) writeNetwork(n Network) error {
	if err := d.markInner(n.Subnets); err != nil {
		return err
	}
	for _, s := range n.Subnets {
		if err := d.put("subnets", subnetKey(s), n.ID); err != nil {
			return err
		}
	}
	return d.put("networks", n.ID, networkValue(n))
}

func networkValue(n Network) datapathNetwork {
	v4, v6 := byFamily(n.Gateways)
	return datapathNetwork{
		Gateway4: toAddr(v4),
		Gateway6: toAddr(v6),
		Snat4:    toAddr(n.SNAT),
		Bridge:   uint32(n.Bridge),
		Mtu:      uint32(n.MTU),
		Flags:    networkFlags(n),
		Mac:      toMAC(n.BridgeMAC),
	}
}

func networkFlags(n Network) (flags datapathNetworkFlag) {
	for _, f := range []struct {
		on   bool
		flag datapathNetworkFlag
	}{
		{n.Internal, datapathNetworkFlagNET_INTERNAL},
		{!n.ICC, datapathNetworkFlagNET_NO_ICC},
		{!n.Masquerade, datapathNetworkFlagNET_NO_MASQUERADE},
		{n.Routed, datapathNetworkFlagNET_ROUTED},
	} {
		if f.on {
			flags |= f.flag
		}
	}
	return flags
}

func subnetKey(p netip.Prefix) datapathSubnetKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return datapathSubnetKey{Prefixlen: uint32(bits), Addr: toAddr(p.Masked().Addr())}
}

// DeleteNetwork removes a network and its subnets. One that is not there is no error.
func (d *Datapath) DeleteNetwork(n Network) error {
	for _, s := range n.Subnets {
		if err := d.remove("subnets", subnetKey(s)); err != nil {
			return err
		}
	}
	if err := d.unmarkInner(n.Subnets); err != nil {
		return err
	}
	if n.ID == 0 || n.ID >= MaxNetworks {
		return nil
	}
	return d.put("networks", n.ID, datapathNetwork{})
}

// Networks returns the ids of the networks in the datapath.
func (d *Datapath) Networks() ([]uint32, error) {
	m, err := d.pinned("networks")
	if err != nil {
		return nil, err
	}
	var ids []uint32
	if err := each(m, func(id *uint32, n *datapathNetwork) bool {
		if n.Bridge != 0 {
			ids = append(ids, *id)
		}
		return true
	}); err != nil {
		return nil, fmt.Errorf("list networks: %w", err)
	}
	return ids, nil
}

// put writes one entry.
func (d *Datapath) put(name string, key, value any) error {
	m, err := d.pinned(name)
	if err != nil {
		return err
	}
	if err := failpoint.Do("write map", name, func() error { return m.Put(key, value) }); err != nil {
		return fmt.Errorf("write map %s: %w", name, full(err))
	}
	return nil
}

// remove deletes one entry; one that is not there is no error.
func (d *Datapath) remove(name string, key any) error {
	m, err := d.pinned(name)
	if err != nil {
		return err
	}
	err = failpoint.Do("delete from map", name, func() error { return m.Delete(key) })
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete from map %s: %w", name, err)
	}
	return nil
}

// removeIf deletes the entries for which match returns true, and returns their keys.
func removeIf[K, V any](d *Datapath, name string, match func(*K, *V) bool) ([]K, error) {
	m, err := d.pinned(name)
	if err != nil {
		return nil, err
	}
	var keys []K
	if err := each(m, func(k *K, v *V) bool {
		if match(k, v) {
			keys = append(keys, *k)
		}
		return true
	}); err != nil {
		return nil, fmt.Errorf("read map %s: %w", name, err)
	}
	for _, k := range keys {
		if err := d.remove(name, k); err != nil {
			return keys, err
		}
	}
	return keys, nil
}
