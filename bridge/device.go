package bridge

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/embeddedbroker"
)

// maxState is the largest payload of a state in bytes.
const maxState = 256 << 10

// freshFor is for how many of its own intervals a value is repeated in the
// rounds that did not read it.
const freshFor = 2

// device is one device as the bridge sees it: its topics, the last reading of
// each point, and what was published.
type device struct {
	b      *Bridge
	cfg    *config.Device
	bus    *config.Bus
	topics topics
	index  map[string]int // of points, by name
	always bool           // publish = "always"

	mu     sync.Mutex // order of everything published about the device
	gone   bool       // removed or replaced: nothing more is published
	online bool
	turn   uint64 // rounds taken
	slots  []slot // one a point, in the order of the file
	buf    []byte // a state being written

	last struct { // what Birth sends; its lock is never held over a Publish
		sync.Mutex
		state   *embeddedbroker.Message
		scalars []*embeddedbroker.Message
	}
}

// slot is the last reading of a point.
type slot struct {
	key   []byte // ,"name":
	text  []byte // of the value, as JSON
	num   float64
	at    time.Duration // when it was read
	turn  uint64        // the round it was read in
	have  bool          // it did not fail since
	fresh time.Duration // how long it is repeated

	pub     []byte // what was published last; with publish = "change" only
	pubNum  float64
	pubAt   time.Duration
	pubHave bool
	changed bool
}

// newDevice makes the device and its plan. It refuses one whose state may be
// longer than a message.
func newDevice(b *Bridge, cfg *config.Config, dc *config.Device) (*device, error) {
	if n := estimate(dc); n > maxState {
		return nil, fmt.Errorf("device %s: a state of its %d points may need %d kB, %d kB is the limit; split it into two devices",
			dc.Name, len(dc.Points), n>>10, maxState>>10)
	}
	scalars := sendsScalars(cfg)
	d := &device{b: b, cfg: dc, bus: cfg.Buses[dc.Bus], topics: newTopics(b.base, dc.Name, dc.Points, scalars),
		index: make(map[string]int, len(dc.Points)), always: dc.Publish != "change", slots: make([]slot, len(dc.Points))}
	for i := range dc.Points {
		p := &dc.Points[i]
		d.index[p.Name] = i
		every := p.Interval
		if every <= 0 {
			every = dc.Interval
		}
		d.slots[i] = slot{key: []byte(`,"` + p.Name + `":`), fresh: freshFor * every, num: math.NaN(), pubNum: math.NaN()}
	}
	if scalars {
		d.last.scalars = make([]*embeddedbroker.Message, len(dc.Points))
	}
	return d, nil
}

// sendsScalars tells whether each point is published on a topic of its own: for
// the LAN, or because an uplink gives each a topic.
func sendsScalars(cfg *config.Config) bool {
	if cfg.Gateway.Payload == "value" {
		return true
	}
	for _, u := range cfg.Uplinks {
		if strings.Contains(u.TopicTemplate, "{point}") {
			return true
		}
	}
	return false
}

// place is where a point stands in the file, -1 when there is none of that name.
func (d *device) place(point string) int {
	if i, ok := d.index[point]; ok {
		return i
	}
	return -1
}

// pointNames are the names of all points of a device.
func (d *device) pointNames() []string { return slices.Sorted(maps.Keys(d.index)) }

// estimate is the longest state that a device is expected to give, in bytes.
func estimate(dc *config.Device) int {
	const head, number, uartText = 64, 25, 1024
	n := head
	for i := range dc.Points {
		p := &dc.Points[i]
		v := number
		switch {
		case p.Type == "string" && p.Length > 0:
			v = 2 * p.Length * len(`\u0000`)
		case p.Type == "hex" && p.Length > 0:
			v = 4 * p.Length
		case p.Type == "string" || p.Type == "hex":
			v = uartText
		}
		for _, w := range p.Enum {
			v = max(v, len(w.Text)+2)
		}
		flags := 2
		for _, w := range p.Flags {
			flags += len(w.Text) + 3
		}
		n += len(p.Name) + len(`"":,`) + max(v, flags)
	}
	return n
}

