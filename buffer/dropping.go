package buffer

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"busgate/config/report"
)

// dropping sums up a round of losses for the log.
type dropping struct {
	n        int
	names    map[string]int
	from, to int64 // ms; 0: not known
	reason   string
}

func newDropping() *dropping { return &dropping{names: map[string]int{}} }

func (d *dropping) add(c *Consumer, n int, ts int64, reason string) {
	d.n += n
	d.names[c.name] += n
	d.reason = reason
	if ts > 0 {
		if d.from == 0 {
			d.from = ts
		}
		d.to = max(d.to, ts)
	}
}

// of names whom the records were for, and when they arrived.
func (d *dropping) of() string {
	var names []string
	for name := range d.names {
		names = append(names, name)
	}
	slices.Sort(names)
	if len(names) > 3 {
		names = append(names[:3], fmt.Sprintf("%d more", len(names)-3))
	}
	text := " of " + strings.Join(names, ", ")
	if d.from != 0 {
		text += fmt.Sprintf(" from %s to %s", fromMillis(d.from).Format("15:04"), fromMillis(d.to).Format("15:04"))
	}
	return text
}

func (s *Store) sayDropped(d *dropping, l Limits) {
	if d.n == 0 {
		return
	}
	what := fmt.Sprintf("full (%d MiB)", l.MaxBytes>>20)
	switch d.reason {
	case reasonMessages:
		what = fmt.Sprintf("full (%s messages)", report.Count(l.MaxMessages))
	case reasonAge:
		what = fmt.Sprintf("older than %s", report.Duration(l.MaxAge))
	case reasonFree:
		s.fail("disk-full", slog.LevelError, fmt.Sprintf("disk almost full (%s, min_free_disk %d MiB): the oldest readings now make room for new ones; "+
			"%s dropped%s. Free space, or lower max_bytes in [buffer]", s.dir(), max(l.MinFreeDisk, 0)>>20, report.Count(d.n), d.of()))
		return
	}
	if d.reason == reasonThinned {
		s.fail("buffer-dropping", slog.LevelWarn, fmt.Sprintf("%s: every second of %s readings%s dropped", what, report.Count(2*d.n), d.of()))
		return
	}
	s.fail("buffer-dropping", slog.LevelWarn, fmt.Sprintf("%s: %s readings%s dropped, oldest first", what, report.Count(d.n), d.of()))
}

func (s *Store) sayQuota(c *Consumer, d *dropping) {
	if d.n > 0 {
		s.fail("quota", slog.LevelWarn, fmt.Sprintf("%s is over its quota: %s oldest messages dropped", report.Name(c.name), report.Count(d.n)))
	}
}

func (s *Store) sayFull(full error, l Limits) {
	if full == nil {
		s.solve("buffer-full", "there is room again")
		return
	}
	why := ""
	if l.WhenFull == Reject {
		why = ` (when_full = "reject")`
	}
	text := strings.TrimPrefix(full.Error(), "store ")
	s.fail("buffer-full", slog.LevelError, text+": publishes are not acknowledged until there is room"+why)
}
