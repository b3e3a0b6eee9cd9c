package bridge

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"time"

	"busgate/config/report"
	"busgate/devices"
	"busgate/embeddedbroker"
)

// lanTTL is how long a command of the LAN waits when it does not say so itself.
const lanTTL = time.Minute

// source is where a command comes from.
type source struct {
	cloud bool
	ttl   time.Duration // command_ttl of the uplink
	retry bool          // retry_unknown of the uplink
}

// take takes a message on a command topic: it answers at once what needs no
// bus, and queues the rest. An error means that a command of a cloud is not on
// disk and was not taken.
func (c *commands) take(m *embeddedbroker.Message, src source) error {
	p, ok := parseTopic(c.b.base, m.Topic)
	switch {
	case !ok || !p.command() || !legalName(p.device) || p.deep && p.rest == "",
		m.Retain && len(m.Payload) == 0: // deletes a retained command
		c.b.stats.ignored.Add(1)
		return nil
	case p.kind == kindGet:
		c.get(p.device, m.Retain)
		return nil
	}
	reply := parseReply(m.Props)
	q, err := parseCommand(p.rest, m.Payload)
	switch {
	case m.Retain:
		c.refuse(p.device, q.id, p.rest, codeRetained, c.warnRetained(p, m.Topic), reply)
		return nil
	case err != nil:
		c.refuse(p.device, "", p.rest, codeBadPayload, err.Error(), reply)
		return nil
	}
	now := c.b.now()
	j := &job{device: p.device, id: q.id, arrived: now.Mono, received: now.Wall, retry: src.retry, reply: reply}
	switch {
	case q.id != "":
		j.key = m.Topic + "\x00" + q.id
	case src.cloud: // a bare value: each arrival is a command of its own
		h := sha256.New()
		fmt.Fprintf(h, "%s\x00%s\x00%s\x00%d", m.Topic, m.Payload, c.b.boot, now.Mono)
		j.key = m.Topic + "\x00\x00" + hex.EncodeToString(h.Sum(nil)[:16])
	}
	c.judge(j, m, q, src, now)
	return c.queue(j, src)
}

// get asks for one round of a device, or for gateway/state.
func (c *commands) get(device string, retained bool) {
	switch {
	case retained:
		c.b.stats.ignored.Add(1)
	case device == gatewayDevice:
		c.b.Changed()
	case c.b.device(device) == nil:
		c.b.stats.ignored.Add(1)
	default:
		c.mu.Lock()
		c.refresh[device] = struct{}{}
		c.mu.Unlock()
		c.poke()
	}
}

// refusal answers a point without the bus. The zero value refuses nothing.
type refusal struct{ code, text string }

// judge gives a job its steps, with a refusal for those that are refused
// whatever the bus says: first points that are not known, then the others in
// the order of the file.
func (c *commands) judge(j *job, m *embeddedbroker.Message, q request, src source, now devices.Instant) {
	all := c.deadline(j, m, q, src, now)
	d := c.b.device(j.device)
	switch {
	case all.code != "":
	case d == nil:
		all = refusal{codeUnknownPoint, c.noDevice(j.device)}
	case !d.cfg.Enabled:
		all = refusal{codeRefused, d.cfg.Name + " is switched off (enabled = false)"}
	}
	for _, w := range q.writes {
		s := step{point: w.point, text: w.text, place: -1, refusal: all}
		if d != nil {
			s.place = d.place(w.point)
		}
		switch {
		case all.code != "":
		case s.place < 0:
			s.refusal = refusal{codeUnknownPoint, noPoint(d, w.point)}
		case !d.cfg.Points[s.place].Write:
			s.refusal = refusal{codeNotWritable, w.point + " takes no commands (write = false)"}
		default:
			s.digits = d.cfg.Points[s.place].Digits
		}
		j.steps = append(j.steps, s)
	}
	slices.SortStableFunc(j.steps, func(x, y step) int { return x.place - y.place })
}

