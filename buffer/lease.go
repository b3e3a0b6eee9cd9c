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
		p := place{room: room, gen: c.gen}
		if room > 0 {
			c.pickLocked(r, &p)
		}
		if p.h == nil {
			s.mu.Unlock()
			return nil, Ticket{}, nil
		}
		p.m = r.marks[p.h.lane]
		k := collector{s: s, boot: s.boots[int64(p.h.boot)]}
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
		if h := c.findLocked(l, heads[i].next, heads[i].hi); h != nil {
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
			p.expired = append(p.expired, expiredRecord{v.number(c.stream), uint32(v.size)})
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
	if p.gen != c.gen || p.h.dead || i < 0 || len(c.open)+len(rs) > c.o.Window {
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

// Ack ends leases, in any order. It is lazy: a crash within a second, or 1,000
// acks, may repeat the deliveries. Numbers that are not open are counted.
func (c *Consumer) Ack(ords ...uint64) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	touched := 0
	for _, ord := range ords {
		e := c.leaseLocked(ord)
		if e == nil || e.state == stateDone {
			c.s.count.acksUnknown++
			continue
		}
		c.finishLocked(e)
		touched |= 1 << e.lane
		c.acks++
	}
	if c.acks >= 1000 {
		c.s.hurryLocked()
	}
	c.settleLocked(touched)
}

// finishLocked ends a lease.
func (c *Consumer) finishLocked(e *lease) {
	e.state = stateDone
	c.n--
	c.bytes -= int64(e.size)
	if c.n == 0 {
		c.bytes = 0 // rewriting a segment changes sizes a little
	}
	c.dirtyLocked()
}

// leaseLocked finds an open lease; nil: there is none.
func (c *Consumer) leaseLocked(ord uint64) *lease {
	if len(c.open) == 0 || ord < c.open[0].ord || ord > c.open[len(c.open)-1].ord {
		return nil
	}
	return &c.open[ord-c.open[0].ord]
}

// Release notes that the receiver has these deliveries (PUBREC): after the
// ticket has fired only a PUBREL is owed for them.
func (c *Consumer) Release(ords ...uint64) Ticket {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if err := c.aliveLocked(); err != nil {
		return Ticket{s: c.s, err: err}
	}
	for _, ord := range ords {
		if e := c.leaseLocked(ord); e == nil {
			c.s.count.acksUnknown++
		} else if e.state == stateSent {
			e.state = stateReleased
		}
	}
	return c.s.persistLocked(c)
}

// Unrelease takes all releases back, because the receiver lost its session:
// the deliveries are owed again, and Rewind hands them out.
func (c *Consumer) Unrelease() Ticket {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if err := c.aliveLocked(); err != nil {
		return Ticket{s: c.s, err: err}
	}
	for i := range c.open {
		if c.open[i].state == stateReleased {
			c.open[i].state = stateSent
		}
	}
	return c.s.persistLocked(c)
}

// Rewind makes Next begin again with the open leases, after a reconnect.
func (c *Consumer) Rewind() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.rewindLocked()
}

func (c *Consumer) rewindLocked() {
	c.again = c.ord + 1
	if len(c.open) > 0 {
		c.again = c.open[0].ord
	}
	c.gen++
	c.wakeUp()
}

// Live makes Next jump over the readings that wait (lanes 2 and 3) to those
// appended from now on; NextBacklog gives the older ones. Each jump that leaves
// something behind adds a gap; at 64 gaps of a lane the consumer goes back to
// first in, first out until it is called again.
func (c *Consumer) Live() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.jumped = true
	for l := LaneLive; l < lanes; l++ {
		heads := c.heads[l]
		tail := heads[len(heads)-1]
		if c.findLocked(l, tail.next, c.s.head) == nil {
			continue
		}
		if len(heads) >= maxHeads {
			c.jumped = false
			c.s.count.liveSuspended++
			return
		}
		at := c.s.head
		heads = append(slices.Clone(heads), head{at, at, at, noEnd})
		heads[len(heads)-2].hi = at
		c.adoptLocked(l, heads)
	}
	c.gen++
	c.wakeUp()
}

// Owed lists the leases that are open, in order.
func (c *Consumer) Owed() []Owed {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	var owed []Owed
	for _, e := range c.open {
		if e.state != stateDone {
			owed = append(owed, Owed{e.ord, e.state == stateReleased})
		}
	}
	return owed
}

// againLocked is the next lease to hand out again; nil: none.
func (c *Consumer) againLocked() *lease {
	for c.again <= c.ord && len(c.open) > 0 {
		c.again = max(c.again, c.open[0].ord)
		e := c.leaseLocked(c.again)
		if e == nil {
			c.again = c.ord + 1
			return nil
		}
		if e.state == stateSent {
			return e
		}
		c.again++
	}
	return nil
}

// holder is the living segment that covers seq; nil: none.
func (l *lane) holder(seq uint64) *header {
	for _, h := range l.segs[l.find(seq):] {
		if !h.dead {
			if h.first <= seq {
				return h
			}
			return nil
		}
	}
	return nil
}

// openFromLocked copies the leases from e on that lie in its segment in rising
// order: one read finds them all.
func (c *Consumer) openFromLocked(from *lease, h *header, limit int) (want []lease) {
	e := *from
	for i := e.ord - c.open[0].ord; i < uint64(len(c.open)) && len(want) < limit; i++ {
		o := c.open[i]
		if o.state != stateSent {
			continue
		}
		if o.lane != e.lane || o.seq < e.seq || h != nil && o.seq > h.last {
			break
		}
		e.seq = o.seq
		want = append(want, o)
		if h == nil {
			break
		}
	}
	return want
}

// repeat reads leased records again. Leases whose record is gone are ended.
func (c *Consumer) repeat(h *header, gen uint64, want []lease) ([]Record, error) {
	s := c.s
	k := collector{s: s}
	found := map[uint64]bool{}
	if h != nil {
		raw, err := s.load(h)
		if err != nil {
			return nil, s.damaged(h, err)
		}
		s.mu.Lock()
		k.boot = s.boots[int64(h.boot)]
		s.mu.Unlock()
		i := 0
		err = new(mark).walk(h, raw, c.slot, want[0].seq, func(v *view) bool {
			for i < len(want) && want[i].seq < v.seq {
				i++
			}
			if i == len(want) {
				return false
			}
			if want[i].seq == v.seq {
				r := k.take(v)
				r.Ord, r.Dup, r.Lane = want[i].ord, true, h.lane
				found[r.Ord] = true
			}
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if gen != c.gen || c.again != want[0].ord {
		return nil, nil
	}
	touched := 0
	for _, o := range want {
		if e := c.leaseLocked(o.ord); !found[o.ord] && e != nil && e.state != stateDone {
			c.finishLocked(e)
			touched |= 1 << e.lane
			s.count.leasesLost++
		}
	}
	c.again = want[len(want)-1].ord + 1
	c.settleLocked(touched)
	return k.rs, nil
}
