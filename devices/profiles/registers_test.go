package profiles

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/modbus"
	"busgate/devices/sim"
)

// factor is a scale, where none is 1.
func factor(d config.Decimal) float64 {
	if d.M == 0 {
		return 1
	}
	return d.Float()
}

// nothingElse fails if a point has more to it than a row can say: what a row says
// is compared elsewhere.
func nothingElse(t *testing.T, p config.Point) {
	t.Helper()
	want := config.Point{Bit: -1, ScaleReg: -1, Digits: p.Digits, At: -1, Column: -1,
		Name: p.Name, Table: p.Table, Addr: p.Addr, Type: p.Type, Order: p.Order, Scale: p.Scale, Unit: p.Unit,
		Byte: map[string]string{"uint8": "low", "string": "both"}[p.Type], Invalid: p.Invalid, Write: p.Write, Kind: p.Kind, Class: p.Class, Label: p.Label}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("%s has what no row says:\n%+v\nwant\n%+v", p.Name, p, want)
	}
}

// sentinel is the raw value that a row calls "not available", as a Point holds it.
func sentinel(t *testing.T, r row) []int64 {
	t.Helper()
	bits := 16 * r.words
	switch {
	case !strings.Contains(r.note, "not available"):
		return nil
	case strings.HasPrefix(r.note, "all bits 1"):
		return []int64{int64(^uint64(0) >> (64 - bits))}
	case strings.HasPrefix(r.note, "0x7FFF"):
		return []int64{int64(^uint64(0) >> (65 - bits))}
	}
	t.Fatalf("%s: what is the sentinel? %s", r.point, r.note)
	return nil
}

// raw is the n-th value of a test for a row: its registers in the row's order, and
// the number that they mean before scaling. Every row has another, whose words
// differ.
func raw(t *testing.T, r row, n int) (words []uint16, v float64) {
	t.Helper()
	var u uint64
	switch r.typ {
	case "bool":
		return []uint16{uint16(n % 2)}, float64(n % 2)
	case "uint16":
		u = uint64(40000 + n)
		v = float64(u)
	case "int16":
		u = uint64(uint16(-1000 - n))
		v = float64(-1000 - n)
	case "uint32":
		u = 0x9002_0000 + uint64(n)
		v = float64(u)
	case "int32":
		u = uint64(uint32(-70000 - n))
		v = float64(-70000 - n)
	case "uint64", "int64":
		u = 0x0000_0003_0002_0000 + uint64(n)
		v = float64(u)
	case "float32":
		u = uint64(math.Float32bits(230.25 + float32(n)))
		v = 230.25 + float64(n)
	default:
		t.Fatalf("%s: type %q is not in this test", r.point, r.typ)
	}
	for i := r.words - 1; i >= 0; i-- {
		words = append(words, uint16(u>>(16*i)))
	}
	if r.order == "CDAB" {
		slices.Reverse(words)
	}
	return words, v
}

// tables are those that the functions read.
var tables = map[int]sim.Table{1: sim.Coil, 2: sim.Discrete, 3: sim.Holding, 4: sim.Input}

