package report

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// ErrNoCase says that a report has nothing to draw of the cases that were asked for.
var ErrNoCase = errors.New("nothing to draw")

// Measures of the drawing in pixels.
const (
	svgWidth   = 760
	svgLabels  = 100 // left of the bars, for the peers
	svgFigures = 76  // right of them
	svgRow     = 28
	svgBar     = 18
	svgHead    = 54 // above the bars of a case, for its title and unit
	svgGap     = 24 // between cases
	svgFoot    = 34
)

// svgStyle follows the reader between light and dark, as the page around the picture cannot.
const svgStyle = `
text { font: 14px system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; fill: #1c1f24; }
text.title { font-size: 16px; font-weight: 600; }
text.muted { font-size: 13px; fill: #565d68; }
text.ours { font-weight: 600; }
.halo { stroke: #ffffff; stroke-width: 3.5; }
.spread { stroke: #1c1f24; stroke-width: 1.5; }
.axis { stroke: #8a919c; }
%s@media (prefers-color-scheme: dark) {
text { fill: #e6e8eb; }
text.muted { fill: #a3abb6; }
.halo { stroke: #14171b; }
.spread { stroke: #e6e8eb; }
%s}
`

// WriteSVG draws cases as bars in a picture that stands alone, for a README: it has no script
// and can be read on light and on dark pages. Where packets have a net cost it is drawn, else
// the value with its spread. Returns ErrNoCase if a case is not there, is a curve, or has no
// figures.
func WriteSVG(w io.Writer, r *Report, caseNames ...string) error {
	var cases []svgCase
	height := svgFoot
	for _, name := range caseNames {
		c, err := r.svgCase(name)
		if err != nil {
			return err
		}
		cases = append(cases, c)
		height += c.height() + svgGap
	}
	if len(cases) == 0 {
		return fmt.Errorf("report: %w: no case was named", ErrNoCase)
	}
	height -= svgGap

	var out bytes.Buffer
	_, _ = fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" role="img" aria-labelledby="title desc">`+"\n",
		svgWidth, height)
	_, _ = fmt.Fprintf(&out, "<title id=\"title\">ebnet bench</title>\n<desc id=\"desc\">%s</desc>\n", escape(svgWords(cases)))
	pens := newPens(r)
	light, dark := pens.fills()
	_, _ = fmt.Fprintf(&out, "<style>"+svgStyle+"</style>\n", light, dark)
	y := 0
	for _, c := range cases {
		c.draw(&out, pens, y)
		y += c.height() + svgGap
	}
	text(&out, "muted", "start", 0, float64(height-6), r.svgFoot())
	_, _ = fmt.Fprintln(&out, "</svg>")
	if _, err := w.Write(out.Bytes()); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

// svgCase is what is drawn of a case.
type svgCase struct {
	title, unit string
	rows        []svgFigure
}

// svgFigure is one bar.
type svgFigure struct {
	peer      string
	value     float64
	low, high float64 // equal: the spread is not known
	label     string
}

func (c svgCase) height() int { return svgHead + svgRow*len(c.rows) }

// svgCase finds a case and what is drawn of it.
func (r *Report) svgCase(name string) (svgCase, error) {
	i := slices.IndexFunc(r.Cases, func(c Case) bool { return c.Name == name })
	if i < 0 {
		return svgCase{}, fmt.Errorf("report: %w: there is no case %s", ErrNoCase, name)
	}
	c := &r.Cases[i]
	if c.Axis != "" {
		return svgCase{}, fmt.Errorf("report: %w: %s is a curve", ErrNoCase, name)
	}
	out := svgCase{title: cmp.Or(c.Title, c.Name), unit: "net cost per packet: what it costs besides being sent; lower is better"}
	if out.rows = c.netFigures(); len(out.rows) == 0 {
		out.unit = c.unitLine()
		out.rows = c.figures()
	}
	if len(out.rows) == 0 {
		return svgCase{}, fmt.Errorf("report: %w: %s has no figures", ErrNoCase, name)
	}
	return out, nil
}

// netFigures returns the net costs of a case's packets, if they have any.
func (c *Case) netFigures() (rows []svgFigure) {
	for _, s := range c.inOrder() {
		if len(s.Points) == 0 || !s.Points[0].Measured() {
			continue
		}
		if v, ok := s.Points[0].Extra[netCost]; ok {
			rows = append(rows, svgFigure{peer: s.Peer, value: v, low: v, high: v, label: Human(v, "ns")})
		}
	}
	return rows
}

