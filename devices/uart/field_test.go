package uart

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/profiles"
	"busgate/devices/sim"
)

// profiled is a device with a shipped profile.
func profiled(t *testing.T, name string) *config.Device {
	t.Helper()
	text, err := profiles.FS.ReadFile(name + ".toml")
	if err != nil {
		t.Fatal(err)
	}
	p, problems := config.ParseProfile(name+".toml", text)
	if p == nil {
		t.Fatal(problems)
	}
	return &config.Device{Name: "sensor", Bus: "sensor", Interval: 10 * time.Second, Frame: p.Frame, Points: p.Points}
}

var serial9600 = &config.Bus{Name: "sensor", Serial: "/dev/null", Baud: 9600, DataBits: 8, Parity: 'N', StopBits: 1, Timeout: 500 * time.Millisecond, Retries: 1}

// on is a driver whose line is the simulated one.
func on(b *sim.Bus) *Driver {
	return &Driver{OpenPort: func(context.Context, devices.Wire) (Port, error) {
		p, err := b.Open()
		if err != nil {
			return nil, err
		}
		return p, nil
	}}
}

// reader opens a device on a simulated wire and polls all its points as one group.
type reader struct {
	t     *testing.T
	field devices.Field
	group *devices.Group
	bus   *config.Bus
}

func read(t *testing.T, b *sim.Bus, dev *config.Device) *reader {
	t.Helper()
	d := on(b)
	f, err := d.Open(t.Context(), devices.Wire{Bus: serial9600, Devices: []*config.Device{dev}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	g := &devices.Group{Device: dev, Interval: dev.Interval}
	for i := range dev.Points {
		g.Points = append(g.Points, i)
	}
	return &reader{t, f, g, serial9600}
}

func (r *reader) poll() devices.Answer {
	r.t.Helper()
	a, err := r.field.Poll(r.t.Context(), r.group, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return a
}

// text prints the values as they would be published.
func text(r *reader, a devices.Answer) string {
	var out []string
	for _, v := range a.Values {
		digits := -1
		for _, p := range r.group.Device.Points {
			if p.Name == v.Point {
				digits = p.Digits
			}
		}
		out = append(out, v.Point+"="+string(v.Value.AppendJSON(nil, digits)))
	}
	for _, e := range a.Errors {
		out = append(out, e.Point+"!"+e.Code)
	}
	return strings.Join(out, " ")
}

func TestShippedProfilesReadTheirSensors(t *testing.T) {
	for _, c := range []struct {
		profile string
		bus     func() *sim.Bus
		want    string // values of the first poll, as a prefix
		n       int    // how many
	}{
		{"nmea-gps", func() *sim.Bus { return sim.NewTalker(sim.Line{}, 1, time.Second, sim.NMEA(1)) }, "lat=52.52", 8},
		{"plantower-pms5003", func() *sim.Bus { return sim.NewTalker(sim.Line{}, 1, time.Second, sim.PMS5003(1)) }, "pm1=", 3},
		{"dsmr-p1", func() *sim.Bus { return sim.NewTalker(sim.Line{Baud: 115200}, 1, time.Second, sim.P1(1)) }, "import_t1=1581.0", 5},
		{"sml-meter", func() *sim.Bus { return sim.NewTalker(sim.Line{}, 1, time.Second, sim.SML(1)) }, "import=1581.0", 3},
		{"winsen-mh-z19", func() *sim.Bus { return sim.NewPolled(sim.Line{}, 1, sim.MHZ19(1)) }, "co2=", 1},
		{"dini-argeo-scale", func() *sim.Bus {
			return sim.NewTalker(sim.Line{}, 1, time.Second, func(uint64, time.Duration) []byte { return []byte("01ST,GS,    12.5,kg\r\n") })
		}, `status="ST" mode="GS" weight=12.5`, 3},
		{"nova-sds011", func() *sim.Bus {
			return sim.NewTalker(sim.Line{}, 1, time.Second, func(uint64, time.Duration) []byte {
				return []byte{0xAA, 0xC0, 0x8C, 0, 0x94, 0, 0xBC, 0xF9, 0xD5, 0xAB}
			})
		}, "pm2_5=14.0 pm10=14.8", 2},
	} {
		t.Run(c.profile, func(t *testing.T) {
			dev := profiled(t, c.profile)
			synctest.Test(t, func(t *testing.T) {
				r := read(t, c.bus(), dev)
				for range 5 {
					a := r.poll()
					if a.Err != nil || len(a.Found) > 0 {
						t.Fatalf("err %v, found %v", a.Err, a.Found)
					}
					got := text(r, a)
					if !strings.HasPrefix(got, c.want) || len(a.Values) != c.n {
						t.Fatalf("%s: want %d of %s", got, c.n, c.want)
					}
					for _, v := range a.Values {
						if v.Off > 0 || v.Off < -time.Second || v.Quality != devices.Good {
							t.Errorf("%s: off %v quality %v", v.Point, v.Off, v.Quality)
						}
					}
					time.Sleep(dev.Interval)
				}
			})
		})
	}
}

// counter is a talker that sends its number each second.
func counter() *sim.Bus {
	return sim.NewTalker(sim.Line{}, 1, time.Second, func(n uint64, _ time.Duration) []byte { return fmt.Appendf(nil, "n=%d\r\n", n) })
}

func numbered() *config.Device {
	return &config.Device{Name: "sensor", Interval: 10 * time.Second, Frame: &config.Frame{Kind: "line"},
		Points: []config.Point{point("n", func(p *config.Point) { p.Key, p.Type = "n", "float64" })}}
}

func TestTalkerGivesItsNewestFrameOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := read(t, counter(), numbered())
		time.Sleep(10*time.Second + 500*time.Millisecond)
		a := r.poll()
		if got := text(r, a); got != "n=9" || a.At.IsZero() || time.Since(a.At) > time.Second {
			t.Errorf("%s at %v", got, a.At)
		}
		if got := r.field.Unit(r.group.Device).Skipped; got != 9 { // of 10, one read
			t.Errorf("%d frames skipped, want 9", got)
		}
		time.Sleep(100 * time.Millisecond)
		a = r.poll() // waits for the next one
		if got := text(r, a); got != "n=10" {
			t.Errorf("second poll: %s", got)
		}
		// a group that a reload made anew does not give an old value again
		r.group.Plan = nil
		r.field.Devices([]*config.Device{numbered()})
		time.Sleep(100 * time.Millisecond)
		if a = r.poll(); text(r, a) == "n=10" {
			t.Error("a reading was given twice")
		}
	})
}

