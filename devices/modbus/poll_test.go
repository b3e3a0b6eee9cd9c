package modbus

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/sim"
)

// station is one unit with a device that is polled by hand, in virtual time.
type station struct {
	t   *testing.T
	bus *sim.Bus
	u   *sim.Unit
	f   *field
	g   *devices.Group
}

func onStation(t *testing.T, dev *config.Device, fn func(s *station)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := sim.Line{Baud: 19200, Format: "8E1"}
		s := &station{t: t, u: counting(dev.UnitID, 0), g: groupOf(dev)}
		s.u.SetAnswerTime(5*time.Millisecond, 0)
		s.bus = sim.NewBus(l, 1, s.u)
		s.f = openSim(t, &Driver{}, testBus(l), s.bus, dev)
		fn(s)
	})
}

func (s *station) poll() devices.Answer {
	s.t.Helper()
	a, err := s.f.Poll(s.t.Context(), s.g, noPause)
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

func texts(a devices.Answer) string {
	var out []string
	for _, v := range a.Values {
		out = append(out, v.Point+"="+v.Value.String())
	}
	for _, e := range a.Errors {
		out = append(out, e.Point+": "+e.Code+" "+e.Text)
	}
	for _, f := range a.Found {
		out = append(out, f.Level.String()+" "+f.Err+": "+f.Text)
	}
	return strings.Join(out, "\n")
}

func TestPollReadsAllTables(t *testing.T) {
	dev := testDevice(1, 5)
	dev.Points = append(dev.Points, point("input", 6, "uint32"), point("coil", 9, "bool"), point("discrete", 10, "bool"))
	sf := point("holding", 20, "uint16")
	sf.ScaleReg = 22
	dev.Points = append(dev.Points, sf)
	onStation(t, dev, func(s *station) {
		s.u.SetBit(sim.Coil, 9, true)
		s.u.SetBit(sim.Discrete, 10, false)
		s.u.Set(sim.Holding, 20, 1234)
		s.u.Set(sim.Holding, 22, 0xFFFE)
		begin := time.Now()
		a := s.poll()
		if got, want := texts(a), "holding-5=5\ninput-6=393223\ncoil-9=true\ndiscrete-10=false\nholding-20=12.34"; got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		if !a.Heard || a.Err != nil || a.Used != time.Since(begin) || a.At.IsZero() || a.At.After(time.Now()) {
			t.Errorf("%+v", a)
		}
		if off := a.Values[1].Off; off >= 0 { // input is asked first
			t.Errorf("off %v", off)
		}
		s.u.Set(sim.Holding, 22, 0x8000)
		if v := s.poll().Values[4]; v.Quality != devices.NotAvailable || !v.Value.IsNull() {
			t.Errorf("without a scale: %+v", v)
		}
	})
}

func TestPollLearnsWhichGapsAreIllegal(t *testing.T) {
	dev := testDevice(1, 0, 1, 5, 6, 10, 11, 20, 21)
	onStation(t, dev, func(s *station) {
		s.u.Refuse(sim.Holding, 2, 4, 2)
		s.u.Refuse(sim.Holding, 15, 15, 3)
		a := s.poll()
		if len(a.Values) != 8 || len(a.Errors) != 0 || len(a.Found) != 0 {
			t.Errorf("the first round has all values all the same: %s", texts(a))
		}
		served := s.u.Served()
		if a = s.poll(); len(a.Values) != 8 {
			t.Error(texts(a))
		}
		if n := s.u.Served() - served; n != 3 {
			t.Errorf("the second round takes %d requests, want 3", n)
		}
		if u := s.f.unitOf(dev); u.counts.Exceptions == 0 || len(u.illegal) < 2 {
			t.Errorf("%+v", u)
		}
		before := s.f.unitOf(dev).counts.Exceptions
		for range 20 {
			s.poll()
		}
		if after := s.f.unitOf(dev).counts.Exceptions; after != before {
			t.Errorf("%d exceptions after all was learned", after-before)
		}
	})
}

func TestPollLearnsTheLongestRead(t *testing.T) {
	var addrs []uint16
	for a := range uint16(60) {
		addrs = append(addrs, a)
	}
	dev := testDevice(1, addrs...)
	onStation(t, dev, func(s *station) {
		s.u.SetMaxRead(20)
		if a := s.poll(); len(a.Values) != 60 || len(a.Found) != 0 {
			t.Errorf("%s", texts(a))
		}
		before := s.f.unitOf(dev).counts.Exceptions
		for range 5 {
			if a := s.poll(); len(a.Values) != 60 {
				t.Error(texts(a))
			}
		}
		if n := s.f.unitOf(dev).counts.Exceptions - before; n != 0 {
			t.Errorf("%d exceptions after the size was learned (%d)", n, s.f.unitOf(dev).maxRead)
		}
	})
}

func TestPollNamesRegistersThatDoNotExist(t *testing.T) {
	tests := []struct {
		name   string
		points []config.Point
		refuse func(u *sim.Unit)
		want   string
	}{
		{"off by 40001", []config.Point{point("holding", 40001, "uint16")}, func(u *sim.Unit) { u.Refuse(sim.Holding, 40001, 40001, 2) },
			"illegal-address: holding 40001 does not exist there (exception 2, illegal data address). Lists that count from 40001 mean holding = 0"},
		{"off by 30001", []config.Point{point("input", 30013, "uint16")}, func(u *sim.Unit) { u.Refuse(sim.Input, 30013, 30013, 2) },
			"illegal-address: input 30013 does not exist there (exception 2, illegal data address). Lists that count from 30001 mean input = 12"},
		{"just not there", []config.Point{point("holding", 12, "uint16")}, func(u *sim.Unit) { u.Refuse(sim.Holding, 12, 12, 3) },
			"illegal-address: holding 12 does not exist there (exception 3, illegal data value)"},
		{"several", []config.Point{point("holding", 12, "uint16"), point("holding", 13, "uint16"), point("holding", 14, "uint16")},
			func(u *sim.Unit) { u.Refuse(sim.Holding, 12, 13, 2) },
			"illegal-address: holding 12 does not exist there (exception 2, illegal data address). Nor do 13"},
		{"no such function", []config.Point{point("input", 12, "uint16"), point("holding", 1, "uint16")}, func(u *sim.Unit) { u.Without(4) },
			"illegal-function: it does not know function 04 (exception 1); try holding instead of input"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dev := testDevice(1)
			dev.Points = tt.points
			onStation(t, dev, func(s *station) {
				tt.refuse(s.u)
				for round := range 3 {
					a := s.poll()
					if len(a.Found) != 1 || a.Found[0].Err+": "+a.Found[0].Text != tt.want || a.Found[0].Level.String() != "WARN" {
						t.Errorf("round %d:\n%s\nwant %s", round, texts(a), tt.want)
					}
					if !a.Heard || a.Err != nil || a.Errors[0].Code != "unsupported" {
						t.Errorf("round %d: %+v", round, a)
					}
				}
				if len(dev.Points) == 1 {
					return
				}
				exceptions := s.f.unitOf(dev).counts.Exceptions
				s.poll()
				if n := s.f.unitOf(dev).counts.Exceptions; n != exceptions {
					t.Error("it is asked again in every round")
				}
				time.Sleep(61 * time.Minute)
				s.poll()
				if n := s.f.unitOf(dev).counts.Exceptions; n == exceptions {
					t.Error("it is not asked again after an hour")
				}
			})
		})
	}
}

