package embeddedbroker

import (
	"time"

	"busgate/embeddedbroker/packet"
)

// onAck obeys PUBACK, PUBREC, PUBREL and PUBCOMP.
func (c *conn) onAck(a *packet.Ack) error {
	switch {
	case a.Type == packet.PUBREL:
		c.onRelease(a.PID)
		return nil
	case a.Type == packet.PUBREC && a.Code < 0x80:
		c.onReceived(a.PID)
		return nil
	}
	s := c.sess
	s.mu.Lock()
	if s.conn != c {
		s.mu.Unlock()
		return nil
	}
	i := s.findLocked(a.PID)
	var f flight
	if i >= 0 {
		f = *s.flights.at(i)
	}
	fits := i >= 0 && f.qos == 1 == (a.Type == packet.PUBACK) && (a.Type != packet.PUBCOMP || f.state == received)
	freed := false
	if fits {
		s.inflight--
		s.landLocked(i)
		s.moved = time.Time{}
		freed = s.behind || s.q.len() > 0 // somebody waits for the room
	}
	s.mu.Unlock()
	if freed {
		c.wake()
	}
	if !fits {
		c.b.n.unknownAcks.Add(1)
	}
	return nil
}

// onReceived answers PUBREC with PUBREL, for a persistent session when it is on
// disk that only that is owed. That it is owed and the note of it are one step
// under core.mu: a connection that takes the session over sends no PUBREL whose
// note comes later than its own CONNACK.
func (c *conn) onReceived(pid uint16) {
	s, sl := c.sess, c.reserve(packet.PUBREL, pid, 0)
	if s.consumer != 0 {
		c.b.mu.Lock()
		defer c.b.mu.Unlock()
	}
	s.mu.Lock()
	mine, i := s.conn == c, s.findLocked(pid)
	known := i >= 0 && s.flights.at(i).qos == 2
	var was flight
	if mine && known {
		was = *s.flights.at(i)
		s.flights.at(i).state = received
	}
	s.mu.Unlock()
	switch {
	case !mine: // superseded: nobody is there to be answered
	case !known:
		c.b.n.unknownAcks.Add(1)
		sl.fill(packet.PIDNotFound)
	case s.consumer == 0:
		sl.fill(0)
	case was.state == received:
		c.barrierLocked(sl, nil)
	case !c.barrierLocked(sl, []Op{MarkOut{Consumer: s.consumer, Seq: was.seq, PID: pid}}):
		s.mu.Lock()
		if i := s.findLocked(pid); i >= 0 {
			s.flights.at(i).state = was.state
		}
		s.mu.Unlock()
	}
}

// onRelease answers PUBREL with PUBCOMP: the id is free when that is on disk, in
// one step like a receipt. At once when it is not known: what the connection before
// this one released was on disk before CONNACK.
func (c *conn) onRelease(pid uint16) {
	s, sl := c.sess, c.reserve(packet.PUBCOMP, pid, 0)
	if s.consumer != 0 {
		c.b.mu.Lock()
		defer c.b.mu.Unlock()
	}
	s.mu.Lock()
	mine, known := s.conn == c, s.in[pid]
	if mine {
		delete(s.in, pid)
	}
	s.mu.Unlock()
	switch {
	case !mine: // superseded
	case !known || s.consumer == 0:
		sl.fill(0)
	case !c.barrierLocked(sl, []Op{MarkIn{Client: c.id, PID: pid, Drop: true}}):
		s.mu.Lock()
		s.openLocked(pid)
		s.mu.Unlock()
	}
}
