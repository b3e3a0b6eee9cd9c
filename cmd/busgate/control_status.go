package main

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"time"

	"busgate/config"
	"busgate/devices"
)

// gatewayStatus is the answer to GET /v1/status. Durations are in seconds;
// what is not known is absent.
type gatewayStatus struct {
	Gateway string         `json:"gateway"`
	Version string         `json:"version"`
	Uptime  float64        `json:"uptime"` // since the daemon started
	Clock   string         `json:"clock"`  // where the time is from; unset: nobody knows it
	Devices []deviceStatus `json:"devices"`
	Buses   []busStatus    `json:"buses"`
	Uplinks []uplinkStatus `json:"uplinks"`
	Queue   int            `json:"queue"` // messages that wait for uplinks
	Clients int            `json:"clients"`
}

type deviceStatus struct {
	Name      string         `json:"name"`
	Bus       string         `json:"bus"`
	State     string         `json:"state"` // online, offline, or waiting while it was never asked
	Age       *float64       `json:"age,omitempty"`
	Values    []pointReading `json:"values"`
	Err       string         `json:"err,omitempty"`   // word of what is wrong now
	LastError string         `json:"error,omitempty"` // its text; of the newest failure when nothing is wrong now
}

type pointReading struct {
	Point string `json:"point"`
	Value any    `json:"value"`
	Unit  string `json:"unit,omitempty"`
}

type busStatus struct {
	Name     string  `json:"name"`
	Open     bool    `json:"open"`
	Load     float64 `json:"load"`    // share of its time that it needs
	Stretch  float64 `json:"stretch"` // of all intervals; 1 = as configured
	RTT50    float64 `json:"rtt50"`
	RTT95    float64 `json:"rtt95"`
	Requests uint64  `json:"requests"`
	Timeouts uint64  `json:"timeouts"`
	Damaged  uint64  `json:"damaged"`
	Late     uint64  `json:"late"`
	Foreign  uint64  `json:"foreign"`
	Guest    string  `json:"guest,omitempty"`
	Error    string  `json:"error,omitempty"`
}

type uplinkStatus struct {
	Name    string   `json:"name"`
	State   string   `json:"state"` // online, offline or draining
	Since   float64  `json:"since"`
	Address string   `json:"address"`
	Queue   int      `json:"queue"`
	Bytes   int64    `json:"queue_bytes"`
	Oldest  float64  `json:"queue_oldest"`
	ETA     *float64 `json:"eta,omitempty"`      // until nothing waits
	NextTry *float64 `json:"next_try,omitempty"` // seconds from now
	Error   string   `json:"error,omitempty"`
}

func (c *control) statusRoute(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		if c.status == nil {
			refuse(w, http.StatusConflict, errNoDaemon)
			return
		}
		reply(w, http.StatusOK, c.status())
	})
}

// status is the whole gateway at a glance.
func (g *gateway) status() gatewayStatus {
	g.mu.Lock()
	cfg := g.cfg
	g.mu.Unlock()
	s := gatewayStatus{Gateway: cfg.Gateway.Name, Version: version, Uptime: time.Since(g.opened).Seconds(), Clock: g.clock.source(),
		Devices: []deviceStatus{}, Buses: []busStatus{}, Uplinks: []uplinkStatus{}, Clients: g.broker.Stats().Clients}
	buses, devs := g.fleet.Status()
	closed := map[string]string{} // what keeps a bus shut
	for _, b := range buses {
		if !b.Open {
			closed[b.Name] = b.Text
		}
		s.Buses = append(s.Buses, busStatus{Name: b.Name, Open: b.Open, Load: b.U, Stretch: b.Stretch, RTT50: b.RTT50.Seconds(), RTT95: b.RTT95.Seconds(),
			Requests: b.Counts.Requests, Timeouts: b.Counts.Timeouts, Damaged: b.Counts.Bad, Late: b.Counts.Late, Foreign: b.Counts.Foreign,
			Guest: b.Guest, Error: b.Text})
	}
	for _, d := range devs {
		s.Devices = append(s.Devices, g.deviceStatus(cfg, d, closed[d.Bus]))
	}
	links, rates := g.uplinks.status(), g.uplinks.rates()
	for _, name := range slices.Sorted(maps.Keys(links)) {
		st := links[name]
		u := uplinkStatus{Name: name, State: st.Word(), Since: time.Since(st.Since).Seconds(), Address: st.Address, Queue: st.Pending, Bytes: st.Bytes,
			Oldest: st.Oldest.Seconds(), Error: st.LastError}
		if eta := rates[name].ETA.Seconds(); eta > 0 {
			u.ETA = &eta
		}
		if wait := time.Until(st.NextTry).Seconds(); !st.NextTry.IsZero() && wait > 0 {
			u.NextTry = &wait
		}
		s.Uplinks = append(s.Uplinks, u)
		s.Queue += st.Pending
	}
	return s
}

func (g *gateway) deviceStatus(cfg *config.Config, d devices.DeviceStatus, busTrouble string) deviceStatus {
	s := deviceStatus{Name: d.Name, Bus: d.Bus, State: "offline", Values: []pointReading{}, Err: d.Err, LastError: d.LastError}
	switch {
	case d.Online:
		s.State = "online"
	case busTrouble != "":
		s.LastError = busTrouble
		if s.Err == "" {
			s.Err = "bus"
		}
	case d.Rounds == 0:
		s.State = "waiting"
	}
	if !d.LastGood.IsZero() {
		age := time.Since(d.LastGood).Seconds()
		s.Age = &age
	}
	if dev := cfg.Devices[d.Name]; dev != nil {
		for _, m := range g.broker.Retained(cfg.Gateway.Base() + "/" + d.Name + "/state") {
			s.Values = readingsOf(m.Payload, dev)
		}
	}
	return s
}

// readingsOf reads the values of a state message, in its order.
func readingsOf(state []byte, dev *config.Device) []pointReading {
	units := map[string]string{}
	for i := range dev.Points {
		units[dev.Points[i].Name] = dev.Points[i].Unit
	}
	out := []pointReading{}
	dec := json.NewDecoder(bytes.NewReader(state))
	dec.UseNumber()
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return out
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			break
		}
		var v any
		if dec.Decode(&v) != nil {
			break
		}
		name, _ := key.(string)
		if unit, ok := units[name]; ok {
			out = append(out, pointReading{name, v, unit})
		}
	}
	return out
}
