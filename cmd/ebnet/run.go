package main

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

// runName is known to parseCommandLine: what follows belongs to COMMAND.
const runName = "run"

// The statuses of a COMMAND that did not start, as shells have them.
const (
	statusCannotRun = 126
	statusNoCommand = 127
	statusSignal    = 128 // and the signal's number
)

func (p *program) runCommand() *cli.Command {
	return &cli.Command{
		Name:      runName,
		Usage:     "run a command in a network namespace of its own",
		ArgsUsage: "COMMAND [ARG...]",
		Description: describe("Makes a network namespace with an endpoint, runs COMMAND in it and removes everything when\n"+
			"it ends. Signals go to COMMAND, and the exit status is COMMAND's (127: not found, 126: cannot\n"+
			"be run, 128+N: ended by signal N).",
			"ebnet run -- curl http://example.com/",
			"ebnet run --name web -p 8080:80 -- python3 -m http.server 80"),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "network", Usage: "`NAME` of the network", DefaultText: network.DefaultNetwork},
			&cli.StringFlag{Name: "name", Usage: "`NAME` of the endpoint", DefaultText: "ep- and 8 hex digits"},
			publishFlag(),
		},
		Action: p.runInside,
	}
}

func (p *program) runInside(c *cli.Context) error {
	args, err := arguments(c, 1, -1)
	if err != nil {
		return err
	}
	networkName := c.String("network")
	if networkName == "" {
		networkName = network.DefaultNetwork
	}
	request, err := connectRequest(c, networkName, "")
	if err != nil {
		return err
	}
	// Found before anything is made for it.
	path, err := exec.LookPath(args[0])
	if err != nil {
		return cannotStart(args[0], err)
	}
	cmd := &exec.Cmd{Path: path, Args: args, Stdin: p.stdin, Stdout: p.stdout, Stderr: p.stderr}
	box, err := network.NewSandbox()
	if err != nil {
		return err
	}
	defer box.Close()
	request.NetNS, request.Transient = box.Path(), true
	return p.runConnected(c, box, cmd, request)
}

// runConnected connects the sandbox, runs cmd in it and disconnects again,
// however it goes. The state's lock is free while cmd runs.
func (p *program) runConnected(c *cli.Context, box *network.Sandbox, cmd *exec.Cmd, request network.ConnectRequest) (err error) {
	var steps []string
	options := p.options(c, func(s string) { steps = append(steps, s) })
	h, err := network.Open(options, network.ReadWrite)
	if err != nil {
		return err
	}
	// Not earlier: a signal that ends the wait for the lock leaves nothing behind.
	signals := make(chan os.Signal, 16)
	notify(signals, forwarded...)
	defer signal.Stop(signals)

	info, err := h.Connect(request)
	if cerr := h.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if options.DryRun {
		return p.print(stepsView(append(steps, "run "+strings.Join(cmd.Args, " "))))
	}
	defer func() {
		if derr := disconnectNow(options, info.Name); derr != nil {
			p.warn(derr.Error())
			if err == nil {
				err = statusError{status: 1}
			}
		}
	}()
	select {
	case s := <-signals:
		return statusError{status: statusSignal + int(s.(syscall.Signal))}
	default:
	}
	if err := box.Start(cmd); err != nil {
		return cannotStart(cmd.Path, err)
	}
	return p.waitFor(cmd, signals)
}

func disconnectNow(options network.Options, name string) error {
	h, err := network.Open(options, network.ReadWrite)
	if err != nil {
		return err
	}
	err = h.Disconnect(name)
	if errors.Is(err, network.ErrNotFound) {
		err = nil // somebody else was faster
	}
	if cerr := h.Close(); err == nil {
		err = cerr
	}
	return err
}

// forwarded are the signals that COMMAND is sent on.
var forwarded = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}

// waitFor waits for cmd and hands signals on meanwhile.
func (p *program) waitFor(cmd *exec.Cmd, signals <-chan os.Signal) error {
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			if !sentToBoth(s) {
				_ = cmd.Process.Signal(s) // an ended process is about to be seen below
			}
		case err := <-done:
			return ended(cmd, err)
		}
	}
}

// sentToBoth reports whether the terminal has sent the signal to COMMAND too:
// its keys reach the whole foreground process group.
func sentToBoth(s os.Signal) bool {
	if s != syscall.SIGINT && s != syscall.SIGQUIT {
		return false
	}
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	foreground, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && foreground == unix.Getpgrp()
}

// ended turns the end of COMMAND into ebnet's.
func ended(cmd *exec.Cmd, err error) error {
	exit, ok := errors.AsType[*exec.ExitError](err)
	switch {
	case err == nil:
		return nil
	case !ok:
		return &network.Error{What: cmd.Path, Why: err.Error(), Kind: network.ErrFailed, Err: err}
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return statusError{status: statusSignal + int(ws.Signal())}
	}
	return statusError{status: exit.ExitCode()}
}

// cannotStart explains why COMMAND did not start, with the shells' statuses.
func cannotStart(command string, err error) error {
	status, why := statusCannotRun, "cannot be run: "+err.Error()
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		status, why = statusNoCommand, "command not found"
	case errors.Is(err, fs.ErrPermission):
		why = "cannot be run: permission denied"
	case errors.Is(err, syscall.ENOEXEC):
		why = "cannot be run: it is no program"
	case errors.Is(err, exec.ErrDot):
		why = "is in the current directory; say ./" + command + " to run it"
	}
	return statusError{status, &network.Error{What: command, Why: why, Kind: network.ErrFailed, Err: err}}
}
