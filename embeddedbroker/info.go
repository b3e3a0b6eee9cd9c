package embeddedbroker

import (
	"cmp"
	"slices"
	"time"
)

// Retained lists the retained messages that match filter, in topic order.
func (b *Broker) Retained(filter string) []*Message {
	if !validFilter(filter) {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []*Message
	for _, h := range b.kept.match(filter, time.Now()) {
		out = append(out, h.msg)
	}
	return out
}

// Stats are counters since the start and gauges of this moment.
type Stats struct {
	Clients       int // connected
	Sessions      int // connected or sleeping
	Subscriptions int
	Shared        int // of them shared
	Retained      int
	RetainedBytes int64

	Received          uint64 // PUBLISH packets from clients
	Sent              uint64 // PUBLISH packets to clients
	BytesReceived     uint64
	BytesSent         uint64
	Dropped           uint64 // QoS 0 for clients that do not read
	DroppedQuota      uint64 // of sleeping sessions over their quota
	DroppedFull       uint64 // QoS 0 and readings that the store refused
	DroppedLocal      uint64 // for subscriptions in process that are behind
	Expired           uint64
	Oversize          uint64 // larger than the client takes
	RefusedFull       uint64 // publishes answered with 0x97 or 0x83
	RefusedReserved   uint64
	RefusedACL        uint64
	RefusedConnects   uint64
	PacedConnects     uint64 // times that a connection waited for the pace of all
	Slowed            uint64 // packets of clients that ask for too much work
	RefusedAliases    uint64 // clients with too long topics behind their aliases
	FailedLogins      uint64
	Withheld          uint64 // packets whose answer waited for room
	SlowClosed        uint64
	UnknownAcks       uint64
	SessionsExpired   uint64
	SessionsEndedFull uint64
}

// Stats gives the numbers of this moment.
func (b *Broker) Stats() Stats {
	n := &b.n
	s := Stats{
		Received: n.received.Load(), Sent: n.sent.Load(),
		BytesReceived: n.receivedBytes.Load(), BytesSent: n.sentAll.Load(),
		Dropped: n.dropped.Load(), DroppedFull: n.droppedFull.Load(), DroppedLocal: n.droppedLocal.Load(),
		Expired: n.expired.Load(), Oversize: n.oversize.Load(), RefusedFull: n.refusedFull.Load(),
		RefusedReserved: n.refusedReserved.Load(), RefusedACL: n.refusedACL.Load(),
		RefusedConnects: n.refusedConnects.Load(), PacedConnects: n.paced.Load(), Slowed: n.slowed.Load(), RefusedAliases: n.refusedAliases.Load(),
		FailedLogins: n.failedLogins.Load(),
		Withheld:     n.withheld.Load(), SlowClosed: n.slowClosed.Load(), UnknownAcks: n.unknownAcks.Load(),
		SessionsExpired: n.expiredSessions.Load(), SessionsEndedFull: n.endedFull.Load(),
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s.Sessions, s.Subscriptions, s.Shared = len(b.sessions), b.subs.count, b.subs.shared
	s.Retained, s.RetainedBytes = b.kept.count, b.kept.bytes
	for _, x := range b.sessions {
		if x.conn != nil {
			s.Clients++
		}
		if x.consumer != 0 {
			s.DroppedQuota += b.store.Usage(x.consumer).Dropped
		}
	}
	return s
}

// ClientInfo is one session for people.
type ClientInfo struct {
	ID            string
	User          string
	Addr          string // "" while it is not connected
	Version       byte   // 3, 4 or 5
	Connected     bool
	Persistent    bool
	Left          time.Time // when it went to sleep; zero while connected
	Subscriptions int
	Inflight      int
	Queued        int // messages that wait, in memory or on disk
	QueuedBytes   int64
	Dropped       uint64 // by the quota
}

// Clients lists connected clients and sleeping sessions by id.
func (b *Broker) Clients() []ClientInfo {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]ClientInfo, 0, len(b.sessions))
	for _, s := range b.sessions {
		i := ClientInfo{ID: s.id, User: s.user, Version: s.version, Connected: s.conn != nil, Persistent: s.consumer != 0,
			Left: s.left, Subscriptions: len(s.subs)}
		if s.conn != nil {
			i.Addr = s.conn.addr
		}
		s.mu.Lock()
		i.Inflight, i.Queued, i.QueuedBytes = s.inflight, s.q.len()+s.q0.len(), int64(s.qBytes+s.q0Bytes)
		s.mu.Unlock()
		if s.consumer != 0 {
			u := b.store.Usage(s.consumer)
			i.Queued, i.QueuedBytes, i.Dropped = u.Messages, u.Bytes, u.Dropped
		}
		out = append(out, i)
	}
	slices.SortFunc(out, func(x, y ClientInfo) int { return cmp.Compare(x.ID, y.ID) })
	return out
}

// DropSession ends a session, connected or not; false: there is none.
func (b *Broker) DropSession(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.sessions[id]
	if s == nil {
		return false
	}
	if c := s.conn; c != nil {
		c.kick(&ending{code: codeDropped, text: "its session was dropped by hand"})
	}
	b.publishWillLocked(s)
	b.endLocked(s)
	return true
}
