package embeddedbroker

import (
	"slices"
	"time"

	"busgate/embeddedbroker/packet"
)

// Bounds of the hashing of passwords, which is the dearest thing that somebody
// can ask for who is not authenticated.
const (
	hashesAtOnce = 2
	hashWait     = connectTime // for room
	hashCooling  = 3           // times what a wrong password of a suspect cost, before the next suspect
)

// hashing is who hashes and who waits for room. An address with wrong passwords
// is a suspect: suspects have one place, and use it a part of the time.
type hashing struct {
	busy    int
	suspect bool // their place is taken, or cools down
	queue   []*hasher
}

// hasher is a connection that waits for its turn.
type hasher struct {
	c       *conn
	suspect bool
	turn    bool // guarded by c.mu
}

// hash runs one comparison of a password when there is room.
func (g *gatekeeper) hash(c *conn, check func() bool) (ok bool, err error) {
	g.mu.Lock()
	a := g.guests.get(c.ip)
	h := &hasher{c: c, suspect: a.failed >= loginFailures && time.Since(a.since) < loginWindow}
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
	began := time.Now()
	ok = check()
	if cost := time.Since(began); h.suspect && !ok {
		time.AfterFunc(hashCooling*cost, func() { g.hashed(h) })
		return ok, nil
	}
	g.hashed(h)
	return ok, nil
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
