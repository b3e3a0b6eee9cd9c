package embeddedbroker

import (
	"errors"
	"sync"

	"busgate/embeddedbroker/packet"
)

// slot is the place of one answer in the order of a connection: answers leave
// in the order of the packets they answer [MQTT-4.6.0-2] [MQTT-4.6.0-3], each
// when its entry is on disk. It is the Completion of that entry.
type slot struct {
	c     *conn
	typ   packet.Type
	pid   uint16
	code  byte
	raw   []byte // SUBACK, UNSUBACK: the whole packet
	bytes int    // of the message it answers
	done  bool
	holds bool  // no message leaves before it
	next  *slot // the one behind it
}

// spareSlots are slots whose answers left. Nobody refers to one that is filled
// and moved into the output, so it serves the next.
var spareSlots = sync.Pool{New: func() any { return new(slot) }}

// slots are the places of a connection, in order.
type slots struct {
	first, last *slot
	n           int
}

func (l *slots) push(s *slot) {
	if l.n++; l.first == nil {
		l.first = s
	} else {
		l.last.next = s
	}
	l.last = s
}

func (l *slots) pop() *slot {
	s := l.first
	l.first, s.next = s.next, nil
	l.n--
	return s
}

// reserve takes the next place for an answer.
func (c *conn) reserve(typ packet.Type, pid uint16, bytes int) *slot {
	s := spareSlots.Get().(*slot)
	*s = slot{c: c, typ: typ, pid: pid, bytes: bytes}
	c.mu.Lock()
	c.slots.push(s)
	c.slotBytes += bytes
	c.mu.Unlock()
	return s
}

// Committed fills the slot; it runs on the committer. The writer that is started
// last runs first: who waits for the answer has more to send, and may do so
// while the deliveries are written. But SUBACK is there before the retained
// messages that follow it.
func (s *slot) Committed(seq Seq, err error) {
	rel, first := &s.c.b.rel, s.raw != nil
	if !first {
		rel.advance(seq)
	}
	if err != nil {
		s.refuse(err)
	} else {
		s.fill(s.code)
	}
	if first {
		rel.advance(seq)
	}
}

// fill says what the answer is and lets it go. The slot is gone afterwards.
func (s *slot) fill(code byte) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	s.code, s.done = code, true
	if c.popSlotsLocked() {
		c.dirty = true
		c.startLocked()
	}
}

// refuse answers that the message was not kept. Before 5.0 there is no such
// answer: the connection ends and the client sends it again.
func (s *slot) refuse(err error) {
	s.c.b.n.refusedFull.Add(1)
	if s.c.version != packet.V5 || s.raw != nil {
		s.c.kick(&ending{code: refusal(err), text: "its message cannot be kept: " + err.Error()})
		return
	}
	s.fill(refusal(err))
}

// refusal is the reason code for an error of the store.
func refusal(err error) byte {
	switch {
	case errors.Is(err, ErrFull):
		return packet.QuotaExceeded
	case errors.Is(err, ErrBusy):
		return packet.ServerBusy
	}
	return packet.ImplementationError
}

// popSlotsLocked moves the filled slots at the front into the output.
func (c *conn) popSlotsLocked() bool {
	answers := uint64(0)
	for c.slots.first != nil && c.slots.first.done {
		s := c.slots.pop()
		c.slotBytes -= s.bytes
		answers++
		if s.raw != nil {
			c.ctl = append(c.ctl, s.raw...)
			c.granted = true
			if s.holds {
				c.holding--
			}
			continue
		}
		c.answeredLocked(s.typ, s.pid, s.code)
		a := packet.Ack{Type: s.typ, PID: s.pid, Code: s.code}
		c.ctl = a.Append(c.ctl, c.version)
		spareSlots.Put(s)
	}
	if answers == 0 {
		return false
	}
	c.b.n.answers.Add(answers)
	if c.parked {
		c.cond.Broadcast()
	}
	return true
}

// answeredLocked closes the account of an inbound message.
func (c *conn) answeredLocked(typ packet.Type, pid uint16, code byte) {
	switch {
	case typ == packet.PUBACK, typ == packet.PUBCOMP, typ == packet.PUBREC && code >= 0x80:
		delete(c.open, pid)
	}
}
