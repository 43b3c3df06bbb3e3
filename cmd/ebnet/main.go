// Command ebnet gives a Linux host networks, endpoints and published ports on a
// datapath of eBPF programs in place of iptables.
//
// One file per command: flags, a call into package network, printing. What the
// commands mean is in that package.
package main

import (
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

func main() {
	os.Exit(run(os.Args, os.Stdin, os.Stdout, os.Stderr, os.Getenv))
}

// program is what a command knows of the world around it.
type program struct {
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	getenv func(string) string
	json   bool // -o json
}

// run is the program: args[0] is its name, the result its exit status.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer, getenv func(string) string) int {
	// With a handler, writing to a closed pipe is an error (see exitCode); without
	// one it would kill a verb between its work and its exit status. Unlike
	// ignoring, it does not pass on to the command of `ebnet run`.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	p := &program{stdin: stdin, stdout: stdout, stderr: stderr, getenv: getenv}
	app := p.app()
	line, err := parseCommandLine(app, args[1:])
	output, ok := line.lastGlobal("output")
	if !ok {
		output = p.env("EBNET_OUTPUT", "text")
	}
	p.json = output == "json"
	if err == nil && output != "text" && output != "json" {
		err = usage("--output", quote(output)+" is neither text nor json", "")
	}
	if err == nil {
		err = app.Run(line.argv(app.Name))
	}
	return p.exit(err)
}

// env returns an environment variable, or fallback where it is unset or empty.
func (p *program) env(name, fallback string) string {
	if v := p.getenv(name); v != "" {
		return v
	}
	return fallback
}

func (p *program) app() *cli.App {
	app := &cli.App{
		Name:  "ebnet",
		Usage: "container networks and published ports on eBPF, without iptables",
		UsageText: "ebnet [global flags] COMMAND [flags] [arguments]\n\n" +
			"Flags may stand before, between or after the arguments; -- ends them.",
		Writer:    p.stdout,
		ErrWriter: p.stderr,
		Reader:    p.stdin,
		Flags:     p.globalFlags(),
		Commands: []*cli.Command{
			p.upCommand(), p.downCommand(), p.statusCommand(), p.doctorCommand(),
			p.networkCommand(),
			p.connectCommand(), p.disconnectCommand(), p.endpointCommand(), p.runCommand(),
			p.exposeCommand(), p.unexposeCommand(), p.portsCommand(),
			p.flowsCommand(), p.statsCommand(), p.monitorCommand(), p.metricsCommand(), p.graphCommand(),
			p.benchCommand(),
			p.versionCommand(), p.completionCommand(),
		},
		Action:                    func(c *cli.Context) error { return cli.ShowAppHelp(c) },
		HideHelpCommand:           true,
		DisableSliceFlagSeparator: true, // a comma in a label is a comma
		CustomAppHelpTemplate:     appHelp,
		ExitErrHandler:            func(*cli.Context, error) {}, // run decides
		OnUsageError:              usageFault,
	}
	finish(app.Commands)
	return app
}

// usageFault keeps the cli package from printing a page of help. It is reached
// only by what parseCommandLine let through.
func usageFault(_ *cli.Context, err error, _ bool) error {
	return usage("command line", err.Error(), "")
}

// finish sets what is the same in every command.
func finish(commands []*cli.Command) {
	for _, c := range commands {
		c.HideHelpCommand = true // or the argument "help" would be taken for it
		c.OnUsageError = usageFault
		c.CustomHelpTemplate = commandHelp
		if len(c.Subcommands) > 0 {
			c.Action = func(c *cli.Context) error { return cli.ShowSubcommandHelp(c) }
			finish(c.Subcommands)
		}
	}
}

func (p *program) globalFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "state", Usage: "`DIR` of the recorded intent [$EBNET_STATE]",
			Value: p.env("EBNET_STATE", "/var/lib/ebnet"), DefaultText: "/var/lib/ebnet"},
		&cli.StringFlag{Name: "bpffs", Usage: "`DIR` on a bpf file system where the datapath is pinned [$EBNET_BPFFS]",
			Value: p.env("EBNET_BPFFS", "/sys/fs/bpf/ebnet"), DefaultText: "/sys/fs/bpf/ebnet"},
		&cli.StringFlag{Name: "cgroup", Usage: "`DIR` of the cgroup2 where socket hooks attach [$EBNET_CGROUP]",
			Value: p.env("EBNET_CGROUP", ""), DefaultText: "first cgroup2 mount"},
		&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FORMAT`, text or json [$EBNET_OUTPUT]",
			Value: p.env("EBNET_OUTPUT", "text"), DefaultText: "text"},
		&cli.BoolFlag{Name: "verbose", Usage: "print each step on stderr as it happens", DisableDefaultText: true},
		&cli.BoolFlag{Name: "dry-run", Usage: "print the steps of a verb and change nothing", DisableDefaultText: true},
	}
}

// options returns the network options of the global flags; steps go to step too.
func (p *program) options(c *cli.Context, step func(string)) network.Options {
	verbose := c.Bool("verbose")
	return network.Options{
		StateDir: c.String("state"),
		BPFFS:    c.String("bpffs"),
		Cgroup:   c.String("cgroup"),
		DryRun:   c.Bool("dry-run"),
		Step: func(text string) {
			if verbose {
				p.note(text)
			}
			step(text)
		},
		Warn:    p.warn,
		Version: readVersion().Version,
		// Not a flag: only tests of the way for old kernels want it.
		DisableTCX: p.getenv("EBNET_TCX") == "off",
	}
}

// look opens the host for a noun and prints what fn returns.
func (p *program) look(c *cli.Context, fn func(*network.Host) (view, error)) error {
	h, err := network.Open(p.options(c, func(string) {}), network.ReadOnly)
	if err != nil {
		return err
	}
	v, err := fn(h)
	if cerr := h.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return p.print(v)
}

// change opens the host for a verb and prints what fn returns or, on a dry run,
// the steps instead.
func (p *program) change(c *cli.Context, fn func(*network.Host) (view, error)) error {
	var steps []string
	h, err := network.Open(p.options(c, func(s string) { steps = append(steps, s) }), network.ReadWrite)
	if err != nil {
		return err
	}
	release := holdSignals()
	v, err := fn(h)
	if cerr := h.Close(); err == nil {
		err = cerr
	}
	release()
	if err != nil {
		return err
	}
	if c.Bool("dry-run") {
		v = stepsView(steps)
	}
	return p.print(v)
}

// holdSignals lets a verb that has begun come to its end: the first signal to
// stop is held back, the second one is obeyed. While the lock is waited for
// nothing has begun yet, so the caller holds signals only after that.
func holdSignals() (release func()) {
	ch := make(chan os.Signal, 1)
	notify(ch, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		select {
		case <-ch:
			signal.Stop(ch)
		case <-done:
		}
	}()
	return func() {
		signal.Stop(ch)
		close(done)
	}
}

// notify is signal.Notify but for the signals that ebnet was started to ignore,
// as nohup and shells do: those stay ignored, here and in what it starts.
func notify(ch chan<- os.Signal, signals ...os.Signal) {
	for _, s := range signals {
		if !signal.Ignored(s) {
			signal.Notify(ch, s)
		}
	}
}
