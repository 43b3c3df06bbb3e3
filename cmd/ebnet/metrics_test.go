package main

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

func testMetrics() []network.Metric {
	odd := []network.Label{{Name: "device", Value: "a\"b\\c\nd"}, {Name: "endpoint", Value: ""}}
	return []network.Metric{
		{Name: "ebnet_up", Help: "Whether it is \\ loaded\nor not.", Type: network.Gauge, Samples: []network.Sample{{Value: 1}}},
		{Name: "ebnet_drops_total", Help: "Packets that were dropped.", Type: network.Counter,
			Samples: []network.Sample{{Labels: odd, Value: 12345678901}, {Labels: odd[:1], Value: 0.25}}},
	}
}

// Prometheus' own parser reads back what was written.
func TestExposition(t *testing.T) {
	all := testMetrics()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(exposition(all)))
	if err != nil {
		t.Fatal(err)
	}
	if len(families) != len(all) {
		t.Errorf("%d metrics, want %d", len(families), len(all))
	}
	for _, want := range all {
		got := families[want.Name]
		if got.GetHelp() != want.Help || !strings.EqualFold(got.GetType().String(), want.Type) || len(got.GetMetric()) != len(want.Samples) {
			t.Errorf("%s is %v", want.Name, got)
			continue
		}
		for i, s := range want.Samples {
			m := got.GetMetric()[i]
			if v := m.GetGauge().GetValue() + m.GetCounter().GetValue(); v != s.Value {
				t.Errorf("%s is %v, want %v", want.Name, v, s.Value)
			}
			if len(m.GetLabel()) != len(s.Labels) {
				t.Errorf("%s has labels %v", want.Name, m.GetLabel())
			}
			for j, l := range s.Labels {
				if m.GetLabel()[j].GetName() != l.Name || m.GetLabel()[j].GetValue() != l.Value {
					t.Errorf("%s: label %v, want %+v", want.Name, m.GetLabel()[j], l)
				}
			}
		}
	}
}

func TestReplaceFile(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "a.prom"), filepath.Join(dir, "other")
	if err := os.WriteFile(other, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(other, path); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := replaceFile(path, []byte("new")); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(other); err != nil || string(b) != "mine" {
		t.Errorf("a symbolic link was followed: %q, %v", b, err)
	}
	st, err := os.Lstat(path)
	if err != nil || st.Mode() != 0o644 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if err := replaceFile(filepath.Join(dir, "no", "a"), nil); err == nil || !regexp.MustCompile(`^file .*/no/a: no such file`).MatchString(err.Error()) {
		t.Errorf("in no directory: %v", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := replaceFile(filepath.Join(dir, "d"), nil); err == nil {
		t.Error("a directory was replaced")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestMetricsHandler(t *testing.T) {
	var errs bytes.Buffer
	var fault error
	p := &program{stderr: &errs}
	srv := httptest.NewServer(p.metricsHandler(func() ([]network.Metric, error) { return testMetrics(), fault }))
	defer srv.Close()
	get := func(method, path string) (int, string) {
		t.Helper()
		req, err := http.NewRequest(method, srv.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(body)
	}
	if code, body := get("GET", "/metrics"); code != 200 || body != string(exposition(testMetrics())) {
		t.Errorf("%d %s", code, body)
	}
	if code, _ := get("POST", "/metrics"); code != 405 {
		t.Errorf("POST: %d", code)
	}
	if code, _ := get("GET", "/other"); code != 404 {
		t.Errorf("another path: %d", code)
	}
	fault = errors.New("no\nway")
	if code, body := get("GET", "/metrics"); code != 500 || body != "no way\n" || errs.String() != "ebnet: warning: no way\n" {
		t.Errorf("%d %q %q", code, body, errs.String())
	}
}
