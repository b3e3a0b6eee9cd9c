package modbus

import (
	"slices"
	"time"

	"busgate/devices"
)

const (
	maxSpent  = 16               // the oldest is forgotten
	spentLife = 30 * time.Second // and what is older
)

// spend remembers a request whose answer nobody expects any more: if it comes
// all the same, it is not taken for somebody else's.
func (l *Line) spend(d debt) {
	if len(l.spent) >= maxSpent {
		l.spent = append(l.spent[:0], l.spent[1:]...)
	}
	l.spent = append(l.spent, d)
}

// paySpent strikes off the newest request that f answers after all: of the older
// ones some may have been lost.
func (l *Line) paySpent(f []byte) bool {
	now := time.Now()
	for len(l.spent) > 0 && now.Sub(l.spent[0].sent) > spentLife {
		l.spent = append(l.spent[:0], l.spent[1:]...)
	}
	for i := len(l.spent) - 1; i >= 0; i-- {
		d := l.spent[i]
		if answerLen(d.req[:d.n], f) != len(f) {
			continue
		}
		l.spent = append(l.spent[:i], l.spent[i+1:]...)
		l.extend(f[0], now.Sub(d.sent))
		l.counts.Late++
		l.late(f[0], now.Sub(d.sent))
		l.show(f, now.Sub(d.sent), devices.MarkLate)
		return true
	}
	return false
}

// extend keeps the other debts of a unit whose answer came late by after: one
// that works on its requests one by one will be as late with the next, counted
// from now. Debts that had been given up are expected again.
func (l *Line) extend(unit byte, after time.Duration) {
	now := time.Now()
	until := now.Add(min(2*after, maxWindow))
	kept := l.spent[:0]
	for _, d := range l.spent {
		if d.req[0] != unit || now.Sub(d.sent) > spentLife || len(l.debts) >= maxDebts {
			kept = append(kept, d)
			continue
		}
		l.debts = append(l.debts, d)
	}
	l.spent = kept
	slices.SortStableFunc(l.debts, func(a, b debt) int { return a.sent.Compare(b.sent) }) // answers come in this order
	for i := range l.debts {
		if d := &l.debts[i]; d.req[0] == unit && d.until.Before(until) {
			d.until = until
		}
	}
}