func TestPollOfABusyUnit(t *testing.T) {
	onStation(t, testDevice(1, 1), func(s *station) {
		s.u.SetFaults(sim.Faults{Except: 1, Code: 6})
		pauses := 0
		time.AfterFunc(350*time.Millisecond, func() { s.u.SetFaults(sim.Faults{}) })
		a, err := s.f.Poll(s.t.Context(), s.g, func(ctx context.Context) error { pauses++; return nil })
		if err != nil || len(a.Values) != 1 || len(a.Found) != 0 {
			t.Errorf("asked again within the round: %v %s", err, texts(a))
		}
		if pauses < 2 {
			t.Errorf("the bus had %d occasions for a write meanwhile", pauses)
		}
		if a.Used > 200*time.Millisecond {
			t.Errorf("waiting counts as used: %v", a.Used)
		}
		s.u.SetFaults(sim.Faults{Except: 1, Code: 6})
		a = s.poll()
		if len(a.Errors) != 1 || a.Errors[0].Code != "busy" || a.Errors[0].Text != "exception 6, busy" || !a.Heard || a.Err != nil {
			t.Errorf("%s %+v", texts(a), a)
		}
		for range 3 {
			a = s.poll()
		}
		if got := texts(a); !strings.Contains(got, "WARN busy: busy (exception 6) 18 times in an hour; asking less often may help (interval)") {
			t.Error(got)
		}
	})
}

func TestPollOfOtherExceptions(t *testing.T) {
	onStation(t, testDevice(1, 0, 12), func(s *station) {
		s.u.SetFaults(sim.Faults{Except: 1, Code: 4})
		a := s.poll()
		if got := texts(a); !strings.Contains(got, "WARN device-failure: reports a failure of its own (exception 4) for holding 0..12") || a.Errors[0].Code != "exception" || !a.Heard {
			t.Error(got)
		}
		s.u.SetFaults(sim.Faults{Except: 1, Code: 11})
		a = s.poll()
		if got := texts(a); !strings.Contains(got, "WARN gateway-path: the Modbus gateway meters cannot reach unit 1 (exception 11)") || a.Heard || !errors.Is(a.Err, devices.ErrNoAnswer) {
			t.Errorf("%s %+v", got, a)
		}
	})
}

