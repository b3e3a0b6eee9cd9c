package modbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"busgate/config"
	"busgate/devices"
)

// busyWaits are the pauses before a busy unit is asked again, one second in all.
var busyWaits = [...]time.Duration{100 * time.Millisecond, 300 * time.Millisecond, 600 * time.Millisecond}

// round is one poll while it runs.
type round struct {
	f      *field
	u      *unit
	g      *devices.Group
	pause  func(context.Context) error
	paused time.Duration
	queue  []task
	got    []block
	failed []failure
	sent   int
	silent int  // requests without answer in a row
	over   bool // the unit is silent: nothing more is asked
	a      devices.Answer
}

// task is a request still to be made.
type task struct {
	request
	trial *trial
	busy  int // how often the unit was busy
}

// block is registers or bits that were read.
type block struct {
	span
	data []byte
	at   time.Time
}

// failure is registers that were not read.
type failure struct {
	span
	code, text string
}

// Poll reads the points of a group. See devices.Field.
func (f *field) Poll(ctx context.Context, g *devices.Group, pause func(context.Context) error) (devices.Answer, error) {
	start := time.Now()
	u := f.unitOf(g.Device)
	r := &round{f: f, u: u, g: g, pause: pause}
	if u.isSunSpec() {
		if ok, err := r.discover(ctx); !ok || err != nil {
			u.asked = u.asked && r.a.Heard
			r.a.Used = time.Since(start) - r.paused
			return r.a, err
		}
	}
	pl := f.planOf(g, u)
	for i := range pl.requests {
		r.queue = append(r.queue, task{request: pl.requests[(pl.first+i)%len(pl.requests)]})
	}
	for len(r.queue) > 0 {
		if err := r.step(ctx); err != nil {
			return devices.Answer{}, err
		}
	}
	if r.a.Err != nil { // the next round begins behind what was silent, so that nothing starves
		pl.first = (pl.first + max(r.sent, 1)) % max(len(pl.requests), 1)
	}
	r.decode()
	r.explain()
	if len(r.got) > 0 {
		r.a.Heard = true
	}
	if err := r.finish(ctx); err != nil {
		return devices.Answer{}, err
	}
	r.a.Used = time.Since(start) - r.paused
	return r.a, nil
}

// finish looks after a round who answered, and notes what was learned. A unit
// that was silent may be another one when it comes back.
func (r *round) finish(ctx context.Context) error {
	if !r.a.Heard {
		r.u.asked = false
		return nil
	}
	if err := r.identify(ctx); err != nil {
		return err
	}
	r.f.learned(r.u)
	return nil
}

// step makes the first request of the queue, or several at once on a connection
// that bears it.
func (r *round) step(ctx context.Context) error {
	if r.sent > 0 {
		if err := r.yield(ctx, 0); err != nil {
			return err
		}
	}
	if n := min(r.f.bus.Pipeline, len(r.queue)); n > 1 {
		if t, ok := r.f.link.(*TCP); ok {
			return r.burst(ctx, t, n)
		}
	}
	r.sent++
	t := r.queue[0]
	r.queue = r.queue[1:]
	data, tries, err := r.f.again(ctx, r.u, t.span)
	return r.took(ctx, t, data, r.f.link.timings().end, tries, err)
}

// took deals with the end of one request. data is copied.
func (r *round) took(ctx context.Context, t task, data []byte, at time.Time, tries int, err error) error {
	x, refused := errors.AsType[*devices.Exception](err)
	switch {
	case err == nil:
		r.silent = 0
		r.got = append(r.got, block{t.span, slices.Clone(data), at})
		for _, g := range t.gaps() {
			r.u.verify(g)
		}
		r.settle(t, false)
	case refused:
		r.a.Heard, r.silent = true, 0
		return r.refused(ctx, t, x)
	case errors.Is(err, devices.ErrNoAnswer):
		r.noAnswer(t, tries, noAnswerText(r.f.bus, r.g.Device.UnitID, tries, r.f.patienceOf(r.u)))
	case errors.Is(err, devices.ErrBadFrame):
		r.failed = append(r.failed, failure{t.span, "bad-frame", badFrameText(r.f.bus, r.g.Device.UnitID, tries)})
		r.a.Tries = tries
		if len(r.queue) == 0 && !r.a.Heard && len(r.got) == 0 {
			r.a.Err = devices.ErrBadFrame
		}
	default:
		return err
	}
	return nil
}

