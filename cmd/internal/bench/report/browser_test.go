package report

import (
	"context"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	devpage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// To look at what the tests look at: go test -run Browser -pictures DIR.
var pictures = flag.String("pictures", "", "a directory for pictures of the page")

// openBrowser starts a headless browser, which ends with the test, or skips it.
func openBrowser(t *testing.T) context.Context {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("chromium is not installed: apt-get install chromium")
	}
	home := t.TempDir() // it leaves things in both
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.Env("HOME="+home, "TMPDIR="+home),
		chromedp.NoSandbox, // root has none
		chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true),
		chromedp.Flag("disable-background-networking", true),
	)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	ctx, stop := chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(stop) // waits for its processes, and removes their directory
	ctx, closeBrowser := chromedp.NewContext(ctx)
	t.Cleanup(closeBrowser)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("starting chromium: %v", err)
	}
	return ctx
}

// tab is one page in a browser, and what it complained of or asked for.
type tab struct {
	ctx context.Context

	mu    sync.Mutex
	wrong []string
}

// openTab shows a report in a window of a width.
func openTab(t *testing.T, browser context.Context, r *Report, width int64) *tab {
	t.Helper()
	file := filepath.Join(t.TempDir(), "report.html")
	out, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := WriteHTML(out, r); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := chromedp.NewContext(browser)
	t.Cleanup(cancel)
	tb := &tab{ctx: ctx}
	address := (&url.URL{Scheme: "file", Path: file}).String()
	if err := chromedp.Listen(ctx, func(event any) { tb.listen(event, address) }); err != nil {
		t.Fatal(err)
	}
	call(t, tb, network.Enable, network.EnableParams{})
	call(t, tb, log.Enable, cdp.Empty{})
	call(t, tb, runtime.Enable, cdp.Empty{})
	tb.do(t, chromedp.EmulateViewport(width, 900), chromedp.Navigate(address))
	return tb
}

// listen notes whatever a page must not do.
func (tb *tab) listen(event any, address string) {
	note := func(format string, args ...any) {
		tb.mu.Lock()
		defer tb.mu.Unlock()
		tb.wrong = append(tb.wrong, fmt.Sprintf(format, args...))
	}
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		if e.Request.URL != address && !strings.HasPrefix(e.Request.URL, "data:") {
			note("asks for %s", e.Request.URL)
		}
	case *runtime.EventConsoleAPICalled:
		note("says %s %v", e.Type, e.Args)
	case *runtime.EventExceptionThrown:
		note("throws %s", e.ExceptionDetails.Text)
	case *log.EventEntryAdded:
		note("logs %s: %s", e.Entry.Level, e.Entry.Text)
	case *devpage.EventJavascriptDialogOpening:
		note("opens a dialog: %s", e.Message)
	}
}

func (tb *tab) do(t *testing.T, actions ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	if err := chromedp.Do(tb.ctx, actions...); err != nil {
		t.Fatal(err)
	}
}

