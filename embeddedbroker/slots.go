package embeddedbroker

import (
	"errors"

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
}

// reserve takes the next place for an answer.
func (c *conn) reserve(typ packet.Type, pid uint16, bytes int) *slot {
	s := &slot{c: c, typ: typ, pid: pid, bytes: bytes}
	c.mu.Lock()
	c.slots.push(s)
	c.slotBytes += bytes
	c.mu.Unlock()
	return s
}

// Committed fills the slot; it runs on the committer.
func (s *slot) Committed(seq Seq, err error) {
	if err != nil {
		s.refuse(err)
	} else {
		s.fill(s.code)
	}
	s.c.b.rel.advance(seq)
}

// fill says what the answer is and lets it go.
func (s *slot) fill(code byte) {
	c := s.c
	c.mu.Lock()
	s.code, s.done = code, true
	free := c.popSlotsLocked()
	c.mu.Unlock()
	if free {
		c.wake()
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
	if errors.Is(err, ErrFull) {
		return packet.QuotaExceeded
	}
	return packet.ImplementationError
}

// popSlotsLocked moves the filled slots at the front into the output.
func (c *conn) popSlotsLocked() bool {
	any := false
	for c.slots.len() > 0 && (*c.slots.at(0)).done {
		s := c.slots.pop()
		c.slotBytes -= s.bytes
		any = true
		if s.raw != nil {
			c.ctl = append(c.ctl, s.raw...)
			continue
		}
		c.answeredLocked(s.typ, s.pid, s.code)
		a := packet.Ack{Type: s.typ, PID: s.pid, Code: s.code}
		c.ctl = a.Append(c.ctl, c.version)
	}
	if any && c.parked {
		c.cond.Broadcast()
	}
	return any
}

// answeredLocked closes the account of an inbound message.
func (c *conn) answeredLocked(typ packet.Type, pid uint16, code byte) {
	switch {
	case typ == packet.PUBACK, typ == packet.PUBCOMP, typ == packet.PUBREC && code >= 0x80:
		delete(c.open, pid)
	}
}
