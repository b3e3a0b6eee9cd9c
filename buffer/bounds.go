package buffer

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"busgate/config/report"
)

const (
	// A disk below MinFreeDisk, or full, does not let the file grow: what is in
	// it makes room. So much stays unused for the -wal file and the last commit.
	freeSlack = 2 << 20
	freeFloor = 8 << 20 // the store keeps at least this while the disk is not full

	quietAfter = 10 * time.Minute // without a loss: dropping is over

	reliefMost = 1024 // segments dropped in one round, between two commits
)

// usage is how much the store holds. Guarded by Store.mu.
type usage struct {
	file  int64 // size of the database, at the last look
	other int64 // of it, used by anything but living segments
	free  int64 // of the disk; -1: not known
}

// usedLocked is the bytes of the file that are in use.
func (s *Store) usedLocked() int64 { return max(s.use.other, 0) + s.space }

// overLocked names the bound that is broken; "" when none is.
func (s *Store) overLocked() string {
	l := &s.limits
	switch used := s.usedLocked(); {
	case s.records > l.MaxMessages:
		return reasonMessages
	case used > l.MaxBytes:
		return reasonBytes
	case s.spent && used > max(s.use.file-freeSlack, s.use.file/2):
		return reasonFree
	case l.MinFreeDisk > 0 && s.use.free >= 0 && s.use.free < l.MinFreeDisk && used > max(s.use.file-freeSlack, freeFloor):
		return reasonFree
	}
	return ""
}

// measure looks at the file and the disk. The committer calls it each second
// while there is work.
func (s *Store) measure() {
	s.mu.Lock()
	s.measured = time.Now()
	s.agedLocked()
	s.mu.Unlock()
	free, err := s.sys.free(s.dir())
	if err != nil {
		free = -1
	}
	s.io.Lock()
	var pages, unused int64
	if s.db != nil {
		pages, err = s.db.integer("PRAGMA page_count")
		if err == nil {
			unused, err = s.db.integer("PRAGMA freelist_count")
		}
	}
	s.io.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.use.free = free
	if err == nil {
		s.use.file = pages * pageSize
		s.use.other = (pages-unused)*pageSize - s.space + s.ramBytes - s.trimSpace
	}
}

// agedLocked notes whether the oldest segment is older than MaxAge.
func (s *Store) agedLocked() {
	s.aged = nil
	if s.limits.MaxAge <= 0 {
		return
	}
	for l := range s.lanes {
		for _, h := range s.lanes[l].segs {
			if h.dead {
				continue
			}
			if age, ok := s.ageLocked(h); ok && age > s.limits.MaxAge && !s.heldLocked(h) {
				s.aged = append(s.aged, h)
				continue
			}
			break
		}
	}
}

// ageLocked is the time since the newest record of a segment arrived. Without
// a clock it is known within one start of the kernel only.
func (s *Store) ageLocked(h *header) (time.Duration, bool) {
	now := s.sys.mono()
	b := s.boots[int64(h.boot)]
	switch {
	case h.ts > 0 && s.clock.known:
		return s.clock.at(now).Sub(fromMillis(h.ts)), true
	case h.ts < 0 && b != nil && sameKernel(b, s.boot):
		return now - time.Duration(-h.ts)*time.Millisecond, true
	case h.ts < 0 && b != nil && b.quality != NoTime && s.clock.known:
		at := clock{offset: b.offset}
		return s.clock.at(now).Sub(at.at(time.Duration(-h.ts) * time.Millisecond)), true
	}
	return 0, false
}

// heldLocked says whether an open lease lies in a segment, or a consumer has
// too many gaps to lose it.
func (s *Store) heldLocked(h *header) bool {
	for slot := range slotsOf(union(h.needs)) {
		if c := s.slots[slot]; c != nil && c.needsLocked(h) && c.holdsLocked(h) {
			return true
		}
	}
	return false
}

func (c *Consumer) holdsLocked(h *header) bool {
	if c.kind == SessionLog { // its marks have no lane
		return slices.ContainsFunc(c.open, func(e lease) bool {
			return e.state == stateReleased && e.seq >= h.first && e.seq <= h.last
		})
	}
	return len(c.heads[h.lane]) >= maxHeads || c.leasedLocked(int(h.lane), h.first, h.last+1)
}

// relieve brings the store below its bounds: the oldest segments of the lowest
// lane go first. The committer calls it between commits.
func (s *Store) relieve() {
	sum := newDropping()
	for range reliefMost {
		s.mu.Lock()
		var h *header
		reason := ""
		switch {
		case len(s.aged) > 0:
			h, reason = s.aged[0], reasonAge
			s.aged = s.aged[1:]
			if h.dead || s.heldLocked(h) {
				s.mu.Unlock()
				continue
			}
		default:
			if reason = s.overLocked(); reason != "" && s.limits.WhenFull != Reject {
				h = s.victimLocked()
			}
		}
		s.fullErr = nil
		if reason != "" && h == nil {
			s.fullErr = s.fullLocked(reason)
		}
		s.mu.Unlock()
		if h == nil {
			break
		}
		s.drop(h, reason, sum)
	}
	s.mu.Lock()
	full := s.fullErr
	limit := s.limits
	s.mu.Unlock()
	s.sayFull(full, limit)
	s.sayDropped(sum, limit)
	if sum.n > 0 {
		s.mu.Lock()
		s.dropped = time.Now()
		s.hurryLocked() // RAM counts the space as free: so must the file
		s.mu.Unlock()
	} else if time.Since(s.dropped) > quietAfter {
		s.solve("buffer-dropping", "nothing more had to be dropped")
	}
}

