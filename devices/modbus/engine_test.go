package modbus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/sim"
)

// judge is a Sink that looks at every value: point pN of a device holds N and
// the base of its unit.
type judge struct {
	mu   sync.Mutex
	base map[string]int
	sight
}

// sight is what a judge saw.
type sight struct {
	rounds      map[string]int
	last        time.Time // a round came
	good, wrong int
}

// seen is what came so far.
func (j *judge) seen() sight {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := j.sight
	s.rounds = maps.Clone(s.rounds)
	return s
}

func (j *judge) Health(context.Context, devices.Health) {}

func (j *judge) Take(_ context.Context, r devices.Round) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.rounds[r.Device]++
	j.last = time.Now()
	for _, v := range r.Values {
		j.good++
		n, _ := strconv.Atoi(strings.TrimPrefix(v.Point, "p"))
		if v.Value.String() != strconv.Itoa(n+j.base[r.Device]) {
			j.wrong++
		}
	}
	return nil
}

// asked is a device with points at the given registers.
func asked(name string, unit uint8, interval time.Duration, addrs ...int) *config.Device {
	d := testDevice(unit)
	d.Name, d.Interval = name, interval
	for _, a := range addrs {
		p := point("holding", uint16(a), "uint16")
		p.Name = fmt.Sprint("p", a)
		d.Points = append(d.Points, p)
	}
	return d
}

// first is 0, 1 ... n-1.
func first(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

// engine runs a fleet on a simulated bus in virtual time; fn is called while it runs.
func engine(t *testing.T, l sim.Line, drv *Driver, units []*sim.Unit, devs []*config.Device, fn func(t *testing.T, j *judge, fleet *devices.Fleet, bus *sim.Bus)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		for _, u := range units {
			u.SetFill(func(_ sim.Table, a uint16) (uint16, bool) { return a + 1000*uint16(u.ID), true })
		}
		bus := sim.NewBus(l, 11, units...)
		cfg := testBus(l)
		if l.ASCII {
			cfg.Protocol = "modbus-ascii"
		}
		cfg.Timeout = 150 * time.Millisecond
		c := &config.Config{Buses: map[string]*config.Bus{"meters": cfg}, Devices: map[string]*config.Device{}}
		j := &judge{base: map[string]int{}, sight: sight{rounds: map[string]int{}}}
		for _, d := range devs {
			c.Devices[d.Name] = d
			j.base[d.Name] = 1000 * int(d.UnitID)
		}
		drv.OpenPort = func(context.Context, devices.Wire) (Port, error) { return bus.Open() }
		fleet, err := devices.New(c, j, devices.Options{Drivers: map[string]devices.Driver{"modbus-rtu": drv, "modbus-ascii": drv}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { fleet.Run(ctx) })
		fn(t, j, fleet, bus)
		cancel()
		wg.Wait()
	})
}

