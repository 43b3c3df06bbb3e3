package tests

import (
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/ebnet/ebnet/"

// Modules by the names the rules use.
const (
	ebpfModule = "github.com/cilium/ebpf"
	netlink    = "github.com/vishvananda/netlink"
	netns      = "github.com/vishvananda/netns"
	bolt       = "go.etcd.io/bbolt"
	yamlModule = "github.com/goccy/go-yaml"
	cli        = "github.com/urfave/cli/v2"
	sys        = "golang.org/x/sys"
	gopacket   = "github.com/gopacket/gopacket"
	cmp        = "github.com/google/go-cmp"
	rapid      = "pgregory.net/rapid"
	goleak     = "go.uber.org/goleak"
	testscript = "github.com/rogpeppe/go-internal"
	chromedp   = "github.com/chromedp/chromedp"
	cdproto    = "github.com/chromedp/cdproto"
	nftables   = "github.com/google/nftables"
	prometheus = "github.com/prometheus/common"
)

// rule is what a package may import besides the standard library.
type rule struct {
	why     string
	ours    []string // packages of ebnet, exactly
	outside []string // modules
	testing []string // modules that its tests may import too
}

// rules has every package of ebnet; one that is missing fails the test, so that
// a new package is placed on purpose.
var rules = map[string]rule{
	"loader": {
		why:     "the datapath stands alone: devices come as interface indices, addresses from its caller",
		ours:    []string{"loader/failpoint"},
		outside: []string{ebpfModule, sys},
	},
	"loader/netdev": {
		why:     "links and namespaces know nothing of eBPF: programs come as file descriptors",
		ours:    []string{"loader/failpoint"},
		outside: []string{netlink, netns, nftables, sys},
	},
	"loader/failpoint": {why: "what stands before every request depends on nothing"},
	"ipam": {
		why:     "addresses are pure decisions, but for the store",
		outside: []string{bolt},
	},
	"cmd/internal/trusted": {
		why:     "who may turn a path is a question of the file system alone",
		outside: []string{sys},
	},
	"cmd/internal/network": {
		why:     "the sentences of the product are the only place where the parts meet",
		ours:    []string{"loader", "loader/failpoint", "loader/netdev", "ipam", "cmd/internal/trusted"},
		outside: []string{bolt, sys, yamlModule},
	},
	"cmd/internal/bench": {
		why:     "benchmarks drive the built binary as people do, and build the peers that it is compared with",
		ours:    []string{"cmd/internal/bench/report", "loader", "loader/netdev"},
		outside: []string{ebpfModule, netlink, netns, sys},
	},
	"cmd/internal/bench/report": {
		why:     "a report is numbers and how they are shown, whatever they were measured with; its page is tested in a browser",
		testing: []string{chromedp, cdproto},
	},
	"cmd/ebnet": {
		why:     "commands are flags, a call and printing; loader and ipam are there for their sentinels",
		ours:    []string{"cmd/internal/network", "cmd/internal/bench", "cmd/internal/bench/report", "cmd/internal/trusted", "loader", "ipam"},
		outside: []string{cli, sys},
		testing: []string{prometheus}, // what is written is read by its parser; it would make each command heavier
	},
	"tests/netlab": {
		why:     "the lab drives the built binary; eBPF and the state only to see that objects are gone, and to break them",
		ours:    []string{"loader/netdev"},
		outside: []string{gopacket, ebpfModule, bolt, sys},
	},
	"tests/datapath": {
		why:     "the shipped object is run through the loader, packets and devices are made independently",
		ours:    []string{"loader"},
		outside: []string{gopacket, cmp, ebpfModule, netlink, netns, sys},
	},
	"tests/e2e": {
		why:     "acceptance tests cannot reach around the commands",
		ours:    []string{"tests/netlab"},
		outside: []string{testscript, goleak, cmp, sys},
	},
	"tests/crash": {
		why:     "what is killed are the commands as people run them",
		ours:    []string{"tests/netlab"},
		outside: []string{cmp, sys},
	},
	"tests/walk": {
		why:     "the model knows ebnet by its commands, and looks at the kernel and at what is recorded by itself",
		ours:    []string{"tests/netlab"},
		outside: []string{ebpfModule, bolt},
	},
	"tests/soak": {
		why:     "traffic beside a walk; eBPF only to count what is held",
		ours:    []string{"tests/netlab", "tests/walk"},
		outside: []string{ebpfModule},
	},
	"tests/script": {
		why:     "command scripts cannot reach around the commands",
		ours:    []string{"tests/netlab"},
		outside: []string{testscript, goleak, sys},
	},
	"tests/demo/httpd": {why: "the demo's page is served by the standard library alone"},
	"tests/report":     {why: "the report of a test run is the standard library's business"},
	"tests":            {why: "the rules need nothing that they rule"},
}

// besideCode is what every test may import in addition to what its package may.
var besideCode = []string{cmp, rapid, goleak, gopacket, sys}

// fileRules narrow a package's rule down to some of its files.
var fileRules = []struct {
	dir, module string
	files       []string
	why         string
}{
	{"ipam", bolt, []string{"bolt.go"}, "one file knows how leases are stored"},
	{"loader/netdev", nftables, []string{"nat.go"}, "one file looks at rules, and only to tell of them"},
	{"cmd/internal/network", bolt, []string{"state.go"}, "one file knows how intent is stored"},
	{"cmd/internal/network", yamlModule, []string{"config.go"}, "one file reads what people write"},
}

// never is what a package may not even depend on by way of others.
var never = []struct{ dir, module, why string }{
	{"loader", netlink, "short commands must not pay for netlink to look at a map"},
	{"loader", bolt, "the datapath has no state but the kernel's"},
	{"loader/netdev", ebpfModule, "topology must be usable and testable without eBPF"},
	{"ipam", ebpfModule, "addresses do not depend on the datapath"},
	{"ipam", netlink, "addresses do not depend on devices"},
}

// pkg is what go list tells of a package.
type pkg struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
	Deps         []string
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json"}, args...)...)
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Logf("%s", exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		pkgs = append(pkgs, p)
	}
}

