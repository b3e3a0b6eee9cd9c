package embeddedbroker

import (
	"errors"
	"slices"
	"time"
)

// estateRetry is how long the messages of a session that ended wait when the
// store takes no more.
const estateRetry = 100 * time.Millisecond

// shares are the keys of the groups that a session is a member of, in order.
// core.mu is held.
func (s *session) shares() (keys []string) {
	for key, v := range s.subs {
		if v.group != nil {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// inheritLocked gives what a persistent session has by shared subscriptions to
// the other members, and then takes the session out of the store. It may be
// much: it is done beside the traffic, a window at a time, and goes on after a
// restart, because the session is in the store until the end.
func (b *Broker) inheritLocked(s *session, shares []string) {
	if b.stopped {
		return
	}
	done := make(chan struct{})
	b.estates[s.id] = done
	b.work.Go(func() {
		whole := b.inherit(s, shares)
		b.mu.Lock()
		defer b.mu.Unlock()
		if whole {
			b.dropLocked(s)
		}
		delete(b.estates, s.id)
		close(done)
	})
}

// inherited waits until nothing of an ended session of that id is left.
func (b *Broker) inherited(id string) error {
	b.mu.Lock()
	done := b.estates[id]
	b.mu.Unlock()
	if done == nil {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-b.stop:
		return errStopping
	}
}

// inherit goes through what waits for s; false: the broker stops.
func (b *Broker) inherit(s *session, shares []string) bool {
	s.mu.Lock() // nobody changes it any more
	at, last := s.floor, s.lastSeq
	s.mu.Unlock()
	w := Window{MaxMessages: ramMessages, MaxBytes: ramBytes}
	for {
		flushed := b.rel.released() >= last
		if err := b.store.Read(s.consumer, at, &w); err != nil {
			b.log.Error("read session from store: its messages go to nobody else", "client", s.id, "err", err)
			return true
		}
		if len(w.Deliveries) == 0 {
			if flushed {
				return true
			}
			if !b.rest() {
				return false
			}
			continue
		}
		for i := range w.Deliveries {
			if d := &w.Deliveries[i]; d.Shared && !s.begun(d) && !b.bequeath(shares, d.Msg) {
				return false
			}
		}
		at = w.Next
		b.store.Settle(s.consumer, at, nil)
	}
}

// begun says whether a delivery at QoS 2 was, or may have been before a crash,
// written to the client: it goes to nobody else [MQTT-4.8.2-5].
func (s *session) begun(d *Delivery) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	maybe := s.dupNext > 0
	if maybe {
		s.dupNext--
	}
	return d.QoS == 2 && (maybe || d.Seq <= s.sent || s.owedLocked(d.Seq, d.Ord))
}

// bequeath gives one message to another member of the group that it came by;
// false: the broker stops.
func (b *Broker) bequeath(shares []string, m *Message) bool {
	i := slices.IndexFunc(shares, func(key string) bool {
		_, filter, _, ok := splitShare(key)
		return ok && MatchTopic(filter, m.Topic)
	})
	if i < 0 {
		return true // unsubscribed since
	}
	for {
		b.mu.Lock()
		err := b.give(&spare{group: shares[i], msg: m}, false)
		b.mu.Unlock()
		switch {
		case err == nil:
			return true
		case !errors.Is(err, ErrBusy):
			b.n.droppedFull.Add(1)
			return true
		case !b.rest():
			return false
		}
	}
}

// rest waits a little; false: the broker stops.
func (b *Broker) rest() bool {
	t := time.NewTimer(estateRetry)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-b.stop:
		return false
	}
}