// The whole engine, with learned timeouts, retries, quarantine and probes, on a
// bus on which everything goes wrong at once: each block has the shape of all
// others, so that nothing but the owed rule tells a late answer from the right one.
func TestHostileBusThroughTheWholeEngine(t *testing.T) {
	for _, tt := range []struct {
		name   string
		line   sim.Line
		faults sim.Faults
		noOwed bool
	}{
		{"RTU", sim.Line{Baud: 19200, Format: "8E1"}, sim.Faults{BitError: .002, Lose: .01, Late: .03, LateBy: 420 * time.Millisecond, Foreign: .02, Stray: .01, Cut: .005}, false},
		{"ASCII", asciiLine, sim.Faults{Damage: .03, Lose: .01, Late: .03, LateBy: 420 * time.Millisecond, Foreign: .02, Stray: .01}, false},
		{"an adapter that hears itself", sim.Line{Baud: 19200, Format: "8E1"}, sim.Faults{Echo: true, BitError: .002, Lose: .01, Late: .03, LateBy: 420 * time.Millisecond, Foreign: .02}, false},
		{"RTU, noise in the place of late answers", sim.Line{Baud: 19200, Format: "8E1"}, sim.Faults{Noise: .03, BitError: .001, LateBy: 420 * time.Millisecond, Lose: .01}, false},
		{"RTU, owed rule off", sim.Line{Baud: 19200, Format: "8E1"}, sim.Faults{BitError: .002, Lose: .01, Late: .03, LateBy: 420 * time.Millisecond, Foreign: .02, Stray: .01, Cut: .005}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			units := []*sim.Unit{sim.NewUnit(1), sim.NewUnit(3)} // the strangers are 2 and 4
			addrs := []int{0, 100, 200, 300, 400, 500, 600, 700}
			devs := []*config.Device{asked("m1", 1, 100*time.Millisecond, addrs...), asked("m3", 3, 100*time.Millisecond, addrs...)}
			engine(t, tt.line, &Driver{noOwed: tt.noOwed}, units, devs, func(t *testing.T, j *judge, fleet *devices.Fleet, bus *sim.Bus) {
				for _, u := range units {
					u.SetAnswerTime(10*time.Millisecond, 5*time.Millisecond)
				}
				bus.SetFaults(tt.faults)
				polls := uint64(0)
				for polls < 20000 {
					time.Sleep(time.Minute)
					b, _ := fleet.Status()
					polls = b[0].Counts.Requests
				}
				b, _ := fleet.Status()
				c := b[0].Counts
				saw := j.seen()
				t.Logf("%d polls, %d values, WRONG %d; %d late, %d timeouts, %d damaged, %d foreign", polls, saw.good, saw.wrong, c.Late, c.Timeouts, c.Bad, c.Foreign)
				switch {
				case tt.noOwed && saw.wrong == 0:
					t.Error("no value is wrong without the owed rule: the test tests nothing")
				case !tt.noOwed && saw.wrong > 0:
					t.Errorf("%d values of another register", saw.wrong)
				case !tt.noOwed && (c.Late < 100 || saw.good < 12000):
					t.Errorf("%d good, %+v", saw.good, c)
				}
			})
		})
	}
}

