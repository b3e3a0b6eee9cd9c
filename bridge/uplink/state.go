package uplink

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// Phase is the state of a link.
type Phase uint8

// The phases of a link. Connected phases are those from Resuming on.
const (
	Stopped      Phase = iota // not running
	Idle                      // back-off runs
	Dialing                   // TCP, TLS, CONNECT
	Refused                   // credentials or certificate refused: retried slowly
	WaitingClock              // the certificate is not yet valid and the clock is not known
	Resuming                  // connected; what is in doubt is sent again
	Draining                  // connected; more than one window waits
	Online                    // connected; acknowledged progress, or nothing waits
	Paused                    // connected; the month's bytes are used up
)

var phaseNames = [...]string{"stopped", "idle", "dialing", "refused", "waiting-clock", "resuming", "draining", "online", "paused"}

// String is the name of the phase, as in status and metrics.
func (p Phase) String() string { return phaseNames[p] }

// State is the phase of a link.
type State struct {
	Phase Phase
	Since time.Time // of Word: tries that fail do not begin an outage anew
	Why   string    // last error; "" when none since the last progress
}

// Word is what the LAN topic gateway/uplink/<name> says: online, offline or
// draining. A link that is connected and has something to do is draining.
func (s State) Word() string {
	switch s.Phase {
	case Online:
		return "online"
	case Resuming, Draining, Paused:
		return "draining"
	}
	return "offline"
}

// Connected tells whether the cloud broker has accepted the connection.
func (s State) Connected() bool { return s.Phase >= Resuming }

// Status is a snapshot of a link. All counters run from New.
type Status struct {
	State
	Name      string
	Address   string    // tried or connected last
	NextTry   time.Time // zero unless Idle, Refused or WaitingClock
	LastError string    // stays after the link is back
	LastErrAt time.Time

	Sent     uint64 // records whose acknowledgement came (QoS 0: written)
	Repeated uint64 // PUBLISH sent again
	Pending  int    // records waiting or in flight
	Bytes    int64  // of them
	Oldest   time.Duration
	InFlight int
	RTT      time.Duration // of acknowledgements, smoothed; 0 = none yet

	Connects       uint64
	SessionPresent uint64
	SessionReset   uint64
	Closed         map[string]uint64 // connections closed, by reason
	AcksUnknown    uint64
	Oversize       uint64 // records too large for the cloud, replaced by their loss report
	Poison         uint64 // records that killed the connection, replaced by their loss report
	Echo           uint64
	DownAccepted   uint64
	DownRefused    uint64
	DownOverflow   uint64
	Packets        uint64 // PUBLISH of records, without repetitions
	Records        uint64 // records in them
	BytesIn        uint64 // at the socket, below TLS
	BytesOut       uint64
	WindowFull     time.Duration // time in which the window held records back
	RateWait       time.Duration
	BudgetWait     time.Duration
	BudgetUsed     int64     // bytes of this month
	Degraded       []string  // features switched off for this cloud
	CertExpires    time.Time // own certificate; zero without one
	RTTCounts      []uint64  // by RTTBuckets, and one above
	RTTSum         time.Duration
}

// RTTBuckets are the upper bounds of Status.RTTHistogram.
var RTTBuckets = []time.Duration{
	5 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond,
	200 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second, 30 * time.Second,
}

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
	downAccepted, downRefused            uint64
	downOverflow                         uint64
	packets, records                     uint64
	ackedAtDial                          uint64
	closed                               map[string]uint64
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

// Status is a snapshot, at most a second old while connected.
func (l *Link) Status() Status {
	l.board.mu.Lock()
	st := l.board.st
	st.Closed = maps.Clone(st.Closed)
	st.RTTCounts = slices.Clone(st.RTTCounts)
	l.board.mu.Unlock()
	st.BytesIn, st.BytesOut = l.bytes.in.Load(), l.bytes.out.Load()
	return st
}

// publishStatus puts the owner's numbers on the board.
func (l *Link) publishStatus() {
	l.stats.measure(l.s.rtt)
	l.s.rtt = l.s.rtt[:0]
	st := Status{
		State: l.state, Name: l.name, Address: l.stats.address, NextTry: l.nextTry,
		LastError: l.stats.lastError, LastErrAt: l.stats.lastErrAt,
		Sent: l.s.acked, Repeated: l.s.repeats, InFlight: l.s.inFlight(), RTT: l.stats.rtt,
		Connects: l.stats.connects, SessionPresent: l.stats.sessionPresent, SessionReset: l.stats.sessionReset,
		Closed: maps.Clone(l.stats.closed), AcksUnknown: l.s.unknown, Oversize: l.stats.oversize, Poison: l.stats.poison,
		Echo: l.stats.echo, DownAccepted: l.stats.downAccepted, DownRefused: l.stats.downRefused, DownOverflow: l.stats.downOverflow,
		Packets: l.stats.packets, Records: l.stats.records,
		WindowFull: l.stats.windowFull.total, RateWait: l.gate.shut.total, BudgetWait: l.stats.budgetWait.total,
		BudgetUsed: l.month.used, Degraded: l.suspect.names(), CertExpires: l.pair.expires(), RTTCounts: slices.Clone(l.stats.rttCounts), RTTSum: l.stats.rttSum,
	}
	if l.o.Usage != nil {
		st.Pending, st.Bytes, st.Oldest = l.o.Usage()
	}
	l.board.mu.Lock()
	l.board.st = st
	l.board.mu.Unlock()
}

// enter changes the phase and tells it.
func (l *Link) enter(p Phase, why string) {
	if l.state.Phase == p {
		l.state.Why = why
		l.publishStatus()
		return
	}
	next := State{Phase: p, Since: time.Now(), Why: why}
	if next.Word() == l.state.Word() {
		next.Since = l.state.Since
	}
	l.state = next
	l.publishStatus()
	if l.o.Notify != nil {
		l.o.Notify(l.state)
	}
}
