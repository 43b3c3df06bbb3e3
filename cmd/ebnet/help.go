package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// The help of the app and of its commands; the cli package fills them in.
const (
	appHelp = `{{.Name}}: {{.Usage}}

Usage:
   {{wrap .UsageText 3}}

Commands:{{range .VisibleCommands}}
   {{.Name}}{{"\t"}}{{.Usage}}{{end}}

Global flags:{{range .VisibleFlags}}
   {{.}}{{end}}

Exit status: 0 done, 1 failed, 2 wrong usage or value, 3 this kernel or these
privileges cannot, 4 conflict, 5 not found.
` + "`{{.Name}} COMMAND --help` shows a command with examples.\n"

	commandHelp = `{{.HelpName}}: {{.Usage}}

Usage:
   {{.HelpName}}{{if .VisibleCommands}} COMMAND{{end}}{{if .VisibleFlags}} [flags]{{end}}{{if .ArgsUsage}} {{.ArgsUsage}}{{end}}
{{if .VisibleCommands}}
Commands:{{range .VisibleCommands}}
   {{.Name}}{{"\t"}}{{.Usage}}{{end}}
{{end}}{{if .Description}}
{{.Description}}
{{end}}{{if .VisibleFlags}}
Flags:{{range .VisibleFlags}}
   {{.}}{{end}}
{{end}}
Global flags: see ebnet --help.
`
)

// describe is a command's description: what it does and how it is used.
func describe(text string, examples ...string) string {
	head := "Example:"
	if len(examples) > 1 {
		head = "Examples:"
	}
	return text + "\n\n" + head + "\n   " + strings.Join(examples, "\n   ")
}

func init() { cli.FlagStringer = flagLine }

// flagLine is a flag's line in a help: its names and, in the next column, what
// it is for.
func flagLine(f cli.Flag) string {
	d, ok := f.(cli.DocGenerationFlag)
	if !ok {
		return ""
	}
	var names []string
	for _, n := range f.Names() {
		if len(n) == 1 {
			names = append([]string{"-" + n}, names...)
		} else {
			names = append(names, "--"+n)
		}
	}
	line, usage := strings.Join(names, ", "), d.GetUsage()
	if parts := strings.SplitN(usage, "`", 3); d.TakesValue() && len(parts) == 3 {
		line += " " + parts[1]
		usage = strings.Join(parts, "")
	}
	line += "\t" + usage
	if d.TakesValue() && d.GetDefaultText() != "" {
		line += " (default: " + d.GetDefaultText() + ")"
	}
	return line
}
