// Package script runs ebnet's command line by scripts, one .txtar file each.
//
// A script sees a host with one uplink and nothing connected, a lab of its own
// (package netlab), which checks at the end that nothing is left. Its commands,
// beside those of testscript:
//
//	ebnet ARG...          run ebnet in the host; it must succeed
//	fails CODE ARG...     run ebnet; it must fail with CODE, print one clear line
//	                      and at most a second one on stderr and nothing on
//	                      stdout, and change nothing
//	status CODE ARG...    run ebnet; only the exit status is checked
//	withoutbpf ARG...     run ebnet on a kernel without bpf(2); it must fail with 3
//	host COMMAND...       run a command in the host
//	netns NAME...         make network namespaces; $NAME is the full name
//	json PATH [VALUE]     the last stdout is JSON and has PATH (a.0.b; the quoted # is the
//	                      length of a list), with the value if one is given
//	jsonkeys PATH KEY...  the object at PATH has exactly these keys
//	eventually ARG...     run ebnet until it prints something, for 5 seconds
package script

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/tests/netlab"
)

// withoutBPF, as the first argument, makes the test binary run the others where the
// kernel answers bpf(2) as one that does not have it.
const withoutBPF = "without-bpf"

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == withoutBPF {
		fmt.Fprintln(os.Stderr, execWithoutBPF(os.Args[2:]))
		os.Exit(125)
	}
	os.Exit(netlab.Main(m))
}

// execWithoutBPF returns only if it fails.
func execWithoutBPF(args []string) error {
	runtime.LockOSThread()
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the system call's number
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_BPF},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0); err != nil {
		return err
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	return unix.Exec(path, args, os.Environ())
}

// TestUsage runs the scripts that need neither privileges nor a lab.
func TestUsage(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   "usage",
		Setup: func(e *testscript.Env) error { addBinary(e); return nil },
		Cmds:  map[string]func(*testscript.TestScript, bool, []string){"json": jsonCommand, "jsonkeys": jsonKeysCommand},
	})
}

func TestPrivilegedScripts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: needs root for namespaces and eBPF")
	}
	testscript.Run(t, testscript.Params{
		Dir:   ".",
		Setup: setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"ebnet":      ebnetCommand,
			"fails":      failsCommand,
			"status":     statusCommand,
			"withoutbpf": withoutBPFCommand,
			"host":       hostCommand,
			"netns":      netnsCommand,
			"json":       jsonCommand,
			"jsonkeys":   jsonKeysCommand,
			"eventually": eventuallyCommand,
		},
	})
}

// addBinary lets `exec ebnet` find the binary under test.
func addBinary(e *testscript.Env) {
	e.Setenv("PATH", filepath.Dir(netlab.Binary())+string(os.PathListSeparator)+e.Getenv("PATH"))
}

// labKey is where a script's lab is kept.
type labKey struct{}

type scriptLab struct {
	*netlab.Lab
	tb testing.TB
}

func setup(e *testscript.Env) error {
	tb, ok := e.T().(testing.TB)
	if !ok {
		return fmt.Errorf("%T is no testing.TB", e.T())
	}
	lab := netlab.New(tb)
	e.Values[labKey{}] = &scriptLab{lab, tb}
	addBinary(e)
	e.Setenv("HOST", lab.Host.Path())
	e.Setenv("EBNET_STATE", lab.Host.State)
	e.Setenv("EBNET_BPFFS", lab.Host.BPFFS)
	e.Setenv("EBNET_CGROUP", lab.Host.Cgroup)
	return nil
}

func lab(ts *testscript.TestScript) *scriptLab { return ts.Value(labKey{}).(*scriptLab) }

// show makes a result the script's last output.
func show(ts *testscript.TestScript, r netlab.Result) netlab.Result {
	_, _ = ts.Stdout().Write([]byte(r.Stdout))
	_, _ = ts.Stderr().Write([]byte(r.Stderr))
	return r
}

// environment of the program under test: what the script has set.
func environment(ts *testscript.TestScript) []string {
	var env []string
	for _, name := range []string{"EBNET_OUTPUT", "EBNET_TCX"} {
		env = append(env, name+"="+ts.Getenv(name))
	}
	return env
}

func runEbnet(ts *testscript.TestScript, args ...string) netlab.Result {
	l := lab(ts)
	return l.Host.Try(l.tb, environment(ts), l.Host.Command(args...)...)
}

func withoutBPFCommand(ts *testscript.TestScript, neg bool, args []string) {
	noNegation(ts, neg)
	self, err := os.Executable()
	ts.Check(err)
	l := lab(ts)
	r := l.Host.Try(l.tb, environment(ts), append([]string{self, withoutBPF}, l.Host.Command(args...)...)...)
	show(ts, r)
	if r.Code != 3 || r.Stdout != "" || strings.Count(r.Stderr, "\n") > 2 || !strings.HasPrefix(r.Stderr, "ebnet: ") {
		ts.Fatalf("%v", r)
	}
}

func noNegation(ts *testscript.TestScript, neg bool) {
	if neg {
		ts.Fatalf("! has no meaning here: use fails CODE or status CODE")
	}
}

func ebnetCommand(ts *testscript.TestScript, neg bool, args []string) {
	noNegation(ts, neg)
	if r := show(ts, runEbnet(ts, args...)); r.Code != 0 {
		ts.Fatalf("%v", r)
	}
}