// victimLocked is the oldest segment of the lowest lane that nobody holds.
func (s *Store) victimLocked() *header {
	for l := lanes - 1; l >= 0; l-- {
		for _, h := range s.lanes[l].segs {
			if !h.dead && !s.heldLocked(h) {
				return h
			}
		}
	}
	return nil
}

func (s *Store) fullLocked(reason string) error {
	l := &s.limits
	switch reason {
	case reasonMessages:
		return fmt.Errorf("%w: %s of max_messages %s", ErrFull, report.Count(s.records), report.Count(l.MaxMessages))
	case reasonFree:
		return fmt.Errorf("%w: %d MiB left on the disk, min_free_disk %d MiB", ErrFull, s.use.free>>20, l.MinFreeDisk>>20)
	}
	return fmt.Errorf("%w: %d MiB used of max_bytes %d MiB", ErrFull, s.usedLocked()>>20, l.MaxBytes>>20)
}

// drop takes a segment from all its consumers, with a row of the ledger for
// each. Nothing in it may be leased.
func (s *Store) drop(h *header, reason string, sum *dropping) {
	raw, _ := s.load(h) // without it the ledger has no numbers
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.dead || s.heldLocked(h) {
		return
	}
	for slot := range slotsOf(union(h.needs)) {
		if c := s.slots[slot]; c != nil && c.needsLocked(h) {
			s.dropForLocked(c, h, raw, reason, sum)
		}
	}
}

// dropForLocked takes what is left of a segment from one consumer.
func (s *Store) dropForLocked(c *Consumer, h *header, raw []byte, reason string, sum *dropping) {
	n, bytes := needsOf(h.needs, c.slot)
	var lo, hi uint64
	if raw != nil {
		n, bytes = 0, 0
		new(mark).walk(h, raw, c.slot, 0, func(v *view) bool { // load has verified it
			if c.finishedLocked(int(h.lane), v.seq) || c.settledLocked(v.seq) {
				return true
			}
			n++
			bytes += int64(v.size)
			if k := v.number(c.stream); k != 0 {
				hi = k
				if lo == 0 {
					lo = k
				}
			}
			return true
		})
	}
	first := uint64(0) // records of the lane in front of h are gone or stay: the gap holds none
	segs := s.lanes[h.lane].segs
	if i := s.lanes[h.lane].find(h.first); i > 0 {
		first = segs[i-1].last + 1
	}
	if !c.skipLocked(int(h.lane), max(first, c.heads[h.lane][0].lo), h.last) {
		return
	}
	c.gen++
	if c.kind == Uplink {
		c.n -= n
		if c.bytes -= bytes; c.n == 0 {
			c.bytes = 0
		}
	}
	if n > 0 {
		s.loseLocked(c, int64(h.boot), lo, hi, uint64(n), 0, bytes, reason)
		sum.add(c, n, h.ts, reason)
	}
}

// settledLocked says whether a session has settled a record ahead of its
// position.
func (c *Consumer) settledLocked(seq uint64) bool {
	if c.kind != SessionLog {
		return false
	}
	i, ok := slices.BinarySearchFunc(c.open, seq, func(e lease, seq uint64) int { return cmp.Compare(e.seq, seq) })
	return ok && c.open[i].state == stateDone
}

// overQuotaLocked says whether more waits for c than its options allow.
func (c *Consumer) overQuotaLocked() bool {
	q := &c.o
	if q.QuotaRecords <= 0 && q.QuotaBytes <= 0 {
		return false
	}
	n, bytes := c.pendingLocked()
	return q.QuotaRecords > 0 && int64(n) > q.QuotaRecords || q.QuotaBytes > 0 && bytes > q.QuotaBytes
}

// quotas moves consumers that are over their quota past their oldest segments;
// others keep these.
func (s *Store) quotas() {
	for {
		s.mu.Lock()
		var c *Consumer
		for ; len(s.over) > 0; s.over = s.over[1:] {
			if c = s.over[0]; !c.gone && c.overQuotaLocked() {
				break
			}
			c = nil
		}
		var h *header
		if c != nil {
			h = c.victimLocked()
		}
		if h == nil && c != nil {
			s.over = s.over[1:] // all is leased: the next commit asks again
		}
		s.mu.Unlock()
		if c == nil {
			return
		}
		if h == nil {
			continue
		}
		raw, _ := s.load(h)
		sum := newDropping()
		s.mu.Lock()
		if !h.dead && !c.gone && c.needsLocked(h) && !c.holdsLocked(h) {
			s.dropForLocked(c, h, raw, reasonQuota, sum)
		}
		s.mu.Unlock()
		s.sayQuota(c, sum)
	}
}

// victimLocked is what a consumer over its quota loses next: for a session the
// oldest segment, for an uplink that of the lowest lane.
func (c *Consumer) victimLocked() (oldest *header) {
	for l := lanes - 1; l >= 0; l-- {
		for h := range c.s.lanes[l].neededBy(c) {
			if c.holdsLocked(h) {
				continue
			}
			if c.kind == Uplink {
				return h
			}
			if oldest == nil || h.first < oldest.first {
				oldest = h
			}
			break
		}
	}
	return oldest
}

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
		s.fail("disk-full", slog.LevelError, fmt.Sprintf("disk almost full (min_free_disk %d MiB): the oldest readings now make room for new ones; "+
			"%s dropped%s. Free space, or lower max_bytes in [buffer]", l.MinFreeDisk>>20, report.Count(d.n), d.of()))
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
