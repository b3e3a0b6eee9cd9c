package devices_test

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/sim"
)

func TestFirstRoundComesAtOnceAndThenEachInterval(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPlant(t, []*sim.Unit{counting(1, 100), counting(2, 200)}, meter("grid", 1, 10*time.Second, 3), meter("cellar", 2, 10*time.Second, 2))
		begin := time.Now()
		p.start()
		time.Sleep(61 * time.Second)
		p.stop()
		for _, name := range []string{"grid", "cellar"} {
			rounds := p.of(name)
			if len(rounds) < 7 || len(rounds) > 8 { // the second comes when the phase of the name says
				t.Fatalf("%s: %d rounds in 61 s", name, len(rounds))
			}
			for i, r := range rounds {
				if r.Seq != uint64(i+1) {
					t.Errorf("%s: round %d has number %d", name, i+1, r.Seq)
				}
			}
			gap := rounds[4].At.Mono - rounds[3].At.Mono
			if gap < 9900*time.Millisecond || gap > 10100*time.Millisecond {
				t.Errorf("%s: %v between two rounds", name, gap)
			}
		}
		if first := p.times[1].Sub(begin); first > time.Second {
			t.Errorf("both first rounds came after %v", first)
		}
		r := p.of("grid")[0]
		if len(r.Values) != 3 || r.Values[2].Point != "p2" || r.Values[2].Value.String() != "102" || len(r.Errors) != 0 {
			t.Errorf("first round: %+v", r)
		}
		if want := begin.UTC(); r.At.Wall.Before(want) || r.At.Wall.After(want.Add(time.Second)) {
			t.Errorf("wall time %v", r.At.Wall)
		}
	})
}

func TestDeadUnitOfFiveCostsTheBusLittle(t *testing.T) {
	good := func(dead bool) (n int, worst time.Duration) {
		virtual(t, func(t *testing.T) {
			var units []*sim.Unit
			var devs []*config.Device
			for i := byte(1); i <= 5; i++ {
				if !dead && i == 3 {
					continue // the limit: the other four have the bus to themselves
				}
				devs = append(devs, meter(fmt.Sprintf("m%d", i), i, 100*time.Millisecond, 20)) // more than the bus can
				if i != 3 {
					units = append(units, counting(i, uint16(i)))
				}
			}
			p := newPlant(t, units, devs...)
			p.start()
			time.Sleep(10 * time.Minute)
			p.stop()
			n = len(p.rounds)
			last := map[string]time.Time{}
			for i, r := range p.rounds {
				if at, ok := last[r.Device]; ok {
					worst = max(worst, p.times[i].Sub(at))
				}
				last[r.Device] = p.times[i]
			}
		})
		return n, worst
	}
	all, _ := good(false)
	with, worst := good(true)
	ratio := float64(with) / float64(all)
	t.Logf("healthy polls with one of five dead: %d of %d, ratio %.3f, worst pause %v", with, all, ratio, worst)
	if ratio < .95 {
		t.Errorf("a dead unit costs the bus %.1f %%, more than 5 %%", 100*(1-ratio))
	}
}

func TestProbesOfManyDeadUnitsCostTheBusLittle(t *testing.T) {
	polls := func(dead int) (n int) {
		virtual(t, func(t *testing.T) {
			devs := []*config.Device{meter("m", 1, 100*time.Millisecond, 20)} // all the bus can
			for i := range dead {
				d := meter(fmt.Sprintf("dead%02d", i), uint8(10+i), time.Second, 1)
				d.Backoff = time.Second
				devs = append(devs, d)
			}
			p := newPlant(t, []*sim.Unit{counting(1, 0)}, devs...)
			p.start()
			time.Sleep(5 * time.Minute) // until all of them rest
			before := len(p.of("m"))
			time.Sleep(5 * time.Minute)
			n = len(p.of("m")) - before
			p.stop()
		})
		return n
	}
	alone, with := polls(0), polls(20)
	if ratio := float64(with) / float64(alone); ratio < .94 {
		t.Errorf("20 dead units leave %.3f of the bus (%d of %d polls)", ratio, with, alone)
	}
}

func TestOverloadStretchesAllIntervalsEvenly(t *testing.T) {
	virtual(t, func(t *testing.T) {
		var units []*sim.Unit
		var devs []*config.Device
		for i := byte(1); i <= 12; i++ {
			u := counting(i, 0)
			u.SetAnswerTime(150*time.Millisecond, 0)
			units = append(units, u)
			devs = append(devs, meter(fmt.Sprintf("m%02d", i), i, 2*time.Second, 37))
		}
		devs[0].Name = "grid"
		p := newPlant(t, units, devs...)
		p.start()
		time.Sleep(7 * time.Minute)
		p.stop()
		contains(t, p.log(), "WARN bus meters: 12 devices need 3.1 s a round, grid asks for 2 s: all intervals are stretched x1.6")
		_, list := p.fleet.Status()
		counts := map[string]int{}
		for _, r := range p.rounds {
			counts[r.Device]++
		}
		least, most := 1<<30, 0
		for _, d := range list {
			least, most = min(least, counts[d.Name]), max(most, counts[d.Name])
		}
		if float64(least) < .95*float64(most) {
			t.Errorf("shares from %d to %d rounds: %v", least, most, counts)
		}
	})
}

