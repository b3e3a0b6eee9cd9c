package devices

import (
	"context"
	"fmt"
	"strings"
	"time"
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

// writeSafesNow writes the safe values at the end, each once.
func (d *device) writeSafesNow(ctx context.Context) {
	for i := range d.safes {
		p := pointOf(d.cfg, d.safes[i].point)
		if !d.online || p == nil {
			continue
		}
		raw, mask, err := Encode(p, d.safes[i].text, 0)
		if err == nil {
			err = d.bus.field.Set(ctx, d.cfg, []Item{{Point: p, Raw: raw, Mask: mask}})
		}
		if err != nil {
			d.bus.log.Warn("a safe value was not written", "device", d.cfg.Name, "point", p.Name, "err", err)
		}
	}
}
