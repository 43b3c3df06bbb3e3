//go:build failpoint

package failpoint

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// plan is what EBNET_FAILPOINT asks for.
type plan struct {
	list       *os.File // nil: none
	fail, kill int      // 0: never
}

var (
	mu      sync.Mutex
	reached int
	wanted  = sync.OnceValue(func() plan {
		p, err := parse(os.Getenv("EBNET_FAILPOINT"))
		if err != nil {
			fmt.Fprintln(os.Stderr, "EBNET_FAILPOINT:", err)
			os.Exit(2)
		}
		return p
	})
)

func parse(text string) (p plan, err error) {
	for order := range strings.SplitSeq(text, ",") {
		verb, argument, _ := strings.Cut(order, ":")
		switch {
		case order == "":
		case verb == "list":
			p.list, err = os.OpenFile(argument, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		case verb == "fail":
			p.fail, err = strconv.Atoi(argument)
		case verb == "kill":
			p.kill, err = strconv.Atoi(argument)
		default:
			err = fmt.Errorf("unknown order %q", order)
		}
		if err != nil {
			return plan{}, err
		}
	}
	return p, nil
}

// Reach returns the error that is to happen here; nil in a normal build. point says
// what comes next, of what it is done to.
func Reach(point, of string) error {
	p := wanted()
	mu.Lock()
	defer mu.Unlock()
	reached++
	of, _, _ = strings.Cut(of, ":") // what a step is done to
	if strings.HasPrefix(of, "/") {
		of = filepath.Base(of)
	}
	name := strings.TrimSpace(point + " " + of)
	if p.list != nil {
		fmt.Fprintln(p.list, name)
	}
	if reached == p.kill {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way
	}
	if reached == p.fail {
		return fmt.Errorf("fail-point %d (%s)", reached, name)
	}
	return nil
}

// Do carries a request out, unless it is to fail; see [Reach].
func Do(point, of string, request func() error) error {
	if err := Reach(point, of); err != nil {
		return err
	}
	return request()
}
