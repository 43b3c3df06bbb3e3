package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

const (
	// monitorPatience is how long events may wait to be printed together.
	monitorPatience = 50 * time.Millisecond

	// countEvery is how often it is told what was not shown.
	countEvery = time.Second
)

func (p *program) monitorCommand() *cli.Command {
	return &cli.Command{
		Name:  "monitor",
		Usage: "show dropped packets and conversations that begin and end as it happens",
		Description: describe("One line an event, in JSON one object, until interrupted. Of each kind of event (each reason for drops,\n"+
			"openings, closings) each CPU tells --rate a second at most, so that a flood costs little more for being\n"+
			"watched; how many were not shown is counted and told. Conversations are closed by FIN or RST when such a\n"+
			"packet comes; those that time out, and those of what was removed, are told of when their memory is\n"+
			"reclaimed, up to a minute later. Of those that never became established only opening and RST are seen.\n"+
			"Up to 8 monitors may run; each is told everything.\n\n"+
			"Reasons: "+wrapped(network.DropReasons(), 100),
			"ebnet monitor",
			"ebnet monitor --drops --endpoint web",
			"ebnet monitor --reason no-flow --reason direct-access --count 10 -o json"),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "drops", Usage: "only dropped packets", DisableDefaultText: true},
			&cli.BoolFlag{Name: "flows", Usage: "only conversations", DisableDefaultText: true},
			&cli.StringFlag{Name: "endpoint", Usage: "only what `NAME` sends and gets"},
			&cli.StringSliceFlag{Name: "reason", Usage: "only packets dropped for `REASON`, repeatable"},
			&cli.IntFlag{Name: "rate", Usage: "`N` events of a kind a second and CPU at most", Value: network.DefaultEventRate},
			&cli.IntFlag{Name: "count", Usage: "end after `N` events", DefaultText: "never"},
			&cli.DurationFlag{Name: "duration", Usage: "end after `TIME`, as in 30s", DefaultText: "never"},
		},
		Action: p.monitor,
	}
}

// wrapped joins words by commas, in lines of a width.
func wrapped(words []string, width int) string {
	lines := []string{words[0]}
	for _, w := range words[1:] {
		last := &lines[len(lines)-1]
		if len(*last)+2+len(w) > width {
			lines = append(lines, w)
		} else {
			*last += ", " + w
		}
	}
	return strings.Join(lines, ",\n")
}

