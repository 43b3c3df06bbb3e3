package datapath

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/ebnet/ebnet/loader"
)

func TestPrivilegedX(t *testing.T) {
	h := newHost(t, true)
	l, err := h.dp.Listen(loader.Wanted{Drops: true, Flows: true, Rate: 1000})
	must(t, err)
	h.expectDrop(loader.FromContainer, h.a, fromA(tcp, ack, 5001, remote, 80), "no-flow")
	establish(h, 5000)
	for {
		e, err := l.Next(time.Now().Add(100 * time.Millisecond))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		must(t, err)
		t.Logf("%+v", e)
	}
	must(t, l.Close())
	t.Log(h.dp.Drops())
	t.Log(h.dp.Usage())
}
