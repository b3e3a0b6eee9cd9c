package uplink

import (
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"busgate/config/report"
)

// factMonth is the key under which the bytes of the period are kept.
const factMonth = "month"

const (
	packetCost = 52               // bytes of TCP, IP and the link that a provider counts with each packet
	monthEvery = 10 * time.Second // between two notes of what was used
)

// worth is how much a record is worth when the month's bytes run out.
type worth uint8

const (
	backlog worth = iota // goes while the month is ahead of its pace
	live                 // goes until 98 % are used
	urgent               // states and answers: until the end
)

// month is the byte budget of a metered link. A cap of 0 is no budget.
type month struct {
	cap   int64
	day   int // of the month on which the period begins, 1..28
	used  int64
	begin time.Time // of the period; zero while the clock was never known
	seen  uint64    // of the traffic counters, already in used
	noted time.Time
	last  int64 // used, as noted
	now   time.Time
	known bool
}

// period is the one that t lies in.
func period(t time.Time, day int) (begin, end time.Time) {
	t = t.UTC()
	begin = time.Date(t.Year(), t.Month(), day, 0, 0, 0, 0, time.UTC)
	if begin.After(t) {
		begin = begin.AddDate(0, -1, 0)
	}
	return begin, begin.AddDate(0, 1, 0)
}

// load takes over what an earlier process noted: "2026-11-01 12345".
func (m *month) load(v string) {
	day, used, _ := strings.Cut(v, " ")
	begin, err1 := time.Parse(time.DateOnly, day)
	n, err2 := strconv.ParseInt(used, 10, 64)
	if err1 == nil && err2 == nil && n >= 0 {
		m.begin, m.used, m.last = begin, n, n
	}
}

func (m *month) note() []byte {
	return fmt.Appendf(nil, "%s %d", m.begin.Format(time.DateOnly), m.used)
}

// count brings used up to the traffic so far and begins a new period when it is
// time. Nothing begins while the clock is not known.
func (m *month) count(traffic uint64, now time.Time, known bool) {
	m.used += int64(traffic - m.seen)
	m.seen, m.now, m.known = traffic, now, known
	if !known {
		return
	}
	if begin, _ := period(now, m.day); !begin.Equal(m.begin) {
		if !m.begin.IsZero() {
			m.used = 0
		}
		m.begin = begin
	}
}

// pace is how much may be used by now without taking from the days to come:
// the share of the time that has passed, and one day ahead.
func (m *month) pace() int64 {
	if m.begin.IsZero() || !m.known {
		return m.cap / 30
	}
	begin, end := period(m.now, m.day)
	share := float64(m.now.Sub(begin)) / float64(end.Sub(begin))
	return int64(float64(m.cap)*share) + m.cap/30
}

// allows tells whether a record of this worth may go.
func (m *month) allows(w worth) bool {
	switch {
	case m.cap <= 0:
		return true
	case w == urgent:
		return m.used < m.cap
	case w == live:
		return m.used < m.cap/100*98
	}
	return m.used < m.pace() && m.used < m.cap/100*98
}

// exhausted tells that nothing more may go this month.
func (m *month) exhausted() bool { return m.cap > 0 && m.used >= m.cap }

// worth of a record: lane 0 is urgent; what is older than live_age is backlog.
// With live_first the budget is asked before the backlog is leased, see afford:
// what is leased then goes, because the store cannot lease past it for long.
func (l *Link) worth(r *lot, now time.Time) worth {
	switch {
	case r.Lane == 0:
		return urgent
	case l.set.cfg.Order == "live_first":
		return live
	case !r.At.IsZero() && l.set.cfg.LiveAge > 0 && now.Sub(r.At) > l.set.cfg.LiveAge:
		return backlog
	}
	return live
}

// affordable is how much of the backlog is leased at a time while a budget is
// kept: as much can be used above the pace.
const affordable = 16

// afford is how many of n records of the backlog may be leased now.
func (l *Link) afford(n int) int {
	l.poor = false
	if l.month.cap <= 0 || l.old == nil {
		return n
	}
	if !l.month.allows(backlog) {
		l.poor = !l.fetch.dry
		return 0
	}
	most := affordable
	if batches(&l.set.cfg) {
		most = max(most, l.set.batchRecords())
	}
	return min(n, most)
}

// count brings the month up to date. What is in the buffer of the connection is
// counted when it leaves.
func (l *Link) count() {
	wall, known := l.o.Clock()
	l.month.count(l.bytes.total(), wall, known)
}

// meter counts the bytes of the month, notes them, and warns once at 80 %.
func (l *Link) meter(now time.Time) {
	m := &l.month
	if m.cap <= 0 {
		return
	}
	l.count()
	if l.o.Keep != nil && m.used != m.last && now.Sub(m.noted) >= monthEvery {
		m.noted, m.last = now, m.used
		l.o.Keep(factMonth, m.note(), func(error) {})
	}
	const word = "budget"
	if m.used < m.cap/10*8 {
		l.ladder.Solve(word, l.who, func(time.Duration, uint64) string { return "a new month begins for budget_month" })
		return
	}
	text := fmt.Sprintf("%d %% of budget_month are used; the period ends on %s", m.used*100/m.cap, periodEnd(m))
	if m.exhausted() {
		text = fmt.Sprintf("budget_month is used up; nothing is sent until %s", periodEnd(m))
	}
	l.ladder.Fail(report.Report{Err: word, Level: slog.LevelWarn, Who: l.who, Text: text}, slog.String("uplink", l.name))
}

func periodEnd(m *month) string {
	if m.begin.IsZero() {
		return "a day that is not known yet (the clock is not set)"
	}
	return m.begin.AddDate(0, 1, 0).Format(time.DateOnly)
}
