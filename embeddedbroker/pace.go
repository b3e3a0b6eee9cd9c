package embeddedbroker

import (
	"net"
	"sync"
	"time"
)

// Pace at which connections are taken. What comes faster waits in the queue of
// the kernel (net.core.somaxconn), so that a flood of connections never takes
// turns with the work for the clients that are there: 1000 clients that come back
// at once are taken in less than three seconds.
const (
	acceptEvery = 2 * time.Millisecond // one connection of anybody
	acceptBurst = 1                    // ... of which so many may come in one go
	slowAccept  = 5 * time.Millisecond // ... while wrong passwords come: each of those costs more
	visitEvery  = 4 * time.Millisecond
	visitBurst  = 1000 // connections of one address in one go, and one each visitEvery; further ones are closed
)

// pace is a token bucket, kept as the time at which it is full (the generic cell
// rate algorithm of ITU-T I.371). The zero time is a full one.
type pace struct{ full time.Time }

// wait is how long it takes until the next token is there.
func (p *pace) wait(now time.Time, every time.Duration, burst int) time.Duration {
	return max(0, p.full.Add(-time.Duration(burst-1)*every).Sub(now))
}

func (p *pace) take(now time.Time, every time.Duration) {
	if p.full.Before(now) {
		p.full = now
	}
	p.full = p.full.Add(every)
}

// What a client that was let in may ask for in one go, and what it then waits for
// before its next packet is read: changes of subscriptions hold everybody up while
// they are made, and so do topics of a length that no honest client has.
const (
	filterToil   = time.Millisecond      // for each filter of SUBSCRIBE and UNSUBSCRIBE
	retainedToil = 20 * time.Microsecond // for each retained message that it brings
	longTopic    = 1 << 10               // bytes of a topic that are free
	topicToil    = 4 * time.Millisecond  // for each further KiB, of filters too
	toilBurst    = time.Second           // so much of it costs nothing
	toilRest     = time.Second           // the longest wait at once
)

// lengthy is what a topic or a filter costs for its length.
func lengthy(topic string) time.Duration {
	return time.Duration(max(0, len(topic)-longTopic)) * topicToil >> 10
}

// toil holds the reader back after work of which there is too much. What is owed
// beyond one rest is forgiven.
func (c *conn) toil(cost time.Duration) error {
	now := time.Now()
	c.toils.take(now, cost)
	rest := c.toils.full.Sub(now) - toilBurst
	if rest <= 0 {
		return nil
	}
	if rest > toilRest {
		rest = toilRest
		c.toils.full = now.Add(toilBurst + toilRest)
	}
	c.b.n.slowed.Add(1)
	c.b.gate.offence(c, "is slowed: too many subscriptions or too long topics in too short a time")
	c.idle()
	if err := c.pause(rest); err != nil {
		return err
	}
	return c.breathe()
}

// How many filters of one packet are dealt with in one go, and what all others
// have for themselves until the next: on one core a large SUBSCRIBE would hold
// everybody up until it is done, and so would the packets of many that were slowed
// and go on at the same time.
const (
	filtersAtOnce = 32
	bytesAtOnce   = 128 << 10 // of filters
	judgedAtOnce  = 1024      // filters that are only looked at
	breath        = 2 * time.Millisecond
)

// line is where those wait who want much, of all clients together: one goes on
// each breath. Everybody has one place at most.
type line struct {
	mu sync.Mutex
	p  pace
}

// place is how long it takes until it is the turn of who asks.
func (l *line) place() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.p.take(now, breath)
	return l.p.full.Sub(now)
}

// turn is how many of those that are left are dealt with in one go.
func turn[T any](left []T, bytes func(T) int) (n int) {
	for sum := 0; n < min(len(left), filtersAtOnce) && sum < bytesAtOnce; n++ {
		sum += bytes(left[n])
	}
	return n
}

// breathe lets others work in the middle of a large packet.
func (c *conn) breathe() error {
	c.idle()
	return c.pause(c.b.line.place())
}

// awaitTurn waits until a further connection may be taken, by all listeners
// together, or the broker stops.
func (b *Broker) awaitTurn() {
	g := b.gate
	for {
		now := time.Now()
		g.mu.Lock()
		every := acceptEvery
		if g.wrong.failing(now) {
			every = slowAccept
		}
		d := g.accepts.wait(now, every, acceptBurst)
		if d == 0 {
			g.accepts.take(now, every)
		}
		g.mu.Unlock()
		if d == 0 {
			return
		}
		b.n.paced.Add(1)
		t := time.NewTimer(d)
		select {
		case <-t.C:
		case <-b.stop:
			t.Stop()
			return
		}
	}
}

// shut closes a connection that is refused before it said anything: with a reset,
// so that nothing of it stays in the kernel.
func shut(nc net.Conn) {
	if tcp, ok := nc.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	nc.Close()
}

// listenLocked begins a keep-alive after a time in which the reader did not
// listen. The reader calls it with mu held.
func (c *conn) listenLocked() {
	if c.keep > 0 && c.sess != nil && c.kicked == nil {
		c.renewed = time.Now()
		c.nc.SetReadDeadline(c.renewed.Add(c.keep + min(time.Second, c.keep/8)))
	}
}