func TestSilentTalkerSaysSo(t *testing.T) {
	dev := profiled(t, "nmea-gps")
	synctest.Test(t, func(t *testing.T) {
		b := sim.NewTalker(sim.Line{}, 1, time.Second, sim.NMEA(1))
		r := read(t, b, dev)
		r.poll()
		b.SetFaults(sim.Faults{Silent: true})
		var a devices.Answer
		for range 3 {
			time.Sleep(9500 * time.Millisecond) // and the poll waits 500 ms
			a = r.poll()
		}
		if !errors.Is(a.Err, devices.ErrNoAnswer) || a.Heard || len(a.Found) != 1 {
			t.Fatalf("%+v", a)
		}
		if f := a.Found[0]; f.Err != "no-data" || f.Level != slog.LevelWarn || f.Text != "no data for 30 s (NMEA, 9600 8N1); last good reading 29s ago" {
			t.Errorf("%s: %s", f.Err, f.Text)
		}
		if err := r.field.Probe(t.Context(), dev); !errors.Is(err, devices.ErrNoAnswer) {
			t.Errorf("probe: %v", err)
		}
		b.SetFaults(sim.Faults{})
		time.Sleep(2 * time.Second)
		if err := r.field.Probe(t.Context(), dev); err != nil {
			t.Errorf("probe after it came back: %v", err)
		}
		if a = r.poll(); a.Err != nil || len(a.Found) > 0 {
			t.Errorf("%+v", a)
		}
	})
}

func TestWrongBaudIsNotSilence(t *testing.T) {
	dev := profiled(t, "nmea-gps")
	synctest.Test(t, func(t *testing.T) {
		b := sim.NewTalker(sim.Line{}, 1, time.Second, sim.NMEA(1))
		b.SetFaults(sim.Faults{WrongBaud: true})
		r := read(t, b, dev)
		var a devices.Answer
		for range 25 {
			a = r.poll()
			time.Sleep(9500 * time.Millisecond)
		}
		if !errors.Is(a.Err, devices.ErrBadFrame) || !strings.HasPrefix(a.Found[0].Text, "bytes but no good frame for 4m10s (NMEA, 9600 8N1): baud or format right?") {
			t.Errorf("%v: %v", a.Err, a.Found)
		}
		if c := r.field.Counts(); c.Good != 0 || c.Bad < 20 || c.Requests != 25 {
			t.Errorf("counts %+v", c)
		}
	})
}

