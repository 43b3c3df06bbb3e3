package report

import (
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func point(samples ...float64) Point { return Point{Samples: samples} }

func TestFinishPoint(t *testing.T) {
	for name, test := range map[string]struct {
		samples           []float64
		median, low, high float64
	}{
		"none":      {},
		"one":       {[]float64{7}, 7, 7, 7},
		"odd":       {[]float64{3, 1, 2}, 2, 1, 3},
		"even":      {[]float64{4, 1, 3, 2}, 2.5, 1, 4},
		"negative":  {[]float64{-1, 0, 1}, 0, -1, 1},
		"enormous":  {[]float64{math.MaxFloat64, math.MaxFloat64}, math.MaxFloat64, math.MaxFloat64, math.MaxFloat64},
		"not a one": {[]float64{math.NaN(), 2, math.Inf(1), math.Inf(-1)}, 2, 2, 2},
		"no number": {[]float64{math.NaN()}, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := &Report{Cases: []Case{{Name: "c", Series: []Series{{"ebnet", []Point{point(test.samples...)}}}}}}
			Finish(r)
			p := r.Cases[0].Series[0].Points[0]
			if p.Median != test.median || p.Low != test.low || p.High != test.high {
				t.Errorf("median %v, low %v, high %v", p.Median, p.Low, p.High)
			}
		})
	}
}

// What is no number is taken out and said to be.
func TestFinishNotFinite(t *testing.T) {
	p := point(math.NaN(), 1, math.Inf(1))
	p.Extra = map[string]float64{netCost: math.NaN(), "p50_ns": 3}
	r := &Report{Cases: []Case{{Name: "pps/out", Series: []Series{{"ebnet", []Point{p}}}}}}
	Finish(r)
	Finish(r)
	want := []LeftOut{{"ebnet", "pps/out", "3 figures were no finite number"}}
	if diff := cmp.Diff(want, r.LeftOut); diff != "" {
		t.Error(diff)
	}
	got := r.Cases[0].Series[0].Points[0]
	if diff := cmp.Diff([]float64{1}, got.Samples); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]float64{"p50_ns": 3}, got.Extra); diff != "" {
		t.Error(diff)
	}
}

func TestFinishRatios(t *testing.T) {
	net := func(samples, cost float64) Point {
		return Point{Samples: []float64{samples}, Extra: map[string]float64{netCost: cost}}
	}
	r := &Report{Cases: []Case{
		{Name: "pps/out", Series: []Series{
			{"iptables", []Point{net(200, 3000)}},
			{"ebnet", []Point{net(300, 1000)}},
			{"redirect", []Point{net(400, -5)}}, // noise: nothing is so many times less than nothing
			{"nftables", []Point{point()}},      // failed in each round
			{"veth", nil},
			{"docker", []Point{point(100)}}, // is not compared with
		}},
		{Name: "scale/ports", Axis: "ports", Series: []Series{
			{"ebnet", []Point{{At: 100, Samples: []float64{30}}, {At: 1, Samples: []float64{20}}}},
			{"iptables", []Point{{At: 1, Samples: []float64{10}}}},
			{"route", []Point{{At: 100, Samples: []float64{0}}}},
		}},
	}}
	Finish(r)
	got := map[string]map[string]float64{}
	for _, c := range r.Cases {
		for _, s := range c.Series {
			for _, p := range s.Points {
				got[c.Name+" "+s.Peer+" "+count(p.At)] = p.Ratio
			}
		}
	}
	want := map[string]map[string]float64{
		"pps/out iptables 0":     {"iptables": 1, "redirect": 0.5, "net:iptables": 1},
		"pps/out ebnet 0":        {"iptables": 1.5, "redirect": 0.75, "net:iptables": 1.0 / 3},
		"pps/out redirect 0":     {"iptables": 2, "redirect": 1, "net:iptables": -5.0 / 3000},
		"pps/out nftables 0":     nil,
		"pps/out docker 0":       {"iptables": 0.5, "redirect": 0.25},
		"scale/ports ebnet 1":    {"iptables": 2},
		"scale/ports ebnet 100":  nil,
		"scale/ports iptables 1": {"iptables": 1},
		"scale/ports route 100":  nil,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if at := r.Cases[1].Series[0].Points[0].At; at != 1 {
		t.Errorf("the curve starts at %v", at)
	}
}

// Whatever was measured, every form can be written and the statistics stand in order.
func TestAnyReport(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		figure := rapid.Float64()
		points := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Point {
			return Point{
				At:      rapid.Float64Range(0, 1e6).Draw(t, "at"),
				Samples: rapid.SliceOfN(figure, 0, 4).Draw(t, "samples"),
				Extra:   rapid.MapOfN(rapid.SampledFrom([]string{netCost, "p50_ns"}), figure, 0, 2).Draw(t, "extra"),
			}
		}), 0, 3)
		series := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Series {
			return Series{rapid.SampledFrom([]string{"ebnet", "iptables", "redirect", "x"}).Draw(t, "peer"), points.Draw(t, "points")}
		}), 0, 3)
		cases := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Case {
			return Case{
				Name:   rapid.String().Draw(t, "name"),
				Unit:   rapid.SampledFrom([]string{"packets/s", "ns", "bit/s", "s", "bytes", "", "/", "x"}).Draw(t, "unit"),
				Axis:   rapid.SampledFrom([]string{"", "ports"}).Draw(t, "axis"),
				Series: series.Draw(t, "series"),
			}
		}), 0, 3)
		r := &Report{Cases: cases.Draw(t, "cases")}
		Finish(r)
		for _, c := range r.Cases {
			for _, s := range c.Series {
				for _, p := range s.Points {
					if p.Low > p.Median || p.Median > p.High {
						t.Errorf("%v: low %v, median %v, high %v", p.Samples, p.Low, p.Median, p.High)
					}
				}
			}
		}
		for name, write := range map[string]func(*strings.Builder) error{
			"text": func(w *strings.Builder) error { return WriteText(w, r) },
			"JSON": func(w *strings.Builder) error { return WriteJSON(w, r) },
			"CSV":  func(w *strings.Builder) error { return WriteCSV(w, r) },
			"HTML": func(w *strings.Builder) error { return WriteHTML(w, r) },
		} {
			var out strings.Builder
			if err := write(&out); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}
