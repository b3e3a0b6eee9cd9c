package devices_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/sim"
)

// relays is a device with a limit in holding 10, four coils and some states.
func relays() *config.Device {
	d := meter("relays", 1, 10*time.Second, 3)
	limit := holding("limit", 10, "uint16")
	limit.Min, limit.Max, limit.Unit, limit.Write = ptr(0.0), ptr(100.0), "%", true
	d.Points = append(d.Points, limit)
	for i := range 4 {
		c := holding(fmt.Sprintf("relay%d", i+1), uint16(i), "bool")
		c.Table, c.Write = "coil", true
		d.Points = append(d.Points, c)
	}
	d.Points[5].Write = false // relay2
	return d
}

// written notes each word that the unit was told to store.
func written(u *sim.Unit, also func(t sim.Table, addr, word uint16) uint16) func() []string {
	var mu sync.Mutex
	var list []string
	u.OnWrite(func(t sim.Table, addr, word uint16) uint16 {
		mu.Lock()
		defer mu.Unlock()
		list = append(list, fmt.Sprintf("%d:%d=%d", t, addr, word))
		if also != nil {
			return also(t, addr, word)
		}
		return word
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(list)
	}
}

// write makes one command and gives its result as "code text" or the value.
func (p *plant) write(point, text string, set ...func(*devices.Command)) string {
	p.t.Helper()
	c := devices.Command{Device: "relays", Point: point, Text: text}
	for _, s := range set {
		s(&c)
	}
	r, err := p.fleet.Write(p.t.Context(), c)
	switch {
	case err != nil:
		return "error " + err.Error()
	case r.Code != "":
		return r.Code + ": " + r.Text
	}
	return r.Value.String()
}

// relayPlant runs a plant with the relays for a minute, so that they are known.
func relayPlant(t *testing.T, u *sim.Unit, set ...func(*config.Device)) *plant {
	u.Set(sim.Holding, 10, 50)
	for i := range uint16(4) {
		u.SetBit(sim.Coil, i, false)
	}
	d := relays()
	for _, s := range set {
		s(d)
	}
	p := newPlant(t, []*sim.Unit{u}, d)
	p.start()
	time.Sleep(5 * time.Minute)
	return p
}

func TestWriteIsReadBackAndTheStateFollows(t *testing.T) {
	virtual(t, func(t *testing.T) {
		u := counting(1, 0)
		p := relayPlant(t, u)
		list := written(u, nil)
		before := len(p.of("relays"))
		if got := p.write("limit", "80"); got != "80" {
			t.Errorf("limit: %s", got)
		}
		if got := p.write("relay1", "on"); got != "true" {
			t.Errorf("relay1: %s", got)
		}
		time.Sleep(time.Second)
		rounds := p.of("relays")
		if len(rounds) == before {
			t.Error("no round followed the command")
		}
		last := rounds[len(rounds)-1]
		if last.Values[3].Value.String() != "80" || last.Values[4].Value.String() != "true" {
			t.Errorf("the round after: %+v", last)
		}
		if got := strings.Join(list(), " "); got != "3:10=80 0:0=1" {
			t.Errorf("written: %s", got)
		}
		p.stop()
	})
}

func TestWriteRefusals(t *testing.T) {
	virtual(t, func(t *testing.T) {
		u := counting(1, 0)
		u.Refuse(sim.Holding, 20, 20, 2)
		p := relayPlant(t, u, func(d *config.Device) {
			x := holding("gone", 20, "uint16")
			x.Write = true
			d.Points = append(d.Points, x)
		})
		list := written(u, nil)
		for _, tt := range []struct{ point, text, want string }{
			{"limit", "fast", `out-of-range: limit cannot be "fast"; allowed: 0 to 100 %`},
			{"limit", "120", "out-of-range: limit must be 0 to 100 %"},
			{"relay2", "on", "not-writable: relay2 takes no commands (write = false)"},
			{"relay9", "on", "unknown-point: relays has no point `relay9` (did you mean `relay1`?)"},
			{"nonsense", "on", "unknown-point: relays has no point `nonsense`"},
			{"gone", "1", "exception-2: exception 2, illegal data address"},
		} {
			if got := p.write(tt.point, tt.text); got != tt.want {
				t.Errorf("%s = %s: %s, want %s", tt.point, tt.text, got, tt.want)
			}
		}
		if n := len(list()); n != 0 {
			t.Errorf("written: %v", list())
		}
		if _, err := p.fleet.Write(t.Context(), devices.Command{Device: "nobody", Point: "x"}); err == nil {
			t.Error("a device that does not exist takes commands")
		}
		p.stop()
	})
}

func TestWriteWhoseAnswerIsLost(t *testing.T) {
	// The learned timeout is about 110 ms: the fault is over before the read-back.
	tests := []struct {
		name   string
		point  string
		faults sim.Faults
		lasts  time.Duration
		set    func(*config.Device)
		want   string
		writes int
	}{
		{"was done: found by reading back, not repeated", "limit", sim.Faults{Lose: 1}, 90 * time.Millisecond, nil, "80", 1},
		{"was not done: written once more", "limit", sim.Faults{Dead: true}, 90 * time.Millisecond, nil, "80", 1},
		{"dead: nobody knows", "limit", sim.Faults{Dead: true}, time.Minute, nil, "timeout: no answer: whether it was done is unknown", 0},
		{"done, and nothing comes back: nobody knows", "limit", sim.Faults{Lose: 1}, time.Minute, nil, "timeout: no answer: whether it was done is unknown", 1},
		{"a pulse is never repeated", "limit", sim.Faults{Dead: true}, 90 * time.Millisecond,
			func(d *config.Device) { d.Points[3].Pulse = true }, "timeout: no answer: whether it was done is unknown", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			virtual(t, func(t *testing.T) {
				u := counting(1, 0)
				p := relayPlant(t, u, func(d *config.Device) {
					if tt.set != nil {
						tt.set(d)
					}
				})
				list := written(u, nil)
				time.Sleep(2 * time.Second) // between two rounds
				u.SetFaults(tt.faults)
				time.AfterFunc(tt.lasts, func() { u.SetFaults(sim.Faults{}) })
				if got := p.write(tt.point, "80"); got != tt.want {
					t.Errorf("%s, want %s", got, tt.want)
				}
				if n := len(list()); n != tt.writes {
					t.Errorf("written %d times: %v", n, list())
				}
				p.stop()
			})
		})
	}
}

