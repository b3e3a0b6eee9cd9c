package modbus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/sim"
)

// inModel is a point of a SunSpec model.
func inModel(name string, off uint16, typ string, scale int, models ...int) config.Point {
	p := point("holding", off, typ)
	p.Name, p.ScaleReg, p.SunSpec = name, scale, models
	return p
}

// inverter is a device with points of three models.
func inverter() *config.Device {
	dev := testDevice(1)
	dev.Points = []config.Point{inModel("power", 14, "int16", 15, 101, 102, 103), inModel("energy", 24, "uint32", 26, 101, 102, 103),
		inModel("dc1", 19, "uint16", 2, 160), inModel("dc2", 39, "uint16", 2, 160), inModel("limit", 5, "uint16", 23, 123)}
	dev.Points[1].Invalid = []int64{0}
	dev.Points[4].Write = true
	return dev
}

// regs is n registers, those given set: offset (from the head) and value in turn.
func regs(n int, set ...int) []uint16 {
	out := make([]uint16, n)
	for i := 0; i < len(set); i += 2 {
		out[set[i]-2] = uint16(set[i+1])
	}
	return out
}

var (
	commonModel = sim.SunSpecModel{ID: 1, Regs: regs(66)}
	threePhase  = sim.SunSpecModel{ID: 103, Regs: regs(50, 14, 2310, 15, 0, 24, 1, 25, 2, 26, 0xFFFF)}
	oneString   = sim.SunSpecModel{ID: 160, Regs: regs(28, 2, 0xFFFE, 19, 512)}
	controls    = sim.SunSpecModel{ID: 123, Regs: regs(24, 5, 100, 23, 0xFFFF)}
)

func TestSunSpecModelsAreFoundWhereverTheyStand(t *testing.T) {
	for _, base := range []uint16{40000, 50000, 0} {
		t.Run(fmt.Sprint(base), func(t *testing.T) {
			onSunSpec(t, inverter(), base, []sim.SunSpecModel{commonModel, {ID: 64001, Regs: regs(3)}, threePhase, controls, oneString}, func(s *station) {
				a := s.poll()
				want := "power=2310\nenergy=6553.8\ndc1=5.12\nlimit=10.0\ndc2: unsupported the device has no SunSpec model 160"
				if got := texts(a); got != want {
					t.Errorf("got\n%s\nwant\n%s", got, want)
				}
				served := s.u.Served()
				if a = s.poll(); texts(a) != want {
					t.Error(texts(a))
				}
				if n := s.u.Served() - served; n > 3 {
					t.Errorf("%d requests a round once the models are known", n)
				}
				// a command goes where the point stands, and is read back there
				if err := s.f.Set(t.Context(), s.g.Device, []devices.Item{{Point: &s.g.Device.Points[4], Raw: []byte{1, 0x2C}}}); err != nil {
					t.Fatal(err)
				}
				raw, err := s.f.Get(t.Context(), s.g.Device, &s.g.Device.Points[4])
				if err != nil || raw[0] != 1 || raw[1] != 0x2C {
					t.Errorf("% x %v", raw, err)
				}
				if _, err := s.f.Get(t.Context(), s.g.Device, &s.g.Device.Points[3]); exceptionCode(err) != 2 {
					t.Errorf("a point that is not there: %v", err)
				}
			})
		})
	}
}

// onSunSpec polls a unit that has nothing but a SunSpec map.
func onSunSpec(t *testing.T, dev *config.Device, base uint16, models []sim.SunSpecModel, fn func(s *station)) {
	t.Helper()
	onStation(t, dev, func(s *station) {
		s.u.SetFill(nil)
		s.u.SetSunSpec(base, models...)
		fn(s)
	})
}

func TestAModelThatMovesGivesNoValue(t *testing.T) {
	dev := inverter()
	onSunSpec(t, dev, 40000, []sim.SunSpecModel{commonModel, threePhase, oneString}, func(s *station) {
		s.poll()
		// a firmware with one more model before it
		s.u.SetSunSpec(40000, commonModel, sim.SunSpecModel{ID: 120, Regs: regs(26)}, threePhase, oneString)
		a := s.poll()
		if len(a.Values) != 0 || len(a.Errors) != 5 || a.Errors[0].Code != "bad-frame" || !strings.Contains(a.Errors[0].Text, "is not at holding") {
			t.Errorf("%s", texts(a))
		}
		if a = s.poll(); !strings.HasPrefix(texts(a), "power=2310\nenergy=6553.8\ndc1=5.12") {
			t.Errorf("found again: %s", texts(a))
		}
	})
}

