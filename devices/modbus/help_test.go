package modbus

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/sim"
)

// testBus is the configuration of a serial bus with a sim.Line.
func testBus(l sim.Line) *config.Bus {
	if l.Format == "" {
		l.Format = "8N1"
	}
	return &config.Bus{Name: "meters", Serial: "/dev/ttyUSB0", Protocol: "modbus-rtu", Baud: l.Baud,
		DataBits: int(l.Format[0] - '0'), Parity: l.Format[1], StopBits: int(l.Format[2] - '0'),
		Timeout: 500 * time.Millisecond, Retries: 1, MaxRead: 125, MaxHole: 124}
}

// openSim opens a field on a simulated bus.
func openSim(t *testing.T, d *Driver, cfg *config.Bus, bus *sim.Bus, devs ...*config.Device) *field {
	t.Helper()
	d.OpenPort = func(context.Context, devices.Wire) (Port, error) { return bus.Open() }
	f, err := d.Open(t.Context(), devices.Wire{Bus: cfg, Devices: devs, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f.(*field)
}

// testDevice is a device with uint16 points at the given holding registers.
func testDevice(unit uint8, addrs ...uint16) *config.Device {
	d := &config.Device{Name: "grid", Bus: "meters", UnitID: unit, Interval: time.Second, Enabled: true, OfflineAfter: 3, Backoff: time.Minute, MaxRead: 125}
	for _, a := range addrs {
		d.Points = append(d.Points, point("holding", a, "uint16"))
	}
	return d
}

func point(table string, addr uint16, typ string) config.Point {
	return config.Point{Name: table + "-" + itoa(int(addr)), Table: table, Addr: addr, Type: typ, Bit: -1, ScaleReg: -1, At: -1, Column: -1, Digits: -1, Order: "ABCD"}
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + string(rune('0'+n%10))
}

// groupOf is all points of a device.
func groupOf(d *config.Device) *devices.Group {
	g := &devices.Group{Device: d, Interval: d.Interval}
	for i := range d.Points {
		g.Points = append(g.Points, i)
	}
	return g
}

func noPause(ctx context.Context) error { return ctx.Err() }

// counting serves register a as a plus base.
func counting(id byte, base uint16) *sim.Unit {
	u := sim.NewUnit(id)
	u.SetFill(func(_ sim.Table, a uint16) (uint16, bool) { return a + base, true })
	return u
}
