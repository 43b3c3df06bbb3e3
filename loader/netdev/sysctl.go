package netdev

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ebnet/ebnet/loader/failpoint"
)

// netSysctl is the tree of the namespace of the thread that opens a file in it,
// so whoever acts in another namespace does it inside Do.
const netSysctl = "/proc/sys/net/"

// bridgeSysctls are set on the bridges and nowhere else.
var bridgeSysctls = []struct{ name, value string }{
	// Endpoints' packets are routed on; the host itself is no router for others.
	{"forwarding", "1"},
	// Loose: with several uplinks the way back may differ; the datapath checks
	// endpoints' source addresses itself.
	{"rp_filter", "2"},
	// Endpoints of one network talk directly; a redirect would mislead them.
	{"send_redirects", "0"},
}

// setDeviceSysctl writes net.FAMILY.conf.DEVICE.NAME if it differs. family is
// "ipv4" or "ipv6".
func setDeviceSysctl(family, device, name, value string) (changed bool, err error) {
	path := netSysctl + family + "/conf/" + device + "/" + name
	old, err := os.ReadFile(path)
	if err == nil && strings.TrimSpace(string(old)) == value {
		return false, nil
	}
	if err == nil {
		// Without O_CREATE and O_TRUNC, which procfs would only ignore.
		var f *os.File
		if f, err = os.OpenFile(path, os.O_WRONLY, 0); err == nil {
			err = writeSysctl(f, name, value)
			err = errors.Join(err, f.Close())
		}
	}
	if errors.Is(err, unix.EROFS) {
		return false, fmt.Errorf("set net.%s.conf.%s.%s: %w (%w)", family, device, name, ErrPermission, err)
	}
	if err != nil {
		return false, fmt.Errorf("set net.%s.conf.%s.%s: %w", family, device, name, sentinel(err))
	}
	return true, nil
}

func writeSysctl(f *os.File, name, value string) error {
	return failpoint.Do("set", name, func() error {
		_, err := f.WriteString(value)
		return err
	})
}

// setIPv6 switches IPv6 on a device on or off. A kernel without IPv6 has nothing
// to switch off.
func setIPv6(device string, on bool) (changed bool, err error) {
	value := "1"
	if on {
		value = "0"
	}
	changed, err = setDeviceSysctl("ipv6", device, "disable_ipv6", value)
	if errors.Is(err, ErrNotFound) && !on {
		if _, statErr := os.Stat(netSysctl + "ipv6/conf"); errors.Is(statErr, os.ErrNotExist) {
			return false, nil
		}
	}
	return changed, err
}

// PortRange is a range of port numbers, both ends included.
type PortRange struct{ First, Last uint16 }

// LocalPortRange returns the range the kernel takes ephemeral ports from
// (net.ipv4.ip_local_port_range), of the calling thread's namespace.
func LocalPortRange() (PortRange, error) {
	text, err := os.ReadFile(netSysctl + "ipv4/ip_local_port_range")
	if err != nil {
		return PortRange{}, fmt.Errorf("read the local port range: %w", sentinel(err))
	}
	var r PortRange
	if _, err := fmt.Sscan(string(text), &r.First, &r.Last); err != nil {
		return PortRange{}, fmt.Errorf("read the local port range %q: %w", text, err)
	}
	return r, nil
}

// LocalReservedPorts returns the ports the kernel never takes as ephemeral
// (net.ipv4.ip_local_reserved_ports), of the calling thread's namespace.
func LocalReservedPorts() ([]PortRange, error) {
	f, err := os.Open(netSysctl + reservedPorts)
	if err != nil {
		return nil, fmt.Errorf("read the reserved ports: %w", sentinel(err))
	}
	defer f.Close()
	// In one read: the kernel answers a second one with the end of the file.
	text := make([]byte, maxReservedText)
	n, err := f.Read(text)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the reserved ports: %w", sentinel(err))
	}
	return parsePortRanges(strings.TrimSpace(string(text[:n])))
}

const (
	reservedPorts   = "ipv4/ip_local_reserved_ports"
	maxReservedText = 256 << 10 // every other port is 32768 of "65535,"
	reservedChunk   = 4000      // less than the page that the kernel takes of one write
)

// SetLocalReservedPorts replaces the ports the kernel never takes as ephemeral.
//
// Returns ErrPermission.
func SetLocalReservedPorts(ports []PortRange) error {
	f, err := os.OpenFile(netSysctl+reservedPorts, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("set the reserved ports: %w", sentinel(err))
	}
	// The first write replaces the set, further ones to the same file add to it.
	for _, chunk := range portChunks(ports, reservedChunk) {
		if err = writeSysctl(f, "reserved ports", chunk); err != nil {
			break
		}
	}
	err = errors.Join(err, f.Close())
	if errors.Is(err, unix.EROFS) {
		return fmt.Errorf("set the reserved ports: %w (%w)", ErrPermission, err)
	}
	if err != nil {
		return fmt.Errorf("set the reserved ports: %w", sentinel(err))
	}
	return nil
}

// portChunks writes ranges as parsePortRanges reads them, in texts of limit bytes at
// most; no ranges are one line without any.
func portChunks(ports []PortRange, limit int) []string {
	var chunks []string
	var b strings.Builder
	for _, r := range ports {
		text := strconv.Itoa(int(r.First))
		if r.Last != r.First {
			text += "-" + strconv.Itoa(int(r.Last))
		}
		if b.Len()+len(text)+2 > limit {
			chunks = append(chunks, b.String()+"\n")
			b.Reset()
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(text)
	}
	return append(chunks, b.String()+"\n")
}

// parsePortRanges reads "8080,9000-9100".
func parsePortRanges(text string) ([]PortRange, error) {
	if text == "" {
		return nil, nil
	}
	var ranges []PortRange
	for part := range strings.SplitSeq(text, ",") {
		lo, hi, isRange := strings.Cut(part, "-")
		if !isRange {
			hi = lo
		}
		first, err1 := strconv.ParseUint(lo, 10, 16)
		last, err2 := strconv.ParseUint(hi, 10, 16)
		if err1 != nil || err2 != nil || first > last {
			return nil, fmt.Errorf("port range %q: %w", part, ErrInvalid)
		}
		ranges = append(ranges, PortRange{First: uint16(first), Last: uint16(last)})
	}
	return ranges, nil
}
