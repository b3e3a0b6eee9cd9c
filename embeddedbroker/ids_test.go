package embeddedbroker

import (
	"fmt"
	"testing"
	"testing/synctest"

	"busgate/embeddedbroker/packet"
)

func TestPacketIDsWrap(t *testing.T) {
	r := start(t, NewMemory())
	c := r.connect(packet.V311, "c", persistent)
	c.subscribe("t", 1)
	s := r.server("c").sess
	r.b.mu.Lock()
	s.mu.Lock()
	s.nextOrd = 65530
	s.mu.Unlock()
	r.b.mu.Unlock()
	p := r.connect(packet.V311, "pub")
	want := uint16(65530)
	var held []*packet.Publish
	for i := range 12 {
		p.publish("t", n("", i), 1, 1)
		m := c.receive("t", n("", i))
		if m.PID != want {
			t.Fatalf("id %d, want %d", m.PID, want)
		}
		held = append(held, m)
		if want++; want == 0 {
			want = 1
		}
	}
	for i := len(held) - 1; i >= 0; i-- { // in any order, over the wrap
		c.complete(held[i])
	}
	c.ping()
	if i := r.b.Clients(); i[0].Inflight != 0 || i[0].Queued != 0 {
		t.Errorf("%+v", i[0])
	}
}

// TestReleasesAfterAQueueLongerThanTheIDs: two messages are released, more are
// queued than there are ids, and the process ends. The releases are completed all
// the same, also while an older message is open and they have not been read again.
func TestReleasesAfterAQueueLongerThanTheIDs(t *testing.T) {
	for _, window := range []uint32{100, 3} {
		t.Run(fmt.Sprint("window ", window), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { releasesAfterALongQueue(t, window) })
		})
	}
}

func releasesAfterALongQueue(t *testing.T, window uint32) {
	store := NewMemory()
	r := start(t, store)
	c := r.connect(packet.V311, "c", persistent)
	c.subscribe("t", 2)
	p := r.connect(packet.V311, "pub")
	for i := range 4 {
		p.publish("t", n("", i), 2, 1)
	}
	var ids [4]uint16
	for i := range ids {
		ids[i] = c.receive("t", n("", i)).PID
	}
	for _, i := range []int{1, 2} {
		c.send(&packet.Ack{Type: packet.PUBREC, PID: ids[i]})
		c.acked(packet.PUBREL, ids[i])
	}
	c.close()
	synctest.Wait()
	s := r.session("c")
	r.b.mu.Lock()
	s.mu.Lock()
	s.nextOrd += 2 * 65535
	s.mu.Unlock()
	r.b.mu.Unlock()
	p.publish("t", "last", 2, 1)
	r.stop()

	r = start(t, store)
	c = r.connect(packet.V5, "c", persistent, prop(packet.ReceiveMaximum, window))
	for _, i := range []int{1, 2} {
		c.acked(packet.PUBREL, ids[i])
	}
	again := func(i int) {
		t.Helper()
		if m := c.receive("t", n("", i)); m.PID != ids[i] || !m.Dup {
			t.Errorf("%d comes again as id %d, DUP %v", i, m.PID, m.Dup)
		}
	}
	if again(0); window > 3 {
		again(3)
		inOrder(t, r.session("c"))
	}
	for _, i := range []int{1, 2} {
		c.send(&packet.Ack{Type: packet.PUBCOMP, PID: ids[i]})
	}
	if window == 3 {
		again(3)
	}
	for _, i := range []int{0, 3} {
		c.send(&packet.Ack{Type: packet.PUBREC, PID: ids[i]})
		c.acked(packet.PUBREL, ids[i])
		c.send(&packet.Ack{Type: packet.PUBCOMP, PID: ids[i]})
	}
	c.take("t", "last")
	c.ping()
	if i := r.b.Clients(); i[0].Inflight != 0 || i[0].Queued != 0 || r.b.Stats().UnknownAcks != 0 {
		t.Errorf("%+v, %d unknown answers", i[0], r.b.Stats().UnknownAcks)
	}
}

