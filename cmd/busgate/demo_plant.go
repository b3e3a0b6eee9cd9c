package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"busgate/devices"
	"busgate/devices/sim"
	"busgate/embeddedbroker"
)

const demoSeed = 1

// plant is the simulated field: what stands behind the wires.
type plant struct {
	parts []func(context.Context) error // what has to run
	lines []string                      // of the introduction
	bus   string                        // TOML of the RS-485 bus's wire
	truck string                        // path of the GPS; "" = this computer has no pseudo terminals
	tcp   string                        // address of the inverter

	rs485    *sim.Pty // nil without pseudo terminals
	inverter *sim.TCP
	gps      *sim.Pty // nil without pseudo terminals
	other    net.Conn // of another client of the inverter; nil: none
}

// close ends what is no part.
func (p *plant) close() {
	if p.other != nil {
		p.other.Close()
	}
}

// openPlant opens the simulated RS-485 bus, the inverter and the GPS. Without
// pseudo terminals the bus is RTU over TCP, and there is no GPS.
func openPlant(dir string) (*plant, error) {
	p := &plant{}
	units := []*sim.Unit{sim.NewSDM630(1, demoSeed), sim.NewXYMD02(2, demoSeed), sim.NewRelays(3, 4)}
	pty, err := sim.NewPty(sim.NewBus(sim.Line{Baud: 9600}, demoSeed, units...), filepath.Join(dir, "rs485"))
	if err == nil {
		p.rs485 = pty
		p.parts = append(p.parts, pty.Run)
		p.bus = fmt.Sprintf("serial = %q\nbaud = 9600\n", pty.Path())
		p.lines = append(p.lines, fmt.Sprintf("bus rs485     simulated RS-485 on %s, 9600 8N1: SDM630 (unit 1), XY-MD02 (unit 2), 4 relays (unit 3)", pty.Terminal()))
	} else {
		ln, tcpErr := sim.ListenRTU("127.0.0.1:0", demoSeed, units...)
		if tcpErr != nil {
			return nil, tcpErr
		}
		p.parts = append(p.parts, ln.Run)
		p.bus = fmt.Sprintf("tcp = %q\nprotocol = \"modbus-rtu\"\n", ln.Addr())
		p.lines = append(p.lines, fmt.Sprintf("bus rs485     simulated RTU over TCP on %s, because there is no pseudo terminal (%v)", ln.Addr(), err))
	}
	inverter, err := sim.ListenTCP("127.0.0.1:0", demoSeed, sim.NewInverter(3, demoSeed))
	if err != nil {
		return nil, err
	}
	p.tcp, p.inverter = inverter.Addr(), inverter
	p.parts = append(p.parts, inverter.Run)
	p.lines = append(p.lines, "bus inverter  simulated Modbus TCP on "+p.tcp)
	gps, err := sim.NewPty(sim.NewTalker(sim.Line{Baud: 9600}, demoSeed, time.Second, sim.NMEA(demoSeed)), filepath.Join(dir, "truck"))
	if err != nil {
		return p, nil // the line of the bus said why
	}
	p.truck, p.gps = gps.Path(), gps
	p.parts = append(p.parts, gps.Run)
	p.lines = append(p.lines, "uart truck    simulated NMEA on "+gps.Terminal())
	return p, nil
}

// config is the device map of the demo: what an owner of such a plant would write.
func (p *plant) config(dir, broker, web, cloud string, faults faultList) string {
	var b strings.Builder
	roof, order, buffer, login := p.tcp, "order = \"CDAB\"\n", "", ""
	if faults.has("unreachable") {
		roof = "127.0.0.1:1"
	}
	if faults.has("word-order") {
		order = ""
	}
	if faults.has("buffer-full") {
		buffer = "[buffer]\nmax_messages = 20\n\n"
	}
	if faults.has("auth") {
		login = fmt.Sprintf("user = \"plant\"\npassword_file = %q\n", filepath.Join(dir, "password"))
	}
	fmt.Fprintf(&b, `[gateway]
name = "demo"
interval = "2s"
data_dir = %q

[broker]
listen = %q

[web]
listen = %q

[bus.rs485]
%s
[bus.roof]
tcp = %q

[device.grid]
bus = "rs485"
unit_id = 1
profile = "eastron-sdm630"
interval = "2s"

[device.cellar]
bus = "rs485"
unit_id = 2
profile = "xy-md02"
interval = "2s"

[device.pumps]
bus = "rs485"
unit_id = 3
profile = "relay-4ch"
interval = "2s"

[device.inverter]
bus = "roof"
unit_id = 3
%sinterval = "1s"
[device.inverter.points]
power  = { input = 5030, type = "int32", unit = "W" }
energy = { input = 5003, type = "uint32", unit = "kWh", scale = 0.1, kind = "total_increasing" }
state  = { input = 5037, type = "uint16", enum = { 0 = "run", 1 = "standby", 8 = "fault" } }
limit  = { holding = 5007, type = "uint16", unit = "%%", scale = 0.1, write = true, min = 0, max = 100 }

%s[uplink.cloud]
addresses = ["mqtt://%s"]
qos = 2
%s`, dir, broker, web, p.bus, roof, order, buffer, cloud, login)
	if p.truck != "" {
		fmt.Fprintf(&b, "\n[device.truck]\nserial = %q\nbaud = 9600\nprofile = \"nmea-gps\"\ninterval = \"2s\"\n", p.truck)
	}
	return b.String()
}

// demoValues are the newest values of the plant, for the screen.
type demoValues struct {
	mu  sync.Mutex
	all map[string]float64 // by device.point
}

func newDemoValues() *demoValues { return &demoValues{all: map[string]float64{}} }

// tap hands every published round to the checker, in order, and keeps its values.
func (v *demoValues) tap(c *checker) func(devices.Round, *embeddedbroker.Message) {
	return func(r devices.Round, m *embeddedbroker.Message) {
		c.Read(r.Device, m.Payload)
		v.mu.Lock()
		defer v.mu.Unlock()
		for _, x := range r.Values {
			v.all[r.Device+"."+x.Point] = x.Value.Float()
		}
	}
}

// line prints some values that people know.
func (v *demoValues) line() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	at := func(name, format string) string {
		f, ok := v.all[name]
		if !ok {
			return "-"
		}
		return fmt.Sprintf(format, f)
	}
	return fmt.Sprintf("grid %s %s | cellar %s %s | inverter %s | truck %s %s",
		at("grid.voltage_l1", "%.1f V"), at("grid.power", "%.0f W"), at("cellar.temperature", "%.1f °C"), at("cellar.humidity", "%.0f %%"),
		at("inverter.power", "%.0f W"), at("truck.lat", "%.4f"), at("truck.lon", "%.4f"))
}
