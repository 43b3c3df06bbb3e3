package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
)

// buildRedirect makes the limit: what eBPF can do at most at the places where ebnet is, see the
// programs limit_*. Nothing is translated. The bridge is there for ARP alone.
func buildRedirect(ctx context.Context, l *lab, peer string) (*stage, error) {
	s, err := l.bridged(ctx, peer, false)
	if err != nil {
		return nil, err
	}
	return s, l.attachLimit(s)
}

func (l *lab) attachLimit(s *stage) error {
	spec, err := loadProgram()
	if err != nil {
		return err
	}
	var ends [2]programLimitEnd
	for i, c := range []end{s.c1, s.c2} {
		inside, err := c.node.device(c.device)
		if err != nil {
			return err
		}
		port, err := s.host.device(hostLink(i + 1))
		if err != nil {
			return err
		}
		ends[i] = programLimitEnd{Addr: beAddr(c.addr), Ifindex: uint32(port.Index), Mac: mac(inside)}
	}
	way, err := limitWay(s)
	if err != nil {
		return err
	}
	if err := firstError(
		func() error { return spec.Variables[programVarLimitEnds].Set(ends) },
		func() error { return spec.Variables[programVarLimitWay].Set(way) },
	); err != nil {
		return err
	}
	var objects programObjects
	if err := spec.LoadAndAssign(&objects, nil); err != nil {
		return fmt.Errorf("load the redirects: %w", err)
	}
	l.closers = append(l.closers, &objects)
	for _, at := range []string{hostLink(1), hostLink(2), uplinkLink} {
		program := objects.LimitFromContainer
		if at == uplinkLink {
			program = objects.LimitFromUplink
		}
		attached, err := attach(s.host, at, program)
		if err != nil {
			return err
		}
		l.closers = append(l.closers, attached)
	}
	return nil
}

func limitWay(s *stage) (way programLimitWay, err error) {
	uplink, err := s.host.device(uplinkLink)
	if err != nil {
		return way, err
	}
	bridge, err := s.host.device(bridgeLink)
	if err != nil {
		return way, err
	}
	outside, err := s.outside.node.device(s.outside.device)
	if err != nil {
		return way, err
	}
	return programLimitWay{
		Uplink: uint32(uplink.Index), UplinkMac: mac(uplink), OutsideMac: mac(outside), GatewayMac: mac(bridge),
	}, nil
}

func mac(link *net.Interface) [6]byte { return [6]byte(link.HardwareAddr) }

// beAddr is an IPv4 address in network byte order.
func beAddr(addr netip.Addr) uint32 {
	b := addr.As4()
	return binary.NativeEndian.Uint32(b[:])
}
