package embeddedbroker

import (
	"slices"
	"time"

	"busgate/embeddedbroker/packet"
)

// Bounds of the hashing of passwords, which is the dearest thing that somebody
// can ask for who is not authenticated. It is done in slices with rests between
// them, in which everybody else is served at once.
const (
	hashesAtOnce = 4
	hashWait     = connectTime // for room
	hashSlice    = 512         // rounds between two rests: some 1 ms
	hashRest     = time.Millisecond
	smallSlice   = 16 // ... while wrong passwords come: some 0.03 ms
	smallRest    = 250 * time.Microsecond
	suspectRest  = time.Millisecond
	restShare    = 3                    // a small slice that took long, on a slow machine, has rests so many times as long
	longestRest  = 4 * time.Millisecond // ... but a slice that only waited for the processor is not told from a slow one
	maxRests     = 1250                 // in one hash, whatever the file asks for
)

// hashing is who hashes and who waits for room. An address with wrong passwords
// is a suspect: suspects have one place, and longer rests.
type hashing struct {
	busy    int
	suspect bool // their place is taken
	queue   []*hasher
}

// rhythm is how a password is hashed: so many rounds, then a rest. Rounds are
// the measure, not time: what others wait for grows with them on a slow machine.
type rhythm struct {
	slice int
	rest  time.Duration
	share int // the rest is at least so many times as long as the slice took
}

// during is the rhythm of a hash of so many rounds.
func (r rhythm) during(rounds int) rhythm {
	r.slice = max(r.slice, rounds/maxRests)
	return r
}

// pause rests after a slice that began at began.
func (r rhythm) pause(began time.Time) {
	time.Sleep(max(r.rest, min(time.Duration(r.share)*time.Since(began), longestRest)))
}

// hasher is a connection that waits for its turn.
type hasher struct {
	c       *conn
	suspect bool
	turn    bool // guarded by c.mu
}

// hash runs one comparison of a password when there is room.
func (g *gatekeeper) hash(c *conn, check func(rhythm) bool) (ok bool, err error) {
	g.mu.Lock()
	a := g.guests.get(c.ip)
	h := &hasher{c: c, suspect: a.failing(time.Now())}
	g.hashing.queue = append(g.hashing.queue, h)
	g.nextHashLocked()
	g.mu.Unlock()
	if err := h.wait(); err != nil {
		g.mu.Lock()
		defer g.mu.Unlock()
		if i := slices.Index(g.hashing.queue, h); i >= 0 {
			g.hashing.queue = slices.Delete(g.hashing.queue, i, i+1)
		} else {
			g.hashedLocked(h) // its turn came too late
		}
		return false, err
	}
	defer g.hashed(h)
	return check(g.rhythm(h)), nil
}

// rhythm is full speed, nearly, while nobody does wrong.
func (g *gatekeeper) rhythm(h *hasher) rhythm {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case h.suspect:
		return rhythm{smallSlice, suspectRest, restShare}
	case g.wrong.failing(time.Now()):
		return rhythm{smallSlice, smallRest, restShare}
	}
	return rhythm{hashSlice, hashRest, 0}
}

// wait returns when it is the connection's turn, and an error when it is to end
// or when that takes too long.
func (h *hasher) wait() error {
	c, until := h.c, time.Now().Add(hashWait)
	stop := time.AfterFunc(hashWait, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.cond.Broadcast()
	})
	defer stop.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for !h.turn && c.kicked == nil {
		if !time.Now().Before(until) {
			c.b.n.refusedConnects.Add(1)
			return refuseConnect(packet.ServerBusy, "too many passwords are to be checked")
		}
		c.cond.Wait()
	}
	if c.kicked != nil {
		return c.kicked
	}
	return nil
}

func (g *gatekeeper) hashed(h *hasher) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hashedLocked(h)
}

func (g *gatekeeper) hashedLocked(h *hasher) {
	g.hashing.busy--
	if h.suspect {
		g.hashing.suspect = false
	}
	g.nextHashLocked()
}

// nextHashLocked lets in who waits, in turn, as far as there is room.
func (g *gatekeeper) nextHashLocked() {
	w := &g.hashing
	for i := 0; i < len(w.queue) && w.busy < hashesAtOnce; {
		h := w.queue[i]
		if h.suspect && w.suspect {
			i++
			continue
		}
		w.queue = slices.Delete(w.queue, i, i+1)
		w.busy++
		w.suspect = w.suspect || h.suspect
		h.c.mu.Lock()
		h.turn = true
		h.c.cond.Broadcast()
		h.c.mu.Unlock()
	}
}
