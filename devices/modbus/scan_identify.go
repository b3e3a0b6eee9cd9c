package modbus

import (
	"context"
	"encoding/binary"
	"errors"
	"math"

	"busgate/config"
	"busgate/devices"
)

// identify finds the profiles that fit a unit: those whose probes fit, and then
// what tellApart leaves of them.
func (s *scanner) identify(ctx context.Context, id uint8) ([]Fit, error) {
	if s.Timeout == 0 {
		s.field.bus.Timeout = s.timeout()
	} else {
		s.field.bus.Timeout = s.Timeout
	}
	var fits []Fit
	mute := map[string]bool{} // tables that the unit does not answer for
	for _, p := range s.Profiles {
		if p.Probe == nil || p.Frame != nil {
			continue
		}
		var fit Fit
		var ok bool
		var err error
		if p.Probe.Words != nil {
			ok, err = s.words(ctx, id, p, mute)
			fit = Fit{Profile: p}
		} else {
			fit, ok, err = s.value(ctx, id, p, mute)
		}
		if err != nil {
			return fits, err
		}
		if ok {
			fits = append(fits, fit)
		}
	}
	if len(fits) == 0 {
		return nil, nil
	}
	return s.tellApart(ctx, id, fits)
}

// deviceOf is the device that a profile makes of a unit.
func deviceOf(p *config.Profile, id uint8) *config.Device {
	return &config.Device{Name: p.Name, Profile: p.Name, UnitID: id, MaxRead: orMax(p.Defaults.MaxRead), AnswerTime: p.AnswerTime, Points: p.Points}
}

// poll reads points of a profile.
func (s *scanner) poll(ctx context.Context, dev *config.Device, points []int) (devices.Answer, error) {
	s.field.units[dev.UnitID] = newUnit(dev) // nothing that another profile taught
	return s.field.Poll(ctx, &devices.Group{Device: dev, Points: points}, func(ctx context.Context) error { return ctx.Err() })
}

// value tries a probe for a value in a range.
func (s *scanner) value(ctx context.Context, id uint8, p *config.Profile, mute map[string]bool) (Fit, bool, error) {
	for i := range p.Points {
		point := &p.Points[i]
		if point.Name != p.Probe.Point || mute[point.Table] {
			continue
		}
		a, err := s.poll(ctx, deviceOf(p, id), []int{i})
		if err != nil {
			return Fit{}, false, err
		}
		mute[point.Table] = errors.Is(a.Err, devices.ErrNoAnswer)
		if len(a.Values) != 1 || a.Values[0].Quality != devices.Good {
			return Fit{}, false, nil
		}
		v := a.Values[0].Value
		f := v.Float()
		return Fit{p, point, v}, f >= *p.Probe.Min && f <= *p.Probe.Max, nil // false for NaN
	}
	return Fit{}, false, nil
}

// words tries a probe for raw registers.
func (s *scanner) words(ctx context.Context, id uint8, p *config.Profile, mute map[string]bool) (bool, error) {
	u := newUnit(deviceOf(p, id))
	s.field.units[id] = u
	for _, w := range p.Probe.Words {
		if mute[p.Probe.Table] {
			return false, nil
		}
		raw, _, err := s.field.again(ctx, u, span{p.Probe.Table, int(w.Addr), int(w.Addr) + 1})
		_, refused := errors.AsType[*devices.Exception](err)
		switch {
		case err == nil && binary.BigEndian.Uint16(raw) == w.Value:
			continue
		case err == nil, refused, errors.Is(err, devices.ErrBadFrame):
			return false, nil
		case errors.Is(err, devices.ErrNoAnswer):
			mute[p.Probe.Table] = true
			return false, nil
		}
		return false, err
	}
	return true, nil
}

// register is where a value stands and how it is read.
type register struct {
	table string
	addr  uint16
	typ   string
}

// tellApart reads everything that the profiles in question name. One is out when
// a value is nothing that its unit of measurement can be, or when all are empty,
// and before others also when the unit refuses one of its registers. The model
// is the one that explains clearly more of what the unit holds than any other: a
// smaller one of its family has nothing there, or refuses.
func (s *scanner) tellApart(ctx context.Context, id uint8, fits []Fit) ([]Fit, error) {
	var likely, whole []Fit
	var maps []map[register]bool // of whole; true: holds something
	for _, fit := range fits {
		dev := deviceOf(fit.Profile, id)
		all := make([]int, len(dev.Points))
		for i := range all {
			all[i] = i
		}
		a, err := s.poll(ctx, dev, all)
		if err != nil {
			return fits, err
		}
		m, ok := holds(dev, a)
		if !ok && fit.Point != nil { // one of raw registers is certain
			continue
		}
		likely = append(likely, fit)
		if !refused(a) {
			whole, maps = append(whole, fit), append(maps, m)
		}
	}
	for i := range whole {
		if richest(maps, i) {
			return whole[i : i+1], nil
		}
	}
	if len(whole) == 0 { // a firmware of its own
		return likely, nil
	}
	return whole, nil
}

// holds says which registers of a device hold something. It is not ok when none
// does, or when a value contradicts its unit of measurement.
func holds(dev *config.Device, a devices.Answer) (m map[register]bool, ok bool) {
	held := map[string]devices.Value{}
	for _, v := range a.Values {
		if v.Quality == devices.Good {
			held[v.Point] = v.Value
		}
	}
	m = map[register]bool{}
	for i := range dev.Points {
		p := &dev.Points[i]
		f := held[p.Name].Float() // NaN for none
		if r, known := possible[p.Unit]; known && (f < r.low || f > r.top) {
			return nil, false
		}
		full := f != 0 && !math.IsNaN(f)
		m[register{p.Table, p.Addr, p.Type}] = full
		ok = ok || full
	}
	return m, ok
}

// possible is what a unit of measurement can be at all in an installation. A
// distortion may be some hundred percent.
var possible = map[string]struct{ low, top float64 }{
	"V": {-1500, 1500}, "Hz": {0, 500}, "°C": {-60, 200}, "%": {-100, 500},
}

// refused says that the unit does not have a register of the poll.
func refused(a devices.Answer) bool {
	for _, e := range a.Errors {
		if e.Code == "unsupported" || e.Code == "exception" {
			return true
		}
	}
	return false
}

// clearly is how many registers that hold something a profile must have ahead of another.
const clearly = 4

// richest says that map i explains clearly more of what the unit holds than each other map.
func richest(maps []map[register]bool, i int) bool {
	for k, other := range maps {
		if mine, theirs := beyond(maps[i], other), beyond(other, maps[i]); k != i && (mine < clearly || mine <= clearly*theirs) {
			return false
		}
	}
	return true
}

// beyond counts the registers of a that hold something and are not in b.
func beyond(a, b map[register]bool) int {
	n := 0
	for r, held := range a {
		if _, ok := b[r]; !ok && held {
			n++
		}
	}
	return n
}
