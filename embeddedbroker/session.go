package embeddedbroker

import (
	"sync"
	"time"

	"busgate/embeddedbroker/packet"
)

// Bounds of what waits in memory for one client.
const (
	outBytes     = 256 << 10 // QoS 0 beyond this is dropped for the client
	ramMessages  = 256       // a persistent session further behind reads from the store
	ramBytes     = 256 << 10
	slowMessages = 1000 // a volatile client further behind, and not moving, is closed
	slowBytes    = 1 << 20
	slowTime     = 5 * time.Second // without an acknowledgement
	hardMessages = 20_000          // ... and beyond this even when it moves
	hardBytes    = 16 << 20
	maxBurst     = 2 * maxRetained // retained messages that wait for one client

	ordReserve = 1024 // delivery numbers that one write to the store covers
)

// session is what a client id owns. A volatile session lives as long as its
// connection; a persistent one has a consumer in the store.
type session struct {
	b        *Broker
	id       string
	consumer ConsumerID // 0 = volatile

	// Guarded by core.mu. conn is written under both locks and may be read
	// under either.
	conn     *conn
	gen      uint64 // connections so far
	subs     map[string]*sub
	weight   int // of subs
	user     string
	version  byte
	expiry   time.Duration // after the connection; negative = never
	will     *Will
	left     time.Time // zero while connected
	willAt   time.Time // zero = no will is due
	expireAt time.Time // zero = never, or connected
	savedOrd uint64    // the store knows that numbers below are taken
	lost     uint64    // messages that its quota cost, as last seen

	mu sync.Mutex
	in map[uint16]bool // QoS 2 ids that the client opened and did not release; nil until there is one

	q0      queue[item] // QoS 0
	q       queue[item] // QoS 1 and 2, in the order of ord
	q0Bytes int
	qBytes  int
	burst   int    // queued items that count for no limit
	arrived uint64 // items so far

	flights  queue[flight] // written, not settled, in the order of ord
	inflight int           // flights that hold a slot of the window
	window   int
	nextOrd  uint64 // number of the next delivery, from 1
	moved    time.Time

	// Persistent sessions only.
	behind  bool         // deliveries come from the store, not from q
	cursor  Seq          // where the next Read begins
	lastSeq Seq          // the highest delivery that was stored for it
	floor   Seq          // everything below is settled
	sent    Seq          // the highest delivery that was written: DUP up to here
	dupNext int          // further deliveries that may have been written before a crash
	ahead   map[Seq]bool // settled beyond the cursor: Read may still return them
	settle  []Seq
	unset   bool // settle or floor changed since the store was told
	waits   Seq  // what the releaser was asked for
}

// item is one delivery that waits.
type item struct {
	msg    *Message
	n      uint64 // arrival in the session
	wait   Seq    // not before this is released
	seq    Seq    // place in the store, 0 = none
	ord    uint64
	subIDs []uint32
	qos    byte
	retain bool
	dup    bool
	group  *shareGroup // it came by a shared subscription
	free   bool        // part of a burst of retained messages: counts for no limit
}

// flight is a delivery that was written and is not settled.
type flight struct {
	ord   uint64
	seq   Seq
	qos   byte
	state flightState
	group *shareGroup
	msg   *Message // with a group only
}

type flightState byte

const (
	sent     flightState = iota // PUBACK or PUBREC is due
	received                    // PUBREC came; PUBCOMP is due
	settled
)

// pidOf is the packet id of a delivery: 1 to 65535, then 1 again.
func pidOf(ord uint64) uint16 { return uint16((ord-1)%65535 + 1) }

// ordOf is the highest number up to last that has the packet id.
func ordOf(last uint64, pid uint16) uint64 {
	return last - (uint64(pidOf(last))+65535-uint64(pid))%65535
}

func newSession(b *Broker, id string, consumer ConsumerID) *session {
	return &session{b: b, id: id, consumer: consumer, subs: map[string]*sub{},
		nextOrd: 1, floor: 1, cursor: 1, behind: consumer != 0,
		q0: queue[item]{pool: &itemPieces}, q: queue[item]{pool: &itemPieces}, flights: queue[flight]{pool: &flightPieces}}
}

