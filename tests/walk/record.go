package walk

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
)

// recorded is what the state file has that no noun shows.
type recorded struct {
	networks map[string]uint32 // the ids of networks, by name
	slots    map[string]uint32 // of endpoints, by name
	ports    []recordedPort
	owners   map[uint32]string // of slots
}

type recordedPort struct {
	Endpoint string     `json:"endpoint"`
	Slot     uint32     `json:"slot"`
	Protocol uint8      `json:"protocol"`
	HostIP   netip.Addr `json:"host_ip"`
	HostPort uint16     `json:"host_port"`
	Port     uint16     `json:"port"`
}

// readState reads the state file, while nobody else does.
func (w *Walk) readState() (recorded, error) {
	r := recorded{networks: map[string]uint32{}, slots: map[string]uint32{}, owners: map[uint32]string{}}
	path := filepath.Join(w.lab.Host.State, "ebnet.db")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return r, nil // nothing has been recorded since the last purge
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return r, err
	}
	defer db.Close()
	return r, db.View(func(t *bbolt.Tx) error {
		return firstWrong(
			each(t, "networks", func(name string, n struct{ ID uint32 }) { r.networks[name] = n.ID }),
			each(t, "endpoints", func(name string, e struct{ Slot uint32 }) { r.slots[name] = e.Slot }),
			each(t, "ports", func(_ string, p recordedPort) { r.ports = append(r.ports, p) }),
			r.indexes(t))
	})
}

// each decodes the records of a bucket.
func each[T any](t *bbolt.Tx, bucket string, yield func(key string, v T)) error {
	return t.Bucket([]byte(bucket)).ForEach(func(k, b []byte) error {
		var v T
		if err := json.Unmarshal(b, &v); err != nil {
			return fmt.Errorf("%s %q: %w", bucket, k, err)
		}
		yield(string(k), v)
		return nil
	})
}

// indexes reads the buckets that say again what the records say, of which each has as many
// entries as there are records.
func (r *recorded) indexes(t *bbolt.Tx) error {
	err := t.Bucket([]byte("slots")).ForEach(func(k, owner []byte) error {
		r.owners[binary.BigEndian.Uint32(k)] = string(owner)
		return nil
	})
	count := func(bucket string) int { return t.Bucket([]byte(bucket)).Stats().KeyN }
	pools := 0
	uncounted := t.Bucket([]byte("ipam")).ForEachBucket(func([]byte) error { pools++; return nil })
	return firstWrong(err, uncounted,
		differs("count of recorded network ids", count("network_ids"), len(r.networks)),
		differs("count of recorded memberships", count("members"), len(r.slots)),
		differs("count of recorded interfaces", count("ifnames"), len(r.slots)),
		differs("count of recorded ports of endpoints", count("endpoint_ports"), len(r.ports)),
		differs("count of recorded pools", pools, len(r.networks)))
}

// check compares the records with the model, and finds slots that nobody has.
func (r *recorded) check(m *Model) error {
	ports := 0
	m.ports(func(Endpoint, Port) { ports++ })
	if err := firstWrong(
		differs("count of recorded networks", len(r.networks), len(m.Networks)),
		differs("count of recorded endpoints", len(r.slots), len(m.Endpoints)),
		differs("count of recorded ports", len(r.ports), ports),
		differs("count of slots", len(r.owners), len(r.slots)+len(r.ports)),
	); err != nil {
		return err
	}
	for name, slot := range r.slots {
		if r.owners[slot] != name {
			return fmt.Errorf("slot %d of endpoint %s belongs to %q", slot, name, r.owners[slot])
		}
	}
	for _, p := range r.ports {
		if r.owners[p.Slot] != p.Endpoint {
			return fmt.Errorf("slot %d of port %d of endpoint %s belongs to %q", p.Slot, p.HostPort, p.Endpoint, r.owners[p.Slot])
		}
	}
	return nil
}

// portSlot finds the slot of a published port.
func (r *recorded) portSlot(e Endpoint, p Port) uint32 {
	for _, o := range r.ports {
		if o.Endpoint == e.Name && o.Protocol == number(p.Protocol) && o.HostIP == p.HostIP && o.HostPort == p.HostPort && o.Port == p.Port {
			return o.Slot
		}
	}
	return 0
}

// number is that of a protocol.
func number(protocol string) uint8 {
	if protocol == "udp" {
		return 17
	}
	return 6
}
