package embeddedbroker

import (
	"time"

	"busgate/embeddedbroker/packet"
)

// origin is a publisher: messages of one origin keep their order. Guarded by core.mu.
type origin struct {
	conn *conn    // nil for the gateway itself and for wills
	sess *session // for no-local; nil for the gateway itself
	last Seq      // its last entry that waits for a flush
}

// publication is one message on its way into the router.
type publication struct {
	msg  *Message
	ops  []Op       // go with it: the mark of a QoS 2 id
	wait bool       // somebody waits for the flush, and refuses to go on when it cannot be kept
	done Completion // told after the flush, when wait is set and something was written
	slot *slot      // the answer, which may have to say that nobody wants it
}

// plan is what publishLocked works out; it lives in the Broker to be reused.
type plan struct {
	to      []handover
	targets []Target
	ops     []Op
	saves   []*session // whose numbers are reserved by this entry
	copies  []spare    // second copies for a session, by shared subscriptions
	exact   bool       // a delivery at QoS 2 to a persistent session
	entry   Entry
}

// handover is one delivery to a session.
type handover struct {
	sess   *session
	ord    uint64
	qos    byte
	retain bool
	stored bool
	subIDs []uint32
	group  *shareGroup
}

func (p *plan) reset() {
	clear(p.to)
	clear(p.saves)
	clear(p.ops)
	clear(p.copies)
	p.entry = Entry{}
	p.copies = p.copies[:0]
	p.to, p.targets, p.ops, p.saves, p.exact = p.to[:0], p.targets[:0], p.ops[:0], p.saves[:0], false
}

// publishLocked routes one message. waiting: done will be called; else nothing
// holds the answer back. An error means that it was refused as a whole; without
// p.wait the message goes to whoever needs no disk.
// core.mu is held.
func (b *Broker) publishLocked(o *origin, p *publication) (waiting bool, err error) {
	m := p.msg
	rt := b.subs.route(m.Topic)
	pl := &b.plan
	pl.reset()
	pl.ops = append(pl.ops, p.ops...)
	if p.wait {
		for _, l := range rt.locals {
			if l.qos > 0 && l.full() {
				return false, ErrFull
			}
		}
	}
	if err := b.planSessions(o, p, rt); err != nil {
		return false, err
	}
	for _, up := range rt.uplinks {
		if up.want == nil || up.want(m) {
			pl.targets = append(pl.targets, Target{Consumer: up.id, QoS: m.QoS, Retain: m.Retain})
		}
	}
	keep := m.Retain
	if keep && !b.kept.room(m) {
		if p.wait {
			return false, ErrFull
		}
		b.n.droppedFull.Add(1)
		keep = false
	}
	if keep && b.durable(m) {
		pl.ops = append(pl.ops, SaveRetained{})
	}
	if p.slot != nil && len(rt.sessions)+len(rt.locals)+len(rt.uplinks)+len(rt.groups) == 0 {
		p.slot.code = packet.NoMatching
	}
	e := &pl.entry
	*e = Entry{Msg: m, Ops: pl.ops, Targets: pl.targets, Done: &b.rel}
	write := len(pl.targets)+len(pl.ops) > 0
	if write {
		if e.Wait = p.wait || pl.exact; p.wait && p.done != nil && len(pl.copies) == 0 {
			e.Done, waiting = p.done, true
		}
		if err := b.store.Append(e); err != nil {
			if p.wait {
				return false, err
			}
			b.n.droppedFull.Add(1)
			e.Seq, e.Wait, write = 0, false, false
		}
	}
	wait := o.last
	if e.Wait {
		wait, o.last = e.Seq, e.Seq
		b.rel.time(e.Seq)
	}
	b.handOver(rt, m, e.Seq, wait, write)
	if keep {
		b.kept.set(m, wait, write && b.durable(m))
	}
	if len(pl.copies) > 0 {
		waiting, err = b.sendCopies(o, p)
	}
	b.endPendingLocked()
	return waiting, err
}

// durable says whether a retained message is kept on disk: what the gateway
// polls is rebuilt by polling.
func (b *Broker) durable(m *Message) bool {
	n := b.kept.find(m.Topic)
	if len(m.Payload) == 0 {
		return n != nil && n.stored
	}
	return m.Kind == KindLAN || m.Kind == KindDown || n != nil && n.stored
}

