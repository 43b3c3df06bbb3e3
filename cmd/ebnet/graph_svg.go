package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

// Measures of the picture in pixels. Text is in a font of one width, so that its length is
// known without one.
const (
	margin     = 28
	lineHeight = 18
	padding    = 12
	gap        = 16 // between boxes
	glyph      = 7.9
	spineGap   = 44 // between boxes and the spine, which is the host
	portsShown = 12 // of an endpoint; the text has all of them
)

const svgStyle = `
.ground { fill: #ffffff }
text { font: 13px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #1f2933; white-space: pre }
.name { font-weight: bold }
.dim { fill: #5b6875 }
.bad { fill: #b42318 }
.net { fill: #eef4fb; stroke: #2f6db5 }
.end { fill: #ffffff; stroke: #8a99a8 }
.gone { stroke: #b42318; stroke-dasharray: 4 3 }
.up { fill: #e9f6ee; stroke: #2b8a4b }
.side { fill: #fdf3e1; stroke: #b7791f }
.line { stroke: #5b6875; stroke-width: 2; fill: none }
.spine { stroke: #1f2933; stroke-width: 4; stroke-linecap: round }
@media (prefers-color-scheme: dark) {
.ground { fill: #14191f }
text { fill: #e4e9ee }
.dim { fill: #9fb0c0 }
.bad { fill: #ff8a7a }
.net { fill: #18273a; stroke: #6aa5e8 }
.end { fill: #1d242c; stroke: #74869a }
.gone { stroke: #ff8a7a }
.up { fill: #16291d; stroke: #5cc27f }
.side { fill: #2f2412; stroke: #e0a94a }
.line { stroke: #9fb0c0 }
.spine { stroke: #e4e9ee }
}
`

// svgLine is a line of text in a box.
type svgLine struct{ class, text string }

// svgBox is a box with lines of text and boxes below them.
type svgBox struct {
	class  string
	lines  []svgLine
	inside []svgBox
	joined bool // to the spine
}

func (b svgBox) width() float64 {
	w := 0.0
	for _, l := range b.lines {
		w = max(w, glyph*float64(utf8.RuneCountInString(l.text)))
	}
	for _, in := range b.inside {
		w = max(w, in.width())
	}
	return w + 2*padding
}

func (b svgBox) height() float64 {
	h := float64(len(b.lines)*lineHeight + 2*padding)
	for _, in := range b.inside {
		h += in.height() + padding
	}
	return h
}

// graphSVG draws devices on the left, networks on the right, and between them the host as
// a spine; what is joined to it is joined by way of it.
func graphSVG(w io.Writer, g network.GraphInfo) {
	var left, right []svgBox
	for _, u := range g.Uplinks {
		left = append(left, deviceBox("up", "uplink ", u))
	}
	for _, u := range g.Sides {
		left = append(left, deviceBox("side", "bridge of others ", u))
	}
	if len(left) == 0 {
		text := "no uplink"
		if !g.Up {
			text = "not up"
		}
		left = append(left, svgBox{class: "gone end", lines: []svgLine{{"bad", text}}})
	}
	for _, n := range g.Networks {
		right = append(right, networkBox(n))
	}
	if len(right) == 0 {
		right = append(right, svgBox{class: "end", lines: []svgLine{{"dim", "no networks"}}})
	}
	spine := margin + widest(left) + spineGap
	start := spine + spineGap
	height := 2*margin + max(tallness(left), tallness(right))
	width := start + widest(right) + margin

	var d svgDrawing
	d.printf(`<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" viewBox="0 0 %.0f %.0f" role="img">`, width, height, width, height)
	d.printf("<title>ebnet: %s, %s</title><style>%s</style>", count(len(g.Networks), "network"), count(endpointCount(g), "endpoint"), svgStyle)
	d.printf(`<rect class="ground" width="%.0f" height="%.0f"/>`, width, height)
	d.printf(`<text class="name" x="%.1f" y="%d" text-anchor="middle">host</text>`, spine, margin-8)
	d.printf(`<line class="spine" x1="%.1f" y1="%d" x2="%.1f" y2="%.1f"/>`, spine, margin, spine, height-margin)
	y := float64(margin)
	for _, b := range left {
		d.column(b, margin, y, widest(left))
		d.join(b, margin+widest(left), spine, y)
		y += b.height() + gap
	}
	y = margin
	for _, b := range right {
		d.column(b, start, y, widest(right))
		d.join(b, spine, start, y)
		y += b.height() + gap
	}
	d.printf("</svg>")
	_, _ = w.Write(d.Bytes())
}