func TestWriteThatTheDeviceChanges(t *testing.T) {
	virtual(t, func(t *testing.T) {
		u := counting(1, 0)
		p := relayPlant(t, u)
		written(u, func(_ sim.Table, _, w uint16) uint16 { return min(w, 75) })
		begin := time.Now()
		if got := p.write("limit", "80"); got != "differs: wrote 80, reads 75" {
			t.Error(got)
		}
		if d := time.Since(begin); d < time.Second || d > 1500*time.Millisecond {
			t.Errorf("after %v, want a second", d)
		}
		written(u, func(_ sim.Table, _, w uint16) uint16 {
			time.AfterFunc(500*time.Millisecond, func() { u.Set(sim.Holding, 10, w) })
			return 75
		})
		if got := p.write("limit", "60"); got != "60" {
			t.Errorf("a device that takes half a second: %s", got)
		}
		p.stop()
	})
}

func TestACommandWaitsUntilTheOneBeforeIsReadBack(t *testing.T) {
	virtual(t, func(t *testing.T) {
		u := counting(1, 0)
		p := relayPlant(t, u)
		list := written(u, func(_ sim.Table, _, w uint16) uint16 {
			time.AfterFunc(500*time.Millisecond, func() { u.Set(sim.Holding, 10, w) })
			return 50
		})
		var wg sync.WaitGroup
		for _, v := range []string{"80", "60"} {
			wg.Go(func() {
				if got := p.write("limit", v); got != v {
					t.Errorf("limit %s: %s", v, got)
				}
			})
			time.Sleep(time.Millisecond)
		}
		wg.Wait()
		if got := strings.Join(list(), " "); got != "3:10=80 3:10=60" {
			t.Errorf("written: %s", got)
		}
		p.stop()
	})
}

func TestQueueIsBounded(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPlant(t, []*sim.Unit{counting(1, 0)}, relays())
		p.open = func() error { return &wireTrouble{"port-busy", "busy", errors.New("busy")} }
		p.start()
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		for range 64 {
			wg.Go(func() {
				if _, err := p.fleet.Write(ctx, devices.Command{Device: "relays", Point: "limit", Text: "1"}); !errors.Is(err, context.Canceled) {
					t.Errorf("a waiting command whose client left: %v", err)
				}
			})
		}
		time.Sleep(time.Second)
		if got := p.write("limit", "1"); got != "refused: too many commands wait for bus meters (64)" {
			t.Error(got)
		}
		buses, _ := p.fleet.Status()
		if buses[0].Queue != 64 || buses[0].Refused != 1 {
			t.Errorf("%+v", buses[0])
		}
		cancel()
		wg.Wait()
		until := p.fleet.Now().Mono + 75*time.Second
		if got := p.write("limit", "1", func(c *devices.Command) { c.Until = until }); got != "expired: expired: waited 75 s for bus meters" {
			t.Error(got)
		}
		go func() {
			time.Sleep(time.Second)
			p.stop()
		}()
		if got := p.write("limit", "1"); got != "refused: the gateway stops" {
			t.Error(got)
		}
	})
}

func TestTheSameCommandIsDoneOnce(t *testing.T) {
	virtual(t, func(t *testing.T) {
		u := counting(1, 0)
		p := relayPlant(t, u)
		list := written(u, nil)
		id := func(c *devices.Command) { c.ID = "a1" }
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if got := p.write("limit", "80", id); got != "80" {
					t.Error(got)
				}
			})
		}
		wg.Wait()
		if got := p.write("limit", "20", id); got != "80" {
			t.Errorf("the first result comes again, not %s", got)
		}
		p.write("limit", "81")
		p.write("limit", "81")
		if got := strings.Join(list(), " "); got != "3:10=80 3:10=81 3:10=81" {
			t.Errorf("written: %s", got)
		}
		p.stop()
	})
}

