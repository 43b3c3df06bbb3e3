package report

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"
)

// The library in the binary is what chart/build.sh made last, of the version that is pinned;
// that it makes it again is checked by build.sh --check, which needs npm.
func TestLibrary(t *testing.T) {
	js, err := library()
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("chart/echarts.min.js.sha256")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(js))
	if got := hex.EncodeToString(sum[:]); got != strings.TrimSpace(string(want)) {
		t.Errorf("SHA-256 %s, want %s", got, want)
	}
	var pinned struct {
		Dependencies map[string]string `json:"dependencies"`
	}
	text, err := os.ReadFile("chart/package.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &pinned); err != nil {
		t.Fatal(err)
	}
	if version := pinned.Dependencies["echarts"]; !strings.HasPrefix(js, "/*! Apache ECharts "+version+" ") {
		t.Errorf("starts with %q, want version %s", js[:60], version)
	}
	if strings.Contains(strings.ToLower(js), "</script") || strings.Contains(js, "<!--") {
		t.Error("would end the script that it is put into")
	}
}

// Nothing in the page leads out of it, but for names of XML and the library's own comments.
func TestHTMLSelfContained(t *testing.T) {
	var out strings.Builder
	if err := WriteHTML(&out, sample(t)); err != nil {
		t.Fatal(err)
	}
	js, err := library()
	if err != nil {
		t.Fatal(err)
	}
	page := strings.Replace(out.String(), js, "", 1)
	if len(page) > 200_000 {
		t.Error("the library is not in the page as it is")
	}
	if m := regexp.MustCompile(`(?i)https?://[^"' ]*|//[a-z]+\.[a-z]+[^"' ]*|@import|url\([^)]*\)`).FindAllString(page, -1); len(m) > 0 {
		t.Errorf("leads to %q", m)
	}
	for _, want := range []string{"SAMPLE DATA", "6.18.0-sample", "2026-11-24 21:14 UTC", "ebnet bench --rounds 5", "not met", "unknown", "portmap takes 41 s"} {
		if !strings.Contains(page, want) {
			t.Errorf("does not say %q", want)
		}
	}
}

// Strings of a report stay strings in every place of the page.
func TestHTMLHostile(t *testing.T) {
	var out strings.Builder
	if err := WriteHTML(&out, hostileReport()); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "<script"); n != 3 {
		t.Errorf("%d scripts, want 3", n)
	}
	if strings.Contains(out.String(), "<img") || strings.Contains(out.String(), "ZgotmplZ") {
		t.Error("a string is not escaped, or was taken out")
	}
}
