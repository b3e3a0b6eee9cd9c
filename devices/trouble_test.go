package devices_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"busgate/config"
	"busgate/devices/sim"
)

func TestDeadUnitIsNamedAndItsReturn(t *testing.T) {
	virtual(t, func(t *testing.T) {
		pumps := counting(3, 0)
		p := newPlant(t, []*sim.Unit{counting(1, 0), counting(2, 0), pumps},
			meter("a", 1, 10*time.Second, 3), meter("b", 2, 10*time.Second, 3), meter("pumps", 3, 10*time.Second, 3))
		p.start()
		time.Sleep(10 * time.Minute)
		pumps.SetFaults(sim.Faults{Dead: true})
		time.Sleep(4 * time.Minute)
		contains(t, p.saw(), "health pumps offline no-answer")
		var said string
		for _, h := range p.health {
			if h.Report.Err == "no-answer" {
				said = h.Report.Text
				break
			}
		}
		const want = "unit 3 on meters gives no answer (3 rounds, 2 tries of 110 ms each); the 2 other units of this bus do. Powered? unit_id right? Asked again in 1 s, later every 1m; last good reading 3"
		if !strings.HasPrefix(said, want) || !strings.HasSuffix(said, "s ago") {
			t.Errorf("said\n%s\nwant\n%s…", said, want)
		}
		pumps.SetFaults(sim.Faults{})
		time.Sleep(3 * time.Minute)
		p.stop()
		events := p.saw()
		back := slices.Index(events, "health pumps online")
		back = max(back, slices.Index(events[back+1:], "health pumps online")+back+1)
		if back <= 0 || events[back-1] != "take pumps" {
			t.Errorf("before the recovery is told its round is taken: %v", events[max(0, back-2):back+1])
		}
		found := false
		for _, line := range p.log() {
			found = found || strings.HasPrefix(line, "INFO device pumps: answers again after ") && strings.HasSuffix(line, " rounds missed)")
		}
		if !found {
			t.Errorf("no recovery: %s", strings.Join(p.log(), "\n"))
		}
		without(t, p.log(), "not one byte")
	})
}

func TestDeadFromTheStartSaysSixLinesADay(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPlant(t, []*sim.Unit{counting(1, 0)}, meter("grid", 1, time.Minute, 1), meter("pumps", 2, 10*time.Second, 3))
		p.start()
		time.Sleep(24 * time.Hour)
		p.stop()
		n := 0
		for _, line := range p.log() {
			if strings.Contains(line, "device pumps: ") {
				n++
			}
		}
		if n < 4 || n > 6 {
			t.Errorf("%d lines in a day:\n%s", n, strings.Join(p.log(), "\n"))
		}
		contains(t, p.log(), "WARN device pumps: unit 2 on meters gives no answer (3 rounds, 2 tries of 500 ms each); the other unit of this bus does. "+
			"Powered? unit_id right? Asked again in 1 s, later every 1m; no good reading yet")
	})
}

func TestOnlyUnitOfItsBus(t *testing.T) {
	virtual(t, func(t *testing.T) {
		u := counting(1, 0)
		p := newPlant(t, []*sim.Unit{u}, meter("grid", 1, time.Second, 3))
		p.start()
		time.Sleep(time.Minute)
		u.SetFaults(sim.Faults{Dead: true})
		time.Sleep(30 * time.Second)
		p.stop()
		contains(t, p.log(), "WARN device grid: unit 1 on meters gives no answer (3 rounds, 2 tries of 110 ms each). "+
			"Powered? unit_id right? Asked again in 1 s, later every 1m; last good reading 3s ago")
	})
}

func TestSilentBus(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPlant(t, []*sim.Unit{counting(1, 0), counting(2, 0), counting(3, 0)},
			meter("a", 1, 10*time.Second, 3), meter("b", 2, 10*time.Second, 3), meter("c", 3, 10*time.Second, 3))
		p.bus.SetFaults(sim.Faults{Silent: true})
		p.start()
		time.Sleep(3 * time.Minute)
		contains(t, p.log(), "ERROR bus meters: not one byte in 60 s from 3 units. Usually A and B swapped, no power, or the wrong port. Try: busgate scan meters")
		without(t, p.log(), "gives no answer") // only the first of the precedence
		contains(t, p.saw(), "health a offline bus-silent")
		p.bus.SetFaults(sim.Faults{})
		time.Sleep(3 * time.Minute)
		p.stop()
		found := slices.ContainsFunc(p.log(), func(s string) bool {
			return strings.HasPrefix(s, "INFO bus meters: answers come again after ")
		})
		if !found {
			t.Errorf("no recovery: %v", p.log())
		}
		contains(t, p.saw(), "health a online")
	})
}

