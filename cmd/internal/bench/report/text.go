package report

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"
)

// width is what text is written for. Tables of the usual cases fit.
const width = 100

// WriteText writes the report for a terminal.
func WriteText(w io.Writer, r *Report) error {
	var out bytes.Buffer
	writeFields(&out, r.facts())
	note := "" // cases of one kind have the same, which is read once
	for i := range r.Cases {
		c := &r.Cases[i]
		c.writeText(&out, c.Note != note)
		note = c.Note
	}
	if len(r.Cases) > 0 {
		legend(&out, r)
	}
	targetsText(&out, r.Targets)
	leftOutText(&out, r.LeftOut)
	if _, err := w.Write(out.Bytes()); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

// facts are where, when and how a report was made.
func (r *Report) facts() [][2]string {
	machine := oneLine(cmp.Or(r.Machine.CPU, "unknown CPU"))
	if r.Machine.CPUs > 0 {
		machine += fmt.Sprintf(", %d CPUs", r.Machine.CPUs)
	}
	if r.Machine.MemoryMB > 0 {
		machine += ", " + Human(float64(r.Machine.MemoryMB)*(1<<20), "bytes")
	}
	if r.Machine.Virtual != "" {
		machine += ", virtual (" + oneLine(r.Machine.Virtual) + ")"
	}
	rounds := fmt.Sprintf("%d, %g s for each figure", r.Rounds, r.Seconds)
	if !r.Complete {
		rounds += "; interrupted, not all were run"
	}
	return [][2]string{
		{"machine", machine},
		{"kernel", oneLine(r.Machine.Kernel)},
		{"ebnet", oneLine(r.Machine.Ebnet)},
		{"date", fmt.Sprintf("%s, took %s", r.Started.UTC().Format("2006-01-02 15:04 UTC"), r.Took.Round(time.Second))},
		{"rounds", rounds},
		{"pinned", fmt.Sprintf("to CPU %d, cases of one CPU", r.Machine.PinnedTo)},
		{"command", oneLine(r.Command)},
	}
}

func writeFields(w io.Writer, pairs [][2]string) {
	tw := newTable(w)
	for _, p := range pairs {
		_, _ = fmt.Fprintf(tw, "%s\t%s\n", p[0], cmp.Or(p[1], "-"))
	}
	_ = tw.Flush()
}

func newTable(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 8, 2, ' ', 0) }

