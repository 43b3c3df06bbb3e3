package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// schemaVersion is the "v" of every JSON object that ebnet prints.
const schemaVersion = 1

// errPrint marks errors of writing to stdout.
var errPrint = errors.New("standard output")

// view is what a command has to show, in both formats.
type view struct {
	json any               // a struct: printed as an object with "v" in front
	text func(w io.Writer) // nil: nothing
}

// list is the JSON of several things of a kind. Items is never null.
type list[T any] struct {
	Items []T `json:"items"`
}

func listOf[T any](items []T) list[T] {
	if items == nil {
		items = []T{}
	}
	return list[T]{items}
}

// lines shows text lines, one for each.
func lines(ls ...string) func(io.Writer) {
	return func(w io.Writer) {
		for _, l := range ls {
			_, _ = fmt.Fprintln(w, l)
		}
	}
}

// stepsView shows the steps of a dry run.
func stepsView(steps []string) view {
	if steps == nil {
		steps = []string{}
	}
	return view{
		json: struct {
			DryRun bool     `json:"dry_run"`
			Steps  []string `json:"steps"`
		}{true, steps},
		text: lines(steps...),
	}
}

// print writes the view to stdout in one go, so that a command has either
// printed all or nothing.
func (p *program) print(v view) error {
	var out bytes.Buffer
	if p.json {
		if err := writeObject(&out, v.json); err != nil {
			return fmt.Errorf("%w: %w", errPrint, err)
		}
	} else if v.text != nil {
		v.text(&out)
	}
	if _, err := p.stdout.Write(out.Bytes()); err != nil {
		return fmt.Errorf("%w: %w", errPrint, err)
	}
	return nil
}

// writeObject writes v, which must marshal to a JSON object, on one line with
// "v" as its first field.
func writeObject(w io.Writer, v any) error {
	var body bytes.Buffer
	e := json.NewEncoder(&body)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	fields, ok := bytes.CutPrefix(body.Bytes(), []byte("{"))
	if !ok {
		return fmt.Errorf("%T is no JSON object", v)
	}
	sep := ","
	if bytes.HasPrefix(fields, []byte("}")) {
		sep = ""
	}
	_, err := fmt.Fprintf(w, `{"v":%d%s%s`, schemaVersion, sep, fields)
	return err
}

// table writes rows in columns under a head; without rows only the head.
func table(w io.Writer, head string, rows [][]string) {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(tw, strings.ReplaceAll(head, " ", "\t"))
	for _, r := range rows {
		for i, cell := range r {
			if cell == "" {
				r[i] = "-"
			}
		}
		_, _ = fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	_ = tw.Flush() // w is a buffer
}

// fields writes one name and value a line.
func fields(w io.Writer, pairs ...[2]string) {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, p := range pairs {
		value := p[1]
		if value == "" {
			value = "-"
		}
		_, _ = fmt.Fprintf(tw, "%s\t%s\n", p[0], value)
	}
	_ = tw.Flush()
}

// join prints each element, with sep between.
func join[T any](items []T, sep string) string {
	words := make([]string, len(items))
	for i, it := range items {
		words[i] = fmt.Sprint(it)
	}
	return strings.Join(words, sep)
}

// onOff names a switch.
func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// yesNo names a property.
func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
