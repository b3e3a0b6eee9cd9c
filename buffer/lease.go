package buffer

import (
	"context"
	"fmt"
	"slices"
)

// Next leases at most limit records in order, lane 0 first, and numbers them.
// After a restart or Rewind the leases that are still open come again, under
// their old numbers and with Dup; released ones are left out. It waits while
// there is nothing to give or Window leases are open. What is there is
// returned even when ctx is done. With Exact the leases are on disk when it
// returns. ErrForgotten, ErrClosed or ctx's error otherwise.
func (c *Consumer) Next(ctx context.Context, limit int) ([]Record, error) {
	return c.serve(ctx, &c.live, limit)
}

// NextBacklog is Next for the readings that Live jumped over. It waits while
// there are none, and may run beside Next.
func (c *Consumer) NextBacklog(ctx context.Context, limit int) ([]Record, error) {
	return c.serve(ctx, &c.late, limit)
}

func (c *Consumer) serve(ctx context.Context, r *reader, limit int) ([]Record, error) {
	if err := r.begin(ctx); err != nil {
		return nil, err
	}
	defer r.end()
	for {
		rs, t, err := c.lease(r, limit)
		if err != nil {
			return nil, err
		}
		if len(rs) > 0 {
			if err := t.Wait(ctx); err != nil {
				c.Rewind() // the leases stay and come again
				return nil, fmt.Errorf("lease for %s: %w", c.name, err)
			}
			return rs, nil
		}
		select {
		case <-r.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// begin waits for the call before.
func (r *reader) begin(ctx context.Context) error {
	select {
	case r.turn <- struct{}{}:
		return nil
	default:
	}
	select {
	case r.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *reader) end() { <-r.turn }

// lease takes what is there: first the open leases that come again, then new
// records of one segment. It returns nothing when there is nothing. The ticket
// fires when the leases are as durable as they must be.
func (c *Consumer) lease(r *reader, limit int) ([]Record, Ticket, error) {
	s := c.s
	for {
		s.mu.Lock()
		if err := c.aliveLocked(); err != nil {
			s.mu.Unlock()
			return nil, Ticket{}, err
		}
		if e := c.againLocked(); e != nil {
			h, gen := s.lanes[e.lane].holder(e.seq), c.gen
			want := c.openFromLocked(e, h, limit)
			s.mu.Unlock()
			rs, err := c.repeat(h, gen, want)
			if err != nil || len(rs) > 0 {
				return rs, Ticket{}, err
			}
			continue
		}
		room := min(limit, c.o.Window-len(c.open))
		p := place{room: room, gen: c.gen, stream: c.stream}
		if room > 0 {
			c.pickLocked(r, &p)
		}
		if p.h == nil {
			s.mu.Unlock()
			return nil, Ticket{}, nil
		}
		p.m = r.marks[p.h.lane]
		k := collector{s: s, boot: s.bootLocked(p.h.boot)}
		k.expect(room, p.h)
		s.mu.Unlock()

		raw, err := s.load(p.h)
		if err == nil {
			err = c.read(&k, raw, &p)
		}
		if err != nil {
			if err := s.damaged(p.h, err); err != nil {
				return nil, Ticket{}, err
			}
			continue
		}
		s.mu.Lock()
		t, ok := c.takeLocked(r, &p, k.rs)
		s.mu.Unlock()
		if ok && len(k.rs) > 0 {
			return k.rs, t, nil
		}
	}
}

func (c *Consumer) aliveLocked() error {
	switch {
	case c.gone:
		return ErrForgotten
	case c.s.stopped:
		return ErrClosed
	}
	return nil
}

// fairness: after so many windows of a higher lane the next lower one that has
// something gets one.
const fairness = 16

// place is where a read takes place, and what it found.
type place struct {
	h    *header
	at   head // as it was
	m    mark
	gen  uint64
	room int

	stream StreamID // of the consumer

	end     uint64 // read on from here
	sizes   []uint32
	expired []expiredRecord
}

type expiredRecord struct {
	number uint64
	size   uint32
}

// pickLocked chooses where to read.
func (c *Consumer) pickLocked(r *reader, p *place) {
	ended := 0
	for l := range lanes {
		h, at := c.pickLaneLocked(r, l, &ended)
		if h == nil {
			continue
		}
		lower := p.h != nil
		p.h, p.at = h, at
		if lower || c.streak < fairness {
			if lower {
				c.streak = -1
			}
			break
		}
	}
	c.streak++
	c.settleLocked(ended)
}

// pickLaneLocked is the next segment of one lane, and the head to read it at.
// Heads that have nothing more are moved to their end.
func (c *Consumer) pickLaneLocked(r *reader, l int, ended *int) (*header, head) {
	heads := c.heads[l]
	tail := len(heads) - 1
	from, to := 0, tail
	switch split := c.jumped && l >= LaneLive; {
	case r == &c.live && split:
		from = tail
	case r == &c.late && !split:
		return nil, head{}
	case r == &c.late:
		to = tail - 1
	}
	for i := from; i <= to; i++ {
		if heads[i].next == heads[i].hi {
			continue
		}
		if h := c.findLocked(l, heads[i].next, heads[i].hi); h != nil {
			if h.busy {
				return nil, head{} // the rewriter wakes us
			}
			return h, heads[i]
		}
		if end := min(heads[i].hi, c.s.head); heads[i].next < end {
			heads[i].next = end
			*ended |= 1 << l
		}
	}
	return nil, head{}
}

// read decodes at most p.room records of a segment into k.
func (c *Consumer) read(k *collector, raw []byte, p *place) error {
	p.end = min(p.h.last+1, p.at.hi)
	now := c.s.expiryNow()
	return p.m.walk(p.h, raw, c.slot, p.at.next, func(v *view) bool {
		if v.seq >= p.at.hi {
			return false
		}
		if v.expires != 0 && v.expires <= now {
			p.expired = append(p.expired, expiredRecord{v.number(p.stream), uint32(v.size)})
			return true
		}
		if len(k.rs) == p.room {
			p.end = v.seq
			return false
		}
		k.take(v).Lane = p.h.lane
		p.sizes = append(p.sizes, uint32(v.size))
		return true
	})
}

// expiryNow is the time that expiry is judged by, in ms; 0 while the clock is
// not known: nothing expires then.
func (s *Store) expiryNow() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.clock.known {
		return 0
	}
	return millis(s.clock.at(s.sys.mono()))
}

// takeLocked numbers the records of a read and moves the reader; false: the
// place has changed meanwhile and the read is worthless.
func (c *Consumer) takeLocked(r *reader, p *place, rs []Record) (t Ticket, ok bool) {
	l := int(p.h.lane)
	i := slices.IndexFunc(c.heads[l], func(h head) bool { return h.next == p.at.next && h.hi == p.at.hi })
	if p.gen != c.gen || p.h.dead || p.h.busy || i < 0 || len(c.open)+len(rs) > c.o.Window {
		return t, false
	}
	c.heads[l][i].next = p.end
	r.marks[l] = p.m
	for i := range rs {
		c.ord++
		rs[i].Ord = c.ord
		c.open = append(c.open, lease{ord: c.ord, seq: rs[i].Seq, size: p.sizes[i], lane: p.h.lane})
	}
	c.again = c.ord + 1
	for _, e := range p.expired {
		c.n--
		c.bytes -= int64(e.size)
		c.s.loseLocked(c, int64(p.h.boot), e.number, e.number, 1, 0, int64(e.size), reasonExpired)
	}
	c.settleLocked(1 << l)
	c.dirtyLocked()
	if c.o.Exact && len(rs) > 0 {
		t = c.s.persistLocked(c)
	}
	return t, true
}
