package network

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ebnet/ebnet/loader"
)

// maxTimeout is far beyond what a conversation is silent for.
const maxTimeout = 365 * 24 * time.Hour

// timeoutFields are the names of the timeouts in the order people think of them.
var timeoutFields = []struct {
	name string
	of   func(*loader.Timeouts) *time.Duration
}{
	{"tcp-syn", func(t *loader.Timeouts) *time.Duration { return &t.TCPSyn }},
	{"tcp-established", func(t *loader.Timeouts) *time.Duration { return &t.TCPEstablished }},
	{"tcp-half-closed", func(t *loader.Timeouts) *time.Duration { return &t.TCPHalfClosed }},
	{"tcp-closed", func(t *loader.Timeouts) *time.Duration { return &t.TCPClosed }},
	{"udp-unreplied", func(t *loader.Timeouts) *time.Duration { return &t.UDPUnreplied }},
	{"udp-replied", func(t *loader.Timeouts) *time.Duration { return &t.UDPReplied }},
	{"icmp", func(t *loader.Timeouts) *time.Duration { return &t.ICMP }},
}

// TimeoutNames lists the names that ParseTimeouts knows.
func TimeoutNames() (names []string) {
	for _, f := range timeoutFields {
		names = append(names, f.name)
	}
	return names
}

// ParseTimeouts reads NAME=DURATION pairs; a name given twice is an error. A duration
// is whole seconds, with a unit or without; "default" is 0. Returns ErrInvalid.
func ParseTimeouts(what string, pairs []string) (map[string]time.Duration, error) {
	texts, err := ParseLabels(what, pairs)
	if err != nil {
		return nil, err
	}
	timeouts := make(map[string]time.Duration, len(texts))
	for name, text := range texts {
		if !slices.Contains(TimeoutNames(), name) {
			return nil, invalid(what, "there is no timeout %q", name).hint("there are %s", strings.Join(TimeoutNames(), ", "))
		}
		d, err := parseTimeout(what, name, text)
		if err != nil {
			return nil, err
		}
		timeouts[name] = d
	}
	return timeouts, nil
}

func parseTimeout(what, name, text string) (time.Duration, *Error) {
	if text == "default" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if seconds, serr := strconv.Atoi(text); serr == nil && seconds <= int(maxTimeout/time.Second) {
		d, err = time.Duration(seconds)*time.Second, nil
	}
	switch {
	case err != nil:
		return 0, invalid(what, "%s: %q is no duration", name, text).hint("write seconds, or a number with a unit: 90, 90s, 2h, or default")
	case d < time.Second || d%time.Second != 0 || d > maxTimeout:
		return 0, invalid(what, "%s: %s is not between 1 second and a year in whole seconds", name, text)
	}
	return d, nil
}

// setTimeouts changes what is recorded; 0 forgets.
func (h *hostRecord) setTimeouts(change map[string]time.Duration) {
	if len(change) == 0 {
		return
	}
	h.Timeouts = maps.Clone(h.Timeouts) // the record it was copied from has it too
	for name, d := range change {
		if d == 0 {
			delete(h.Timeouts, name)
			continue
		}
		if h.Timeouts == nil {
			h.Timeouts = map[string]int{}
		}
		h.Timeouts[name] = int(d / time.Second)
	}
}

// timeouts are the defaults but for what is recorded.
func (h *hostRecord) timeouts() loader.Timeouts {
	t := loader.DefaultTimeouts
	for _, f := range timeoutFields {
		if seconds, ok := h.Timeouts[f.name]; ok {
			*f.of(&t) = time.Duration(seconds) * time.Second
		}
	}
	return t
}

// timeoutSeconds are the timeouts by name.
func timeoutSeconds(t loader.Timeouts) map[string]int {
	seconds := map[string]int{}
	for _, f := range timeoutFields {
		seconds[f.name] = int(*f.of(&t) / time.Second)
	}
	return seconds
}
