package modbus

import (
	"bytes"
	"context"
	"slices"
	"time"
)

// marking is how a unit shows that it is not behind with its answers: it is asked
// a marker, a read whose answer no open request explains. When that is answered,
// everything before it is.
type marking struct {
	wide    []byte    // the newest read of several registers, or bytes of bits, that was answered
	any     []byte    // the newest read that was answered
	asked   []byte    // the newest marker
	at      time.Time // and when it was sent
	lost    int       // how often the unit passed over it
	counted bool      // ... since it was sent last
	works   []shape   // markers that were answered once
	unfit   []shape   // markers that the unit does not answer, or refuses
	since   time.Time // when the first of them was given up
}

// shape is what tells two answers of a unit apart: function and byte count.
type shape struct{ function, bytes byte }

const (
	maxUnfit  = 3 // markers that do not work are the end: the unit is asked none for an hour
	maxPassed = 3 // times that a marker may be passed over that was never answered
)

// learn keeps what may be read of the unit.
func (m *marking) learn(req []byte, now time.Time) {
	if len(m.unfit) > 0 && now.Sub(m.since) > askAgain {
		m.unfit = nil
	}
	if req[1] > 4 || bytes.Equal(req, m.asked) {
		return
	}
	m.any = append(m.any[:0], req...)
	if count(req) > map[bool]int{true: 8, false: 1}[req[1] <= 2] {
		m.wide = append(m.wide[:0], req...)
	}
}

// count is the number of registers or bits of a read.
func count(req []byte) int { return int(req[4])<<8 | int(req[5]) }

// passed notes that the unit answered what was sent behind a marker, and not the
// marker itself. That may be a loss; soon it is the marker's fault, unless it was
// ever answered.
func (m *marking) passed(now time.Time) {
	if m.counted {
		return
	}
	m.counted = true
	if m.lost++; m.lost < maxPassed || slices.Contains(m.works, shapeOf(m.asked)) {
		return
	}
	if len(m.unfit) == 0 {
		m.since = now
	}
	m.unfit = append(m.unfit, shapeOf(m.asked))
	m.asked, m.lost = nil, 0
}

// answered notes that a marker was answered.
func (m *marking) answered() {
	m.lost = 0
	if s := shapeOf(m.asked); !slices.Contains(m.works, s) {
		m.works = append(m.works, s) // at most as many as there are candidates
	}
}

func shapeOf(read []byte) shape { return shape{read[1], byte(answerBytes(read))} }

// waits says that a marker is on its way.
func (m *marking) waits(p *peer) bool { return m.asked != nil && p.find(m.asked) != nil }

// patience is how long after its newest timeout a request is given up that no
// marker tells of: of a unit that knows none soon, else when one is free again.
func (m *marking) patience() time.Duration {
	if m.any == nil || len(m.unfit) >= maxUnfit {
		return maxWindow
	}
	return maxSilence
}

// marker is the read that shows whether the answer to a request of the shape of
// req is still to come; nil: there is none. A part of what was read before is as
// harmless as that. Of a unit with single registers only, another function is
// tried, which it may as well refuse, or what is open is asked again.
func (p *peer) marker(req []byte) []byte {
	m := &p.mark
	if m.any == nil || len(m.unfit) >= maxUnfit {
		return nil
	}
	if m.waits(p) && !sameShape(m.asked, req) {
		return m.asked
	}
	if m.wide != nil {
		for _, n := range [...]int{2, 4, 1, 3, 6, 5, 8, 7, 10} { // whole values first
			if m.wide[1] <= 2 {
				n *= 8
			}
			if n >= count(m.wide) {
				continue
			}
			if req := readRequest(m.wide, m.wide[1], n); p.free(req) {
				return req
			}
		}
	}
	other := map[byte]byte{1: 3, 2: 4, 3: 4, 4: 3}[m.any[1]]
	if req := readRequest(m.any, other, 1); p.free(req) {
		return req
	}
	for i := range p.debts {
		if d := &p.debts[i]; d.req[1] <= 4 && !sameShape(d.req, req) && p.equal(d, d.req) && m.fit(d.req) {
			return d.req
		}
	}
	return nil
}

// readRequest reads n from where req does.
func readRequest(req []byte, function byte, n int) []byte {
	return seal([]byte{req[0], function, req[2], req[3], byte(n >> 8), byte(n)})
}

// free says that no answer to an open request can be taken for one to the marker.
func (p *peer) free(req []byte) bool {
	if !p.mark.fit(req) {
		return false
	}
	for i := range p.debts {
		if sameShape(p.debts[i].req, req) {
			return false
		}
	}
	return true
}

// fit says that the unit may answer such a marker.
func (m *marking) fit(req []byte) bool {
	return !slices.Contains(m.unfit, shapeOf(req))
}

// prove asks a unit the marker for what is to be asked then. The error is that of
// the exchange.
func (l *Line) prove(ctx context.Context, then []byte, p patience) error {
	peer := l.owes.peer(then[0])
	req := bytes.Clone(peer.marker(then))
	if req == nil {
		return nil
	}
	m := &peer.mark
	if !bytes.Equal(req, m.asked) {
		m.asked, m.lost = req, 0
	}
	peer.suspect = 0
	p.timeout = min(2*p.timeout, max(p.timeout, p.window)) // it may be behind
	_, err := l.ask(ctx, req, p)
	m.at, m.counted = l.last.sent, false
	switch {
	case err == nil:
		m.answered()
	case peer.suspect == req[1]: // an exception came, which may be its own
		m.passed(l.last.sent)
	}
	return err
}
