package report

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestSVG(t *testing.T) {
	var out strings.Builder
	if err := WriteSVG(&out, sample(t), "pps/out", "crr/in"); err != nil {
		t.Fatal(err)
	}
	golden(t, "sample.svg", out.String())
	checkXML(t, out.String())
}

// A picture is well-formed whatever the strings in it are.
func TestSVGHostile(t *testing.T) {
	r := hostileReport()
	for i := range r.Cases {
		r.Cases[i].Name = string(rune('a' + i))
	}
	var out strings.Builder
	if err := WriteSVG(&out, r, "a"); err != nil {
		t.Fatal(err)
	}
	checkXML(t, out.String())
	if strings.Contains(out.String(), "<img") || strings.Contains(out.String(), "<script") {
		t.Errorf("a foreign element: %s", out.String())
	}
}

func checkXML(t *testing.T, s string) {
	t.Helper()
	for d := xml.NewDecoder(strings.NewReader(s)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("%v in %s", err, s)
		}
	}
}

func TestSVGNothing(t *testing.T) {
	r := &Report{Cases: []Case{{Name: "empty"}, {Name: "curve", Axis: "ports"}}}
	for _, names := range [][]string{nil, {"empty"}, {"curve"}, {"none"}} {
		var out strings.Builder
		if err := WriteSVG(&out, r, names...); !errors.Is(err, ErrNoCase) || out.Len() > 0 {
			t.Errorf("%v: %v, %q", names, err, out.String())
		}
	}
}
