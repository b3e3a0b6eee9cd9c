package devices

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"busgate/config"
	"busgate/config/report"
)

// Options are what a Fleet is built from besides its configuration.
type Options struct {
	Drivers map[string]Driver // by protocol of a bus: modbus-rtu, modbus-tcp, uart
	Memory  Memory            // may be nil
	Log     *slog.Logger      // nil: silent
	Ladder  *report.Ladder    // nil: one of its own, which logs to Log
	// Alert, when set, is told of a problem of a bus that is worth an alert of the
	// gateway, on its edges and, with Report.Solved, when it is over. Text names the
	// bus. It must not wait.
	Alert func(report.Report)
	// Clock is the wall time in UTC and whether it is known; nil: it is known and right.
	Clock func() (wall time.Time, known bool)
}

// Fleet asks all devices of a configuration in time. Its methods are safe for
// concurrent use; Run is called once.
type Fleet struct {
	sink  Sink
	o     Options
	mono  time.Duration // CLOCK_BOOTTIME at epoch
	epoch time.Time

	updating sync.Mutex // one Update at a time

	alarming sync.Mutex               // guards alarmed; held while Alert is told
	alarmed  map[string]report.Report // alerts that stand, by their word and bus

	mu     sync.Mutex
	cfg    *config.Config
	buses  map[string]*bus
	ids    map[string]*idRing // by device
	starts chan *bus          // to Run; nil before and after
	ended  chan struct{}      // closed when Run takes no more buses
}

// New checks that each bus has a driver and prepares the schedules. It opens nothing.
func New(cfg *config.Config, sink Sink, o Options) (*Fleet, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Ladder == nil {
		o.Ladder = report.NewLadder(o.Log)
	}
	if o.Clock == nil {
		o.Clock = func() (time.Time, bool) { return time.Now().UTC(), true }
	}
	f := &Fleet{sink: sink, o: o, mono: bootTime(), epoch: time.Now(), cfg: cfg,
		buses: map[string]*bus{}, ids: map[string]*idRing{}, ended: make(chan struct{}), alarmed: map[string]report.Report{}}
	wanted, err := f.check(cfg)
	if err != nil {
		return nil, err
	}
	for name, devs := range wanted {
		f.buses[name] = newBus(f, cfg.Buses[name], devs)
	}
	return f, nil
}

// check groups the enabled devices by bus, in the order of their names.
func (f *Fleet) check(cfg *config.Config) (map[string][]*config.Device, error) {
	wanted := map[string][]*config.Device{}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(cfg.Devices)) {
		d := cfg.Devices[name]
		if !d.Enabled {
			continue
		}
		b := cfg.Buses[d.Bus]
		switch {
		case b == nil:
			errs = append(errs, fmt.Errorf("device %s: there is no bus %s", name, d.Bus))
		case f.o.Drivers[b.Protocol] == nil:
			if wanted[d.Bus] == nil { // said once a bus
				errs = append(errs, fmt.Errorf("bus %s: protocol %s is not built in", b.Name, b.Protocol))
			}
		}
		wanted[d.Bus] = append(wanted[d.Bus], d)
	}
	return wanted, errors.Join(errs...)
}

// Run asks the devices until ctx ends; then each bus finishes the exchange in
// flight, writes its safe values and closes. It returns nil.
func (f *Fleet) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	start := func(b *bus) {
		bctx, cancel := context.WithCancel(ctx)
		if !b.begin(cancel) {
			cancel()
			return
		}
		wg.Go(func() {
			defer cancel()
			b.run(bctx, ctx)
		})
	}
	f.mu.Lock()
	f.starts = make(chan *bus)
	for _, name := range slices.Sorted(maps.Keys(f.buses)) {
		start(f.buses[name])
	}
	f.mu.Unlock()
	for {
		select {
		case b := <-f.starts:
			start(b)
			continue
		case <-ctx.Done():
		}
		break
	}
	close(f.ended)
	wg.Wait()
	return nil
}

