package modbus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"busgate/config"
	"busgate/devices"
)

// Where a SunSpec map can begin, the usual place first (SunSpec Device
// Information Model Specification v1.1, 6.2).
var sunspecBases = [...]int{40000, 50000, 0}

const (
	sunsHigh, sunsLow = 0x5375, 0x6E53 // "SunS"
	lastModel         = 0xFFFF
	maxModels         = 64 // of one device; what comes behind is not looked at
)

// layout is where the models of a SunSpec device stand.
type layout struct {
	models []model
	found  time.Time
}

// model is one entry of the chain: its number, and how many registers follow
// those two of its head.
type model struct{ id, at, length int }

// find is the first model of the chain with one of the numbers.
func (l *layout) find(ids []int) (model, bool) {
	if l == nil {
		return model{}, false
	}
	for _, m := range l.models {
		if slices.Contains(ids, m.id) {
			return m, true
		}
	}
	return model{}, false
}

// isSunSpec says that a point of the device stands in a SunSpec model.
func (u *unit) isSunSpec() bool {
	return slices.ContainsFunc(u.dev.Points, func(p config.Point) bool { return len(p.SunSpec) > 0 })
}

// place finds where the points of the device stand. One of a model that is not
// there, or not known yet, has no table.
func (u *unit) place() {
	u.points = u.dev.Points
	if !u.isSunSpec() {
		return
	}
	u.points = slices.Clone(u.dev.Points)
	for i := range u.points {
		u.points[i], _ = u.placed(u.points[i])
	}
}

// placed is a point with the addresses that go on the wire; false when its model
// is not there or too short for it.
func (u *unit) placed(p config.Point) (config.Point, bool) {
	if len(p.SunSpec) == 0 {
		return p, true
	}
	m, ok := u.layout.find(p.SunSpec)
	last := max(int(p.Addr)+devices.Words(&p), p.ScaleReg+1)
	if !ok || last > m.length+2 {
		p.Table = ""
		return p, false
	}
	p.Addr += uint16(m.at)
	if p.ScaleReg >= 0 {
		p.ScaleReg += m.at
	}
	return p, true
}

// suppose makes a layout of a device that was not asked yet, to estimate its
// requests: each set of models has a place of its own.
func (u *unit) suppose() {
	u.layout = &layout{}
	for i := range u.dev.Points {
		ids := u.dev.Points[i].SunSpec
		if _, known := u.layout.find(ids); len(ids) > 0 && !known {
			u.layout.models = append(u.layout.models, model{ids[0], 500 * len(u.layout.models), 498})
		}
	}
	u.place()
}

