package network

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/ebnet/ebnet/loader/netdev"
)

// Sandbox is a nameless network namespace for `ebnet run`: it lives as long as
// this process or a process started in it.
type Sandbox struct{ file *os.File }

// NewSandbox creates a namespace. The caller closes it.
//
// Returns ErrUnsupported without the privileges.
func NewSandbox() (*Sandbox, error) {
	type result struct {
		file *os.File
		err  error
	}
	made := make(chan result)
	go func() {
		// The thread is in the new namespace for good: it ends with the goroutine,
		// since that never unlocks it.
		runtime.LockOSThread()
		if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
			made <- result{err: os.NewSyscallError("unshare", err)}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		made <- result{f, err}
	}()
	r := <-made
	if r.err != nil {
		e := fileError("network namespace", r.err)
		if name := missing(effective(), capSysAdmin); name != "" {
			e = unsupported("network namespace", "it cannot be made; %s is missing", name).hint("run as root, or with the capabilities that docs/privileges.md lists")
		}
		return nil, e
	}
	return &Sandbox{r.file}, nil
}

// Path is a path to the namespace, good for ConnectRequest.NetNS in any process
// until Close.
func (s *Sandbox) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.file.Fd()) }

// Start starts cmd in the namespace. Its error is that of cmd.Start, or an Error.
func (s *Sandbox) Start(cmd *exec.Cmd) error {
	ns, err := netdev.OpenNS(s.Path())
	if err != nil {
		return explain(err)
	}
	defer ns.Close()
	return netdev.Do(ns, cmd.Start)
}

// Close lets go of the namespace.
func (s *Sandbox) Close() error { return s.file.Close() }
