package netdev

import (
	"errors"
	"testing"
)

// FuzzSocket reads what the kernel says of a socket, of any length.
func FuzzSocket(f *testing.F) {
	whole := make([]byte, inetDiagMsgLen+8)
	whole[0] = 10 // AF_INET6
	copy(whole[inetDiagMsgLen:], []byte{5, 0, inetDiagSKV6Only, 0, 1})
	f.Add(whole)
	f.Add(whole[:inetDiagMsgLen])
	f.Add(whole[:inetDiagMsgLen-1])
	f.Add(append(whole[:inetDiagMsgLen:inetDiagMsgLen], 0xFF, 0xFF, inetDiagSKV6Only, 0))
	f.Add(append(whole[:inetDiagMsgLen:inetDiagMsgLen], 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, m []byte) {
		s, err := parseSocket(m)
		if err == nil && (len(m) < inetDiagMsgLen || !s.addr.IsValid()) {
			t.Errorf("%d bytes are %+v", len(m), s)
		}
	})
}

// FuzzAttr looks for an attribute in attributes of any lengths.
func FuzzAttr(f *testing.F) {
	f.Add([]byte{8, 0, 1, 0, 1, 2, 3, 4}, uint16(1))
	f.Add([]byte{0, 0, 1, 0}, uint16(1))
	f.Add([]byte{200, 0, 1, 0, 1}, uint16(1))
	f.Add([]byte{5, 0, 2, 0, 1, 0, 0, 0, 4, 0, 1, 128}, uint16(1))
	f.Fuzz(func(t *testing.T, attrs []byte, kind uint16) {
		if v, err := findAttr(attrs, kind); err == nil && len(v) > len(attrs) {
			t.Errorf("%d bytes of %d", len(v), len(attrs))
		}
	})
}

// FuzzPortRanges reads net.ipv4.ip_local_reserved_ports, which others write too.
func FuzzPortRanges(f *testing.F) {
	for _, s := range []string{"", "1", "1-2,3", "2-1", "65536", "-", ",", "1-2-3", "1, 2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ranges, err := parsePortRanges(s)
		if err != nil && !errors.Is(err, ErrInvalid) {
			t.Error(err)
		}
		for _, r := range ranges {
			if r.First > r.Last {
				t.Errorf("%q is %v", s, ranges)
			}
		}
	})
}

func TestResolveOdd(t *testing.T) {
	for _, ref := range []string{"", ".", "..", "a\x00b", "/a\x00b", "pid:", "pid:0", "pid:-1", "pid:+1", "pid:1/ns", "pid:99999999999"} {
		if path, err := ResolveNS(ref); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q is %q, %v", ref, path, err)
		}
	}
}
