package network

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/ebnet/ebnet/loader"
)

// PortSpec is a port or range of ports to publish, as a person writes it:
// [HOSTIP:][HOSTPORT[-END]:]PORT[-END][/tcp|/udp]. Ranges include both ends. The
// host's range is as long as the container's, or the container's is one port.
type PortSpec struct {
	HostIP   netip.Addr // the zero Addr: not given, any address
	HostPort uint16     // 0: not given, a free one is searched for
	HostEnd  uint16     // HostPort if it is no range
	Port     uint16
	End      uint16 // Port if it is no range
	Protocol loader.Protocol
}

// Count returns how many ports of the container the spec names.
func (p PortSpec) Count() int { return int(p.End) - int(p.Port) + 1 }

// hostCount returns how many ports of the host the spec names, 0 for none.
func (p PortSpec) hostCount() int {
	if p.HostPort == 0 {
		return 0
	}
	return int(p.HostEnd) - int(p.HostPort) + 1
}

// ParsePortSpec reads a PortSpec. It is strict: no blanks, signs, leading zeros
// or names, IPv6 addresses in brackets, the protocol in lower case.
//
// Returns ErrInvalid, or ErrUnsupported for sctp.
func ParsePortSpec(s string) (PortSpec, error) {
	what := fmt.Sprintf("port %q", s)
	var p PortSpec
	rest, err := cutProtocol(s, &p)
	if err == nil {
		rest, err = cutHostIP(rest, &p)
	}
	if err == nil {
		err = parsePorts(rest, &p)
	}
	if err != nil {
		err.What = what
		if err.Kind == ErrInvalid && err.Hint == "" {
			err.Hint = "write [HOSTIP:][HOSTPORT[-END]:]PORT[-END][/tcp|/udp], e.g. 8080:80 or 8000-8010:8000-8010/udp"
		}
		return PortSpec{}, err
	}
	return p, nil
}

func cutProtocol(s string, p *PortSpec) (string, *Error) {
	rest, proto, given := strings.Cut(s, "/")
	switch {
	case !given || proto == "tcp":
		p.Protocol = loader.TCP
	case proto == "udp":
		p.Protocol = loader.UDP
	case strings.EqualFold(proto, "sctp"):
		return "", unsupported("", "SCTP cannot be published, only tcp and udp can")
	default:
		return "", invalid("", "unknown protocol %q, want tcp or udp", proto)
	}
	return rest, nil
}

// cutHostIP takes the address off the front: one in brackets, or what stands
// before the first colon and has a dot.
func cutHostIP(s string, p *PortSpec) (string, *Error) {
	if in, ok := strings.CutPrefix(s, "["); ok {
		host, rest, closed := strings.Cut(in, "]:")
		a, err := netip.ParseAddr(host)
		if !closed || err != nil || !a.Is6() || a.Is4In6() || a.Zone() != "" {
			return "", invalid("", "want an IPv6 address in brackets, then a colon")
		}
		p.HostIP = a
		return rest, nil
	}
	host, rest, more := strings.Cut(s, ":")
	if !more || !strings.Contains(host, ".") {
		return s, nil
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return "", invalid("", "%q is no address", host)
	}
	p.HostIP = a
	return rest, nil
}

func parsePorts(s string, p *PortSpec) *Error {
	host, cont, both := strings.Cut(s, ":")
	if !both {
		host, cont = "", s
	}
	if strings.Contains(cont, ":") {
		return invalid("", "too many colons").hint("an IPv6 address stands in brackets: [2001:db8::1]:8080:80")
	}
	var err *Error
	if both {
		if p.HostPort, p.HostEnd, err = parseRange("host port", host); err != nil {
			return err
		}
	}
	if p.Port, p.End, err = parseRange("port", cont); err != nil {
		return err
	}
	n, m := p.hostCount(), p.Count()
	switch {
	case n == 0 || n == m || m == 1:
		return nil
	case n == 1:
		return invalid("", "one host port for %d ports", m)
	default:
		return invalid("", "%d host ports for %d ports", n, m)
	}
}

func parseRange(what, s string) (first, last uint16, err *Error) {
	a, b, ranged := strings.Cut(s, "-")
	if first, err = parsePort(what, a); err != nil || !ranged {
		return first, first, err
	}
	if last, err = parsePort("end of the "+what+" range", b); err != nil {
		return 0, 0, err
	}
	if last < first {
		return 0, 0, invalid("", "%s range %s ends before it starts", what, s)
	}
	return first, last, nil
}

func parsePort(what, s string) (uint16, *Error) {
	if s == "" {
		return 0, invalid("", "the %s is missing", what)
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, invalid("", "%s %q is no number", what, s)
		}
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, invalid("", "%s %s is not between 1 and 65535", what, s)
	}
	if s[0] == '0' {
		return 0, invalid("", "%s %s starts with a zero", what, s)
	}
	return uint16(n), nil
}

// String returns the spec in the form that ParsePortSpec reads.
func (p PortSpec) String() string {
	var b strings.Builder
	switch {
	case p.HostIP.Is4():
		b.WriteString(p.HostIP.String() + ":")
	case p.HostIP.IsValid():
		b.WriteString("[" + p.HostIP.String() + "]:")
	}
	if p.HostPort != 0 {
		b.WriteString(rangeString(p.HostPort, p.HostEnd) + ":")
	}
	return b.String() + rangeString(p.Port, p.End) + "/" + protocolName(p.Protocol)
}

// MarshalText returns String.
func (p PortSpec) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is ParsePortSpec.
func (p *PortSpec) UnmarshalText(text []byte) (err error) {
	*p, err = ParsePortSpec(string(text))
	return err
}

func rangeString(first, last uint16) string {
	if first == last {
		return strconv.Itoa(int(first))
	}
	return fmt.Sprintf("%d-%d", first, last)
}

func protocolName(p loader.Protocol) string {
	if p == loader.UDP {
		return "udp"
	}
	return "tcp"
}
