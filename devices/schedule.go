package devices

import (
	"context"
	"errors"
	"time"
)

// pick is the group with the earliest deadline among those that are due; a
// refresh comes before. A group that would have to listen out a late answer
// lets others go first; blocked is how long to sleep when only such are due.
func (b *bus) pick(now time.Time) (g *group, blocked time.Duration) {
	var skip map[*group]bool
	for {
		best := b.earliest(now, skip)
		if best == nil {
			return nil, blocked
		}
		wait := b.field.Wait(&best.Group)
		if wait <= 0 {
			return best, 0
		}
		if skip == nil {
			skip, blocked = map[*group]bool{}, blockedSleep
		}
		skip[best] = true
		blocked = min(blocked, wait)
	}
}

func (b *bus) earliest(now time.Time, skip map[*group]bool) *group {
	var best *group
	urgent := func(g *group) bool { return g.urgent && g != b.again }
	for _, d := range b.devs {
		if d.resting {
			continue
		}
		for _, g := range d.groups {
			if !g.urgent && g.due.After(now) || skip[g] {
				continue
			}
			switch {
			case best == nil || urgent(g) && !urgent(best):
				best = g
			case urgent(g) == urgent(best) && g.deadline(b.load.stretch).Before(best.deadline(b.load.stretch)):
				best = g
			}
		}
	}
	return best
}

// accrue saves up bus time for probes.
func (b *bus) accrue(now time.Time) {
	b.allowed = min(b.allowed+time.Duration(probeShare*float64(now.Sub(b.accrued))), max(probeSaved, 2*b.cfg.Timeout+time.Second))
	b.lendable = min(b.lendable+time.Duration(guestShare*float64(now.Sub(b.accrued))), guestSaved)
	b.accrued = now
}

// wakeHeard ends the quarantine of devices that were heard, be it late.
func (b *bus) wakeHeard(now time.Time) {
	for _, d := range b.devs {
		if d.resting && b.field.Unit(d.cfg).Heard.After(d.since) {
			d.wakeUp(now)
		}
	}
}

// nextProbe is the resting device whose probe is due longest, if there is bus time for it.
func (b *bus) nextProbe(now time.Time) *device {
	var best *device
	for _, d := range b.devs {
		if d.resting && !d.probeAt.After(now) && (best == nil || d.probeAt.Before(best.probeAt)) {
			best = d
		}
	}
	if best == nil || b.field.ProbeTime(best.cfg) > b.allowed {
		return nil
	}
	return best
}

func (b *bus) probe(ctx context.Context, d *device) {
	start := time.Now()
	err := b.field.Probe(ctx, d.cfg)
	b.allowed -= time.Since(start)
	b.load.other += time.Since(start)
	if err != nil && !deviceError(err) {
		b.failIf(ctx, err)
		return
	}
	if err != nil {
		b.mayComeLate(d)
	}
	d.probed(ctx, err)
}

// deviceError says that only the device failed, not the bus.
func deviceError(err error) bool {
	_, refused := errors.AsType[*Exception](err)
	return refused || errors.Is(err, ErrNoAnswer) || errors.Is(err, ErrBadFrame)
}

// nextEvent is when there may be something to do. Turns that are due now are
// blocked for so long.
func (b *bus) nextEvent(now time.Time, blocked time.Duration) time.Time {
	next := b.load.end
	earlier := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	for _, d := range b.devs {
		if d.resting {
			if lack := b.field.ProbeTime(d.cfg) - b.allowed; !d.probeAt.After(now) && lack > 0 {
				earlier(now.Add(time.Duration(float64(lack)/probeShare) + time.Millisecond))
			} else {
				earlier(d.probeAt)
			}
			continue
		}
		for _, g := range d.groups {
			if g.due.After(now) && !g.urgent {
				earlier(g.due)
			} else {
				earlier(now.Add(max(blocked, time.Millisecond)))
			}
		}
		for i := range d.safes {
			if t := d.safes[i].next(); !t.IsZero() {
				earlier(t)
			}
		}
	}
	if t := b.nextJob(); !t.IsZero() {
		earlier(t)
	}
	if t := b.opened.Add(silentAfter); b.cfg.Serial != "" && t.After(now) && b.noneOnline() {
		earlier(t)
	}
	if t := b.opened.Add(provenAfter); b.problem.Err != "" && t.After(now) {
		earlier(t)
	}
	return next
}

// sleep waits until then, or until somebody pokes the bus.
func (b *bus) sleep(ctx context.Context, until time.Time) {
	t := time.NewTimer(max(time.Until(until), 0))
	defer t.Stop()
	select {
	case <-t.C:
	case <-b.wake:
	case <-ctx.Done():
	}
}
