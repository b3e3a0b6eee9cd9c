package devices

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"busgate/config"
	"busgate/config/report"
)

const (
	maxVisits  = 8           // that wait on a bus; more are refused
	guestShare = 0.25        // of the bus time, for all visits with Share
	guestSaved = time.Second // bus time that they can save up
)

// Visit is what somebody else does on a bus that the fleet has open: a read for
// the command line, one question of a search, a monitor that only listens.
type Visit struct {
	Name string // who it is, for the status: "busgate scan"
	// Share makes the visit wait until all such visits together have had no more
	// than a quarter of the bus time; without it the next free slot is taken.
	Share bool
	// Alone says that nothing else may be on the bus for long: commands are
	// refused meanwhile, and the status names the guest.
	Alone bool
	// Do has the wire for itself until it returns; it should make one exchange.
	// Its error is that of the wire, for which the bus is closed and opened anew.
	Do func(ctx context.Context, f Field) error
}

// visit is a Visit on its way.
type visit struct {
	Visit
	ctx  context.Context
	done chan error // holds one
}

// Closed is why a visitor does not get a bus: its wire is closed. It is a Trouble.
type Closed struct{ Report report.Report }

// Word is the stable word of what is wrong with the bus.
func (c *Closed) Word() string { return c.Report.Err }

// Text is the sentence of what is wrong with the bus.
func (c *Closed) Text() string { return c.Report.Text }

func (c *Closed) Error() string { return c.Report.Who + ": " + c.Report.Text }

// ErrBusy says that too many visitors wait already.
var ErrBusy = fmt.Errorf("too many wait for this bus (%d)", maxVisits)

// errStopped ends the visits of a bus that ends, errChanged a read by a
// configuration that is not that of the bus.
var (
	errStopped = errors.New("the bus is closed or opened anew with another configuration; try again")
	errChanged = errors.New("the configuration has changed; try again")
)

// Visit runs v.Do between two exchanges of a bus. Polls and writes of the bus
// wait meanwhile and go on after it. Errors: *Closed while the wire is closed,
// ErrBusy, that of ctx, or what Do returned.
func (f *Fleet) Visit(ctx context.Context, bus string, v Visit) error {
	f.mu.Lock()
	b := f.buses[bus]
	f.mu.Unlock()
	if b == nil {
		return fmt.Errorf("bus %s has no devices, so that it is not open", report.Name(bus))
	}
	return b.receive(ctx, v)
}

// receive is Visit on one bus.
func (b *bus) receive(ctx context.Context, v Visit) error {
	w := &visit{Visit: v, ctx: ctx, done: make(chan error, 1)}
	if err := b.invite(w); err != nil {
		return err
	}
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
	}
	if b.uninvite(w) {
		return ctx.Err()
	}
	<-w.done // it is being done, under a context that has ended
	return ctx.Err()
}

// Tap is where the frames of a bus can be watched; nil for a bus that is not there.
func (f *Fleet) Tap(bus string) *Tap {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b := f.buses[bus]; b != nil {
		return b.tap
	}
	return nil
}

// Read reads points of a device in the next free slot, as a poll would, but for
// the caller alone: no Round comes of it. points are indices; nil is all. A
// configuration that changes meanwhile is an error.
func (f *Fleet) Read(ctx context.Context, device string, points []int) (Answer, error) {
	b, cfg, err := f.busOf(device)
	if err != nil {
		return Answer{}, err
	}
	g := &Group{Device: cfg, Points: points, Interval: cfg.Interval}
	if points == nil {
		for i := range cfg.Points {
			g.Points = append(g.Points, i)
		}
	}
	if slices.ContainsFunc(points, func(i int) bool { return i < 0 || i >= len(cfg.Points) }) {
		return Answer{}, errChanged
	}
	var a Answer
	changed := false
	err = b.receive(ctx, Visit{Name: "busgate read", Do: func(ctx context.Context, field Field) (err error) {
		if changed = !b.asks(cfg); changed {
			return nil
		}
		a, err = field.Poll(ctx, g, func(ctx context.Context) error { return ctx.Err() })
		return err
	}})
	if err == nil && changed {
		err = errChanged
	}
	return a, err
}

// asks says that the bus has a device with just this configuration. The
// goroutine of the bus calls it.
func (b *bus) asks(cfg *config.Device) bool {
	return slices.ContainsFunc(b.devs, func(d *device) bool { return reflect.DeepEqual(d.cfg, cfg) })
}

// Bus is the configuration of a bus that is in force, nil when there is none.
func (f *Fleet) Bus(name string) *config.Bus {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cfg.Buses[name]
}

// Device is the configuration of a device that is in force, nil when there is none.
func (f *Fleet) Device(name string) *config.Device {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cfg.Devices[name]
}

// where is the file and line of a key of the configuration.
func (f *Fleet) where(key string) (file string, line int, ok bool) {
	if key == "" {
		return "", 0, false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	name, pos, ok := f.cfg.Where(key)
	return filepath.Base(name), pos.Line, ok
}

func (b *bus) invite(v *visit) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return errStopped
	}
	if len(b.guests) >= maxVisits {
		return ErrBusy
	}
	b.guests = append(b.guests, v)
	b.poke()
	return nil
}

// uninvite drops a visit that has not begun.
func (b *bus) uninvite(v *visit) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.guests)
	b.guests = slices.DeleteFunc(b.guests, func(w *visit) bool { return w == v })
	return len(b.guests) < n
}

// nextVisit takes the first visit that may begin. wait is how long the first of
// the others must wait for bus time; negative when there is none.
func (b *bus) nextVisit() (v *visit, wait time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	wait = -1
	for i, g := range b.guests {
		if g.Alone && len(b.queue) > 0 { // what was promised is done first
			continue
		}
		if !g.Share || b.lendable > 0 {
			b.guests = slices.Delete(b.guests, i, i+1)
			return g, -1
		}
		wait = time.Duration(float64(-b.lendable)/guestShare) + time.Millisecond
	}
	return nil, wait
}

// lend lets a guest have the wire.
func (b *bus) lend(ctx context.Context, v *visit) {
	start := time.Now()
	vctx, cancel := context.WithCancel(v.ctx)
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	if v.Alone {
		b.setHost(v.Name)
		b.show()
	}
	err := v.Do(vctx, b.field)
	if v.Alone { // before its visitor knows
		b.setHost("")
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) { // by the bus
		err = errStopped
	}
	used := time.Since(start)
	if v.Share {
		b.lendable -= used
	}
	if !v.Alone {
		b.load.other += used
	}
	v.done <- err
	if err != nil && vctx.Err() == nil && !deviceError(err) {
		b.failIf(ctx, err)
	}
}

func (b *bus) setHost(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.guest = name
}

// turnAway answers all visits with err.
func (b *bus) turnAway(err error) {
	b.mu.Lock()
	guests := b.guests
	b.guests = nil
	b.mu.Unlock()
	for _, v := range guests {
		v.done <- err
	}
}
