package modbus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/profiles"
	"busgate/devices/sim"
)

// hall is a serial line with units at several settings, each a bus of its own;
// at any other setting it is as the line of that name, or silent.
type hall map[Setting]*sim.Bus

func (h hall) driver() *Driver {
	return &Driver{OpenPort: func(_ context.Context, w devices.Wire) (Port, error) {
		at := Setting{w.Bus.Baud, w.Bus.Format()}
		if h[at] == nil {
			h[at] = sim.NewBus(sim.Line{Baud: at.Baud, Format: at.Format}, 1)
		}
		return h[at].Open()
	}}
}

func busAt(baud int, format string, units ...*sim.Unit) *sim.Bus {
	return sim.NewBus(sim.Line{Baud: baud, Format: format}, 1, units...)
}

// diary writes down what a scan tells.
type diary struct {
	lines []string
	found []Sighting
	begun []Setting
}

func (d *diary) scan(t *testing.T, sc Scan) Scan {
	t.Helper()
	sc.Log = slog.New(slog.DiscardHandler)
	if sc.Bus == nil {
		sc.Bus = &config.Bus{Name: "scan", Serial: "/dev/ttyUSB0", Protocol: "modbus-rtu"}
	}
	if sc.Settings == nil {
		sc.Settings = DefaultSettings()
	}
	sc.Begin = func(s Setting, _ []uint8) { d.begun = append(d.begun, s) }
	sc.Found = func(x Sighting) {
		var names []string
		for _, f := range x.Fits {
			names = append(names, f.Profile.Name)
		}
		d.found = append(d.found, x)
		d.lines = append(d.lines, strings.TrimSpace(fmt.Sprintf("%d %s unit %d: %s %s", x.Setting.Baud, x.Setting.Format, x.Unit, x.Answer, strings.Join(names, " or "))))
	}
	sc.Done = func(s Setting, o Outcome) {
		d.lines = append(d.lines, fmt.Sprintf("%d %s %s", s.Baud, s.Format, [...]string{"silence", "answers", "noise", "impossible"}[o]))
	}
	return sc
}

func shipped(t *testing.T) []*config.Profile {
	t.Helper()
	list, problems := config.Profiles("", profiles.FS)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return list
}

func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestScanFindsSettingsAndUnits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		odd := sim.NewUnit(17) // nothing but exceptions
		nosy := counting(9, 0) // does not know function 04
		nosy.Without(4)
		h := hall{
			{9600, "8N1"}:  busAt(9600, "8N1", sim.NewSDM630(1, 1), sim.NewXYMD02(2, 1), odd),
			{19200, "8E1"}: busAt(19200, "8E1", nosy, counting(200, 40000)),
			{19200, "8N1"}: busAt(19200, "8N1", sim.NewUnit(1)),
		}
		h[Setting{19200, "8N1"}].SetFaults(sim.Faults{WrongBaud: true})
		var d diary
		start := time.Now()
		err := h.driver().Scan(t.Context(), d.scan(t, Scan{Profiles: shipped(t), Settings: DefaultSettings()[:5]}))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%v in virtual time", time.Since(start))
		expect(t, d.lines,
			"9600 8N1 unit 1: input 0 = 17255 eastron-sdm630",
			"9600 8N1 unit 2: exception 2 to input 0 xy-md02",
			"19200 8E1 unit 9: exception 1 to input 0",
			"19200 8N1 noise",
			"9600 8N1 unit 17: exception 2 to input 0",
			"9600 8N1 answers",
			"19200 8E1 unit 200: input 0 = 40000",
			"19200 8E1 answers",
			"9600 8E1 silence",
			"38400 8N1 silence")
		v := d.found[0].Fits[0].Value.Float()
		if p := d.found[0].Fits[0].Point; p.Name != "voltage_l1" || v < 225 || v > 236 {
			t.Errorf("%s %v", p.Name, v)
		}
		for at, bus := range h {
			if s := bus.Stats(); s.GapViolations > 0 || s.Collisions > 0 {
				t.Errorf("%v: %+v", at, s)
			}
		}
	})
}

func TestScanTellsProfilesOfAFamilyApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		single := sim.NewUnit(3) // a voltage, and zeros wherever it is asked
		single.SetFill(func(table sim.Table, _ uint16) (uint16, bool) { return 0, table == sim.Input })
		single.SetFloat32(sim.Input, 0, 231)
		nearly := sim.NewUnit(4) // one value that only the next larger model has: not enough
		nearly.SetFill(func(table sim.Table, _ uint16) (uint16, bool) { return 0, table == sim.Input })
		nearly.SetFloat32(sim.Input, 0, 231)
		nearly.SetFloat32(sim.Input, 0x24, 12)
		strict := sim.NewUnit(5) // refuses what its model does not have
		for _, p := range shipped(t) {
			for i := range p.Points {
				if p.Name == "eastron-sdm120" {
					strict.SetFloat32(sim.Input, p.Points[i].Addr, 231)
				}
			}
		}
		h := hall{{9600, "8N1"}: busAt(9600, "8N1", sim.NewSDM630(1, 1), single, nearly, strict)}
		var d diary
		if err := h.driver().Scan(t.Context(), d.scan(t, Scan{Profiles: shipped(t), Units: []uint8{1, 3, 4, 5}, Settings: DefaultSettings()[:1]})); err != nil {
			t.Fatal(err)
		}
		expect(t, d.lines,
			"9600 8N1 unit 1: input 0 = 17255 eastron-sdm630",
			"9600 8N1 unit 3: input 0 = 17255 eastron-sdm120 or eastron-sdm230 or eastron-sdm630 or eastron-sdm72-v2",
			"9600 8N1 unit 4: input 0 = 17255 eastron-sdm120 or eastron-sdm230 or eastron-sdm630 or eastron-sdm72-v2",
			"9600 8N1 unit 5: input 0 = 17255 eastron-sdm120",
			"9600 8N1 answers")
	})
}

func TestScanDoesNotBelieveAProbeThatOtherValuesContradict(t *testing.T) {
	for _, c := range []struct {
		name         string
		temp, humid  uint16
		want         string
		withoutHumid bool
	}{
		{"18.4 °C and 61 %", 184, 610, " xy-md02", false},
		{"0 °C and 61 %", 0, 610, " xy-md02", false},
		{"18.4 °C and 1632 %", 184, 16320, "", false},
		{"zeros", 0, 0, "", false},
		{"18.4 °C, and no other register", 184, 0, " xy-md02", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := sim.NewUnit(1)
				u.Set(sim.Input, 0, 7)
				u.Set(sim.Input, 1, c.temp)
				if !c.withoutHumid {
					u.Set(sim.Input, 2, c.humid)
				}
				var d diary
				h := hall{{9600, "8N1"}: busAt(9600, "8N1", u)}
				if err := h.driver().Scan(t.Context(), d.scan(t, Scan{Profiles: shipped(t), Units: []uint8{1}, Settings: DefaultSettings()[:1]})); err != nil {
					t.Fatal(err)
				}
				expect(t, d.lines, "9600 8N1 unit 1: input 0 = 7"+c.want, "9600 8N1 answers")
			})
		})
	}
}

func TestScanKnowsRawRegisters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sun, wind := sim.NewUnit(1), sim.NewUnit(2)
		sun.Set(sim.Holding, 40000, 0x5375, 0x6E53)
		wind.Set(sim.Holding, 40000, 0x5375, 0x6E54)
		p := &config.Profile{Name: "sunspec", Probe: &config.Probe{Table: "holding", Words: []config.ProbeWord{{Addr: 40000, Value: 0x5375}, {Addr: 40001, Value: 0x6E53}}}}
		h := hall{{9600, "8N1"}: busAt(9600, "8N1", sun, wind)}
		var d diary
		if err := h.driver().Scan(t.Context(), d.scan(t, Scan{Profiles: []*config.Profile{p}, Fast: true})); err != nil {
			t.Fatal(err)
		}
		expect(t, d.lines, "9600 8N1 unit 1: exception 2 to input 0 sunspec", "9600 8N1 unit 2: exception 2 to input 0", "9600 8N1 answers")
	})
}

