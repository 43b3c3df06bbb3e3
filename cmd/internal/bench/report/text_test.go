package report

import (
	"strings"
	"testing"
)

func TestText(t *testing.T) {
	var out strings.Builder
	if err := WriteText(&out, sample(t)); err != nil {
		t.Fatal(err)
	}
	golden(t, "sample.txt", out.String())
	for line := range strings.Lines(out.String()) {
		if n := len([]rune(line)) - 1; n > width {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}
