package network

import (
	"strings"

	"github.com/ebnet/ebnet/loader"
)

// The types of metrics, as Prometheus names them.
const (
	Counter = "counter"
	Gauge   = "gauge"
)

// Metric is one quantity with a sample for each thing that has it. Names follow the
// conventions of Prometheus: base units, and _total for what only grows.
type Metric struct {
	Name    string   `json:"name"`
	Help    string   `json:"help"`
	Type    string   `json:"type"` // Counter or Gauge
	Samples []Sample `json:"samples"`
}

// Sample is the value for one thing, which its labels name.
type Sample struct {
	Labels []Label `json:"labels"`
	Value  float64 `json:"value"`
}

// Label is a part of a sample's name.
type Label struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Metrics measures everything that is counted, in an order that stays the same. It works
// without a datapath too.
func (h *Host) Metrics(version string) ([]Metric, error) {
	status, err := h.Status()
	if err != nil {
		return nil, err
	}
	stats, err := h.Stats("")
	if err != nil {
		return nil, err
	}
	m := metrics{places: map[string]int{}, samples: map[string]int{}}
	m.gauge("ebnet_up", "Whether the datapath is loaded.", bit(status.Up))
	m.gauge("ebnet_info", "What is running; always 1.", 1, "version", version, "kernel", status.Kernel, "attach", status.Features.Attach)
	m.gauge("ebnet_networks", "Networks that are recorded.", float64(status.Networks))
	m.endpointStates(stats)
	m.gauge("ebnet_published_ports", "Published ports that are recorded, ranges counted in full.", float64(status.Ports))
	m.gauge("ebnet_incomplete", "Records that killed commands left half done.", float64(len(status.Incomplete)))
	for _, u := range append(status.Uplinks, status.Sides...) {
		m.gauge("ebnet_uplink_attached", "Whether the programs run at the uplink or bridge of others.", bit(u.Attached), "device", u.Name)
	}
	if status.Up {
		if err := h.liveMetrics(&m, status); err != nil {
			return nil, explain(err)
		}
	}
	m.traffic(stats)
	return m.all, nil
}

// liveMetrics are those that only a loaded datapath has.
func (h *Host) liveMetrics(m *metrics, status StatusInfo) error {
	dp, err := h.loaded()
	if err != nil || dp == nil {
		return err
	}
	total := 0
	if err := dp.Flows(func(loader.Flow) bool { total++; return true }); err != nil {
		return err
	}
	sweep, err := dp.Sweep()
	if err != nil {
		return err
	}
	m.gauge("ebnet_fast_path", "Whether packets pass the bridge and the host's stack by.", bit(status.Features.FastPath))
	m.gauge("ebnet_socket_hooks", "Whether the host's processes reach published ports.", bit(status.Features.SocketHooks))
	m.gauge("ebnet_conversations", "Tracked conversations.", float64(total))
	for _, e := range status.Maps {
		m.gauge("ebnet_map_entries", "Entries in use of a map.", float64(e.Used), "map", e.Name)
		m.gauge("ebnet_map_max_entries", "Entries that a map holds at most.", float64(e.Max), "map", e.Name)
	}
	for _, d := range status.Drops {
		labels := []string{"device", d.Device, "endpoint", d.Endpoint, "reason", d.Reason}
		m.counter("ebnet_drops_total", "Packets that were dropped.", float64(d.Packets), labels...)
		m.counter("ebnet_drop_bytes_total", "Bytes of the packets that were dropped.", float64(d.Bytes), labels...)
	}
	m.gauge("ebnet_monitors", "Running ebnet monitor commands.", float64(status.Listeners))
	for _, s := range status.Shares {
		labels := []string{"endpoint", s.Endpoint, "port", s.Port}
		m.gauge("ebnet_share_conversations", "Confirmed conversations that count against the share of an endpoint (no port) or a published port.",
			float64(s.Held), labels...)
		m.counter("ebnet_share_refused_total", "Conversations that were not confirmed because the share was used up.", float64(s.Refused), labels...)
	}
	m.gauge("ebnet_sweep_queue", "Confirmed conversations in the queue of what reclaims them.", float64(sweep.Confirmed))
	m.counter("ebnet_sweep_rounds_total", "Rounds of what reclaims conversations.", float64(sweep.Rounds))
	m.gauge("ebnet_sweep_last_round_seconds", "How long the last round took.", sweep.Took.Seconds())
	m.gauge("ebnet_sweep_longest_round_seconds", "How long the longest round took.", sweep.Longest.Seconds())
	return nil
}

