package e2e

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"github.com/ebnet/ebnet/tests/netlab"
)

// TestPrivilegedSharedPorts: conversations that differ in nothing that the
// server can see but the port get one of their own each.
func TestPrivilegedSharedPorts(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		server := at(netlab.InternetAddr, internetPort)
		t.Run("same source port", func(t *testing.T) {
			sameSourcePort(t, s, server)
		})
		t.Run("same source port udp", func(t *testing.T) {
			seen := make(map[netip.AddrPort]bool)
			for range 2 { // the second time along the flows of the first
				for _, w := range []*netlab.Container{s.w1, s.w2} {
					peer, err := w.WhoFrom("udp", at(w.Addr, 40001), server, works)
					if err != nil {
						t.Fatal(err)
					}
					seen[peer] = true
				}
			}
			if len(seen) != 2 {
				t.Errorf("two udp conversations are seen to come from %v, want two", seen)
			}
		})
		t.Run("500 connections", func(t *testing.T) {
			manyConnections(t, s.internet, server, 500, s.w1.Node)
		})
		t.Run("the host's own among them", func(t *testing.T) {
			manyConnections(t, s.internet, server, 300, s.w1.Node, s.w2.Node, s.Host.Node)
		})
	})
}

func sameSourcePort(t *testing.T, s *site, server netip.AddrPort) {
	first := s.internet.Hits()
	var echoes []*netlab.Echo
	for _, w := range []*netlab.Container{s.w1, s.w2} {
		e, err := w.DialEcho(at(w.Addr, 40000), server)
		if err != nil {
			t.Fatalf("%s from port 40000: %v", w.Name, err)
		}
		defer e.Close()
		echoes = append(echoes, e)
	}
	for round := range 10 {
		for i, e := range echoes {
			if err := e.Say(fmt.Sprintf("container %d, round %d", i, round)); err != nil {
				t.Fatalf("container %d, round %d: %v", i, round, err)
			}
		}
	}
	distinct(t, s.internet.Peers()[first:], 2)
}

// manyConnections opens n connections at once, from the nodes in turn, and
// keeps them until each has been used while all the others were open.
func manyConnections(t *testing.T, service *netlab.Service, server netip.AddrPort, n int, from ...*netlab.Node) {
	t.Helper()
	first := service.Hits()
	echoes := make([]*netlab.Echo, n)
	each := func(f func(i int) error) {
		t.Helper()
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				if err := f(i); err != nil {
					t.Errorf("connection %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			t.FailNow()
		}
	}
	defer func() {
		for _, e := range echoes {
			if e != nil {
				e.Close()
			}
		}
	}()
	each(func(i int) (err error) {
		echoes[i], err = from[i%len(from)].DialEcho(netip.AddrPort{}, server)
		return err
	})
	for round := range 3 {
		each(func(i int) error { return echoes[i].Say(fmt.Sprintf("connection %d, round %d", i, round)) })
	}
	distinct(t, service.Peers()[first:], n)
}

// distinct checks that n peers were seen, all with the host's address and no
// two with the same port.
func distinct(t *testing.T, peers []netip.AddrPort, n int) {
	t.Helper()
	seen := make(map[netip.AddrPort]bool)
	for _, p := range peers {
		if p.Addr() != netlab.HostAddr {
			t.Errorf("connection seen to come from %v, want %v", p, netlab.HostAddr)
		}
		seen[p] = true
	}
	if len(seen) != n || len(peers) != n {
		t.Errorf("the server saw %d connections from %d ports, want %d", len(peers), len(seen), n)
	}
}
