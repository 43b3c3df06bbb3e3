package e2e

import (
	"testing"

	"github.com/ebnet/ebnet/tests/netlab"
)

// TestPrivilegedPublish: published ports lead to the container, which sees the
// client's own address; a port of one host address is not open on another.
func TestPrivilegedPublish(t *testing.T) {
	eachMode(t, func(t *testing.T, s *site) {
		t.Run("any address", func(t *testing.T) {
			s.Host.Ebnet(t, "expose", s.w1.Endpoint, "8080:80/tcp", "0.0.0.0:8080:80/udp")
			for _, p := range protocols {
				reaches(t, s.Internet, p, at(netlab.HostAddr, 8080), netlab.InternetAddr)
				reaches(t, s.Internet, p, at(netlab.HostAddr2, 8080), netlab.InternetAddr)
			}
			bulk(t, s.Internet, at(netlab.HostAddr2, 8080), 10_000_000)
		})
		t.Run("one address", func(t *testing.T) {
			for _, p := range protocols {
				s.Host.Ebnet(t, "expose", s.w2.Endpoint, netlab.HostAddr2.String()+":8081:80/"+p)
				reaches(t, s.Internet, p, at(netlab.HostAddr2, 8081), netlab.InternetAddr)
				isBlocked(t, s.Internet, p, at(netlab.HostAddr, 8081), s.at2)
			}
		})
		t.Run("two containers, one port, two addresses", func(t *testing.T) {
			s.Host.Ebnet(t, "expose", s.w1.Endpoint, netlab.HostAddr.String()+":8082:80")
			s.Host.Ebnet(t, "expose", s.w2.Endpoint, netlab.HostAddr2.String()+":8082:80")
			before := s.at1.Hits()
			reaches(t, s.Internet, "tcp", at(netlab.HostAddr2, 8082), netlab.InternetAddr)
			if s.at1.Hits() != before {
				t.Error("the port of one address led to the container of the other")
			}
			reaches(t, s.Internet, "tcp", at(netlab.HostAddr, 8082), netlab.InternetAddr)
			if s.at1.Hits() != before+1 {
				t.Error("the connection did not come to the container that published the port")
			}
		})
		t.Run("range", func(t *testing.T) {
			last := s.w1.Serve(t, 89)
			s.Host.Ebnet(t, "expose", s.w1.Endpoint, "9080-9089:80-89")
			reaches(t, s.Internet, "tcp", at(netlab.HostAddr, 9080), netlab.InternetAddr)
			reaches(t, s.Internet, "tcp", at(netlab.HostAddr, 9089), netlab.InternetAddr)
			if last.Hits() != 1 {
				t.Errorf("%d hits at the last port of the range, want 1", last.Hits())
			}
			isBlocked(t, s.Internet, "tcp", at(netlab.HostAddr, 9090), last)
			isBlocked(t, s.Internet, "udp", at(netlab.HostAddr, 9089), last)
		})
		t.Run("ports", func(t *testing.T) {
			var list netlab.List[struct {
				Endpoint string `json:"endpoint"`
				Protocol string `json:"protocol"`
				HostPort int    `json:"host_port"`
				Port     int    `json:"port"`
			}]
			s.Host.JSON(t, &list, "ports", s.w2.Endpoint)
			if len(list.Items) != 3 {
				t.Errorf("ports of %s are %+v, want three", s.w2.Endpoint, list.Items)
			}
		})
	})
}
