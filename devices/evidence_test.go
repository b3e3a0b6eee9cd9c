package devices_test

import (
	"context"
	"fmt"
	"math"
	"regexp"
	"strings"
	"testing"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/modbus"
	"busgate/devices/sim"
)

// matches fails unless one line of got matches the whole pattern.
func matches(t *testing.T, got []string, pattern string) {
	t.Helper()
	re := regexp.MustCompile("^(?:" + pattern + ")$")
	for _, g := range got {
		if re.MatchString(g) {
			return
		}
	}
	t.Errorf("no line matches\n\t%s\nthere are\n\t%s", pattern, strings.Join(got, "\n\t"))
}

const wiring = `\. Wiring: 120 Ω at both ends only, twisted pair, common ground, away from motor cables\. ` +
	`Values are not affected: damaged answers are thrown away and asked again`

func TestDamagedAnswersNameTheWiring(t *testing.T) {
	for _, c := range []struct {
		name   string
		faults func(bus *sim.Bus, short, long *sim.Unit)
		want   string
	}{
		{"both units alike", func(bus *sim.Bus, _, _ *sim.Unit) { bus.SetFaults(sim.Faults{Damage: .03}) },
			`WARN bus meters: \d\.\d % of answers damaged in the last hour \(\d+ of [12 \d]+\)` + wiring},
		{"one unit", func(_ *sim.Bus, short, _ *sim.Unit) { short.SetFaults(sim.Faults{Damage: .1}) },
			`WARN bus meters: \d\.\d % of answers damaged in the last hour \(\d+ of [12 \d]+\), mostly unit 1` + wiring},
		{"each bit alike, so that long ones suffer", func(bus *sim.Bus, _, _ *sim.Unit) { bus.SetFaults(sim.Faults{BitError: .0005}) },
			`WARN bus meters: \d\.\d % of answers damaged in the last hour \(\d+ of [12 \d]+\), mostly unit 2, the long ones` + wiring},
	} {
		t.Run(c.name, func(t *testing.T) {
			virtual(t, func(t *testing.T) {
				short, long := counting(1, 0), counting(2, 0)
				p := newPlant(t, []*sim.Unit{short, long}, meter("a", 1, 6*time.Second, 3), meter("b", 2, 6*time.Second, 100))
				p.start()
				time.Sleep(time.Minute)
				c.faults(p.bus, short, long)
				time.Sleep(90 * time.Minute)
				matches(t, p.log(), c.want)
				contains(t, p.saw(), "health a online damaged")
				for _, u := range []*sim.Unit{short, long} {
					u.SetFaults(sim.Faults{})
				}
				p.bus.SetFaults(sim.Faults{})
				time.Sleep(20 * time.Minute)
				p.stop()
				matches(t, p.log(), `INFO bus meters: answers come whole again after 1h\d\dm`)
				if last := p.health[len(p.health)-1]; last.Report.Err != "" {
					t.Errorf("at the end: %+v", last)
				}
			})
		})
	}
}

func TestStrayByteNamesTheBias(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPlant(t, []*sim.Unit{counting(1, 0)}, meter("a", 1, time.Second, 3))
		if err := p.bus.Inject("noise=00-first"); err != nil {
			t.Fatal(err)
		}
		p.start()
		time.Sleep(time.Minute)
		contains(t, p.log(), "WARN bus meters: a stray byte 00 stands before the answers (accepted without it). The idle line floats: bias resistors are missing, or there is termination without bias")
		contains(t, p.saw(), "health a online stray-byte")
		p.bus.SetFaults(sim.Faults{Stray: 1, StrayByte: 0xFF})
		time.Sleep(20 * time.Minute)
		p.bus.SetFaults(sim.Faults{})
		time.Sleep(20 * time.Minute)
		p.stop()
		matches(t, p.log(), `WARN bus meters: a stray byte FF stands before .*`)
		matches(t, p.log(), `INFO bus meters: no more stray bytes, after .*`)
	})
}

func TestSecondMasterIsNamed(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPlant(t, []*sim.Unit{counting(1, 0), counting(2, 0)}, meter("a", 1, time.Second, 3), meter("b", 2, time.Second, 3))
		p.start()
		time.Sleep(time.Minute)
		if err := p.bus.Inject("second-master"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		contains(t, p.log(), "ERROR bus meters: somebody else talks on this bus (a request to unit 4 that is not ours). RS-485 allows one master. See who: busgate monitor meters --listen-only")
		contains(t, p.saw(), "health a online second-master")
		if buses, _ := p.fleet.Status(); buses[0].Err != "second-master" || buses[0].Counts.Intruders < 3 {
			t.Errorf("status %+v", buses[0])
		}
		p.bus.SetFaults(sim.Faults{})
		time.Sleep(20 * time.Minute)
		p.stop()
		first, last := p.alerts[0], p.alerts[len(p.alerts)-1]
		if first.Err != "second-master" || first.Solved || !strings.HasPrefix(first.Text, "bus meters: somebody else talks on this bus (a request to unit 4") {
			t.Errorf("alert %+v", first)
		}
		if !last.Solved || len(p.alerts) > 4 {
			t.Errorf("at the end: %+v", p.alerts)
		}
		matches(t, p.log(), `INFO bus meters: nobody else talks on this bus any more, after .*`)
	})
}

