package network

// GraphInfo is what is connected with what.
type GraphInfo struct {
	Up       bool           `json:"up"`
	Uplinks  []UplinkInfo   `json:"uplinks"` // none while not up
	Sides    []UplinkInfo   `json:"sides"`   // bridges of others, whose containers reach published ports
	Networks []GraphNetwork `json:"networks"`
}

// GraphNetwork is a network with its endpoints and their ports.
type GraphNetwork struct {
	Network   NetworkInfo    `json:"network"`
	Endpoints []EndpointInfo `json:"endpoints"`
}

// Graph shows what is connected with what, everything by name. It works without a datapath
// too.
func (h *Host) Graph() (GraphInfo, error) {
	status, err := h.Status()
	if err != nil {
		return GraphInfo{}, err
	}
	networks, err := h.Networks()
	if err != nil {
		return GraphInfo{}, err
	}
	endpoints, err := h.Endpoints("")
	if err != nil {
		return GraphInfo{}, err
	}
	g := GraphInfo{Up: status.Up, Uplinks: status.Uplinks, Sides: status.Sides, Networks: []GraphNetwork{}}
	for _, n := range networks {
		of := GraphNetwork{Network: n, Endpoints: []EndpointInfo{}}
		for _, e := range endpoints {
			if e.Network == n.Name {
				of.Endpoints = append(of.Endpoints, e)
			}
		}
		g.Networks = append(g.Networks, of)
	}
	return g, nil
}
