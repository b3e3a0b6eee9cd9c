package modbus

import (
	"slices"
	"time"

	"busgate/config"
	"busgate/devices"
)

const (
	enough       = 16 // samples before a timeout is learned
	minTimeout   = 30 * time.Millisecond
	minWindow    = time.Second
	maxWindow    = 5 * time.Second
	firstTurn    = 30 * time.Millisecond // how long a unit thinks until it is measured
	maxGaps      = 256                   // illegal gaps of one unit; above, no more bridging there
	maxVerified  = 1024
	askAgain     = time.Hour // a register that does not exist is asked again after
	busyWindow   = time.Hour
	busyTooOften = 10
)

// samples is the newest durations of something, in a ring.
type samples struct {
	ring [128]time.Duration
	n    int // ever added
}

func (s *samples) add(d time.Duration) {
	s.ring[s.n%len(s.ring)] = d
	s.n++
}

// quantiles of the newest k samples, in the order of qs; zeros when there are none.
func (s *samples) quantiles(k int, out []time.Duration, qs ...float64) {
	k = min(k, s.n, len(s.ring))
	if k == 0 {
		return
	}
	var room [128]time.Duration
	for i := range k {
		room[i] = s.ring[(s.n-1-i)%len(s.ring)]
	}
	sorted := room[:k]
	slices.Sort(sorted)
	for i, q := range qs {
		out[i] = sorted[min(int(q*float64(k)), k-1)]
	}
}

// gap is a run of registers that nobody wants, [from, to), in one table.
type gap struct {
	table    string
	from, to int
}

// unit is what is known about one device on the bus.
type unit struct {
	dev    *config.Device
	points []config.Point // of dev, those of SunSpec models where they really stand
	layout *layout        // of a SunSpec device; nil: not found out yet
	counts devices.UnitCounts

	answer   samples // end of the request to the first byte
	turn     samples // the same without what the wire takes
	tooLates samples // answers that came later than twice the configured timeout
	p99      time.Duration
	latest   time.Duration // the longest that an answer took which nobody waited for any more
	ta       time.Duration // median turnaround, or what the profile says

	version     int // grows when plans made before are out of date
	plannedTa   time.Duration
	maxRead     int // learned limit of registers in one request
	illegal     []gap
	verified    map[gap]bool
	unsupported map[span]refusal
	best        request // the cheapest request that was ever answered
	proven      bool    // best holds something
	busy        []time.Time
	orders      orders
	mask        masking // whether it knows function 22
	widest      int     // registers of the longest read that it ever answered

	who    string // what function 0x2B said; noIdentity: nothing; "": not asked yet
	asked  bool   // who was asked for, or need not be
	loaded bool   // from the Memory
	saved  known  // what the Memory has
	noted  time.Time
}

// refusal is a lone register that the unit refused.
type refusal struct {
	code  byte
	until time.Time
}

func newUnit(dev *config.Device) *unit {
	u := &unit{dev: dev, points: dev.Points, maxRead: 125, verified: map[gap]bool{}, unsupported: map[span]refusal{}, orders: orders{}, noted: time.Now()}
	u.ta = firstTurn
	if dev.AnswerTime > 0 {
		u.ta = dev.AnswerTime
	}
	u.plannedTa = u.ta
	return u
}

// heard notes an answer.
func (u *unit) heard(x exchange, t timing) {
	u.counts.Heard = x.end
	u.answer.add(x.first.Sub(x.sent))
	u.turn.add(max(0, x.end.Sub(x.sent)-t.gap-t.frame(x.size)))
	if n := u.answer.n; n > enough && n%8 != 0 {
		return // sorted now and then only
	}
	var q [3]time.Duration
	u.answer.quantiles(len(u.answer.ring), q[:], .5, .95, .99)
	u.counts.RTT50, u.counts.RTT95, u.p99 = q[0], q[1], q[2]
	u.turn.quantiles(64, q[:1], .5)
	u.ta, u.counts.Turnaround = q[0], q[0]
	if d := u.ta - u.plannedTa; u.answer.n >= enough && 4*max(d, -d) > max(u.plannedTa, time.Millisecond) {
		u.plannedTa = u.ta
		u.version++
	}
}

// tooLate notes an answer that nobody waited for any more; it raises the timeout.
func (u *unit) tooLate(after time.Duration) {
	u.counts.Late++
	u.latest = max(u.latest, after)
	u.counts.Heard = time.Now()
	u.answer.add(after)
	var q [1]time.Duration
	u.answer.quantiles(len(u.answer.ring), q[:], .99)
	u.p99 = max(u.p99, q[0])
}

// timeout is how long the first byte may take: as configured until enough
// answers are known, then three times the 99th percentile.
func (u *unit) timeout(bus *config.Bus, t timing) time.Duration {
	if u.answer.n < enough {
		return bus.Timeout
	}
	return min(max(3*u.p99, minTimeout+t.latency), 2*bus.Timeout)
}

func (u *unit) patience(bus *config.Bus, t timing) patience {
	return patience{timeout: u.timeout(bus, t), window: u.window(bus)}
}

// window is how long after a timeout an answer may still come: of a unit that
// is not known yet anything is expected, else three times the 99th percentile,
// and twice the latest answer that ever came. A unit that was never late can be so
// for the first time, so that it is never less than a second; only its own blocks
// of the same length wait for that.
func (u *unit) window(bus *config.Bus) time.Duration {
	most := max(maxWindow, bus.Timeout)
	if u.answer.n < enough {
		return most
	}
	return min(max(3*u.p99, 2*u.latest, bus.Timeout, minWindow), most)
}

// probeTimeout is short for a unit whose answers are known.
func (u *unit) probeTimeout(bus *config.Bus) time.Duration {
	if u.p99 == 0 {
		return bus.Timeout
	}
	return min(bus.Timeout, max(100*time.Millisecond, 3*u.p99))
}

// wasBusy counts exceptions 5 and 6 and returns how many came within an hour.
func (u *unit) wasBusy() int {
	now := time.Now()
	u.busy = slices.DeleteFunc(u.busy, func(t time.Time) bool { return now.Sub(t) > busyWindow })
	if len(u.busy) < 1000 {
		u.busy = append(u.busy, now)
	}
	return len(u.busy)
}

// forbid remembers a gap that must not be read over.
func (u *unit) forbid(g gap) {
	if len(u.illegal) < maxGaps {
		u.illegal = append(u.illegal, g)
	}
	u.version++
}

// verify remembers a gap that was read over without complaint.
func (u *unit) verify(g gap) {
	if len(u.verified) < maxVerified {
		u.verified[g] = true
	}
}

// forbidden says that a block [from, to) would read over an illegal gap, or
// over any, once too many are known.
func (u *unit) forbidden(table string, from, to int) bool {
	for _, g := range u.illegal {
		if g.table == table && from <= g.from && to >= g.to {
			return true
		}
	}
	return false
}
