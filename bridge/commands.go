package bridge

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"busgate/config/report"
	"busgate/devices"
	"busgate/embeddedbroker"
)

// maxWaiting is how many commands may wait for one bus; more are refused.
const maxWaiting = 64

// Words of an ack. The fleet adds out-of-range, timeout, exception-N and differs.
const (
	codeNotWritable  = "not-writable"
	codeUnknownPoint = "unknown-point"
	codeRetained     = "retained"
	codeExpired      = "expired"
	codeClockUnknown = "clock-unknown"
	codeRefused      = "refused"
	codeUnknown      = "unknown"
	codeBadPayload   = "bad-payload"
)

const textStoppedWriting = "the gateway stopped while writing: whether it was done is unknown"

// commands takes commands, queues them per device, has them written one after
// the other on a goroutine of that device, and answers each. A dead device
// holds up its own commands only.
type commands struct {
	b      *Bridge
	memory Memory
	wake   chan struct{}
	saving [maxIDs]sync.Mutex // held over the Save of a place

	mu      sync.Mutex       // guards what follows
	lanes   map[string]*lane // by device
	waiting map[string]int   // by bus: places taken in its lanes
	ids     *ids
	refresh map[string]struct{} // devices to read now
	ended   bool
}

// lane is what waits for one device, in the order of arrival. It exists while
// something does.
type lane struct {
	device, bus string
	n           int // places taken: what is queued, and what is being made ready for it
	queue       []task
	busy        bool
}

type task struct {
	j *job
	i int // its step
}

func newCommands(b *Bridge, m Memory) *commands {
	return &commands{b: b, memory: m, wake: make(chan struct{}, 1), lanes: map[string]*lane{},
		waiting: map[string]int{}, ids: newIDs(), refresh: map[string]struct{}{}}
}

