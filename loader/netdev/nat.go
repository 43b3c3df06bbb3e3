package netdev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// DNAT is a rule that leads ports elsewhere.
type DNAT struct {
	Table, Chain string
	Protocol     uint8      // unix.IPPROTO_TCP or IPPROTO_UDP; 0: the rule does not say
	Addr         netip.Addr // the destination that it is about; the zero Addr: the rule does not say
	Ports        PortRange
}

// DNATs returns the rules of nftables, and so of iptables-nft, that translate the
// destination of IPv4 packets by their port. Rules that name no port, and those of the
// older iptables-legacy, are not seen.
//
// Returns ErrPermission; a kernel without nftables has no rules.
func DNATs() ([]DNAT, error) {
	c, err := nftables.New(nftables.AsLasting())
	if err == nil {
		defer func() { _ = c.CloseLasting() }()
		var all []DNAT
		if all, err = listDNATs(c); err == nil {
			return all, nil
		}
	}
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		return nil, nil
	}
	return nil, fmt.Errorf("list rules of nftables: %w", sentinel(err))
}

func listDNATs(c *nftables.Conn) (all []DNAT, err error) {
	chains, err := c.ListChains()
	if err != nil {
		return nil, err
	}
	for _, chain := range chains {
		if f := chain.Table.Family; f != nftables.TableFamilyIPv4 && f != nftables.TableFamilyINet {
			continue
		}
		rules, err := c.GetRules(chain.Table, chain)
		if errors.Is(err, unix.ENOENT) { // gone since
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			elements := func(set string) []PortRange { return setPorts(c, chain.Table, set) }
			for _, d := range readRule(r.Exprs, elements) {
				d.Table, d.Chain = chain.Table.Name, chain.Name
				all = append(all, d)
			}
		}
	}
	return all, nil
}

// setPorts returns the ports in a set or the keys of a map; nothing where it has no ports,
// or cannot be read.
func setPorts(c *nftables.Conn, t *nftables.Table, name string) (ports []PortRange) {
	s, err := c.GetSetByName(t, name)
	if err != nil {
		return nil
	}
	elements, err := c.GetSetElements(s)
	if err != nil {
		return nil
	}
	var ends []uint16 // exclusive
	for _, e := range elements {
		switch {
		case len(e.Key) != 2:
			return nil
		case e.IntervalEnd:
			ends = append(ends, binary.BigEndian.Uint16(e.Key))
		default:
			first := binary.BigEndian.Uint16(e.Key)
			ports = append(ports, PortRange{First: first, Last: first})
		}
	}
	if !s.Interval {
		return ports
	}
	slices.Sort(ends)
	for i := range ports {
		ports[i].Last = 65535
		for _, end := range ends {
			if end > ports[i].First {
				ports[i].Last = end - 1
				break
			}
		}
	}
	return ports
}

// field is what of a packet a register holds.
type field int

const (
	otherField field = iota
	protocolField
	destinationField
	portField
)

// rule is a rule while it is read.
type rule struct {
	registers map[uint32]field
	about     DNAT
	ports     []PortRange
	leads     bool // it translates the destination
}

// readRule returns what a rule does with ports: nothing if it translates no destination,
// or names no port. elements are the ports in a set.
func readRule(exprs []expr.Any, elements func(set string) []PortRange) (all []DNAT) {
	r := rule{registers: map[uint32]field{}}
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Meta:
			r.registers[e.Register] = otherField
			if e.Key == expr.MetaKeyL4PROTO {
				r.registers[e.Register] = protocolField
			}
		case *expr.Payload:
			r.registers[e.DestRegister] = payloadField(e)
		case *expr.Bitwise:
			r.registers[e.DestRegister] = otherField
		case *expr.Cmp:
			r.compare(r.registers[e.Register], e)
		case *expr.Range:
			if e.Op == expr.CmpOpEq && r.registers[e.Register] == portField && len(e.FromData) == 2 && len(e.ToData) == 2 {
				r.ports = append(r.ports, PortRange{First: binary.BigEndian.Uint16(e.FromData), Last: binary.BigEndian.Uint16(e.ToData)})
			}
		case *expr.Lookup:
			if r.registers[e.SourceRegister] == portField && !e.Invert {
				r.ports = append(r.ports, elements(e.SetName)...)
			}
		case *expr.Match:
			if proto, ports, ok := matchPorts(e.Info); ok {
				r.about.Protocol = proto
				r.ports = append(r.ports, ports)
			}
		default:
			r.leads = r.leads || translates(e)
		}
	}
	if !r.leads {
		return nil
	}
	for _, ports := range r.ports {
		r.about.Ports = ports
		all = append(all, r.about)
	}
	return all
}

// compare reads a comparison of a register that holds f. A range may be two of them, the
// lower end first.
func (r *rule) compare(f field, c *expr.Cmp) {
	switch {
	case f == protocolField && len(c.Data) == 1 && c.Op == expr.CmpOpEq:
		r.about.Protocol = c.Data[0]
	case f == destinationField && len(c.Data) == 4 && c.Op == expr.CmpOpEq:
		r.about.Addr = netip.AddrFrom4([4]byte(c.Data))
	case f == portField && len(c.Data) == 2:
		port := binary.BigEndian.Uint16(c.Data)
		switch c.Op {
		case expr.CmpOpEq:
			r.ports = append(r.ports, PortRange{First: port, Last: port})
		case expr.CmpOpGte:
			r.ports = append(r.ports, PortRange{First: port, Last: 65535})
		case expr.CmpOpLte:
			if n := len(r.ports); n > 0 && r.ports[n-1].Last == 65535 && r.ports[n-1].First <= port {
				r.ports[n-1].Last = port
			} else {
				r.ports = append(r.ports, PortRange{Last: port})
			}
		}
	}
}

// payloadField: protocol and destination address are at 9 and 16 of the IPv4 header, the
// destination port at 2 of TCP's and of UDP's.
func payloadField(p *expr.Payload) field {
	switch {
	case p.Base == expr.PayloadBaseTransportHeader && p.Offset == 2 && p.Len == 2:
		return portField
	case p.Base == expr.PayloadBaseNetworkHeader && p.Offset == 9 && p.Len == 1:
		return protocolField
	case p.Base == expr.PayloadBaseNetworkHeader && p.Offset == 16 && p.Len == 4:
		return destinationField
	}
	return otherField
}

// matchPorts reads a match of iptables' own.
func matchPorts(info xt.InfoAny) (proto uint8, ports PortRange, ok bool) {
	switch m := info.(type) {
	case *xt.Tcp:
		return unix.IPPROTO_TCP, PortRange{First: m.DstPorts[0], Last: m.DstPorts[1]}, m.InvFlags&xt.TcpInvDestPorts == 0
	case *xt.Udp:
		return unix.IPPROTO_UDP, PortRange{First: m.DstPorts[0], Last: m.DstPorts[1]}, m.InvFlags&xt.UdpInvDestPorts == 0
	}
	return 0, PortRange{}, false
}

func translates(e expr.Any) bool {
	switch e := e.(type) {
	case *expr.NAT:
		return e.Type == expr.NATTypeDestNAT
	case *expr.Redir:
		return true
	case *expr.Target:
		return e.Name == "DNAT" || e.Name == "REDIRECT"
	}
	return false
}
