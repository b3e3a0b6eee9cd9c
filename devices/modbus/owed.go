package modbus

import (
	"bytes"
	"slices"
	"time"
)

const (
	maxDebts = 8  // open requests of one unit; then it is asked nothing that would be another
	maxOpen  = 32 // times that they were sent; then it is asked nothing at all
	maxSpent = 16 // given up, of one unit; the oldest is forgotten
	// A unit that said nothing for maxSilence owes nothing any more.
	maxSilence = 30 * time.Second
	// maxStale is how old the answer to an equal request may be when it is taken.
	maxStale = 5 * time.Second
)

// ledger is the account of a wire: which requests are open, that is, may still be
// answered although nobody waits for it. See the package comment for what it
// rests on. Its owner is a Line.
type ledger struct {
	peers map[byte]*peer
}

// peer is a unit that was ever asked.
type peer struct {
	heard   time.Time // its newest frame
	writes  uint32    // requests that may have changed something
	debts   []debt
	spent   []debt // given up
	suspect byte   // a function: an exception came that any of several requests explains
	mark    marking
}

// debt is an open request.
type debt struct {
	req    []byte
	times  []time.Time   // when it was sent and perhaps not answered, oldest first; at least one
	missed time.Time     // when its answer was last given up
	until  time.Time     // till then its answer may even come behind those to later requests
	writes uint32        // of the unit, before it
	behind time.Duration // how late the answer to the first was, if that is what was taken for a repetition's
	proven bool          // a later request was answered
	seen   bool          // a frame that fits came, on a wire with strangers
}

func (d *debt) oldest() time.Time { return d.times[0] }
func (d *debt) newest() time.Time { return d.times[len(d.times)-1] }

// likely is when the request was sent that was answered late at came: the oldest
// is so long ago at some time that it must have been lost.
func (d *debt) likely(came time.Time) time.Time {
	for _, t := range d.times {
		if came.Sub(t) <= maxWindow {
			return t
		}
	}
	return d.newest()
}

// peer finds a unit, or makes it known.
func (a *ledger) peer(unit byte) *peer {
	p := a.peers[unit]
	if p == nil {
		p = &peer{}
		if a.peers == nil {
			a.peers = map[byte]*peer{}
		}
		a.peers[unit] = p
	}
	return p
}

// any says that an answer may come that nobody waits for.
func (a *ledger) any(now time.Time) bool {
	for _, p := range a.peers {
		if len(p.debts)+len(p.spent) == 0 {
			continue
		}
		if p.review(now); len(p.debts)+len(p.spent) > 0 {
			return true
		}
	}
	return false
}

// changes says that a function may change something in the unit.
func changes(function byte) bool { return !slices.Contains(readers, function) }

// sent notes a request that goes out. What was read before a write is not what is
// read after it, nor is a write confirmed by the answer to an earlier one, if
// there was another between.
func (a *ledger) sent(req []byte) {
	if req[0] == 0 { // all units take it
		for _, p := range a.peers {
			p.writes++
		}
		return
	}
	p := a.peer(req[0])
	if !changes(req[1]) {
		return
	}
	d := p.find(req)
	p.writes++
	if d != nil {
		d.writes = p.writes
	}
}

// equal says that the answer to d is as good for req.
func (p *peer) equal(d *debt, req []byte) bool {
	return d.writes == p.writes && bytes.Equal(d.req, req)
}

// find is the open request that equals req, or nil.
func (p *peer) find(req []byte) *debt {
	for i := range p.debts {
		if d := &p.debts[i]; p.equal(d, req) {
			return d
		}
	}
	return nil
}

// owe notes that a request which was sent then was not answered, or not for sure.
// until is how long its answer may come behind others.
func (p *peer) owe(req []byte, sent, now, until time.Time) {
	d := p.find(req)
	if d == nil {
		if len(p.debts) >= 2*maxDebts { // the line asks before it sends, but strangers do not
			p.spend(0)
		}
		p.debts = append(p.debts, debt{req: bytes.Clone(req), writes: p.writes})
		d = &p.debts[len(p.debts)-1]
	}
	if len(d.times) >= 2*maxOpen {
		d.times = slices.Delete(d.times, 1, 2)
	}
	d.times = append(d.times, sent)
	d.missed, d.proven, d.seen = now, false, false
	if until.After(d.until) {
		d.until = until
	}
}

// answered notes that the request which was sent then got its answer now. window
// is how long answers of the unit may be overtaken by later ones.
//
// A unit works on its requests one after another: what was sent before this one,
// and before all that equal it and could be what was answered, is not answered
// any more once the time is over in which answers overtake one another.
func (p *peer) answered(req []byte, sent, now time.Time, window time.Duration) {
	since := sent
	own := p.find(req)
	if own != nil { // one of its times is answered, in the worst case the oldest, as late as that
		since = own.oldest()
		behind := min(now.Sub(since), maxWindow)
		own.behind = max(own.behind, behind)
		own.times = append(own.times[1:], sent)
		until := now.Add(window)
		if u := sent.Add(2 * behind); u.After(until) {
			until = u
		}
		if last := own.missed.Add(2 * max(window, behind)); until.After(last) { // else it never ends while it is polled
			until = last
		}
		if until.After(own.until) {
			own.until = until
		}
		own.seen = false
	}
	for i := range p.debts {
		if d := &p.debts[i]; d.newest().Before(since) {
			d.proven = true
		}
	}
	p.heard = now
	if m := &p.mark; m.waits(p) && !bytes.Equal(req, m.asked) && !since.Before(m.at) {
		m.passed(now)
	}
	p.review(now)
}

