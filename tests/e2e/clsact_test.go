package e2e

import (
	"testing"

	"github.com/ebnet/ebnet/tests/netlab"
)

// TestPrivilegedClsact: the core holds where the kernel has no tcx and the
// programs are clsact filters.
func TestPrivilegedClsact(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode[2:], func(t *testing.T) {
			t.Parallel()
			l := netlab.New(t)
			l.Host.Env = append(l.Host.Env, "EBNET_TCX=off")
			s := newSite(t, l, mode)
			filters := s.Host.Run(t, "tc", "filter", "show", "dev", netlab.UplinkLink, "ingress")
			if attach := s.Host.Status(t).Features.Attach; attach != "clsact" || filters == "" {
				t.Errorf("attached by %s, filters at the uplink: %q", attach, filters)
			}
			core(t, s)
			upWith(t, l, mode)
			reaches(t, s.w1.Node, "tcp", at(netlab.InternetAddr, internetPort), netlab.HostAddr)
		})
	}
}
