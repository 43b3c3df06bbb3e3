package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
)

// commandLine is a command line taken apart by the app's own flag table.
//
// The cli package stops looking for flags at the first argument and knows the
// global ones only before the command; people type them anywhere. argv puts
// everything where the package expects it.
type commandLine struct {
	path   []*cli.Command // the command and, before it, its parents
	global []string       // global flags as --name=value, in the order typed
	local  []string       // the command's flags, likewise
	args   []string
	help   bool
}

// parseCommandLine takes words, the command line without the program's name,
// apart. It goes on after an error, so that the global flags behind the fault
// are known too; the error is the first one, of kind network.ErrInvalid.
//
// A flag's value is the next word whatever it starts with, except "--". "--"
// ends the flags. For the run command the first argument does too: what
// follows belongs to COMMAND.
func parseCommandLine(app *cli.App, words []string) (commandLine, error) {
	p := lineParser{app: app, rest: words}
	onlyArgs := false
	for len(p.rest) > 0 {
		word := p.rest[0]
		p.rest = p.rest[1:]
		switch {
		case onlyArgs || !isFlag(word):
			p.argument(word)
			onlyArgs = onlyArgs || p.atCommandToRun()
		case word == "--":
			onlyArgs = true
		default:
			p.flag(word)
		}
	}
	return p.line, p.err
}

// argv returns what the cli package is to parse, the program's name first.
// Help leaves the arguments out: the package would take the first one for the
// name of a subcommand.
func (l commandLine) argv(program string) []string {
	out := append([]string{program}, l.global...)
	for _, c := range l.path {
		out = append(out, c.Name)
	}
	if l.help {
		return append(out, "--help")
	}
	out = append(out, l.local...)
	if len(l.args) == 0 {
		return out
	}
	return append(append(out, "--"), l.args...)
}

// lastGlobal returns the value that holds of a global flag and whether it was
// given.
func (l commandLine) lastGlobal(name string) (string, bool) {
	for _, g := range slices.Backward(l.global) {
		if value, ok := strings.CutPrefix(g, "--"+name+"="); ok {
			return value, true
		}
	}
	return "", false
}

// lineParser is the state of parseCommandLine.
type lineParser struct {
	app  *cli.App
	rest []string
	line commandLine
	err  error
}

func (p *lineParser) fail(err error) {
	if p.err == nil {
		p.err = err
	}
}

// isFlag reports whether the word is meant as a flag. A dash before anything
// but a letter is not, so that `-9090:80` is refused as the port it was meant
// to be.
func isFlag(word string) bool {
	if len(word) < 2 || word[0] != '-' {
		return false
	}
	c := word[1] | 0x20 // lower case
	return word[1] == '-' || c >= 'a' && c <= 'z'
}

// command returns the innermost command named so far, nil if there is none.
func (p *lineParser) command() *cli.Command {
	if len(p.line.path) == 0 {
		return nil
	}
	return p.line.path[len(p.line.path)-1]
}

func (p *lineParser) atCommandToRun() bool {
	return len(p.line.path) == 1 && p.line.path[0].Name == runName && len(p.line.args) > 0
}

// argument takes a word that is no flag: the name of a command while one is
// wanted, an argument after that.
func (p *lineParser) argument(word string) {
	commands := p.app.Commands
	if c := p.command(); c != nil {
		commands = c.Subcommands
	}
	if len(commands) == 0 {
		p.line.args = append(p.line.args, word)
		return
	}
	if word == "help" {
		p.line.help = true
		return
	}
	for _, c := range commands {
		if c.HasName(word) {
			p.line.path = append(p.line.path, c)
			return
		}
	}
	names := make([]string, 0, len(commands))
	for _, c := range commands {
		names = append(names, c.Name)
	}
	p.fail(usage(strings.Join(append(p.names(), word), " "), "unknown command", p.hint(closest(word, names))))
}