// deadline finds until when the job may be executed: the earliest of what the
// command and its message say, else the default. It counts on the monotonic
// clock from now on.
func (c *commands) deadline(j *job, m *embeddedbroker.Message, q request, src source, now devices.Instant) refusal {
	j.until = now.Mono + lanTTL
	if src.cloud && src.ttl > 0 {
		j.until = now.Mono + src.ttl
	}
	if q.ttl > 0 {
		j.until = now.Mono + q.ttl
	}
	if !q.expires.IsZero() {
		if now.Wall.IsZero() {
			return refusal{codeClockUnknown, "the clock is not set yet: send ttl_s instead of expires"}
		}
		left := min(q.expires.Sub(now.Wall), maxTTL)
		if left <= 0 {
			return refusal{codeExpired, fmt.Sprintf("expired: arrived %d s too late", -left/time.Second)}
		}
		if q.ttl == 0 || now.Mono+left < j.until {
			j.until = now.Mono + left
		}
	}
	if !m.Expires.IsZero() { // message expiry interval [MQTT-3.3.2-6]
		j.until = min(j.until, now.Mono+time.Until(m.Expires))
	}
	return refusal{}
}

// repeated answers a job whose id is known with the first result, or leaves that
// to the first one while it is not done.
func (c *commands) repeated(j, first *job, done bool) {
	c.b.stats.repeated.Add(1)
	if done {
		for _, s := range first.steps {
			c.send(j.device, s.ack, j.reply)
		}
	}
}

// queue gives the steps of a job to the lane of its device, as far as its bus
// has room, and answers the others. A command of which nothing was queued is not
// remembered: it may be sent again. Whether an id is known is asked in the moment
// in which it is remembered: the LAN and each cloud have a goroutine of their own.
func (c *commands) queue(j *job, src source) error {
	bus := ""
	if d := c.b.device(j.device); d != nil {
		bus = d.cfg.Bus
	}
	var tasks []task
	for i := range j.steps {
		if j.steps[i].refusal.code == "" {
			tasks = append(tasks, task{j, i})
		}
	}
	c.mu.Lock()
	if first := c.ids.find(j.key, j.arrived); first != nil {
		done := first.done
		c.mu.Unlock()
		c.repeated(j, first, done)
		return nil
	}
	l, got := c.reserveLocked(j.device, bus, len(tasks), false)
	if got > 0 && j.key != "" {
		c.ids.add(j)
	}
	c.tidyLocked(l)
	c.mu.Unlock()
	for _, t := range tasks[got:] {
		j.steps[t.i].refusal = refusal{codeRefused, fmt.Sprintf("too many commands wait for bus %s (%d)", bus, maxWaiting)}
	}
	j.left = got
	for i := range j.steps {
		if s := &j.steps[i]; s.refusal.code != "" {
			s.state = stepDone
			s.ack = c.refusalPayload(j.id, s.point, s.refusal)
		}
	}
	if got > 0 && src.cloud {
		if err := c.save(j); err != nil {
			c.mu.Lock()
			c.ids.forget(j)
			c.releaseLocked(l, got)
			c.tidyLocked(l)
			c.mu.Unlock()
			return fmt.Errorf("keep command for %s: %w", j.device, err)
		}
	}
	for _, s := range j.steps {
		if s.refusal.code != "" {
			c.refused(j.device, s.point, s.refusal, s.ack, j.reply)
		}
	}
	c.push(l, tasks[:got])
	return nil
}

// noPoint is the text for a point that a device does not have.
func noPoint(d *device, point string) string {
	if !legalName(point) {
		return d.cfg.Name + " has no point " + report.Name(point)
	}
	text := fmt.Sprintf("%s has no point `%s`", d.cfg.Name, point)
	if n := alike(point, d.pointNames()); n != "" {
		text += fmt.Sprintf(" (did you mean `%s`?)", n)
	}
	return text
}

// noDevice is the text for a device that is not configured.
func (c *commands) noDevice(name string) string {
	if name == gatewayDevice {
		return "gateway takes no commands"
	}
	c.b.mu.RLock()
	names := slices.Sorted(maps.Keys(c.b.devices))
	c.b.mu.RUnlock()
	text := fmt.Sprintf("there is no device `%s`", name)
	if n := alike(name, names); n != "" {
		text += fmt.Sprintf(" (did you mean `%s`?)", n)
	}
	return text
}
