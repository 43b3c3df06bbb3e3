package netdev

import (
	"slices"
	"strings"
	"testing"
)

// everyOther is a set that the kernel writes in more than a page.
func everyOther() (ports []PortRange) {
	for p := 20001; p < 60000; p += 2 {
		ports = append(ports, PortRange{uint16(p), uint16(p)})
	}
	return append(ports, PortRange{61000, 61999})
}

func TestPortChunks(t *testing.T) {
	for _, ports := range [][]PortRange{nil, {{1, 1}}, {{1, 2}, {4, 4}}, everyOther()} {
		var back []PortRange
		for _, chunk := range portChunks(ports, 100) {
			if len(chunk) > 100 {
				t.Fatalf("%d bytes: %q", len(chunk), chunk)
			}
			rs, err := parsePortRanges(strings.TrimSpace(chunk))
			if err != nil {
				t.Fatal(err)
			}
			back = append(back, rs...)
		}
		if !slices.Equal(ports, back) {
			t.Errorf("%d ranges became %d", len(ports), len(back))
		}
	}
}

func TestPrivilegedReservedPorts(t *testing.T) {
	newHost(t)
	for _, ports := range [][]PortRange{{{8080, 8080}, {9000, 9100}}, everyOther(), {{7, 7}}, nil} {
		if err := SetLocalReservedPorts(ports); err != nil {
			t.Fatal(err)
		}
		have, err := LocalReservedPorts()
		if err != nil || !slices.Equal(have, ports) {
			t.Errorf("%d ranges, want %d, %v", len(have), len(ports), err)
		}
	}
}
