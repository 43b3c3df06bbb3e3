package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

// statusError ends the program with a status that is not ebnet's to choose or
// explain, such as that of the command of `ebnet run`. With err it is explained.
type statusError struct {
	status int
	err    error // nil: print nothing
}

func (e statusError) Error() string {
	if e.err == nil {
		return "exit status " + strconv.Itoa(e.status)
	}
	return e.err.Error()
}

func (e statusError) Unwrap() error { return e.err }

// usage is an error of the command line: exit status 2.
func usage(what, why, hint string) error {
	return &network.Error{What: what, Why: why, Hint: hint, Kind: network.ErrInvalid}
}

// exit prints the error, if any, and returns the exit status.
func (p *program) exit(err error) int {
	code := exitCode(err)
	if code != 0 {
		p.printError(err, code)
	}
	return code
}

// exitCode maps an error to the exit status. A reader that went away (`ebnet
// ports | head -1`) is no error: the work is done, nobody wants to read of it.
func exitCode(err error) int {
	if s, ok := errors.AsType[statusError](err); ok {
		return s.status
	}
	if errors.Is(err, errPrint) && errors.Is(err, syscall.EPIPE) {
		return 0
	}
	return network.ExitCode(err)
}

// printError prints "ebnet: WHAT: WHY", the way out where there is one, and the
// same as a JSON object with -o json.
func (p *program) printError(err error, code int) {
	if s, ok := errors.AsType[statusError](err); ok && s.err == nil {
		return
	}
	message, hint := oneLine(err.Error()), oneLine(network.Hint(err))
	_, _ = fmt.Fprintln(p.stderr, "ebnet: "+message)
	if hint != "" {
		_, _ = fmt.Fprintln(p.stderr, hint)
	}
	if !p.json {
		return
	}
	type body struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
		Hint    string `json:"hint,omitempty"`
	}
	e := json.NewEncoder(p.stderr)
	e.SetEscapeHTML(false)
	_ = e.Encode(struct {
		V     int  `json:"v"`
		Error body `json:"error"`
	}{1, body{code, message, hint}})
}

// note prints a line on stderr that is no error.
func (p *program) note(text string) { _, _ = fmt.Fprintln(p.stderr, oneLine(text)) }

// warn prints what is wrong but did not stop the command.
func (p *program) warn(text string) { p.note("ebnet: warning: " + text) }

// oneLine joins lines, so that one error stays one line.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), " ")
}

func quote(s string) string { return strconv.Quote(s) }

// arguments checks how many arguments there are; atMost < 0 means any number.
func arguments(c *cli.Context, atLeast, atMost int) ([]string, error) {
	n := c.NArg()
	if n >= atLeast && (atMost < 0 || n <= atMost) {
		return c.Args().Slice(), nil
	}
	takes := c.Command.ArgsUsage
	if takes == "" {
		takes = "no arguments"
	}
	got := strconv.Itoa(n)
	if n == 0 {
		got = "none"
	}
	name := strings.TrimPrefix(c.Command.HelpName, c.App.Name+" ")
	return nil, usage(name, "takes "+takes+", got "+got, "see "+c.Command.HelpName+" --help")
}