func TestRefreshReadsOnceAndMerges(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPlant(t, []*sim.Unit{counting(1, 0)}, meter("grid", 1, time.Hour, 3))
		p.start()
		time.Sleep(2 * time.Hour)
		before := len(p.of("grid"))
		for range 6 {
			if err := p.fleet.Refresh("grid"); err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // the first is on the wire, the others come too late for it
		}
		time.Sleep(time.Second)
		if n := len(p.of("grid")) - before; n != 2 {
			t.Errorf("%d rounds after one request and 5 during its round, want 2", n)
		}
		if err := p.fleet.Refresh("nobody"); err == nil || err.Error() != `there is no device "nobody"` {
			t.Errorf("unknown device: %v", err)
		}
		p.stop()
	})
}

func TestPointsOfOtherIntervalsAreRoundsOfTheirOwn(t *testing.T) {
	virtual(t, func(t *testing.T) {
		d := meter("grid", 1, time.Second, 4)
		d.Points[2].Interval, d.Points[3].Interval = time.Minute, time.Minute
		p := newPlant(t, []*sim.Unit{counting(1, 0)}, d)
		p.start()
		time.Sleep(3*time.Minute + time.Second)
		p.stop()
		slow := 0
		for _, r := range p.of("grid") {
			var names []string
			for _, v := range r.Values {
				names = append(names, v.Point)
			}
			switch strings.Join(names, " ") {
			case "p0 p1":
			case "p2 p3":
				slow++
			default:
				t.Fatalf("a round of %v", names)
			}
		}
		if slow < 4 || slow > 5 {
			t.Errorf("%d rounds of the slow points in 3 minutes", slow)
		}
	})
}

func TestUpdateLeavesUnchangedBusesAlone(t *testing.T) {
	virtual(t, func(t *testing.T) {
		second := sim.NewBus(sim.Line{Baud: 9600, Format: "8E1"}, 1, counting(9, 0))
		p := newPlant(t, []*sim.Unit{counting(1, 0), counting(2, 0)}, meter("grid", 1, time.Second, 3), meter("cellar", 2, time.Second, 3))
		p.start()
		time.Sleep(30 * time.Second)
		cfg := *p.cfg
		cfg.Buses, cfg.Devices = maps.Clone(p.cfg.Buses), maps.Clone(p.cfg.Devices)
		delete(cfg.Devices, "cellar")
		cfg.Devices["attic"] = meter("attic", 2, time.Second, 2)
		if err := p.fleet.Update(&cfg); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		rounds := p.of("grid")
		for i := 2; i < len(rounds); i++ {
			if gap := rounds[i].At.Mono - rounds[i-1].At.Mono; gap > 1100*time.Millisecond {
				t.Errorf("the unchanged device was not asked for %v", gap)
			}
		}
		if len(p.of("attic")) < 28 {
			t.Errorf("the new device was asked %d times", len(p.of("attic")))
		}
		contains(t, p.saw(), "health cellar offline")
		// another wire: the bus closes, opens, and the devices come back
		cfg2 := cfg
		cfg2.Buses = maps.Clone(cfg.Buses)
		b := *cfg.Buses["meters"]
		b.Retries = 3
		cfg2.Buses["meters"] = &b
		if err := p.fleet.Update(&cfg2); err != nil {
			t.Fatal(err)
		}
		contains(t, p.saw(), "health grid offline")
		before := len(p.of("grid"))
		time.Sleep(10 * time.Second)
		if n := len(p.of("grid")) - before; n < 9 {
			t.Errorf("%d rounds in 10 s after the change of the wire", n)
		}
		// a mistake changes nothing
		cfg3 := cfg2
		cfg3.Buses = maps.Clone(cfg2.Buses)
		bad := b
		bad.Protocol = "profibus"
		cfg3.Buses["meters"] = &bad
		if err := p.fleet.Update(&cfg3); err == nil || !strings.Contains(err.Error(), "protocol profibus is not built in") {
			t.Errorf("unknown protocol: %v", err)
		}
		before = len(p.of("grid"))
		time.Sleep(10 * time.Second)
		if n := len(p.of("grid")) - before; n < 9 {
			t.Errorf("%d rounds in 10 s after a refused update", n)
		}
		p.stop()
		_ = second
	})
}

