package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// shellTables are the parts of the bash and zsh scripts that come from the
// command table: branches of case statements over "$path" or "$path $flag".
type shellTables struct {
	descend string // places that have a path
	words   string // what may follow a place
	flags   string // its flags
	kinds   string // kind of the argument number $n
	values  string // flag → kind of its value
}

func tablesOf(places []place) shellTables {
	var t shellTables
	var paths, values []string
	for _, pl := range places {
		if pl.path != "" {
			paths = append(paths, `"`+pl.path+`"`)
		}
		if len(pl.words) > 0 {
			t.words += fmt.Sprintf("        %q) words=%q ;;\n", pl.path, commandNames(pl.words))
		}
		var names []string
		for _, f := range pl.flags {
			names = append(names, f.names...)
			if v := fmt.Sprintf("        %s) kind=%q ;;\n", strings.Join(f.names, "|"), f.value); f.value != "" && !slices.Contains(values, v) {
				values = append(values, v)
			}
		}
		t.flags += fmt.Sprintf("        %q) flags=%q ;;\n", pl.path, strings.Join(names, " "))
		for i, kind := range pl.args {
			number := fmt.Sprint(i)
			if i == len(pl.args)-1 {
				number = "*"
			}
			t.kinds += fmt.Sprintf("        %q/%s) kind=%q ;;\n", pl.path, number, kind)
		}
	}
	t.descend = strings.Join(paths, "|")
	t.values = strings.Join(values, "")
	return t
}

// shellBody walks the words before the cursor. It is the same for bash and zsh;
// %[1]s is the array of words, %[2]s the index of the first one after the
// program's name, %[3]s that of the one at the cursor.
const shellBody = `    local path="" n=0 i word kind="" words="" flags="" want="" rest=""
    for ((i = %[2]s; i < %[3]s; i++)); do
        word=${%[1]s[i]}
        if [[ -n $rest ]]; then
            ((n += 1))
            continue
        fi
        if [[ -n $want ]]; then # the value of a flag; bash cuts --flag=value at the =
            [[ $word == "=" ]] || want=""
            continue
        fi
        case $word in
        --) rest=1 ;;
        -*=*) ;;
        -*) _ebnet_value "$word" && want=$word ;;
        *)
            case "${path:+$path }$word" in
            %[4]s) path="${path:+$path }$word" ;;
            *)
                ((n += 1))
                [[ $path != run ]] || rest=1
                ;;
            esac
            ;;
        esac
    done
`

const shellHelpers = `# _ebnet_value sets kind to what the value of a flag may be; a boolean has none.
_ebnet_value() {
    case $1 in
%[1]s        *) return 1 ;;
    esac
}

# _ebnet_list prints the words of a kind, one a line.
_ebnet_list() {
    case $1 in
    none) ;;
    network|endpoint) ebnet "$1" ls 2>/dev/null | while read -r name more; do [[ $name == NAME ]] || printf '%%s\n' "$name"; done ;;
    namespace) ls /run/netns 2>/dev/null ;;
    device) ls /sys/class/net 2>/dev/null ;;
    *) printf '%%s\n' "$1" | tr ' ' '\n' ;;
    esac
}

`

// shellLookup sets words, flags and kind for the place that was found.
const shellLookup = `    case $path in
%[1]s    esac
    case $path in
%[2]s    esac
    case $path/$n in
%[3]s    esac
`

func bashScript(w io.Writer, places []place) {
	t := tablesOf(places)
	_, _ = fmt.Fprintf(w, "# bash completion for ebnet, made by `ebnet completion bash`.\n\n"+shellHelpers+"_ebnet() {\n", t.values)
	_, _ = io.WriteString(w, "    local cur=${COMP_WORDS[COMP_CWORD]}\n    COMPREPLY=()\n    [[ $cur != \"=\" ]] || cur=\"\"\n")
	_, _ = fmt.Fprintf(w, shellBody, "COMP_WORDS", "1", "COMP_CWORD", t.descend)
	_, _ = fmt.Fprintf(w, shellLookup, t.words, t.flags, t.kinds)
	_, _ = io.WriteString(w, `    if [[ -n $want ]]; then
        _ebnet_value "$want"
    elif [[ -z $rest && $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$flags `+globalNames(places)+`" -- "$cur")
        return
    elif [[ -n $words ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
        return
    fi
    if [[ $kind == file ]]; then
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        compopt -o filenames 2>/dev/null
        return
    fi
    mapfile -t COMPREPLY < <(compgen -W "$(_ebnet_list "$kind")" -- "$cur")
}

complete -F _ebnet ebnet
`)
}

func zshScript(w io.Writer, places []place) {
	t := tablesOf(places)
	_, _ = fmt.Fprintf(w, "#compdef ebnet\n# zsh completion for ebnet, made by `ebnet completion zsh`.\n\n"+shellHelpers+"_ebnet() {\n", t.values)
	// words is zsh's array of what was typed; path is tied to PATH.
	_, _ = io.WriteString(w, "    local -a typed=(\"${words[@]}\")\n    local cur=${typed[CURRENT]}\n")
	body := fmt.Sprintf(shellBody, "typed", "2", "CURRENT", t.descend) + fmt.Sprintf(shellLookup, t.words, t.flags, t.kinds)
	_, _ = io.WriteString(w, zshNames(body))
	_, _ = io.WriteString(w, `    if [[ -n $want ]]; then
        _ebnet_value "$want"
    elif [[ -z $rest && $cur == -* ]]; then
        compadd -- ${=flags} `+globalNames(places)+`
        return
    elif [[ -n $follow ]]; then
        compadd -- ${=follow}
        return
    fi
    if [[ $kind == file ]]; then
        _files
        return
    fi
    compadd -- ${(f)"$(_ebnet_list "$kind")"}
}

if [[ ${funcstack[1]} == _ebnet ]]; then
    _ebnet "$@"
else
    compdef _ebnet ebnet
fi
`)
}

// zshNames renames the variables that mean something to zsh.
func zshNames(body string) string {
	return strings.NewReplacer("${path:", "${at:", "$path", "$at", "path=", "at=", `words=`, `follow=`).Replace(body)
}

func globalNames(places []place) string {
	var names []string
	for _, f := range places[0].flags {
		names = append(names, f.names...)
	}
	return strings.Join(names, " ")
}