// review gives up what cannot be answered any more.
func (p *peer) review(now time.Time) {
	for i := 0; i < len(p.debts); {
		if p.over(&p.debts[i], now) {
			p.spend(i)
		} else {
			i++
		}
	}
	if len(p.debts) == 0 {
		p.suspect = 0
	}
	p.spent = slices.DeleteFunc(p.spent, func(d debt) bool { return now.Sub(d.newest()) > maxSilence })
}

// over says that nobody need expect the answer to d.
func (p *peer) over(d *debt, now time.Time) bool {
	if now.Before(d.until) {
		return false
	}
	last := d.newest()
	if p.heard.After(last) {
		last = p.heard
	}
	return d.proven || now.Sub(last) >= maxSilence || now.Sub(d.missed) >= p.mark.patience() && p.marker(d.req) == nil
}

// spend gives an open request up. If its answer comes all the same, it is not
// taken for a stranger's.
func (p *peer) spend(i int) {
	if len(p.spent) >= maxSpent {
		p.spent = slices.Delete(p.spent, 0, 1)
	}
	p.spent = append(p.spent, p.debts[i])
	p.debts = slices.Delete(p.debts, i, i+1)
}

// blocked says why req must not be sent yet: for wait, because an answer that
// would be taken for its own may come; or because the unit has to show first that
// it is not behind.
func (a *ledger) blocked(req []byte, now time.Time) (wait time.Duration, prove bool) {
	p := a.peers[req[0]]
	if p == nil || len(p.debts) == 0 {
		return 0, false
	}
	p.review(now)
	full := len(p.debts) >= maxDebts && p.find(req) == nil
	for i := range p.debts {
		d := &p.debts[i]
		left := d.until.Sub(now)
		switch {
		case p.equal(d, req):
			prove = prove || now.Sub(d.oldest()) >= maxStale && !p.mark.waits(p)
		case !full && !sameShape(d.req, req):
			prove = prove || left <= 0 && p.suspect == req[1] && d.req[1] == req[1]
		case left > 0:
			wait = max(wait, left)
		default:
			prove = true
			if p.marker(req) == nil {
				wait = max(wait, p.mark.patience()-now.Sub(d.missed))
			}
		}
	}
	return wait, prove && wait <= 0 && p.marker(req) != nil
}

// full says that so many requests are open that the unit is given time.
func (p *peer) full() bool {
	n := 0
	for i := range p.debts {
		n += len(p.debts[i].times)
	}
	return n >= maxOpen
}

// stale is the open request that equals req when it is so old that its answer is
// no good for req, else -1.
func (p *peer) stale(req []byte, sent time.Time) int {
	for i := range p.debts {
		if d := &p.debts[i]; p.equal(d, req) && sent.Sub(d.oldest()) >= maxStale {
			return i
		}
	}
	return -1
}

// explains counts the open requests, those that equal req left out, which the
// undamaged frame f of the unit may answer; at is the last of them.
func (p *peer) explains(f, req []byte) (n, at int) {
	for i := range p.debts {
		d := &p.debts[i]
		if (req == nil || !p.equal(d, req)) && answerLen(d.req, f) == len(f) {
			n, at = n+1, i
		}
	}
	return n, at
}

// pay strikes off that debt i was sent for the first time. What was sent before is
// not answered any more, see answered.
func (p *peer) pay(i int) {
	d := &p.debts[i]
	since := d.oldest()
	for k := range p.debts {
		if e := &p.debts[k]; e.newest().Before(since) {
			e.proven = true
		}
	}
	if bytes.Equal(d.req, p.mark.asked) {
		p.mark.answered()
	}
	if d.times = d.times[1:]; len(d.times) == 0 {
		p.debts = slices.Delete(p.debts, i, i+1)
	}
}

// behind keeps all debts of a unit whose answer came late by after: the next one
// may be as late, counted from now.
func (p *peer) behind(after time.Duration, now time.Time) {
	until := now.Add(min(2*after, maxWindow))
	for i := range p.debts {
		d := &p.debts[i]
		if d.missed = now; d.until.Before(until) {
			d.until = until
		}
	}
}

// revive expects again what had been given up: an answer came that was, too.
func (p *peer) revive() {
	for i := range p.debts {
		p.debts[i].proven = false
	}
	for len(p.spent) > 0 && len(p.debts) < maxDebts {
		d := p.spent[len(p.spent)-1]
		p.spent = p.spent[:len(p.spent)-1]
		d.proven = false
		p.debts = append(p.debts, d)
	}
}