func TestLoads(t *testing.T) {
	var devs []*config.Device
	for i := range 12 {
		d := meter(fmt.Sprintf("m%02d", i), uint8(i+1), 4*time.Second, 60)
		d.AnswerTime = 100 * time.Millisecond
		devs = append(devs, d)
	}
	devs[5].Interval = 2 * time.Second
	p := newPlant(t, nil, devs...)
	p.cfg.Devices["off"] = meter("off", 50, time.Second, 3)
	p.cfg.Devices["off"].Enabled = false
	loads := devices.Loads(p.cfg, p.options().Drivers, nil)
	if len(loads) != 1 {
		t.Fatalf("%d loads", len(loads))
	}
	l := loads[0]
	// T(60) = (13+120)*11/9600 + 2*3.5*11/9600 + 0.1 s = 0.26042 s
	if l.Devices != 12 || l.Requests != 12 || l.Round.Round(time.Millisecond) != 3125*time.Millisecond || l.Fastest.Name != "m05" {
		t.Errorf("%+v", l)
	}
	if want := "12 devices need 3.1 s a round on bus `meters` at 9600 baud; `m05` asks for 2 s"; l.U < .8 || l.U > .9 || l.Warning != "" {
		t.Errorf("U %.3f, warning %q, %s", l.U, l.Warning, want)
	}
	for _, d := range devs {
		d.Interval = 2 * time.Second
	}
	l = devices.Loads(p.cfg, p.options().Drivers, nil)[0]
	if want := "12 devices need 3.1 s a round on bus `meters` at 9600 baud; `m00` asks for 2 s; all intervals will be stretched x1.6"; l.Warning != want {
		t.Errorf("warning\n%s\nwant\n%s", l.Warning, want)
	}
}

// remembered is a Memory in a map.
type remembered struct {
	mu sync.Mutex
	m  map[string][]byte
}

func (r *remembered) Load(key string) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.m[key], nil
}

func (r *remembered) Save(key string, v []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.m[key] = v
}

// A device that has been asked before costs what it was seen to cost.
func TestLoadsKnowWhatWasLearned(t *testing.T) {
	virtual(t, func(t *testing.T) {
		slow := counting(1, 0)
		slow.SetAnswerTime(300*time.Millisecond, 0)
		p := newPlant(t, []*sim.Unit{slow}, meter("grid", 1, time.Second, 3))
		o, mem := p.options(), &remembered{m: map[string][]byte{}}
		o.Memory = mem
		before := devices.Loads(p.cfg, o.Drivers, mem)[0].U
		p.startWith(o)
		time.Sleep(5 * time.Minute)
		buses, _ := p.fleet.Status()
		p.stop()
		after := devices.Loads(p.cfg, o.Drivers, mem)[0].U
		if seen := buses[0].U; before > .1 || math.Abs(after-seen) > .02 {
			t.Errorf("U %.3f before anything is known, %.3f after; the bus itself needs %.3f", before, after, seen)
		}
	})
}

func TestNewNamesEveryMistake(t *testing.T) {
	p := newPlant(t, nil, meter("grid", 1, time.Second, 1), meter("lost", 2, time.Second, 1))
	p.cfg.Buses["meters"].Protocol = "lonworks"
	p.cfg.Devices["lost"].Bus = "nowhere"
	_, err := devices.New(p.cfg, p.recorder, p.options())
	want := "bus meters: protocol lonworks is not built in\ndevice lost: there is no bus nowhere"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestStatusIsSortedAndCounts(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPlant(t, []*sim.Unit{counting(1, 0)}, meter("grid", 1, time.Second, 3), meter("dead", 2, time.Second, 3))
		p.start()
		time.Sleep(2 * time.Minute)
		buses, list := p.fleet.Status()
		p.stop()
		if len(buses) != 1 || !buses[0].Open || buses[0].Counts.Good < 100 || buses[0].U <= 0 || buses[0].Stretch != 1 {
			t.Errorf("%+v", buses)
		}
		names := []string{}
		for _, d := range list {
			names = append(names, d.Name)
		}
		if !slices.Equal(names, []string{"dead", "grid"}) {
			t.Errorf("devices %v", names)
		}
		if d := list[0]; d.Online || d.Failed < 3 || d.Err != "no-answer" || d.Counts.Timeouts == 0 || !d.LastGood.IsZero() {
			t.Errorf("dead: %+v", d)
		}
		if d := list[1]; !d.Online || d.Err != "" || d.Counts.Good < 100 || d.Counts.RTT50 <= 0 || time.Since(d.LastGood) > 2*time.Second {
			t.Errorf("grid: %+v", d)
		}
	})
}