// listen subscribes to the command topics. What arrives waits until Run.
func (b *Bridge) listen() {
	take := func(m *embeddedbroker.Message) {
		if m.Kind == embeddedbroker.KindDown {
			return // Down has taken it
		}
		if err := b.commands.take(m, source{}); err != nil {
			b.log.Error("command not kept", "topic", report.Line(m.Topic), "err", err)
		}
	}
	cancels := []func(){
		b.broker.Subscribe(b.base+"/+/"+kindSet, 1, take),
		b.broker.Subscribe(b.base+"/+/"+kindSet+"/+", 1, take),
		b.broker.Subscribe(b.base+"/+/"+kindGet, 0, take),
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cancels = append(b.cancels, cancels...)
}

// run starts a worker for each device that has commands until ctx ends, waits for
// the workers, and refuses what still waits.
func (c *commands) run(ctx context.Context, fleet Fleet) {
	var wg sync.WaitGroup
	for ctx.Err() == nil {
		c.mu.Lock()
		for _, l := range c.lanes {
			if !l.busy && len(l.queue) > 0 {
				l.busy = true
				wg.Go(func() { c.work(ctx, fleet, l) })
			}
		}
		now := c.refresh
		c.refresh = map[string]struct{}{}
		c.mu.Unlock()
		for name := range now {
			c.read(fleet, name)
		}
		select {
		case <-ctx.Done():
		case <-c.wake:
		}
	}
	wg.Wait()
	c.mu.Lock()
	c.ended = true
	var left []task
	for _, l := range c.lanes {
		left = append(left, l.queue...)
		l.queue = nil
	}
	c.mu.Unlock()
	for _, t := range left {
		c.finish(t, devices.Result{Code: codeRefused, Text: "the gateway stops"})
	}
}

func (c *commands) read(fleet Fleet, device string) {
	if err := fleet.Refresh(device); err != nil {
		c.b.log.Debug("device is not read now", "device", device, "err", err)
	}
}

// work executes what waits for one device.
func (c *commands) work(ctx context.Context, fleet Fleet, l *lane) {
	for {
		c.mu.Lock()
		if len(l.queue) == 0 || ctx.Err() != nil {
			l.busy = false
			c.tidyLocked(l)
			c.mu.Unlock()
			return
		}
		t := l.queue[0]
		l.queue[0] = task{}
		l.queue = l.queue[1:]
		c.releaseLocked(l, 1)
		c.mu.Unlock()
		c.execute(ctx, fleet, l.bus, t)
	}
}

// tidyLocked forgets a lane that nobody uses.
func (c *commands) tidyLocked(l *lane) {
	if l.n == 0 && !l.busy && c.lanes[l.device] == l {
		delete(c.lanes, l.device)
	}
}

// releaseLocked gives n places of a lane back.
func (c *commands) releaseLocked(l *lane, n int) {
	l.n -= n
	if c.waiting[l.bus] -= n; c.waiting[l.bus] == 0 {
		delete(c.waiting, l.bus)
	}
}

// reserveLocked takes up to want places in the lane of a device, as far as its
// bus has room; restored commands need no room.
func (c *commands) reserveLocked(device, bus string, want int, restored bool) (l *lane, got int) {
	l = c.lanes[device]
	if l == nil {
		l = &lane{device: device, bus: bus}
		c.lanes[device] = l
	}
	if got = want; !restored {
		got = min(want, max(maxWaiting-c.waiting[l.bus], 0))
	}
	l.n += got
	c.waiting[l.bus] += got
	return l, got
}

// execute writes one point, unless its time has run out.
func (c *commands) execute(ctx context.Context, fleet Fleet, bus string, t task) {
	s := &t.j.steps[t.i]
	if now := c.b.mono(); now > t.j.until {
		waited := (now - t.j.arrived + time.Second/2) / time.Second
		c.finish(t, devices.Result{Code: codeExpired, Text: fmt.Sprintf("expired: waited %d s for bus %s", waited, bus)})
	} else {
		s.state = stepWriting
		if err := c.save(t.j); err != nil {
			c.b.log.Warn("command is written though it could not be noted on disk", "device", t.j.device, "point", s.point, "err", err)
		}
		// The ids are looked after here, per message; the fleet sees single points.
		res, err := fleet.Write(ctx, devices.Command{Device: t.j.device, Point: s.point, Text: s.text, Until: t.j.until})
		switch {
		case err == nil:
		case ctx.Err() != nil:
			res = devices.Result{Code: codeUnknown, Text: textStoppedWriting}
		default:
			res = devices.Result{Code: codeRefused, Text: err.Error()}
		}
		t.j.wrote = t.j.wrote || res.Code == ""
		c.finish(t, res)
	}
	if t.j.left == 0 && t.j.wrote {
		c.read(fleet, t.j.device) // the state with the new value, at once
	}
}

// finish answers one step: on disk first, so that a crash cannot contradict the
// answer.
func (c *commands) finish(t task, res devices.Result) {
	j, s := t.j, &t.j.steps[t.i]
	s.ack = c.b.ackPayload(j.id, s.point, s.digits, res)
	s.state = stepDone
	j.left--
	if err := c.save(j); err != nil {
		c.b.log.Warn("result of a command could not be noted on disk", "device", j.device, "point", s.point, "err", err)
	}
	if j.left == 0 && j.key != "" {
		c.mu.Lock()
		j.done = true // from now on a repeated one is answered
		c.ids.grow(j)
		c.mu.Unlock()
	}
	c.b.stats.command(j.device, res.Code)
	c.b.log.Debug("command", "device", j.device, "point", s.point, "id", j.id, "result", res.Code)
	c.send(j.device, s.ack, j.reply)
}

// save notes a job that has a key on disk, unless its place was given to another
// while it waited: that one may be waiting, too.
func (c *commands) save(j *job) error {
	if c.memory == nil || j.key == "" {
		return nil
	}
	saving := &c.saving[j.seq%maxIDs]
	saving.Lock()
	defer saving.Unlock()
	c.mu.Lock()
	lost := c.ids.others(j)
	c.mu.Unlock()
	if lost {
		return nil
	}
	return c.memory.Save(slotKey(j.seq), j.encode())
}

// send publishes an ack, also to the response topic of the command.
func (c *commands) send(device string, ack []byte, r replyTo) {
	c.publish(c.b.message(c.b.base+"/"+device+"/"+kindAck, ack, false))
	if r.allowed(c.b.base) {
		c.publish(c.b.answer(r, ack))
	}
}

func (c *commands) publish(m *embeddedbroker.Message) {
	if err := c.b.publish(m, unkept{c}); err != nil {
		unkept{c}.Committed(0, err)
	}
}

// unkept counts the acks that the store did not keep for the uplinks.
type unkept struct{ c *commands }

func (u unkept) Committed(_ embeddedbroker.Seq, err error) {
	if err != nil {
		u.c.b.stats.acksLost.Add(1)
	}
}

// refuse answers a command that cannot be taken apart, or must not be.
func (c *commands) refuse(device, id, point, code, text string, r replyTo) {
	why := refusal{code, text}
	c.refused(device, point, why, c.refusalPayload(id, point, why), r)
}

// refusalPayload is the ack of a refusal. A point that cannot exist is not
// repeated: its name may be anything.
func (c *commands) refusalPayload(id, point string, why refusal) []byte {
	if !legalName(point) {
		point = ""
	}
	return c.b.ackPayload(id, point, 0, devices.Result{Code: why.code, Text: why.text})
}

// refused counts and sends the ack of a refusal.
func (c *commands) refused(device, point string, why refusal, ack []byte, r replyTo) {
	counted := device
	if c.b.device(device) == nil {
		counted = "" // anybody can invent devices
	}
	c.b.stats.command(counted, why.code)
	c.b.log.Debug("command refused", "device", device, "point", report.Line(point), "err", why.code, "text", why.text)
	c.send(device, ack, r)
}

// push queues steps of a job whose places are reserved. After the end of Run
// they are refused.
func (c *commands) push(l *lane, tasks []task) {
	if len(tasks) == 0 {
		return
	}
	c.mu.Lock()
	ended := c.ended
	if ended {
		c.releaseLocked(l, len(tasks))
		c.tidyLocked(l)
	} else {
		l.queue = append(l.queue, tasks...)
	}
	c.mu.Unlock()
	if ended {
		for _, t := range tasks {
			c.finish(t, devices.Result{Code: codeRefused, Text: "the gateway stops"})
		}
		return
	}
	c.poke()
}

func (c *commands) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *commands) numbers() (waiting int, forgotten uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.lanes {
		waiting += len(l.queue)
	}
	return waiting, c.ids.forgotten
}

// warnRetained tells of a retained command, on the ladder.
func (c *commands) warnRetained(p place, topic string) string {
	on := kindSet
	if p.deep {
		on += "/" + p.rest
	}
	r, _ := c.b.ladder.Fail(report.Report{Err: codeRetained, Level: slog.LevelWarn, Who: "device " + p.device,
		Text: fmt.Sprintf("a retained command on %s is ignored: it would fire at every restart. Delete it: busgate pub -t %s -n -r", on, topic)},
		slog.String("device", p.device))
	return r.Text
}
