package profiles

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/sim"
)

// place is a register of a SunSpec model.
type place struct {
	words, scale int // scale: offset of its scale factor, -1 for none
	typ, unit    string
	name         string
}

// sunspecModels are the registers of the models by offset: those of
// testdata/devices.csv and of testdata/sunspec.csv.
func sunspecModels(t *testing.T) map[int]map[int]place {
	t.Helper()
	out := map[int]map[int]place{}
	for _, id := range []int{101, 103} {
		out[id] = map[int]place{}
		factors := map[string]int{}
		list := rows(t)[fmt.Sprintf("SunSpec model %d", id)]
		for _, r := range list {
			if r.typ == "sunssf" {
				factors[r.point] = r.addr
			}
		}
		for _, r := range list {
			p := place{r.words, -1, r.typ, r.unit, r.point}
			if name, ok := strings.CutPrefix(r.scale, "10^"); ok {
				p.scale = factors[name]
			}
			out[id][r.addr] = p
		}
	}
	for _, l := range lines(t, "testdata/sunspec.csv") {
		n := func(s string) int {
			if s == "" {
				return -1
			}
			v, err := strconv.Atoi(s)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		if out[n(l[0])] == nil {
			out[n(l[0])] = map[int]place{}
		}
		out[n(l[0])][n(l[1])] = place{n(l[2]), n(l[4]), l[3], l[5], l[6]}
	}
	// models of one family have the same registers
	out[102], out[111], out[112], out[201], out[202], out[204] = out[103], out[113], out[113], out[203], out[203], out[203]
	return out
}

// sunspec names the models whose every value a profile must have.
var sunspec = map[string][]int{"sunspec-inverter": {101, 102, 103}, "sunspec-inv-float": {111, 112, 113}, "sunspec-meter": {201, 202, 203, 204}}

// sunspecWords are the states and events of the inverters: symbols of St and Evt1
// in sunspec/models json/model_103.json and model_113.json.
var sunspecWords = map[string]string{
	"enum16": "[{1 off} {2 sleeping} {3 starting} {4 mppt} {5 throttled} {6 shutting-down} {7 fault} {8 standby}]",
	"bitfield32": "[{0 ground-fault} {1 dc-over-voltage} {2 ac-disconnect} {3 dc-disconnect} {4 grid-disconnect} {5 cabinet-open} {6 manual-shutdown} {7 over-temperature}" +
		" {8 over-frequency} {9 under-frequency} {10 ac-over-voltage} {11 ac-under-voltage} {12 blown-string-fuse} {13 under-temperature} {14 memory-loss} {15 hardware-test-failure}]",
}

func TestSunSpecProfilesMatchTheModels(t *testing.T) {
	all := sunspecModels(t)
	types := map[string]string{"acc32": "uint32", "enum16": "uint16", "bitfield32": "uint32"}
	sentinels := map[string]int64{"int16": 0x8000, "uint16": 0xFFFF, "acc32": 0, "enum16": 0xFFFF, "bitfield32": 0xFFFFFFFF}
	for name, whole := range sunspec {
		t.Run(name, func(t *testing.T) {
			p := parse(t, name)
			for i := range p.Points {
				pt := &p.Points[i]
				for _, id := range pt.SunSpec {
					r, ok := all[id][int(pt.Addr)]
					if !ok {
						t.Errorf("%s: there is no register %d in model %d", pt.Name, pt.Addr, id)
						continue
					}
					typ := r.typ
					if types[typ] != "" {
						typ = types[typ]
					}
					if pt.Type != typ || config.Words(pt.Type, pt.Length) != r.words || pt.ScaleReg != r.scale || pt.Unit != r.unit {
						t.Errorf("%s is %s of %d words, scale %d, %q; model %d has %s: %+v", pt.Name, pt.Type, config.Words(pt.Type, pt.Length), pt.ScaleReg, pt.Unit, id, r.name, r)
					}
					if s, has := sentinels[r.typ]; has && !slices.Equal(pt.Invalid, []int64{s}) || !has && len(pt.Invalid) > 0 {
						t.Errorf("%s has the sentinels %v", pt.Name, pt.Invalid)
					}
					if pt.Order != "ABCD" || factor(pt.Scale) != 1 {
						t.Errorf("%s has order %s and scale %v", pt.Name, pt.Order, factor(pt.Scale))
					}
					rest := *pt
					rest.SunSpec, rest.ScaleReg, rest.Length, rest.Interval, rest.Enum, rest.Flags = nil, -1, 0, 0, nil, nil
					nothingElse(t, rest)
					if words := sunspecWords[r.typ]; pt.Name == "state" && fmt.Sprint(pt.Enum) != words || pt.Name == "events" && fmt.Sprint(pt.Flags) != words ||
						pt.Name != "state" && len(pt.Enum) > 0 || pt.Name != "events" && len(pt.Flags) > 0 {
						t.Errorf("%s has the words %v %v", pt.Name, pt.Enum, pt.Flags)
					}
					if (r.typ == "acc32" || r.name == "WH") != (pt.Kind == "total_increasing") {
						t.Errorf("%s: kind %q", pt.Name, pt.Kind)
					}
				}
			}
			for _, id := range whole {
				for off, r := range all[id] {
					if off < 2 || r.typ == "sunssf" || slices.ContainsFunc(p.Points, func(q config.Point) bool { return int(q.Addr) == off && slices.Contains(q.SunSpec, id) }) {
						continue
					}
					t.Errorf("%s of model %d is missing", r.name, id)
				}
			}
			if p.Probe == nil || len(p.Probe.Words) != 2 {
				t.Error("no probe")
			}
		})
	}
}

// model makes the registers of one: offset and value in turn, everything else
// not implemented.
func model(all map[int]map[int]place, id, length int, set map[int]uint16) sim.SunSpecModel {
	regs := make([]uint16, length)
	for off, r := range all[id] {
		for w := range r.words {
			if i := off + w - 2; i >= 0 && i < length {
				regs[i] = map[string]uint16{"int16": 0x8000, "sunssf": 0x8000, "acc32": 0, "string": 0, "float32": 0x7FC0}[r.typ]
				if r.typ == "uint16" || r.typ == "enum16" || r.typ == "bitfield32" {
					regs[i] = 0xFFFF
				}
			}
		}
	}
	for off, v := range set {
		regs[off-2] = v
	}
	return sim.SunSpecModel{ID: uint16(id), Regs: regs}
}

func float(v float32) (hi, lo uint16) {
	b := math.Float32bits(v)
	return uint16(b >> 16), uint16(b)
}

func TestSunSpecDevicesAreRead(t *testing.T) {
	all := sunspecModels(t)
	neg := func(n int16) uint16 { return uint16(n) }
	common := model(all, 1, 66, map[int]uint16{2: 0x4672, 3: 0x6F6E, 4: 0x6975, 5: 0x7300, 18: 0x4931, 50: 0x3132, 51: 0x3334})
	whi, wlo := float(4711.5)
	tests := []struct {
		profile string
		models  []sim.SunSpecModel
		want    string // readings that are available
	}{
		{"sunspec-inverter", []sim.SunSpecModel{common,
			model(all, 103, 50, map[int]uint16{2: 215, 3: 72, 6: neg(-1), 10: 2301, 13: neg(-1), 14: neg(-25), 15: 1, 16: 5001, 17: neg(-2), 24: 0x0001, 25: 0x0000, 26: 1,
				33: 415, 37: neg(-1), 38: 4, 40: 0, 41: 0x0082}),
			model(all, 120, 26, map[int]uint16{3: 500, 4: 1}),
			model(all, 160, 48, map[int]uint16{2: neg(-2), 3: neg(-1), 4: 0, 5: 0, 19: 512, 20: 4003, 21: 2049, 22: 1, 23: 2, 39: 0xFFFF})},
			"manufacturer=Fronius model=I1 serial_number=1234 current=21.5 current_l1=7.2 voltage_l1=230.1 power=-250 frequency=50.01 energy=655360 " +
				"temperature_cabinet=41.5 state=mppt events=dc-over-voltage, over-temperature rated_power=5000 dc1_current=5.12 dc1_voltage=400.3 dc1_power=2049 dc1_energy=65538"},
		{"sunspec-inv-float", []sim.SunSpecModel{common, model(all, 113, 60, map[int]uint16{22: whi, 23: wlo, 48: 8, 50: 0, 51: 0})},
			"manufacturer=Fronius model=I1 serial_number=1234 power=4711.5 state=standby events="},
		{"sunspec-meter", []sim.SunSpecModel{common, model(all, 201, 105, map[int]uint16{2: neg(-123), 6: neg(-2), 7: 2305, 15: neg(-1), 18: neg(-280), 22: 0, 46: 0, 47: 1234, 54: 0})},
			"manufacturer=Fronius model=I1 serial_number=1234 current=-1.23 voltage=230.5 power=-280 import=1234"},
	}
	for _, tt := range tests {
		t.Run(tt.profile, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := parse(t, tt.profile)
				u := sim.NewUnit(1)
				u.SetSunSpec(40000, tt.models...)
				a := answered(t, p, u)
				var got []string
				for _, r := range a.Values {
					if r.Quality == devices.Good && !(r.Value.Kind() == devices.Text && r.Value.String() == "" && r.Point != "events") {
						got = append(got, r.Point+"="+r.Value.String())
					}
				}
				if s := strings.Join(got, " "); s != tt.want {
					t.Errorf("got\n%s\nwant\n%s\nerrors %v", s, tt.want, a.Errors)
				}
				if len(a.Found) > 0 {
					t.Errorf("found %+v", a.Found)
				}
			})
		})
	}
}