// flag takes a word that is one, and its value.
func (p *lineParser) flag(word string) {
	dashes, name, value, hasValue := splitFlag(word)
	f, global := p.find(dashes, name)
	if f == nil && dashes == "-" && len(name) > 1 {
		// -p80:80 is -p 80:80, but -name is a slip for --name.
		if long, _ := p.find("--", name); long == nil {
			if f, global = p.find("-", name[:1]); f != nil {
				name, value, hasValue = name[:1], word[2:], true
			}
		}
	}
	if f == nil {
		p.unknown(dashes, name)
		return
	}
	if f == cli.HelpFlag {
		p.line.help = true
		return
	}
	if !hasValue {
		value, hasValue = p.value(f)
		if !hasValue {
			p.fail(usage(dashes+name, "needs a value", p.hint("")))
			return
		}
	}
	if err := checkValue(f, value); err != nil {
		p.fail(usage(dashes+name, err.Error(), p.hint("")))
		return
	}
	// The first name is canonical: two names of one flag are no conflict then.
	canonical := "--" + f.Names()[0] + "=" + value
	if global {
		p.line.global = append(p.line.global, canonical)
	} else {
		p.line.local = append(p.line.local, canonical)
	}
}

// splitFlag takes -n, --name, -n=value and --name=value apart.
func splitFlag(word string) (dashes, name, value string, hasValue bool) {
	dashes = "-"
	if strings.HasPrefix(word, "--") {
		dashes = "--"
	}
	name, value, hasValue = strings.Cut(word[len(dashes):], "=")
	return dashes, name, value, hasValue
}

// find looks the flag up: of the command first, then the global ones, then
// help. One letter goes with one dash, more with two.
func (p *lineParser) find(dashes, name string) (f cli.Flag, global bool) {
	if (len(name) == 1) != (dashes == "-") {
		return nil, false
	}
	if c := p.command(); c != nil {
		for _, f := range c.Flags {
			if slices.Contains(f.Names(), name) {
				return f, false
			}
		}
	}
	for _, f := range p.app.Flags {
		if f != cli.HelpFlag && slices.Contains(f.Names(), name) {
			return f, true
		}
	}
	if slices.Contains(cli.HelpFlag.Names(), name) {
		return cli.HelpFlag, false
	}
	return nil, false
}

// value takes the next word as the flag's value; a boolean needs none.
func (p *lineParser) value(f cli.Flag) (string, bool) {
	if _, ok := f.(*cli.BoolFlag); ok {
		return "true", true
	}
	if len(p.rest) == 0 || p.rest[0] == "--" {
		return "", false
	}
	value := p.rest[0]
	p.rest = p.rest[1:]
	return value, true
}

// checkValue refuses what the cli package would, in words of our own.
func checkValue(f cli.Flag, value string) error {
	if value == "" {
		return fmt.Errorf("the value is empty")
	}
	switch f.(type) {
	case *cli.BoolFlag:
		if _, err := strconv.ParseBool(value); err != nil {
			return fmt.Errorf("%q is neither true nor false", value)
		}
	case *cli.Float64Flag:
		if _, err := strconv.ParseFloat(value, 64); err != nil {
			return fmt.Errorf("%q is not a number", value)
		}
	case *cli.DurationFlag:
		if _, err := time.ParseDuration(value); err != nil {
			return fmt.Errorf("%q is no time, such as 1s or 500ms", value)
		}
	case *cli.IntFlag:
		if _, err := strconv.ParseInt(value, 0, strconv.IntSize); err != nil {
			return fmt.Errorf("%q is not a number", value)
		}
	}
	return nil
}

func (p *lineParser) unknown(dashes, name string) {
	var names []string
	flags := p.app.Flags
	if c := p.command(); c != nil {
		flags = append(slices.Clone(c.Flags), flags...)
	}
	for _, f := range flags {
		for _, n := range f.Names() {
			if len(n) > 1 {
				names = append(names, n)
			}
		}
	}
	near := closest(name, names)
	if near != "" {
		near = "--" + near
	}
	p.fail(usage(dashes+name, "unknown flag", p.hint(near)))
}

// names returns the names of the commands so far.
func (p *lineParser) names() []string {
	var names []string
	for _, c := range p.line.path {
		names = append(names, c.Name)
	}
	return names
}

// hint is the way out of a fault in the command line.
func (p *lineParser) hint(near string) string {
	help := "see " + strings.Join(append(append([]string{p.app.Name}, p.names()...), "--help"), " ")
	if near == "" {
		return help
	}
	return fmt.Sprintf("did you mean %s? Otherwise %s", near, help)
}

// closest returns the name that is at most two edits from word, or "".
func closest(word string, names []string) string {
	best, bestDistance := "", 3
	for _, n := range names {
		if d := editDistance(word, n); d < bestDistance && d < len(n) {
			best, bestDistance = n, d
		}
	}
	return best
}

// editDistance is Levenshtein's, over bytes.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
