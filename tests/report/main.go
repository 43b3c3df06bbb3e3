// Command report reads the output of go test -json and prints what a person
// wants to know: each package's result as it comes, all that failed tests
// said, and at the end what was skipped and why, and what failed. It exits with 1 if anything
// failed or nothing was tested.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

// event is what go test -json writes, see go doc test2json.
type event struct {
	Action     string
	Package    string
	ImportPath string // of build output
	Test       string
	Elapsed    float64 // seconds
	Output     string
}

// report collects the events of one run.
type report struct {
	out     io.Writer
	said    map[string]*strings.Builder // output by package and test
	skipped []string
	failed  []string
	passed  int
	results int // packages that ended
}

func main() {
	r := &report{out: os.Stdout, said: make(map[string]*strings.Builder)}
	lines := bufio.NewReader(os.Stdin)
	for {
		line, err := lines.ReadBytes('\n')
		r.line(line)
		if err != nil {
			break // io.EOF, or go test is gone: summary decides
		}
	}
	if !r.summary() {
		os.Exit(1)
	}
}

func (r *report) line(line []byte) {
	if len(line) == 0 {
		return
	}
	var e event
	if err := json.Unmarshal(line, &e); err != nil {
		fmt.Fprintf(r.out, "%s", line) // not of test2json: let it be seen
		return
	}
	key := e.Package + " " + e.Test
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "build-fail":
		r.failed = append(r.failed, e.ImportPath+" (build)")
	case "output":
		if r.said[key] == nil {
			r.said[key] = new(strings.Builder)
		}
		r.said[key].WriteString(e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			r.packageEnd(e, key)
		} else {
			r.testEnd(e, key)
		}
		delete(r.said, key)
	}
}

func (r *report) testEnd(e event, key string) {
	switch e.Action {
	case "pass":
		r.passed++
	case "fail":
		r.failed = append(r.failed, key)
		fmt.Fprintf(r.out, "\n%s\n%s\n", key, r.output(key))
	case "skip":
		r.skipped = append(r.skipped, key+"\n"+r.output(key))
	}
}

func (r *report) packageEnd(e event, key string) {
	switch said := r.output(key); {
	case e.Action == "fail":
		r.results++
		r.failed = append(r.failed, e.Package)
		fmt.Fprintf(r.out, "FAIL  %-50s %6.1f s\n%s", e.Package, e.Elapsed, said)
	case e.Action == "pass":
		r.results++
		fmt.Fprintf(r.out, "ok    %-50s %6.1f s\n", e.Package, e.Elapsed)
	}
}

// output is what a test said, without the lines that only tell of its progress.
func (r *report) output(key string) string {
	if r.said[key] == nil {
		return ""
	}
	var kept strings.Builder
	for line := range strings.Lines(r.said[key].String()) {
		progress := strings.HasPrefix(line, "=== ") || strings.HasPrefix(line, "FAIL") ||
			strings.HasPrefix(strings.TrimSpace(line), "--- ")
		if !progress {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

// summary prints the end of the report and reports whether all is well.
func (r *report) summary() bool {
	fmt.Fprintf(r.out, "\n%d passed, %d failed, %d skipped\n", r.passed, len(r.failed), len(r.skipped))
	for _, s := range r.skipped {
		fmt.Fprintf(r.out, "SKIP  %s", s)
	}
	for _, f := range r.failed {
		fmt.Fprintf(r.out, "FAIL  %s\n", f)
	}
	if r.results == 0 {
		fmt.Fprintln(r.out, "no package was tested")
	}
	return len(r.failed) == 0 && r.results > 0
}
