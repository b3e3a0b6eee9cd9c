package embeddedbroker

import (
	"sync"
	"testing"

	"busgate/embeddedbroker/packet"
)

// hooked is a Store that does something between the commit of a message and the
// return of Append.
type hooked struct {
	*Memory
	hook func()
}

func (h *hooked) Append(e *Entry) error {
	err := h.Memory.Append(e)
	if hook := h.hook; hook != nil && e.Msg != nil {
		h.hook = nil
		hook()
	}
	return err
}

// A commit may be faster than the publisher: the session has read the message
// from the store and is in step before the publisher hands it over.
func TestMessageReadFromTheStoreIsNotHandedOverAgain(t *testing.T) {
	store := &hooked{Memory: NewMemory()}
	r := start(t, store)
	c := r.connect(packet.V311, "c", persistent)
	c.subscribe("t", 2)
	c.ping()
	r.b.mu.Lock()
	s := r.b.sessions["c"]
	r.b.mu.Unlock()
	s.mu.Lock()
	s.behind = true
	server := s.conn
	s.mu.Unlock()
	store.hook = func() {
		for range 2 {
			s.mu.Lock()
			from, last, room := s.cursor, s.lastSeq, s.window-s.inflight
			s.mu.Unlock()
			s.read(server, from, last, room)
		}
		server.wake()
	}
	r.connect(packet.V311, "pub").publish("t", "once", 2, 1)
	c.take("t", "once")
	c.ping()
	c.silent()
}

// slowSettle is a Store that hears what is settled when the test says so.
type slowSettle struct {
	*Memory
	mu   sync.Mutex
	told []func()
}

func (s *slowSettle) Settle(c ConsumerID, floor Seq, done []Seq) {
	done = append([]Seq(nil), done...)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = append(s.told, func() { s.Memory.Settle(c, floor, done) })
}

func (s *slowSettle) tell() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.told {
		f()
	}
	s.told = nil
}

// A delivery that is completed while the session still reads older ones from
// the store does not come again, however late the store hears of it.
func TestCompletedDeliveryIsNotReadAgain(t *testing.T) {
	store := &slowSettle{Memory: NewMemory()}
	r := start(t, store)
	c := r.connect(packet.V5, "c", persistent)
	c.subscribe("t", 2)
	p := r.connect(packet.V5, "pub")
	p.publish("t", "one", 1, 1)
	p.publish("t", "two", 2, 1)
	p.publish("t", "three", 1, 1)
	c.receive("t", "one")
	m := c.receive("t", "two")
	c.receive("t", "three")
	c.send(&packet.Ack{Type: packet.PUBREC, PID: m.PID})
	c.acked(packet.PUBREL, m.PID)
	for range 2 {
		c.close()
		c = r.connect(packet.V5, "c", persistent, prop(packet.ReceiveMaximum, 1))
		c.acked(packet.PUBREL, m.PID)
	}
	c.send(&packet.Ack{Type: packet.PUBCOMP, PID: m.PID})
	c.take("t", "one")
	c.take("t", "three")
	c.ping()
	c.silent()
	p.publish("t", "four", 1, 1)
	c.take("t", "four")
	c.ping()
	store.tell()
	c.close()
	c = r.connect(packet.V5, "c", persistent)
	c.ping()
	c.silent()
}