// answered is what a unit answers when it is asked with a profile, on a bus of
// its own through the driver.
func answered(t *testing.T, p *config.Profile, u *sim.Unit) devices.Answer {
	t.Helper()
	bus := sim.NewBus(sim.Line{Baud: 19200}, 1, u)
	d := &modbus.Driver{OpenPort: func(context.Context, devices.Wire) (modbus.Port, error) { return bus.Open() }}
	cfg := &config.Bus{Name: "meters", Serial: "/dev/ttyUSB0", Protocol: "modbus-rtu", Baud: 19200, DataBits: 8, Parity: 'N', StopBits: 1,
		Timeout: 500 * time.Millisecond, Retries: 1, MaxRead: 125, MaxHole: 124}
	dev := &config.Device{Name: "meter", UnitID: 1, Points: p.Points, MaxRead: p.Defaults.MaxRead, AnswerTime: p.AnswerTime}
	f, err := d.Open(t.Context(), devices.Wire{Bus: cfg, Devices: []*config.Device{dev}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	g := &devices.Group{Device: dev}
	for i := range p.Points {
		g.Points = append(g.Points, i)
	}
	a, err := f.Poll(t.Context(), g, func(ctx context.Context) error { return ctx.Err() })
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// asked is the reading of each point.
func asked(t *testing.T, p *config.Profile, u *sim.Unit) map[string]devices.Reading {
	t.Helper()
	a, got := answered(t, p, u), map[string]devices.Reading{}
	for _, e := range a.Errors {
		t.Errorf("%s: %s", e.Point, e.Text)
	}
	for _, r := range a.Values {
		got[r.Point] = r
	}
	return got
}

// A unit that holds what the rows say is read with each profile through the driver:
// every point gives the number that stands at its row, and nothing where the row's
// sentinel stands.
func TestEveryRegisterIsReadAsItsRowSays(t *testing.T) {
	all := rows(t)
	for name, m := range models {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := parse(t, name)
				u, empty := sim.NewUnit(1), sim.NewUnit(1)
				zeros := func(sim.Table, uint16) (uint16, bool) { return 0, true }
				u.SetFill(zeros)
				empty.SetFill(zeros)
				if name == "growatt-tlx" { // it refuses more
					u.SetMaxRead(64)
					empty.SetMaxRead(64)
				}
				want := map[string]float64{}
				for i, r := range all[m.device] {
					table, reads := tables[r.fc]
					if !reads {
						continue
					}
					words, v := raw(t, r, i)
					u.Set(table, uint16(r.addr), words...)
					if none := sentinel(t, r); none != nil {
						words = nil
						for k := r.words - 1; k >= 0; k-- {
							words = append(words, uint16(uint64(none[0])>>(16*k)))
						}
					}
					empty.Set(table, uint16(r.addr), words...)
					if m.out == nil || m.out(r) == "" {
						var scale float64
						if _, err := fmt.Sscan(r.scale, &scale); err != nil {
							t.Fatal(err)
						}
						want[r.point] = v * scale
					}
				}
				got, without := asked(t, p, u), asked(t, p, empty)
				for _, r := range all[m.device] {
					v, is := want[r.point]
					if !is {
						continue
					}
					x, ok := got[r.point]
					if f := x.Value.Float(); !ok || x.Quality != devices.Good || math.Abs(f-v) > 1e-6*math.Abs(v) {
						t.Errorf("%s reads %v (%v), its register holds %v", r.point, x.Value, x.Quality, v)
					}
					none := strings.Contains(r.note, "not available")
					if y := without[r.point]; none != (y.Quality == devices.NotAvailable) {
						t.Errorf("%s reads %v (%v) of a device that calls it not available: %v", r.point, y.Value, y.Quality, none)
					}
				}
			})
		})
	}
}

// told is what a profile says beside its registers.
type told struct {
	defaults string // baud, format, unit, interval, then what is unusual
	probe    string
	why      string // where that comes from
}

// mains are the volts between a phase and neutral that prove a meter: from 100 V
// less a fifth to 240 V and a sixth more.
const mains = "80 to 280"