func TestPollOfASilentUnit(t *testing.T) {
	onStation(t, testDevice(1, 0, 400, 800), func(s *station) {
		s.u.SetFaults(sim.Faults{Dead: true})
		begin := time.Now()
		a := s.poll()
		if a.Heard || !errors.Is(a.Err, devices.ErrNoAnswer) || a.Tries != 2 || a.Waited != 500*time.Millisecond || len(a.Errors) != 3 || len(a.Values) != 0 {
			t.Errorf("%+v", a)
		}
		if d := time.Since(begin); d > 1200*time.Millisecond {
			t.Errorf("the other requests are made all the same: %v", d)
		}
		if got, want := a.Errors[2].Text, "unit 1 on meters: no answer (2 tries of 500 ms)"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	})
}

// Some devices do not refuse a register they lack, they say nothing.
func TestPollOfAUnitThatIsSilentAboutOneBlock(t *testing.T) {
	onStation(t, testDevice(1, 0, 400, 800, 1200), func(s *station) {
		s.f.link = muted{s.f.link, 0}
		heard := 0
		for range 4 {
			if a := s.poll(); len(a.Values) == 3 {
				heard++
			}
			time.Sleep(10 * time.Second)
		}
		if heard < 3 {
			t.Errorf("the other blocks were read in %d of 4 rounds", heard)
		}
	})
}

// muted is a link over which requests for one address get no answer.
type muted struct {
	link
	addr byte
}

func (m muted) exchange(ctx context.Context, adu []byte, p patience) ([]byte, error) {
	if adu[2] == 0 && adu[3] == m.addr {
		return nil, devices.ErrNoAnswer
	}
	return m.link.exchange(ctx, adu, p)
}

func TestProbeAndCounters(t *testing.T) {
	dev := testDevice(1, 0, 1, 2, 3, 300)
	onStation(t, dev, func(s *station) {
		s.poll()
		s.u.SetFaults(sim.Faults{Dead: true})
		begin := time.Now()
		if err := s.f.Probe(s.t.Context(), dev); !errors.Is(err, devices.ErrNoAnswer) {
			t.Error(err)
		}
		if d := time.Since(begin); d > 200*time.Millisecond || d > s.f.ProbeTime(dev)+time.Second {
			t.Errorf("a probe of a known unit takes %v", d)
		}
		s.u.SetFaults(sim.Faults{Except: 1, Code: 2})
		if err := s.f.Probe(s.t.Context(), dev); err != nil {
			t.Errorf("an exception is a sign of life: %v", err)
		}
		s.u.SetFaults(sim.Faults{})
		if err := s.f.Probe(s.t.Context(), dev); err != nil {
			t.Error(err)
		}
		c := s.f.Unit(dev)
		if c.Requests != 5 || c.Good != 3 || c.Timeouts != 1 || c.Exceptions != 1 || c.Heard.IsZero() || c.RTT50 <= 0 || c.Turnaround < 4*time.Millisecond || c.Turnaround > 6*time.Millisecond {
			t.Errorf("%+v", c)
		}
		if b := s.f.Counts(); b.Requests != 5 || b.Good != 4 || b.Timeouts != 1 || b.BytesOut != 40 {
			t.Errorf("%+v", b)
		}
	})
}

func TestTimeoutIsLearned(t *testing.T) {
	dev := testDevice(1, 0)
	onStation(t, dev, func(s *station) {
		if got := s.f.Unit(dev).Timeout; got != 500*time.Millisecond {
			t.Errorf("before any answer %v", got)
		}
		for range 40 {
			s.poll()
		}
		if got := s.f.Unit(dev).Timeout; got < 30*time.Millisecond || got > 50*time.Millisecond {
			t.Errorf("for a unit that takes some 8 ms: %v", got)
		}
		s.u.SetAnswerTime(400*time.Millisecond, 0) // it has become slow
		good := 0
		for range 40 {
			if a := s.poll(); len(a.Values) == 1 {
				good++
			}
			time.Sleep(time.Second)
		}
		if got := s.f.Unit(dev).Timeout; got != time.Second || good < 30 {
			t.Errorf("late answers raise the timeout: %v, %d good of 40", got, good)
		}
	})
}

func TestWireCost(t *testing.T) {
	var d Driver
	bus := testBus(sim.Line{Baud: 9600, Format: "8E1"})
	dev := testDevice(1, 0, 1, 2, 3)
	dev.AnswerTime = 20 * time.Millisecond
	n, each := d.Cost(devices.Wire{Bus: bus}, dev, []int{0, 1, 2, 3})
	// (13 + 8) characters of 11 bits, two silences of 3.5, 20 ms
	want := 21*timingOf(bus).char + 2*timingOf(bus).gap + 20*time.Millisecond
	if n != 1 || each != want {
		t.Errorf("%d requests, %v, want %v", n, each, want)
	}
}
