package report

import (
	"bytes"
	"cmp"
	"compress/gzip"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"
	"sync"
)

// The page is one file: these are put into it. The library is a part of Apache ECharts, bundled
// and pinned by chart/build.sh, which says how to update it; its terms are in chart/LICENSES.
var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string
	//go:embed page.js
	pageJS string
	//go:embed chart/echarts.min.js.gz
	libraryGzip []byte
)

var pageTemplate = template.Must(template.New("page").Parse(pageHTML))

// library returns the chart library's source.
var library = sync.OnceValues(func() (string, error) {
	z, err := gzip.NewReader(bytes.NewReader(libraryGzip))
	if err != nil {
		return "", err
	}
	js, err := io.ReadAll(z)
	return string(js), err
})

// WriteHTML writes the report as one page that needs nothing else to be viewed: charts that
// are drawn by the script in it, and tables that need none.
func WriteHTML(w io.Writer, r *Report) error {
	p, err := r.page()
	if err != nil {
		return fmt.Errorf("report: chart library: %w", err)
	}
	var out bytes.Buffer
	if err := pageTemplate.Execute(&out, p); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if _, err := w.Write(out.Bytes()); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

// page is what the template shows. What stems from a report is in plain strings, which the
// template escapes; the typed ones are ours.
type page struct {
	Date     string
	Command  string
	Facts    [][2]string
	Complete bool
	Score    string
	Targets  []pageTarget
	Groups   []*pageGroup
	LeftOut  []LeftOut
	Charts   []chart
	Style    template.CSS
	Library  template.JS
	Script   template.JS
}

type pageTarget struct {
	Class, Mark, Result     string
	Name, Want, Got, Reason string
}

type pageGroup struct {
	ID, Title string
	Cases     []pageCase
}

type pageCase struct {
	ID, Name, Title  string
	Unit, Note, Axis string
	Columns          []string
	Rows             []pageRow
	HasChart         bool
	Chart            int    // its number
	Alternative      string // what the chart shows, in words
}

type pageRow struct {
	Class, Peer string
	Swatch      template.HTML
	Cells       []pageCell
}

type pageCell struct{ Value, Unit, Small string }

// chart is what page.js draws.
type chart struct {
	Axis       string        `json:"axis,omitempty"` // of a curve
	Sizes      []float64     `json:"sizes,omitempty"`
	SizeLabels []string      `json:"sizeLabels,omitempty"`
	Scales     []chartScale  `json:"scales"`
	Series     []chartSeries `json:"series"`
}

type chartScale struct {
	Factor float64 `json:"factor"`
	Name   string  `json:"name"`
}

type chartSeries struct {
	Peer   string       `json:"peer"`
	Ours   bool         `json:"ours"`
	Color  string       `json:"color"`
	Symbol string       `json:"symbol"`
	Dash   string       `json:"dash"`
	Points []chartPoint `json:"points"`
}

type chartPoint struct {
	At     float64 `json:"at"`
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
	Label  string  `json:"label"`
}

// groupTitles names the groups of cases that are known.
var groupTitles = map[string]string{
	"pps":     "Small packets",
	"bulk":    "Bulk TCP",
	"rr":      "Request and response",
	"crr":     "Connect, request, response",
	"flows":   "New flows",
	"cpu":     "CPU time",
	"host":    "Unrelated host traffic",
	"scale":   "Scaling",
	"control": "Control",
	"memory":  "Memory",
}

func (r *Report) page() (*page, error) {
	js, err := library()
	if err != nil {
		return nil, err
	}
	pens := newPens(r)
	p := &page{
		Date:     r.Started.UTC().Format("2006-01-02"),
		Command:  oneLine(r.Command),
		Complete: r.Complete,
		LeftOut:  r.LeftOut,
		Charts:   []chart{},
		Style:    pens.style(),
		Library:  template.JS(js),
		Script:   template.JS(pageJS),
	}
	for _, f := range r.facts() {
		if f[0] != "command" { // it is the page's heading
			p.Facts = append(p.Facts, f)
		}
	}
	met, known := score(r.Targets)
	p.Score = fmt.Sprintf("%d of %d met", met, known)
	if unknown := len(r.Targets) - known; unknown > 0 {
		p.Score += fmt.Sprintf(", %d not measured", unknown)
	}
	for _, t := range r.Targets {
		p.Targets = append(p.Targets, t.onPage())
	}
	groups := map[string]*pageGroup{}
	for i := range r.Cases {
		c := &r.Cases[i]
		g := groups[c.Group]
		if g == nil {
			g = &pageGroup{ID: fmt.Sprintf("group-%d", len(groups)+1), Title: cmp.Or(groupTitles[c.Group], c.Group, "Cases")}
			groups[c.Group] = g
			p.Groups = append(p.Groups, g)
		}
		pc := c.onPage(pens)
		pc.ID = fmt.Sprintf("case-%d", i+1)
		if n := len(g.Cases); n > 0 && r.Cases[i-1].Note == c.Note && r.Cases[i-1].Group == c.Group {
			pc.Note = "" // it is read once
		}
		if ch := c.chart(pens); len(ch.Series) > 0 {
			pc.HasChart, pc.Chart = true, len(p.Charts)
			p.Charts = append(p.Charts, ch)
		}
		g.Cases = append(g.Cases, pc)
	}
	return p, nil
}

func (t Target) onPage() pageTarget {
	out := pageTarget{Mark: t.mark(), Name: t.Name, Want: t.Want, Got: t.got(), Reason: t.Reason}
	switch {
	case !t.Known:
		out.Class, out.Result = "unknown", "unknown"
	case t.Met:
		out.Class, out.Result = "met", "met"
	default:
		out.Class, out.Result = "missed", "not met"
	}
	// People read signs more easily than what is typed for them.
	out.Want = strings.NewReplacer("<=", "≤", ">=", "≥").Replace(out.Want)
	return out
}

// onPage returns the words and the table of a case.
func (c *Case) onPage(pens *pens) pageCase {
	out := pageCase{
		Name: c.Name, Title: cmp.Or(c.Title, c.Name), Unit: c.unitLine(), Note: c.Note,
		Alternative: c.alternative(),
	}
	if c.Axis != "" {
		out.Axis = capital(c.Axis)
	}
	cols := c.columns()
	for _, col := range cols {
		out.Columns = append(out.Columns, strings.ReplaceAll(col.title, "k ", "k\u00a0"))
	}
	for i, s := range c.inOrder() {
		row := pageRow{Peer: s.Peer, Swatch: pens.swatch(s.Peer, c.Axis != "")}
		if isOurs(s.Peer) {
			row.Class = "ours"
		}
		for _, col := range cols {
			row.Cells = append(row.Cells, pageCell{col.cells[i].value, col.cells[i].unit, col.cells[i].small})
		}
		out.Rows = append(out.Rows, row)
	}
	return out
}

// alternative says in words what a chart shows, for those who do not see it.
func (c *Case) alternative() string {
	kind := "Bar chart"
	if c.Axis != "" {
		kind = "Line chart"
	}
	words := fmt.Sprintf("%s: %s; %s.", kind, cmp.Or(c.Title, c.Name), c.unitLine())
	if c.Axis != "" {
		return words + " The table has the figures."
	}
	for _, s := range c.inOrder() {
		if len(s.Points) > 0 && s.Points[0].Measured() {
			words += fmt.Sprintf(" %s %s.", s.Peer, number(s.Points[0].Median/c.scaleOf(s.Points[0]).factor))
		}
	}
	return words
}

// chart returns what is drawn of a case: what was measured.
func (c *Case) chart(pens *pens) chart {
	out := chart{Axis: c.Axis}
	if common, ok := c.common(); ok {
		out.Scales = []chartScale{{common.factor, common.name}}
	} else {
		for _, s := range scales(c.Unit) {
			out.Scales = append(out.Scales, chartScale{s.factor, s.name})
		}
	}
	for _, s := range c.inOrder() {
		if cs := c.drawn(s, pens); len(cs.Points) > 0 {
			out.Series = append(out.Series, cs)
			for _, p := range cs.Points {
				out.Sizes = append(out.Sizes, p.At)
			}
		}
	}
	if c.Axis == "" {
		out.Sizes = nil
		return out
	}
	slices.Sort(out.Sizes)
	out.Sizes = slices.Compact(out.Sizes)
	for _, size := range out.Sizes {
		out.SizeLabels = append(out.SizeLabels, short(size))
	}
	return out
}

// drawn returns what is drawn of a series.
func (c *Case) drawn(s Series, pens *pens) chartSeries {
	l := pens.looks[s.Peer]
	out := chartSeries{
		Peer: s.Peer, Ours: isOurs(s.Peer), Color: pens.color(s.Peer), Symbol: "path://" + l.symbol, Dash: l.dash,
	}
	_, same := c.common()
	for _, p := range s.Points {
		if !p.Measured() || slices.ContainsFunc([]float64{p.At, p.Median, p.Low, p.High}, notFinite) {
			continue
		}
		scale := c.scaleOf(p)
		label := number(p.Median / scale.factor)
		if !same {
			label += " " + scale.name
		}
		out.Points = append(out.Points, chartPoint{p.At, p.Median, p.Low, p.High, label})
		if c.Axis == "" {
			break // of such a case there is one
		}
	}
	return out
}

// pens are the colours of a report's peers, as variables of the style sheet.
type pens struct {
	looks map[string]look
	names []string
}

func newPens(r *Report) *pens {
	p := &pens{looks: r.looks()}
	for name := range p.looks {
		p.names = append(p.names, name)
	}
	slices.SortFunc(p.names, func(a, b string) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b)) })
	return p
}

