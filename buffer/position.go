package buffer

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// head is a stretch [lo, hi) of a lane that a consumer reads in order. All
// below done is finished, all below next was read. A consumer that reads first
// in, first out has one head without end; each jump to the newest records, and
// each loss in the middle, adds one, and a head that is finished joins the
// next.
type head struct{ lo, done, next, hi uint64 }

const (
	noEnd    = maxSeq + 1
	maxHeads = 64 // of a lane
)

// needs says whether a consumer that stands at heads needs records first..last:
// not when all of them are below the first position, or inside one finished
// stretch.
func needs(heads []head, first, last uint64) bool {
	if last < heads[0].done {
		return false
	}
	for _, h := range heads[1:] {
		if first >= h.lo && last < h.done {
			return false
		}
	}
	return true
}

// needsLocked says whether a segment that has the consumer's bit is still
// needed by it.
func (c *Consumer) needsLocked(h *header) bool { return needs(c.heads[h.lane], h.first, h.last) }

// posLocked is the lowest number in a lane that is not finished.
func (c *Consumer) posLocked(l int) uint64 { return c.heads[l][0].done }

// beginLocked makes the consumer need everything from seq on.
func (c *Consumer) beginLocked(seq uint64) {
	c.start = seq
	for l := range c.heads {
		c.heads[l] = []head{{seq, seq, seq, noEnd}}
	}
}

// setHeadsLocked replaces the positions of a lane and lets go of the segments
// that are needed no more.
func (c *Consumer) setHeadsLocked(l int, heads []head) {
	s, old := c.s, c.heads[l]
	c.heads[l] = heads
	segs := s.lanes[l].segs
	for _, n := range heads {
		from := n.lo
		if i := slices.IndexFunc(old, func(o head) bool { return o.lo == n.lo }); i >= 0 {
			from = old[i].done
		}
		if from >= n.done {
			continue
		}
		for _, h := range segs[s.lanes[l].find(from):] {
			if h.last >= n.done {
				break
			}
			if h.dead || !h.has(c.slot) || !needs(old, h.first, h.last) || needs(heads, h.first, h.last) {
				continue
			}
			if c.kind == SessionLog { // an uplink counts record by record
				n, size := needsOf(h.needs, c.slot)
				c.n -= n
				c.bytes -= size
			}
			s.passLocked(h)
		}
	}
	c.dirtyLocked()
}

// settleLocked drops finished leases from the front and moves the positions of
// the lanes in touched, and of those whose leases were finished.
func (c *Consumer) settleLocked(touched int) {
	k := 0
	for k < len(c.open) && c.open[k].state == stateDone {
		k++
	}
	if k > 0 {
		c.open = append(c.open[:0], c.open[k:]...)
		c.wakeUp() // the window has room
	}
	for l := range lanes {
		if touched>>l&1 != 0 {
			c.moveLocked(l)
		}
	}
}

// moveLocked computes the positions of a lane from what was read and what of
// it is still open.
func (c *Consumer) moveLocked(l int) {
	c.adoptLocked(l, append(make([]head, 0, 4), c.heads[l]...))
}

// adoptLocked takes over new positions of a lane, whose done it computes.
func (c *Consumer) adoptLocked(l int, heads []head) {
	for i := range heads {
		heads[i].done = heads[i].next
	}
	for i := range c.open {
		e := &c.open[i]
		if int(e.lane) != l || e.state == stateDone {
			continue
		}
		for j := range heads {
			if h := &heads[j]; e.seq >= h.lo && e.seq < h.hi {
				h.done = min(h.done, e.seq)
				break
			}
		}
	}
	c.setHeadsLocked(l, join(heads))
}

// join makes one head of a finished one and its neighbour.
func join(heads []head) []head {
	for i := 0; i+1 < len(heads); {
		if heads[i].done < heads[i].hi {
			i++
			continue
		}
		heads[i+1].lo = heads[i].lo
		heads = slices.Delete(heads, i, i+1)
	}
	return heads
}

// floorLocked raises the position of a session in a lane.
func (c *Consumer) floorLocked(l int, to uint64) {
	if h := c.heads[l][0]; to > h.done {
		c.setHeadsLocked(l, []head{{h.lo, to, max(h.next, to), noEnd}})
	}
}

// finishedLocked says whether a record of a lane is below the positions.
func (c *Consumer) finishedLocked(l int, seq uint64) bool { return !needs(c.heads[l], seq, seq) }

// skipLocked makes the records first..last of a lane finished, unread or not.
// None of them may be in an open lease. It returns false when the consumer has
// too many heads for another.
func (c *Consumer) skipLocked(l int, first, last uint64) bool {
	if c.kind == SessionLog {
		c.floorLocked(l, last+1)
		return true
	}
	heads := slices.Clone(c.heads[l])
	for i := 0; i < len(heads); i++ {
		h := heads[i]
		a, b := max(first, h.lo), min(last+1, h.hi)
		if a >= b || b <= h.done {
			continue
		}
		if h.next >= a && !c.leasedLocked(l, h.done, b) {
			heads[i].next = max(h.next, b)
			continue
		}
		if len(heads) >= maxHeads {
			return false
		}
		heads[i].hi, heads[i].next = a, min(h.next, a)
		heads = slices.Insert(heads, i+1, head{a, a, max(h.next, b), h.hi})
		i++
	}
	c.adoptLocked(l, heads)
	return true
}

// leasedLocked says whether a lease in [from, to) of a lane is open. Leases lie
// where heads have read and not finished.
func (c *Consumer) leasedLocked(l int, from, to uint64) bool {
	if !slices.ContainsFunc(c.heads[l], func(h head) bool { return from < h.next && to > h.done }) {
		return false
	}
	return slices.ContainsFunc(c.open, func(e lease) bool {
		return int(e.lane) == l && e.state != stateDone && e.seq >= from && e.seq < to
	})
}

// appendSpans writes the column done: the finished stretches above the first
// position, per lane.
func appendSpans(dst []byte, heads *[lanes][]head) []byte {
	for l := range heads {
		dst = binary.AppendUvarint(dst, uint64(len(heads[l])-1))
		for _, h := range heads[l][1:] {
			dst = binary.AppendUvarint(dst, h.lo)
			dst = binary.AppendUvarint(dst, h.done-h.lo)
		}
	}
	return dst
}

// parseHeads makes positions of the columns pos0..3, done and open.
func parseHeads(pos [lanes]uint64, done []byte, open []lease) (heads [lanes][]head, err error) {
	f := fields{b: done}
	for l := range heads {
		heads[l] = []head{{0, pos[l], pos[l], noEnd}}
		for range f.uvarint(maxHeads) {
			lo := f.uvarint(maxSeq)
			end := lo + f.uvarint(maxSeq)
			prev := &heads[l][len(heads[l])-1]
			if f.bad || lo < prev.done || end > maxSeq {
				return heads, fmt.Errorf("%w: positions", errDamaged)
			}
			prev.hi = lo
			heads[l] = append(heads[l], head{lo, end, end, noEnd})
		}
	}
	for _, e := range open {
		for i := range heads[e.lane] {
			if h := &heads[e.lane][i]; e.seq >= h.lo && e.seq < h.hi {
				h.next = max(h.next, e.seq+1)
			}
		}
	}
	if f.bad || len(f.b) > 0 {
		return heads, fmt.Errorf("%w: positions", errDamaged)
	}
	return heads, nil
}