func TestBadChecksums(t *testing.T) {
	dev := profiled(t, "plantower-pms5003")
	run := func(rate float64) (last devices.Answer) {
		synctest.Test(t, func(t *testing.T) {
			b := sim.NewTalker(sim.Line{}, 4, time.Second, sim.PMS5003(1))
			b.SetFaults(sim.Faults{Damage: rate})
			r := read(t, b, dev)
			for range 30 {
				last = r.poll()
				time.Sleep(10 * time.Second)
			}
		})
		return last
	}
	if a := run(0.05); len(a.Found) != 1 || a.Found[0].Err != "bad-checksum" {
		t.Errorf("found %v", a.Found)
	}
	if a := run(0.001); len(a.Found) != 0 {
		t.Errorf("noise of 0.1 %% says %v", a.Found)
	}
	synctest.Test(t, func(t *testing.T) {
		good := sim.PMS5003(1)
		b := sim.NewTalker(sim.Line{}, 1, time.Second, func(n uint64, at time.Duration) []byte {
			p := good(n, at)
			if n%100 < 3 {
				p[31]++
			}
			return p
		})
		r := read(t, b, dev)
		time.Sleep(200*time.Second + 500*time.Millisecond)
		want := devices.Finding{Err: "bad-checksum", Level: slog.LevelWarn, Text: "3.0 % of frames have a wrong checksum; baud right? cable short?"}
		if a := r.poll(); len(a.Found) != 1 || a.Found[0] != want {
			t.Errorf("found %v", a.Found)
		}
	})

	st, err := newStation(sensors["pms5003"])
	if err != nil {
		t.Fatal(err)
	}
	st.bad.add(epoch, 97*2, 6)
	if p, n := st.bad.percent(epoch.Add(59 * time.Minute)); fmt.Sprintf("%.1f", p) != "3.0" || n != 6 {
		t.Errorf("%v %% of %d", p, n)
	}
	if p, n := st.bad.percent(epoch.Add(61 * time.Minute)); p != 0 || n != 0 {
		t.Errorf("an hour later %v %% of %d", p, n)
	}
}

func TestPolledSensorIsAskedAgain(t *testing.T) {
	dev := profiled(t, "winsen-mh-z19")
	synctest.Test(t, func(t *testing.T) {
		b := sim.NewPolled(sim.Line{}, 1, sim.MHZ19(1))
		r := read(t, b, dev)
		if a := r.poll(); a.Tries != 1 || a.Used <= 0 || len(a.Values) != 1 {
			t.Errorf("%+v", a)
		}
		if u := r.field.Unit(dev); u.Requests != 1 || u.Good != 1 || u.RTT50 < 9*time.Millisecond || u.Turnaround > u.RTT50 {
			t.Errorf("unit %+v", u)
		}
		b.SetFaults(sim.Faults{Lose: 1})
		a := r.poll()
		if !errors.Is(a.Err, devices.ErrNoAnswer) || a.Tries != 2 || a.Waited < time.Second || a.Waited > 1100*time.Millisecond {
			t.Errorf("%+v", a)
		}
		b.SetFaults(sim.Faults{Damage: 1})
		if a = r.poll(); !errors.Is(a.Err, devices.ErrBadFrame) || len(a.Values) != 0 {
			t.Errorf("damaged: %+v", a)
		}
		b.SetFaults(sim.Faults{})
		if a = r.poll(); a.Err != nil || len(a.Values) != 1 {
			t.Errorf("again: %+v", a)
		}
	})
}

func TestUnpluggedLineIsATrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := counter()
		r := read(t, b, numbered())
		time.Sleep(5 * time.Second)
		b.Unplug()
		time.Sleep(time.Second)
		r.poll() // what had come before
		if _, err := r.field.Poll(t.Context(), r.group, nil); !errors.Is(err, syscall.EIO) {
			t.Errorf("err %v", err)
		}
	})
}

func TestFrameOfKindIdleEndsWithSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := sim.NewTalker(sim.Line{}, 1, time.Second, func(n uint64, _ time.Duration) []byte { return []byte{7, byte(n), 1, 2} })
		dev := &config.Device{Name: "sensor", Interval: time.Second, Frame: &config.Frame{Kind: "idle"}, Points: []config.Point{at("n", 1, "uint8")}}
		r := read(t, b, dev)
		for i := range 3 {
			time.Sleep(time.Second)
			if got := text(r, r.poll()); got != fmt.Sprintf("n=%d", i) {
				t.Errorf("got %s, want n=%d", got, i)
			}
		}
	})
}

func TestCancelledPollEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := counter()
		b.SetFaults(sim.Faults{Silent: true})
		r := read(t, b, numbered())
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := r.field.Poll(ctx, r.group, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("err %v", err)
		}
	})
}

func TestOpenRefusesWhatMakesNoSense(t *testing.T) {
	dev := numbered()
	dev.Points = append(dev.Points, obis("1-0:1.8.0"))
	d := &Driver{}
	_, err := d.Open(t.Context(), devices.Wire{Bus: serial9600, Devices: []*config.Device{dev}})
	tr, ok := errors.AsType[devices.Trouble](err)
	if !ok || tr.Word() != "uart-setup" || tr.Text() != `device sensor: point 1-0:1.8.0: obis does not go with frame kind "line"` {
		t.Errorf("%v", err)
	}
}

func TestCostOfASensor(t *testing.T) {
	talks, asked := profiled(t, "nmea-gps"), profiled(t, "winsen-mh-z19")
	d := &Driver{}
	if n, each := d.Cost(devices.Wire{Bus: serial9600}, talks, nil); n != 0 || each != 0 {
		t.Errorf("talker: %d requests, %v", n, each)
	}
	if n, each := d.Cost(devices.Wire{Bus: serial9600}, asked, nil); n != 1 || each < 40*time.Millisecond || each > 100*time.Millisecond {
		t.Errorf("polled: %d requests, %v", n, each)
	}
}