func TestScanHearsSlowUnits(t *testing.T) {
	for _, slow := range []time.Duration{150 * time.Millisecond, 320 * time.Millisecond, 550 * time.Millisecond} {
		t.Run(slow.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := counting(5, 0)
				u.SetAnswerTime(slow, 0)
				h := hall{{9600, "8N1"}: busAt(9600, "8N1", u)}
				var d diary
				if err := h.driver().Scan(t.Context(), d.scan(t, Scan{Units: []uint8{5}, Settings: DefaultSettings()[:1]})); err != nil {
					t.Fatal(err)
				}
				expect(t, d.lines, "9600 8N1 unit 5: input 0 = 0", "9600 8N1 answers")
			})
		})
	}
}

func TestSlowUnitMakesTheScanPatient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := counting(3, 0)
		slow.SetAnswerTime(150*time.Millisecond, 0)
		h := hall{{9600, "8N1"}: busAt(9600, "8N1", slow, counting(8, 0))}
		var d diary
		if err := h.driver().Scan(t.Context(), d.scan(t, Scan{Fast: true})); err != nil {
			t.Fatal(err)
		}
		expect(t, d.lines, "9600 8N1 unit 3: input 0 = 0", "9600 8N1 unit 8: input 0 = 0", "9600 8N1 answers")
		if d.found[0].Took < 100*time.Millisecond {
			t.Errorf("unit 3 took %v", d.found[0].Took)
		}
	})
}

func TestScanFindsAUnitThatIgnoresFunction04(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := sim.Line{Baud: 9600}
		bus := sim.NewPolled(line, 1, func(req []byte, _ time.Duration) []byte {
			if req[0] != 6 || req[1] != 3 {
				return nil
			}
			return line.Seal(6, []byte{3, 2, 0, 42})
		})
		var d diary
		if err := (hall{{9600, "8N1"}: bus}).driver().Scan(t.Context(), d.scan(t, Scan{Fast: true, Profiles: shipped(t)})); err != nil {
			t.Fatal(err)
		}
		expect(t, d.lines, "9600 8N1 unit 6: holding 0 = 42", "9600 8N1 answers")
	})
}

func TestScanWithTwoUnitsOfOneNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hall{{9600, "8N1"}: busAt(9600, "8N1", counting(1, 0), counting(4, 0))}
		h[Setting{9600, "8N1"}].Unit(1).SetFaults(sim.Faults{Double: true})
		var d diary
		if err := h.driver().Scan(t.Context(), d.scan(t, Scan{Fast: true})); err != nil {
			t.Fatal(err)
		}
		expect(t, d.lines, "9600 8N1 unit 4: input 0 = 0", "9600 8N1 unit 1: damaged answers", "9600 8N1 answers")
		if len(d.found) != 2 || d.found[0].Damaged || !d.found[1].Damaged {
			t.Errorf("%+v", d.found)
		}
	})
}

func TestScanOnANoisyLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hall{{9600, "8N1"}: busAt(9600, "8N1", counting(1, 0), counting(2, 0), counting(3, 0))}
		h[Setting{9600, "8N1"}].SetFaults(sim.Faults{Damage: .2, Stray: .1})
		var d diary
		if err := h.driver().Scan(t.Context(), d.scan(t, Scan{Fast: true})); err != nil {
			t.Fatal(err)
		}
		expect(t, d.lines, "9600 8N1 unit 1: input 0 = 0", "9600 8N1 unit 2: input 0 = 0", "9600 8N1 unit 3: input 0 = 0", "9600 8N1 answers")
	})
}

func TestScanKeepsWhatWasFoundWhenItIsStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		bus := busAt(9600, "8N1", counting(1, 0), counting(9, 0))
		var d diary
		sc := d.scan(t, Scan{})
		found := sc.Found
		sc.Found = func(x Sighting) { found(x); time.AfterFunc(300*time.Millisecond, cancel) }
		err := hall{{9600, "8N1"}: bus}.driver().Scan(ctx, sc)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		expect(t, d.lines, "9600 8N1 unit 1: input 0 = 0")
		if p, err := bus.Open(); err != nil {
			t.Error("the port was not closed")
		} else {
			p.Close()
		}
	})
}

