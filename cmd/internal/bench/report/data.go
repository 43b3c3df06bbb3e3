package report

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
)

// ErrVersion says that a report was written by an ebnet that knows more than this one.
var ErrVersion = errors.New("unknown version of a report")

// WriteJSON writes the report as an indented JSON object with "v" as its first field. Equal
// reports give equal bytes.
func WriteJSON(w io.Writer, r *Report) error {
	out := r.withLists()
	out.V = Version
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(out); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

// withLists returns a copy of the report in which no list is null.
func (r *Report) withLists() *Report {
	out := *r
	out.LeftOut = list(out.LeftOut)
	out.Targets = list(out.Targets)
	out.Cases = list(slices.Clone(out.Cases))
	for i := range out.Cases {
		c := &out.Cases[i]
		c.Series = list(slices.Clone(c.Series))
		for j := range c.Series {
			s := &c.Series[j]
			s.Points = list(slices.Clone(s.Points))
			for k := range s.Points {
				s.Points[k].Samples = list(s.Points[k].Samples)
			}
		}
	}
	return &out
}

func list[T any](items []T) []T {
	if items == nil {
		return []T{}
	}
	return items
}

// ReadJSON reads what WriteJSON wrote. Returns ErrVersion if it is of another version; fields
// that this version does not know are passed over.
func ReadJSON(r io.Reader) (*Report, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	var version struct {
		V int `json:"v"`
	}
	if err := json.Unmarshal(data, &version); err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	if version.V != Version {
		return nil, fmt.Errorf("%w: %d, not %d", ErrVersion, version.V, Version)
	}
	var out Report
	if err := json.Unmarshal(data, &out); err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	return &out, nil
}

// WriteCSV writes one line for each sample under a head: case, peer, at, round, value, unit.
// Rounds are counted from 1; at is empty where the case has no axis.
func WriteCSV(w io.Writer, r *Report) error {
	out := csv.NewWriter(w)
	// The writer keeps its first error, which Flush and Error tell.
	_ = out.Write([]string{"case", "peer", "at", "round", "value", "unit"})
	for _, c := range r.Cases {
		for _, s := range c.Series {
			for _, p := range s.Points {
				at := ""
				if c.Axis != "" {
					at = plain(p.At)
				}
				for i, v := range p.Samples {
					_ = out.Write([]string{c.Name, s.Peer, at, strconv.Itoa(i + 1), plain(v), c.Unit})
				}
			}
		}
	}
	out.Flush()
	if err := out.Error(); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

// plain writes a number as programs read it, without loss.
func plain(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
