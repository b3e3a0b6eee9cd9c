package embeddedbroker

import (
	"testing"

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
