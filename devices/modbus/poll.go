package modbus

import (
	"context"
	"errors"
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
	silent int // requests without answer in a row
	a      devices.Answer
}

// task is a request still to be made.
type task struct {
	request
	trial *trial
	busy  int // how often the unit was busy
}

// trial watches the parts of a request that was refused although it had no gaps:
// when all of them answer, its size was the fault.
type trial struct {
	width, open, widest int
	refused             bool
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
	r.a.Used = time.Since(start) - r.paused
	return r.a, nil
}

// step makes the first request of the queue.
func (r *round) step(ctx context.Context) error {
	if r.sent > 0 {
		if err := r.yield(ctx, 0); err != nil {
			return err
		}
	}
	r.sent++
	t := r.queue[0]
	r.queue = r.queue[1:]
	data, tries, err := r.f.again(ctx, r.u, t.span)
	x, refused := errors.AsType[*devices.Exception](err)
	switch {
	case err == nil:
		r.silent = 0
		r.got = append(r.got, block{t.span, slices.Clone(data), r.f.link.timings().end})
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
	r.queue = nil
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

// learn draws the conclusion from exception 2 or 3: first the widest gap that
// nobody has read over yet, then the size, at last the register itself.
func (r *round) learn(t task, x *devices.Exception) {
	widest, at := gap{}, 0
	end := t.from
	for i, s := range t.parts {
		g := gap{t.table, end, s.from}
		if i > 0 && g.to-g.from > widest.to-widest.from && !r.u.verified[g] {
			widest, at = g, i
		}
		end = max(end, s.to)
	}
	switch {
	case at > 0:
		r.u.forbid(widest)
	case len(t.parts) > 1:
		at = len(t.parts) / 2
		if t.trial == nil {
			t.trial = &trial{width: t.width(), open: 1}
		}
	default:
		r.unsupported(t.span, x)
		r.settle(t, true)
		return
	}
	a, b := t.splitAt(at)
	if t.trial != nil {
		t.trial.open++
	}
	r.queue = append([]task{{request: a, trial: t.trial}, {request: b, trial: t.trial}}, r.queue...)
}

// settle closes one part of a trial.
func (r *round) settle(t task, refused bool) {
	tr := t.trial
	if tr == nil {
		return
	}
	tr.open--
	tr.refused = tr.refused || refused
	if !refused {
		tr.widest = max(tr.widest, t.width())
	}
	if tr.open == 0 && !tr.refused && !isBits(t.table) && tr.widest < tr.width {
		r.u.maxRead = max(1, tr.widest)
		r.u.version++
	}
}

// unsupported notes registers that the unit does not have; they are asked again in an hour.
func (r *round) unsupported(s span, x *devices.Exception) {
	r.u.unsupported[s] = refusal{x.Code, time.Now().Add(askAgain)}
	r.u.version++
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
	for _, i := range r.g.Points {
		p := &r.g.Device.Points[i]
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
		if err != nil {
			r.a.Errors = append(r.a.Errors, devices.PointError{Point: p.Name, Code: "out-of-range", Text: err.Error()})
			continue
		}
		r.a.Values = append(r.a.Values, devices.Reading{Point: p.Name, Value: v, Quality: q, Off: at.Sub(r.a.At)})
	}
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
			r.found(missing(list, r.u.unsupported[list[0]].code))
		}
	}
}

// wants says that a point of this round stands in s.
func (r *round) wants(s span) bool {
	return slices.ContainsFunc(r.g.Points, func(i int) bool {
		p := valueSpan(&r.g.Device.Points[i])
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
	l := limitsOf(f.bus, u, f.timing, writable(u.dev))
	all := spans(g.Device, g.Points, l)
	wanted := slices.DeleteFunc(slices.Clone(all), func(s span) bool { _, no := u.unsupported[s]; return no })
	if len(wanted) == 0 && len(all) > 0 {
		wanted = all[:1] // a unit that refuses everything still shows that it lives
	}
	pl := &plan{version: u.version, requests: makePlan(wanted, l)}
	g.Plan = pl
	return pl
}
