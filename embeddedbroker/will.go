package embeddedbroker

import (
	"container/heap"
	"context"
	"time"

	"busgate/embeddedbroker/packet"
)

// crashGrace is how long a stored will waits after a start for its client to
// come back, beside its own delay.
const crashGrace = 60 * time.Second

// willOf makes the will of a CONNECT; all properties but the delay travel on.
func willOf(p *packet.Connect) *Will {
	if p.Will == nil {
		return nil
	}
	w := &Will{Msg: Message{Topic: p.Will.Topic, Payload: append([]byte{}, p.Will.Payload...), QoS: p.Will.QoS,
		Retain: p.Will.Retain, From: p.ClientID}}
	delay, _ := p.Will.Props.Uint(packet.WillDelay)
	w.Delay = time.Duration(delay) * time.Second
	if expiry, ok := p.Will.Props.Uint(packet.MessageExpiry); ok {
		w.Lifetime = time.Duration(expiry) * time.Second
		w.Expires = true
	}
	w.Msg.Props = p.Will.Props.Without(packet.WillDelay, packet.MessageExpiry)
	return w
}

// publishWillLocked publishes the will of a session, if it has one. core.mu is held.
func (b *Broker) publishWillLocked(s *session) {
	w := s.will
	if w == nil {
		return
	}
	s.will, s.willAt = nil, time.Time{}
	set := b.set.Load()
	if !set.acl.may(s.user, s.id, w.Msg.Topic, true) || b.reserved(w.Msg.Topic) {
		b.n.refusedACL.Add(1)
		return
	}
	m := w.Msg
	now := time.Now()
	m.Wall = b.wall(now)
	if w.Expires {
		m.Expires = now.Add(w.Lifetime)
	}
	if m.Retain && !set.cfg.Retain {
		m.Retain = false
	}
	o := origin{sess: s}
	if _, err := b.publishLocked(&o, &publication{msg: &m}); err != nil {
		b.log.Warn("will is lost", "client", s.id, "topic", m.Topic, "err", err)
	}
}

// deadline is when something of a session is due.
type deadline struct {
	at time.Time
	s  *session
}

type deadlineHeap []deadline

func (h deadlineHeap) Len() int           { return len(h) }
func (h deadlineHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h deadlineHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *deadlineHeap) Push(x any)        { *h = append(*h, x.(deadline)) }
func (h *deadlineHeap) Pop() any {
	old := *h
	v := old[len(old)-1]
	old[len(old)-1] = deadline{}
	*h = old[:len(old)-1]
	return v
}

// scheduleLocked arms the timers for the next thing that is due for s.
func (b *Broker) scheduleLocked(s *session) {
	at := s.expireAt
	if !s.willAt.IsZero() && (at.IsZero() || s.willAt.Before(at)) {
		at = s.willAt
	}
	if at.IsZero() {
		return
	}
	heap.Push(&b.deadlines, deadline{at, s})
	if len(b.deadlines) > 4*len(b.sessions)+64 {
		b.compactLocked()
	}
	select {
	case b.timing <- struct{}{}:
	default:
	}
}

// compactLocked drops deadlines that clients have made pointless by coming back.
func (b *Broker) compactLocked() {
	kept := b.deadlines[:0]
	for _, d := range b.deadlines {
		if d.s.conn == nil && !d.s.ended() && (d.at.Equal(d.s.expireAt) || d.at.Equal(d.s.willAt)) {
			kept = append(kept, d)
		}
	}
	clear(b.deadlines[len(kept):])
	b.deadlines = kept
	heap.Init(&b.deadlines)
}

// runTimers publishes wills, ends sessions and writes $SYS until ctx ends.
func (b *Broker) runTimers(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	sys := newSysWriter(b)
	look := time.Now().Add(lookInterval)
	for {
		now := time.Now()
		next := b.expireDue(now)
		if !now.Before(look) {
			b.watchUsers()
			b.watchQuotas(now)
			look = now.Add(lookInterval)
		}
		if next.IsZero() || look.Before(next) {
			next = look
		}
		if at := sys.run(now); !at.IsZero() && at.Before(next) {
			next = at
		}
		timer.Reset(max(time.Until(next), 0))
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-b.timing:
		}
	}
}

// expireDue does what is due and says when to look again.
func (b *Broker) expireDue(now time.Time) (next time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.deadlines) > 0 {
		if at := b.deadlines[0].at; at.After(now) {
			return at
		}
		s := heap.Pop(&b.deadlines).(deadline).s
		if s.conn != nil || s.ended() {
			continue
		}
		expired, had := !s.expireAt.IsZero() && !s.expireAt.After(now), s.will != nil
		if expired || !s.willAt.IsZero() && !s.willAt.After(now) {
			b.publishWillLocked(s) // at the latest when the session ends
		}
		if expired {
			b.n.expiredSessions.Add(1)
			b.log.Info("session expired", "client", s.id, "left", s.left)
			b.endLocked(s)
			continue
		}
		if had && s.will == nil {
			b.noteLocked(s) // [MQTT-3.1.2-10]
		}
		b.scheduleLocked(s)
	}
	return time.Time{}
}