// A command that was sent is done, whether or not its client stays: who sends it
// again under its ID gets the result of the first.
func TestTheSameCommandAfterItsClientLeft(t *testing.T) {
	virtual(t, func(t *testing.T) {
		u := counting(1, 0)
		p := relayPlant(t, u)
		ctx, leave := context.WithCancel(t.Context())
		list := written(u, func(_ sim.Table, _, w uint16) uint16 {
			leave() // it is done, and not yet read back
			return w
		})
		id := func(c *devices.Command) { c.ID = "a1" }
		c := devices.Command{Device: "relays", Point: "limit", Text: "80"}
		id(&c)
		if _, err := p.fleet.Write(ctx, c); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if got := p.write("limit", "20", id); got != "80" {
			t.Errorf("the same command again: %s", got)
		}
		if got := strings.Join(list(), " "); got != "3:10=80" {
			t.Errorf("written: %s", got)
		}
		p.stop()
	})
}

// A command between two requests of a round is followed by a round with its
// value: the one on its way may have read the point before.
func TestTheStateFollowsACommandWithinARound(t *testing.T) {
	virtual(t, func(t *testing.T) {
		u := counting(1, 0)
		p := relayPlant(t, u, func(d *config.Device) {
			d.Interval = time.Hour
			d.Points = append(d.Points, holding("last", 1000, "uint16"))
		})
		time.Sleep(2 * time.Hour)
		before := len(p.of("relays"))
		if err := p.fleet.Refresh("relays"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(40 * time.Millisecond) // into its second request
		for i, v := range []string{"true", "80"} {
			if got := p.write([]string{"relay1", "limit"}[i], []string{"on", "80"}[i]); got != v {
				t.Fatal(got)
			}
		}
		during := len(p.of("relays")) - before
		time.Sleep(10 * time.Second)
		rounds := p.of("relays")
		last := rounds[len(rounds)-1]
		if during != 0 || last.Values[3].Value.String() != "80" || last.Values[4].Value.String() != "true" {
			t.Errorf("%d rounds before the command was done; 10 s after it: %+v", during, last)
		}
		p.stop()
	})
}

func TestAdjacentCoilsGoInOneRequest(t *testing.T) {
	virtual(t, func(t *testing.T) {
		u := counting(1, 0)
		p := relayPlant(t, u, func(d *config.Device) { d.Points[5].Write = true })
		list := written(u, nil)
		time.Sleep(3 * time.Second)
		before := p.bus.Stats().Requests
		var wg sync.WaitGroup
		p.fleet.Refresh("relays") // the bus is busy while the commands come
		time.Sleep(time.Millisecond)
		for i := range 4 {
			wg.Go(func() {
				if got := p.write(fmt.Sprintf("relay%d", i+1), "on"); got != "true" {
					t.Error(got)
				}
			})
			time.Sleep(time.Millisecond)
		}
		wg.Wait()
		if got := strings.Join(list(), " "); got != "0:0=1 0:1=1 0:2=1 0:3=1" {
			t.Errorf("written: %s", got)
		}
		if n := p.bus.Stats().Requests - before; n > 2+1+4+2 { // a round, one write, four read-backs, the next round begun
			t.Errorf("%d requests", n)
		}
		p.stop()
	})
}

func TestCommandsGoBeforePolls(t *testing.T) {
	virtual(t, func(t *testing.T) {
		units := []*sim.Unit{counting(1, 0)}
		devs := []*config.Device{relays()}
		for i := byte(2); i < 8; i++ {
			units = append(units, counting(i, 0))
			devs = append(devs, meter(fmt.Sprintf("m%d", i), i, 100*time.Millisecond, 60)) // far more than the bus can
		}
		units[0].Set(sim.Holding, 10, 5)
		p := newPlant(t, units, devs...)
		p.start()
		time.Sleep(time.Minute)
		var worst time.Duration
		for i := range 50 {
			begin := time.Now()
			if got := p.write("limit", fmt.Sprint(i)); got != fmt.Sprint(i) {
				t.Fatal(got)
			}
			worst = max(worst, time.Since(begin))
			time.Sleep(777 * time.Millisecond)
		}
		// one block of 60 registers, the write, and its read-back, at 9600 baud and 20 ms
		limit := 181*time.Millisecond + 2*60*time.Millisecond
		if worst > limit {
			t.Errorf("the slowest of 50 commands took %v, more than %v", worst, limit)
		}
		// a flood of commands leaves room for polls: four of them a poll
		before := len(p.of("m2")) + len(p.of("m3"))
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() { p.write("limit", fmt.Sprint(i)) })
		}
		wg.Wait()
		if n := len(p.of("m2")) + len(p.of("m3")) - before; n == 0 {
			t.Error("no poll during 40 commands")
		}
		p.stop()
	})
}
