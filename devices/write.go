package devices

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"busgate/config"
)

const (
	maxQueue      = 64 // commands that wait on a bus
	writesPerPoll = 4  // while polls are overdue
	maxIDs        = 1024
	idLife        = 24 * time.Hour
)

// job is one write on its way. The goroutine of the bus owns it once it is in
// the queue.
type job struct {
	device, point string
	cmd           Command
	arrived       time.Time
	entry         *idEntry // is finished with its end; nil for a safe value

	at      time.Time // not before
	sent    time.Time // zero: not sent yet
	raw     []byte
	mask    []byte
	power   int
	checked int  // read-backs made
	busy    int  // times the device was busy
	twice   bool // sent a second time
	unsure  bool // the wire failed while it was sent
}

// Write writes one value and reads it back. What a Command asks that cannot be
// done is told in the Result; the error is for a device that does not exist and
// for ctx. A command that waits when ctx ends is not sent any more.
func (f *Fleet) Write(ctx context.Context, c Command) (Result, error) {
	start := time.Now()
	b, dev, err := f.busOf(c.Device)
	if err != nil {
		return Result{}, err
	}
	answer := func(r Result) (Result, error) {
		r.Took = time.Since(start)
		return r, nil
	}
	if r := checkCommand(dev, c); r.Code != "" {
		return answer(r)
	}
	entry, first := f.remember(c, start)
	if !first {
		select {
		case <-entry.done:
			return entry.result, nil
		case <-ctx.Done():
			return Result{}, ctx.Err()
		}
	}
	j := &job{device: c.Device, point: c.Point, cmd: c, arrived: start, entry: entry}
	if r := b.enqueue(j); r.Code != "" {
		f.forget(c, entry)
		return answer(r)
	}
	select {
	case <-entry.done:
		return entry.result, nil
	case <-ctx.Done():
		if b.abandon(j) {
			f.forget(c, entry)
		}
		return Result{}, ctx.Err()
	}
}

// checkCommand finds what can be refused without the bus.
func checkCommand(dev *config.Device, c Command) Result {
	p := pointOf(dev, c.Point)
	if p == nil {
		text := fmt.Sprintf("%s has no point `%s`", dev.Name, cut(c.Point))
		if near := nearest(dev, c.Point); near != "" {
			text += fmt.Sprintf(" (did you mean `%s`?)", near)
		}
		return Result{Code: "unknown-point", Text: text}
	}
	if !p.Write {
		return Result{Code: "not-writable", Text: p.Name + " takes no commands (write = false)"}
	}
	if p.ScaleReg >= 0 {
		return Result{} // its range is known when the scale was read
	}
	if _, _, err := Encode(p, c.Text, 0); err != nil {
		return refusalOf(err)
	}
	return Result{}
}

func refusalOf(err error) Result {
	if r, ok := errors.AsType[*Refusal](err); ok {
		return Result{Code: r.Code, Text: r.Text}
	}
	return Result{Code: "refused", Text: err.Error()}
}

func pointOf(dev *config.Device, name string) *config.Point {
	for i := range dev.Points {
		if dev.Points[i].Name == name {
			return &dev.Points[i]
		}
	}
	return nil
}

// nearest is the point whose name differs least, at most by two letters.
func nearest(dev *config.Device, name string) string {
	best, least := "", 3
	for i := range dev.Points {
		if d := distance(dev.Points[i].Name, name); d < least && 2*d <= max(len(name), 1) {
			best, least = dev.Points[i].Name, d
		}
	}
	return best
}

// distance counts the letters to insert, drop or change between two short names.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		last := row[0]
		row[0] = i + 1
		for j := range len(b) {
			keep := last
			if a[i] != b[j] {
				keep++
			}
			last = row[j+1]
			row[j+1] = min(keep, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}

func (b *bus) enqueue(j *job) Result {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.guest != "" {
		return Result{Code: "refused", Text: fmt.Sprintf("bus %s only listens now (%s)", b.name, b.guest)}
	}
	if len(b.queue) >= maxQueue {
		b.refused++
		return Result{Code: "refused", Text: fmt.Sprintf("too many commands wait for bus %s (%d)", b.name, maxQueue)}
	}
	if b.over {
		return Result{Code: "refused", Text: "the bus " + b.name + " is closed"}
	}
	b.queue = append(b.queue, j)
	b.poke()
	return Result{}
}

// abandon drops a job that was not sent, and says so; one that was runs to its end.
func (b *bus) abandon(j *job) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return j.sent.IsZero() && b.dropLocked(j)
}