// metrics is a list of metrics in the making.
type metrics struct {
	all     []Metric
	places  map[string]int // in all, by name
	samples map[string]int // in their metric, by its name and their labels
}

func (m *metrics) gauge(name, help string, value float64, labels ...string) {
	m.add(Gauge, name, help, value, labels)
}

func (m *metrics) counter(name, help string, value float64, labels ...string) {
	m.add(Counter, name, help, value, labels)
}

// add adds a sample to the metric of the name. Labels are names and values in turn. To a
// sample with the same ones the value is added: drops at devices that are gone have none.
func (m *metrics) add(kind, name, help string, value float64, labels []string) {
	at, ok := m.places[name]
	if !ok {
		at = len(m.all)
		m.places[name] = at
		m.all = append(m.all, Metric{Name: name, Help: help, Type: kind})
	}
	key := name + "\x00" + strings.Join(labels, "\x00")
	if i, ok := m.samples[key]; ok {
		m.all[at].Samples[i].Value += value
		return
	}
	m.samples[key] = len(m.all[at].Samples)
	s := Sample{Labels: []Label{}, Value: value}
	for i := 0; i+1 < len(labels); i += 2 {
		s.Labels = append(s.Labels, Label{labels[i], labels[i+1]})
	}
	m.all[at].Samples = append(m.all[at].Samples, s)
}

func (m *metrics) endpointStates(stats []StatsInfo) {
	n := map[string]int{}
	for _, s := range stats {
		n[s.State]++
	}
	for _, state := range []string{StateUp, StateGone} {
		m.gauge("ebnet_endpoints", "Endpoints that are recorded; gone is one without its namespace or link.", float64(n[state]), "state", state)
	}
}

// traffic is that of the endpoints, as the containers see it.
func (m *metrics) traffic(stats []StatsInfo) {
	const seen = ", as the container sees it."
	for _, s := range stats {
		labels := []string{"endpoint", s.Endpoint, "network", s.Network}
		for _, d := range s.Drops {
			of := append([]string{"direction", d.Direction, "reason", d.Reason}, labels...)
			m.counter("ebnet_endpoint_drops_total", "Packets from and to an endpoint that were dropped; one between two of them is both's.", float64(d.Packets), of...)
			m.counter("ebnet_endpoint_drop_bytes_total", "Bytes of the packets from and to an endpoint that were dropped.", float64(d.Bytes), of...)
		}
		m.gauge("ebnet_endpoint_conversations", "Tracked conversations that an endpoint takes part in.", float64(s.Conversations), labels...)
		if s.Received == nil || s.Sent == nil {
			continue
		}
		m.counter("ebnet_endpoint_receive_packets_total", "Packets that an endpoint has received"+seen, float64(s.Received.Packets), labels...)
		m.counter("ebnet_endpoint_receive_bytes_total", "Bytes that an endpoint has received"+seen, float64(s.Received.Bytes), labels...)
		m.counter("ebnet_endpoint_receive_dropped_total", "Packets that the kernel dropped at an endpoint's link"+seen, float64(s.Received.Dropped), labels...)
		m.counter("ebnet_endpoint_transmit_packets_total", "Packets that an endpoint has sent"+seen, float64(s.Sent.Packets), labels...)
		m.counter("ebnet_endpoint_transmit_bytes_total", "Bytes that an endpoint has sent"+seen, float64(s.Sent.Bytes), labels...)
		m.counter("ebnet_endpoint_transmit_dropped_total", "Packets of an endpoint that the kernel dropped at its link"+seen, float64(s.Sent.Dropped), labels...)
	}
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
