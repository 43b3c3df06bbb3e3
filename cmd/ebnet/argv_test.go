package main

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"

	"github.com/ebnet/ebnet/cmd/internal/network"
)

func testProgram() *program {
	return &program{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard,
		getenv: func(string) string { return "" }}
}

// join with "|" keeps the words apart in the tables below.
func words(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, "|")
}

func TestParseCommandLine(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"nothing", "", ""},
		{"flag after arguments", "connect|default|web|--name|w1", "connect|--name=w1|--|default|web"},
		{"flag between", "connect|default|--name|w1|web", "connect|--name=w1|--|default|web"},
		{"flag before", "connect|--name=w1|default|web", "connect|--name=w1|--|default|web"},
		{"global flag last", "ports|-o|json", "--output=json|ports"},
		{"global flag first", "-o|json|ports", "--output=json|ports"},
		{"global flag between commands", "network|-o|json|ls", "--output=json|network|ls"},
		{"short with equals", "ports|-o=json", "--output=json|ports"},
		{"short attached", "ports|-ojson", "--output=json|ports"},
		{"alias becomes the name", "up|-f|x.yaml", "up|--file=x.yaml"},
		{"repeated", "connect|n|s|-p|80:80|-p=81:81|-p82:82|--publish|83",
			"connect|--publish=80:80|--publish=81:81|--publish=82:82|--publish=83|--|n|s"},
		{"value with equals", "network|create|n|--label|a=b=c", "network|create|--label=a=b=c|--|n"},
		{"value with comma", "network|create|n|--label=a=b,c", "network|create|--label=a=b,c|--|n"},
		{"boolean", "down|--purge", "down|--purge=true"},
		{"boolean false", "down|--purge=false", "down|--purge=false"},
		{"boolean takes no next word", "network|rm|--force|web", "network|rm|--force=true|--|web"},
		{"value starts with a dash", "connect|n|s|-p|-9090:80", "connect|--publish=-9090:80|--|n|s"},
		{"value looks like a flag", "connect|n|s|--name|--verbose", "connect|--name=--verbose|--|n|s"},
		{"negative number", "up|--max-flows|-1", "up|--max-flows=-1"},
		{"argument starts with a dash", "expose|web|-9090:80", "expose|--|web|-9090:80"},
		{"dash alone", "expose|web|-", "expose|--|web|-"},
		{"end of flags", "expose|--|web|--from", "expose|--|web|--from"},
		{"end of flags twice", "expose|--|web|--", "expose|--|web|--"},
		{"end of flags before the command", "--|expose|web|--from", "expose|--|web|--from"},
		{"argument called help", "network|inspect|--|help", "network|inspect|--|help"},
		{"argument called help without dashes", "network|inspect|help", "network|inspect|--|help"},
		{"run", "run|-p|80|--|nc|-l|80", "run|--publish=80|--|nc|-l|80"},
		{"run without dashes", "run|--name|w|nc|-l|-p|80|-o|json", "run|--name=w|--|nc|-l|-p|80|-o|json"},
		{"run keeps later dashes", "run|sh|--|-c", "run|--|sh|--|-c"},
		{"run a flag", "run|--|--help", "run|--|--help"},
		{"run is an argument elsewhere", "disconnect|run|-o|json", "--output=json|disconnect|--|run"},
		{"help flag", "connect|default|-h", "connect|--help"},
		{"help command", "help|network|create", "network|create|--help"},
		{"help alone", "help", "--help"},
		{"help after group", "network|help", "network|--help"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			line, err := parseCommandLine(testProgram().app(), words(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(words(tt.want), line.argv("ebnet")[1:], cmp.Transformer("empty", emptyIsNil)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func emptyIsNil(s []string) []string {
	if len(s) == 0 {
		return nil
	}
	return s
}

func TestParseCommandLineRefuses(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"unknown command", "conect|a|b", "conect: unknown command"},
		{"unknown subcommand", "network|list", "network list: unknown command"},
		{"unknown flag", "ports|--frob", "--frob: unknown flag"},
		{"unknown short flag", "ports|-x", "-x: unknown flag"},
		{"flag of another command", "ports|--purge", "--purge: unknown flag"},
		{"command's flag before the command", "--purge|down", "--purge: unknown flag"},
		{"long flag with one dash", "ports|-output|json", "-output: unknown flag"},
		{"short flag with two dashes", "ports|--o|json", "--o: unknown flag"},
		{"no value", "connect|n|s|--name", "--name: needs a value"},
		{"no value before the end of flags", "run|--name|--|sh", "--name: needs a value"},
		{"empty value", "connect|n|s|--name=", "--name: the value is empty"},
		{"boolean with a value", "down|--purge=maybe", `--purge: "maybe" is neither true nor false`},
		{"no number", "up|--max-flows|many", `--max-flows: "many" is not a number`},
		{"number too large", "up|--max-flows=99999999999999999999", `--max-flows: "99999999999999999999" is not a number`},
		{"three dashes", "ports|---output=json", "---output: unknown flag"},
		{"the first fault counts", "ports|--frob|--purge", "--frob: unknown flag"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseCommandLine(testProgram().app(), words(tt.in))
			if err == nil {
				t.Fatal("no error")
			}
			if err.Error() != tt.want {
				t.Errorf("got %q, want %q", err, tt.want)
			}
			if code := exitCode(err); code != 2 {
				t.Errorf("exit status %d, want 2", code)
			}
		})
	}
}

// The global flags count even behind a fault: they say how to report it.
func TestGlobalFlagsBehindAFault(t *testing.T) {
	line, err := parseCommandLine(testProgram().app(), words("nonsense|--frob|-o|json"))
	if err == nil {
		t.Fatal("no error")
	}
	if got, _ := line.lastGlobal("output"); got != "json" {
		t.Errorf("output %q, want json", got)
	}
}

// The parser tells flags apart by name alone, so no two of them may share one.
func TestFlagTable(t *testing.T) {
	p := testProgram()
	app := p.app()
	global := map[string]bool{}
	for _, f := range app.Flags {
		for _, n := range f.Names() {
			global[n] = true
		}
	}
	var check func(c *cli.Command)
	check = func(c *cli.Command) {
		if len(c.Subcommands) > 0 && len(c.Flags) > 0 {
			t.Errorf("%s: a command with subcommands has flags of its own", c.Name)
		}
		if len(c.Subcommands) == 0 && !strings.Contains(c.Description, "Example") {
			t.Errorf("%s: its help has no example", c.Name)
		}
		seen := map[string]bool{}
		for _, f := range c.Flags {
			for _, n := range f.Names() {
				if global[n] || seen[n] {
					t.Errorf("%s: flag %s twice", c.Name, n)
				}
				seen[n] = true
			}
			switch f.(type) {
			case *cli.BoolFlag, *cli.IntFlag, *cli.Float64Flag, *cli.DurationFlag, *cli.StringFlag, *cli.StringSliceFlag:
			default:
				t.Errorf("%s: flag %s is of a type that checkValue does not know", c.Name, f.Names()[0])
			}
		}
		for _, s := range c.Subcommands {
			check(s)
		}
	}
	for _, c := range app.Commands {
		check(c)
	}
}

func TestClosest(t *testing.T) {
	names := []string{"up", "down", "connect", "expose"}
	for word, want := range map[string]string{"conect": "connect", "donw": "down", "exopse": "expose", "x": "", "frobnicate": "", "": ""} {
		if got := closest(word, names); got != want {
			t.Errorf("closest(%q) = %q, want %q", word, got, want)
		}
	}
}

func FuzzParseCommandLine(f *testing.F) {
	for _, seed := range []string{
		"connect|default|web|--name|w1|-p|80:80", "run|-p|80|--|sh|-c|true", "-ojson|network|ls", "expose|web|-9090:80",
		"--|up|--", "help|network", "up|--fast-path=off|--max-flows|7", "down|--purge=false|-h", "---|-|--=|-=",
	} {
		f.Add(seed)
	}
	app := testProgram().app()
	f.Fuzz(func(t *testing.T, in string) {
		typed := words(in)
		for _, command := range []string{"expose", runName} {
			line, err := parseCommandLine(app, append([]string{command, "--"}, typed...))
			if err != nil || !slices.Equal(line.args, typed) {
				t.Fatalf("%s: %q after -- became %q, %v", command, typed, line.args, err)
			}
		}
		line, err := parseCommandLine(app, typed)
		if err != nil {
			if !errors.Is(err, network.ErrInvalid) {
				t.Fatalf("%v is not of kind ErrInvalid", err)
			}
			return
		}
		// What is handed to the cli package means the same when it is read again.
		again, err := parseCommandLine(app, line.argv("ebnet")[1:])
		if err != nil {
			t.Fatalf("%q: read again: %v", line.argv("ebnet"), err)
		}
		if got, want := again.argv("ebnet"), line.argv("ebnet"); !slices.Equal(got, want) {
			t.Fatalf("%q became %q", want, got)
		}
	})
}
