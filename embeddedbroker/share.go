package embeddedbroker

import "slices"

// pick chooses the member that gets the next message: in turn among those that
// are connected and have room, else those that are connected, else the others.
func (g *shareGroup) pick(topic string) *sub {
	best, rank := -1, 0
	for i := range g.members {
		at := (g.next + i) % len(g.members)
		s := g.members[at].sess
		if s.b.set.Load().acl.may(s.user, s.id, topic, false) {
			if r := s.rank(); r > rank {
				best, rank = at, r
			}
		}
	}
	if best < 0 {
		return nil
	}
	g.next = best + 1
	return g.members[best]
}

// rank is 3 with room in its window, 2 connected, 1 asleep. core.mu is held.
func (s *session) rank() int {
	if s.conn == nil {
		return 1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.q.len() == 0 && s.inflight < s.window {
		return 3
	}
	return 2
}

// reaches says whether the running plan stores a delivery for a session.
func (p *plan) reaches(s *session) bool {
	return s.consumer != 0 && slices.ContainsFunc(p.targets, func(t Target) bool { return t.Consumer == s.consumer })
}

// spare is a message for a member of a group.
type spare struct {
	group string // its key
	msg   *Message
	to    *sub // nil: whoever is next
}

// sparesLocked are the messages of groups that a volatile session leaves: what
// was not sent, and what was sent at QoS 1 and not acknowledged. What was begun
// at QoS 2 goes to nobody else [MQTT-4.8.2-5]. s.mu is held.
func (s *session) sparesLocked() (out []spare) {
	for i := range s.flights.len() {
		if f := s.flights.at(i); f.group != nil && f.qos == 1 && f.state == sent {
			out = append(out, spare{group: f.group.key, msg: f.msg})
		}
	}
	for _, q := range []*queue[item]{&s.q, &s.q0} {
		for i := range q.len() {
			if it := q.at(i); it.group != nil {
				out = append(out, spare{group: it.group.key, msg: it.msg})
			}
		}
	}
	return out
}

// redistribute gives spares to other members of their groups.
func (b *Broker) redistribute(list []spare) {
	for i := range list {
		if err := b.give(&list[i], false); err != nil {
			b.n.droppedFull.Add(1)
		}
	}
}

// give sends a spare by an entry of its own. core.mu is held.
func (b *Broker) give(sp *spare, wait bool) error {
	g := b.subs.groups[sp.group]
	if g == nil {
		return nil // the last member has left
	}
	m := sp.to
	if m == nil {
		if m = g.pick(sp.msg.Topic); m == nil {
			return nil
		}
	}
	pl := &b.plan
	pl.reset()
	want := grant{}
	want.add(m)
	if err := b.planOne(&publication{msg: sp.msg, wait: wait}, m.sess, &want, g, b.set.Load().cfg.QueueFull); err != nil {
		return err
	}
	e := Entry{Msg: sp.msg, Ops: pl.ops, Targets: pl.targets, Wait: wait || pl.exact, Part: sp.to != nil, Done: &b.rel}
	written := len(pl.targets) > 0
	if written {
		if err := b.store.Append(&e); err != nil {
			return err
		}
	}
	held := Seq(0)
	if e.Wait {
		held = e.Seq
	}
	b.handOver(&route{}, sp.msg, e.Seq, held, written)
	return nil
}

// sendCopies sends the second copies of a publication, whose first entry is
// kept: what cannot be is counted. The answer leaves when all are on disk.
func (b *Broker) sendCopies(o *origin, p *publication) (waiting bool, err error) {
	for _, sp := range slices.Clone(b.plan.copies) { // give makes plans of its own
		if b.give(&sp, p.wait) != nil {
			b.n.droppedFull.Add(1)
		}
	}
	if !p.wait || p.done == nil {
		return false, nil
	}
	e := Entry{Wait: true, Done: p.done}
	if err := b.store.Append(&e); err != nil {
		return false, err
	}
	o.last = e.Seq
	return true, nil
}