// withRoom gives a pipe the room for answers that a socket has.
func withRoom(ctx context.Context, wg *sync.WaitGroup, c net.Conn) net.Conn {
	r := &room{c, make(chan []byte, 1000)}
	wg.Go(func() {
		for {
			select {
			case b := <-r.out:
				if _, err := c.Write(b); err != nil {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	return r
}

type room struct {
	net.Conn
	out chan []byte
}

func (r *room) Write(p []byte) (int, error) {
	r.out <- append([]byte(nil), p...)
	return len(p), nil
}

// RTU over TCP has neither transaction ids nor silences.
func TestRTUOverTCPHostileNetworkNeverGivesAnotherRegistersValue(t *testing.T) {
	for _, noOwed := range []bool{false, true} {
		t.Run(fmt.Sprint("owed rule off: ", noOwed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				srv := sim.NewRTU(5, counting(1, 1000))
				srv.SetFaults(sim.TCPFaults{Late: .02, LateBy: 700 * time.Millisecond, Lose: .01, Half: .005})
				near, far := net.Pipe()
				wg.Go(func() { srv.ServeConn(ctx, withRoom(ctx, &wg, far)) })
				cfg := tcpBus("192.168.10.40:4001")
				cfg.Protocol = "modbus-rtu"
				f := &field{bus: cfg, log: slog.New(slog.DiscardHandler), timing: timingOf(cfg)}
				f.Devices(nil)
				f.setLink((&Driver{noOwed: noOwed}).line(&netPort{conn: near, addr: cfg.TCP}, f), &rtuPackager{})
				u := f.unitOf(testDevice(1))
				good, wrong := 0, 0
				for i := range 20000 {
					addr := i % 300
					raw, err := f.read(t.Context(), u, span{"holding", addr, addr + 5}, patience{timeout: 300 * time.Millisecond, window: 2 * time.Second})
					if errors.Is(err, devices.ErrNoAnswer) || errors.Is(err, devices.ErrBadFrame) {
						continue
					}
					if err != nil {
						t.Fatal(err)
					}
					good++
					if int(binary.BigEndian.Uint16(raw)) != 1000+addr {
						wrong++
					}
				}
				c := f.Counts()
				t.Logf("%d good of 20000, WRONG %d; %d late, %d damaged", good, wrong, c.Late, c.Bad)
				if noOwed != (wrong > 0) || good < 17000 {
					t.Errorf("%d good, %d wrong", good, wrong)
				}
				f.Close()
				cancel()
				wg.Wait()
			})
		})
	}
}

func TestTheEngineUsesTheWholeWire(t *testing.T) {
	for _, baud := range []int{9600, 19200, 115200} {
		for _, n := range []int{1, 10, 60, 125} {
			l := sim.Line{Baud: baud, Format: "8E1", Chunk: 1}
			u := sim.NewUnit(1)
			// far more than the bus can, in the first minute, before intervals are stretched
			engine(t, l, &Driver{}, []*sim.Unit{u}, []*config.Device{asked("m", 1, time.Millisecond, first(n)...)}, func(t *testing.T, j *judge, fleet *devices.Fleet, bus *sim.Bus) {
				time.Sleep(time.Second)
				before := j.seen()
				time.Sleep(20 * time.Second)
				now := j.seen()
				rounds := now.rounds["m"] - before.rounds["m"]
				limit := time.Duration(rounds) * timingOf(testBus(l)).readTime("holding", n, 0)
				ratio := float64(limit) / float64(now.last.Sub(before.last))
				t.Logf("%6d baud %3d registers: %d rounds in 20 s, %.4f of the wire limit", baud, n, rounds, ratio)
				if s := bus.Stats(); ratio < .995 || s.GapViolations+s.Collisions > 0 || now.wrong > 0 {
					t.Errorf("ratio %.4f, %+v, %d wrong", ratio, s, now.wrong)
				}
			})
		}
	}
}

// A bus that is asked for half as much again as it can: each point gets the same
// share of what it asks for, whatever its interval and block.
func TestOverloadOfOneAndAHalfIsShared(t *testing.T) {
	l := sim.Line{Baud: 9600, Format: "8E1"}
	sizes := []int{2, 10, 20, 40, 60, 100, 5, 15, 30, 80}
	intervals := []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 3 * time.Second, 4 * time.Second}
	var units []*sim.Unit
	var devs []*config.Device
	for i, n := range sizes {
		u := sim.NewUnit(byte(i + 1))
		u.SetAnswerTime(15*time.Millisecond, 0)
		units = append(units, u)
		devs = append(devs, asked(fmt.Sprint("m", i), uint8(i+1), intervals[i%len(intervals)], first(n)...))
	}
	// the intervals are set so that U is 1.5
	need := 0.0
	timing := timingOf(testBus(l))
	for i, d := range devs {
		need += timing.readTime("holding", sizes[i], 15*time.Millisecond).Seconds() / d.Interval.Seconds()
	}
	for _, d := range devs {
		d.Interval = time.Duration(float64(d.Interval) * need / 1.5)
	}
	engine(t, l, &Driver{}, units, devs, func(t *testing.T, j *judge, fleet *devices.Fleet, _ *sim.Bus) {
		time.Sleep(2 * time.Minute)
		before := j.seen()
		const span = 12 * time.Minute
		time.Sleep(span)
		after := j.seen()
		var shares []float64
		for _, d := range devs {
			shares = append(shares, float64(after.rounds[d.Name]-before.rounds[d.Name])*d.Interval.Seconds()/span.Seconds())
		}
		b, _ := fleet.Status()
		worst, best := slices.Min(shares), slices.Max(shares)
		t.Logf("U %.3f, stretched x%.3f: the points get from %.4f to %.4f of what they ask for, worst/best %.4f", b[0].U, b[0].Stretch, worst, best, worst/best)
		if worst < .95*best || b[0].U < 1.45 || b[0].U > 1.55 || worst < .6 {
			t.Errorf("shares %.3f", shares)
		}
	})
}

// The 52 values of an SDM630, planned, against one request for each.
func TestPlannedMeterAgainstOneByOne(t *testing.T) {
	for _, tt := range []struct {
		baud  int
		ta    time.Duration
		ratio float64
	}{{9600, 0, 3.9}, {19200, 30 * time.Millisecond, 8}} {
		synctest.Test(t, func(t *testing.T) {
			l := sim.Line{Baud: tt.baud, Format: "8E1", Chunk: 1}
			u := counting(1, 0)
			u.SetAnswerTime(tt.ta, 0)
			bus := sim.NewBus(l, 1, u)
			dev := testDevice(1)
			dev.AnswerTime = max(tt.ta, time.Nanosecond)
			for _, a := range sdm630 {
				dev.Points = append(dev.Points, point("input", a, "uint32"))
			}
			f := openSim(t, &Driver{}, testBus(l), bus, dev)
			group := groupOf(dev)
			one := make([]*devices.Group, len(dev.Points))
			for i := range one {
				one[i] = &devices.Group{Device: dev, Points: []int{i}}
			}
			poll := func(g *devices.Group) {
				if a, err := f.Poll(t.Context(), g, noPause); err != nil || len(a.Values) != len(g.Points) {
					t.Fatalf("%v %s", err, texts(a))
				}
			}
			const rounds = 20
			for range 20 { // until the turnaround is known
				poll(group)
			}
			begin, asked := time.Now(), bus.Stats().Requests
			for range rounds {
				for _, g := range one {
					poll(g)
				}
			}
			single, singles := time.Since(begin)/rounds, (bus.Stats().Requests-asked)/rounds
			begin, asked = time.Now(), bus.Stats().Requests
			for range rounds {
				poll(group)
			}
			planned, requests := time.Since(begin)/rounds, (bus.Stats().Requests-asked)/rounds
			ratio := float64(single) / float64(planned)
			t.Logf("%d baud, turnaround %v: %v in %d requests one by one, %v in %d planned, x%.3f", tt.baud, tt.ta, single.Round(time.Millisecond), singles, planned.Round(time.Millisecond), requests, ratio)
			if ratio < tt.ratio-.001 { // 1248 / 320 characters
				t.Errorf("planned is %.3f times as fast, not %.1f", ratio, tt.ratio)
			}
		})
	}
}

// A bus at 90 % of its time, and commands at any moment: one waits at most for
// the block that is being read, and then needs its own exchange, the write and
// the read-back.
func TestCommandsOnABusyBus(t *testing.T) {
	l := sim.Line{Baud: 9600, Format: "8E1", Chunk: 1}
	const ta = 15 * time.Millisecond
	var units []*sim.Unit
	var devs []*config.Device
	for i := range 6 {
		u := sim.NewUnit(byte(i + 1))
		u.SetAnswerTime(ta, 0)
		units = append(units, u)
		devs = append(devs, asked(fmt.Sprint("m", i), uint8(i+1), 2550*time.Millisecond, first(100)...))
	}
	devs[0].Points[0].Write = true
	engine(t, l, &Driver{}, units, devs, func(t *testing.T, j *judge, fleet *devices.Fleet, bus *sim.Bus) {
		time.Sleep(3 * time.Minute)
		timing := timingOf(testBus(l))
		block := timing.readTime("holding", blockCap(timing, ta), ta)
		own := timing.frame(8) + timing.frame(8) + 2*timing.gap + ta + timing.readTime("holding", 1, ta)
		rng := rand.New(rand.NewPCG(4, 4))
		b, _ := fleet.Status()
		load := b[0].U
		var took []time.Duration
		for i := range 300 {
			time.Sleep(2*time.Second + time.Duration(rng.Int64N(int64(3*time.Second))))
			begin := time.Now()
			r, err := fleet.Write(t.Context(), devices.Command{Device: "m0", Point: "p0", Text: fmt.Sprint(i)})
			if err != nil || r.Code != "" || r.Value.String() != fmt.Sprint(i) {
				t.Fatalf("%+v %v", r, err)
			}
			took = append(took, time.Since(begin))
		}
		slices.Sort(took)
		p50, p99, worst := took[len(took)/2], took[len(took)*99/100], took[len(took)-1]
		b, _ = fleet.Status()
		t.Logf("U %.2f before, %.2f with the commands; one block %v, own exchange %v; 300 commands: p50 %v, p99 %v, longest %v, p99/bound %.3f", load, b[0].U, block, own, p50, p99, worst, float64(p99)/float64(block+own))
		if load < .88 || load > .95 {
			t.Errorf("the bus is at %.2f, not 0.9", load)
		}
		if p99 > block+own {
			t.Errorf("p99 %v is more than one block and the own exchange, %v", p99, block+own)
		}
	})
}
