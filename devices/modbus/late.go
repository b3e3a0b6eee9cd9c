package modbus

import (
	"context"
	"time"

	"busgate/devices"
)

// maxProofs bounds how many markers one exchange sends: the first may be one that
// was sent before.
const maxProofs = 4

// awaitOwed listens until no late answer can be mistaken for one to req, and lets
// the unit prove that none will come where only that is missing. The same request
// once more may go at once: its late answer is as good.
func (l *Line) awaitOwed(ctx context.Context, req []byte, p patience) error {
	if l.noOwed {
		return nil
	}
	if unit := l.owes.peer(req[0]); unit.full() { // as long as if it were asked
		if err := l.listen(p.timeout); err != nil {
			return err
		}
		if unit.review(time.Now()); unit.full() {
			return devices.ErrNoAnswer
		}
	}
	for proofs := 0; ; {
		wait, prove := l.owes.blocked(req, time.Now())
		switch {
		case prove && proofs < maxProofs:
			proofs++
			if err := l.prove(ctx, req, p); err != nil {
				return err
			}
			continue
		case prove:
			return devices.ErrNoAnswer
		case wait <= 0:
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.listen(min(wait, 100*time.Millisecond)); err != nil {
			return err
		}
	}
}

// owing is how long req would have to wait between two exchanges; what has come
// by now is looked through first.
func (l *Line) owing(req []byte) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.owes.any(time.Now()) || l.listen(0) != nil {
		return 0
	}
	wait, _ := l.owes.blocked(req, time.Now())
	return max(wait, 0)
}

// owe notes that the request which was sent last was not answered.
func (l *Line) owe(req []byte, window time.Duration) {
	if now := time.Now(); !l.noOwed && req[0] != 0 {
		l.owes.peer(req[0]).owe(req, l.last.sent, now, now.Add(window))
	}
}

// answered notes that the request which was sent last was answered with function.
func (l *Line) answered(req []byte, function byte, window time.Duration) {
	p := l.owes.peer(req[0])
	p.answered(req, l.last.sent, l.last.end, window)
	if function == req[1] {
		p.mark.learn(req, l.last.end)
	}
}

// listen reads for at most d what nobody waits for.
func (l *Line) listen(d time.Duration) error {
	n, err := l.read(l.buf[:], d)
	if err != nil {
		return err
	}
	if n > 0 {
		l.counts.Stale += uint64(n)
		l.dirty = true
		l.sift(l.buf[:n])
	}
	l.looked = time.Now()
	return nil
}

// sift looks for late answers among stale bytes and strikes them off.
func (l *Line) sift(p []byte) {
	if len(l.junk)+len(p) > bufSize {
		l.junk = l.junk[:0]
	}
	l.junk = append(l.junk, p[:min(len(p), bufSize)]...)
	for from := 0; from+minFrame <= len(l.junk); from++ {
		n := l.pay(l.junk[from:], nil)
		if n == 0 {
			if n = overheard(l.junk[from:]); n > 0 && !l.paySpent(l.junk[from:from+n]) {
				l.stranger(l.junk[from : from+n])
			}
		}
		if n > 0 {
			l.junk = append(l.junk[:0], l.junk[from+n:]...)
			from = -1
		}
	}
}

// pay strikes off what the frame at the start of f answers and returns its
// length; 0: no open request, or only one that equals req. On a wire with
// strangers the frame may be theirs: there nothing is struck off.
func (l *Line) pay(f, req []byte) int {
	p := l.owes.peers[f[0]]
	if p == nil {
		return 0
	}
	size := 0
	for i := range p.debts {
		if n := answerLen(p.debts[i].req, f); n > 0 && n <= len(f) && crc(f[:n]) == 0 {
			size = n
			break
		}
	}
	n, at := 0, 0
	if size > 0 {
		n, at = p.explains(f[:size], req)
	}
	switch {
	case n == 0:
		return 0
	case n > 1:
		l.doubt(f[:size])
		return size
	}
	l.strike(p, at, f[:size])
	return size
}

// strike takes f for the answer to debt i.
func (l *Line) strike(p *peer, i int, f []byte) {
	d := &p.debts[i]
	now := time.Now()
	p.heard, l.quiet = now, now
	if d.seen {
		return
	}
	// found among bytes that nobody read for a while, it came before
	came := d.until
	if l.looked.After(came) {
		came = l.looked
	}
	if came.After(now) {
		came = now
	}
	after := max(came.Sub(d.likely(came)), d.behind)
	if l.others.IsZero() || now.Sub(l.others) > strangersLast {
		p.pay(i)
	} else {
		d.seen = true
	}
	p.behind(after, now)
	l.tooLate(f, after)
}

// paySpent strikes off the newest request that was given up and that f answers
// after all: of the older ones some may have been lost.
func (l *Line) paySpent(f []byte) bool {
	p, now := l.owes.peers[f[0]], time.Now()
	if p == nil {
		return false
	}
	p.review(now)
	for i := len(p.spent) - 1; i >= 0; i-- {
		d := p.spent[i]
		if answerLen(d.req, f) != len(f) {
			continue
		}
		p.spent = append(p.spent[:i], p.spent[i+1:]...)
		p.heard = now
		p.revive()
		after := now.Sub(d.newest())
		p.behind(after, now)
		l.tooLate(f, after)
		return true
	}
	return false
}

// tooLate tells of an answer that nobody waited for any more.
func (l *Line) tooLate(f []byte, after time.Duration) {
	l.counts.Late++
	l.late(f[0], after)
	l.show(f, after, devices.MarkLate)
}

// doubt notes a frame that more than one open request explains. Nothing is struck
// off for it: whose it was is not known.
func (l *Line) doubt(f []byte) {
	p := l.owes.peer(f[0])
	p.heard = time.Now()
	l.quiet = p.heard
	if f[1]&0x80 != 0 {
		p.suspect = f[1] & 0x7F
	}
	l.counts.Late++
	l.show(f, 0, devices.MarkLate)
}

// claimed says that f, which answers req, is not taken for it: it may as well
// answer another request that is open, as an exception may, which carries neither
// address nor count; or an equal one of long ago.
func (l *Line) claimed(req, f []byte) bool {
	if l.noOwed {
		return false
	}
	p := l.owes.peer(req[0])
	if n, _ := p.explains(f, req); n > 0 {
		l.doubt(f)
		return true
	}
	if i := p.stale(req, l.last.sent); i >= 0 {
		l.strike(p, i, f)
		return true
	}
	return false
}
