package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

// pastEvents are events that a test made up.
type pastEvents struct {
	events   []network.EventInfo
	notShown network.NotShown
	err      error // when they are told
}

func (e *pastEvents) Next(time.Time) (network.EventInfo, bool, error) {
	if len(e.events) == 0 {
		return network.EventInfo{}, false, e.err
	}
	first := e.events[0]
	e.events = e.events[1:]
	return first, true, nil
}

func (e *pastEvents) NotShown() (network.NotShown, error) {
	n := e.notShown
	e.notShown = network.NotShown{}
	return n, nil
}

func testEvents() []network.EventInfo {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.Local)
	flow := &network.FlowEvent{Kind: "snat", TranslatedSrc: "192.0.2.1:40000", TranslatedDst: "198.51.100.1:80"}
	return []network.EventInfo{
		{Event: "drop", Time: at, Endpoint: "web", Device: "veb1", Protocol: "tcp", Src: "172.18.0.2:1", Dst: "172.18.0.3:2",
			DropEvent: &network.DropEvent{Reason: "icc", Direction: network.Sent, To: "db", Length: 60, SrcMAC: "02::1", DstMAC: "02::2"}},
		{Event: "drop", Time: at, Device: "up0", Protocol: "47", Src: "192.0.2.1", Dst: "172.18.0.2",
			DropEvent: &network.DropEvent{Reason: "redirect", Direction: network.Received, Length: 1514, Translated: true}},
		{Event: "drop", Time: at, Endpoint: "web", Device: "veb1", Protocol: "arp",
			DropEvent: &network.DropEvent{Reason: "spoofed-arp", Direction: network.Sent, Length: 42, SrcMAC: "02::1", DstMAC: "ff::ff"}},
		{Event: "open", Time: at, Endpoint: "web", Device: "veb1", Protocol: "tcp", Src: "172.18.0.2:40000", Dst: "198.51.100.1:80", FlowEvent: flow},
		{Event: "close", Time: at, Endpoint: "lab", Protocol: "udp", Src: "10.0.0.1:1", Dst: "10.0.0.2:2",
			FlowEvent:  &network.FlowEvent{Kind: "direct", TranslatedSrc: "10.0.0.1:1", TranslatedDst: "10.0.0.2:2"},
			CloseEvent: &network.CloseEvent{Why: "timeout", Packets: 1, Bytes: 60, ReplyPackets: 2, ReplyBytes: 120, Seconds: 30.04}},
	}
}

// The time of a test is another each time.
func withoutTime(s string) string {
	var lines []string
	for line := range strings.Lines(s) {
		if before, rest, ok := strings.Cut(line, `"time":"`); ok {
			_, rest, _ = strings.Cut(rest, `"`)
			line = before + `"time":"T"` + rest
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "")
}

func TestGoldenEvents(t *testing.T) {
	var all strings.Builder
	for _, asJSON := range []bool{false, true} {
		var out bytes.Buffer
		p := &program{stdout: &out, json: asJSON}
		stop := make(chan os.Signal, 1)
		stop <- syscall.SIGINT
		// An interrupt comes after the first event: what is shown then is what there was.
		for _, e := range testEvents() {
			v := newEventView(p, &pastEvents{events: []network.EventInfo{e}}, 1, 0)
			if err := v.show(nil); err != nil {
				t.Fatal(err)
			}
		}
		v := newEventView(p, &pastEvents{notShown: network.NotShown{Drops: 12345, Opens: 1, Closes: 2, Lost: 3, Away: true}}, 0, 0)
		if err := v.show(stop); err != nil {
			t.Fatal(err)
		}
		all.WriteString(withoutTime(out.String()) + "\n")
	}
	golden(t, "events", all.String())
}

func TestMonitorEndsInTime(t *testing.T) {
	var out bytes.Buffer
	v := newEventView(&program{stdout: &out}, &pastEvents{events: testEvents()}, 0, time.Millisecond)
	start := time.Now()
	if err := v.show(nil); err != nil || time.Since(start) < time.Millisecond {
		t.Errorf("%v after %v", err, time.Since(start))
	}
	if n := strings.Count(out.String(), "\n"); n != len(testEvents()) {
		t.Errorf("%d lines:\n%s", n, out.String())
	}
}

// What came before an error is printed; that nobody reads is no failure.
func TestMonitorFails(t *testing.T) {
	var out bytes.Buffer
	broken := errors.New("broken")
	v := newEventView(&program{stdout: &out}, &pastEvents{events: testEvents()[:1], err: broken}, 0, 0)
	if err := v.show(nil); !errors.Is(err, broken) || !strings.Contains(out.String(), "icc") {
		t.Errorf("%v after %q", err, out.String())
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	v = newEventView(&program{stdout: io.Writer(w)}, &pastEvents{events: testEvents()}, 0, 0)
	if err := v.show(nil); exitCode(err) != 0 || err == nil {
		t.Errorf("a closed pipe: %v", err)
	}
}