func TestScanStoppedWhileItLooksWhatAUnitIsKeepsTheUnit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
		defer cancel()
		var d diary
		err := hall{{9600, "8N1"}: busAt(9600, "8N1", sim.NewSDM630(1, 1))}.driver().Scan(ctx, d.scan(t, Scan{Profiles: shipped(t)}))
		if !errors.Is(err, context.DeadlineExceeded) || len(d.found) != 1 || d.found[0].Unit != 1 {
			t.Errorf("%v, %v", err, d.lines)
		}
	})
}

func TestFastScanEndsWithTheFirstSettingThatAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hall{{9600, "8E1"}: busAt(9600, "8E1", counting(2, 0), counting(11, 0))}
		var d diary
		if err := h.driver().Scan(t.Context(), d.scan(t, Scan{Fast: true})); err != nil {
			t.Fatal(err)
		}
		expect(t, d.lines, "9600 8N1 silence", "9600 8E1 unit 2: input 0 = 0", "9600 8E1 answers")
	})
}

func TestScanSkipsWhatThePortCannotDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hall{{9600, "8E1"}: busAt(9600, "8E1", counting(2, 0))}
		drv := h.driver()
		open := drv.OpenPort
		drv.OpenPort = func(ctx context.Context, w devices.Wire) (Port, error) {
			if w.Bus.Parity == 'N' {
				return nil, &trouble{"port-settings", "ttyUSB0 cannot be set to 9600 8N1", errors.New("EINVAL")}
			}
			return open(ctx, w)
		}
		var d diary
		if err := drv.Scan(t.Context(), d.scan(t, Scan{Fast: true})); err != nil {
			t.Fatal(err)
		}
		expect(t, d.lines, "9600 8N1 impossible", "9600 8E1 unit 2: input 0 = 0", "9600 8E1 answers")
		d = diary{}
		err := drv.Scan(t.Context(), d.scan(t, Scan{Settings: DefaultSettings()[:1]}))
		if tr, ok := errors.AsType[devices.Trouble](err); !ok || tr.Word() != "port-settings" {
			t.Errorf("the only setting: %v", err)
		}
	})
}

func TestScanEndsWithABusyPort(t *testing.T) {
	busy := &trouble{"port-busy", "ttyUSB0 is in use by mbmd", errors.New("EBUSY")}
	drv := &Driver{OpenPort: func(context.Context, devices.Wire) (Port, error) { return nil, busy }}
	var d diary
	if err := drv.Scan(t.Context(), d.scan(t, Scan{})); !errors.Is(err, busy) || len(d.begun) > 0 {
		t.Errorf("%v, %v", err, d.begun)
	}
}

func TestScanNeverWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := sim.NewRelays(1, 4)
		u.OnWrite(func(table sim.Table, addr, _ uint16) uint16 {
			t.Errorf("written: table %d address %d", table, addr)
			return 0
		})
		var d diary
		if err := (hall{{9600, "8N1"}: busAt(9600, "8N1", u)}).driver().Scan(t.Context(), d.scan(t, Scan{Profiles: shipped(t), Fast: true})); err != nil {
			t.Fatal(err)
		}
		expect(t, d.lines, "9600 8N1 unit 1: exception 2 to input 0", "9600 8N1 answers")
	})
}

func TestSettingsInTheOrderOfTheirLikelihood(t *testing.T) {
	var got []string
	for _, s := range DefaultSettings() {
		got = append(got, fmt.Sprint(s.Baud, " ", s.Format))
	}
	expect(t, got, "9600 8N1", "9600 8E1", "19200 8E1", "19200 8N1", "38400 8N1", "38400 8E1", "57600 8N1", "57600 8E1",
		"115200 8N1", "115200 8E1", "4800 8N1", "4800 8E1", "2400 8N1", "2400 8E1")
}
