package loader

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
)

// toAddr puts an address into the datapath's form, see struct addr in bpf/abi.h.
// The zero Addr becomes all zeros.
func toAddr(a netip.Addr) datapathAddr {
	var out datapathAddr
	if !a.IsValid() {
		return out
	}
	b := a.As16()
	for i := range out.W {
		out.W[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return out
}

// fromAddr is the inverse; IPv4 addresses come out unmapped.
func fromAddr(a datapathAddr) netip.Addr {
	if a == (datapathAddr{}) {
		return netip.Addr{}
	}
	var b [16]byte
	for i, w := range a.W {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	return netip.AddrFrom16(b).Unmap()
}

// anyAddr4 stands for any local IPv4 address in keys of services.
var anyAddr4 = toAddr(netip.IPv4Unspecified())

// bigEndian turns a port between the machine's and network byte order.
func bigEndian(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}

func toMAC(m net.HardwareAddr) (out [6]uint8) {
	copy(out[:], m)
	return out
}

// byFamily picks the first address of each family.
func byFamily(addrs []netip.Addr) (v4, v6 netip.Addr) {
	for _, a := range slices.Backward(addrs) {
		if a.Is4() || a.Is4In6() {
			v4 = a.Unmap()
		} else {
			v6 = a
		}
	}
	return v4, v6
}
