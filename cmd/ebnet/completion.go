package main

import (
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

// shells are those with a completion script.
var shells = []string{"bash", "zsh", "fish"}

func (p *program) completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print a completion script for a shell",
		ArgsUsage: strings.Join(shells, "|"),
		Description: describe("It completes commands, flags and the names of networks, endpoints and namespaces.",
			"source <(ebnet completion bash)",
			"ebnet completion zsh > /usr/local/share/zsh/site-functions/_ebnet",
			"ebnet completion fish > ~/.config/fish/completions/ebnet.fish"),
		Action: p.completion,
	}
}

func (p *program) completion(c *cli.Context) error {
	args, err := arguments(c, 1, 1)
	if err != nil {
		return err
	}
	leaves := completionTable(c.App)
	var script strings.Builder
	switch args[0] {
	case "bash":
		bashScript(&script, leaves)
	case "zsh":
		zshScript(&script, leaves)
	case "fish":
		fishScript(&script, leaves)
	default:
		return usage(quote(args[0]), "no completion for this shell", "known are "+strings.Join(shells, ", "))
	}
	return p.print(view{
		json: struct {
			Shell  string `json:"shell"`
			Script string `json:"script"`
		}{args[0], script.String()},
		text: func(w io.Writer) { _, _ = io.WriteString(w, script.String()) },
	})
}

// What a word on the command line may be; the scripts know how to list them.
const (
	kindNone      = "none"
	kindFile      = "file"
	kindNetwork   = "network"
	kindEndpoint  = "endpoint"
	kindNamespace = "namespace"
	kindDevice    = "device"
)

// place is a point on the command line: after nothing, "network" or "connect".
type place struct {
	path  string         // names of the commands so far, "" at the start
	words []*cli.Command // that may follow; none: it takes arguments
	args  []string       // kinds of the arguments, the last one repeats
	flags []flagEntry    // of the command
}

// flagEntry is a flag with what the scripts need of it.
type flagEntry struct {
	names []string // with their dashes
	usage string
	value string // a kind, a list of words, or "" for a boolean
}

// completionTable returns every place of the app, the start first and with the
// global flags.
func completionTable(app *cli.App) []place {
	start := place{words: app.Commands, flags: append(flagEntries(app.Flags), helpEntry())}
	return append([]place{start}, placesOf("", app.Commands)...)
}

func helpEntry() flagEntry {
	return flagEntry{names: []string{"--help", "-h"}, usage: "show help"}
}

func placesOf(parent string, commands []*cli.Command) []place {
	var out []place
	for _, c := range commands {
		path := strings.TrimSpace(parent + " " + c.Name)
		out = append(out, place{path: path, words: c.Subcommands, args: argumentKinds(c), flags: flagEntries(c.Flags)})
		out = append(out, placesOf(path, c.Subcommands)...)
	}
	return out
}

// argumentKinds reads them off the usage line, such as "ENDPOINT [SPEC...]".
func argumentKinds(c *cli.Command) []string {
	var kinds []string
	for word := range strings.FieldsSeq(c.ArgsUsage) {
		name := strings.Trim(word, "[].")
		kind := map[string]string{"NETWORK": kindNetwork, "ENDPOINT": kindEndpoint, "NETNS": kindNamespace,
			"COMMAND": kindFile, "ARG": kindFile}[name]
		switch {
		case strings.Contains(name, "|"):
			kind = strings.ReplaceAll(name, "|", " ")
		case kind == "":
			kind = kindNone
		}
		kinds = append(kinds, kind)
		if !strings.Contains(word, "...") && word == lastField(c.ArgsUsage) {
			kinds = append(kinds, kindNone)
		}
	}
	if kinds == nil {
		return []string{kindNone}
	}
	return kinds
}

func lastField(s string) string {
	fs := strings.Fields(s)
	return fs[len(fs)-1]
}

func flagEntries(flags []cli.Flag) []flagEntry {
	var out []flagEntry
	for _, f := range flags {
		if f == cli.HelpFlag {
			continue
		}
		e := flagEntry{value: valueKind(f)}
		for _, n := range f.Names() {
			dashes := "--"
			if len(n) == 1 {
				dashes = "-"
			}
			e.names = append(e.names, dashes+n)
		}
		if d, ok := f.(cli.DocGenerationFlag); ok {
			e.usage = strings.ReplaceAll(d.GetUsage(), "`", "")
		}
		out = append(out, e)
	}
	return out
}

// valueKind tells what a flag's value may be, "" for a boolean.
func valueKind(f cli.Flag) string {
	if _, ok := f.(*cli.BoolFlag); ok {
		return ""
	}
	switch f.Names()[0] {
	case "network":
		return kindNetwork
	case "endpoint":
		return kindEndpoint
	case "uplink":
		return kindDevice
	case "file", "state", "bpffs", "cgroup", "out", "output-file":
		return kindFile
	case "output":
		return "text json"
	case "format":
		return "text svg"
	case "fast-path":
		return "on off"
	case "mode":
		return "nat routed"
	case "reason":
		return strings.Join(network.DropReasons(), " ")
	case "protocol":
		return strings.Join(network.FlowProtocols, " ")
	case "in-state":
		return strings.Join(network.FlowStates, " ")
	case "kind":
		return strings.Join(network.FlowKinds, " ")
	}
	return kindNone
}

// commandNames joins the names of commands.
func commandNames(commands []*cli.Command) string {
	var names []string
	for _, c := range commands {
		names = append(names, c.Name)
	}
	return strings.Join(names, " ")
}
