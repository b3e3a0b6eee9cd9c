// Package report is the form in which every room says that something is wrong:
// a stable word, who, what was seen and what to do. Its Ladder turns a failure
// that repeats ten thousand times into a handful of lines.
//
// It is not for usage errors or for mistakes of the configuration.
package report

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// Report is one thing that is wrong, or that was wrong and is solved.
type Report struct {
	Err    string // stable word, as in the error topic and in metrics: "no-answer"
	Level  slog.Level
	Who    string // "bus meters", "device pumps", "uplink cloud"
	Text   string // what was seen; what it probably means; what to do. One line.
	Since  time.Time
	Count  uint64
	Solved bool
}

// maxEntries bounds what a Ladder remembers; the oldest solved entry goes first, then the oldest.
const maxEntries = 4096

// maxText bounds a text in bytes.
const maxText = 512

// steps are the waits after which a lasting failure is said again.
var steps = []time.Duration{time.Minute, 10 * time.Minute, time.Hour, 24 * time.Hour}

// forget is how long a solved failure is remembered: one that returns sooner
// goes on where its ladder stood.
const forget = time.Hour

// Ladder says edges: the first failure, then again after 1 min, 10 min, 1 h and
// daily, and the recovery. Safe for concurrent use.
type Ladder struct {
	log *slog.Logger

	mu      sync.Mutex
	entries map[key]*entry
	forgot  uint64
}

type key struct{ err, who string }

type entry struct {
	first  time.Time
	since  time.Time // when this episode of it began
	next   time.Time // when it is said again
	step   int
	count  uint64
	said   bool      // the failure was said and its end was not
	solved time.Time // zero while it lasts
}

// NewLadder makes a ladder that logs to log; nil logs nothing.
func NewLadder(log *slog.Logger) *Ladder {
	return &Ladder{log: log, entries: map[key]*entry{}}
}

// Fail notes one occurrence. It logs and returns true when this is an edge; the
// returned report carries the count so far and when it began. Attributes are
// passed on to the log.
func (l *Ladder) Fail(r Report, attrs ...slog.Attr) (Report, bool) {
	now := time.Now()
	l.mu.Lock()
	k := key{r.Err, r.Who}
	e := l.entries[k]
	if e == nil {
		l.roomLocked()
		e = &entry{}
		l.entries[k] = e
	}
	switch {
	case e.count == 0 || !e.solved.IsZero() && now.Sub(e.solved) >= forget:
		*e = entry{first: now, since: now, next: now}
	case !e.solved.IsZero():
		// It comes and goes. Only the steps of the ladder say so, but one that
		// lasts this time is said within a minute.
		e.solved, e.since = time.Time{}, now
	}
	e.count++
	say := !now.Before(e.next)
	if !say && !e.said && now.Sub(e.since) >= steps[0] {
		say = true
	} else if say {
		e.next = now.Add(steps[len(steps)-1])
		for ; e.step < len(steps); e.step++ {
			if at := e.first.Add(steps[e.step]); at.After(now) {
				e.next = at
				break
			}
		}
	}
	e.said = e.said || say
	r.Since, r.Count = e.first, e.count
	l.mu.Unlock()
	r.Text = Line(r.Text)
	if say && l.log != nil {
		attrs = append(attrs, slog.String("err", r.Err))
		if r.Count > 1 {
			attrs = append(attrs, slog.Uint64("count", r.Count), slog.String("since", r.Since.UTC().Format(time.RFC3339)))
		}
		l.log.LogAttrs(context.Background(), r.Level, r.Who+": "+r.Text, attrs...)
	}
	return r, say
}

// Solve ends a failure and returns false when there was none. The end is
// logged when the failure was: one that comes and goes stays quiet between the
// steps. text is given how long it lasted and how often it was seen.
func (l *Ladder) Solve(err, who string, text func(lasted time.Duration, count uint64) string) (Report, bool) {
	l.mu.Lock()
	e := l.entries[key{err, who}]
	if e == nil || !e.solved.IsZero() {
		l.mu.Unlock()
		return Report{}, false
	}
	now := time.Now()
	e.solved = now
	said := e.said
	e.said = false
	r := Report{Err: err, Level: slog.LevelInfo, Who: who, Since: e.since, Count: e.count, Solved: true}
	l.mu.Unlock()
	r.Text = Line(text(now.Sub(r.Since), r.Count))
	if said && l.log != nil {
		l.log.LogAttrs(context.Background(), r.Level, who+": "+r.Text, slog.String("err", err), slog.String("state", "solved"))
	}
	return r, true
}

// Lasts says whether this failure was noted and is not solved.
func (l *Ladder) Lasts(err, who string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entries[key{err, who}]
	return e != nil && e.solved.IsZero()
}

// Forgotten counts the entries that went because the table was full.
func (l *Ladder) Forgotten() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.forgot
}

// roomLocked makes room for one entry: the one solved longest ago goes, or,
// when none is solved, the one that began first.
func (l *Ladder) roomLocked() {
	if len(l.entries) < maxEntries {
		return
	}
	var victim key
	var best *entry
	for k, e := range l.entries {
		if best == nil || older(e, best) {
			victim, best = k, e
		}
	}
	delete(l.entries, victim)
	l.forgot++
}

func older(a, b *entry) bool {
	if a.solved.IsZero() != b.solved.IsZero() {
		return b.solved.IsZero()
	}
	return cmp.Or(a.solved.Compare(b.solved), a.first.Compare(b.first)) < 0
}

// Line makes one line of at most 512 bytes from any text: control characters
// become blanks, so that a hostile name cannot forge a second line.
func Line(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0x2028 || r == 0x2029 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) <= maxText {
		return s
	}
	cut := maxText - len("…")
	for cut > 0 && s[cut]&0xC0 == 0x80 {
		cut--
	}
	return s[:cut] + "…"
}

// Name quotes a name that a foreign client chose, cut at 64 characters.
func Name(s string) string {
	r := []rune(s)
	if len(r) > 64 {
		s = string(r[:64]) + "…"
	}
	return fmt.Sprintf("%q", s)
}

// Duration prints a time that has passed as people say it: 4s, 3m12s, 5h02m, 3d04h.
func Duration(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d/time.Second))
	case d < time.Hour:
		if s := int(d / time.Second % 60); s != 0 {
			return fmt.Sprintf("%dm%02ds", int(d/time.Minute), s)
		}
		return fmt.Sprintf("%dm", int(d/time.Minute))
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d/time.Hour), int(d/time.Minute%60))
	}
	return fmt.Sprintf("%dd%02dh", int(d/(24*time.Hour)), int(d/time.Hour%24))
}

// Count prints a number with a thin gap between thousands: 4 310.
func Count[T ~int | ~int64 | ~uint64](n T) string {
	s := fmt.Sprint(n)
	neg := strings.HasPrefix(s, "-")
	s = strings.TrimPrefix(s, "-")
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + " " + s[i:]
	}
	if neg {
		s = "-" + s
	}
	return s
}