// headers are the heads of the models that some points stand in. They are read
// with each round, so that a model that has moved cannot give another's values.
func (u *unit) headers(points []int) []span {
	var out []span
	for _, i := range points {
		if m, ok := u.layout.find(u.dev.Points[i].SunSpec); ok {
			if s := (span{"holding", m.at, m.at + 2}); !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
	}
	return out
}

// moved says that the head of a model is not what it was.
func (r *round) moved() (model, bool) {
	for _, s := range r.u.headers(r.g.Points) {
		raw, _, ok := r.raw(s)
		for _, m := range r.u.layout.models {
			if ok && m.at == s.from && (word(raw, 0) != m.id || word(raw, 1) != m.length) {
				return m, true
			}
		}
	}
	return model{}, false
}

func word(b []byte, i int) int { return int(binary.BigEndian.Uint16(b[2*i:])) }

// discover walks through the models of a SunSpec device: "SunS" at one of three
// places, then number and length of each model up to 0xFFFF. It is false, with
// the answer of the round filled in, when that cannot be done now.
func (r *round) discover(ctx context.Context) (bool, error) {
	u := r.u
	bases := sunspecBases[:]
	switch {
	case u.layout == nil:
	case len(u.layout.models) > 0:
		return true, nil
	case time.Since(u.layout.found) < askAgain: // only to show that it lives
		bases = bases[:1]
	}
	for _, base := range bases {
		raw, err := r.look(ctx, span{"holding", base, base + 2})
		switch {
		case err == nil && word(raw, 0) == sunsHigh && word(raw, 1) == sunsLow:
			models, err := r.chain(ctx, base+2)
			if err != nil {
				return r.notNow(err)
			}
			u.layout = &layout{models, time.Now()}
			u.place()
			u.version++
			r.f.log.Info("SunSpec models found", "device", u.dev.Name, "base", base, "models", u.layout.String())
			return true, nil
		case err != nil && exceptionCode(err) == 0:
			return r.notNow(err)
		}
	}
	if len(bases) > 1 {
		u.layout = &layout{found: time.Now()}
		u.place()
		u.version++
	}
	return true, nil
}

// chain reads the heads from at on. A device that ends its chain with an
// exception instead of 0xFFFF is taken at its word.
func (r *round) chain(ctx context.Context, at int) ([]model, error) {
	var out []model
	for at+2 <= 65536 && len(out) < maxModels {
		raw, err := r.look(ctx, span{"holding", at, at + 2})
		if exceptionCode(err) != 0 && len(out) > 0 {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		m := model{word(raw, 0), at, word(raw, 1)}
		if m.id == lastModel || m.id == 0 {
			return out, nil
		}
		out = append(out, m)
		at += 2 + m.length
	}
	return out, nil
}

// look makes one read of the discovery, after a waiting write.
func (r *round) look(ctx context.Context, s span) ([]byte, error) {
	if r.sent > 0 {
		if err := r.yield(ctx, 0); err != nil {
			return nil, err
		}
	}
	r.sent++
	raw, tries, err := r.f.again(ctx, r.u, s)
	r.a.Tries = tries
	if err == nil || exceptionCode(err) != 0 {
		r.a.Heard = true
	}
	return raw, err
}

// notNow ends a round in which the models could not be found out.
func (r *round) notNow(err error) (bool, error) {
	code, text := "no-answer", noAnswerText(r.f.bus, r.g.Device.UnitID, r.a.Tries, r.f.patienceOf(r.u))
	switch {
	case errors.Is(err, devices.ErrNoAnswer):
		r.a.Err, r.a.Waited = devices.ErrNoAnswer, r.f.patienceOf(r.u)
	case errors.Is(err, devices.ErrBadFrame):
		code, text = "bad-frame", badFrameText(r.f.bus, r.g.Device.UnitID, r.a.Tries)
		if !r.a.Heard {
			r.a.Err = devices.ErrBadFrame
		}
	case exceptionCode(err) != 0:
		code, text = "exception", err.Error()
	default:
		return false, err
	}
	for _, i := range r.g.Points {
		r.a.Errors = append(r.a.Errors, devices.PointError{Point: r.g.Device.Points[i].Name, Code: code, Text: text})
	}
	return false, nil
}

// notThere is why a point of a model has no register, and what is said when the
// device has no models at all.
func (u *unit) notThere(p *config.Point) string {
	if len(u.layout.models) == 0 {
		return "this is no SunSpec device"
	}
	ids := make([]string, len(p.SunSpec))
	for i, id := range p.SunSpec {
		ids[i] = fmt.Sprint(id)
	}
	return "the device has no SunSpec model " + strings.Join(ids, " or ")
}

func noSunSpec() devices.Finding {
	return devices.Finding{Err: "illegal-address", Level: slog.LevelWarn,
		Text: `it is no SunSpec device: "SunS" stands neither at holding 40000 nor at 50000 nor at 0`}
}

// locate is a point where it stands on the wire. A device whose models are not
// known yet is asked for them by its next round.
func (f *field) locate(u *unit, p *config.Point) (*config.Point, error) {
	at, ok := u.placed(*p)
	switch {
	case ok:
		return &at, nil
	case u.layout == nil:
		return nil, devices.ErrNoAnswer
	}
	return nil, &devices.Exception{Code: exAddress, Text: u.notThere(p)}
}

// String is "1 103 120".
func (l *layout) String() string {
	ids := make([]string, len(l.models))
	for i, m := range l.models {
		ids[i] = fmt.Sprint(m.id)
	}
	return strings.Join(ids, " ")
}
