package uplink

import "time"

// bucket lets rate units pass in a second, with a burst of one second or of one
// packet. A rate of 0 lets everything pass.
type bucket struct {
	rate  float64
	level float64
	at    time.Time
}

// fill brings the level up to now.
func (b *bucket) fill(now time.Time) {
	if b.at.IsZero() {
		b.level = b.rate
	} else {
		b.level = min(b.rate, b.level+b.rate*now.Sub(b.at).Seconds())
	}
	b.at = now
}

// wait is how long n units must wait; 0 = they may pass now. A packet larger
// than the burst passes a full bucket and leaves a debt.
func (b *bucket) wait(n float64) time.Duration {
	if b.rate <= 0 || b.level >= min(n, b.rate) {
		return 0
	}
	return time.Duration((min(n, b.rate) - b.level) / b.rate * float64(time.Second))
}

// gate holds records back to keep the rates.
type gate struct {
	msgs, bytes bucket
	timer       *time.Timer // when it opens again; nil until it was shut once
	shut        stopwatch
}

func newGate(set *settings) gate {
	return gate{msgs: bucket{rate: float64(set.rateMsgs)}, bytes: bucket{rate: float64(set.rateBytes)}}
}

// pass takes one packet of size bytes through, or tells that it must wait; wake
// fires when it need not any more.
func (g *gate) pass(size int64, now time.Time) bool {
	g.msgs.fill(now)
	g.bytes.fill(now)
	d := max(g.msgs.wait(1), g.bytes.wait(float64(size)))
	g.shut.run(d > 0, now)
	if d > 0 {
		if g.timer == nil {
			g.timer = time.NewTimer(d)
		} else {
			g.timer.Reset(d)
		}
		return false
	}
	g.msgs.level--
	g.bytes.level -= float64(size)
	return true
}

// wake fires when the gate opens; nil while it is open.
func (g *gate) wake() <-chan time.Time {
	if g.timer == nil {
		return nil
	}
	return g.timer.C
}

// stopwatch adds up the time in which something was so.
type stopwatch struct {
	since time.Time // zero: it is not so now
	total time.Duration
}

// run notes whether it is so now.
func (s *stopwatch) run(on bool, now time.Time) {
	if !s.since.IsZero() {
		s.total += now.Sub(s.since)
		s.since = time.Time{}
	}
	if on {
		s.since = now
	}
}

// sum is the time so far.
func (s *stopwatch) sum(now time.Time) time.Duration {
	if s.since.IsZero() {
		return s.total
	}
	return s.total + now.Sub(s.since)
}
