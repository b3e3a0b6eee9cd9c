package buffer

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"slices"
)

var bg = context.Background()

// quiet is the machine without flushes, for tests that do not cut the power.
func quiet() *system {
	sys := machine()
	sys.fdatasync = func(*os.File) error { return nil }
	sys.syncDir = func(string) error { return nil }
	return sys
}

// poll is what Next (of backlog, NextBacklog) gives without waiting for
// records. Only an exact consumer with something to give waits, for the disk.
func poll(c *Consumer, backlog bool, limit int) ([]Record, error) {
	ctx, cancel := context.WithCancel(bg)
	defer cancel()
	next, r := c.Next, &c.live
	if backlog {
		next, r = c.NextBacklog, &c.late
	}
	if !c.o.Exact || !c.some(r) {
		cancel()
	}
	rs, err := next(ctx, limit)
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return rs, err
}

// some says whether there is a record that a call at r can give.
func (c *Consumer) some(r *reader) bool {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.againLocked() != nil {
		return true
	}
	ended := 0
	defer c.settleLocked(1<<lanes - 1)
	for l := range lanes {
		for {
			h, at := c.pickLaneLocked(r, l, &ended)
			if h == nil || len(c.open) >= c.o.Window {
				break
			}
			s.mu.Unlock()
			raw, err := s.load(h)
			found := err != nil
			new(mark).walk(h, raw, c.slot, at.next, func(v *view) bool { found = found || v.seq < at.hi; return false })
			s.mu.Lock()
			if found {
				return true
			}
			i := slices.Index(c.heads[l], at)
			c.heads[l][i].next = min(h.last+1, at.hi) // as a read would
		}
	}
	return false
}

// audit recomputes what the store counts and reads every row: checksums, who
// still needs a segment, sums, and that the lanes are in order.
func audit(s *Store) error {
	err := auditOnce(s)
	for range 3 { // a deletion may be under way
		if err != nil {
			s.Sync(bg)
			err = auditOnce(s)
		}
	}
	return err
}

func auditOnce(s *Store) error {
	s.io.Lock()
	defer s.io.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.db == nil {
		return nil
	}
	rows := map[int64]bool{}
	err := s.db.query("SELECT id FROM seg", func(v []driver.Value) error { rows[integer(v[0])] = true; return nil })
	if err != nil {
		return err
	}
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	segs, n, size := 0, int64(0), int64(0)
	pending := map[*Consumer]int{}
	for l := range s.lanes {
		last := uint64(0)
		for _, h := range s.lanes[l].segs {
			if h.first <= last || h.last < h.first {
				bad("lane %d: segment %d..%d follows %d", l, h.first, h.last, last)
			}
			last = h.last
			if h.dead {
				continue
			}
			segs, n, size = segs+1, n+int64(h.n), size+int64(h.size)
			left := 0
			for slot := range slotsOf(union(h.needs)) {
				if c := s.slots[slot]; c != nil && c.needsLocked(h) {
					left++
					k, _ := needsOf(h.needs, slot)
					pending[c] += k
				}
			}
			if left != int(h.left) || left == 0 {
				bad("segment %d: left is %d, counted %d", h.first, h.left, left)
			}
			if _, err := s.fetch(h); err != nil {
				errs = append(errs, err)
			}
			delete(rows, h.id())
		}
	}
	for _, h := range s.trims {
		delete(rows, h.id())
	}
	if len(rows) > 0 {
		bad("rows %v have no header", rows)
	}
	if segs != s.segments || n != s.records || size != s.stored {
		bad("counted %d segments, %d records, %d bytes; the store says %d, %d, %d", segs, n, size, s.segments, s.records, s.stored)
	}
	for _, c := range s.slots {
		if c == nil {
			continue
		}
		if c.kind == SessionLog && c.n != pending[c] || c.n > pending[c] || c.n < 0 || c.bytes < 0 || c.n == 0 && c.bytes != 0 {
			bad("consumer %s: %d records, %d bytes wait, segments hold %d", c.name, c.n, c.bytes, pending[c])
		}
	}
	return errors.Join(errs...)
}