// Take publishes a round: the scalars (payload = "value"), then the state. It
// returns the error of the broker, when nobody durable got the round. Rounds of
// one device must not be taken concurrently. A round of a device that the
// configuration does not know (any more), or in which no point has a reading,
// publishes nothing.
func (b *Bridge) Take(_ context.Context, r devices.Round) error {
	d := b.device(r.Device)
	if d == nil {
		b.stats.orphans.Add(1)
		return nil
	}
	if err := d.take(&r); err != nil {
		return fmt.Errorf("device %s: publish round: %w", r.Device, err)
	}
	return nil
}

func (d *device) take(r *devices.Round) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone {
		d.b.stats.orphans.Add(1)
		return nil
	}
	d.turn++
	if !d.note(r) || !d.always && !d.due(r.At.Mono) {
		return nil
	}
	at := d.b.dated(r.At)
	if err := d.publishScalars(at); err != nil {
		return err
	}
	m := &embeddedbroker.Message{Topic: d.topics.state, Payload: d.encode(at), QoS: 1, Retain: true,
		Kind: embeddedbroker.KindReading, Mono: at.Mono, Wall: at.Wall}
	if len(m.Payload) > maxState {
		return fmt.Errorf("a state of %d kB is longer than %d kB", len(m.Payload)>>10, maxState>>10)
	}
	if err := d.b.broker.Publish(m, nil); err != nil {
		return err
	}
	d.b.stats.published[pubState].Add(1)
	d.last.Lock()
	d.last.state = m
	d.last.Unlock()
	d.published(r.At.Mono)
	if d.b.tap != nil {
		d.b.tap(*r, m)
	}
	return nil
}

// note writes the readings of a round into the slots. It is false when there
// are none.
func (d *device) note(r *devices.Round) bool {
	some, hint := false, 0
	for i := range r.Values {
		v := &r.Values[i]
		k := hint
		if k >= len(d.cfg.Points) || d.cfg.Points[k].Name != v.Point {
			var ok bool
			if k, ok = d.index[v.Point]; !ok {
				continue // of a plan that a reload has replaced
			}
		}
		hint = k + 1
		s := &d.slots[k]
		if v.Quality == devices.NotAvailable {
			s.text, s.num = append(s.text[:0], "null"...), math.NaN()
		} else {
			s.text = v.Value.AppendJSON(s.text[:0], d.cfg.Points[k].Digits)
			if !d.always {
				s.num = number(v.Value)
			}
		}
		s.at, s.turn, s.have, some = r.At.Mono+v.Off, d.turn, true, true
	}
	for i := range r.Errors {
		if k, ok := d.index[r.Errors[i].Point]; ok && d.slots[k].turn != d.turn {
			d.slots[k].have = false // a value is never repeated over a failure
		}
	}
	return some
}

// number is v as a number, NaN when it is none.
func number(v devices.Value) float64 {
	if v.IsNumber() {
		return v.Float()
	}
	return math.NaN()
}

// due says, with publish = "change", whether the round is worth a message: a
// value that changed by its deadband or more, one that began to fail, or one
// that was not published for a heartbeat.
func (d *device) due(now time.Duration) bool {
	due := false
	for i := range d.slots {
		s := &d.slots[i]
		s.changed = false
		switch {
		case s.turn != d.turn:
			s.changed = !s.have && s.pubHave
		case !s.pubHave || d.cfg.Heartbeat > 0 && now-s.pubAt >= d.cfg.Heartbeat:
			s.changed = true
		case bytes.Equal(s.text, s.pub):
		default:
			step := math.Abs(s.num - s.pubNum) // NaN unless both are numbers
			s.changed = !(step < d.cfg.Points[i].Deadband)
		}
		due = due || s.changed
	}
	return due
}

