package embeddedbroker

import (
	"time"
)

// restorer rebuilds sessions and retained messages from the store.
type restorer struct{ b *Broker }

// Session restores one session: asleep since its client left, or since now when
// the process ended under it.
func (r restorer) Session(d Session, subs []Subscription, in []uint16, out []MarkOut) error {
	b := r.b
	b.mu.Lock()
	defer b.mu.Unlock()
	s := newSession(b, d.Client, d.Consumer)
	s.user, s.version, s.expiry, s.will = d.User, d.Version, d.Expiry, d.Will
	s.nextOrd = max(d.NextOrd, 1)
	s.savedOrd = s.nextOrd
	s.sent = d.Sent
	b.sessions[s.id] = s
	now := time.Now()
	if s.left = d.Left; s.left.IsZero() {
		s.left = now
		s.dupNext = windowOf(0, b.set.Load().cfg.MaxInflight)
	}
	if s.expiry >= 0 { // 0: it ended with its connection
		since := s.left
		if !b.opts.ClockKnown() || since.After(now) {
			since = now
		}
		s.expireAt = since.Add(s.expiry)
	}
	if s.will != nil {
		s.willAt = now.Add(s.will.Delay + crashGrace)
	}
	for _, pid := range in {
		s.openLocked(pid)
	}
	for _, m := range out {
		ord := ordOf(s.nextOrd-1, m.PID)
		i := s.flights.len()
		for i > 0 && s.flights.at(i-1).ord > ord {
			i--
		}
		s.flights.insert(i, flight{ord: ord, seq: m.Seq, qos: 2, state: received})
	}
	s.inflight = s.flights.len()
	for _, v := range subs {
		_, rest, _, ok := splitShare(v.Filter)
		if !ok {
			continue
		}
		hung := &sub{Subscription: v, filter: rest, sess: s}
		s.subs[v.Filter] = hung
		b.subs.add(hung)
	}
	b.scheduleLocked(s)
	return nil
}

// Retained restores one retained message.
func (r restorer) Retained(m *Message) error {
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	if r.b.kept.room(m) {
		r.b.kept.set(m, 0, true)
	}
	return nil
}
