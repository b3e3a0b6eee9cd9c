package buffer

// After a restart or Rewind the open leases are read again.

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
		k.boot = s.bootLocked(h.boot)
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