// Update puts a new configuration into force, all or nothing. A bus whose wire
// did not change stays open and misses no poll; of its devices only the changed
// ones get a new plan. A changed bus finishes its exchange, closes and opens.
// Devices that left are said to be offline.
func (f *Fleet) Update(cfg *config.Config) error {
	wanted, err := f.check(cfg)
	if err != nil {
		return err
	}
	f.updating.Lock()
	defer f.updating.Unlock()
	was := f.cfg // only Update changes it
	stay, taps := map[string]*bus{}, map[string]*Tap{}
	for _, b := range f.sorted() {
		if len(wanted[b.name]) > 0 && reflect.DeepEqual(b.cfg, cfg.Buses[b.name]) {
			stay[b.name] = b
			continue
		}
		b.stop() // without f.mu: its last round may ask for Status
		b.dismiss()
		taps[b.name] = b.tap
	}
	all := maps.Clone(stay)
	var fresh []*bus
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		if stay[name] != nil {
			continue
		}
		b := newBus(f, cfg.Buses[name], wanted[name])
		if t := taps[name]; t != nil {
			b.tap = t // who watches goes on
		}
		all[name], fresh = b, append(fresh, b)
	}
	f.mu.Lock()
	f.buses, f.cfg = all, cfg
	maps.DeleteFunc(f.ids, func(name string, _ *idRing) bool { return cfg.Devices[name] == nil })
	starts := f.starts
	f.mu.Unlock()
	f.move(was, cfg, stay)
	for name, b := range stay {
		b.deliver(wanted[name])
	}
	if starts == nil {
		return nil // Run will start them
	}
	for _, b := range fresh {
		select {
		case starts <- b:
		case <-f.ended:
			b.stop()
		}
	}
	return nil
}

// move says that the devices are offline that leave a bus which goes on: it may
// be busy with an exchange, and would say so when the new one has them online.
func (f *Fleet) move(was, cfg *config.Config, stay map[string]*bus) {
	for _, name := range slices.Sorted(maps.Keys(cfg.Devices)) {
		old, d := was.Devices[name], cfg.Devices[name]
		if old != nil && old.Enabled && d.Enabled && old.Bus != d.Bus && stay[old.Bus] != nil {
			f.sink.Health(context.Background(), Health{Device: name})
		}
	}
}

// elsewhere says that a device is asked on another bus now.
func (f *Fleet) elsewhere(device, bus string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.cfg.Devices[device]
	return d != nil && d.Enabled && d.Bus != bus
}

// Refresh reads a device once in the next free slot of its bus. Requests that
// wait already are one with it.
func (f *Fleet) Refresh(device string) error {
	b, _, err := f.busOf(device)
	if err != nil {
		return err
	}
	b.refresh(device)
	return nil
}

// busOf finds the bus of an enabled device.
func (f *Fleet) busOf(device string) (*bus, *config.Device, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.cfg.Devices[device]
	if d == nil {
		return nil, nil, fmt.Errorf("there is no device %s", report.Name(device))
	}
	b := f.buses[d.Bus]
	if b == nil || !d.Enabled {
		return nil, nil, fmt.Errorf("device %s is switched off (enabled = false)", device)
	}
	return b, d, nil
}

// Now is the present on the clock of Round.At and Command.Until.
func (f *Fleet) Now() Instant { return f.instant(time.Now()) }

func (f *Fleet) instant(t time.Time) Instant {
	in := Instant{Mono: f.mono + t.Sub(f.epoch)}
	if wall, known := f.o.Clock(); known {
		in.Wall = wall.Add(-time.Since(t)).UTC()
	}
	return in
}

// bootTime is CLOCK_BOOTTIME.
func bootTime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// sorted is the buses in the order of their names.
func (f *Fleet) sorted() []*bus {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]*bus, 0, len(f.buses))
	for _, name := range slices.Sorted(maps.Keys(f.buses)) {
		out = append(out, f.buses[name])
	}
	return out
}

// alarmWords are the problems of a bus that are worth an alert of the gateway.
var alarmWords = []string{"second-master"}

// alarm passes on that a problem of a bus stands, or is over. The topic of an
// alert belongs to all buses: when one is well again another may still be not.
func (f *Fleet) alarm(bus string, r report.Report, stands bool) {
	if f.o.Alert == nil || !slices.Contains(alarmWords, r.Err) {
		return
	}
	f.alarming.Lock()
	defer f.alarming.Unlock()
	key := r.Err + " " + bus
	if stands {
		r.Text = r.Who + ": " + r.Text
		f.alarmed[key] = r
		f.o.Alert(r)
		return
	}
	if _, ok := f.alarmed[key]; !ok {
		return
	}
	delete(f.alarmed, key)
	for _, other := range slices.Sorted(maps.Keys(f.alarmed)) {
		if f.alarmed[other].Err == r.Err {
			f.o.Alert(f.alarmed[other])
			return
		}
	}
	f.o.Alert(report.Report{Err: r.Err, Level: slog.LevelInfo, Who: "bus " + bus, Solved: true})
}
