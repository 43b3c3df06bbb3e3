package e2e

import (
	"testing"

	"github.com/ebnet/ebnet/tests/netlab"
)

// TestPrivilegedFirewall: ebnet writes no packet filter rule and needs none;
// a host that drops all it would forward changes nothing. That there are no
// rules without the policy is checked by every lab.
func TestPrivilegedFirewall(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode[2:], func(t *testing.T) {
			t.Parallel()
			l := netlab.New(t)
			if rules := l.Host.Rules(t); rules != "" {
				t.Fatalf("the lab starts with rules:\n%s", rules)
			}
			l.DropForwarded(t)
			s := newSite(t, l, mode)
			core(t, s)
			l.CheckRules(t)
			l.Host.Ebnet(t, "down")
			l.CheckRules(t)
		})
	}
}