// writeTable writes rows in columns under a head, as the other commands do.
func writeTable(w io.Writer, rows [][]string) {
	tw := newTable(w)
	for _, r := range rows {
		for i, c := range r {
			r[i] = cmp.Or(c, "-")
		}
		_, _ = fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	_ = tw.Flush() // w is a buffer
}

func (c *Case) writeText(w io.Writer, withNote bool) {
	_, _ = fmt.Fprintf(w, "\n%s\n", oneLine(c.Title))
	_, _ = fmt.Fprintf(w, "%s: %s\n", oneLine(c.Name), oneLine(c.unitLine()))
	if withNote && c.Note != "" {
		_, _ = fmt.Fprintln(w, wrap(c.Note, ""))
	}
	table := tableText(c, true)
	if c.Axis != "" && textWidth(table) > width {
		table = tableText(c, false) // the spread is in the other forms
	}
	_, _ = w.Write(table)
}

func tableText(c *Case, spread bool) []byte {
	series := c.inOrder()
	cols := c.columns()
	rows := make([][]string, 1+len(series))
	rows[0] = []string{"PEER"}
	for i, s := range series {
		rows[1+i] = []string{oneLine(s.Peer)}
	}
	common, same := c.common()
	for _, col := range cols {
		rows[0] = append(rows[0], col.head)
		for i, f := range col.cells {
			text := f.value
			if f.unit != "" {
				text += " " + f.unit
			} else if col.head == "MEDIAN" && same && text != "" {
				text = strings.TrimSpace(text + " " + common.name)
			}
			if spread && f.small != "" {
				text += " " + f.small
			}
			rows[1+i] = append(rows[1+i], text)
		}
	}
	var out bytes.Buffer
	writeTable(&out, rows)
	return out.Bytes()
}

func textWidth(text []byte) int {
	most := 0
	for line := range bytes.Lines(text) {
		most = max(most, utf8.RuneCount(line)-1)
	}
	return most
}

// legend explains the heads that do not explain themselves, if there are such tables.
func legend(w io.Writer, r *Report) {
	have := map[string]bool{}
	for i := range r.Cases {
		for _, col := range r.Cases[i].columns() {
			have[col.head] = true
		}
	}
	var rows [][2]string
	add := func(head, text string) {
		if have[head] {
			rows = append(rows, [2]string{head, text})
		}
	}
	add("SPREAD", "lowest and highest round, in the unit of the median")
	add("/IPTABLES", "the median divided by that of iptables")
	add("/REDIRECT", "the same by eBPF redirect without translation, which is the limit")
	add("NET", "what a packet costs without what it costs to send it")
	add("P50", "half of the requests took no longer; P99.9: all but one of a thousand")
	if len(rows) > 0 {
		_, _ = fmt.Fprintln(w)
		writeFields(w, rows)
	}
}

// mark shows at a glance what came of a target.
func (t Target) mark() string {
	switch {
	case !t.Known:
		return "–"
	case t.Met:
		return "✔"
	}
	return "✘"
}

// got is what was measured for a target.
func (t Target) got() string {
	if !t.Known {
		return ""
	}
	return number(t.Got)
}

// score counts the targets that were met, and those that are known.
func score(targets []Target) (met, known int) {
	for _, t := range targets {
		if t.Known {
			known++
			if t.Met {
				met++
			}
		}
	}
	return met, known
}

func targetsText(w io.Writer, targets []Target) {
	if len(targets) == 0 {
		return
	}
	met, known := score(targets)
	_, _ = fmt.Fprintf(w, "\nTargets: %d of %d met", met, known)
	if unknown := len(targets) - known; unknown > 0 {
		_, _ = fmt.Fprintf(w, ", %d not measured", unknown)
	}
	_, _ = fmt.Fprintln(w)
	rows := [][]string{{" ", "TARGET", "WANT", "GOT"}}
	for _, t := range targets {
		rows = append(rows, []string{t.mark(), oneLine(t.Name), oneLine(t.Want), t.got()})
	}
	var table bytes.Buffer
	writeTable(&table, rows)
	lines := strings.SplitAfter(table.String(), "\n")
	for i, line := range lines {
		_, _ = io.WriteString(w, line)
		if i > 0 && i <= len(targets) && targets[i-1].Reason != "" {
			_, _ = fmt.Fprintln(w, wrap(targets[i-1].Reason, "     "))
		}
	}
}

func leftOutText(w io.Writer, left []LeftOut) {
	if len(left) == 0 {
		return
	}
	_, _ = fmt.Fprintln(w, "\nLeft out")
	for _, l := range left {
		_, _ = fmt.Fprintln(w, wrap(fmt.Sprintf("%s, %s: %s", l.Peer, cmp.Or(l.Case, "all cases"), l.Why), "  "))
	}
}

// oneLine keeps what others wrote, such as the errors of tools, from breaking lines or steering
// the terminal.
func oneLine(s string) string {
	clean := strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
	return strings.Join(strings.FieldsFunc(clean, func(r rune) bool { return r == ' ' }), " ")
}

// wrap breaks a text between words, each line behind the indent.
func wrap(text, indent string) string {
	var lines []string
	line := indent
	for word := range strings.FieldsSeq(oneLine(text)) {
		if line != indent && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines = append(lines, line)
			line = indent
		}
		if line != indent {
			line += " "
		}
		line += word
	}
	return strings.Join(slices.Concat(lines, []string{line}), "\n")
}