func TestWrongBaud(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPlant(t, []*sim.Unit{counting(1, 0), counting(2, 0)}, meter("a", 1, time.Second, 3), meter("b", 2, time.Second, 3))
		p.bus.SetFaults(sim.Faults{WrongBaud: true})
		p.start()
		time.Sleep(10 * time.Minute)
		p.stop()
		contains(t, p.log(), "ERROR bus meters: bytes arrive but none form a frame (20 of 20 bad) at 9600 8E1: baud or format is wrong. Try: busgate scan meters")
		without(t, p.log(), "gives no answer")
		contains(t, p.saw(), "health a offline bad-frames")
	})
}

func TestALittleNoiseSaysNothing(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPlant(t, []*sim.Unit{counting(1, 0)}, meter("grid", 1, time.Second, 10))
		p.bus.SetFaults(sim.Faults{Damage: .001, Late: .001, LateBy: 300 * time.Millisecond})
		p.start()
		time.Sleep(3 * time.Hour)
		p.stop()
		if len(p.log()) != 0 {
			t.Errorf("said: %s", strings.Join(p.log(), "\n"))
		}
	})
}

func TestMissingRegister(t *testing.T) {
	virtual(t, func(t *testing.T) {
		u := counting(1, 0)
		u.Refuse(sim.Holding, 40001, 40002, 2)
		d := meter("inverter", 1, 10*time.Second, 3)
		d.Points = append(d.Points, holding("off", 40001, "uint16"))
		p := newPlant(t, []*sim.Unit{u}, d)
		p.start()
		time.Sleep(time.Minute)
		r := p.of("inverter")[2]
		if len(r.Values) != 3 || len(r.Errors) != 1 || r.Errors[0].Code != "unsupported" || r.Errors[0].Point != "off" {
			t.Errorf("round: %+v", r)
		}
		contains(t, p.log(), "WARN device inverter: holding 40001 does not exist there (exception 2, illegal data address). Lists that count from 40001 mean holding = 0")
		contains(t, p.saw(), "health inverter online illegal-address")
		p.stop()
	})
}

func TestOutOfRangeIsNotPublished(t *testing.T) {
	virtual(t, func(t *testing.T) {
		u := counting(1, 0)
		u.Set(sim.Holding, 0, 65535)
		d := meter("tank", 1, 10*time.Second, 1)
		p0 := &d.Points[0]
		p0.Name, p0.Scale, p0.Unit, p0.Min, p0.Max = "level", config.Decimal{M: 1, E: -1}, "cm", ptr(0.0), ptr(300.0)
		p := newPlant(t, []*sim.Unit{u}, d)
		p.start()
		time.Sleep(30 * time.Second)
		if r := p.of("tank")[0]; len(r.Values) != 0 || len(r.Errors) != 1 || r.Errors[0].Code != "out-of-range" {
			t.Errorf("round: %+v", r)
		}
		contains(t, p.log(), "WARN device tank: level 6 553.5 cm is outside 0 to 300 cm; not published")
		u.Set(sim.Holding, 0, 2000)
		time.Sleep(30 * time.Second)
		p.stop()
		last := p.of("tank")[len(p.of("tank"))-1]
		if len(last.Values) != 1 || last.Values[0].Value.String() != "200.0" {
			t.Errorf("round: %+v", last)
		}
		events := p.saw()
		if !slices.Contains(events, "health tank online out-of-range") || !slices.Contains(events, "health tank online") {
			t.Errorf("events %v", events)
		}
	})
}

