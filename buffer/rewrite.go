package buffer

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	smallSegment = 8 << 10     // raw: worth to be joined
	oldAfter     = time.Minute // before a small segment is joined
	manySegments = maxHeaders * 3 / 4
	rewriteBytes = 1 << 20 // raw, a second
)

// rewriting replaces neighbours of one lane and boot by segments that hold
// only the records that somebody still needs. It joins small segments, squeezes
// those of which little is left, and thins.
type rewriting struct {
	s     *Store
	run   []*header         // busy: no record of them is leased meanwhile
	wants map[int]*standing // by slot, as of the beginning
	recs  []oldRecord
	segs  []segment
}

// standing is what a consumer needs of a lane.
type standing struct {
	heads   []head
	settled map[uint64]bool
	stream  StreamID
}

// oldRecord is a record of the segments to be replaced.
type oldRecord struct {
	Record
	size   int // in its segment
	to     []int
	thrown bool // by thinning
}

// rewrite replaces a run. choose, if not nil, may throw records away, with a
// row of the ledger in the same transaction; it returns false when nothing is
// gained. A run of which something was leased since it was chosen stays as it
// is. The committer calls it.
func (s *Store) rewrite(run []*header, choose func(recs []oldRecord) bool, sum *dropping) error {
	w := &rewriting{s: s, run: run, wants: map[int]*standing{}}
	if !w.begin() {
		return nil
	}
	defer w.end()
	if err := w.read(); err != nil {
		return err
	}
	if choose != nil && !choose(w.recs) {
		return nil
	}
	w.build()
	return w.write(sum)
}

// begin keeps readers from leasing anything of the run; false: somebody was
// quicker.
func (w *rewriting) begin() bool {
	s := w.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.ContainsFunc(w.run, func(h *header) bool { return h.dead || s.heldLocked(h) }) {
		return false
	}
	for _, h := range w.run {
		h.busy = true
		for slot := range slotsOf(union(h.needs)) {
			if c := s.slots[slot]; c != nil && w.wants[slot] == nil {
				w.wants[slot] = c.standingLocked(int(h.lane))
			}
		}
	}
	return true
}

// end lets readers at the run again.
func (w *rewriting) end() {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	for _, h := range w.run {
		h.busy = false
	}
	for slot := range w.wants {
		if c := w.s.slots[slot]; c != nil {
			c.wakeUp()
		}
	}
}

func (c *Consumer) standingLocked(l int) *standing {
	st := &standing{heads: slices.Clone(c.heads[l]), settled: map[uint64]bool{}, stream: c.stream}
	for _, e := range c.open {
		if c.kind == SessionLog && e.state == stateDone {
			st.settled[e.seq] = true
		}
	}
	return st
}

// read decodes what is still needed.
func (w *rewriting) read() error {
	k := collector{s: w.s}
	for _, h := range w.run {
		raw, err := w.s.load(h)
		if err != nil {
			return errors.Join(err, w.s.damaged(h, err)) // the others of the run stay
		}
		cur := newCursor(raw, h.first)
		for v := (view{}); cur.next(&v) == nil; {
			var to []int
			for slot := range slotsOf(h.needs[v.set].set.Value()) {
				if st := w.wants[slot]; st != nil && needs(st.heads, v.seq, v.seq) && !st.settled[v.seq] {
					to = append(to, slot)
				}
			}
			if len(to) == 0 {
				continue
			}
			r := k.take(&v)
			if r.Clock != Clocked {
				r.At = time.Time{}
			}
			w.recs = append(w.recs, oldRecord{Record: *r, size: v.size, to: to})
		}
	}
	return nil
}

// build encodes what is kept.
func (w *rewriting) build() {
	var scratch []byte
	var sb *builder
	var all []*builder
	for i := range w.recs {
		r := &w.recs[i]
		if r.thrown {
			continue
		}
		set := setOf(r.to)
		at, fits := sb.place(set, r.bound())
		if !fits {
			sb = &builder{lane: w.run[0].lane, boot: int64(w.run[0].boot)}
			all, at = append(all, sb), 0
		}
		scratch = sb.put(scratch, &r.Record, set, at)
	}
	t := &commit{b: &batch{segs: all}}
	w.s.pack(t)
	w.segs = t.segs
}

// setOf is the set of slots, which rise.
func setOf(slots []int) []byte {
	set := make([]byte, slots[len(slots)-1]>>3+1)
	for _, slot := range slots {
		set[slot>>3] |= 1 << (slot & 7)
	}
	return set
}