// inOrder holds the open deliveries of a session against their rule.
func inOrder(t *testing.T, s *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.flights.len() - 1 {
		if a, b := s.flights.at(k), s.flights.at(k+1); a.ord >= b.ord || a.seq >= b.seq {
			t.Errorf("open are %+v before %+v", *a, *b)
		}
	}
}

// BrickedSession: what was queued before a crash and what came after it have
// packet ids that follow each other.
func TestIDsGoOnAfterACrash(t *testing.T) {
	store := NewMemory()
	r := start(t, store)
	c := r.connect(packet.V311, "c", persistent)
	c.subscribe("t", 1)
	c.send(&packet.Disconnect{})
	c.ended()
	p := r.connect(packet.V311, "pub")
	const before, after = 3*ordReserve + 7, 50
	for i := range before {
		p.publish("t", n("", i), 1, 1)
	}
	r = start(t, store) // the first process never saved anything at its end
	p = r.connect(packet.V311, "pub")
	for i := range after {
		p.publish("t", n("", before+i), 1, 1)
	}
	c = r.connect(packet.V311, "c", persistent)
	last := uint16(0)
	for i := range before + after {
		m := c.take("t", n("", i))
		if m.PID <= last || m.Dup {
			t.Fatalf("message %d has id %d after %d, DUP %v", i, m.PID, last, m.Dup)
		}
		last = m.PID
	}
	c.ping()
	if i := r.b.Clients()[0]; i.Inflight != 0 || i.Queued != 0 {
		t.Errorf("%+v", i)
	}
}

func TestAcksInAnyOrderSurviveAReconnect(t *testing.T) {
	store := NewMemory()
	r := start(t, store)
	c := r.connect(packet.V311, "c", persistent)
	c.subscribe("t", 1)
	p := r.connect(packet.V311, "pub")
	for i := range 10 {
		p.publish("t", n("", i), 1, 1)
	}
	var got []*packet.Publish
	for i := range 10 {
		got = append(got, c.receive("t", n("", i)))
	}
	for _, i := range []int{9, 1, 0, 5} {
		c.complete(got[i])
	}
	c.ping()
	c.close()
	r.stop()
	r = start(t, store)
	c = r.connect(packet.V311, "c", persistent)
	for _, i := range []int{2, 3, 4, 6, 7, 8} {
		c.take("t", n("", i))
	}
	r.connect(packet.V311, "pub").publish("t", "new", 1, 1)
	if m := c.take("t", "new"); m.Dup || m.PID <= 10 {
		t.Errorf("%+v", m)
	}
	c.ping()
	c.silent()
}

// A completed delivery settles nothing before it that was not read again yet.
func TestCompletionAheadOfARepetition(t *testing.T) {
	r := start(t, NewMemory())
	c := r.connect(packet.V5, "c", persistent)
	c.subscribe("t", 2)
	p := r.connect(packet.V5, "pub")
	p.publish("t", "one", 1, 1)
	p.publish("t", "two", 2, 1)
	c.receive("t", "one")
	m := c.receive("t", "two")
	c.send(&packet.Ack{Type: packet.PUBREC, PID: m.PID})
	c.acked(packet.PUBREL, m.PID)
	c.close()
	c = r.connect(packet.V5, "c", persistent, prop(packet.ReceiveMaximum, 1))
	c.acked(packet.PUBREL, m.PID)
	c.send(&packet.Ack{Type: packet.PUBCOMP, PID: m.PID})
	c.receive("t", "one")
	c.ping()
	c.close()
	c = r.connect(packet.V5, "c", persistent)
	c.take("t", "one")
}

func TestBehindSessionReadsFromTheStoreAndCatchesUp(t *testing.T) {
	r := start(t, NewMemory())
	c := r.connect(packet.V311, "c", persistent)
	c.subscribe("t", 1)
	p := r.connect(packet.V311, "pub")
	for i := range 1000 {
		p.publish("t", n("", i), 1, 1)
	}
	s := r.server("c").sess
	s.mu.Lock()
	if q := s.q.len(); q > ramMessages {
		t.Errorf("%d messages in memory", q)
	}
	s.mu.Unlock()
	for i := range 1000 {
		c.take("t", n("", i))
	}
	c.ping()
	p.publish("t", "live", 1, 1)
	c.take("t", "live")
	c.ping()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.behind {
		t.Error("still behind")
	}
}
