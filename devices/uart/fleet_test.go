package uart

import (
	"context"
	"log/slog"
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

// notes keeps what a fleet says: it is its Sink and its log.
type notes struct {
	mu sync.Mutex
	state
}

type state struct {
	rounds int
	online bool
	lines  []string
	errs   []string // what Health carried
}

// now is a copy of what was said so far.
func (n *notes) now() state {
	n.mu.Lock()
	defer n.mu.Unlock()
	return state{n.rounds, n.online, slices.Clone(n.lines), slices.Clone(n.errs)}
}

func (s state) all() string { return strings.Join(s.lines, "\n") }

func (n *notes) Take(context.Context, devices.Round) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rounds++
	return nil
}

func (n *notes) Health(_ context.Context, h devices.Health) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.online = h.Online
	n.errs = append(n.errs, h.Report.Err)
}

func (n *notes) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }
func (n *notes) WithAttrs([]slog.Attr) slog.Handler           { return n }
func (n *notes) WithGroup(string) slog.Handler                { return n }
func (n *notes) Handle(_ context.Context, r slog.Record) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lines = append(n.lines, r.Level.String()+" "+r.Message)
	return nil
}

// fleet runs one sensor for the time of fn.
func fleet(t *testing.T, b *sim.Bus, dev *config.Device, fn func(*notes)) {
	t.Helper()
	n := &notes{}
	bus := *serial9600
	bus.Protocol = "uart"
	dev.Enabled, dev.OfflineAfter, dev.Backoff = true, 3, time.Minute
	cfg := &config.Config{Buses: map[string]*config.Bus{bus.Name: &bus}, Devices: map[string]*config.Device{dev.Name: dev}}
	f, err := devices.New(cfg, n, devices.Options{Drivers: map[string]devices.Driver{"uart": on(b)}, Log: slog.New(n)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { f.Run(ctx) })
	fn(n)
	cancel()
	wg.Wait()
}

func TestFleetSaysWhenATalkerIsSilent(t *testing.T) {
	dev := profiled(t, "nmea-gps")
	synctest.Test(t, func(t *testing.T) {
		b := sim.NewTalker(sim.Line{}, 1, time.Second, sim.NMEA(1))
		fleet(t, b, dev, func(n *notes) {
			time.Sleep(5 * time.Minute)
			if s := n.now(); s.rounds < 29 || s.rounds > 32 || !s.online || s.all() != "" {
				t.Errorf("%d rounds in 5 minutes, online %v, said %q", s.rounds, s.online, s.all())
			}
			b.SetFaults(sim.Faults{Silent: true})
			time.Sleep(45 * time.Second)
			s := n.now()
			if s.online || !slices.Contains(s.errs, "no-data") {
				t.Errorf("online %v, errors %v", s.online, s.errs)
			}
			if got := s.all(); !strings.HasPrefix(got, "WARN device sensor: no data for 30 s (NMEA, 9600 8N1); last good reading 3") || !strings.HasSuffix(got, "s ago") {
				t.Errorf("said %q", got)
			}
			b.SetFaults(sim.Faults{})
			time.Sleep(2 * time.Minute)
			if s = n.now(); !s.online || !strings.Contains(s.all(), "INFO device sensor: answers again after ") {
				t.Errorf("online %v, said %q", s.online, s.all())
			}
		})
	})
}

func TestFleetSaysWhenFramesAreBad(t *testing.T) {
	dev := profiled(t, "plantower-pms5003")
	synctest.Test(t, func(t *testing.T) {
		good := sim.PMS5003(1)
		b := sim.NewTalker(sim.Line{}, 1, time.Second, func(n uint64, at time.Duration) []byte {
			p := good(n, at)
			if n%20 == 3 {
				p[31]++
			}
			return p
		})
		fleet(t, b, dev, func(n *notes) {
			time.Sleep(3 * time.Minute)
			s := n.now()
			if !s.online || !slices.Contains(s.errs, "bad-checksum") || !strings.HasPrefix(s.all(), "WARN device sensor: 5.") ||
				!strings.Contains(s.all(), " % of frames have a wrong checksum; baud right? cable short?") {
				t.Errorf("online %v, errors %v, said %q", s.online, s.errs, s.all())
			}
		})
	})
}

func TestFleetSaysWhenALineIsDead(t *testing.T) {
	for name, c := range map[string]struct {
		fault sim.Faults
		word  string
	}{
		"no byte ever": {sim.Faults{Silent: true}, "bus-silent"},
		"wrong baud":   {sim.Faults{WrongBaud: true}, "no-data"},
	} {
		t.Run(name, func(t *testing.T) {
			dev := profiled(t, "nmea-gps")
			synctest.Test(t, func(t *testing.T) {
				b := sim.NewTalker(sim.Line{}, 1, time.Second, sim.NMEA(1))
				b.SetFaults(c.fault)
				fleet(t, b, dev, func(n *notes) {
					time.Sleep(5 * time.Minute)
					if s := n.now(); s.online || s.rounds != 0 || !slices.Contains(s.errs, c.word) {
						t.Errorf("online %v, %d rounds, errors %v, said %q", s.online, s.rounds, s.errs, s.all())
					}
				})
			})
		})
	}
}
