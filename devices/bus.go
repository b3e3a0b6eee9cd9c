package devices

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"busgate/config"
)

const (
	probeShare   = 0.05 // of the bus time, for all probes together
	probeSaved   = 2 * time.Second
	slowSink     = time.Second
	silentAfter  = 60 * time.Second       // not one byte for so long is a cut wire
	blockedSleep = 100 * time.Millisecond // then it is looked whether the late answer came
	stopTime     = 5 * time.Second        // for the safe values at the end
)

// bus is one wire and the goroutine that takes turns on it.
//
//	run: open ─> work, work, work ... ─> trouble: close, wait, open again
//	work: a write, else a probe, else the poll with the earliest deadline, else sleep
type bus struct {
	fleet  *Fleet
	name   string
	cfg    *config.Bus
	driver Driver
	log    *slog.Logger
	wake   chan struct{} // holds one: something changed
	done   chan struct{}

	mu      sync.Mutex
	cancel  context.CancelFunc // of run; nil before
	over    bool               // nothing is taken any more
	mail    []*config.Device   // a new list of devices; nil: none
	asked   map[string]bool    // devices to read once; nil: none
	queue   []*job
	refused uint64
	guests  []*visit
	guest   string // who has the bus for itself, "" for nobody
	shown   BusStatus
	shownOf []DeviceStatus

	tap *Tap

	// the goroutine's own
	born    time.Time // of this process
	epoch   time.Time
	field   Field
	devs    []*device
	load    load
	allowed time.Duration // bus time saved up for probes
	accrued time.Time
	writes  int    // and visits, since the last poll
	again   *group // polled last and urgent again: first others have their turn
	trouble
	evidence
	errors   hourly
	lendable time.Duration // bus time saved up for guests; negative: owed
	sinkSlow uint64
	polls    PollTimes
	sum      Counts // of Fields that are closed
}

func newBus(f *Fleet, cfg *config.Bus, devs []*config.Device) *bus {
	b := &bus{fleet: f, name: cfg.Name, cfg: cfg, driver: f.o.Drivers[cfg.Protocol], log: f.o.Log.With("bus", cfg.Name),
		wake: make(chan struct{}, 1), done: make(chan struct{}), tap: &Tap{}}
	now := time.Now()
	b.born, b.epoch, b.accrued, b.allowed = now, now, now, probeSaved
	b.load = newLoad(now)
	for _, d := range devs {
		b.devs = append(b.devs, newDevice(b, d, now))
	}
	b.show()
	return b
}

// begin notes how to end the goroutine. It is false when the bus was stopped
// before: then there is none.
func (b *bus) begin(cancel context.CancelFunc) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cancel = cancel
	return !b.over
}

// stop ends the goroutine after the exchange in flight. One that has not begun
// never will.
func (b *bus) stop() {
	b.mu.Lock()
	cancel := b.cancel
	b.over = b.over || cancel == nil
	b.mu.Unlock()
	if cancel == nil {
		b.refuseAll(false)
		b.turnAway(errStopped)
		return
	}
	cancel()
	<-b.done
}

// dismiss says that the devices of a stopped bus are offline; those that stay
// come back with the next one. What it was alarmed about is over.
func (b *bus) dismiss() {
	for _, r := range b.notes {
		b.fleet.alarm(b.name, r, false)
	}
	for _, d := range b.devs {
		if d.online {
			d.online = false
			b.fleet.sink.Health(context.Background(), Health{Device: d.cfg.Name})
		}
	}
}

// deliver hands over a new list of devices.
func (b *bus) deliver(devs []*config.Device) {
	b.mu.Lock()
	b.mail = devs
	b.mu.Unlock()
	b.poke()
}

func (b *bus) refresh(device string) {
	b.mu.Lock()
	if b.asked == nil {
		b.asked = map[string]bool{}
	}
	b.asked[device] = true
	b.mu.Unlock()
	b.poke()
}

func (b *bus) poke() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// run lives until ctx ends. life ends when the whole fleet stops: then the safe
// values are written; a reload leaves them.
func (b *bus) run(ctx, life context.Context) {
	defer close(b.done)
	now := time.Now()
	b.epoch, b.accrued = now, now
	b.load = newLoad(now)
	for _, d := range b.devs {
		d.restart(now)
	}
	for ctx.Err() == nil {
		b.readMail(ctx)
		if b.field == nil {
			b.open(ctx)
		} else {
			b.work(ctx)
		}
		b.show()
	}
	b.finish(life)
}

// finish answers who still waits, writes the safe values and closes the wire.
func (b *bus) finish(life context.Context) {
	b.refuseAll(life.Err() != nil)
	b.turnAway(errStopped)
	if b.field == nil {
		return
	}
	if life.Err() != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(life), stopTime)
		defer cancel()
		for _, d := range b.devs {
			d.writeSafesNow(ctx)
		}
	}
	b.close()
	b.show()
}

func (b *bus) close() {
	b.sum.add(b.field.Counts())
	if err := b.field.Close(); err != nil {
		b.log.Debug("close", "err", err)
	}
	b.field = nil
}

