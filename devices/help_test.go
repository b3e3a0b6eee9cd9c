package devices_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/config/report"
	"busgate/devices"
	"busgate/devices/modbus"
	"busgate/devices/sim"
)

// recorder is a Sink that keeps everything, and the log as lines.
type recorder struct {
	mu     sync.Mutex
	rounds []devices.Round
	times  []time.Time
	health []devices.Health
	events []string // "take grid", "health grid online", in order
	lines  []string
	alerts []report.Report
	take   func(devices.Round)
}

func (r *recorder) Take(_ context.Context, round devices.Round) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rounds = append(r.rounds, round)
	r.times = append(r.times, time.Now())
	r.events = append(r.events, "take "+round.Device)
	if r.take != nil {
		r.take(round)
	}
	return nil
}

func (r *recorder) alert(x report.Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.alerts = append(r.alerts, x)
}

func (r *recorder) Health(_ context.Context, h devices.Health) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.health = append(r.health, h)
	state := "offline"
	if h.Online {
		state = "online"
	}
	r.events = append(r.events, strings.TrimSpace(fmt.Sprintf("health %s %s %s", h.Device, state, h.Report.Err)))
}

// of is the rounds of a device.
func (r *recorder) of(device string) []devices.Round {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []devices.Round
	for _, x := range r.rounds {
		if x.Device == device {
			out = append(out, x)
		}
	}
	return out
}

func (r *recorder) log() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.lines...)
}

func (r *recorder) saw() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.events...)
}

// Enabled, Handle, WithAttrs and WithGroup make it a slog.Handler.
func (r *recorder) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }
func (r *recorder) Handle(_ context.Context, x slog.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, x.Level.String()+" "+x.Message)
	return nil
}
func (r *recorder) WithAttrs([]slog.Attr) slog.Handler { return r }
func (r *recorder) WithGroup(string) slog.Handler      { return r }

// plant is a fleet on a simulated bus.
type plant struct {
	*recorder
	t     *testing.T
	cfg   *config.Config
	bus   *sim.Bus
	fleet *devices.Fleet
	stop  func()
	open  func() error // before the port is opened; nil error: go on
}

// newPlant makes a bus at 9600 8E1 with the units and devices given; start runs it.
func newPlant(t *testing.T, units []*sim.Unit, devs ...*config.Device) *plant {
	l := sim.Line{Baud: 9600, Format: "8E1"}
	p := &plant{recorder: &recorder{}, t: t, bus: sim.NewBus(l, 3, units...)}
	p.cfg = &config.Config{
		Buses: map[string]*config.Bus{"meters": {Name: "meters", Serial: "/dev/ttyUSB0", Protocol: "modbus-rtu", Baud: 9600, DataBits: 8,
			Parity: 'E', StopBits: 1, Timeout: 500 * time.Millisecond, Retries: 1, MaxRead: 125, MaxHole: 124}},
		Devices: map[string]*config.Device{},
	}
	for _, d := range devs {
		p.cfg.Devices[d.Name] = d
	}
	return p
}

func (p *plant) driver() *modbus.Driver {
	return &modbus.Driver{OpenPort: func(context.Context, devices.Wire) (modbus.Port, error) {
		if p.open != nil {
			if err := p.open(); err != nil {
				return nil, err
			}
		}
		port, err := p.bus.Open()
		if err != nil {
			return nil, err
		}
		return simPort{port}, nil
	}}
}

// simPort puts the death of a simulated port into the words of a real one.
type simPort struct{ *sim.Port }

func (s simPort) Read(b []byte) (int, error) {
	n, err := s.Port.Read(b)
	return n, goneIf(err)
}

func (s simPort) Write(b []byte) (int, error) {
	n, err := s.Port.Write(b)
	return n, goneIf(err)
}

func goneIf(err error) error {
	if err == nil {
		return nil
	}
	return &wireTrouble{"port-gone", "/dev/ttyUSB0 is gone", err}
}

type wireTrouble struct {
	word, text string
	err        error
}

func (w *wireTrouble) Word() string  { return w.word }
func (w *wireTrouble) Text() string  { return w.text }
func (w *wireTrouble) Error() string { return w.err.Error() }

func (p *plant) options() devices.Options {
	log := slog.New(p.recorder)
	d := p.driver()
	return devices.Options{Drivers: map[string]devices.Driver{"modbus-rtu": d}, Log: log, Ladder: report.NewLadder(log), Alert: p.alert}
}

func (p *plant) start() {
	p.t.Helper()
	p.startWith(p.options())
}

func (p *plant) startWith(o devices.Options) {
	p.t.Helper()
	f, err := devices.New(p.cfg, p.recorder, o)
	if err != nil {
		p.t.Fatal(err)
	}
	p.fleet = f
	ctx, cancel := context.WithCancel(p.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f.Run(ctx); err != nil {
			p.t.Error(err)
		}
	})
	p.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
}

// virtual runs fn in virtual time and stops the plant it makes.
func virtual(t *testing.T, fn func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, fn)
}

// meter is a device with n uint16 points from holding register 0.
func meter(name string, unit uint8, interval time.Duration, n int) *config.Device {
	d := &config.Device{Name: name, Bus: "meters", UnitID: unit, Interval: interval, Enabled: true, OfflineAfter: 3, Backoff: time.Minute, MaxRead: 125}
	for i := range n {
		d.Points = append(d.Points, holding(fmt.Sprintf("p%d", i), uint16(i), "uint16"))
	}
	return d
}

func holding(name string, addr uint16, typ string) config.Point {
	return config.Point{Name: name, Table: "holding", Addr: addr, Type: typ, Bit: -1, ScaleReg: -1, At: -1, Column: -1, Digits: -1, Order: "ABCD"}
}

// counting serves register a as a plus base.
func counting(id byte, base uint16) *sim.Unit {
	u := sim.NewUnit(id)
	u.SetAnswerTime(20*time.Millisecond, 0)
	u.SetFill(func(_ sim.Table, a uint16) (uint16, bool) { return a + base, true })
	return u
}

func ptr[T any](v T) *T { return &v }

// contains fails unless one line of got is want.
func contains(t *testing.T, got []string, want string) {
	t.Helper()
	for _, g := range got {
		if g == want {
			return
		}
	}
	t.Errorf("no line is\n\t%s\nthere are\n\t%s", want, strings.Join(got, "\n\t"))
}

// without fails when a line of got holds part.
func without(t *testing.T, got []string, part string) {
	t.Helper()
	for _, g := range got {
		if strings.Contains(g, part) {
			t.Errorf("unexpected: %s", g)
		}
	}
}
