package buffer

import (
	"cmp"
	"slices"
)

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

// startedLocked says whether c may have finished some records of a segment that
// it needs, but not all.
func (c *Consumer) startedLocked(h *header) bool {
	return c.partialLocked(h, nil) || slices.ContainsFunc(c.open, func(e lease) bool { return e.seq >= h.first && e.seq <= h.last })
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
		sum := newDropping()
		whole := h != nil && c.stream == 0 && !c.startedLocked(h)
		if whole { // what the header says is all there is to tell
			s.dropForLocked(c, h, nil, reasonQuota, sum)
		}
		s.mu.Unlock()
		if c == nil {
			return
		}
		if h == nil {
			continue
		}
		if !whole {
			raw, _ := s.load(h)
			s.mu.Lock()
			if !h.dead && !c.gone && c.needsLocked(h) && !c.holdsLocked(h) {
				s.dropForLocked(c, h, raw, reasonQuota, sum)
			}
			s.mu.Unlock()
		}
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