var others = map[string]told{
	"abb-b-series":      {"unit 1, 10s", "voltage_l1 " + mains, "the wire is set at the meter"},
	"chint-dtsu666":     {"unit 1, 10s", "voltage_l1 " + mains, "the wire is set at the meter"},
	"eastron-sdm120":    {"unit 1, 10s", "voltage " + mains, "the wire is set at the meter"},
	"eastron-sdm230":    {"unit 1, 10s", "voltage " + mains, "the wire is set at the meter"},
	"eastron-sdm630":    {"9600 8N1, unit 1, 10s", "voltage_l1 " + mains, "SDM630 Modbus manual: as delivered"},
	"eastron-sdm72-v2":  {"unit 1, 10s", "voltage_l1 " + mains, "the wire is set at the meter"},
	"gavazzi-em24":      {"unit 1, 10s, order CDAB", "voltage_l1 " + mains, "low word first: mbmd"},
	"gavazzi-em340":     {"unit 1, 10s, order CDAB", "voltage_l1 " + mains, "low word first: mbmd"},
	"growatt-tlx":       {"unit 1, 10s, at most 64", "grid_frequency 45 to 65", "growatt2mqtt reads windows of 64"},
	"pzem-016":          {"unit 1, 10s, order CDAB", "voltage " + mains, "low word first: wb-mqtt-serial"},
	"relay-4ch":         {"9600 8N1, unit 1, 10s", "none", "Waveshare wiki; a coil proves nothing"},
	"relay-8ch":         {"9600 8N1, unit 1, 10s", "none", "Waveshare wiki; a coil proves nothing"},
	"schneider-iem3000": {"unit 1, 10s", "voltage_l1 " + mains, "the wire is set at the meter"},
	"sunspec-inv-float": {"unit 1, 10s", "holding 40000=5375 40001=6E53", `"SunS"`},
	"sunspec-inverter":  {"unit 1, 10s", "holding 40000=5375 40001=6E53", `"SunS"`},
	"sunspec-meter":     {"unit 1, 10s", "holding 40000=5375 40001=6E53", `"SunS"`},
	"xy-md02":           {"9600 8N1, unit 1, 10s, thinks 20ms", "temperature -40 to 85", "the range of its SHT20"},

	"dini-argeo-scale":  {"9600 8N1, 10s", "weight -100000 to 100000", "a line of that form is rare"},
	"dsmr-p1":           {"115200 8N1, 10s", "import_t1 0 to 1e+07", "DSMR 4 and 5: 115200 8N1"},
	"nmea-gps":          {"9600 8N1, 10s", "lat -90 to 90", "most receivers; NMEA 0183 has 4800"},
	"nova-sds011":       {"9600 8N1, 10s, order DCBA", "pm2_5 0 to 1000", "specification: 0.0 to 999.9"},
	"plantower-pms5003": {"9600 8N1, 10s", "pm2_5 0 to 1000", "manual: up to 1000"},
	"sml-meter":         {"9600 8N1, 10s", "import 0 to 1e+07", "BSI TR-03109: 9600 8N1"},
	"winsen-mh-z19":     {"9600 8N1, 10s", "co2 300 to 5000", "outside air has 400; its range ends at 5000"},
}

func defaultsOf(p *config.Profile) string {
	d := p.Defaults
	var out []string
	if d.Baud != 0 || d.Format != "" {
		out = append(out, fmt.Sprint(d.Baud, " ", d.Format))
	}
	if d.UnitID != 0 {
		out = append(out, fmt.Sprint("unit ", d.UnitID))
	}
	out = append(out, d.Interval.String())
	if d.Order != "" {
		out = append(out, "order "+d.Order)
	}
	if d.MaxRead != 0 {
		out = append(out, fmt.Sprint("at most ", d.MaxRead))
	}
	if p.AnswerTime != 0 {
		out = append(out, fmt.Sprint("thinks ", p.AnswerTime))
	}
	d.Baud, d.Format, d.UnitID, d.Interval, d.Order, d.MaxRead = 0, "", 0, 0, "", 0
	if d != (config.ProfileDefaults{MaxHole: -1}) {
		out = append(out, fmt.Sprintf("%+v", d))
	}
	return strings.Join(out, ", ")
}

func probeOf(p *config.Profile) string {
	if p.Probe == nil {
		return "none"
	}
	if p.Probe.Words == nil {
		return fmt.Sprintf("%s %g to %g", p.Probe.Point, *p.Probe.Min, *p.Probe.Max)
	}
	out := p.Probe.Table
	for _, w := range p.Probe.Words {
		out += fmt.Sprintf(" %d=%04X", w.Addr, w.Value)
	}
	return out
}

// No list of registers says how a device is delivered and what proves it.
func TestDefaultsAndProbes(t *testing.T) {
	for _, name := range names(t) {
		name = strings.TrimSuffix(name, ".toml")
		p, want := parse(t, name), others[name]
		if got := defaultsOf(p); got != want.defaults {
			t.Errorf("%s has the defaults %q, want %q (%s)", name, got, want.defaults, want.why)
		}
		if got := probeOf(p); got != want.probe {
			t.Errorf("%s has the probe %q, want %q (%s)", name, got, want.probe, want.why)
		}
	}
	if n := len(names(t)); len(others) != n {
		t.Errorf("%d profiles, %d in this test", n, len(others))
	}
}
