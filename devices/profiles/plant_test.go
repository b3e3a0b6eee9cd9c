package profiles

import (
	"context"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/modbus"
	"busgate/devices/sim"
	"busgate/devices/uart"
)

const plant = `
[bus.meters]
serial = "/dev/ttyUSB0"
[device.grid]
bus     = "meters"
unit_id = 1
profile = "eastron-sdm630"
[device.cellar]
bus     = "meters"
unit_id = 2
profile = "xy-md02"
[device.pumps]
bus     = "meters"
unit_id = 3
profile = "relay-4ch"
[device.truck]
serial  = "/dev/ttyUSB1"
profile = "nmea-gps"
`

// newest keeps the newest reading of every point.
type newest struct {
	mu     sync.Mutex
	values map[string]float64 // "grid.power"
	errs   []devices.PointError
}

func (n *newest) Take(_ context.Context, r devices.Round) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, v := range r.Values {
		n.values[r.Device+"."+v.Point] = v.Value.Float()
	}
	n.errs = append(n.errs, r.Errors...)
	return nil
}

func (n *newest) Health(context.Context, devices.Health) {}

// The shipped profiles, the drivers and the schedule read the simulated plant of
// the demo, and what they give belongs together.
func TestPlantIsRead(t *testing.T) {
	cfg, problems := config.Parse("plant.toml", plant, FS)
	for _, p := range problems {
		t.Errorf("%d:%d: %s", p.Pos.Line, p.Pos.Col, p.Msg)
	}
	if cfg == nil {
		t.FailNow()
	}
	synctest.Test(t, func(t *testing.T) {
		bus := sim.NewBus(sim.Line{}, 1, sim.NewSDM630(1, 1), sim.NewXYMD02(2, 1), sim.NewRelays(3, 4))
		truck := sim.NewTalker(sim.Line{}, 1, time.Second, sim.NMEA(1))
		n := &newest{values: map[string]float64{}}
		fleet, err := devices.New(cfg, n, devices.Options{Drivers: map[string]devices.Driver{
			"modbus-rtu": &modbus.Driver{OpenPort: func(context.Context, devices.Wire) (modbus.Port, error) { return bus.Open() }},
			"uart":       &uart.Driver{OpenPort: func(context.Context, devices.Wire) (uart.Port, error) { return truck.Open() }},
		}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { fleet.Run(ctx) })
		time.Sleep(time.Minute)
		if r, err := fleet.Write(ctx, devices.Command{Device: "pumps", Point: "relay3", Text: "on"}); err != nil || r.Code != "" {
			t.Errorf("write: %+v, %v", r, err)
		}
		if w, _ := bus.Unit(3).Get(sim.Coil, 2); w != 1 {
			t.Error("relay 3 is off")
		}
		time.Sleep(time.Minute)
		cancel()
		wg.Wait()

		for _, d := range cfg.Devices {
			for _, p := range d.Points {
				if _, ok := n.values[d.Name+"."+p.Name]; !ok {
					t.Errorf("%s.%s was never read", d.Name, p.Name)
				}
			}
		}
		if len(n.errs) > 0 {
			t.Errorf("errors %v", n.errs)
		}
		if s := bus.Stats(); s.GapViolations+s.Collisions+s.BadRequests > 0 {
			t.Errorf("on the wire: %+v", s)
		}
		v := n.values
		near := func(what string, got, want, by float64) {
			if math.Abs(got-want) > by {
				t.Errorf("%s is %v, want %v", what, got, want)
			}
		}
		near("power of the phases", v["grid.power_l1"]+v["grid.power_l2"]+v["grid.power_l3"], v["grid.power"], 5) // its blocks are short, as commands may come, and the power moves
		near("import of the phases", v["grid.import_l1"]+v["grid.import_l2"]+v["grid.import_l3"], v["grid.import"], 0.01)
		near("L1", v["grid.voltage_l1"]*v["grid.current_l1"]*v["grid.cosphi_l1"], v["grid.power_l1"], 1)
		near("frequency", v["grid.frequency"], 50, 0.1)
		near("cellar", v["cellar.temperature"], 18.4, 1)
		near("humidity", v["cellar.humidity"], 61, 4)
		near("relay 3", v["pumps.relay3"], 1, 0)
		near("relay 1", v["pumps.relay1"], 0, 0)
		near("latitude", v["truck.lat"], 52.52, 0.02)
		near("longitude", v["truck.lon"], 13.405, 0.02)
		near("speed", v["truck.speed"], 50, 12)
	})
}
