package walk

import (
	"fmt"
	"net/netip"
	"strings"
)

// Spec is a port to publish, as it is written: [HOSTIP:][HOSTPORT[-END]:]PORT[-END]/PROTO.
type Spec struct {
	Protocol string
	HostIP   netip.Addr // the zero Addr: not given
	HostPort uint16     // 0: not given
	HostEnd  uint16
	Port     uint16
	End      uint16
}

func (s Spec) count() int     { return int(s.End) - int(s.Port) + 1 }
func (s Spec) hostCount() int { return int(s.HostEnd) - int(s.HostPort) + 1 }

func (s Spec) String() string {
	var b strings.Builder
	if s.HostIP.IsValid() {
		b.WriteString(s.HostIP.String() + ":")
	}
	if s.HostPort != 0 {
		b.WriteString(ports(s.HostPort, s.HostEnd) + ":")
	}
	return b.String() + ports(s.Port, s.End) + "/" + s.Protocol
}

func ports(first, last uint16) string {
	if first == last {
		return fmt.Sprint(first)
	}
	return fmt.Sprintf("%d-%d", first, last)
}

// means reports whether the spec, given to `ebnet unexpose`, means the published port.
func (s Spec) means(p Port) bool {
	switch {
	case p.Protocol != s.Protocol || p.Port != s.Port || p.end() != s.End:
		return false
	case p.Direct:
		return true
	case p.HostIP != s.HostIP:
		return false
	case s.HostPort == 0:
		return true
	case s.hostCount() > s.count():
		return s.HostPort <= p.HostPort && p.HostPort <= s.HostEnd
	}
	return p.HostPort == s.HostPort && p.hostEnd() == s.HostEnd
}

// spec is what publishes the same port.
func (p Port) spec() Spec {
	s := Spec{Protocol: p.Protocol, HostIP: p.HostIP, HostPort: p.HostPort, HostEnd: p.hostEnd(), Port: p.Port, End: p.end()}
	if p.Direct {
		s.HostIP, s.HostPort, s.HostEnd = netip.Addr{}, 0, 0
	}
	return s
}
