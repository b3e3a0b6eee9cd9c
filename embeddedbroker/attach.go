package embeddedbroker

import (
	"errors"
	"time"

	"busgate/embeddedbroker/packet"
)

var errStopping = errors.New("busgate stops")

// sessionName is the name of a session's consumer in the store.
func sessionName(client string) string { return "session/" + client }

// attach gives c the session of its client id, taking it from an older
// connection, and returns when the store has it. The caller holds the id's lock.
func (b *Broker) attach(c *conn, p *packet.Connect, expiry time.Duration) (present bool, err error) {
	persistent := expiry != 0
	if p.Version != packet.V5 {
		persistent = !p.CleanStart
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		return false, errStopping
	}
	if persistent && b.store.Busy() {
		return false, ErrBusy
	}
	s := b.sessions[c.id]
	if s != nil {
		expired := !s.expireAt.IsZero() && !s.expireAt.After(time.Now())
		b.supersedeLocked(s, p.CleanStart || expired)
		if p.CleanStart || s.consumer == 0 || expired { // [MQTT-3.1.2-4]
			b.endLocked(s)
			s = nil
		}
	}
	if present = s != nil; !present {
		if s, err = b.beginLocked(c.id, persistent); err != nil {
			return false, err
		}
	}
	if present && s.user != c.user {
		b.subs.forget() // its rights are those of the new user
	}
	s.user, s.version, s.expiry, s.will = c.user, c.version, expiry, willOf(p)
	s.left, s.willAt, s.expireAt = time.Time{}, time.Time{}, time.Time{}
	s.mu.Lock()
	s.attachLocked(c)
	s.mu.Unlock()
	c.sess = s
	c.origin = origin{conn: c, sess: s}
	if s.consumer == 0 {
		return present, nil
	}
	return present, b.saveLocked(s)
}

// beginLocked makes the session of an id that has none. core.mu is released while
// it waits for what an older one left, and for the store.
func (b *Broker) beginLocked(id string, persistent bool) (*session, error) {
	b.mu.Unlock()
	consumer, err := b.register(id, persistent)
	b.mu.Lock()
	if err != nil {
		return nil, err
	}
	s := newSession(b, id, consumer)
	b.sessions[id] = s
	return s, nil
}

// register makes the consumer of a persistent session; a volatile one has none.
func (b *Broker) register(id string, persistent bool) (ConsumerID, error) {
	if err := b.inherited(id); err != nil || !persistent {
		return 0, err
	}
	return b.store.Register(sessionName(id), b.set.Load().sessionOptions())
}

// saveLocked writes the session and waits for the flush with core.mu released.
func (b *Broker) saveLocked(s *session) error {
	w := &waiter{b: b, done: make(chan error, 1)}
	save := s.durableLocked(ordReserve)
	e := Entry{Ops: []Op{save}, Wait: true, Done: w}
	if err := b.store.Append(&e); err != nil {
		return err
	}
	s.savedOrd = save.Session.NextOrd
	b.mu.Unlock()
	defer b.mu.Lock()
	select {
	case err := <-w.done:
		return err
	case <-b.stop:
		return errStopping
	}
}

// waiter is a Completion that somebody sleeps on.
type waiter struct {
	b    *Broker
	done chan error // room for one
}

func (w *waiter) Committed(seq Seq, err error) {
	w.done <- err
	w.b.rel.advance(seq)
}

// supersedeLocked takes a session from its connection, which is told so. Its
// will is published unless the session goes on.
func (b *Broker) supersedeLocked(s *session, clean bool) {
	if old := s.conn; old != nil {
		old.kick(&ending{code: packet.TakenOver, text: "another connection took its client id"}) // [MQTT-3.1.4-3]
		if s.consumer != 0 {
			s.mu.Lock()
			s.detachLocked()
			s.mu.Unlock()
		}
	}
	if clean || s.consumer == 0 {
		b.publishWillLocked(s)
	}
	s.will = nil
}

// endLocked ends a session: its subscriptions, its queue and its rows go.
func (b *Broker) endLocked(s *session) {
	if s.ended() {
		return
	}
	shares := s.shares()
	for _, v := range s.subs {
		b.subs.remove(v)
	}
	clear(s.subs)
	delete(b.sessions, s.id)
	s.mu.Lock()
	var left []spare
	if s.consumer == 0 {
		left = s.sparesLocked()
	}
	s.detachLocked()
	s.mu.Unlock()
	if s.consumer == 0 {
		b.redistribute(left)
		return
	}
	if len(shares) > 0 && b.store.Usage(s.consumer).Messages > 0 {
		b.inheritLocked(s, shares)
		return
	}
	b.dropLocked(s)
}

// dropLocked takes a session that ended out of the store.
func (b *Broker) dropLocked(s *session) {
	e := Entry{Ops: []Op{DropSession{Client: s.id, Consumer: s.consumer}}, Done: &b.rel}
	if err := b.store.Append(&e); err != nil {
		b.log.Warn("remove session from store", "client", s.id, "err", err)
	}
}

// ended says whether the session is no longer that of its id. core.mu is held.
func (s *session) ended() bool { return s.b.sessions[s.id] != s }

// detach takes the session from a connection that ended.
func (b *Broker) detach(c *conn, e *ending) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := c.sess
	if s.conn != c {
		return // a newer connection has it
	}
	over := s.consumer == 0 || s.expiry == 0
	if !over {
		s.mu.Lock()
		s.detachLocked()
		s.mu.Unlock()
	}
	if e.clean {
		s.will = nil // [MQTT-3.1.2-10]
	}
	now := time.Now()
	if s.will != nil {
		if over || s.will.Delay <= 0 || b.stopped {
			b.publishWillLocked(s)
		} else {
			s.willAt = now.Add(s.will.Delay)
		}
	}
	if over {
		b.endLocked(s)
		return
	}
	s.left = now
	if s.expiry > 0 {
		s.expireAt = now.Add(s.expiry)
	}
	b.noteLocked(s)
	b.scheduleLocked(s)
}

// noteLocked writes a sleeping session with the next commit. core.mu is held.
func (b *Broker) noteLocked(s *session) {
	save := s.durableLocked(0)
	e := Entry{Ops: []Op{save}, Done: &b.rel}
	if err := b.store.Append(&e); err != nil {
		b.log.Warn("write session to store", "client", s.id, "err", err)
		return
	}
	s.savedOrd = save.Session.NextOrd
}

// owed appends a PUBREL for every delivery that the client has received and not
// completed, in order.
func (s *session) owed(dst []byte, version byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.flights.len() {
		if f := s.flights.at(i); f.state == received {
			a := packet.Ack{Type: packet.PUBREL, PID: pidOf(f.ord)}
			dst = a.Append(dst, version)
		}
	}
	return dst
}
