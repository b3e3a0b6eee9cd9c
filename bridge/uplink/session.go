package uplink

import (
	"slices"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// maxWindow is the largest number of packets in flight.
const maxWindow = 1024

// step is how far the cloud has come with a flight.
type step uint8

const (
	waiting   step = iota // to be written on this connection
	sent                  // PUBLISH written
	received              // PUBREC came, but one before it is missing: not released yet
	releasing             // the store is asked to keep that it was received
	released              // that is on disk: a PUBREL is owed or under way
	done                  // completed, while one before it is not
)

// owing is when something that the cloud owes an answer for went out, zero while
// it has not left, and where it ends in the stream of the connection.
type owing struct {
	at  time.Time
	end uint64
}

// flight is one PUBLISH that carries one record or a batch: ords first..last.
// Its packet id is that of first.
type flight struct {
	owing
	first, last uint64
	topic       string
	payload     []byte
	retain      bool
	qos         byte
	step        step
	again       bool  // was written on an earlier connection, or by an earlier process
	late        bool  // of the backlog of live_first
	unfit       bool  // the loss report of a record that the encoding has no form for
	over        int64 // bytes of the message that is too large and given up in this place; 0 = none is
}

func (f *flight) size() int64 { return int64(len(f.topic) + len(f.payload)) }

// packetID is the id of the record with this ord, 1..65535.
func packetID(ord uint64) uint16 { return uint16(ord%65535 + 1) }

// frame is a packet to be written, with what waits for its answer.
type frame struct {
	p packets.ControlPacket
	o *owing  // nil: no answer is expected
	f *flight // a QoS 0 flight, done when it is written
}

// session is one MQTT session: what is owed, in flight and subscribed. It is
// pure: packets go in through the methods, packets come out in out, and what
// the store must be told comes out in acks and recs. It outlives connections,
// as the session at the broker does.
type session struct {
	completed uint64             // C: all up to here is done
	flights   []*flight          // not completed, in rising ord
	byID      map[uint16]*flight // of flights that are not done
	bytes     int64              // of flights that are not done
	held      int                // flights without a PUBREL: the broker holds, or may hold, the message

	control  map[uint16]*control // SUBSCRIBE, birth ...: written, not answered
	queue    []*control          // not written yet, at most what one connect makes
	inbound  map[uint16]bool     // QoS 2 ids from the broker that are not released by it
	resumed  bool                // on this connection everything owed was written again
	progress bool                // on this connection something of the store was acknowledged
	hold     bool                // on this connection nothing may leave yet
	alone    bool                // what is resumed waits until birth is acknowledged
	reach    uint64              // end in the stream of the last that was acknowledged on this connection

	out  []frame  // to be written, in order
	acks []uint64 // completed: to be acked in the store
	recs []uint64 // received: to be released in the store; one batch at a time
	busy bool     // the store works at a batch of recs

	lastAck time.Time
	rtt     []time.Duration // samples since the last look
	repeats uint64          // PUBLISH written again
	acked   uint64          // records
	unknown uint64          // acknowledgements that answer nothing
}

func newSession() *session {
	return &session{byID: map[uint16]*flight{}, control: map[uint16]*control{}, inbound: map[uint16]bool{}}
}

// add takes a new flight; it is written at once when the session is resumed. A
// gap in the ords is what was completed before a restart, or what the backlog of
// live_first still holds.
func (s *session) add(f *flight) {
	if len(s.flights) == 0 {
		s.completed = f.first - 1
	}
	i := len(s.flights)
	for i > 0 && s.flights[i-1].first > f.first {
		i--
	}
	s.flights = slices.Insert(s.flights, i, f)
	s.byID[packetID(f.first)] = f
	s.bytes += f.size()
	if f.step < released {
		s.held++
	}
	if s.resumed {
		s.write(f)
	}
}

// late is the number of flights of the backlog.
func (s *session) late() (n int) {
	for _, f := range s.flights {
		if f.late && f.step != done {
			n++
		}
	}
	return n
}

// blocked tells that the packet id of the next flight is still held by a
// control packet.
func (s *session) blocked(ord uint64) bool { return s.control[packetID(ord)] != nil }

// inFlight is the number of flights between C and the newest, both those under
// way and those done out of order.
func (s *session) inFlight() int { return len(s.flights) }

// disconnected forgets what belongs to the connection that ended.
func (s *session) disconnected() {
	s.resumed, s.progress, s.hold, s.reach = false, false, false, 0
	s.out = nil
	clear(s.control)
	s.queue = nil
	for _, f := range s.flights {
		f.owing = owing{}
		if f.step == sent {
			f.step, f.again = waiting, true
		}
	}
}

// taken tells whether the cloud has taken over any message that is not
// completed. When the broker has lost the session those must be published
// again, and the store must know it first.
func (s *session) taken() bool {
	for _, f := range s.flights {
		if f.step == received || f.step == releasing || f.step == released {
			return true
		}
	}
	return false
}

// wiped is told that the broker knows nothing of the session.
func (s *session) wiped() { clear(s.inbound) }

// drop forgets the flights: the source gives them again.
func (s *session) drop() {
	s.flights, s.bytes, s.held = nil, 0, 0
	clear(s.byID)
	s.recs, s.acks = nil, nil
}

// resume writes everything owed again, in the order of the ords: PUBREL for
// (C,R], PUBLISH for what is above. [MQTT-4.4.0-1] [MQTT-4.6.0-1]
func (s *session) resume() {
	s.resumed = true
	for _, f := range s.flights {
		switch f.step {
		case waiting:
			s.write(f)
		case released:
			s.pubrel(f)
		}
	}
}

func (s *session) write(f *flight) {
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName, p.Payload, p.Retain, p.Qos = f.topic, f.payload, f.retain, f.qos
	if f.qos > 0 {
		p.MessageID, p.Dup = packetID(f.first), f.again // [MQTT-3.3.1-1] [MQTT-3.3.1-2]
	}
	if f.again {
		s.repeats++
	}
	f.step, f.owing = sent, owing{}
	fr := frame{p: p, o: &f.owing}
	if f.qos == 0 {
		fr.o, fr.f = nil, f
	}
	s.out = append(s.out, fr)
}

func (s *session) pubrel(f *flight) {
	p := packets.NewControlPacket(packets.Pubrel).(*packets.PubrelPacket)
	p.MessageID = packetID(f.first)
	f.owing = owing{}
	s.out = append(s.out, frame{p: p, o: &f.owing})
}

// written is told when a QoS 0 flight has left.
func (s *session) written(f *flight, now time.Time) {
	if f.step == sent {
		s.complete(f, now)
	}
}

func (s *session) puback(id uint16, now time.Time) {
	if c := s.control[id]; c != nil && c.publish() {
		s.answered(id, now)
		return
	}
	f := s.byID[id]
	if f == nil || f.qos != 1 || f.step != sent {
		s.unknown++
		return
	}
	if !f.at.IsZero() {
		s.sample(now.Sub(f.at))
	}
	s.complete(f, now)
}

// pubrec notes that the cloud has taken a message over. PUBREL follows when the
// store knows it: see settle and released. An id that we know nothing of is an
// orphan of an earlier life; PUBREL frees it.
func (s *session) pubrec(id uint16, now time.Time) {
	f := s.byID[id]
	switch {
	case f == nil || f.qos != 2 && f.step < received || f.step == waiting && !f.again:
		s.unknown++
		p := packets.NewControlPacket(packets.Pubrel).(*packets.PubrelPacket)
		p.MessageID = id
		s.out = append(s.out, frame{p: p})
	case f.step == waiting || f.step == sent:
		if !f.at.IsZero() {
			s.sample(now.Sub(f.at))
		}
		s.reach = max(s.reach, f.end)
		f.step, f.owing = received, owing{}
		s.lastAck = now
	case f.step == released:
		s.pubrel(f)
		s.lastAck = now
	}
}

func (s *session) pubcomp(id uint16, now time.Time) {
	f := s.byID[id]
	if f == nil || f.step != released {
		s.unknown++
		return
	}
	s.complete(f, now)
}

// complete ends a flight; C moves over everything done at the front.
func (s *session) complete(f *flight, now time.Time) {
	if f.step < released {
		s.held--
	}
	f.step = done
	s.lastAck, s.progress = now, true
	s.reach = max(s.reach, f.end)
	delete(s.byID, packetID(f.first))
	s.bytes -= f.size()
	s.acked += f.last - f.first + 1
	for ord := f.first; ord <= f.last; ord++ {
		s.acks = append(s.acks, ord)
	}
	f.payload = nil
	for len(s.flights) > 0 && s.flights[0].step == done {
		s.completed = s.flights[0].last
		s.flights[0] = nil
		s.flights = s.flights[1:]
	}
}

// settle collects what the store can release: the received ones that follow R
// without a gap. A PUBREC out of order is held until the prefix closes;
// otherwise R could not say who owes a PUBREL after a crash. One batch at a
// time, so there is at most one flush in a round trip.
func (s *session) settle() {
	if s.busy {
		return
	}
	for _, f := range s.flights {
		switch f.step {
		case received:
			f.step = releasing
			for ord := f.first; ord <= f.last; ord++ {
				s.recs = append(s.recs, ord)
			}
		case waiting, sent:
			s.busy = len(s.recs) > 0
			return
		}
	}
	s.busy = len(s.recs) > 0
}

// durable is told that the store knows the batch that settle gave: now PUBREL
// may leave.
func (s *session) durable() {
	s.busy = false
	for _, f := range s.flights {
		if f.step != releasing {
			continue
		}
		f.step = released
		s.held--
		if s.resumed {
			s.pubrel(f)
		}
	}
}

// unsettled is told that the store did not keep the batch that settle gave.
func (s *session) unsettled() {
	s.busy = false
	for _, f := range s.flights {
		if f.step == releasing {
			f.step = received
		}
	}
}

// open is the number of ords between C and the newest flight: what the store
// holds leased for the flights.
func (s *session) open() int {
	if len(s.flights) == 0 {
		return 0
	}
	return int(s.flights[len(s.flights)-1].last - s.completed)
}

// sample keeps the time of one acknowledgement, at most 1,024 between two looks.
func (s *session) sample(d time.Duration) {
	if len(s.rtt) < maxWindow {
		s.rtt = append(s.rtt, d)
	}
}

// owed tells since when nothing was acknowledged though something is owed, and
// when the oldest thing left that is still unanswered. Both are zero when
// nothing is owed or nothing of it has left yet.
func (s *session) owed() (since, oldest time.Time) {
	see := func(at time.Time) {
		if !at.IsZero() && (oldest.IsZero() || at.Before(oldest)) {
			oldest = at
		}
	}
	for _, f := range s.flights {
		if f.step == sent || f.step == released {
			see(f.at)
		}
	}
	for _, c := range s.control {
		see(c.at)
	}
	since = oldest
	if !oldest.IsZero() && s.lastAck.After(oldest) {
		since = s.lastAck
	}
	return since, oldest
}
