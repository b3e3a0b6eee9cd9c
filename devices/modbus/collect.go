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
			l.owe(req, p.window)
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
				return nil, l.damaged(req, p, l.buf[from:n])
			}
			if kind == ours {
				l.accept(l.buf[from:from+start], l.buf[from+start:from+start+size])
				l.echoes.judge(req, echo)
				l.dirty = from+start+size < n
				l.answered(req, l.buf[from+start+1], p.window)
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
			return nil, l.damaged(req, p, l.buf[from:n])
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

// silent says what silence means: an answer broken off, or none.
func (l *Line) silent(req []byte, p patience, got []byte) error {
	l.dirty = true
	if len(got) > 0 {
		return l.damaged(req, p, got)
	}
	l.counts.Timeouts++
	l.show(nil, p.timeout, devices.MarkSilence)
	l.owe(req, p.window)
	return devices.ErrNoAnswer
}

// damaged gives up what came. Bytes that begin as the answer does are the answer,
// when nothing else is open that they could be: it will not come another time,
// which the unit has to prove, but need not be waited for. Others may have been
// anything, and the answer is still to come.
func (l *Line) damaged(req []byte, p patience, got []byte) error {
	l.dirty = true
	l.counts.Bad++
	l.counts.Sizes[devices.SizeClass(wholeLen(l.asking))].Bad++
	l.show(got, max(l.last.first.Sub(l.last.sent), 1), devices.MarkCRC)
	window := p.window
	if len(got) >= 3 && answerLen(req, got) >= 0 && len(l.owes.peer(req[0]).debts) == 0 {
		window = 0
	}
	l.owe(req, window)
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
	case n > 0 && crc(f[:n]) == 0:
		if l.claimed(req, f[:n]) {
			return 0, n, other
		}
		return 0, n, ours
	}
	if n := l.pay(f, req); n > 0 {
		return 0, n, other
	}
	if n := foreignLen(f); n > 0 {
		if !l.paySpent(f[:n]) {
			l.stranger(f[:n])
		}
		return 0, n, other
	}
	for at := 1; at <= maxStray && at+minFrame <= len(f); at++ {
		n := answerLen(req, f[at:])
		if n > 0 && at+n <= len(f) && crc(f[at:at+n]) == 0 {
			if l.claimed(req, f[at:at+n]) {
				return at, n, other
			}
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
