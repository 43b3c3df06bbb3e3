package network

import (
	"slices"
	"strings"
	"testing"
)

// rebooted is a host after a reboot: nothing is loaded, there are no devices of ours and no namespaces.
func rebooted(t *testing.T, dir string, f *fake) *Host {
	t.Helper()
	f.dp, f.boot = nil, "second"
	for name, l := range f.links {
		if l.Alias != "" {
			delete(f.links, name)
		}
	}
	clear(f.inside)
	clear(f.spaces)
	return openFake(t, dir, f)
}

func TestReboot(t *testing.T) {
	f := newFake()
	dir := t.TempDir()
	h := openFake(t, dir, f)
	must(t)(h.Up(UpRequest{}))
	f.space("pid:7", 700)
	f.spaces["pid:7"].Path = "/proc/7/ns/net"
	connect(t, h, "web", "w0", "8080:80")
	connect(t, h, "db", "w1")
	connect(t, h, "job", "pid:7")
	before, err := h.Endpoints("")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}

	h = rebooted(t, dir, f)
	f.space("w0", 101) // what w1 had
	f.space("proc", 700)
	f.spaces["/proc/7/ns/net"] = f.spaces["proc"]
	up := func(changed bool, gone ...string) {
		t.Helper()
		r, err := h.Up(UpRequest{})
		slices.Sort(r.Gone)
		if err != nil || r.Changed != changed || !slices.Equal(r.Gone, gone) {
			t.Fatalf("%+v, %v; want changed to be %v and %v to be gone", r, err, changed, gone)
		}
	}
	up(true, "db", "job")
	up(false, "db", "job")
	if _, err := h.Connect(ConnectRequest{Network: DefaultNetwork, NetNS: "w0", Name: "second"}); err == nil || !strings.Contains(err.Error(), `"web"`) {
		t.Errorf("the interface of an endpoint that came back is free: %v", err)
	}

	f.space("w1", 100) // what w0 had
	up(true, "job")
	up(false, "job")
	for _, d := range []string{"job"} {
		if err := h.Disconnect(d); err != nil {
			t.Fatal(err)
		}
	}
	after, err := h.Endpoints("")
	if err != nil || len(after) != 2 {
		t.Fatalf("%+v, %v", after, err)
	}
	for i, e := range after {
		was := before[slices.IndexFunc(before, func(b EndpointInfo) bool { return b.Name == e.Name })]
		if e.IPv4 != was.IPv4 || e.State != StateUp {
			t.Errorf("endpoint %d is %+v, was %+v", i, e, was)
		}
	}
	if d, err := h.Examine(); err != nil || !d.Healthy {
		t.Errorf("%+v, %v", d, err)
	}

	// Within this boot another namespace of the name is another one, whatever its inode.
	f.kill("w1")
	f.space("w1", 555)
	up(true, "db")
	// A stale record keeps no interface from others.
	if _, err := h.Connect(ConnectRequest{Network: DefaultNetwork, NetNS: "w1", Name: "other"}); err != nil {
		t.Errorf("connect the new namespace: %v", err)
	}
	if err := h.Disconnect("db"); err != nil {
		t.Error(err)
	}
	if _, err := h.Connect(ConnectRequest{Network: DefaultNetwork, NetNS: "w1", Name: "third"}); err == nil || !strings.Contains(err.Error(), `"other"`) {
		t.Errorf("disconnecting a stale endpoint freed another's interface: %v", err)
	}
}

// A record of a version that knew no boots gets one with the first Up.
func TestBootIsRecorded(t *testing.T) {
	f := newFake()
	h := upFake(t, f)
	connect(t, h, "web", "w0")
	record := func(change func(*endpointRecord)) (e *endpointRecord) {
		t.Helper()
		if err := h.state.change(true, func(t *tx) (err error) {
			if e, err = t.endpoint("web"); err == nil && change != nil {
				change(e)
				err = t.putEndpoint(e)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return e
	}
	record(func(e *endpointRecord) { e.Boot, e.NSCookie = "", 0 })
	for range 2 {
		r, err := h.Up(UpRequest{})
		if err != nil || r.Changed {
			t.Errorf("%+v, %v", r, err)
		}
		if e := record(nil); e.Boot != "first" || e.NSCookie != 1100 {
			t.Errorf("%+v", e)
		}
	}
}