func TestUnpluggedAdapter(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPlant(t, []*sim.Unit{counting(1, 0), counting(2, 0)}, meter("a", 1, time.Second, 3), meter("b", 2, time.Second, 3))
		var missing atomic.Bool
		p.open = func() error {
			if missing.Load() {
				return &wireTrouble{"port-missing", "there is no /dev/ttyUSB0. Ports of this computer: busgate scan", errors.New("ENOENT")}
			}
			return nil
		}
		p.start()
		for i := range 4 {
			time.Sleep(time.Minute)
			missing.Store(true)
			p.bus.Unplug()
			time.Sleep(3 * time.Minute)
			if i == 0 {
				contains(t, p.log(), "ERROR bus meters: /dev/ttyUSB0 is gone")
				contains(t, p.saw(), "health a offline port-gone")
			}
			missing.Store(false)
			p.bus.Replug()
		}
		time.Sleep(time.Minute)
		p.stop()
		if n := count(p.log(), "INFO bus meters: the adapter is back after 3m"); n != 4 {
			t.Errorf("%d returns of 4: %s", n, strings.Join(p.log(), "\n"))
		}
		without(t, p.log(), "there is no /dev") // it was there: it is gone, not missing
		contains(t, p.log(), "WARN bus meters: the adapter was lost 4 times in an hour: weak supply or cable?")
		if last := p.health[len(p.health)-1]; !last.Online || last.Report.Err != "" {
			t.Errorf("at the end: %+v", last)
		}
	})
}

func count(lines []string, prefix string) int {
	n := 0
	for _, l := range lines {
		if strings.HasPrefix(l, prefix) {
			n++
		}
	}
	return n
}

func TestPortThatDiesAtOnceIsNotOpenedAllTheTime(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPlant(t, []*sim.Unit{counting(1, 0)}, meter("a", 1, time.Second, 3))
		var opens atomic.Int32
		p.open = func() error {
			opens.Add(1)
			time.AfterFunc(10*time.Millisecond, func() { p.bus.Unplug(); p.bus.Replug() })
			return nil
		}
		p.start()
		time.Sleep(10 * time.Minute)
		p.stop()
		if n := opens.Load(); n < 55 || n > 65 { // every 10 s after the first few
			t.Errorf("opened %d times in 10 minutes", n)
		}
		if n := count(p.log(), "ERROR bus meters: /dev/ttyUSB0 is gone"); n != 2 {
			t.Errorf("said %d times: %s", n, strings.Join(p.log(), "\n"))
		}
	})
}

func TestStartErrorsOfAPortAreSaidOnEdges(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPlant(t, []*sim.Unit{counting(1, 0)}, meter("a", 1, time.Second, 3))
		var busy atomic.Bool
		busy.Store(true)
		p.open = func() error {
			if busy.Load() {
				return fmt.Errorf("open: %w", &wireTrouble{"port-busy", "ttyUSB0 is in use by mbmd (pid 812)", errors.New("EBUSY")})
			}
			return nil
		}
		p.start()
		time.Sleep(5 * time.Minute)
		if n := count(p.log(), "ERROR bus meters: ttyUSB0 is in use by mbmd (pid 812)"); n != 2 {
			t.Errorf("said %d times in 5 minutes, not at once and after one minute", n)
		}
		busy.Store(false)
		time.Sleep(10 * time.Second)
		p.stop()
		if n := count(p.log(), "INFO bus meters: the port is free again after 5m"); n != 1 {
			t.Errorf("no recovery: %v", p.log())
		}
		contains(t, p.saw(), "health a offline port-busy")
		contains(t, p.saw(), "health a online")
	})
}

// A port whose descriptor is too high for the library is counted each time.
func TestHighDescriptorsAreCounted(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPlant(t, []*sim.Unit{counting(1, 0)}, meter("a", 1, time.Second, 3))
		var opens atomic.Int32
		p.open = func() error {
			if opens.Add(1) <= 3 {
				return &wireTrouble{"port-fd", "ttyUSB0 got a file descriptor above 1023", errors.New("high")}
			}
			return nil
		}
		p.start()
		time.Sleep(time.Minute)
		buses, _ := p.fleet.Status()
		p.stop()
		if b := buses[0]; b.FDHigh != 3 || !b.Open || b.Online != 1 || b.Devices != 1 {
			t.Errorf("%+v", b)
		}
	})
}
