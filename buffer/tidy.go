package buffer

import "slices"

// A session settles by sequence number and says nothing of sizes, and the last
// record it wants of a segment is seldom the segment's last. So once a second
// the segments that sessions stand in are decoded, and what the positions
// really mean is counted.

// part is what a session has settled of a segment that it still needs.
type part struct {
	h     *header
	n     int
	bytes int64
}

// stand is a session and the segments that it has settled in part.
type stand struct {
	c     *Consumer
	pos   [lanes]uint64
	marks map[uint64]bool // settled above pos
	segs  []*header
}

// tidyMost bounds the sessions of one round.
const tidyMost = 256

// tidy counts what sessions have settled and moves those that need nothing
// more of a segment behind it. The committer calls it.
func (s *Store) tidy() {
	for _, st := range s.standing() {
		var parts []part
		var passed []*header
		for _, h := range st.segs {
			p, open, err := st.count(h)
			switch {
			case err != nil: // the reader finds it, too
			case open == 0 && h.first < st.pos[h.lane]:
				passed = append(passed, h)
			default:
				parts = append(parts, p)
			}
		}
		s.mu.Lock()
		if c := st.c; !c.gone && c.floorsLocked() == st.pos {
			c.parts = parts
			for _, h := range passed {
				c.floorLocked(int(h.lane), h.last+1)
			}
		}
		s.mu.Unlock()
	}
}

// count decodes a segment.
func (st *stand) count(h *header) (settled part, open int, err error) {
	raw, err := st.c.s.load(h)
	if err != nil {
		return part{}, 0, err
	}
	settled.h = h
	err = new(mark).walk(h, raw, st.c.slot, st.c.start, func(v *view) bool {
		if v.seq < st.pos[h.lane] || st.marks[v.seq] {
			settled.n++
			settled.bytes += int64(v.size)
		} else {
			open++
		}
		return true
	})
	return settled, open, err
}

// standing lists what is to be decoded.
func (s *Store) standing() (list []stand) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.slots {
		if c == nil || !c.untidy || len(list) >= tidyMost {
			continue
		}
		c.untidy = false
		st := stand{c: c, pos: c.floorsLocked(), marks: map[uint64]bool{}}
		for _, e := range c.open {
			if e.state == stateDone {
				st.marks[e.seq] = true
			}
		}
		for l := range lanes {
			if h := c.findLocked(l, st.pos[l], noEnd); h != nil && h.first < st.pos[l] {
				st.segs = append(st.segs, h)
			}
			for seq := range st.marks {
				if h := s.lanes[l].holder(seq); h != nil && h.has(c.slot) && !slices.Contains(st.segs, h) {
					st.segs = append(st.segs, h)
				}
			}
		}
		list = append(list, st)
	}
	return list
}

// floorsLocked is the positions of a session.
func (c *Consumer) floorsLocked() (pos [lanes]uint64) {
	for l := range lanes {
		pos[l] = c.posLocked(l)
	}
	return pos
}

// Pending is what waits for the consumer, leases included. What a session
// settled inside a segment is taken off within a second.
func (c *Consumer) Pending() (records int, bytes int64) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return c.pendingLocked()
}

func (c *Consumer) pendingLocked() (n int, bytes int64) {
	n, bytes = c.n, c.bytes
	for _, p := range c.parts {
		if !p.h.dead && c.needsLocked(p.h) {
			n -= p.n
			bytes -= p.bytes
		}
	}
	return n, bytes
}
