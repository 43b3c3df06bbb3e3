package netlab

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

var (
	underTest string // the ebnet under test, set by Main
	builds    string // where others are built
)

// tools are what the labs call; all are in Debian packages that
// tests/install-deps.sh knows.
var tools = []string{"ip", "tc", "nft", "iptables", "iptables-save", "ethtool", "ping"}

// Main runs the tests of a package that uses labs and returns the exit status:
//
//	func TestMain(m *testing.M) { os.Exit(netlab.Main(m)) }
//
// It builds ebnet once into a temporary directory, or takes the binary that
// EBNET_BIN names.
func Main(m *testing.M) int {
	flag.Parse()
	if os.Geteuid() == 0 {
		sweep()
	}
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-bin-", prefix, os.Getpid()))
	if err != nil {
		fmt.Fprintln(os.Stderr, "netlab:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	builds = dir
	if path := os.Getenv("EBNET_BIN"); path != "" {
		abs, err := filepath.Abs(path)
		if err != nil {
			fmt.Fprintln(os.Stderr, "netlab: EBNET_BIN:", err)
			return 1
		}
		underTest = abs
		return m.Run()
	}
	underTest = filepath.Join(dir, "ebnet")
	if err := build(underTest, ""); err != nil {
		fmt.Fprintln(os.Stderr, "netlab: build ebnet:", err)
		return 1
	}
	return m.Run()
}

func build(path, tags string) error {
	cmd := exec.Command("go", "build", "-buildvcs=false", "-tags", tags, "-o", path, "github.com/ebnet/ebnet/cmd/ebnet")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return cmd.Run()
}

// FailpointBinary builds the ebnet that obeys EBNET_FAILPOINT, see package failpoint, and
// returns its path. It goes with the test.
func FailpointBinary(tb testing.TB) string {
	tb.Helper()
	need(tb)
	path := filepath.Join(tb.TempDir(), "ebnet")
	if err := build(path, "failpoint"); err != nil {
		tb.Fatalf("build ebnet with fail-points: %v", err)
	}
	return path
}

// Binary is the path of the ebnet under test.
func Binary() string { return underTest }

// need skips the test for want of privileges, which a run as root never does,
// and fails it for want of a tool.
func need(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: namespaces and eBPF")
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			tb.Fatalf("%s is not installed: run tests/install-deps.sh test", tool)
		}
	}
	if underTest == "" {
		tb.Fatal("netlab.Main was not called by TestMain")
	}
}
