package modbus

import (
	"fmt"
	"time"

	"busgate/devices"
)

// collect gathers the answer to req.
func (l *Line) collect(req []byte, p patience) ([]byte, error) {
	deadline := l.last.sent.Add(p.timeout)
	n, from, dozed, echo := 0, 0, false, false
	for {
		wait := time.Until(deadline)
		if n > from {
			wait = l.timing.silence
		}
		k, err := l.read(l.buf[n:], wait)
		if err != nil {
			l.dirty = true
			return nil, err
		}
		if k == 0 {
			return nil, l.silent(req, p, l.buf[from:n])
		}
		if n == from {
			l.last.first = l.began()
		}
		n += k
		for from < n {
			own, may := 0, false
			if !echo {
				own, may = l.echoes.find(req, l.buf[from:n])
			}
			if own > 0 {
				echo = true
				l.counts.Echo++
				l.show(l.buf[from:from+own], 0, devices.MarkEcho)
				from += own
				continue
			}
			start, size, kind := l.match(req, l.buf[from:n])
			if kind == unfinished || kind == bad && may {
				break
			}
			if kind == bad || start > 0 && l.echoes.on && !echo { // the echo was hurt: others talk, too
				return nil, l.damaged(l.buf[from:n])
			}
			if kind == ours {
				l.accept(l.buf[from:from+start], l.buf[from+start:from+start+size])
				l.echoes.judge(req, echo)
				l.dirty = from+start+size < n
				l.renew(req, p)
				return l.buf[from+start : from+start+size], nil
			}
			from += start + size
		}
		if from == n {
			from, n = 0, 0
		}
		if !dozed && n >= 3 {
			dozed = true
			l.doze(req, l.buf[from:n])
		}
		if n == len(l.buf) || time.Since(deadline) > maxAnswer {
			return nil, l.damaged(l.buf[from:n])
		}
	}
}

// accept counts an answer and the stray bytes before it.
func (l *Line) accept(stray, ans []byte) {
	l.counts.Good++
	l.counts.Sizes[devices.SizeClass(len(ans))].Good++
	if a, ok := l.port.(*asciiPort); ok && a.stray {
		l.counts.Stray++
	}
	l.last.end, l.last.size = time.Now(), len(ans)
	if len(stray) > 0 {
		l.show(stray, 0, devices.MarkStray)
	}
	l.show(ans, max(l.last.first.Sub(l.last.sent), 1), devices.MarkOK)
	if l.last.first.Before(l.last.sent) { // it came in one piece with our echo
		l.last.first = l.last.sent
	}
}

// How long collect sleeps through an answer that has begun.
const (
	dozeMargin = 4 * time.Millisecond // a sleep may end late by one
	dozeLeast  = 4 * time.Millisecond
	dozeMost   = 250 * time.Millisecond
)

// doze sleeps until the rest of an answer is nearly there. The driver hands
// over a dozen characters at a time; to wake for each of them costs a processor
// more than all the rest of a poll, and the last one comes no sooner for it.
// Only the first characters tell how many are still on the wire: later ones may
// have been handed over late.
func (l *Line) doze(req, f []byte) {
	missing := answerLen(req, f) - len(f)
	if nap := time.Duration(missing-1)*l.timing.char - dozeMargin; nap >= dozeLeast {
		time.Sleep(min(nap, dozeMost))
	}
}

// renew keeps the debt of a request that was repeated and is answered now: it
// may have been the first one's answer, and then the second's is still to come,
// as late as this one was.
func (l *Line) renew(req []byte, p patience) {
	for i := range l.debts {
		d := &l.debts[i]
		if string(d.req[:d.n]) != string(req[:min(len(req), d.n)]) {
			continue
		}
		behind := min(l.last.end.Sub(d.sent), maxWindow)
		d.behind = max(d.behind, behind)
		if u := l.last.end.Add(p.window); u.After(d.until) {
			d.until = u
		}
		if u := l.last.sent.Add(2 * behind); u.After(d.until) {
			d.until = u
		}
		d.sent, d.paid = l.last.sent, false
	}
}

// silent says what silence means: an answer broken off, or none.
func (l *Line) silent(req []byte, p patience, got []byte) error {
	l.dirty = true
	if len(got) > 0 {
		return l.damaged(got)
	}
	l.counts.Timeouts++
	l.show(nil, p.timeout, devices.MarkSilence)
	if !l.noOwed {
		d := debt{sent: l.last.sent, until: time.Now().Add(p.window)}
		d.n = copy(d.req[:], req)
		if len(l.debts) >= maxDebts {
			l.debts = append(l.debts[:0], l.debts[1:]...)
		}
		l.debts = append(l.debts, d)
	}
	return devices.ErrNoAnswer
}

func (l *Line) damaged(got []byte) error {
	l.dirty = true
	l.counts.Bad++
	l.counts.Sizes[devices.SizeClass(wholeLen(l.asking))].Bad++
	l.show(got, max(l.last.first.Sub(l.last.sent), 1), devices.MarkCRC)
	return fmt.Errorf("%w: % x", devices.ErrBadFrame, got[:min(len(got), 32)])
}

// what stands at the start of received bytes
type found uint8

const (
	unfinished found = iota // more bytes are needed
	ours                    // the answer
	other                   // a frame that is not for us
	bad                     // damaged
)

// match finds out what f, all bytes since the last frame, begins with: size
// bytes from start.
func (l *Line) match(req, f []byte) (start, size int, kind found) {
	n := answerLen(req, f)
	switch {
	case n == 0 && len(f) < bufSize:
		return 0, 0, unfinished
	case n > 0 && len(f) < n:
		return 0, 0, unfinished
	case n > 0 && crc(f[:n]) == 0 && !l.ambiguous(req, f):
		return 0, n, ours
	}
	if n := l.pay(f, req); n > 0 {
		l.quiet = time.Now()
		return 0, n, other
	}
	if n := foreignLen(f); n > 0 {
		l.stranger(f[:n])
		return 0, n, other
	}
	for at := 1; at <= maxStray && at+minFrame <= len(f); at++ {
		n := answerLen(req, f[at:])
		if n > 0 && at+n <= len(f) && crc(f[at:at+n]) == 0 && !l.ambiguous(req, f[at:]) {
			l.counts.Stray++
			l.counts.StrayByte = f[at-1]
			return at, n, ours
		}
	}
	if n > 0 { // complete, and its check is wrong
		return 0, 0, bad
	}
	return 0, 0, unfinished
}

// ambiguous says that f is an exception that may answer an older request: an
// exception carries neither address nor count.
func (l *Line) ambiguous(req, f []byte) bool {
	if f[1]&0x80 == 0 || l.noOwed {
		return false
	}
	for _, d := range l.debts {
		if old := d.req[:d.n]; old[0] == req[0] && old[1] == req[1] && string(old) != string(req[:min(len(req), d.n)]) && time.Until(d.until) > 0 {
			return true
		}
	}
	return false
}
