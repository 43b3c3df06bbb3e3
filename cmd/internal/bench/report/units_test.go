package report

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestHuman(t *testing.T) {
	for _, test := range []struct {
		v    float64
		unit string
		want string
	}{
		{312_345, "packets/s", "312 k packets/s"},
		{999_600, "packets/s", "1.00 M packets/s"},
		{12, "flows/s", "12.0 flows/s"},
		{18.4e9, "bit/s", "18.4 Gbit/s"},
		{3100, "ns", "3.10 µs"},
		{999.9, "ns", "1.00 µs"},
		{0.000_42, "s", "420 µs"},
		{1.5, "s", "1.50 s"},
		{4000, "s", "4,000 s"},
		{0.142, "ns/byte", "0.142 ns/byte"},
		{2300, "ns/packet", "2.30 µs/packet"},
		{1.2 * (1 << 30), "bytes", "1.20 GiB"},
		{640, "bytes/flow", "640 B/flow"},
		{0, "packets/s", "0 packets/s"},
		{-74, "ns", "-74.0 ns"},
		{5, "", "5.00"},
		{1234567, "things", "1,230,000 things"},
	} {
		if got := Human(test.v, test.unit); got != test.want {
			t.Errorf("%v %s: %q, want %q", test.v, test.unit, got, test.want)
		}
	}
}

func TestSizes(t *testing.T) {
	for v, want := range map[float64][2]string{
		1: {"1", "1"}, 500: {"500", "500"}, 1000: {"1,000", "1k"}, 60000: {"60,000", "60k"},
		1500: {"1,500", "1.5k"}, 1234: {"1,234", "1,234"}, 1e6: {"1,000,000", "1M"}, 0.5: {"0.5", "0.5"},
	} {
		if got := [2]string{count(v), short(v)}; got != want {
			t.Errorf("%v: %q, want %q", v, got, want)
		}
	}
}

// What others wrote neither breaks a line nor steers a terminal, and long texts end at the edge.
func TestWrap(t *testing.T) {
	if got := oneLine(" a\n\tb\x1b[31m  c\u2028d "); got != "a b [31m c d" {
		t.Errorf("%q", got)
	}
	text := ""
	for range 60 {
		text += "word "
	}
	for line := range strings.SplitSeq(wrap(text, "  "), "\n") {
		if n := utf8.RuneCountInString(line); n > width || line[:2] != "  " || line[2] == ' ' {
			t.Errorf("%q", line)
		}
	}
}
