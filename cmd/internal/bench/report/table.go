package report

import (
	"fmt"
	"slices"
	"strings"
)

// column is one column of a case's table.
type column struct {
	head  string // in the terminal, one word
	title string // for readers of a page
	cells []cell // a row each, in the order of Case.inOrder
}

// cell is one figure.
type cell struct {
	value string // empty: there is none
	unit  string // of the value, empty where the column's title has it or where there is none
	small string // what stands beside the value
}

// latencies are what is known of how long single requests took, by their keys in Point.Extra.
var latencies = []struct {
	head string
	keys []string
}{
	{"P50", []string{"p50_ns"}},
	{"P90", []string{"p90_ns"}},
	{"P99", []string{"p99_ns"}},
	{"P99.9", []string{"p999_ns", "p99.9_ns"}},
}

// columns returns the table of a case, after the names of its peers.
func (c *Case) columns() []column {
	if c.Axis != "" {
		return c.curveColumns()
	}
	series := c.inOrder()
	cols := []column{c.medians(series), c.spreads(series)}
	ratio := func(head, title, key string) {
		cols = append(cols, pointColumn(series, head, title, func(p Point) (cell, bool) {
			v, ok := p.Ratio[key]
			return cell{value: times(v)}, ok
		}))
	}
	extra := func(head, title string, keys ...string) {
		cols = append(cols, pointColumn(series, head, title, func(p Point) (cell, bool) {
			for _, key := range keys {
				if v, ok := p.Extra[key]; ok {
					s := fit(v, scales("ns"))
					return cell{value: number(v / s.factor), unit: s.name}, true
				}
			}
			return cell{}, false
		}))
	}
	ratio("/IPTABLES", "÷ iptables", "iptables")
	ratio("/REDIRECT", "÷ redirect", "redirect")
	extra("NET", "Net cost", netCost)
	ratio("NET/IPTABLES", "Net ÷ iptables", netPrefix+"iptables")
	ratio("NET/REDIRECT", "Net ÷ redirect", netPrefix+"redirect")
	for _, l := range latencies {
		extra(l.head, strings.ToLower(l.head), l.keys...)
	}
	return slices.DeleteFunc(cols, column.empty)
}

func (c column) empty() bool {
	return !slices.ContainsFunc(c.cells, func(c cell) bool { return c.value != "" })
}

// pointColumn asks for the cell of each series that was measured.
func pointColumn(series []Series, head, title string, of func(Point) (cell, bool)) column {
	col := column{head: head, title: title, cells: make([]cell, len(series))}
	for i, s := range series {
		if len(s.Points) == 0 || !s.Points[0].Measured() {
			continue
		}
		if c, ok := of(s.Points[0]); ok {
			col.cells[i] = c
		}
	}
	return col
}

func (c *Case) medians(series []Series) column {
	common, same := c.common()
	title := "Median"
	if same {
		title += ", " + common.name
	}
	return pointColumn(series, "MEDIAN", title, func(p Point) (cell, bool) {
		s := c.scaleOf(p)
		v := cell{value: number(p.Median / s.factor)}
		if !same {
			v.unit = s.name
		}
		return v, true
	})
}

func (c *Case) spreads(series []Series) column {
	return pointColumn(series, "SPREAD", "Spread", func(p Point) (cell, bool) {
		s := c.scaleOf(p)
		return cell{value: number(p.Low/s.factor) + "–" + number(p.High/s.factor)}, true
	})
}

// scaleOf returns the scale of a point: that of its case, or its own where they have none
// in common.
func (c *Case) scaleOf(p Point) scale {
	if common, ok := c.common(); ok {
		return common
	}
	return fit(p.Median, scales(c.Unit))
}

// curveColumns returns a column for each size.
func (c *Case) curveColumns() []column {
	series := c.inOrder()
	_, same := c.common()
	var cols []column
	for _, size := range c.sizes() {
		col := column{head: count(size), title: count(size), cells: make([]cell, len(series))}
		for i := range series {
			p := series[i].at(size)
			if p == nil || !p.Measured() {
				continue
			}
			s := c.scaleOf(*p)
			col.cells[i] = cell{value: number(p.Median / s.factor), small: plusMinus(*p)}
			if !same {
				col.cells[i].unit = s.name
			}
		}
		cols = append(cols, col)
	}
	return cols
}

// plusMinus is half the spread of a point in percent of its median.
func plusMinus(p Point) string {
	if p.Median == 0 || len(p.Samples) < 2 {
		return ""
	}
	return fmt.Sprintf("±%.0f%%", 50*(p.High-p.Low)/p.Median)
}

// unitLine says what the figures of a case are and which are good.
func (c *Case) unitLine() string {
	unit := c.Unit
	if common, ok := c.common(); ok {
		unit = common.name
	}
	words := []string{unit}
	if c.Axis != "" {
		words = append(words, "by number of "+c.Axis)
	}
	if c.Better != "" {
		words = append(words, c.Better+" is better")
	}
	return strings.Join(words, ", ")
}
