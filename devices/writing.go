package devices

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"busgate/config"
)

// readBacks are the waits before the read-backs of a write, from the write on.
var readBacks = [...]time.Duration{0, 100 * time.Millisecond, time.Second}

const unknownText = "no answer: whether it was done is unknown"

// doWrites moves one job, or a run of adjacent coils, on by one exchange. The
// error is one of the wire.
func (b *bus) doWrites(ctx context.Context, run []*job) error {
	start := time.Now()
	defer func() { b.load.other += time.Since(start) }()
	j := run[0]
	d, p := b.find(j)
	if p == nil || !p.Write {
		for _, k := range run {
			b.end(k, Result{Code: "refused", Text: "the configuration has changed; try again"})
		}
		return nil
	}
	if j.unsure {
		j.unsure = false
		return b.unsure(ctx, run, d, p)
	}
	if j.raw != nil && j.checked < len(readBacks) && j.at.After(j.sent) {
		return b.readBack(ctx, j, d, p)
	}
	return b.send(ctx, run, d, p)
}

// send writes for the first or the second time.
func (b *bus) send(ctx context.Context, run []*job, d *device, p *config.Point) error {
	items := make([]Item, 0, len(run))
	for _, j := range slices.Clone(run) {
		_, q := b.find(j)
		if err := b.prepare(ctx, j, d, q); err != nil {
			if deviceError(err) {
				b.end(j, Result{Code: "timeout", Text: "no answer: the scale of " + q.Name + " could not be read"})
				return nil
			}
			if _, ok := errors.AsType[*Refusal](err); !ok {
				return err
			}
			b.end(j, refusalOf(err))
			return nil // the others of the run keep their turn
		}
		items = append(items, Item{Point: q, Raw: j.raw, Mask: j.mask})
	}
	now := time.Now()
	err := b.field.Set(ctx, d.cfg, items)
	b.mu.Lock()
	for _, j := range run {
		j.sent = now
		if j.entry != nil { // not a safe value
			d.commanded(j.point, now)
		}
	}
	b.mu.Unlock()
	switch x, refused := errors.AsType[*Exception](err); {
	case err == nil:
		return b.eachReadBack(ctx, run, d)
	case refused:
		b.refusedBy(run, x)
		return nil
	case errors.Is(err, errors.ErrUnsupported):
		for _, j := range run {
			b.end(j, Result{Code: "not-writable", Text: j.point + " takes no commands (write = false)"})
		}
		return nil
	case !deviceError(err):
		for _, j := range run {
			j.unsure = true
		}
		return err
	}
	return b.unsure(ctx, run, d, p)
}

// prepare encodes the value, with the scale that stands in the device.
func (b *bus) prepare(ctx context.Context, j *job, d *device, p *config.Point) error {
	if j.raw != nil {
		return nil
	}
	var err error
	if j.power, err = b.powerOf(ctx, d, p); err != nil {
		return err
	}
	j.raw, j.mask, err = Encode(p, j.cmd.Text, j.power)
	return err
}

// powerOf reads the power of ten that stands in the device; 0 for a point without.
func (b *bus) powerOf(ctx context.Context, d *device, p *config.Point) (int, error) {
	if p.ScaleReg < 0 {
		return 0, nil
	}
	sf := config.Point{Name: p.Name, Table: p.Table, Addr: uint16(p.ScaleReg), Type: "sunssf", Bit: -1, ScaleReg: -1}
	raw, err := b.field.Get(ctx, d.cfg, &sf)
	if err != nil {
		return 0, err
	}
	power := Power(raw)
	if power == NoScale {
		return 0, &Refusal{"refused", p.Name + " has no scale in the device"}
	}
	return power, nil
}

// refusedBy deals with an exception: a busy device is asked three times more.
func (b *bus) refusedBy(run []*job, x *Exception) {
	for _, j := range run {
		if x.Code == 6 && j.busy < 3 {
			j.busy++
			j.raw = nil
			j.at = time.Now().Add(100 * time.Millisecond << j.busy)
			continue
		}
		b.end(j, Result{Code: fmt.Sprintf("exception-%d", x.Code), Text: x.Text})
	}
}

// unsure follows a write without answer. Nothing is repeated blindly: an
// absolute value is read back first, and written once more only when it is not
// there and its time is not over. A pulse is never repeated.
func (b *bus) unsure(ctx context.Context, run []*job, d *device, p *config.Point) error {
	for _, j := range run {
		_, q := b.find(j)
		if q.Pulse || d.resting {
			b.end(j, Result{Code: "timeout", Text: unknownText})
			continue
		}
		raw, err := b.field.Get(ctx, d.cfg, q)
		switch {
		case err == nil && equalMasked(raw, j.raw, j.mask):
			b.succeed(j, d, q, raw)
		case err != nil && !deviceError(err):
			return err
		case err == nil && !j.twice && !b.late(j, time.Now()):
			j.twice, j.at = true, time.Time{}
			if err := b.send(ctx, []*job{j}, d, q); err != nil {
				return err
			}
		default:
			b.end(j, Result{Code: "timeout", Text: unknownText})
		}
	}
	return nil
}

func (b *bus) eachReadBack(ctx context.Context, run []*job, d *device) error {
	for _, j := range run {
		_, p := b.find(j)
		if err := b.readBack(ctx, j, d, p); err != nil {
			return err
		}
	}
	return nil
}

// readBack compares what the device has with what was written, at once, after
// 100 ms and after 1 s. A point that cannot be read, and a pulse, count as
// written when the device said so.
func (b *bus) readBack(ctx context.Context, j *job, d *device, p *config.Point) error {
	if p.Pulse {
		b.succeed(j, d, p, j.raw)
		return nil
	}
	raw, err := b.field.Get(ctx, d.cfg, p)
	if err != nil && !deviceError(err) {
		return err
	}
	j.checked++
	switch {
	case err != nil:
		b.succeed(j, d, p, j.raw)
	case equalMasked(raw, j.raw, j.mask):
		b.succeed(j, d, p, raw)
	case j.checked >= len(readBacks):
		b.end(j, Result{Value: b.value(j, p, raw), Code: "differs",
			Text: fmt.Sprintf("wrote %s, reads %s", b.value(j, p, merged(raw, j.raw, j.mask)), b.value(j, p, raw))})
	default:
		j.at = j.sent.Add(readBacks[j.checked])
	}
	return nil
}

// succeed answers a command and has its state read at once.
func (b *bus) succeed(j *job, d *device, p *config.Point, raw []byte) {
	b.end(j, Result{Value: b.value(j, p, raw)})
	if d.resting {
		d.wakeUp(time.Now())
	}
	for _, g := range d.groups {
		if slices.ContainsFunc(g.Points, func(i int) bool { return d.cfg.Points[i].Name == p.Name }) {
			g.urgent = true
		}
	}
}

func (b *bus) value(j *job, p *config.Point, raw []byte) Value {
	v, _, err := DecodeScaled(p, raw, j.power)
	if err != nil {
		return Value{}
	}
	return v
}

// equalMasked compares the bits that the point owns.
func equalMasked(a, b, mask []byte) bool {
	if mask == nil || len(a) != len(b) {
		return bytes.Equal(a, b)
	}
	for i := range a {
		if (a[i]^b[i])&mask[i] != 0 {
			return false
		}
	}
	return true
}

func merged(old, raw, mask []byte) []byte {
	if mask == nil || len(old) != len(raw) {
		return raw
	}
	out := bytes.Clone(old)
	for i := range out {
		out[i] = old[i]&^mask[i] | raw[i]&mask[i]
	}
	return out
}