// TestImports holds every package to its rule.
func TestImports(t *testing.T) {
	for _, p := range list(t, "./...") {
		dir := strings.TrimPrefix(p.ImportPath, module)
		r, ok := rules[dir]
		if !ok {
			t.Errorf("%s has no import rule: give it one in tests/deps_test.go", dir)
			continue
		}
		for _, path := range p.Imports {
			if !r.allows(path) {
				t.Errorf("%s may not import %s: %s", dir, path, r.why)
			}
		}
		for _, path := range append(p.TestImports, p.XTestImports...) {
			if !r.allows(path) && path != p.ImportPath && !inAny(path, besideCode) && !inAny(path, r.testing) {
				t.Errorf("tests of %s may not import %s: %s", dir, path, r.why)
			}
		}
	}
}

// allows reports whether code under the rule may import path.
func (r rule) allows(path string) bool {
	if ours, ok := strings.CutPrefix(path, module); ok {
		return slices.Contains(r.ours, ours)
	}
	first, _, _ := strings.Cut(path, "/")
	standard := !strings.Contains(first, ".") && path != "C"
	return standard || inAny(path, r.outside)
}

// inAny reports whether path is a package of one of the modules.
func inAny(path string, modules []string) bool {
	return slices.ContainsFunc(modules, func(m string) bool {
		return path == m || strings.HasPrefix(path, m+"/")
	})
}

// TestFileImports holds files to the rules that are narrower than a package's.
func TestFileImports(t *testing.T) {
	for _, r := range fileRules {
		files, err := filepath.Glob(filepath.Join("..", r.dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			name := filepath.Base(file)
			if strings.HasSuffix(name, "_test.go") || slices.Contains(r.files, name) {
				continue
			}
			tree, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, spec := range tree.Imports {
				path, _ := strconv.Unquote(spec.Path.Value) // the parser has checked it
				if inAny(path, []string{r.module}) {
					t.Errorf("%s/%s may not import %s, only %v: %s", r.dir, name, path, r.files, r.why)
				}
			}
		}
	}
}

// TestDependencies holds packages to what they must be free of altogether.
func TestDependencies(t *testing.T) {
	for _, n := range never {
		for _, p := range list(t, "./"+n.dir) {
			for _, path := range p.Deps {
				if inAny(path, []string{n.module}) {
					t.Errorf("%s may not depend on %s: %s", n.dir, path, n.why)
				}
			}
		}
	}
}

// TestNames keeps packages from being called after nothing.
func TestNames(t *testing.T) {
	for _, p := range list(t, "./...") {
		switch name := filepath.Base(p.ImportPath); name {
		case "utils", "util", "common", "helpers", "types", "pkg", "misc":
			t.Errorf("%s: a package called %s says nothing of what it is for", p.ImportPath, name)
		}
	}
}