// openLocked notes a QoS 2 id that the client opened.
func (s *session) openLocked(pid uint16) {
	if s.in == nil {
		s.in = map[uint16]bool{}
	}
	s.in[pid] = true
}

// durableLocked is what the store keeps of the session. core.mu is held.
func (s *session) durableLocked(reserve uint64) SaveSession {
	s.mu.Lock()
	defer s.mu.Unlock()
	return SaveSession{Session{Client: s.id, Consumer: s.consumer, User: s.user, Version: s.version, Expiry: s.expiry,
		Left: s.left, Sent: s.sent, NextOrd: s.nextOrd + reserve, Will: s.will}}
}

// number draws the number of the next delivery. core.mu is held.
func (s *session) number() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextOrd++
	return s.nextOrd - 1
}

// online says whether a client is connected. core.mu is held.
func (s *session) online() bool { return s.conn != nil }

// push queues a delivery that the store has taken, if it is a stored one. core.mu is held.
func (s *session) push(it item) {
	s.mu.Lock()
	c := s.conn
	if it.seq != 0 {
		s.lastSeq = it.seq
	}
	if c == nil || it.seq != 0 && (s.behind || it.seq < s.cursor) { // the store has it, or it was read from there already
		s.mu.Unlock()
		return
	}
	n := int(size(it.msg)) + 64
	s.arrived++
	it.n = s.arrived
	slow := false
	switch {
	case it.free:
		s.burst++
		slow = s.burst > maxBurst
		s.enqueueLocked(it, 0)
	case it.qos == 0 && s.q0Bytes+n > outBytes && s.q0.len() > 0:
		s.mu.Unlock()
		s.b.n.dropped.Add(1)
		return
	default:
		s.enqueueLocked(it, n)
		if s.q0Bytes > outBytes/2 || s.qBytes > ramBytes/2 {
			s.b.crowded.Store(true)
		}
		if s.consumer == 0 && it.qos > 0 {
			slow = s.slowLocked()
		}
	}
	if it.seq != 0 && (s.q.len() > ramMessages || s.qBytes > ramBytes) {
		s.behind, s.cursor = true, s.q.at(0).seq
		s.q.clear()
		s.qBytes = 0
	}
	s.mu.Unlock()
	if slow && c.kick(&ending{code: packet.QuotaExceeded, text: "does not take its messages", fault: true}) {
		s.b.n.slowClosed.Add(1)
	}
	c.wake()
}

func (s *session) enqueueLocked(it item, n int) {
	if it.qos == 0 {
		s.q0.push(it)
		s.q0Bytes += n
		return
	}
	s.q.push(it)
	s.qBytes += n
}

// slowLocked says whether a volatile client is too far behind.
func (s *session) slowLocked() bool {
	if s.q.len() <= slowMessages && s.qBytes <= slowBytes {
		return false
	}
	if s.q.len() > hardMessages || s.qBytes > hardBytes {
		return true
	}
	now := time.Now()
	if s.moved.IsZero() {
		s.moved = now
	}
	return now.Sub(s.moved) > slowTime
}

// attachLocked gives the session to a connection. Both locks are held.
func (s *session) attachLocked(c *conn) {
	s.conn = c
	s.gen++
	s.window = c.window
	s.q.clear()
	s.q0.clear()
	s.q0Bytes, s.qBytes, s.burst = 0, 0, 0
	s.behind = s.consumer != 0
	s.cursor = s.floor
	s.ahead = nil
	s.waits = 0
}

// detachLocked takes the session from its connection: what was written and not
// answered will be read from the store again; only releases are remembered.
// Both locks are held.
func (s *session) detachLocked() {
	s.flushSettleLocked()
	s.conn = nil
	s.q.clear()
	s.q0.clear()
	s.q0Bytes, s.qBytes, s.burst = 0, 0, 0
	for range s.flights.len() {
		if f := s.flights.pop(); f.state == received {
			s.flights.push(f)
		}
	}
	s.inflight = s.flights.len()
	s.behind, s.cursor = true, s.floor
}

// window is how many QoS 1 and 2 messages a client may have open.
func windowOf(announced uint16, limit int) int {
	if limit <= 0 || limit > 65535 {
		limit = 65535
	}
	if announced == 0 {
		return limit
	}
	return min(int(announced), limit)
}
