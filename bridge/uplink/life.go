package uplink

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"busgate/config/report"
)

const (
	lossEvery  = time.Minute      // between two looks for losses to be told
	lazyBytes  = 64 << 10         // start = "lazy": connect when so much waits
	lazyAge    = 10 * time.Minute // ... or for so long
	lazyIdle   = time.Minute      // ... and disconnect when nothing did for so long
	clockRetry = time.Minute
)

// firstDelay spreads the gateways of a site over time.
func (l *Link) firstDelay() time.Duration {
	if l.o.FirstDelay <= 0 {
		return 0
	}
	return rand.N(l.o.FirstDelay)
}

// rest waits between two connections. Changed credentials and a changed
// configuration end the wait, but two CONNECTs are never closer than
// timing.retry. It returns false when ctx ended.
func (l *Link) rest(ctx context.Context, d time.Duration) bool {
	l.nextTry = time.Now().Add(d)
	if d > 0 {
		l.publishStatus()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	tick := time.NewTicker(max(l.timing.tick, time.Second))
	defer tick.Stop()
	soon := func() {
		l.nextTry = l.lastDial.Add(l.timing.retry)
		t.Reset(time.Until(l.nextTry))
	}
	for due := false; ; {
		if due && l.worthDialing() {
			l.nextTry = time.Time{}
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-t.C:
			due = true
		case <-l.kick:
			l.update(nil)
			soon()
		case m := <-l.down.done:
			l.arrived(nil, m)
		case now := <-tick.C:
			l.publishStatus()
			if l.state.Phase == Refused && l.files.changed(now) {
				soon()
			}
			if _, known := l.o.Clock(); l.state.Phase == WaitingClock && known {
				soon()
			}
		}
	}
}

// worthDialing tells whether a lazy link has enough to say; others always have.
func (l *Link) worthDialing() bool {
	if l.set.cfg.Start != "lazy" || l.o.Usage == nil {
		return true
	}
	n, bytes, oldest := l.o.Usage()
	return bytes >= lazyBytes || n > 0 && oldest >= lazyAge
}

// failed says why a connection ended or did not come about, and for how long to
// wait before the next.
func (l *Link) failed(err error) time.Duration {
	now := time.Now()
	if errors.Is(err, errStopped) { // we ended it for another one
		l.enter(Idle, "")
		return max(0, l.lastDial.Add(l.timing.retry).Sub(now))
	}
	d := l.diagnose(err, now)
	var wait time.Duration
	switch d.phase {
	case Refused:
		wait = l.back.refused()
	case WaitingClock:
		wait = clockRetry
	default:
		wait = l.back.lost(l.timing.retry)
	}
	l.nextTry = now.Add(wait)
	rep := report.Report{Err: d.word, Level: d.level, Who: l.who, Text: d.text(wait)}
	l.stats.lastError, l.stats.lastErrAt = rep.Text, now
	l.trouble.add(d.word, now)
	l.ladder.Fail(rep, d.attrs(l.name, err)...)
	l.enter(d.phase, rep.Text)
	return wait
}

// assess sets the phase of a connection by what waits and what was acknowledged.
func (l *Link) assess(e *epoch, now time.Time) {
	if l.telling == 0 && now.Sub(l.looked) >= lossEvery {
		l.looked = now
		l.report(e)
	}
	waiting := l.waiting()
	switch {
	case waiting > 0:
		e.emptySince = time.Time{}
	case e.emptySince.IsZero():
		e.emptySince = now
		l.forgetEmptied()
	}
	p := l.phaseOf(e, waiting, now)
	if p == Online || p == Draining && e.progressed && now.Sub(e.at) >= time.Minute {
		l.recovered(e, waiting, now)
	}
	if why := l.state.Why; e.progressed || p == Online {
		l.enter(p, "")
	} else {
		l.enter(p, why)
	}
	if l.set.cfg.Start == "lazy" && e.stop.IsZero() && !e.emptySince.IsZero() && now.Sub(e.emptySince) >= lazyIdle {
		e.stop, e.why = now, "lazy"
	}
}

// phaseOf is the phase of a connection: online needs acknowledged progress, or
// nothing to do.
func (l *Link) phaseOf(e *epoch, waiting int, now time.Time) Phase {
	p := l.state.Phase
	quiet := !e.emptySince.IsZero() && len(l.s.control)+len(l.s.queue) == 0
	switch {
	case !e.stop.IsZero() || !l.s.resumed:
		return p
	case l.month.exhausted():
		return Paused
	case p == Online && waiting <= 10*l.set.window:
		return Online
	case waiting > l.set.window:
		return Draining
	case p == Resuming && (quiet || e.progressed), quiet && now.Sub(e.emptySince) >= l.timing.settle:
		return Online
	case p == Paused:
		return Draining
	}
	return p
}
