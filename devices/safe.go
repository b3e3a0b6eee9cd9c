package devices

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"busgate/config"
)

// safe is a point with a safe value.
type safe struct {
	point string
	text  string
	after time.Duration // without a command; 0: only at start
	last  time.Time     // of the newest command; zero: the safe value stands
}

func (s *safe) next() time.Time {
	if s.after <= 0 || s.last.IsZero() {
		return time.Time{}
	}
	return s.last.Add(s.after)
}

func (d *device) resetSafes(now time.Time) {
	d.safes = nil
	for i := range d.cfg.Points {
		p := &d.cfg.Points[i]
		if p.Safe != nil && p.Write {
			d.safes = append(d.safes, safe{point: p.Name, text: strings.TrimSpace(fmt.Sprint(p.Safe)), after: p.SafeFor})
		}
	}
}

// commanded restarts the time after which a point goes to its safe value.
func (d *device) commanded(point string, now time.Time) {
	for i := range d.safes {
		if d.safes[i].point == point {
			d.safes[i].last = now
		}
	}
}

// writeSafes queues the safe values of a device that came online.
func (d *device) writeSafes() {
	for i := range d.safes {
		d.queueSafe(&d.safes[i])
	}
}

func (d *device) queueSafe(s *safe) {
	s.last = time.Time{}
	j := &job{device: d.cfg.Name, point: s.point, cmd: Command{Text: s.text}, arrived: time.Now()}
	if r := d.bus.enqueue(j); r.Code != "" {
		d.bus.log.Warn("a safe value was not written", "device", d.cfg.Name, "point", s.point, "err", r.Text)
	}
}

// overdueSafes queues the safe values of points that had no command for too long.
func (d *device) overdueSafes(now time.Time) {
	for i := range d.safes {
		if t := d.safes[i].next(); !t.IsZero() && !t.After(now) && d.online {
			d.queueSafe(&d.safes[i])
		}
	}
}

// writeSafesNow writes the safe values at the end.
func (d *device) writeSafesNow(ctx context.Context) {
	for i := range d.safes {
		p := pointOf(d.cfg, d.safes[i].point)
		if !d.online || p == nil {
			continue
		}
		if err := d.writeSafeNow(ctx, p, d.safes[i].text); err != nil {
			d.bus.log.Warn("a safe value was not written", "device", d.cfg.Name, "point", p.Name, "err", err)
		}
	}
}

// writeSafeNow writes one of them. As with a command, one whose answer is missing
// is read back, and written once more when it is not there; a pulse is not.
func (d *device) writeSafeNow(ctx context.Context, p *config.Point, text string) error {
	power, err := d.bus.powerOf(ctx, d, p)
	if err != nil {
		return err
	}
	raw, mask, err := Encode(p, text, power)
	if err != nil {
		return err
	}
	item := []Item{{Point: p, Raw: raw, Mask: mask}}
	err = d.bus.field.Set(ctx, d.cfg, item)
	if err == nil || p.Pulse || !errors.Is(err, ErrNoAnswer) && !errors.Is(err, ErrBadFrame) {
		return err
	}
	if has, lost := d.bus.field.Get(ctx, d.cfg, p); lost != nil && !deviceError(lost) || lost == nil && equalMasked(has, raw, mask) {
		return lost
	}
	return d.bus.field.Set(ctx, d.cfg, item)
}
