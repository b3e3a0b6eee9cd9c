package modbus

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/sim"
)

// notebook is a Memory that counts.
type notebook struct {
	facts map[string][]byte
	saves int
}

func (n *notebook) Load(key string) ([]byte, error) { return n.facts[key], nil }
func (n *notebook) Save(key string, v []byte) {
	n.saves++
	n.facts[key] = v
}

// again opens a bus with what the notebook holds, as after a restart.
func (n *notebook) again(t *testing.T, bus *sim.Bus, dev *config.Device) *station {
	t.Helper()
	d := &Driver{OpenPort: func(context.Context, devices.Wire) (Port, error) { return bus.Open() }}
	cfg := testBus(bus.Line())
	opened, err := d.Open(t.Context(), devices.Wire{Bus: cfg, Devices: []*config.Device{dev}, Memory: n, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return &station{t: t, bus: bus, u: bus.Unit(dev.UnitID), f: opened.(*field), g: groupOf(dev)}
}

const factKey = "modbus//dev/ttyUSB0/1"

// inMemory runs fn with a unit that refuses two gaps and has an identity.
func inMemory(t *testing.T, fn func(n *notebook, bus *sim.Bus, u *sim.Unit, dev *config.Device)) {
	synctest.Test(t, func(t *testing.T) {
		u := counting(1, 0)
		u.SetAnswerTime(12*time.Millisecond, 0)
		u.SetIdentity("Maker", "Model", "1.0")
		u.Refuse(sim.Holding, 2, 4, 2)
		u.Refuse(sim.Holding, 15, 15, 2)
		u.Refuse(sim.Holding, 40, 40, 2)
		bus := sim.NewBus(sim.Line{Baud: 19200, Format: "8E1"}, 1, u)
		fn(&notebook{facts: map[string][]byte{}}, bus, u, testDevice(1, 0, 1, 5, 6, 10, 11, 20, 21, 40))
	})
}

func TestWhatWasLearnedSurvivesARestart(t *testing.T) {
	inMemory(t, func(n *notebook, bus *sim.Bus, u *sim.Unit, dev *config.Device) {
		s := n.again(t, bus, dev)
		for range 40 {
			s.poll()
			time.Sleep(10 * time.Second)
		}
		if n.saves < 1 || n.saves > 3 {
			t.Errorf("%d saves in 7 minutes of nothing new", n.saves)
		}
		before := s.f.unitOf(dev)
		s.f.Close()
		var k known
		if err := json.Unmarshal(n.facts[factKey], &k); err != nil || k.Identity != "Maker | Model | 1.0" || len(k.Illegal) < 2 || len(k.Refused) != 1 || k.Turn < 11000 || k.Turn > 13000 || k.P99 < 12000 {
			t.Errorf("kept: %+v, %v", k, err)
		}
		served := u.Served()
		s = n.again(t, bus, dev)
		defer s.f.Close()
		a := s.poll()
		if exc := s.f.unitOf(dev).counts.Exceptions; exc != 0 || len(a.Values) != 8 {
			t.Errorf("%d exceptions in the first round after the restart: %s", exc, texts(a))
		}
		if got := u.Served() - served; got != 3+1 { // as before the restart, and the identity
			t.Errorf("the first round takes %d requests, want 3 and the identity", got)
		}
		if now := s.f.unitOf(dev); now.ta.Round(time.Millisecond) != before.ta.Round(time.Millisecond) || len(now.illegal) != len(before.illegal) {
			t.Errorf("%v %v, before %v %v", now.ta, now.illegal, before.ta, before.illegal)
		}
		// what was refused is asked again soon, and is there now
		u.Set(sim.Holding, 40, 7)
		time.Sleep(2 * time.Minute)
		exceptions := s.f.unitOf(dev).counts.Exceptions
		s.poll()
		if s.f.unitOf(dev).counts.Exceptions == exceptions {
			t.Error("a register that was refused before the restart is not asked again")
		}
	})
}

func TestFactsOfAnotherDeviceDoNoHarm(t *testing.T) {
	for name, swap := range map[string]func(u *sim.Unit, dev *config.Device, n *notebook){
		"another identity": func(u *sim.Unit, _ *config.Device, _ *notebook) { u.SetIdentity("Other", "Thing", "2") },
		"another map":      func(_ *sim.Unit, dev *config.Device, _ *notebook) { dev.Points[8] = point("holding", 41, "uint16") },
		"another profile":  func(_ *sim.Unit, dev *config.Device, _ *notebook) { dev.Profile = "other" },
		"damaged":          func(_ *sim.Unit, _ *config.Device, n *notebook) { n.facts[factKey] = n.facts[factKey][:20] },
		"out of range": func(_ *sim.Unit, _ *config.Device, n *notebook) {
			n.facts[factKey] = []byte(strings.Replace(string(n.facts[factKey]), `"illegal":[[1,`, `"illegal":[[9,`, 1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			inMemory(t, func(n *notebook, bus *sim.Bus, u *sim.Unit, dev *config.Device) {
				s := n.again(t, bus, dev)
				for range 20 {
					s.poll()
				}
				s.f.Close()
				u.SetMaxRead(125)
				next := sim.NewUnit(1) // it has all registers, and thinks longer
				next.SetFill(func(_ sim.Table, a uint16) (uint16, bool) { return a + 500, true })
				next.SetIdentity("Maker", "Model", "1.0")
				next.SetAnswerTime(120*time.Millisecond, 0)
				swap(next, dev, n)
				bus.Add(next)
				s = n.again(t, bus, dev)
				defer s.f.Close()
				s.poll()
				for range 3 {
					a := s.poll()
					if len(a.Values) != 9 || a.Values[8].Value.String() != itoa(int(dev.Points[8].Addr)+500) || len(a.Errors) != 0 {
						t.Fatalf("%s", texts(a))
					}
				}
				if l := s.f.unitOf(dev).illegal; len(l) != 0 {
					t.Errorf("still forbidden: %v", l)
				}
				before := next.Served()
				s.poll()
				if got := next.Served() - before; got != 1 {
					t.Errorf("a round takes %d requests, want 1", got)
				}
			})
		})
	}
	t.Run("without an identity only requests are lost", func(t *testing.T) {
		inMemory(t, func(n *notebook, bus *sim.Bus, u *sim.Unit, dev *config.Device) {
			u.Without(0x2B)
			s := n.again(t, bus, dev)
			for range 20 {
				s.poll()
			}
			s.f.Close()
			next := sim.NewUnit(1) // legal there is illegal here, and the other way round
			next.SetFill(func(_ sim.Table, a uint16) (uint16, bool) { return a + 500, true })
			next.Refuse(sim.Holding, 7, 9, 2)
			bus.Add(next)
			s = n.again(t, bus, dev)
			defer s.f.Close()
			s.poll()
			time.Sleep(2 * time.Minute)
			for range 3 {
				if a := s.poll(); len(a.Values) != 9 {
					t.Fatalf("%s", texts(a))
				}
			}
			if u := s.f.unitOf(dev); u.maxRead != 125 {
				t.Errorf("a gap that became illegal is taken for a limit of %d registers", u.maxRead)
			}
		})
	})
}

// A unit that comes back from silence may be another one.
func TestAnotherDeviceAfterSilence(t *testing.T) {
	inMemory(t, func(n *notebook, bus *sim.Bus, u *sim.Unit, dev *config.Device) {
		s := n.again(t, bus, dev)
		defer s.f.Close()
		for range 20 {
			s.poll()
		}
		u.SetFaults(sim.Faults{Dead: true})
		s.poll()
		next := counting(1, 500)
		next.SetIdentity("Maker", "Model", "2.0")
		bus.Add(next)
		s.poll()
		if a := s.poll(); len(a.Values) != 9 || len(s.f.unitOf(dev).illegal) != 0 {
			t.Errorf("%s, forbidden %v", texts(a), s.f.unitOf(dev).illegal)
		}
	})
}

func TestIdentityIsAskedOnceOfADeviceThatHasNone(t *testing.T) {
	for name, mute := range map[string]func(u *sim.Unit){
		"refused": func(u *sim.Unit) { u.Without(0x2B) },
		"silent":  func(u *sim.Unit) { u.SetSilent(0x2B) },
	} {
		t.Run(name, func(t *testing.T) {
			inMemory(t, func(n *notebook, bus *sim.Bus, u *sim.Unit, dev *config.Device) {
				mute(u)
				s := n.again(t, bus, dev)
				for range 20 {
					s.poll()
				}
				s.f.Close()
				if k := n.facts[factKey]; !strings.Contains(string(k), `"identity":"-"`) {
					t.Errorf("kept: %s", k)
				}
				s = n.again(t, bus, dev)
				defer s.f.Close()
				served := u.Served()
				s.poll()
				if got := u.Served() - served; got != 3 {
					t.Errorf("%d requests", got)
				}
			})
		})
	}
}

func TestEchoAndMaskAreRemembered(t *testing.T) {
	inMemory(t, func(n *notebook, bus *sim.Bus, u *sim.Unit, dev *config.Device) {
		bus.SetFaults(sim.Faults{Echo: true})
		bit := point("holding", 1, "uint16")
		bit.Bit = 3
		s := n.again(t, bus, dev)
		s.poll()
		if err := s.f.Set(t.Context(), dev, []devices.Item{{Point: &bit, Raw: []byte{0, 8}, Mask: []byte{0, 8}}}); err != nil {
			t.Fatal(err)
		}
		s.f.Close()
		s = n.again(t, bus, dev)
		defer s.f.Close()
		if l := s.f.link.(*Line); !l.echoes.on || s.f.unitOf(dev).mask != maskKnown {
			t.Errorf("%+v, mask %d", l.echoes, s.f.unitOf(dev).mask)
		}
		u.SetFaults(sim.Faults{Dead: true})
		if err := s.f.Set(t.Context(), dev, []devices.Item{{Point: &dev.Points[0], Raw: []byte{0, 9}}}); err == nil {
			t.Error("the first write after a restart takes its echo for the answer")
		}
	})
}

// FuzzRecall: facts from a damaged store never panic, and what is taken is kept.
func FuzzRecall(f *testing.F) {
	f.Add([]byte(`{"map":"x","turn_us":5000,"p99_us":90000,"max_read":20,"illegal":[[1,2,5]],"verified":[[0,7,9]],"refused":[[1,40,41,2]],"mask":1}`))
	f.Add([]byte(`{"illegal":[[9,-1,70000]],"max_read":-5}`))
	dev := testDevice(1, 0, 1, 5)
	f.Fuzz(func(t *testing.T, p []byte) {
		var k known
		if json.Unmarshal(p, &k) == nil {
			k.Map = fingerprint(dev)
			p, _ = json.Marshal(k)
		}
		n := &notebook{facts: map[string][]byte{factKey: p}}
		u := newUnit(dev)
		u.recall(n, testBus(sim.Line{Baud: 9600}))
		if u.maxRead < 1 || u.maxRead > 125 || u.ta < 0 || u.ta > time.Minute {
			t.Fatalf("%+v", u)
		}
		for g := range maps.Keys(u.verified) {
			if g.from >= g.to || g.to > 65536 {
				t.Fatalf("%v", g)
			}
		}
		makePlan(spans(u.points, []int{0, 1, 2}, nil, limitsOf(testBus(sim.Line{Baud: 9600}), u, timing{}, false)), limitsOf(testBus(sim.Line{Baud: 9600}), u, timing{}, false))
	})
}

// What another version wrote is not used, and that is said once, not for each device.
func TestFactsOfAnotherVersion(t *testing.T) {
	for _, c := range []struct {
		name, facts string
		said        bool
	}{
		{"another version", `{"version":1,"map":"x","turn_us":9000}`, true},
		{"a version from before there were any", `{"map":"x","turn_us":9000}`, true},
		{"nothing that can be read", "\x00", true},
		{"a number out of range", `{"version":2,"map":"x","late_us":-1}`, true},
		{"another map is no news", `{"version":2,"map":"x","turn_us":9000}`, false},
		{"nothing", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bus := sim.NewBus(sim.Line{Baud: 19200, Format: "8E1"}, 1, counting(1, 0))
				n := &notebook{facts: map[string][]byte{factKey: []byte(c.facts), strings.TrimSuffix(factKey, "1") + "2": []byte(c.facts)}}
				a, b := testDevice(1, 0), testDevice(2, 0)
				b.Name = "pump"
				var out strings.Builder
				d := &Driver{OpenPort: func(context.Context, devices.Wire) (Port, error) { return bus.Open() }}
				f, err := d.Open(t.Context(), devices.Wire{Bus: testBus(bus.Line()), Devices: []*config.Device{a, b}, Memory: n, Log: slog.New(slog.NewTextHandler(&out, nil))})
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				lines := strings.Count(out.String(), "\n")
				if c.said && (lines != 1 || !strings.Contains(out.String(), `another version`) || !strings.Contains(out.String(), `devices="grid pump"`)) || !c.said && lines > 0 {
					t.Errorf("said: %s", out.String())
				}
			})
		})
	}
}

// A unit that was once late is given its time for good, also after a restart.
func TestLatenessIsRemembered(t *testing.T) {
	inMemory(t, func(n *notebook, bus *sim.Bus, u *sim.Unit, dev *config.Device) {
		s := n.again(t, bus, dev)
		for range 40 {
			s.poll()
		}
		if w := s.f.unitOf(dev).window(s.f.bus); w > 1100*time.Millisecond {
			t.Errorf("the window of a quick unit is %v", w)
		}
		s.f.late(1, 1800*time.Millisecond)
		s.f.Close()
		s = n.again(t, bus, dev)
		defer s.f.Close()
		for range 200 { // until the late one is no sample any more
			s.poll()
		}
		if w := s.f.unitOf(dev).window(s.f.bus); w != 3600*time.Millisecond {
			t.Errorf("the window of a unit that was late by 1.8 s is %v", w)
		}
	})
}
