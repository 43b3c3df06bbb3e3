package report

import (
	"encoding/csv"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What was written is read again, and written to the same bytes.
func TestJSON(t *testing.T) {
	r := sample(t)
	write := func(r *Report) string {
		var out strings.Builder
		if err := WriteJSON(&out, r); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	first := write(r)
	got, err := ReadJSON(strings.NewReader(first))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(first, write(got)); diff != "" {
		t.Error(diff)
	}
	if !strings.HasPrefix(first, "{\n  \"v\": 1,\n") {
		t.Errorf("starts with %q", first[:20])
	}
}

// Lists are never null: scripts go through them without looking.
func TestJSONEmpty(t *testing.T) {
	r := &Report{Cases: []Case{{Series: []Series{{Points: []Point{{}}}, {}}}, {}}}
	var out strings.Builder
	if err := WriteJSON(&out, r); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "null") {
		t.Error(out.String())
	}
	if r.LeftOut != nil || r.Cases[1].Series != nil || r.Cases[0].Series[0].Points[0].Samples != nil || r.V != 0 {
		t.Error("writing changed the report")
	}
}

func TestReadJSON(t *testing.T) {
	for in, want := range map[string]error{
		`{"v":1,"cases":[],"later":true}`: nil,
		`{"v":2}`:                         ErrVersion,
		`{}`:                              ErrVersion,
	} {
		if _, err := ReadJSON(strings.NewReader(in)); !errors.Is(err, want) {
			t.Errorf("%s: %v", in, err)
		}
	}
	for _, in := range []string{``, `[]`, `{"v":1`, `{"v":1} {}`, `{"v":1,"cases":{}}`} {
		if _, err := ReadJSON(strings.NewReader(in)); err == nil {
			t.Errorf("%s was read", in)
		}
	}
}

func TestCSV(t *testing.T) {
	r := &Report{Cases: []Case{
		{Name: "pps/out", Unit: "packets/s", Series: []Series{{"ebnet", []Point{point(1, 2.5)}}, {`a "peer", or two`, []Point{point(312345.678)}}}},
		{Name: "scale", Unit: "s", Axis: "ports", Series: []Series{{"ebnet", []Point{{At: 60000, Samples: []float64{1e-7}}, {At: 1}}}}},
	}}
	var out strings.Builder
	if err := WriteCSV(&out, r); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(strings.NewReader(out.String())).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	want := [][]string{
		{"case", "peer", "at", "round", "value", "unit"},
		{"pps/out", "ebnet", "", "1", "1", "packets/s"},
		{"pps/out", "ebnet", "", "2", "2.5", "packets/s"},
		{"pps/out", `a "peer", or two`, "", "1", "312345.678", "packets/s"},
		{"scale", "ebnet", "60000", "1", "0.0000001", "s"},
	}
	if diff := cmp.Diff(want, rows); diff != "" {
		t.Error(diff)
	}
}

// full is a disk that is.
type full struct{}

var errFull = errors.New("no space left on device")

func (full) Write([]byte) (int, error) { return 0, errFull }

func TestWriteErrors(t *testing.T) {
	r := sample(t)
	for name, err := range map[string]error{
		"text": WriteText(full{}, r),
		"JSON": WriteJSON(full{}, r),
		"CSV":  WriteCSV(full{}, r),
		"HTML": WriteHTML(full{}, r),
		"SVG":  WriteSVG(full{}, r, "pps/out"),
	} {
		if !errors.Is(err, errFull) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
