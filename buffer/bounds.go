package buffer

import (
	"fmt"
	"slices"
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
	case s.records > l.MaxMessages || s.segments > maxHeaders:
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
	s.thin(sum)
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
		if s.segments > maxHeaders {
			return fmt.Errorf("%w: %s segments of %s", ErrFull, report.Count(s.segments), report.Count(maxHeaders))
		}
		return fmt.Errorf("%w: %s of max_messages %s", ErrFull, report.Count(s.records), report.Count(l.MaxMessages))
	case reasonFree:
		return fmt.Errorf("%w: %d MiB left on the disk, min_free_disk %d MiB", ErrFull, s.use.free>>20, l.MinFreeDisk>>20)
	}
	return fmt.Errorf("%w: %d MiB used of max_bytes %d MiB", ErrFull, s.usedLocked()>>20, l.MaxBytes>>20)
}