func TestWhatIsNoSunSpecDevice(t *testing.T) {
	for name, set := range map[string]func(u *sim.Unit){
		"other registers": func(u *sim.Unit) {
			u.SetFill(func(_ sim.Table, a uint16) (uint16, bool) { return a, true })
		},
		"none there": func(u *sim.Unit) { u.SetFill(nil) },
	} {
		t.Run(name, func(t *testing.T) {
			onStation(t, inverter(), func(s *station) {
				set(s.u)
				for range 2 {
					a := s.poll()
					if len(a.Values) != 0 || len(a.Errors) != 5 || a.Errors[0].Code != "unsupported" || a.Errors[0].Text != "this is no SunSpec device" || !a.Heard ||
						len(a.Found) != 1 || a.Found[0].Text != `it is no SunSpec device: "SunS" stands neither at holding 40000 nor at 50000 nor at 0` {
						t.Errorf("%s %+v", texts(a), a)
					}
				}
				s.u.SetSunSpec(50000, commonModel, threePhase)
				time.Sleep(61 * time.Minute)
				if a := s.poll(); len(a.Values) != 2 {
					t.Errorf("an hour later: %s", texts(a))
				}
			})
		})
	}
}

func TestChainsThatEndBadly(t *testing.T) {
	t.Run("without an end model", func(t *testing.T) {
		onStation(t, inverter(), func(s *station) {
			s.u.SetFill(nil)
			words := append([]uint16{0x5375, 0x6E53, 1, 66}, regs(66)...)
			words = append(append(words, 103, 50), threePhase.Regs...)
			s.u.Set(sim.Holding, 40000, words...)
			if a := s.poll(); len(a.Values) != 2 {
				t.Errorf("%s", texts(a))
			}
		})
	})
	t.Run("models of length 0 without end", func(t *testing.T) {
		onStation(t, inverter(), func(s *station) {
			s.u.SetFill(func(_ sim.Table, a uint16) (uint16, bool) {
				return map[bool]uint16{true: 7, false: 0}[a%2 == 0], true
			})
			s.u.Set(sim.Holding, 40000, 0x5375, 0x6E53)
			s.poll()
			if l := s.f.unitOf(s.g.Device).layout; len(l.models) != maxModels {
				t.Errorf("%d models", len(l.models))
			}
		})
	})
	t.Run("a model that is too short for the point", func(t *testing.T) {
		onSunSpec(t, inverter(), 40000, []sim.SunSpecModel{{ID: 103, Regs: regs(20, 14, 5, 15, 0)}}, func(s *station) {
			if a := s.poll(); len(a.Values) != 1 || a.Values[0].Value.String() != "5" {
				t.Errorf("%s", texts(a))
			}
		})
	})
	t.Run("silence in the middle", func(t *testing.T) {
		onSunSpec(t, inverter(), 40000, []sim.SunSpecModel{commonModel, threePhase}, func(s *station) {
			s.u.SetFaults(sim.Faults{Dead: true})
			a := s.poll()
			if a.Heard || !errors.Is(a.Err, devices.ErrNoAnswer) || len(a.Errors) != 5 || a.Errors[0].Code != "no-answer" || a.Tries != 2 {
				t.Errorf("%+v", a)
			}
			s.u.SetFaults(sim.Faults{})
			time.Sleep(10 * time.Second)
			if a := s.poll(); len(a.Values) != 2 {
				t.Errorf("%s", texts(a))
			}
		})
	})
}

func TestACommandMayComeBetweenTheModels(t *testing.T) {
	onSunSpec(t, inverter(), 40000, []sim.SunSpecModel{commonModel, threePhase, oneString}, func(s *station) {
		pauses := 0
		if _, err := s.f.Poll(t.Context(), s.g, func(context.Context) error { pauses++; return nil }); err != nil {
			t.Fatal(err)
		}
		if n := int(s.u.Served()); pauses < n-1 {
			t.Errorf("%d occasions for a write between %d requests", pauses, n)
		}
	})
}