func (f *field) patienceOf(u *unit) time.Duration { return u.patience(f.bus, f.timing).timeout }

// noAnswer notes a silent request. It ends the round when the unit has not been
// heard in it, or is silent for the second time in a row: the other requests are
// not made. A unit that is silent about one block only still gives the others.
func (r *round) noAnswer(t task, tries int, text string) {
	r.a.Err, r.a.Tries, r.a.Waited = devices.ErrNoAnswer, tries, r.f.patienceOf(r.u)
	r.failed = append(r.failed, failure{t.span, "no-answer", text})
	if r.silent++; r.silent < 2 && (r.a.Heard || len(r.got) > 0) {
		return
	}
	for _, q := range r.queue {
		r.failed = append(r.failed, failure{q.span, "no-answer", text})
	}
	r.queue, r.over = nil, true
}

// refused deals with an exception.
func (r *round) refused(ctx context.Context, t task, x *devices.Exception) error {
	switch x.Code {
	case exFunction:
		for _, s := range t.parts {
			r.unsupported(s, x)
		}
		r.settle(t, true)
	case exAddress, exValue:
		r.learn(t, x)
	case exAcknowledge, exBusy:
		if n := r.u.wasBusy(); n > busyTooOften {
			r.found(busyFinding(x.Code, n))
		}
		if t.busy >= len(busyWaits) {
			r.failed = append(r.failed, failure{t.span, "busy", x.Text})
			break
		}
		wait := busyWaits[t.busy]
		t.busy++
		r.queue = append(r.queue, t)
		return r.yield(ctx, wait)
	case exGatewayPath, exGatewayTarget:
		r.a.Heard = false
		r.found(gatewayPath(r.f.bus, r.g.Device.UnitID, x.Code))
		r.noAnswer(t, 1, x.Text)
	case exFailure:
		r.found(deviceFailure(t.span))
		fallthrough
	default:
		r.failed = append(r.failed, failure{t.span, "exception", x.Text})
	}
	return nil
}

func (r *round) found(f devices.Finding) {
	for i := range r.a.Found {
		if r.a.Found[i].Err == f.Err {
			r.a.Found[i] = f
			return
		}
	}
	r.a.Found = append(r.a.Found, f)
}