// figures returns the values of a case.
func (c *Case) figures() (rows []svgFigure) {
	_, same := c.common()
	for _, s := range c.inOrder() {
		if len(s.Points) == 0 || !s.Points[0].Measured() {
			continue
		}
		p := s.Points[0]
		scale := c.scaleOf(p)
		label := number(p.Median / scale.factor)
		if !same {
			label += " " + scale.name
		}
		rows = append(rows, svgFigure{s.Peer, p.Median, p.Low, p.High, label})
	}
	return rows
}

// draw draws the case from y downwards.
func (c svgCase) draw(w io.Writer, pens *pens, y int) {
	text(w, "title", "start", 0, float64(y+18), c.title)
	text(w, "muted", "start", 0, float64(y+38), c.unit)
	y += svgHead
	most := 0.0
	for _, f := range c.rows {
		most = max(most, f.high)
	}
	x := func(v float64) float64 {
		if v <= 0 { // a difference may be, by noise
			return svgLabels
		}
		return svgLabels + v/most*(svgWidth-svgLabels-svgFigures)
	}
	for i, f := range c.rows {
		middle := float64(y + i*svgRow + svgRow/2)
		class := ""
		if isOurs(f.peer) {
			class = "ours"
		}
		text(w, class, "end", svgLabels-8, middle+5, f.peer)
		_, _ = fmt.Fprintf(w, `<rect class="%s" x="%d" y="%g" width="%.1f" height="%d"/>`+"\n",
			pens.class(f.peer), svgLabels, middle-svgBar/2, x(f.value)-svgLabels, svgBar)
		if f.low < f.high {
			for _, class := range []string{"halo", "spread"} {
				low, high, top := x(f.low), x(f.high), middle-4
				_, _ = fmt.Fprintf(w, `<path class="%s" d="M%.1f %gH%.1fM%.1f %gv8M%.1f %gv8"/>`+"\n",
					class, low, middle, high, low, top, high, top)
			}
		}
		text(w, class, "start", x(max(f.value, f.high))+8, middle+5, f.label)
	}
	_, _ = fmt.Fprintf(w, `<path class="axis" d="M%d.5 %dv%d"/>`+"\n", svgLabels-1, y, len(c.rows)*svgRow)
}

// text writes a line of text with its baseline at y.
func text(w io.Writer, class, anchor string, x, y float64, s string) {
	if class != "" {
		class = ` class="` + class + `"`
	}
	_, _ = fmt.Fprintf(w, `<text%s x="%.1f" y="%g" text-anchor="%s">%s</text>`+"\n", class, x, y, anchor, escape(s))
}

// class names a peer's colour in the picture.
func (p *pens) class(peer string) string { return fmt.Sprintf("peer-%d", slices.Index(p.names, peer)) }

// fills are the colours of all peers, on white and on black.
func (p *pens) fills() (light, dark string) {
	for _, name := range p.names {
		light += fmt.Sprintf(".%s { fill: %s; }\n", p.class(name), p.looks[name].light)
		dark += fmt.Sprintf(".%s { fill: %s; }\n", p.class(name), p.looks[name].dark)
	}
	return light, dark
}

// svgFoot says where and when the figures were measured.
func (r *Report) svgFoot() string {
	return oneLine(fmt.Sprintf("%s, Linux %s, %s, %d rounds", r.Machine.CPU, r.Machine.Kernel, r.Started.UTC().Format("2006-01-02"), r.Rounds))
}

// svgWords says what the picture shows to those who do not see it.
func svgWords(cases []svgCase) string {
	var words []string
	for _, c := range cases {
		var figures []string
		for _, f := range c.rows {
			figures = append(figures, f.peer+" "+f.label)
		}
		words = append(words, fmt.Sprintf("%s (%s): %s.", c.title, c.unit, strings.Join(figures, ", ")))
	}
	return strings.Join(words, " ")
}

// escape writes a string as character data of XML, in which not every character is allowed.
func escape(s string) string {
	var out strings.Builder
	_ = xml.EscapeText(&out, []byte(oneLine(s))) // a Builder takes everything
	return out.String()
}
