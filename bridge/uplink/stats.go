package uplink

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"busgate/buffer"
	"busgate/embeddedbroker"
)

// Status is a snapshot of a link: what it does now, and its numbers.
type Status struct {
	State
	Name      string
	Address   string    // tried or connected last
	NextTry   time.Time // zero unless Idle, Refused or WaitingClock
	LastError string    // stays after the link is back
	LastErrAt time.Time
	Stats
}

// Stats are the numbers of a link. Each names the metric that shows it, without
// busgate_uplink_ before it and the label uplink. Counters run from New and never
// go back, not at an Update either; the rest is as of the snapshot.
type Stats struct {
	// What waits.
	Pending  int           // backlog_records: waiting or in flight
	Bytes    int64         // backlog_bytes: of them
	Oldest   time.Duration // oldest_s: age of the oldest of them, 0 = none waits
	InFlight int           // in_flight: PUBLISH written and not completed, 0..1024

	// What was sent. A batch is one packet of many records.
	Sent     uint64 // counter acked: records whose acknowledgement came (QoS 0: written)
	Repeated uint64 // counter resent: PUBLISH written again
	Packets  uint64 // PUBLISH of records, without repetitions; see RecordsPerPacket
	Records  uint64 // records in them
	BytesIn  uint64 // counter bytes{dir="in"}: at the socket, below TLS
	BytesOut uint64 // counter bytes{dir="out"}
	Oversize uint64 // counter oversize: records too large for the cloud, replaced by their loss report
	Poison   uint64 // counter poison: records that killed the connection, replaced by their loss report
	Unfit    uint64 // counter unfit: records that the encoding has no form for; the cloud is not sent them

	// What the connection went through.
	Connects       uint64            // counter connects: CONNACK with return code 0
	SessionPresent uint64            // counter session_present: ... that found our session
	SessionReset   uint64            // counter session_reset: sessions that we made the broker forget
	Closed         map[string]uint64 // counter closed{reason}: connections by the word of their end
	AcksUnknown    uint64            // counter acks_unknown: acknowledgements that answer nothing of ours

	// RTTCounts is the histogram rtt_seconds, from PUBLISH to PUBACK or PUBREC: how
	// many took as long as each bound of RTTBuckets at most and longer than the one
	// before, and at the end those above all. nil before the first connection.
	RTTCounts []uint64
	RTTSum    time.Duration // of all of them
	RTT       time.Duration // their smoothed mean; 0 = none yet

	// What held records back, in seconds that were waited.
	WindowFull time.Duration // counter window_full_s: by window or window_bytes
	RateWait   time.Duration // counter rate_wait_s: by rate_msgs or rate_bytes
	BudgetWait time.Duration // counter budget_wait_s: by budget_month
	BudgetUsed int64         // budget_used: bytes of the running month, 52 a packet included; kept over restarts; 0 without budget_month

	// What came down.
	Echo         uint64            // counter echo: messages of our own, dropped
	DownAccepted uint64            // counter down_accepted: published on the LAN and acknowledged
	DownRefused  uint64            // counter down_refused: outside accept, dropped
	DownOverflow uint64            // counter down_overflow: not taken for want of room, to be sent again by the cloud
	Commands     map[string]uint64 // counter commands{result}: answers to commands that went to this cloud, by ok or their error word

	Degraded       []string  // degraded{feature}: those of Features that are off for this cloud
	CertExpires    time.Time // cert_expires_s, from now: end of our own certificate; zero without one
	GoroutinesLeft int       // goroutines_left: of connections that are closed; above 0 for more than a moment is a fault of ours
}

// RecordsPerPacket is records_per_packet, the mean since New; 0 before the first.
func (s *Stats) RecordsPerPacket() float64 {
	if s.Packets == 0 {
		return 0
	}
	return float64(s.Records) / float64(s.Packets)
}

// RTTBuckets are the upper bounds of Stats.RTTCounts, rising.
var RTTBuckets = []time.Duration{
	5 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond,
	200 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second, 30 * time.Second,
}

// Features are the names that Stats.Degraded may hold.
func Features() []string { return slices.Clone(featureNames[:]) }

// board holds the status for readers of other goroutines.
type board struct {
	mu sync.Mutex
	st Status
}

// counters are the owner's part of the status.
type counters struct {
	address                              string
	lastError                            string
	lastErrAt                            time.Time
	connects, sessionPresent             uint64
	sessionReset, oversize, poison, echo uint64
	unfit                                uint64
	downAccepted, downRefused            uint64
	downOverflow                         uint64
	packets, records                     uint64
	ackedAtDial                          uint64
	closed                               map[string]uint64
	commands                             map[string]uint64
	windowFull, budgetWait               stopwatch
	rtt                                  time.Duration
	rttCounts                            []uint64
	rttSum                               time.Duration
}

