package buffer

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Bounds of the small tables.
const (
	maxSessions      = 65536
	maxSubscriptions = 1 << 20
	maxFacts         = 20000
	maxFactBytes     = 4 << 20

	subShift     = 20
	inboundShift = 16
)

// tables maps the names of the small tables to their rows. Guarded by Store.mu.
type tables struct {
	sessions map[string]*sessionRow
	nextID   int64 // of sessions
	subs     int

	retained      map[string]sized
	retainedBytes int64
	nextRetained  int64

	facts     map[string]sized
	factOrder []string // oldest first
	factBytes int64
	nextFact  int64

	lost map[string]bool // rows that a damaged file took and nobody wrote since
}

type sessionRow struct {
	id   int64
	subs map[string]int64 // filter -> number below the session's id
	next int64
}

type sized struct{ id, size int64 }

func newTables() tables {
	return tables{sessions: map[string]*sessionRow{}, retained: map[string]sized{}, facts: map[string]sized{},
		nextID: 1, nextRetained: 1, nextFact: 1}
}

// admit refuses changes that would break a bound that rejects.
func (t *tables) admit(cs []Change, l Limits) error {
	for _, c := range cs {
		switch c := c.(type) {
		case Retained:
			old, replaces := t.retained[c.Topic]
			if c.Gone {
				continue
			}
			grown := int64(len(c.Topic)+len(c.Data)+len(c.Payload)) - old.size
			if !replaces && len(t.retained) >= l.MaxRetained {
				return fmt.Errorf("%w: %d retained topics", ErrFull, l.MaxRetained)
			}
			if grown > 0 && t.retainedBytes+grown > l.MaxRetainedBytes {
				return fmt.Errorf("%w: %d MiB of retained messages", ErrFull, l.MaxRetainedBytes>>20)
			}
		case Session:
			if t.sessions[c.Client] == nil && !c.Gone && len(t.sessions) >= maxSessions {
				return fmt.Errorf("%w: %d sessions", ErrFull, maxSessions)
			}
		case Subscription:
			if !c.Gone && t.subs >= maxSubscriptions {
				return fmt.Errorf("%w: %d subscriptions", ErrFull, maxSubscriptions)
			}
		}
	}
	return nil
}

// lostKey names the row of a change among those of all tables.
func lostKey(c Change) string {
	switch c := c.(type) {
	case Session:
		return "session " + c.Client
	case Subscription:
		return "subscription " + c.Client + "\x00" + c.Filter
	case Retained:
		return "retained " + c.Topic
	case Fact:
		return "fact " + c.Key
	}
	return ""
}

// lose notes that the file is gone: all rows but those of ops, which are still
// to be written.
func (t *tables) lose(ops []op) {
	t.lost = map[string]bool{}
	ids := map[int64]string{}
	for client, ses := range t.sessions {
		t.lost[lostKey(Session{Client: client})] = true
		ids[ses.id] = client
		for filter := range ses.subs {
			t.lost[lostKey(Subscription{Client: client, Filter: filter})] = true
		}
	}
	for topic := range t.retained {
		t.lost[lostKey(Retained{Topic: topic})] = true
	}
	for key := range t.facts {
		t.lost[lostKey(Fact{Key: key})] = true
	}
	for _, o := range ops {
		switch o.query {
		case sqlSession:
			delete(t.lost, lostKey(Session{Client: o.args[1].(string)}))
		case sqlSubscribe:
			delete(t.lost, lostKey(Subscription{Client: ids[o.args[1].(int64)], Filter: o.args[2].(string)}))
		case sqlRetain:
			delete(t.lost, lostKey(Retained{Topic: o.args[1].(string)}))
		case sqlFact:
			delete(t.lost, lostKey(Fact{Key: o.args[1].(string)}))
		}
	}
}

// rescuedLocked says whether a row found in a damaged file is still wanted.
func (t *tables) rescuedLocked(c Change) bool {
	if t.lost[lostKey(c)] {
		return true
	}
	known := false
	switch c := c.(type) {
	case Session:
		known = t.sessions[c.Client] != nil
	case Subscription:
		ses := t.sessions[c.Client]
		known = ses == nil
		if ses != nil {
			_, known = ses.subs[c.Filter]
		}
	case Retained:
		_, known = t.retained[c.Topic]
	case Fact:
		_, known = t.facts[c.Key]
	}
	return !known && t.lost == nil
}

