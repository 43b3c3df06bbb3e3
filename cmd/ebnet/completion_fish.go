package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

func fishScript(w io.Writer, places []place) {
	_, _ = io.WriteString(w, fishHelpers(places)+"complete -c ebnet -f\n")
	for _, pl := range places {
		condition := fishQuote("__ebnet_at " + fishQuote(pl.path))
		for _, c := range pl.words {
			_, _ = fmt.Fprintf(w, "complete -c ebnet -f -n %s -a %s -d %s\n", condition, c.Name, fishQuote(c.Usage))
		}
		for i, kind := range pl.args {
			if kind == kindNone || len(pl.words) > 0 {
				continue
			}
			condition := fishQuote(fmt.Sprintf("__ebnet_at %s %d %d", fishQuote(pl.path), i, len(pl.args)-1))
			if kind == kindFile {
				_, _ = fmt.Fprintf(w, "complete -c ebnet -F -n %s\n", condition)
				continue
			}
			_, _ = fmt.Fprintf(w, "complete -c ebnet -f -n %s -a %s\n", condition, fishQuote("(__ebnet_list "+fishQuote(kind)+")"))
		}
		for _, f := range pl.flags {
			scope := " -n " + condition
			if pl.path == "" {
				scope = ""
			}
			_, _ = fmt.Fprintf(w, "complete -c ebnet%s%s\n", scope, fishFlag(f))
		}
	}
}

func fishHelpers(places []place) string {
	var paths, valued []string
	for _, pl := range places {
		if pl.path != "" {
			paths = append(paths, fishQuote(pl.path))
		}
		for _, f := range pl.flags {
			if f.value != "" {
				valued = append(valued, f.names...)
			}
		}
	}
	slices.Sort(valued)
	return `# fish completion for ebnet, made by ` + "`ebnet completion fish`" + `.

# __ebnet_at PATH [N LAST]: are the words so far the command PATH, and is the word
# at the cursor its argument number N (or a later one, where N is LAST)?
function __ebnet_at
    set -l path
    set -l n 0
    set -l skip 0
    set -l words (commandline -opc)
    for word in $words[2..-1]
        if test $skip = 1
            set skip 0
            continue
        end
        if contains -- $word ` + strings.Join(slices.Compact(valued), " ") + `
            set skip 1
        else if string match -q -- '-*' $word
            continue
        else if contains -- (string trim "$path $word") ` + strings.Join(paths, " ") + `
            set path $path $word
        else
            set n (math $n + 1)
        end
    end
    test "$path" = "$argv[1]"; or return 1
    if test (count $argv) = 1
        return 0
    end
    test $n = $argv[2]; or test $argv[2] = $argv[3] -a $n -gt $argv[2]
end

# __ebnet_list prints the words of a kind, one a line.
function __ebnet_list
    switch $argv[1]
        case network endpoint
            ebnet $argv[1] ls 2>/dev/null | string match -v -r '^NAME ' | string replace -r ' .*' ''
        case namespace
            command ls /run/netns 2>/dev/null
        case device
            command ls /sys/class/net 2>/dev/null
        case '*'
            string split ' ' -- $argv[1]
    end
end

`
}

func fishFlag(f flagEntry) string {
	var out strings.Builder
	for _, n := range f.names {
		if long, ok := strings.CutPrefix(n, "--"); ok {
			out.WriteString(" -l " + long)
		} else {
			out.WriteString(" -s " + n[1:])
		}
	}
	switch f.value {
	case "":
	case kindFile:
		out.WriteString(" -r")
	case kindNone:
		out.WriteString(" -x")
	default:
		out.WriteString(" -x -a " + fishQuote("(__ebnet_list "+fishQuote(f.value)+")"))
	}
	return out.String() + " -d " + fishQuote(f.usage)
}

// fishQuote is fish's single quotes, which nest.
func fishQuote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}