// run runs an action that returns something.
func run[T any](t *testing.T, tb *tab, action chromedp.Action[T]) T {
	t.Helper()
	out, err := chromedp.Run(tb.ctx, action)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// call runs a command of the browser's protocol.
func call[P, R any](t *testing.T, tb *tab, command cdp.Command[P, R], params P) {
	t.Helper()
	if _, err := chromedp.Call(tb.ctx, command, params); err != nil {
		t.Fatal(err)
	}
}

// eval evaluates JavaScript.
func eval[T any](t *testing.T, tb *tab, script string) T {
	t.Helper()
	return run(t, tb, chromedp.Evaluate[T](script))
}

// check fails the test if the page did what it must not.
func (tb *tab) check(t *testing.T) {
	t.Helper()
	tb.mu.Lock()
	defer tb.mu.Unlock()
	for _, w := range tb.wrong {
		t.Errorf("the page %s", w)
	}
}

// picture keeps a picture of the whole page, if pictures are wanted.
func (tb *tab) picture(t *testing.T, name string) {
	t.Helper()
	if *pictures == "" {
		return
	}
	png := run(t, tb, chromedp.FullScreenshot(100))
	if err := os.WriteFile(filepath.Join(*pictures, name), png, 0o644); err != nil {
		t.Fatal(err)
	}
}

// media shows the page as on another medium, or with other wishes of its reader.
func (tb *tab) media(t *testing.T, medium, scheme string) {
	t.Helper()
	call(t, tb, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Media:    medium,
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
}

// drawn is what can be seen of one chart.
type drawn struct {
	Name    string
	Bars    int // filled in the colour of a peer: bars, or the symbols of points
	Lines   int // of curves
	Spreads int // lines from the lowest to the highest, without their ends
	Width   float64
	Height  float64
	Label   string
}

const chartsScript = `[...document.querySelectorAll(".chart")].map((box) => {
	const paths = [...box.querySelectorAll("svg path")];
	const seen = (p) => { const b = p.getBoundingClientRect(); return b.width > 0 || b.height > 0; };
	const peer = (p, name) => (p.getAttribute(name) || "").startsWith("var(--peer-");
	const width = (p) => Number(p.getAttribute("stroke-width") || 1);
	const svg = box.querySelector("svg").getBoundingClientRect();
	return {
		Name: box.closest("article").querySelector("code").textContent,
		Bars: paths.filter((p) => peer(p, "fill") && seen(p)).length,
		Lines: paths.filter((p) => peer(p, "stroke") && width(p) > 1.5 && p.getAttribute("fill") === "none" && seen(p)).length,
		Spreads: paths.filter((p) => p.getAttribute("stroke") === "var(--ink)" && width(p) === 1.5 ||
			peer(p, "stroke") && width(p) === 1.25).length / 3,
		Width: svg.width, Height: svg.height,
		Label: box.getAttribute("role") + " " + box.getAttribute("aria-label"),
	};
})`

// Each chart has a mark for each figure, and the lines of their spread.
func checkCharts(t *testing.T, tb *tab, r *Report) {
	t.Helper()
	charts := eval[[]drawn](t, tb, chartsScript)
	if len(charts) != len(r.Cases) {
		t.Fatalf("%d charts of %d cases", len(charts), len(r.Cases))
	}
	for i, c := range r.Cases {
		points, lines := 0, 0
		for _, s := range c.Series {
			points += len(s.Points)
			if c.Axis != "" && len(s.Points) > 1 {
				lines++
			}
		}
		got := charts[i]
		if got.Name != c.Name || got.Bars != points || got.Lines != lines || got.Spreads != points {
			t.Errorf("%s: chart %+v, want %d marks with as many spreads and %d lines", c.Name, got, points, lines)
		}
		if got.Width < 200 || got.Height < 50 || !strings.HasPrefix(got.Label, "img ") || !strings.Contains(got.Label, c.Title) {
			t.Errorf("%s: chart %+v", c.Name, got)
		}
	}
}

// contrastScript returns what is hard to tell from the background: texts below 4.5 to 1, marks
// below 3 to 1 (WCAG 2.2, 1.4.3 and 1.4.11).
const contrastScript = `(() => {
	const channels = (c) => (c.match(/[\d.]+/g) || []).map(Number);
	const luminance = (c) => {
		const [r, g, b] = channels(c).map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
		return 0.2126 * r + 0.7152 * g + 0.0722 * b;
	};
	const paper = luminance(getComputedStyle(document.body).backgroundColor);
	const contrast = (c) => { const l = luminance(c); return (Math.max(l, paper) + 0.05) / (Math.min(l, paper) + 0.05); };
	const bad = [];
	const check = (e, color, least) => {
		if (contrast(color) < least) bad.push(e.tagName + " " + (e.textContent || "").trim().slice(0, 30) + " " + color + " " + contrast(color).toFixed(2));
	};
	for (const e of document.querySelectorAll("h1, h2, h3, p, code, dt, dd, th, td, small, .reason, a")) check(e, getComputedStyle(e).color, 4.5);
	for (const e of document.querySelectorAll(".chart text")) check(e, getComputedStyle(e).fill, 4.5);
	for (const e of document.querySelectorAll(".chart path[fill^='var(--peer']")) check(e, getComputedStyle(e).fill, 3);
	return { Bad: [...new Set(bad)], Dark: paper < 0.2 };
})()`

func checkContrast(t *testing.T, tb *tab, dark bool) {
	t.Helper()
	got := eval[struct {
		Bad  []string
		Dark bool
	}](t, tb, contrastScript)
	for _, b := range got.Bad {
		t.Errorf("too little contrast: %s", b)
	}
	if got.Dark != dark {
		t.Errorf("dark: %v, want %v", got.Dark, dark)
	}
}

// checkWidth sees that the page is as wide as its window: what is wider scrolls in its own box.
func checkWidth(t *testing.T, tb *tab, width int) {
	t.Helper()
	got := eval[int](t, tb, `document.scrollingElement.scrollWidth`)
	if got > width {
		t.Errorf("the page is %d wide in a window of %d", got, width)
	}
}

func TestBrowser(t *testing.T) {
	browser := openBrowser(t)
	r := sample(t)

	t.Run("wide", func(t *testing.T) {
		tb := openTab(t, browser, r, 1200)
		tb.media(t, "", "light")
		checkCharts(t, tb, r)
		checkContrast(t, tb, false)
		checkWidth(t, tb, 1200)
		tb.picture(t, "wide.png")
		tb.media(t, "", "dark")
		checkCharts(t, tb, r)
		checkContrast(t, tb, true)
		tb.picture(t, "dark.png")
		tb.check(t)
	})
	t.Run("phone", func(t *testing.T) {
		tb := openTab(t, browser, r, 360)
		checkCharts(t, tb, r)
		checkWidth(t, tb, 360)
		tb.picture(t, "phone.png")
		tb.check(t)
	})
	t.Run("turned", func(t *testing.T) {
		tb := openTab(t, browser, r, 800)
		tb.do(t, chromedp.EmulateViewport(360, 800))
		run(t, tb, chromedp.Poll[bool](`document.querySelector(".chart svg").clientWidth < 360`))
		checkCharts(t, tb, r)
		checkWidth(t, tb, 360)
		tb.check(t)
	})
	t.Run("paper", func(t *testing.T) { testPaper(t, browser, r) })
	t.Run("hostile", func(t *testing.T) { testHostile(t, browser) })
	t.Run("odd", func(t *testing.T) { testOdd(t, browser) })
}

// Paper is white, whatever the reader's screen, and holds all charts.
func testPaper(t *testing.T, browser context.Context, r *Report) {
	tb := openTab(t, browser, r, 1200)
	tb.media(t, "print", "dark")
	checkCharts(t, tb, r)
	checkContrast(t, tb, false)
	tb.media(t, "", "dark")
	pdf := run(t, tb, chromedp.PrintToPDF(func(p *devpage.PrintToPDFParams) { p.PreferCSSPageSize = new(true) }))
	if pages := len(regexp.MustCompile(`/Type\s*/Page\b`).FindAll(pdf, -1)); pages < 2 || pages > 10 {
		t.Errorf("%d pages", pages)
	}
	if *pictures != "" {
		if err := os.WriteFile(filepath.Join(*pictures, "paper.pdf"), pdf, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	checkCharts(t, tb, r) // afterwards the screen is as before
	tb.check(t)
}

// hostile tries to leave every place that strings of a report are put into.
const hostile = `"'</script></style><img src=http://192.0.2.1/x onerror=alert(1)><!--<script>{{.}}` + "\u2028`${alert(2)}\\"

func hostileReport() *Report {
	figures := []Point{{Samples: []float64{1, 2, 3}, Extra: map[string]float64{netCost: 3}}}
	sizes := []Point{{At: 1, Samples: []float64{1}}, {At: 10, Samples: []float64{2}}}
	r := &Report{
		Command: hostile,
		Machine: Machine{CPU: hostile, Kernel: hostile, Virtual: hostile, Ebnet: hostile},
		LeftOut: []LeftOut{{hostile, hostile, hostile}},
		Targets: []Target{{Name: hostile, Want: hostile, Known: true, Reason: hostile}},
		Cases: []Case{
			{hostile, hostile, hostile, hostile, hostile, "", hostile, []Series{{hostile, figures}}},
			{hostile, hostile, hostile, hostile, hostile, hostile, hostile, []Series{{hostile, sizes}}},
		},
	}
	Finish(r)
	return r
}

func testHostile(t *testing.T, browser context.Context) {
	tb := openTab(t, browser, hostileReport(), 1200)
	checkCharts(t, tb, hostileReport())
	foreign := eval[int](t, tb, `document.querySelectorAll("img, iframe, object, script:not([id]):nth-of-type(n+4)").length`)
	name := eval[string](t, tb, `document.querySelector(".left-out tbody th").textContent`)
	if foreign > 0 || name != hostile {
		t.Errorf("%d foreign elements, a peer's name is %q", foreign, name)
	}
	tb.check(t)
}

// Reports that have little to show are shown as well.
func testOdd(t *testing.T, browser context.Context) {
	for name, r := range map[string]*Report{
		"empty":     {},
		"no figure": {Cases: []Case{{Name: "a", Unit: "packets/s", Series: []Series{{Peer: "ebnet"}, {Peer: "veth", Points: []Point{{}}}}}}},
		"zero": {Cases: []Case{
			{Name: "a", Title: "a", Unit: "s", Series: []Series{{"ebnet", []Point{{Samples: []float64{0}}}}}},
			{Name: "b", Title: "b", Unit: "s", Axis: "ports", Series: []Series{{"ebnet", []Point{{At: 0, Samples: []float64{0}}, {At: 5, Samples: []float64{1}}}}}},
			{Name: "c", Title: "c", Unit: "bytes", Axis: "ports", Series: []Series{{"ebnet", []Point{{At: 5, Samples: []float64{-1, 2}}}}}},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			Finish(r)
			tb := openTab(t, browser, r, 360)
			checkWidth(t, tb, 360)
			tb.check(t)
		})
	}
}
