package buffer

import (
	"cmp"
	"slices"
)

// ReadFrom returns committed records of a session with Seq >= seq, in the
// order of Seq over all lanes: at most maxRecords, and not much more than
// maxBytes, but one if there is one. next is where to go on; it is behind
// everything committed when nothing more is there. Settled records are left
// out; expired ones are not, because their packet ids are the caller's. It
// does not wait for new records.
func (c *Consumer) ReadFrom(seq uint64, maxRecords, maxBytes int) (rs []Record, next uint64, err error) {
	c.live.turn <- struct{}{}
	defer c.live.end()

	s := c.s
	s.mu.Lock()
	err = c.aliveLocked()
	head := s.head
	seq = max(seq, c.start)
	settled := map[uint64]bool{}
	for _, e := range c.open {
		if e.state == stateDone {
			settled[e.seq] = true
		}
	}
	s.mu.Unlock()
	if err != nil {
		return nil, seq, err
	}
	var src [lanes]source
	for l := range lanes {
		if err := c.advance(l, &src[l], seq, head); err != nil {
			return nil, seq, err
		}
	}
	k := collector{s: s}
	size := 0
	for {
		best := -1
		for l := range src {
			if src[l].h != nil && (best < 0 || src[l].v.seq < src[best].v.seq) {
				best = l
			}
		}
		if best < 0 {
			return k.rs, max(seq, head), nil
		}
		from := &src[best]
		if len(k.rs) > 0 && (len(k.rs) >= maxRecords || size+from.v.size > maxBytes) {
			return k.rs, from.v.seq, nil
		}
		if !settled[from.v.seq] {
			k.boot = from.boot
			k.take(&from.v).Lane = uint8(best)
			size += from.v.size
		}
		if err := c.advance(best, from, from.v.seq+1, head); err != nil {
			return nil, seq, err
		}
	}
}

// source is the reading of one lane.
type source struct {
	h    *header
	raw  []byte
	cur  cursor
	mine [maxNeeds]bool
	v    view
	boot boot
}

// advance moves src to the first record of c in a lane that is at or above seq
// and below head; src.h is nil when there is none.
func (c *Consumer) advance(l int, src *source, seq, head uint64) error {
	s := c.s
	for {
		if src.h == nil || seq > src.h.last {
			s.mu.Lock()
			seq = max(seq, c.posLocked(l))
			src.h = c.findLocked(l, seq, head)
			m := c.live.marks[l]
			if src.h != nil {
				src.boot = s.bootLocked(src.h.boot)
			}
			s.mu.Unlock()
			if src.h == nil || src.h.first >= head {
				src.h = nil
				return nil
			}
			raw, err := s.load(src.h)
			if err != nil {
				if err := s.damaged(src.h, err); err != nil {
					return err
				}
				src.h = nil
				continue
			}
			src.raw, src.mine = raw, src.h.mine(c.slot)
			src.cur = m.from(src.h, raw, seq)
		}
		for src.cur.off < len(src.raw) {
			at := src.cur
			if err := src.cur.next(&src.v); err != nil {
				return err
			}
			if src.v.seq >= head {
				src.h = nil
				return nil
			}
			if src.v.seq >= seq && src.mine[src.v.set] {
				s.mu.Lock()
				at.raw = nil
				c.live.marks[l] = mark{src.h, at}
				s.mu.Unlock()
				return nil
			}
		}
		seq = max(seq, src.h.last+1)
	}
}

// Settle says that a session needs nothing below floor any more, nor what is
// in done. It is lazy: a crash before the next commit repeats them.
func (c *Consumer) Settle(floor uint64, done []uint64) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.gone {
		return
	}
	for _, seq := range done {
		c.markLocked(seq, stateDone, 0)
	}
	floor = min(floor, c.s.nextSeq)
	k := 0
	for k < len(c.open) && c.open[k].seq < floor {
		k++
	}
	if k > 0 {
		c.open = append(c.open[:0], c.open[k:]...)
	}
	for l := range lanes {
		c.floorLocked(l, floor)
	}
	c.untidy = true
	c.dirtyLocked()
}

// markLocked notes the state of one record of a session.
func (c *Consumer) markLocked(seq uint64, state uint8, tag uint16) {
	i, found := slices.BinarySearchFunc(c.open, seq, func(e lease, seq uint64) int { return cmp.Compare(e.seq, seq) })
	if !found {
		c.open = slices.Insert(c.open, i, lease{seq: seq})
	}
	c.open[i].state, c.open[i].ord = state, uint64(tag)
	c.dirtyLocked()
}
