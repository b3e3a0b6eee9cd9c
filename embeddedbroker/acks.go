package embeddedbroker

import (
	"time"

	"busgate/embeddedbroker/packet"
)

// onAck obeys PUBACK, PUBREC, PUBREL and PUBCOMP.
func (c *conn) onAck(a *packet.Ack) error {
	if a.Type == packet.PUBREL {
		c.onRelease(a.PID)
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
	switch {
	case !fits:
	case a.Type == packet.PUBREC && a.Code < 0x80:
		s.flights.at(i).state = received
	default:
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
	if a.Type == packet.PUBREC && a.Code < 0x80 {
		c.onReceived(a.PID, f, fits)
	}
	return nil
}

// onReceived answers PUBREC with PUBREL, for a persistent session when it is on
// disk that only that is owed.
func (c *conn) onReceived(pid uint16, f flight, known bool) {
	sl := c.reserve(packet.PUBREL, pid, 0)
	switch {
	case !known:
		sl.fill(packet.PIDNotFound)
	case f.state == received:
		c.barrier(sl, nil)
	default:
		c.barrier(sl, []Op{MarkOut{Consumer: c.sess.consumer, Seq: f.seq, PID: pid}})
	}
}

// onRelease answers PUBREL with PUBCOMP: at once when the id is not known.
func (c *conn) onRelease(pid uint16) {
	s := c.sess
	s.mu.Lock()
	known := s.in[pid] && s.conn == c
	if known {
		delete(s.in, pid)
	}
	s.mu.Unlock()
	sl := c.reserve(packet.PUBCOMP, pid, 0)
	if !known {
		sl.fill(0)
		return
	}
	c.barrier(sl, []Op{MarkIn{Client: c.id, PID: pid, Drop: true}})
}