func endpointCount(g network.GraphInfo) (n int) {
	for _, of := range g.Networks {
		n += len(of.Endpoints)
	}
	return n
}

func deviceBox(class, kind string, u network.UplinkInfo) svgBox {
	b := svgBox{class: class, lines: []svgLine{{"name", kind + u.Name}}, joined: u.Attached}
	for _, a := range u.Addrs {
		b.lines = append(b.lines, svgLine{"dim", a.String()})
	}
	if !u.Attached {
		b.lines = append(b.lines, svgLine{"bad", "programs not attached"})
	}
	return b
}

func networkBox(n network.GraphNetwork) svgBox {
	b := svgBox{class: "net", lines: []svgLine{{"name", n.Network.Name}}, joined: !n.Network.Internal}
	for _, s := range n.Network.Subnets {
		b.lines = append(b.lines, svgLine{"", s.String()})
	}
	b.lines = append(b.lines, svgLine{"dim", strings.Join(graphTraits(n.Network), ", ")})
	for _, e := range n.Endpoints {
		b.inside = append(b.inside, endpointBox(e))
	}
	if len(n.Endpoints) == 0 {
		b.lines = append(b.lines, svgLine{"dim", "no endpoints"})
	}
	return b
}

func endpointBox(e network.EndpointInfo) svgBox {
	b := svgBox{class: "end", lines: []svgLine{{"name", e.Name}}}
	for _, ip := range []string{e.IPv4, e.IPv6} {
		if ip != "" {
			b.lines = append(b.lines, svgLine{"", ip})
		}
	}
	if e.State != network.StateUp {
		b.class += " gone"
		b.lines = append(b.lines, svgLine{"bad", e.State})
	}
	for i, p := range e.Ports {
		if i == portsShown {
			b.lines = append(b.lines, svgLine{"dim", fmt.Sprintf("and %d more ports", len(e.Ports)-i)})
			break
		}
		b.lines = append(b.lines, svgLine{"dim", hostAddress(p) + " → " + portRange(p.Port, p.PortEnd) + "/" + p.Protocol + portSources(p)})
	}
	return b
}

func widest(boxes []svgBox) (w float64) {
	for _, b := range boxes {
		w = max(w, b.width())
	}
	return w
}

// tallness is the height of boxes one below the other.
func tallness(boxes []svgBox) (h float64) {
	for _, b := range boxes {
		h += b.height() + gap
	}
	return max(0, h-gap)
}

// svgDrawing is the picture in the making.
type svgDrawing struct{ bytes.Buffer }

func (d *svgDrawing) printf(format string, args ...any) {
	fmt.Fprintf(d, format, args...)
	d.WriteByte('\n')
}

// column draws a box that is as wide as the others of its column.
func (d *svgDrawing) column(b svgBox, x, y, width float64) {
	d.printf(`<rect class="%s" x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="6"/>`, b.class, x, y, width, b.height())
	for i, l := range b.lines {
		d.printf(`<text class="%s" x="%.1f" y="%.1f">%s</text>`, l.class, x+padding, y+padding+float64((i+1)*lineHeight)-5, xmlText(l.text))
	}
	y += padding + float64(len(b.lines)*lineHeight)
	for _, in := range b.inside {
		y += padding
		d.column(in, x+padding, y, width-2*padding)
		y += in.height()
	}
}

// join draws a line at the height of the first line of a box that is at y.
func (d *svgDrawing) join(b svgBox, from, to, y float64) {
	if b.joined {
		at := y + padding + lineHeight/2
		d.printf(`<line class="line" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>`, from, at, to, at)
	}
}

// xmlText escapes; what XML cannot hold becomes a replacement character.
func xmlText(s string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(s)) // writing to a buffer does not fail
	return b.String()
}
