package buffer

import "maps"

// Thinning halves the oldest readings while the store is nearly full: of each
// two neighbours of a topic one goes. A pass goes through the oldest quarter,
// so that resolution falls with age.
const (
	thinAt    = 90 // percent of MaxBytes at which it begins
	thinChunk = 16 // segments a step
	thinSteps = 4  // steps between two commits
	thinYield = 10 // percent of what was read: a pass that frees less gives up
	thinPause = 10 // percent of MaxBytes to be appended before the next pass then
)

// thinning is the pass under way. Guarded by Store.mu.
type thinning struct {
	lane  int
	next  uint64 // go on from here
	left  int64  // bytes of the quarter that were not looked at
	read  int64
	freed int64
	until int64 // rest until so many bytes were appended
}

// thin takes a few steps when the policy asks for it and the store is nearly
// full. The committer calls it.
func (s *Store) thin(sum *dropping) {
	for range thinSteps {
		s.mu.Lock()
		run := s.thinRunLocked()
		before := s.space
		s.mu.Unlock()
		if run == nil {
			return
		}
		err := s.rewrite(run, s.throw, sum)
		s.rest(err)
		s.mu.Lock()
		s.thinned.freed += before - s.space
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// thinRunLocked is what the next step looks at; nil: no step.
func (s *Store) thinRunLocked() []*header {
	t := &s.thinned
	if s.limits.WhenFull != Thin || s.usedLocked()*100 < s.limits.MaxBytes*thinAt || s.count.appended < t.until {
		return nil
	}
	for range 2 { // the rest of a pass, or a new one
		for t.left > 0 && t.lane >= 0 {
			if run := s.thinLaneLocked(); run != nil {
				return run
			}
			t.lane, t.next = t.lane-1, 0
		}
		if t.read > 0 && t.freed*100 < t.read*thinYield {
			*t = thinning{until: s.count.appended + s.limits.MaxBytes*thinPause/100}
			return nil
		}
		*t = thinning{lane: lanes - 1, left: s.space / 4}
	}
	return nil
}

// thinLaneLocked is the next neighbours of the lane of the pass.
func (s *Store) thinLaneLocked() (run []*header) {
	t, ln := &s.thinned, &s.lanes[s.thinned.lane]
	for _, h := range ln.segs[ln.find(t.next):] {
		if h.dead {
			continue
		}
		if s.heldLocked(h) || len(run) == thinChunk || len(run) > 0 && run[0].boot != h.boot {
			if len(run) > 0 {
				break
			}
			continue
		}
		run = append(run, h)
		t.next = h.last + 1
		t.left -= h.space()
		t.read += h.space()
	}
	return run
}

// throw chooses what goes of neighbours and raises the level of what stays.
func (s *Store) throw(recs []oldRecord) (any bool) {
	s.mu.Lock()
	keep := s.limits.Keep
	s.mu.Unlock()
	topics := map[string][]*oldRecord{}
	for i := range recs {
		r := &recs[i]
		if !r.Thinnable || r.Level >= maxLevel {
			continue
		}
		group := append(topics[r.Topic], r)
		size := 2
		if keep == KeepMinMax {
			size = 4
		}
		if len(group) == size {
			s.throwGroup(group, keep)
			group, any = group[:0], true
		}
		topics[r.Topic] = group
	}
	return any
}

// throwGroup halves two or four neighbours.
func (s *Store) throwGroup(g []*oldRecord, keep Keep) {
	level := uint8(0)
	for i, r := range g {
		level = max(level, r.Level)
		r.thrown = i%2 != 0
		if keep == KeepLast {
			r.thrown = !r.thrown
		}
	}
	if low, high, ok := s.extremes(g); ok && keep == KeepMinMax {
		for i, r := range g {
			r.thrown = i != low && i != high
		}
	}
	for _, r := range g {
		r.Level = level + 1
	}
}

// extremes finds the lowest and the highest of a group; false when they are
// not all numbers, or all the same.
func (s *Store) extremes(g []*oldRecord) (low, high int, ok bool) {
	if s.o.Value == nil {
		return 0, 0, false
	}
	vs := make([]float64, len(g))
	for i, r := range g {
		if vs[i], ok = s.o.Value(&r.Record); !ok {
			return 0, 0, false
		}
		if vs[i] < vs[low] {
			low = i
		}
		if vs[i] > vs[high] {
			high = i
		}
	}
	return low, high, low != high
}

// account is what a consumer loses of a run.
type account struct {
	id              int64 // of the row that the transaction writes
	lo, hi, n, kept uint64
	bytes           int64
}

// accounts sums up what was thrown away, by slot.
func (w *rewriting) accounts() map[int]*account {
	of := map[int]*account{}
	for i := range w.recs {
		r := &w.recs[i]
		for _, slot := range r.to {
			a := of[slot]
			if a == nil {
				a = &account{}
				of[slot] = a
			}
			n := r.number(w.wants[slot].stream)
			if n != 0 { // the whole stretch, so that those of two steps touch
				a.hi = n
				if a.lo == 0 {
					a.lo = n
				}
			}
			if r.thrown {
				a.n++
				a.bytes += int64(r.size)
			} else if n != 0 {
				a.kept++
			}
		}
	}
	maps.DeleteFunc(of, func(_ int, a *account) bool { return a.n == 0 })
	return of
}

// ledgerLocked makes the rows that go with the transaction. In RAM such a loss
// mostly joins another row: they are gone when that one is saved.
func (w *rewriting) ledgerLocked(of map[int]*account) (rows []op) {
	for slot, a := range of {
		w.s.lastLoss++
		a.id = w.s.lastLoss
		l := &loss{id: a.id, slot: slot, stream: w.wants[slot].stream, boot: int64(w.run[0].boot), lo: a.lo, hi: a.hi,
			dropped: a.n, kept: a.kept, bytes: a.bytes, reason: reasonThinned}
		if l.lo == 0 {
			l.stream = 0
		}
		rows = append(rows, l.row())
	}
	return rows
}

// accountLocked writes what was thrown away into the ledger of each consumer.
func (w *rewriting) accountLocked(of map[int]*account, sum *dropping) {
	for slot, a := range of {
		w.s.lossesGone = append(w.s.lossesGone, a.id)
		w.s.owing = true
		c := w.s.slots[slot]
		if c == nil {
			continue
		}
		if c.kind == Uplink {
			c.n -= int(a.n)
			if c.bytes -= a.bytes; c.n == 0 {
				c.bytes = 0
			}
		}
		w.s.loseLocked(c, int64(w.run[0].boot), a.lo, a.hi, a.n, a.kept, a.bytes, reasonThinned)
		sum.add(c, int(a.n), w.run[0].ts, reasonThinned)
	}
}

// number finds the place of a record in a stream; 0: none.
func (r *oldRecord) number(stream StreamID) uint64 {
	for _, n := range r.Numbers {
		if n.Stream == stream && stream != 0 {
			return n.N
		}
	}
	return 0
}
