package bridge

import (
	"fmt"
	"slices"
	"time"

	"busgate/devices"
)

// restore answers the commands that a crash interrupted, and queues those that
// still have time.
func (c *commands) restore() {
	if c.memory == nil {
		return
	}
	now := c.b.now()
	var jobs []*job
	for i := range uint64(maxIDs) {
		raw, err := c.memory.Load(slotKey(i))
		if err != nil {
			c.b.log.Warn("commands of the last run are not known", "err", err)
			return
		}
		if raw == nil {
			continue
		}
		j, err := decodeJob(raw, now.Mono, now.Wall)
		if err != nil || j.seq%maxIDs != i {
			c.b.log.Warn("a command of the last run is damaged", "key", slotKey(i), "err", err)
			continue
		}
		jobs = append(jobs, j)
	}
	slices.SortFunc(jobs, func(x, y *job) int { return int(int64(x.seq - y.seq)) })
	for _, j := range jobs {
		c.mu.Lock()
		c.ids.put(j)
		if j.left == 0 {
			j.done = true
			c.ids.grow(j)
		}
		c.mu.Unlock()
		if j.left > 0 {
			c.resume(j, now.Mono)
		}
	}
}

// resume goes on with a job of the process before: what was on the bus is
// unknown and not written again unless retry_unknown says so.
func (c *commands) resume(j *job, now time.Duration) {
	d := c.b.device(j.device)
	var tasks []task
	for i := range j.steps {
		s := &j.steps[i]
		if s.state == stepDone {
			continue
		}
		k := -1
		if d != nil {
			k = d.place(s.point)
		}
		switch {
		case s.state == stepWriting && !j.retry:
			c.finish(task{j, i}, devices.Result{Code: codeUnknown, Text: textStoppedWriting})
		case k < 0:
			c.finish(task{j, i}, devices.Result{Code: codeUnknownPoint, Text: fmt.Sprintf("%s has no point `%s`", j.device, s.point)})
		case now >= j.until:
			c.finish(task{j, i}, devices.Result{Code: codeExpired, Text: "expired: the gateway was stopped"})
		default:
			s.state, s.digits = stepWaiting, d.cfg.Points[k].Digits
			tasks = append(tasks, task{j, i})
		}
	}
	if len(tasks) == 0 {
		return
	}
	c.mu.Lock()
	l, _ := c.reserveLocked(j.device, d.cfg.Bus, len(tasks), true)
	c.mu.Unlock()
	c.push(l, tasks)
}