// What is our own is nobody else's: late answers, answers that come twice, the
// echo of an adapter, and noise.
func TestOwnFramesAreNoSecondMaster(t *testing.T) {
	for _, c := range []struct {
		name   string
		faults sim.Faults
	}{
		{"late", sim.Faults{Late: .3, LateBy: 1200 * time.Millisecond}},
		{"very late", sim.Faults{Late: .2, LateBy: 9 * time.Second}},
		{"echo", sim.Faults{Echo: true}},
		{"noise", sim.Faults{BitError: .03}},
		{"wrong baud", sim.Faults{WrongBaud: true}},
		{"cut", sim.Faults{Cut: .3, Stray: .3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			virtual(t, func(t *testing.T) {
				p := newPlant(t, []*sim.Unit{counting(1, 0), counting(2, 0)}, meter("a", 1, time.Second, 3), meter("b", 2, time.Second, 3))
				p.bus.SetFaults(c.faults)
				p.start()
				time.Sleep(20 * time.Minute)
				p.stop()
				without(t, p.log(), "somebody else talks")
			})
		})
	}
}

// Two devices with one number talk at the same time: all that is heard of them is
// damaged, and the others are well. One of many requests has so many answers open
// after a moment that it is not even asked for half a minute.
func TestTwoDevicesWithOneNumberAreNamed(t *testing.T) {
	for _, requests := range []int{1, 12} {
		t.Run(fmt.Sprint(requests), func(t *testing.T) {
			virtual(t, func(t *testing.T) {
				twin := counting(1, 0)
				grid := meter("grid", 1, 2*time.Second, 3)
				for i := 1; i < requests; i++ {
					grid.Points = append(grid.Points, holding(fmt.Sprint("far", i), uint16(1000*i), "uint16"))
				}
				p := newPlant(t, []*sim.Unit{twin, counting(2, 0)}, grid, meter("b", 2, 2*time.Second, 3))
				p.start()
				time.Sleep(time.Minute + time.Second) // between two rounds
				twin.SetFaults(sim.Faults{Double: true})
				time.Sleep(5 * time.Minute)
				contains(t, p.log(), "WARN device grid: the answers of unit 1 are damaged, those of other units are not: do two devices have unit_id 1?")
				contains(t, p.saw(), "health grid offline double-unit")
				without(t, p.log(), "no answer")
				without(t, p.log(), "answers damaged in the last") // the wiring is not to blame
				twin.SetFaults(sim.Faults{})
				time.Sleep(5 * time.Minute)
				p.stop()
				matches(t, p.log(), `INFO device grid: answers again after .*`)
				if last := p.health[len(p.health)-1]; last.Report.Err != "" {
					t.Errorf("at the end: %+v", last)
				}
			})
		})
	}
}

func TestLateAnswersNameTheTimeout(t *testing.T) {
	for _, c := range []struct {
		name   string
		faults sim.Faults
		want   string
		state  string
	}{
		{"now and then", sim.Faults{Late: .05, LateBy: 1500 * time.Millisecond},
			`WARN device inverter: answers after 1\.[2345] s, later than timeout = 500ms allows \(\d+ in .*\)\. Give it timeout = "[23]s"`, "health inverter online late"},
		{"all of them", sim.Faults{Late: 1, LateBy: 1200 * time.Millisecond},
			`WARN device inverter: answers after 1\.[2345] s, later than timeout = 500ms allows \(\d+ in .*\)\. Give it timeout = "[23]s"`, "health inverter online late"},
	} {
		t.Run(c.name, func(t *testing.T) {
			virtual(t, func(t *testing.T) {
				slow := counting(1, 0)
				p := newPlant(t, []*sim.Unit{slow, counting(2, 0)}, meter("inverter", 1, 2*time.Second, 3), meter("b", 2, 2*time.Second, 3))
				p.start()
				time.Sleep(5 * time.Minute)
				slow.SetFaults(c.faults)
				time.Sleep(30 * time.Minute)
				matches(t, p.log(), c.want)
				contains(t, p.saw(), c.state)
				without(t, p.log(), "gives no answer")
				slow.SetFaults(sim.Faults{})
				time.Sleep(30 * time.Minute)
				p.stop()
				matches(t, p.log(), `INFO device inverter: answers in time again after .*`)
				if last := p.health[len(p.health)-1]; last.Report.Err != "" {
					t.Errorf("at the end: %+v", last)
				}
			})
		})
	}
}