// changeLocked applies a change to RAM and queues its statement.
func (s *Store) changeLocked(c Change) {
	t, b := &s.tables, s.batch
	if t.lost != nil {
		delete(t.lost, lostKey(c))
	}
	switch c := c.(type) {
	case Session:
		if c.Gone {
			t.dropSession(b, c.Client)
			return
		}
		ses := t.sessions[c.Client]
		if ses == nil {
			ses = t.newSession(c.Client)
		}
		b.do(sqlSession, ses.id, c.Client, bytes.Clone(c.Data))
	case Subscription:
		t.subscribe(b, c)
	case Inbound:
		if ses := t.sessions[c.Client]; c.Gone && ses != nil {
			b.do("DELETE FROM inbound WHERE id=?", ses.id<<inboundShift|int64(c.ID))
		} else if !c.Gone {
			b.do("REPLACE INTO inbound(id) VALUES(?)", t.session(b, c.Client).id<<inboundShift|int64(c.ID))
		}
	case Retained:
		t.retain(b, c)
	case Fact:
		t.learn(b, c)
	case Released:
		if o := s.byIDLocked(c.Consumer); o != nil {
			o.markLocked(c.Seq, stateReleased, c.Tag)
			b.save[o] = true
		}
	case rescued:
		b.do(sqlNoMeta, metaRescue)
	case Drop:
		if o := s.byIDLocked(c.Consumer); o != nil {
			s.forgetLocked(o)
		}
	}
}

// session finds the row of a session; one that is unknown is created without data.
func (t *tables) session(b *batch, client string) *sessionRow {
	ses := t.sessions[client]
	if ses == nil {
		ses = t.newSession(client)
		b.do(sqlSession, ses.id, client, []byte{})
	}
	return ses
}

func (t *tables) newSession(client string) *sessionRow {
	ses := &sessionRow{id: t.nextID, subs: map[string]int64{}}
	t.nextID++
	t.sessions[client] = ses
	return ses
}

func (t *tables) dropSession(b *batch, client string) {
	ses := t.sessions[client]
	if ses == nil {
		return
	}
	delete(t.sessions, client)
	t.subs -= len(ses.subs)
	b.do("DELETE FROM session WHERE id=?", ses.id)
	b.do("DELETE FROM subscription WHERE id BETWEEN ? AND ?", ses.id<<subShift, (ses.id+1)<<subShift-1)
	b.do("DELETE FROM inbound WHERE id BETWEEN ? AND ?", ses.id<<inboundShift, (ses.id+1)<<inboundShift-1)
}

func (t *tables) subscribe(b *batch, c Subscription) {
	if c.Gone && t.sessions[c.Client] == nil {
		return
	}
	ses := t.session(b, c.Client)
	n, known := ses.subs[c.Filter]
	switch {
	case c.Gone && !known:
		return
	case c.Gone:
		delete(ses.subs, c.Filter)
		t.subs--
		b.do("DELETE FROM subscription WHERE id=?", ses.id<<subShift|n)
		return
	case !known:
		n = ses.free()
		ses.subs[c.Filter] = n
		t.subs++
	}
	b.do(sqlSubscribe, ses.id<<subShift|n, ses.id, c.Filter, bytes.Clone(c.Data))
}

// free is a number that no subscription of the session has.
func (ses *sessionRow) free() int64 {
	if ses.next < 1<<subShift {
		ses.next++
		return ses.next - 1
	}
	used := slices.Sorted(maps.Values(ses.subs)) // a million subscriptions later
	for i, n := range used {
		if n != int64(i) {
			return int64(i)
		}
	}
	return int64(len(used))
}

// retain keeps or removes a retained message. Of several for one topic in one
// batch only the last is written.
func (t *tables) retain(b *batch, c Retained) {
	old, known := t.retained[c.Topic]
	if c.Gone && !known {
		return
	}
	t.retainedBytes -= old.size
	row := sized{old.id, int64(len(c.Topic) + len(c.Data) + len(c.Payload))}
	if !known {
		row.id = t.nextRetained
		t.nextRetained++
	}
	o := op{sqlRetain,
		[]any{row.id, c.Topic, bytes.Clone(c.Data), bytes.Clone(c.Payload)}}
	if c.Gone {
		delete(t.retained, c.Topic)
		o = op{"DELETE FROM retained WHERE id=?", []any{row.id}}
	} else {
		t.retained[c.Topic] = row
		t.retainedBytes += row.size
	}
	if i, ok := b.at[row.id]; ok {
		b.ops[i] = o
		return
	}
	b.at[row.id] = len(b.ops)
	b.do(o.query, o.args...)
}

// learn keeps a fact; the oldest go at the bounds.
func (t *tables) learn(b *batch, c Fact) {
	if old, known := t.facts[c.Key]; known {
		t.unlearn(b, c.Key, old)
	}
	if c.Gone {
		return
	}
	row := sized{t.nextFact, int64(len(c.Key) + len(c.Value))}
	t.nextFact++
	t.facts[c.Key] = row
	t.factOrder = append(t.factOrder, c.Key)
	t.factBytes += row.size
	b.do(sqlFact, row.id, c.Key, millis(time.Now()), bytes.Clone(c.Value))
	for len(t.facts) > 1 && (len(t.facts) > maxFacts || t.factBytes > maxFactBytes) {
		t.unlearn(b, t.factOrder[0], t.facts[t.factOrder[0]])
	}
}

func (t *tables) unlearn(b *batch, key string, row sized) {
	delete(t.facts, key)
	t.factBytes -= row.size
	i := slices.Index(t.factOrder, key)
	t.factOrder = slices.Delete(t.factOrder, i, i+1)
	b.do("DELETE FROM fact WHERE id=?", row.id)
}
