package main

import (
	"bytes"
	"errors"
	"os/exec"
	"syscall"
	"testing"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

// call runs the program in the test's own process.
func call(env map[string]string, args ...string) (status int, stdout, stderr string) {
	var out, errs bytes.Buffer
	status = run(append([]string{"ebnet"}, args...), bytes.NewReader(nil), &out, &errs, func(k string) string { return env[k] })
	return status, out.String(), errs.String()
}

func TestEnvironment(t *testing.T) {
	env := map[string]string{"EBNET_OUTPUT": "json"}
	if _, out, _ := call(env, "version"); out == "" || out[0] != '{' {
		t.Errorf("EBNET_OUTPUT=json: got %q", out)
	}
	if _, out, _ := call(env, "version", "-o", "text"); out == "" || out[0] == '{' {
		t.Errorf("the flag does not win over the environment: got %q", out)
	}
	env["EBNET_OUTPUT"] = "xml"
	if status, _, errs := call(env, "version"); status != 2 || errs == "" {
		t.Errorf("EBNET_OUTPUT=xml: status %d, %q", status, errs)
	}
}

// goneReader is a pipe that nobody reads.
type goneReader struct{}

func (goneReader) Write([]byte) (int, error) { return 0, syscall.EPIPE }

func TestClosedPipeIsNoError(t *testing.T) {
	var errs bytes.Buffer
	if status := run([]string{"ebnet", "version"}, nil, goneReader{}, &errs, func(string) string { return "" }); status != 0 || errs.Len() > 0 {
		t.Errorf("status %d, %q", status, errs.String())
	}
}

func TestExitCode(t *testing.T) {
	kind := func(k error) error { return &network.Error{What: "w", Why: "y", Kind: k} }
	tests := []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("anything"), 1},
		{kind(network.ErrFailed), 1},
		{kind(network.ErrInvalid), 2},
		{kind(network.ErrUnsupported), 3},
		{kind(network.ErrConflict), 4},
		{kind(network.ErrNotFound), 5},
		{statusError{status: 143}, 143},
		{statusError{127, kind(network.ErrFailed)}, 127},
		{syscall.EPIPE, 1}, // not of stdout
	}
	for _, tt := range tests {
		if got := exitCode(tt.err); got != tt.want {
			t.Errorf("exitCode(%v) = %d, want %d", tt.err, got, tt.want)
		}
	}
}

func TestEnded(t *testing.T) {
	tests := []struct {
		script string
		want   int
	}{{"exit 0", 0}, {"exit 7", 7}, {"kill -TERM $$", 143}, {"kill -KILL $$", 137}}
	for _, tt := range tests {
		cmd := exec.Command("/bin/sh", "-c", tt.script)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if got := exitCode(ended(cmd, cmd.Wait())); got != tt.want {
			t.Errorf("%s: status %d, want %d", tt.script, got, tt.want)
		}
	}
}

func TestRunUnknownCommand(t *testing.T) {
	tests := []struct {
		command string
		want    int
		message string
	}{
		{"ebnet-no-such-command", 127, "ebnet: ebnet-no-such-command: command not found\n"},
		{"/ebnet/no/such", 127, "ebnet: /ebnet/no/such: command not found\n"},
		{"/etc/passwd", 126, "ebnet: /etc/passwd: cannot be run: permission denied\n"},
	}
	for _, tt := range tests {
		status, out, errs := call(nil, "run", "--", tt.command)
		if status != tt.want || out != "" || errs != tt.message {
			t.Errorf("%s: status %d, stdout %q, stderr %q", tt.command, status, out, errs)
		}
	}
}