// write replaces the rows in one transaction. It is not flushed: before that
// the old rows are as good. The headers are replaced before anybody else gets
// the connection: a reader that misses a row must find its header dead.
func (w *rewriting) write(sum *dropping) error {
	s := w.s
	s.io.Lock()
	defer s.io.Unlock()
	if s.db == nil {
		return ErrReadOnly
	}
	of := w.accounts()
	s.mu.Lock()
	ledger := w.ledgerLocked(of)
	s.mu.Unlock()
	err := s.db.transaction(func() error {
		for _, h := range w.run {
			if err := s.db.exec(sqlDeleteSeg, h.id()); err != nil {
				return err
			}
		}
		for i := range w.segs {
			if err := s.db.exec(sqlInsertSeg, w.segs[i].row()...); err != nil {
				return err
			}
		}
		return s.db.all(ledger)
	})
	if err != nil {
		return fmt.Errorf("rewrite segments of %s: %w", s.path, err)
	}
	s.unflushed = true
	s.walPages += len(w.run) + (&commit{b: &batch{}, segs: w.segs}).pages()
	s.mu.Lock()
	defer s.mu.Unlock()
	w.swapLocked()
	w.accountLocked(of, sum)
	return nil
}

// swapLocked replaces the headers. What consumers finished meanwhile is
// finished in the new ones, too: numbers do not change.
func (w *rewriting) swapLocked() {
	s := w.s
	for _, h := range w.run {
		if h.dead { // its row is gone, and the id may be a new row's
			s.trims = slices.DeleteFunc(s.trims, func(t *header) bool { return t == h })
			s.trimSpace -= h.space()
			continue
		}
		for slot := range slotsOf(union(h.needs)) {
			if c := s.slots[slot]; c != nil && c.kind == SessionLog && c.needsLocked(h) {
				n, size := needsOf(h.needs, slot)
				c.n -= n
				c.bytes -= size
				c.untidy = true
			}
		}
		h.dead = true
		s.uncountLocked(h)
	}
	s.lanes[w.run[0].lane].sweep()
	for _, g := range w.segs {
		g.h.born = w.run[len(w.run)-1].born
		s.insertLocked(g.h, false)
	}
	s.count.rewritten += uint64(len(w.run))
	s.dirtyLocked()
}

// tend joins and squeezes segments, within the budget of a second; near the
// limit of headers the budget is eight times as large.
func (s *Store) tend() error {
	s.mu.Lock()
	budget := rewriteBytes
	if s.segments > manySegments {
		budget *= 8
	}
	s.mu.Unlock()
	for budget > 0 {
		s.mu.Lock()
		run := s.runLocked()
		s.mu.Unlock()
		if len(run) == 0 {
			return nil
		}
		if err := s.rewrite(run, nil, nil); err != nil {
			return err
		}
		for _, h := range run {
			budget -= int(h.raw)
		}
	}
	return nil
}

// runLocked finds neighbours that are worth to be rewritten: some of which
// little is needed, or small ones when there are many.
func (s *Store) runLocked() []*header {
	now := s.sys.mono()
	join := s.segments > manySegments || s.smallLocked(now) > s.sys.manySmall
	for l := range s.lanes {
		segs := s.lanes[l].segs
		segs = segs[:max(len(segs)-s.sys.youngest, 0)]
		var run []*header
		size, worth := 0, false
		for _, h := range segs {
			if h.dead {
				continue
			}
			need, squeeze := s.squeezeLocked(h)
			if !squeeze && !(join && h.raw < smallSegment && now-h.born >= oldAfter) || s.heldLocked(h) {
				if worth {
					return run
				}
				run, size = nil, 0
				continue
			}
			if len(run) > 0 && (run[0].boot != h.boot || size+need > segBytes) {
				if worth {
					return run
				}
				run, size = nil, 0
			}
			run = append(run, h)
			size += need
			worth = worth || squeeze || len(run) > 1 && size >= segBytes/2
		}
		if worth {
			return run
		}
	}
	return nil
}

// smallLocked counts the small segments that are old.
func (s *Store) smallLocked(now time.Duration) (n int) {
	for l := range s.lanes {
		for _, h := range s.lanes[l].segs {
			if !h.dead && h.raw < smallSegment && now-h.born >= oldAfter {
				n++
			}
		}
	}
	return n
}

// squeezeLocked is how many raw bytes of a segment somebody still needs, and
// whether that is less than a quarter. It counts whole consumer sets.
func (s *Store) squeezeLocked(h *header) (need int, squeeze bool) {
	if h.asked == h.left {
		return int(h.raw), false
	}
	for _, e := range h.needs {
		for slot := range slotsOf(e.set.Value()) {
			if c := s.slots[slot]; c != nil && c.needsLocked(h) {
				need += int(e.bytes)
				break
			}
		}
	}
	if need*4 >= int(h.raw) {
		h.asked = h.left // ask again when another consumer has passed
		return need, false
	}
	return need, true
}
