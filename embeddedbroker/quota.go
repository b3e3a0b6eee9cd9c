package embeddedbroker

import (
	"fmt"
	"time"

	"busgate/config/report"
)

// errSessionFull is the stable word of a session that loses messages.
const errSessionFull = "session-full"

// watchQuotas says which sessions lost messages since the last look.
func (b *Broker) watchQuotas(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.sessions {
		if s.consumer == 0 {
			continue
		}
		lost := b.store.Usage(s.consumer).Dropped
		if lost == s.lost {
			b.quotas.Solve(errSessionFull, s.id, func(time.Duration, uint64) string { return "" })
			continue
		}
		since := s.lost
		s.lost = lost
		r, say := b.quotas.Fail(report.Report{Err: errSessionFull, Who: s.id})
		if !say {
			continue
		}
		seen := "is connected"
		if !s.left.IsZero() {
			seen = "last seen " + report.Duration(now.Sub(s.left)) + " ago"
		}
		b.log.Warn(fmt.Sprintf("broker: session %s (%s) is over its quota: %s oldest messages dropped since %s",
			report.Name(s.id), seen, report.Count(lost-since), r.Since.Local().Format("15:04")), "err", errSessionFull)
	}
}
