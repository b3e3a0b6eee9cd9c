package embeddedbroker

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

// spare is a message of a group whose member has gone.
type spare struct {
	group *shareGroup
	msg   *Message
}

// sparesLocked are the messages of groups that a volatile session leaves: what
// was not sent, and what was sent at QoS 1 and not acknowledged. What was begun
// at QoS 2 goes to nobody else [MQTT-4.8.2-5]. s.mu is held.
func (s *session) sparesLocked() (out []spare) {
	for i := range s.flights.len() {
		if f := s.flights.at(i); f.group != nil && f.qos == 1 && f.state == sent {
			out = append(out, spare{f.group, f.msg})
		}
	}
	for _, q := range []*ring[item]{&s.q, &s.q0} {
		for i := range q.len() {
			if it := q.at(i); it.group != nil {
				out = append(out, spare{it.group, it.msg})
			}
		}
	}
	return out
}

// redistribute gives spares to other members of their groups.
func (b *Broker) redistribute(list []spare) {
	refuse := b.set.Load().cfg.QueueFull
	for _, sp := range list {
		m := sp.group.pick(sp.msg.Topic)
		if m == nil {
			continue
		}
		pl := &b.plan
		pl.reset()
		g := grant{}
		g.add(m)
		b.planOne(&publication{msg: sp.msg}, m.sess, &g, sp.group, refuse)
		e := Entry{Msg: sp.msg, Ops: pl.ops, Targets: pl.targets, Wait: pl.exact, Done: &b.rel}
		written := false
		if len(pl.targets) > 0 {
			if err := b.store.Append(&e); err != nil {
				b.n.droppedFull.Add(1)
				continue
			}
			written = true
		}
		wait := Seq(0)
		if e.Wait {
			wait = e.Seq
		}
		b.handOver(&route{}, sp.msg, e.Seq, wait, written)
	}
}