// yield lets the bus do a waiting write, and waits at least d.
func (r *round) yield(ctx context.Context, d time.Duration) error {
	start := time.Now()
	defer func() { r.paused += time.Since(start) }()
	if err := r.pause(ctx); err != nil {
		return err
	}
	rest := d - time.Since(start)
	if rest <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(rest)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// decode turns what was read into readings, in the order of the points.
func (r *round) decode() {
	for _, b := range r.got {
		if b.at.After(r.a.At) {
			r.a.At = b.at
		}
	}
	r.a.Values = make([]devices.Reading, 0, len(r.g.Points))
	if m, yes := r.moved(); yes {
		r.refind(m)
		return
	}
	for _, i := range r.g.Points {
		p := &r.u.points[i]
		if p.Table == "" {
			r.a.Errors = append(r.a.Errors, devices.PointError{Point: p.Name, Code: "unsupported", Text: r.u.notThere(p)})
			continue
		}
		raw, at, ok := r.raw(valueSpan(p))
		if !ok {
			r.a.Errors = append(r.a.Errors, r.whyNot(p))
			continue
		}
		power := 0
		if p.ScaleReg >= 0 && !isBits(p.Table) {
			sf, _, ok := r.raw(scaleSpan(p))
			if !ok {
				r.a.Errors = append(r.a.Errors, r.whyNot(p))
				continue
			}
			power = devices.Power(sf)
		}
		v, q, err := devices.DecodeScaled(p, raw, power)
		if f := r.u.orders.look(r.g.Device, p, raw, power, v); f != nil {
			r.found(*f)
		}
		if err != nil {
			r.a.Errors = append(r.a.Errors, devices.PointError{Point: p.Name, Code: "out-of-range", Text: err.Error()})
			continue
		}
		r.a.Values = append(r.a.Values, devices.Reading{Point: p.Name, Value: v, Quality: q, Off: at.Sub(r.a.At)})
	}
}

// refind drops the values of a round in which a model was not where it was; the
// next one looks for the models again.
func (r *round) refind(m model) {
	text := fmt.Sprintf("SunSpec model %d is not at holding %d any more", m.id, m.at)
	for _, i := range r.g.Points {
		r.a.Errors = append(r.a.Errors, devices.PointError{Point: r.u.points[i].Name, Code: "bad-frame", Text: text})
	}
	r.u.layout = nil
	r.u.place()
	r.u.version++
}

// raw finds the bytes of a span among the blocks.
func (r *round) raw(s span) (raw []byte, at time.Time, ok bool) {
	for i := range r.got {
		b := &r.got[i]
		if b.table != s.table || s.from < b.from || s.to > b.to {
			continue
		}
		off := s.from - b.from
		if isBits(s.table) {
			bit := b.data[off/8] >> (off % 8) & 1
			return bitBytes[bit], b.at, true
		}
		return b.data[2*off : 2*(off+s.width())], b.at, true
	}
	return nil, time.Time{}, false
}

var bitBytes = [2][]byte{{0}, {1}}

// whyNot is the error of a point that was not read.
func (r *round) whyNot(p *config.Point) devices.PointError {
	s := valueSpan(p)
	for _, f := range r.failed {
		if f.table == s.table && s.from < f.to && s.to > f.from {
			return devices.PointError{Point: p.Name, Code: f.code, Text: f.text}
		}
	}
	for u, ref := range r.u.unsupported {
		if u.table == s.table && s.from < u.to && s.to > u.from {
			return devices.PointError{Point: p.Name, Code: "unsupported", Text: exceptionText(ref.code)}
		}
	}
	return devices.PointError{Point: p.Name, Code: "no-answer", Text: "not asked in this round"}
}

// explain says again what the unit does not have, as long as it does not.
func (r *round) explain() {
	if r.u.isSunSpec() && r.u.layout != nil && len(r.u.layout.models) == 0 {
		r.found(noSunSpec())
	}
	var unknown, absent []span // functions, registers
	for s, ref := range r.u.unsupported {
		switch {
		case !r.wants(s):
		case ref.code == exFunction:
			unknown = append(unknown, s)
		default:
			absent = append(absent, s)
		}
	}
	for _, list := range [][]span{unknown, absent} {
		if len(list) > 0 {
			slices.SortFunc(list, func(a, b span) int { return a.from - b.from })
			r.found(missing(list, r.u.unsupported[list[0]].code, !r.u.isSunSpec()))
		}
	}
}

// wants says that a point of this round stands in s.
func (r *round) wants(s span) bool {
	return slices.ContainsFunc(r.g.Points, func(i int) bool {
		p := valueSpan(&r.u.points[i])
		return p.table == s.table && p.from < s.to && p.to > s.from
	})
}

// planOf is the plan of a group, made anew when what it rests on has changed.
func (f *field) planOf(g *devices.Group, u *unit) *plan {
	now := time.Now()
	for s, ref := range u.unsupported {
		if now.After(ref.until) {
			delete(u.unsupported, s)
			u.version++
		}
	}
	if pl, ok := g.Plan.(*plan); ok && pl.version == u.version {
		return pl
	}
	l := limitsOf(f.bus, u, f.timing, f.writes)
	all := spans(u.points, g.Points, u.headers(g.Points), l)
	wanted := slices.DeleteFunc(slices.Clone(all), func(s span) bool { _, no := u.unsupported[s]; return no })
	if len(wanted) == 0 && len(all) > 0 {
		wanted = all[:1] // a unit that refuses everything still shows that it lives
	}
	pl := &plan{version: u.version, requests: makePlan(wanted, l)}
	g.Plan = pl
	return pl
}
