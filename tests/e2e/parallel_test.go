package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ebnet/ebnet/tests/netlab"
	"golang.org/x/sys/unix"
)

// TestPrivilegedParallel: ebnet runs at the same time as other ebnets.
func TestPrivilegedParallel(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode[2:], func(t *testing.T) {
			l := netlab.New(t)
			upWith(t, l, mode)
			l.Internet.Serve(t, internetPort)
			t.Run("32 connects", func(t *testing.T) {
				var names []string
				for i := range 32 {
					names = append(names, fmt.Sprintf("p%02d", i))
				}
				containers := l.Containers(t, names...)
				l.ConnectAll(t, "default", len(containers), containers)
				fetchAll(t, containers)
			})
			t.Run("second while the first works", func(t *testing.T) { secondWaits(t, l) })
			t.Run("two ups", func(t *testing.T) {
				done := make(chan netlab.Result)
				for range 2 {
					go func() { done <- l.Host.TryEbnet(t, "up", mode) }()
				}
				for range 2 {
					if r := <-done; r.Code != 0 {
						t.Error(r)
					}
				}
			})
		})
	}
}

// secondWaits takes the place of an ebnet that is at work, by its lock: the
// next one waits until it is done, or says that there is a conflict.
func secondWaits(t *testing.T, l *netlab.Lab) {
	lock, err := os.OpenFile(filepath.Join(l.Host.State, "lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	done := make(chan netlab.Result, 1)
	go func() { done <- l.Host.TryEbnet(t, "network", "create", "second") }()
	select {
	case r := <-done:
		if r.Code != 4 || r.Stderr == "" {
			t.Errorf("want it to wait, or exit status 4 and a reason: %v", r)
		}
		return
	case <-time.After(blocked):
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if r := <-done; r.Code != 0 {
		t.Error(r)
	}
	l.Host.Network(t, "second")
}