// dropLocked takes a job from the queue. Who has taken it answers it.
func (b *bus) dropLocked(j *job) bool {
	n := len(b.queue)
	b.queue = slices.DeleteFunc(b.queue, func(k *job) bool { return k == j })
	return len(b.queue) < n
}

// end answers a job and takes it from the queue.
func (b *bus) end(j *job, r Result) {
	b.mu.Lock()
	mine := b.dropLocked(j)
	b.mu.Unlock()
	switch {
	case !mine: // its client has left
	case j.entry != nil:
		r.Took = time.Since(j.arrived)
		j.entry.finish(r)
	case r.Code != "":
		b.log.Warn("a safe value was not written", "device", j.device, "point", j.point, "err", r.Text)
	}
}

// nextWrites takes the first job whose time has come; adjacent coils of one
// device that wait right behind it go in the same request. A device works on one
// command at a time.
func (b *bus) nextWrites(now time.Time) []*job {
	b.expire(now)
	b.mu.Lock()
	defer b.mu.Unlock()
	busy := map[string]bool{}
	for i, j := range b.queue {
		if busy[j.device] || j.at.After(now) {
			busy[j.device] = true
			continue
		}
		run := []*job{j}
		if p := b.coilOf(j); p != nil {
			for _, k := range b.queue[i+1:] {
				q := b.coilOf(k)
				if q == nil || k.device != j.device || int(q.Addr) != int(p.Addr)+len(run) {
					break
				}
				run = append(run, k)
			}
		}
		for _, k := range run {
			if k.sent.IsZero() {
				k.sent = now // from here on it cannot be abandoned
			}
		}
		return run
	}
	return nil
}

// coilOf is the point of an unsent job that may share a request.
func (b *bus) coilOf(j *job) *config.Point {
	if !j.sent.IsZero() {
		return nil
	}
	_, p := b.find(j)
	if p == nil || p.Table != "coil" || p.Pulse || !p.Write {
		return nil
	}
	return p
}

func (b *bus) find(j *job) (*device, *config.Point) {
	for _, d := range b.devs {
		if d.cfg.Name == j.device {
			return d, pointOf(d.cfg, j.point)
		}
	}
	return nil, nil
}

// nextJob is when a job wants to go on, or expires; zero: never.
func (b *bus) nextJob() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	var next time.Time
	earlier := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	for _, j := range b.queue {
		if b.field != nil {
			earlier(j.at)
		} else if j.cmd.Until > 0 {
			earlier(b.fleet.epoch.Add(j.cmd.Until - b.fleet.mono + 1))
		}
	}
	return next
}

// expire answers the commands whose time is over before their slot came.
func (b *bus) expire(now time.Time) {
	b.mu.Lock()
	var over []*job
	for _, j := range b.queue {
		if b.late(j, now) && (j.sent.IsZero() || b.field == nil) {
			over = append(over, j)
		}
	}
	b.mu.Unlock()
	for _, j := range over {
		if j.sent.IsZero() {
			b.end(j, b.expired(j, now))
		} else {
			b.end(j, Result{Code: "timeout", Text: unknownText})
		}
	}
}

func (b *bus) late(j *job, now time.Time) bool {
	return j.cmd.Until > 0 && b.fleet.instant(now).Mono > j.cmd.Until
}

func (b *bus) expired(j *job, now time.Time) Result {
	return Result{Code: "expired", Text: fmt.Sprintf("expired: waited %.0f s for bus %s", now.Sub(j.arrived).Seconds(), b.name)}
}

// refuseAll answers who still waits when the bus ends. From here on it takes nothing.
func (b *bus) refuseAll(stopping bool) {
	b.mu.Lock()
	b.over = true
	queue := slices.Clone(b.queue)
	b.mu.Unlock()
	for _, j := range queue {
		switch {
		case !j.sent.IsZero():
			b.end(j, Result{Code: "unknown", Text: "the gateway stopped while writing: whether it was done is unknown"})
		case stopping:
			b.end(j, Result{Code: "refused", Text: "the gateway stops"})
		default:
			b.end(j, Result{Code: "refused", Text: "the bus " + b.name + " is opened anew with another configuration; try again"})
		}
	}
}
