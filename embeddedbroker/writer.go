package embeddedbroker

import (
	"runtime"
	"slices"
	"sync"
	"time"
)

// writeBuffers are shared by the writers: an idle connection owns none.
var writeBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 4096); return &b }}

// wake says that there may be output.
func (c *conn) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dirty = true
	c.startLocked()
}

func (c *conn) startLocked() {
	if !c.writing && !c.dead {
		c.writing = true
		go c.write() // finish waits for it
	}
}

// write sends until nothing is left. No lock is held while it does.
func (c *conn) write() {
	runtime.Gosched() // readers that are ready go first: one write serves them all
	own := writeBuffers.Get().(*[]byte)
	buf := *own
	for {
		c.mu.Lock()
		c.dirty, c.granted = false, false
		buf = append(buf[:0], c.ctl...)
		if c.ctl = c.ctl[:0]; cap(c.ctl) > 4096 {
			c.ctl = nil
		}
		ready, answers := c.ready && c.holding == 0 && c.kicked == nil, len(buf)
		c.mu.Unlock()
		if ready {
			buf = c.sess.fill(c, buf)
		}
		if len(buf) > 0 {
			var err error
			if buf, err = c.send(buf, answers); err != nil {
				c.broken(err)
				break
			}
		}
		c.mu.Lock()
		if c.parked {
			c.cond.Broadcast()
		}
		if len(buf) == 0 && !c.dirty && len(c.ctl) == 0 {
			c.writing = false
			c.cond.Broadcast()
			c.mu.Unlock()
			break
		}
		c.mu.Unlock()
	}
	if cap(buf) <= 2*maxWrite {
		*own = buf[:0]
		writeBuffers.Put(own)
	}
}

// send writes one buffer, of which the first bytes are answers, under the write
// deadline, which is moved at most once a second. A SUBACK that came while the
// messages were collected leaves before them: its retained ones may be among them.
func (c *conn) send(buf []byte, answers int) ([]byte, error) {
	now := time.Now()
	c.mu.Lock()
	if c.granted && c.kicked == nil {
		buf = slices.Insert(buf, answers, c.ctl...)
		c.ctl, c.granted = c.ctl[:0], false
	}
	if limit := max(writeTime, c.keep); c.kicked == nil && c.deadline.Sub(now) < limit {
		c.deadline = now.Add(limit + time.Second)
		c.nc.SetWriteDeadline(c.deadline)
	}
	c.mu.Unlock()
	n, err := c.nc.Write(buf)
	c.b.n.sentAll.Add(uint64(n))
	return buf, err
}

// broken ends a connection whose socket takes nothing more. A part may have
// been written: it is never tried again.
func (c *conn) broken(err error) {
	if c.kick(&ending{text: "write: " + err.Error()}) && isTimeout(err) {
		c.b.n.slowClosed.Add(1)
	}
	c.mu.Lock()
	c.dead, c.writing = true, false
	c.ctl = nil
	c.cond.Broadcast()
	c.mu.Unlock()
}