// readMail applies a reload and the wishes for a refresh.
func (b *bus) readMail(ctx context.Context) {
	b.mu.Lock()
	mail, asked := b.mail, b.asked
	b.mail, b.asked = nil, nil
	b.mu.Unlock()
	now := time.Now()
	if mail != nil {
		b.adopt(ctx, mail, now)
	}
	for _, d := range b.devs {
		if !asked[d.cfg.Name] {
			continue
		}
		if d.resting {
			d.probeAt = now
		}
		for _, g := range d.groups {
			g.urgent = true
		}
	}
}

// adopt replaces the list of devices. Those that did not change keep everything.
func (b *bus) adopt(ctx context.Context, list []*config.Device, now time.Time) {
	old := map[string]*device{}
	for _, d := range b.devs {
		old[d.cfg.Name] = d
	}
	b.devs = nil
	for _, cfg := range list {
		d := old[cfg.Name]
		if d != nil && d.become(cfg, now) {
			delete(old, cfg.Name)
		} else {
			d = newDevice(b, cfg, now)
		}
		b.devs = append(b.devs, d)
	}
	for _, d := range old { // gone, or another device now; what has moved, its new bus tells of
		if d.online && !b.fleet.elsewhere(d.cfg.Name, b.name) {
			b.fleet.sink.Health(ctx, Health{Device: d.cfg.Name})
		}
	}
	if b.field != nil {
		cfgs := make([]*config.Device, len(b.devs))
		for i, d := range b.devs {
			cfgs[i] = d.cfg
		}
		b.field.Devices(cfgs)
	}
}

// work does one thing, or sleeps until there is one.
func (b *bus) work(ctx context.Context) {
	now := time.Now()
	b.accrue(now)
	b.wakeHeard(now)
	b.settle(ctx, now)
	b.measure(ctx, now)
	for _, d := range b.devs {
		d.overdueSafes(now)
	}
	g, blocked := b.pick(now)
	if g == nil || b.writes < writesPerPoll {
		if run := b.nextWrites(now); len(run) > 0 {
			b.writes++
			b.failIf(ctx, b.doWrites(ctx, run))
			return
		}
	}
	tillVisit := time.Duration(-1)
	if g == nil || b.writes < writesPerPoll {
		var v *visit
		if v, tillVisit = b.nextVisit(); v != nil {
			b.writes++
			b.lend(ctx, v)
			return
		}
	}
	if d := b.nextProbe(now); d != nil {
		b.probe(ctx, d)
		return
	}
	if g == nil {
		next := b.nextEvent(now, blocked)
		if at := now.Add(tillVisit); tillVisit >= 0 && at.Before(next) {
			next = at
		}
		b.sleep(ctx, b.lookForLate(now, next))
		return
	}
	b.poll(ctx, g)
}

// poll reads one group.
func (b *bus) poll(ctx context.Context, g *group) {
	b.writes = 0
	b.again, g.urgent = nil, false
	a, err := b.field.Poll(ctx, &g.Group, b.pause)
	now := time.Now()
	if err != nil {
		b.failIf(ctx, err)
		return
	}
	if g.urgent { // for a write in a pause
		b.again = g
	}
	g.next(now, b.load.stretch, b.epoch)
	g.used += a.Used
	b.polls.note(a.Used)
	g.ran++
	if a.Heard {
		g.perTurn = a.Used
	}
	g.dev.took(ctx, g, a)
}

// pause does a waiting write between two exchanges of a poll.
func (b *bus) pause(ctx context.Context) error {
	for b.writes < writesPerPoll {
		run := b.nextWrites(time.Now())
		if len(run) == 0 {
			return ctx.Err()
		}
		b.writes++
		if err := b.doWrites(ctx, run); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// failIf takes the bus down for an error of the wire.
func (b *bus) failIf(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil {
		b.down(ctx, err)
	}
}

// take hands a round to the sink.
func (b *bus) take(ctx context.Context, r Round) {
	start := time.Now()
	if err := b.fleet.sink.Take(ctx, r); err != nil && ctx.Err() == nil {
		b.log.Warn("a round was not taken", "device", r.Device, "err", err)
	}
	if time.Since(start) > slowSink {
		b.sinkSlow++
	}
}

// othersOnline counts the other devices that answer.
func (b *bus) othersOnline(not *device) int {
	n := 0
	for _, d := range b.devs {
		if d != not && d.online {
			n++
		}
	}
	return n
}

func (c *Counts) add(d Counts) {
	c.BytesIn += d.BytesIn
	c.BytesOut += d.BytesOut
	c.Requests += d.Requests
	c.Good += d.Good
	c.Bad += d.Bad
	c.Timeouts += d.Timeouts
	c.Foreign += d.Foreign
	c.Late += d.Late
	c.Stray += d.Stray
	c.Stale += d.Stale
	c.Echo += d.Echo
	c.Exceptions += d.Exceptions
	c.Overrun += d.Overrun
	c.Skipped += d.Skipped
	c.Unchecked += d.Unchecked
	c.Intruders += d.Intruders
	if d.Stray > 0 {
		c.StrayByte = d.StrayByte
	}
	if d.Intruders > 0 {
		c.Intruder = d.Intruder
	}
	for i, s := range d.Sizes {
		c.Sizes[i].Good += s.Good
		c.Sizes[i].Bad += s.Bad
	}
	c.UART.Parity += d.UART.Parity
	c.UART.Framing += d.UART.Framing
	c.UART.Overrun += d.UART.Overrun
}