func wantedCode(ts *testscript.TestScript, args []string) (int, []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: CODE ARG...")
	}
	code, err := strconv.Atoi(args[0])
	ts.Check(err)
	return code, args[1:]
}

func statusCommand(ts *testscript.TestScript, neg bool, args []string) {
	noNegation(ts, neg)
	code, args := wantedCode(ts, args)
	if r := show(ts, runEbnet(ts, args...)); r.Code != code {
		ts.Fatalf("want exit status %d: %v", code, r)
	}
}

func failsCommand(ts *testscript.TestScript, neg bool, args []string) {
	noNegation(ts, neg)
	code, args := wantedCode(ts, args)
	before := snapshot(ts)
	r := show(ts, runEbnet(ts, args...))
	if r.Code != code {
		ts.Fatalf("want exit status %d: %v", code, r)
	}
	if r.Stdout != "" {
		ts.Fatalf("it failed and printed on stdout: %v", r)
	}
	said := strings.Split(strings.TrimSuffix(r.Stderr, "\n"), "\n")
	if !strings.HasPrefix(said[0], "ebnet: ") || strings.Count(said[0], ": ") < 2 || len(said) > 2 {
		ts.Fatalf("not one clear line `ebnet: WHAT: WHY` and at most a way out: %v", r)
	}
	if after := snapshot(ts); !maps.Equal(before, after) {
		ts.Fatalf("it failed and changed something: before\n%v\nafter\n%v\n%v", before, after, r)
	}
}

// snapshot is all that a failing command must leave alone: what is recorded,
// the host's devices and the pins.
func snapshot(ts *testscript.TestScript) map[string]string {
	l := lab(ts)
	s := map[string]string{}
	for _, noun := range []string{"network ls", "endpoint ls", "ports"} {
		r := runEbnet(ts, append(strings.Fields(noun), "-o", "json")...)
		s[noun] = fmt.Sprint(r.Code, r.Stdout)
	}
	links := l.Host.Links(l.tb)
	for _, name := range slices.Sorted(maps.Keys(links)) {
		s["links"] += fmt.Sprintf("%s %d\n", name, links[name])
	}
	s["pins"] = strings.Join(l.Host.Pins(l.tb), "\n")
	s["state"] = "absent"
	if entries, err := os.ReadDir(l.Host.State); err == nil {
		s["state"] = fmt.Sprint(entries)
	}
	return s
}

func hostCommand(ts *testscript.TestScript, neg bool, args []string) {
	l := lab(ts)
	r := show(ts, l.Host.Try(l.tb, nil, args...))
	if (r.Code != 0) != neg {
		ts.Fatalf("%v", r)
	}
}

func netnsCommand(ts *testscript.TestScript, neg bool, args []string) {
	noNegation(ts, neg)
	l := lab(ts)
	for _, name := range args {
		ts.Setenv(name, l.Container(l.tb, name).Name)
	}
}

func eventuallyCommand(ts *testscript.TestScript, neg bool, args []string) {
	noNegation(ts, neg)
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		r := runEbnet(ts, args...)
		if r.Code == 0 && r.Stdout != "" {
			show(ts, r)
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("still: %v", r)
		}
	}
}

// jsonAt decodes the last stdout, which must be one JSON object with "v": 1,
// and walks to the path.
func jsonAt(ts *testscript.TestScript, path string) (any, error) {
	out := ts.ReadFile("stdout")
	var top map[string]any
	if err := json.Unmarshal([]byte(out), &top); err != nil {
		return nil, fmt.Errorf("no JSON object: %w\n%s", err, out)
	}
	if top["v"] != 1.0 {
		return nil, fmt.Errorf(`no "v": 1 in %s`, out)
	}
	var at any = top
	for step := range strings.SplitSeq(path, ".") {
		if path == "." || step == "" {
			continue
		}
		next, ok := jsonStep(at, step)
		if !ok {
			return nil, fmt.Errorf("no %s of %s in %s", step, path, out)
		}
		at = next
	}
	return at, nil
}

func jsonStep(at any, step string) (any, bool) {
	switch v := at.(type) {
	case map[string]any:
		next, ok := v[step]
		return next, ok
	case []any:
		if step == "#" {
			return float64(len(v)), true
		}
		i, err := strconv.Atoi(step)
		if err != nil || i < 0 || i >= len(v) {
			return nil, false
		}
		return v[i], true
	}
	return nil, false
}

func jsonCommand(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: json PATH [VALUE]")
	}
	at, err := jsonAt(ts, args[0])
	if (err != nil) != (neg && len(args) == 1) {
		ts.Fatalf("%s: %v", args[0], err)
	}
	if err != nil || len(args) == 1 {
		return
	}
	got, ok := at.(string)
	if !ok {
		b, err := json.Marshal(at)
		ts.Check(err)
		got = string(b)
	}
	if (got == args[1]) == neg {
		ts.Fatalf("%s is %s", args[0], got)
	}
}

func jsonKeysCommand(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 1 {
		ts.Fatalf("usage: jsonkeys PATH KEY...")
	}
	noNegation(ts, neg)
	at, err := jsonAt(ts, args[0])
	ts.Check(err)
	object, ok := at.(map[string]any)
	if !ok {
		ts.Fatalf("%s is no object", args[0])
	}
	want, got := slices.Sorted(slices.Values(args[1:])), slices.Sorted(maps.Keys(object))
	if !slices.Equal(want, got) {
		ts.Fatalf("keys of %s are %v, want %v", args[0], got, want)
	}
}