// measure takes the samples of the session into the histogram and the mean.
func (c *counters) measure(samples []time.Duration) {
	if c.rttCounts == nil {
		c.rttCounts = make([]uint64, len(RTTBuckets)+1)
	}
	for _, d := range samples {
		i := 0
		for i < len(RTTBuckets) && d > RTTBuckets[i] {
			i++
		}
		c.rttCounts[i]++
		c.rttSum += d
		if c.rtt == 0 {
			c.rtt = d
		}
		c.rtt += (d - c.rtt) / 8
	}
}

// maxResults bounds the words of Stats.Commands; those beyond are "other".
const maxResults = 64

// answer is what is read of the answer to a command.
type answer struct {
	OK    bool   `json:"ok"`
	Error string `json:"error"`
}

// result counts a record that answers a command.
func (c *counters) result(base string, r *buffer.Record) {
	if r.Dup || embeddedbroker.Kind(r.Kind) != embeddedbroker.KindStatus || !strings.HasSuffix(r.Topic, "/ack") || !strings.HasPrefix(r.Topic, base+"/") {
		return
	}
	var a answer
	if !bytes.HasPrefix(r.Payload, []byte("{")) || json.Unmarshal(r.Payload, &a) != nil {
		return
	}
	word := a.Error
	if a.OK {
		word = "ok"
	}
	if c.commands == nil {
		c.commands = map[string]uint64{}
	}
	if _, known := c.commands[word]; !known && len(c.commands) >= maxResults {
		word = "other"
	}
	c.commands[word]++
}

// crew are the goroutines of one connection. Those that still run when it is
// dismissed are the ones left.
type crew struct {
	wg        sync.WaitGroup
	running   atomic.Int64
	dismissed atomic.Bool
}

// send starts one.
func (c *crew) send(fn func()) {
	c.running.Add(1)
	c.wg.Go(func() {
		defer c.running.Add(-1)
		fn()
	})
}

// dismiss waits for all of them.
func (c *crew) dismiss() {
	c.dismissed.Store(true)
	c.wg.Wait()
	c.dismissed.Store(false)
}

// left is how many of a dismissed crew run. Safe for concurrent use.
func (c *crew) left() int {
	if !c.dismissed.Load() {
		return 0
	}
	return int(c.running.Load())
}

// Status is a snapshot, at most a second old while the link runs. Safe for
// concurrent use.
func (l *Link) Status() Status {
	l.board.mu.Lock()
	st := l.board.st
	st.Closed = maps.Clone(st.Closed)
	st.Commands = maps.Clone(st.Commands)
	st.RTTCounts = slices.Clone(st.RTTCounts)
	st.Degraded = slices.Clone(st.Degraded)
	l.board.mu.Unlock()
	st.BytesIn, st.BytesOut = l.bytes.in.Load(), l.bytes.out.Load()
	st.GoroutinesLeft = l.crew.left()
	return st
}

// publishStatus puts the owner's numbers on the board.
func (l *Link) publishStatus() {
	l.stats.measure(l.s.rtt)
	l.s.rtt = l.s.rtt[:0]
	st, now := &l.stats, time.Now()
	n := Stats{
		Sent: l.s.acked, Repeated: l.s.repeats, InFlight: l.s.inFlight(), RTT: st.rtt,
		Connects: st.connects, SessionPresent: st.sessionPresent, SessionReset: st.sessionReset,
		Closed: maps.Clone(st.closed), Commands: maps.Clone(st.commands), AcksUnknown: l.s.unknown,
		Oversize: st.oversize, Poison: st.poison, Unfit: st.unfit,
		Echo: st.echo, DownAccepted: st.downAccepted, DownRefused: st.downRefused, DownOverflow: st.downOverflow,
		Packets: st.packets, Records: st.records,
		WindowFull: st.windowFull.sum(now), RateWait: l.gate.shut.sum(now), BudgetWait: st.budgetWait.sum(now),
		BudgetUsed: l.month.used, Degraded: l.suspect.names(), CertExpires: l.pair.expires(),
		RTTCounts: slices.Clone(st.rttCounts), RTTSum: st.rttSum,
	}
	if l.month.cap <= 0 {
		n.BudgetUsed = 0
	}
	if l.o.Usage != nil {
		n.Pending, n.Bytes, n.Oldest = l.o.Usage()
	}
	l.board.mu.Lock()
	l.board.st = Status{
		State: l.state, Name: l.name, Address: st.address, NextTry: l.nextTry,
		LastError: st.lastError, LastErrAt: st.lastErrAt, Stats: n,
	}
	l.board.mu.Unlock()
}

// paused stops the clocks of what holds records back: without a connection it is
// the connection that does.
func (l *Link) paused(now time.Time) {
	l.stats.windowFull.run(false, now)
	l.stats.budgetWait.run(false, now)
	l.gate.shut.run(false, now)
}