// swapped serves a float32 and an int32 at holding 0 and 2, the low word first.
func swapped(f float32, n int32) *sim.Unit {
	u := sim.NewUnit(1)
	b := math.Float32bits(f)
	u.Set(sim.Holding, 0, uint16(b), uint16(b>>16), uint16(uint32(n)), uint16(uint32(n)>>16))
	return u
}

func TestWordOrder(t *testing.T) {
	power := func(typ string, addr uint16, unit string) *config.Device {
		d := meter("inverter", 1, 10*time.Second, 0)
		p := holding("power", addr, typ)
		p.Unit = unit
		d.Points = []config.Point{p}
		return d
	}
	for _, c := range []struct {
		name string
		unit *sim.Unit
		dev  *config.Device
		want string
	}{
		{"float32", swapped(2310, 0), power("float32", 0, "W"), `power reads 3.7e+19 W; with order = "CDAB" it would be 2 310 W. Set order in [device.inverter]`},
		{"int32", swapped(0, 2310), power("int32", 2, "W"), `power reads 1.5e+08 W; with order = "CDAB" it would be 2 310 W. Set order in [device.inverter]`},
		{"a voltage", swapped(230.1, 0), power("float32", 0, "V"), `power reads 1.6e-23 V; with order = "CDAB" it would be 230.1 V. Set order in [device.inverter]`},
		{"0 is 0 in any order", swapped(0, 0), power("float32", 0, "Hz"), ""},
		{"no number", swapped(float32(math.NaN()), 0), power("float32", 0, "V"), ""},
		{"no unit", swapped(230.1, 0), power("float32", 0, ""), ""},
		{"one order makes as little sense as the other", swapped(1e20, 0), power("float32", 0, "W"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			virtual(t, func(t *testing.T) {
				p := newPlant(t, []*sim.Unit{c.unit}, c.dev)
				p.start()
				time.Sleep(90 * time.Minute)
				p.stop()
				if c.want == "" {
					without(t, p.log(), "with order")
					return
				}
				contains(t, p.log(), "WARN device inverter: "+c.want)
				contains(t, p.saw(), "health inverter online word-order")
				if n := count(p.log(), "WARN device inverter: power reads"); n != 1 {
					t.Errorf("said %d times, once is enough", n)
				}
			})
		})
	}
}

func TestWordOrderNamesThePlace(t *testing.T) {
	virtual(t, func(t *testing.T) {
		cfg, problems := config.Parse("/etc/busgate/busgate.toml", "[bus.meters]\nserial = \"/dev/ttyUSB0\"\nformat = \"8E1\"\n[device.inverter]\nbus = \"meters\"\n"+
			"[device.inverter.points]\npower = { holding = 0, type = \"float32\", unit = \"W\" }\n", nil)
		if cfg == nil {
			t.Fatal(problems)
		}
		p := newPlant(t, []*sim.Unit{swapped(2310, 0)})
		p.cfg = cfg
		p.start()
		time.Sleep(time.Minute)
		p.stop()
		contains(t, p.log(), `WARN device inverter: power reads 3.7e+19 W; with order = "CDAB" it would be 2 310 W. Set order in [device.inverter] (busgate.toml:4)`)
	})
}

// kernelDriver opens ports whose driver counts receive errors.
type kernelDriver struct{ *modbus.Driver }

type kernelField struct{ devices.Field }

func (k kernelDriver) Open(ctx context.Context, w devices.Wire) (devices.Field, error) {
	f, err := k.Driver.Open(ctx, w)
	if err != nil {
		return nil, err
	}
	return kernelField{f}, nil
}

func (k kernelField) Counts() devices.Counts {
	c := k.Field.Counts()
	c.UART.Parity = 2 * c.Bad
	return c
}

func TestKernelCountsParityErrors(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPlant(t, []*sim.Unit{counting(1, 0)}, meter("a", 1, time.Second, 3))
		p.bus.SetFaults(sim.Faults{WrongBaud: true})
		o := p.options()
		o.Drivers["modbus-rtu"] = kernelDriver{p.driver()}
		f, err := devices.New(p.cfg, p.recorder, o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); f.Run(ctx) }()
		time.Sleep(40 * time.Minute)
		cancel()
		<-done
		contains(t, p.log(), "ERROR bus meters: bytes arrive but none form a frame (20 of 20 bad) at 9600 8E1: baud or format is wrong. Try: busgate scan meters; the kernel counts 40 parity errors")
	})
}
