package buffer

import "slices"

// Ack ends leases, in any order. It does not wait for the disk: a crash of the
// machine within a second, or 1,000 acks, may repeat the deliveries. The end of
// the process repeats none but those that were acknowledged ahead of an older
// open one (and, with Exact, as a crash does). Numbers that are not open are
// counted.
func (c *Consumer) Ack(ords ...uint64) {
	c.noting.Lock()
	defer c.noting.Unlock()
	c.s.notes.write(c.slot, c.ack(ords))
}

// ack ends leases and returns what is to be noted of it.
func (c *Consumer) ack(ords []uint64) []byte {
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
		c.s.saveLocked()
	}
	c.settleLocked(touched)
	return c.noteLocked()
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
