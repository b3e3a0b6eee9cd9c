package embeddedbroker

import (
	"time"

	"busgate/embeddedbroker/packet"
)

// maxWrite is how many bytes one write collects before it goes out.
const maxWrite = 64 << 10

// fill appends what may be sent to c now, as packets, and returns the buffer.
// Only the writer of c calls it. It takes no lock while it reads from the store.
func (s *session) fill(c *conn, buf []byte) []byte {
	for {
		s.mu.Lock()
		if s.conn != c {
			s.mu.Unlock()
			return buf
		}
		buf = s.encodeLocked(c, buf)
		read := len(buf) < maxWrite && s.behind && s.q.len() == 0 && s.inflight < s.window
		from, last, room := s.cursor, s.lastSeq, s.window-s.inflight
		s.mu.Unlock()
		if !read || !s.read(c, from, last, room) {
			return buf
		}
	}
}

// read fetches one window from the store; true: look again.
func (s *session) read(c *conn, from, last Seq, room int) bool {
	released := s.b.rel.released()
	w := Window{MaxMessages: min(room, ramMessages), MaxBytes: ramBytes}
	if err := s.b.store.Read(s.consumer, from, &w); err != nil {
		s.b.log.Error("read session from store", "client", s.id, "err", err)
		c.kick(&ending{code: packet.ImplementationError, text: "its messages cannot be read"})
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != c || !s.behind || s.cursor != from {
		return s.conn == c
	}
	for i := range w.Deliveries {
		d := &w.Deliveries[i]
		s.cursor = d.Seq + 1
		if s.ahead[d.Seq] || s.owedLocked(d.Seq, d.Ord) {
			delete(s.ahead, d.Seq)
			continue
		}
		s.arrived++
		it := item{msg: d.Msg, n: s.arrived, seq: d.Seq, ord: d.Ord, qos: d.QoS, retain: d.Retain, subIDs: d.SubIDs}
		if s.dupNext > 0 {
			s.dupNext--
			s.sent = max(s.sent, d.Seq)
		}
		it.dup = d.Seq <= s.sent
		if d.Seq > released { // on disk, but what came before it is not told yet
			it.wait = d.Seq
		}
		s.enqueueLocked(it, int(size(d.Msg))+64)
	}
	s.cursor = max(s.cursor, w.Next)
	if len(w.Deliveries) > 0 || s.lastSeq != last {
		return true
	}
	if released >= last {
		s.behind = false // in step: from now on messages come from memory
		s.dupNext, s.ahead = 0, nil
		return true
	}
	return !s.awaitLocked(last)
}

// owedLocked says whether only a PUBREL is owed for a delivery. After a restart
// its number was guessed from the packet id: ord is the right one, and puts it in
// its place.
func (s *session) owedLocked(seq Seq, ord uint64) bool {
	fs := &s.flights
	for i := range fs.len() {
		if fs.at(i).seq != seq {
			continue
		}
		fs.at(i).ord = ord
		for ; i > 0 && fs.at(i-1).ord > ord; i-- {
			*fs.at(i), *fs.at(i - 1) = *fs.at(i - 1), *fs.at(i)
		}
		for ; i+1 < fs.len() && fs.at(i+1).ord < ord; i++ {
			*fs.at(i), *fs.at(i + 1) = *fs.at(i + 1), *fs.at(i)
		}
		return true
	}
	return false
}

// awaitLocked asks to be woken when seq is released; false: it is already.
func (s *session) awaitLocked(seq Seq) bool {
	if s.waits == seq {
		return seq > s.b.rel.released()
	}
	s.waits = seq
	return s.b.rel.await(seq, s)
}

// wake lets the writer of the connected client look again.
func (s *session) wake() {
	s.mu.Lock()
	c := s.conn
	s.mu.Unlock()
	if c != nil {
		c.wake()
	}
}

// nextLocked is the queue whose front may be sent now, nil = none. Messages
// leave in the order of arrival, except that a full window lets QoS 0 pass.
func (s *session) nextLocked() *queue[item] {
	var q *queue[item]
	if s.q.len() > 0 && s.inflight < s.window && s.ordFreeLocked(s.q.at(0).ord) {
		q = &s.q
	}
	if s.q0.len() > 0 && (q == nil || s.q0.at(0).n < q.at(0).n) {
		q = &s.q0
	}
	if q == nil {
		return nil
	}
	if wait := q.at(0).wait; wait > s.b.rel.released() && s.awaitLocked(wait) {
		return nil
	}
	return q
}

// ordFreeLocked says whether no open delivery has the same packet id. A
// repetition may be older than the releases that are owed.
func (s *session) ordFreeLocked(ord uint64) bool {
	return s.flights.len() == 0 || ord < s.flights.at(0).ord+65535
}

func (s *session) encodeLocked(c *conn, buf []byte) []byte {
	for len(buf) < maxWrite {
		q := s.nextLocked()
		if q == nil {
			break
		}
		it := q.pop()
		n := int(size(it.msg)) + 64
		switch {
		case it.free:
			s.burst--
		case it.qos == 0:
			s.q0Bytes -= n
		default:
			s.qBytes -= n
		}
		var ok bool
		if buf, ok = s.encode(c, buf, &it); ok {
			s.b.n.sent.Add(1)
		}
		if it.qos > 0 {
			s.takeoffLocked(&it, ok)
		}
	}
	return buf
}

// takeoffLocked notes a delivery as written, or as settled when it was not worth writing.
func (s *session) takeoffLocked(it *item, written bool) {
	f := flight{ord: it.ord, seq: it.seq, qos: it.qos}
	if it.group != nil {
		f.group, f.msg = it.group, it.msg
	}
	i := s.flights.len()
	for i > 0 && s.flights.at(i-1).ord > f.ord {
		i--
	}
	if written {
		s.inflight++
		s.sent = max(s.sent, it.seq)
	} else {
		f.state = settled
	}
	s.flights.insert(i, f)
	if !written {
		s.landLocked(i)
	}
}

// encode appends one PUBLISH; false: it has expired or is too large for the
// client, which counts as delivered [MQTT-3.1.2-25].
func (s *session) encode(c *conn, buf []byte, it *item) ([]byte, bool) {
	m := it.msg
	p := packet.Publish{Dup: it.dup, QoS: it.qos, Retain: it.retain, PID: 0, Payload: m.Payload}
	if it.qos > 0 {
		p.PID = pidOf(it.ord)
	}
	if !m.Expires.IsZero() {
		left := time.Until(m.Expires)
		if left <= 0 && !it.dup {
			s.b.n.expired.Add(1)
			return buf, false // [MQTT-3.3.2-5]
		}
		p.HasExpiry, p.Expiry = true, uint32(max(left+time.Second-1, 0)/time.Second) // [MQTT-3.3.2-6]
	}
	topic := m.Topic
	if c.version == packet.V5 {
		p.Props, p.SubIDs = m.Props, it.subIDs
	}
	alias, fresh := c.aliasFor(topic)
	if alias != 0 {
		p.HasAlias, p.Alias = true, alias
		if !fresh {
			topic = ""
		}
	}
	if c.maxOut != 0 && p.Size(c.version, len(topic)) > c.maxOut {
		s.b.n.oversize.Add(1)
		return buf, false
	}
	if fresh {
		c.aliasOut[m.Topic] = alias
	}
	s.b.n.sentBytes.Add(uint64(len(m.Payload)))
	return p.AppendTopic(buf, topic, c.version), true
}

// aliasFor is the topic alias to send with topic, 0 = none; fresh: the receiver
// does not know it yet.
func (c *conn) aliasFor(topic string) (alias uint16, fresh bool) {
	if c.aliasMax == 0 {
		return 0, false
	}
	if a, ok := c.aliasOut[topic]; ok {
		return a, false
	}
	if len(c.aliasOut) >= int(c.aliasMax) {
		return 0, false
	}
	if c.aliasOut == nil {
		c.aliasOut = map[string]uint16{}
	}
	return uint16(len(c.aliasOut) + 1), true
}

// findLocked is the index of the open delivery with a packet id, -1 = none.
func (s *session) findLocked(pid uint16) int {
	n := s.flights.len()
	if n == 0 || pid == 0 {
		return -1
	}
	first := s.flights.at(0).ord
	ord := first + (uint64(pid)+65535-uint64(pidOf(first)))%65535
	lo, hi := 0, n
	for lo < hi {
		mid := (lo + hi) / 2
		if s.flights.at(mid).ord < ord {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	open := func(i int, ord uint64) bool { return s.flights.at(i).ord == ord && s.flights.at(i).state != settled }
	if lo < n && open(lo, ord) {
		return lo
	}
	for i := range n { // after a restart the numbers of what was released are guessed
		if ord := s.flights.at(i).ord; pidOf(ord) == pid && open(i, ord) {
			return i
		}
	}
	return -1
}

// landLocked settles the i-th flight and whatever is done before it.
func (s *session) landLocked(i int) {
	f := s.flights.at(i)
	seq := f.seq
	f.state = settled
	floor := s.floor
	for s.flights.len() > 0 && s.flights.at(0).state == settled {
		floor = max(floor, s.flights.pop().seq+1)
	}
	if s.consumer == 0 {
		return
	}
	if s.flights.len() > 0 {
		floor = min(floor, s.flights.at(0).seq)
	}
	if s.q.len() > 0 {
		floor = min(floor, s.q.at(0).seq)
	}
	if s.behind {
		floor = min(floor, s.cursor)
		if seq >= s.cursor {
			if s.ahead == nil {
				s.ahead = map[Seq]bool{}
			}
			s.ahead[seq] = true
		}
	}
	s.floor = max(s.floor, floor)
	if seq >= s.floor {
		s.settle = append(s.settle, seq)
	}
	s.unset = true
}

// flushSettleLocked tells the store what is settled. The reader calls it when
// its input is used up, so that a burst of acknowledgements is told once.
func (s *session) flushSettleLocked() {
	if !s.unset {
		return
	}
	s.unset = false
	s.b.store.Settle(s.consumer, s.floor, s.settle)
	s.settle = s.settle[:0]
}