// published notes, with publish = "change", what has gone out.
func (d *device) published(now time.Duration) {
	if d.always {
		return
	}
	for i := range d.slots {
		s := &d.slots[i]
		if s.turn == d.turn {
			s.pub = append(s.pub[:0], s.text...)
			s.pubNum, s.pubAt = s.num, now
		}
		if s.turn == d.turn || !s.have {
			s.pubHave = s.have
		}
	}
}

// encode writes the state: the readings of this round, and with publish =
// "always" those of slower points that are younger than two of their intervals.
func (d *device) encode(at devices.Instant) []byte {
	o := object(d.buf[:0])
	d.b.header(&o, at)
	buf := []byte(o)
	for i := range d.slots {
		s := &d.slots[i]
		if s.turn == d.turn || d.always && s.have && at.Mono-s.at < s.fresh {
			buf = append(buf, s.key...)
			buf = append(buf, s.text...)
		}
	}
	buf = append(buf, '}')
	d.buf = buf
	return bytes.Clone(buf)
}

// publishScalars publishes state/<point> of what was read in this round; with
// publish = "change" only of what changed.
func (d *device) publishScalars(at devices.Instant) error {
	for i, topic := range d.topics.points {
		s := &d.slots[i]
		if s.turn != d.turn || !d.always && !s.changed {
			continue
		}
		m := &embeddedbroker.Message{Topic: topic, Payload: scalar(s.text), QoS: 1, Retain: true,
			Kind: embeddedbroker.KindStatus, Mono: at.Mono, Wall: at.Wall} // not KindReading: it has no place for a number
		if err := d.b.broker.Publish(m, nil); err != nil {
			return err
		}
		d.b.stats.published[pubScalar].Add(1)
		d.last.Lock()
		d.last.scalars[i] = m
		d.last.Unlock()
	}
	return nil
}

// newest appends the newest messages of the readings.
func (d *device) newest(ms []*embeddedbroker.Message) []*embeddedbroker.Message {
	d.last.Lock()
	defer d.last.Unlock()
	for _, m := range d.last.scalars {
		if m != nil {
			ms = append(ms, m)
		}
	}
	if d.last.state != nil {
		ms = append(ms, d.last.state)
	}
	return ms
}

// hold is the device of that name, locked; nil when there is none. One that was
// replaced while its lock was waited for gives way to the one in its place: a
// change of health is said once.
func (b *Bridge) hold(name string) *device {
	for {
		d := b.device(name)
		if d == nil {
			return nil
		}
		d.mu.Lock()
		if !d.gone {
			return d
		}
		d.mu.Unlock()
	}
}

// Health publishes a change of what is known about a device, so that nobody
// reads an old value as fresh: at recovery error, then status online (the state
// came with Take before); at loss status offline, then error.
func (b *Bridge) Health(_ context.Context, h devices.Health) {
	d := b.hold(h.Device)
	if d == nil {
		b.stats.orphans.Add(1)
		return
	}
	defer d.mu.Unlock()
	b.mu.RLock()
	ended := b.ended
	b.mu.RUnlock()
	if ended {
		return
	}
	was := d.online
	d.online = h.Online
	if was && !h.Online {
		b.board.post(b.word(d.topics.status, wordOffline))
	}
	d.fail(h)
	if !was && h.Online {
		b.board.post(b.word(d.topics.status, wordOnline))
	}
	if was != h.Online {
		b.Changed()
	}
}

// fail publishes the error of a device, or empties its topic when it is solved.
func (d *device) fail(h devices.Health) {
	if h.Report.Err != "" && !h.Report.Solved {
		d.b.board.post(d.b.message(d.topics.failure, d.b.failure(h.Report), true))
		return
	}
	if d.b.board.get(d.topics.failure) != nil {
		d.b.board.post(d.b.message(d.topics.failure, nil, true))
	}
}