func (p *program) monitor(c *cli.Context) error {
	if _, err := arguments(c, 0, 0); err != nil {
		return err
	}
	filter := network.EventFilter{Drops: c.Bool("drops"), Flows: c.Bool("flows"), Reasons: c.StringSlice("reason"),
		Endpoint: c.String("endpoint"), Rate: c.Int("rate")}
	filter.Drops = filter.Drops || len(filter.Reasons) > 0
	if !filter.Drops && !filter.Flows {
		filter.Drops, filter.Flows = true, true
	}
	switch {
	case filter.Rate < 1 || filter.Rate > 1_000_000:
		return usage("--rate", fmt.Sprintf("%d is not between 1 and 1000000", filter.Rate), "")
	case c.IsSet("count") && c.Int("count") < 1:
		return usage("--count", fmt.Sprintf("%d is not at least 1", c.Int("count")), "")
	case c.IsSet("duration") && c.Duration("duration") <= 0:
		return usage("--duration", fmt.Sprintf("%s is not more than 0", c.Duration("duration")), "")
	}
	if filter.Endpoint != "" {
		if err := network.CheckName("endpoint", filter.Endpoint); err != nil {
			return err
		}
	}
	m, err := network.Watch(p.options(c, func(string) {}), filter)
	if err != nil {
		return err
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, syscall.SIGINT) // see watchFlows
	notify(interrupted, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(interrupted)
	err = newEventView(p, m, c.Int("count"), c.Duration("duration")).show(interrupted)
	if cerr := m.Close(); err == nil {
		err = cerr
	}
	return err
}

// events is what eventView needs of *network.Monitor.
type events interface {
	Next(deadline time.Time) (network.EventInfo, bool, error)
	NotShown() (network.NotShown, error)
}

// eventView prints events.
type eventView struct {
	p       *program
	m       events
	out     *bufio.Writer
	left    int       // to be shown; 0 at the start: any number
	end     time.Time // zero: never
	counted time.Time // when it was told what was not shown
}

// newEventView ends after a number of events and some time, or never where those are 0.
func newEventView(p *program, m events, count int, duration time.Duration) *eventView {
	v := &eventView{p: p, m: m, out: bufio.NewWriterSize(p.stdout, 64<<10), left: count}
	if duration > 0 {
		v.end = time.Now().Add(duration)
	}
	return v
}

// show prints events until there were enough, or until it is interrupted. What was not shown until then is
// told last.
func (v *eventView) show(interrupted <-chan os.Signal) error {
	v.counted = time.Now()
	for {
		e, ok, err := v.m.Next(time.Now().Add(monitorPatience))
		if err != nil {
			return v.flush(err)
		}
		if ok {
			if err := v.print(e, func(w io.Writer) { eventLine(w, e) }); err != nil {
				return err
			}
			if v.left--; v.left == 0 {
				return v.flush(nil)
			}
		}
		over := !v.end.IsZero() && !time.Now().Before(v.end)
		select {
		case <-interrupted:
			over = true
		default:
		}
		if over || time.Since(v.counted) >= countEvery {
			if err := v.count(); err != nil {
				return v.flush(err)
			}
		}
		if !ok || over {
			if err := v.flush(nil); err != nil || over {
				return err
			}
		}
	}
}

// count tells what was not shown, if there was anything.
func (v *eventView) count() error {
	v.counted = time.Now()
	n, err := v.m.NotShown()
	if err != nil || n == (network.NotShown{}) {
		return err
	}
	object := struct {
		Event string    `json:"event"`
		Time  time.Time `json:"time"`
		network.NotShown
	}{"not-shown", time.Now(), n}
	return v.print(object, func(w io.Writer) { notShownLine(w, n) })
}

func (v *eventView) print(object any, text func(io.Writer)) error {
	if v.p.json {
		if err := writeObject(v.out, object); err != nil {
			return fmt.Errorf("%w: %w", errPrint, err)
		}
		return nil
	}
	text(v.out)
	return nil
}

// flush keeps an error that was there before.
func (v *eventView) flush(before error) error {
	if err := v.out.Flush(); err != nil && before == nil {
		return fmt.Errorf("%w: %w", errPrint, err)
	}
	return before
}

// eventLine is one line: when, what, whose, the packet, and what there is to say of it.
func eventLine(w io.Writer, e network.EventInfo) {
	words := []string{e.Time.Local().Format("15:04:05.000000"), e.Event}
	add := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	if d := e.DropEvent; d != nil {
		add("%s", d.Reason)
		words = append(words, whose(e)...)
		words = append(words, e.Protocol)
		if e.Src == "" {
			add("%s -> %s", d.SrcMAC, d.DstMAC)
		} else {
			add("%s -> %s", e.Src, e.Dst)
		}
		if d.Translated {
			add("(translated)")
		}
		add("at %s, %d bytes", orDash(e.Device), d.Length)
	}
	if f := e.FlowEvent; f != nil {
		add("%s %s %s %s -> %s", f.Kind, orDash(e.Endpoint), e.Protocol, e.Src, e.Dst)
		if f.TranslatedSrc != e.Src || f.TranslatedDst != e.Dst {
			add("as %s -> %s", f.TranslatedSrc, f.TranslatedDst)
		}
	}
	if c := e.CloseEvent; c != nil {
		add("(%s) after %.1fs, %s and %s back", c.Why, c.Seconds, traffic(c.Packets, c.Bytes), traffic(c.ReplyPackets, c.ReplyBytes))
	}
	_, _ = fmt.Fprintln(w, strings.Join(words, " "))
}

// whose says who sent the packet, or would have got it.
func whose(e network.EventInfo) []string {
	words := []string{"to", orDash(e.Endpoint)}
	if e.Direction == network.Sent {
		words[0] = "from"
		if e.To != "" {
			words = append(words, "to", e.To)
		}
	}
	return words
}

func traffic(packets, bytes uint64) string {
	return fmt.Sprintf("%s of %d bytes", count(int(packets), "packet"), bytes)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func notShownLine(w io.Writer, n network.NotShown) {
	var more []string
	for _, c := range []struct {
		n    uint64
		what string
	}{{n.Drops, "dropped packet"}, {n.Opens, "opening"}, {n.Closes, "closing"}} {
		if c.n > 0 {
			more = append(more, count(int(c.n), "more "+c.what))
		}
	}
	if len(more) > 0 {
		_, _ = fmt.Fprintf(w, "... and %s not shown\n", strings.Join(more, ", "))
	}
	if n.Lost > 0 {
		_, _ = fmt.Fprintf(w, "... and %s that came faster than they were read\n", count(int(n.Lost), "event"))
	}
	if n.Away {
		_, _ = fmt.Fprintln(w, "... and what happened while nobody read this")
	}
}
