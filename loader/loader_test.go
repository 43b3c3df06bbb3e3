package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

func TestExplain(t *testing.T) {
	for err, want := range map[error]error{
		unix.ENOSYS:                         ErrUnsupported,
		ebpf.ErrNotSupported:                ErrUnsupported,
		&ebpf.VerifierError{}:               ErrUnsupported,
		ebpf.ErrMapIncompatible:             ErrConflict,
		unix.EPERM:                          ErrPermission,
		unix.EACCES:                         ErrPermission,
		fmt.Errorf("x: %w", os.ErrNotExist): os.ErrNotExist,
	} {
		if got := explain(err); !errors.Is(got, want) || !errors.Is(got, err) {
			t.Errorf("%v became %v, want also %v", err, got, want)
		}
	}
}

func TestEveryDropReasonHasAName(t *testing.T) {
	seen := map[string]bool{}
	for i, name := range reasons {
		if i > 0 && (name == "" || seen[name]) {
			t.Errorf("reason %d is called %q", i, name)
		}
		seen[name] = true
	}
}

func TestTimeoutsThereAndBack(t *testing.T) {
	if got := timeoutsOf(DefaultTimeouts.seconds()); got != DefaultTimeouts {
		t.Errorf("%v became %v", DefaultTimeouts, got)
	}
}

func TestObjectNames(t *testing.T) {
	spec, err := loadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		if spec.Programs[string(p)] == nil || len(p) > 15 {
			t.Errorf("program %q: not in the object, or too long a name for the kernel", p)
		}
	}
	if len(spec.Programs) != len(programs) {
		t.Errorf("%d programs in the object, %d are pinned", len(spec.Programs), len(programs))
	}
}

func TestAddr(t *testing.T) {
	for _, s := range []string{"172.18.0.2", "0.0.0.0", "2001:db8::1"} {
		a := netip.MustParseAddr(s)
		if back := fromAddr(toAddr(a)); back != a {
			t.Errorf("%v became %v", a, back)
		}
	}
	if fromAddr(toAddr(netip.Addr{})).IsValid() {
		t.Error("no address became one")
	}
	if bigEndian(bigEndian(8080)) != 8080 {
		t.Error("port 8080 became another")
	}
}

func TestPortSet(t *testing.T) {
	var s PortSet
	s.Add(60, 10)
	s.Remove(65, 1)
	s.Add(65535, 5) // ends where ports end
	for port, want := range map[uint16]bool{59: false, 60: true, 63: true, 64: true, 65: false, 69: true, 70: false, 65535: true} {
		if s.Has(port) != want {
			t.Errorf("port %d: %v", port, s.Has(port))
		}
	}
}

func TestLinkNames(t *testing.T) {
	l := layoutOf("/x")
	at := Attachment{Hook: FromContainer, Ifindex: 42}
	if l.link(at.Hook, at.Ifindex) != "/x/v2/links/from_container-42" {
		t.Error(l.link(at.Hook, at.Ifindex))
	}
	if got, ok := parseLink("from_container-42"); !ok || got != at {
		t.Error(got, ok)
	}
	for _, bad := range []string{"", "from_container", "from_container-", "from_container-0", "from_container-x"} {
		if _, ok := parseLink(bad); ok {
			t.Errorf("%q is no link", bad)
		}
	}
}
