package e2e

import (
	"fmt"
	"sync"
	"testing"

	"github.com/ebnet/ebnet/tests/netlab"
)

// TestPrivilegedManyContainers: 200 containers get an address each and all
// reach the internet; a purge leaves nothing of them.
func TestPrivilegedManyContainers(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode[2:], func(t *testing.T) {
			l := netlab.New(t)
			upWith(t, l, mode)
			l.Internet.Serve(t, internetPort)
			var names []string
			for i := range 200 {
				names = append(names, fmt.Sprintf("c%03d", i))
			}
			containers := l.Containers(t, names...)
			l.ConnectAll(t, "default", 4, containers)
			fetchAll(t, containers)
			l.Host.Ebnet(t, "down", "--purge")
			l.CheckGone(t)
			for _, c := range containers {
				if links := c.Links(t); len(links) != 1 {
					t.Errorf("%s has the links %v after the purge, want lo alone", c.Name, links)
				}
			}
		})
	}
}

// fetchAll has all containers at once reach the internet.
func fetchAll(t *testing.T, containers []*netlab.Container) {
	t.Helper()
	var wg sync.WaitGroup
	for _, c := range containers {
		wg.Go(func() {
			for _, p := range protocols {
				reaches(t, c.Node, p, at(netlab.InternetAddr, internetPort), netlab.HostAddr)
			}
		})
	}
	wg.Wait()
}
