package tests

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// Every test that docs/nat.md names is there.
func TestDocumentedTests(t *testing.T) {
	text, err := os.ReadFile("../docs/nat.md")
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, dir := range []string{"datapath", "e2e"} {
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`(?m)^func TestPrivileged(\w+)\(`).FindAllSubmatch(source, -1) {
				have[dir+":"+string(m[1])] = true
			}
		}
	}
	named := regexp.MustCompile(`\b(datapath|e2e):(\w+)`).FindAllString(string(text), -1)
	if len(named) < 50 {
		t.Errorf("only %d tests are named", len(named))
	}
	for _, name := range named {
		if !have[name] {
			t.Errorf("docs/nat.md names %s, which is no test", name)
		}
	}
}