// planSessions works out the deliveries to sessions and numbers them.
func (b *Broker) planSessions(o *origin, p *publication, rt *route) error {
	refuse := b.set.Load().cfg.QueueFull
	for i := range rt.sessions {
		w := &rt.sessions[i]
		g := &w.all
		if w.sess == o.sess {
			g = &w.own
		}
		if g.ok {
			if err := b.planOne(p, w.sess, g, nil, refuse); err != nil {
				return err
			}
		}
	}
	for _, group := range rt.groups {
		if s := group.pick(rt.topic); s != nil {
			if b.plan.reaches(s.sess) { // it has a copy: this one needs an entry of its own
				b.plan.copies = append(b.plan.copies, spare{group.key, p.msg, s})
				continue
			}
			g := grant{}
			g.add(s)
			if err := b.planOne(p, s.sess, &g, group, refuse); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *Broker) planOne(p *publication, s *session, g *grant, group *shareGroup, refuse string) error {
	h := handover{sess: s, group: group, qos: min(p.msg.QoS, g.qos), retain: p.msg.Retain && g.asPub, subIDs: g.subIDs}
	if h.qos == 0 && !s.online() {
		return nil // QoS 0 is for those who are there
	}
	pl := &b.plan
	if h.stored = h.qos > 0 && s.consumer != 0; h.stored {
		if refuse != queueDropOldest && b.overQuota(s) {
			if refuse == queueRefuse && p.wait {
				return ErrFull
			}
			if refuse == queueEndSession && !s.online() {
				b.n.endedFull.Add(1)
				b.log.Warn("session is over its quota and ends", "client", s.id)
				b.ending = append(b.ending, s)
			}
			return nil
		}
		if s.nextOrd >= s.savedOrd {
			pl.saves = append(pl.saves, s)
			pl.ops = append(pl.ops, s.durableLocked(ordReserve))
		}
	}
	if h.qos > 0 {
		h.ord = s.number()
	}
	if h.stored {
		pl.exact = pl.exact || h.qos == 2
		pl.targets = append(pl.targets, Target{Consumer: s.consumer, Ord: h.ord, QoS: h.qos, Retain: h.retain, Shared: group != nil, SubIDs: h.subIDs})
	}
	pl.to = append(pl.to, h)
	return nil
}

// overQuota says whether a session may keep nothing more.
func (b *Broker) overQuota(s *session) bool {
	o := b.set.Load().quota()
	u := b.store.Usage(s.consumer)
	return o.MaxMessages > 0 && u.Messages >= o.MaxMessages || o.MaxBytes > 0 && u.Bytes >= o.MaxBytes
}

// handOver queues the message for everybody who is connected. written is false
// when the store did not take it.
func (b *Broker) handOver(rt *route, m *Message, seq, wait Seq, written bool) {
	if wait <= b.rel.released() {
		wait = 0
	}
	pl := &b.plan
	if written {
		for _, s := range pl.saves {
			s.savedOrd = s.nextOrd + ordReserve - 1
		}
	}
	for i := range pl.to {
		h := &pl.to[i]
		if h.stored && !written {
			continue
		}
		it := item{msg: m, wait: wait, ord: h.ord, qos: h.qos, retain: h.retain, subIDs: h.subIDs, group: h.group}
		if h.stored {
			it.seq = seq
		}
		h.sess.push(it)
	}
	for _, l := range rt.locals {
		l.push(m, wait)
	}
}

// wall is now while the clock means something.
func (b *Broker) wall(now time.Time) time.Time {
	if b.opts.ClockKnown() {
		return now.UTC()
	}
	return time.Time{}
}

// endPendingLocked ends the sessions that publishing found over their quota.
func (b *Broker) endPendingLocked() {
	for len(b.ending) > 0 {
		s := b.ending[len(b.ending)-1]
		b.ending = b.ending[:len(b.ending)-1]
		if s.conn == nil && !s.ended() {
			b.publishWillLocked(s)
			b.endLocked(s)
		}
	}
}