// color returns the colour of a peer. Names of peers never become part of the style sheet.
func (p *pens) color(peer string) string {
	return fmt.Sprintf("var(--peer-%d)", slices.Index(p.names, peer))
}

func (p *pens) style() template.CSS {
	var light, dark strings.Builder
	for i, name := range p.names {
		_, _ = fmt.Fprintf(&light, "\t--peer-%d: %s;\n", i, p.looks[name].light)
		_, _ = fmt.Fprintf(&dark, "\t\t--peer-%d: %s;\n", i, p.looks[name].dark)
	}
	return template.CSS(strings.NewReplacer("{{LIGHT}}\n", light.String(), "{{DARK}}\n", dark.String()).Replace(pageCSS))
}

// swatch draws what stands for a peer in a chart: its bar, or its line and symbol.
func (p *pens) swatch(peer string, line bool) template.HTML {
	color := p.color(peer)
	if !line {
		return template.HTML(fmt.Sprintf(`<rect x="1" y="1" width="20" height="10" fill="%s"/>`, color))
	}
	l := p.looks[peer]
	dash := map[string]string{lineDashed: "4 3", lineDotted: "2 2"}[l.dash]
	return template.HTML(fmt.Sprintf(`<path d="M0 6h22" stroke="%s" stroke-width="2" stroke-dasharray="%s"/>`+
		`<path d="%s" fill="%s" transform="translate(6.5 1.5) scale(.75)"/>`, color, cmp.Or(dash, "none"), l.symbol, color))
}

// isOurs tells the peers that are ebnet itself.
func isOurs(peer string) bool { return peer == "ebnet" || strings.HasPrefix(peer, "ebnet-") }

func capital(s string) string {
	if s == "" {
		return ""
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
