package modbus

import (
	"bytes"
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"
)

// book is the account of unit 1 at moments that a test names; a second is 1.
type book struct {
	t     *testing.T
	start time.Time
	a     ledger
}

func bookOf(t *testing.T) *book { return &book{t: t, start: time.Unix(1e9, 0)} }

func (b *book) at(s float64) time.Time { return b.start.Add(sec(s)) }

func sec(s float64) time.Duration { return time.Duration(math.Round(s * float64(time.Second))) }

func (b *book) unit() *peer { return b.a.peer(1) }

// reads asks for n holding registers from addr of unit 1.
func reads(addr, n byte) []byte { return seal([]byte{1, 3, 0, addr, 0, n}) }

// writes sets a register of unit 1.
func writes(addr, v byte) []byte { return seal([]byte{1, 6, 0, addr, 0, v}) }

// lose sends req at s and gives it up 0.1 s later; its answer may come behind
// others until the moment until.
func (b *book) lose(req []byte, s, until float64) {
	b.a.sent(req)
	b.unit().owe(req, b.at(s), b.at(s+.1), b.at(until))
}

// answer is the answer at now to req, which was sent at s.
func (b *book) answer(req []byte, s, now, window float64) {
	b.a.sent(req)
	b.unit().answered(req, b.at(s), b.at(now), sec(window))
	b.unit().mark.learn(req, b.at(now))
}

// waits fails unless req would have to wait for so long at now, and for a proof
// then or not.
func (b *book) waits(what string, req []byte, now, wait float64, prove bool) {
	b.t.Helper()
	w, p := b.a.blocked(req, b.at(now))
	if max(w, 0) != sec(wait) || p != prove {
		b.t.Errorf("%s: it waits %v and has to be proven: %v; want %v, %v", what, w, p, sec(wait), prove)
	}
}

// open fails unless n requests are open.
func (b *book) open(what string, n int) {
	b.t.Helper()
	if got := len(b.unit().debts); got != n {
		b.t.Errorf("%s: %d are open, want %d", what, got, n)
	}
}

func TestLedgerOfReadsAndWrites(t *testing.T) {
	t.Run("a read is no reason against an equal one", func(t *testing.T) {
		b := bookOf(t)
		b.lose(reads(0, 2), 0, 5)
		b.answer(reads(9, 3), 1, 1.1, 1)
		b.waits("the same", reads(0, 2), 2, 0, false)
		b.waits("another address", reads(4, 2), 2, 3, false)
	})
	t.Run("a write is", func(t *testing.T) {
		b := bookOf(t)
		b.lose(reads(0, 2), 0, 5)
		b.answer(writes(9, 1), 1, 1.1, 1)
		b.waits("the same", reads(0, 2), 2, 3, false)
	})
	t.Run("so is one to all units", func(t *testing.T) {
		b := bookOf(t)
		b.lose(reads(0, 2), 0, 5)
		b.a.sent(seal([]byte{0, 6, 0, 9, 0, 1}))
		b.waits("the same", reads(0, 2), 2, 3, false)
	})
	t.Run("a write may be repeated", func(t *testing.T) {
		b := bookOf(t)
		for i := range 4 {
			b.waits(fmt.Sprint("try ", i), writes(7, 1), float64(i), 0, false)
			b.lose(writes(7, 1), float64(i), 9)
		}
		b.open("tries of one write", 1)
		b.lose(writes(8, 1), 4, 9)
		b.waits("with another write between", writes(7, 1), 5, 4, false)
	})
	t.Run("functions that change nothing", func(t *testing.T) {
		for fn := range byte(128) {
			want := map[byte]bool{1: false, 2: false, 3: false, 4: false, 5: true, 6: true, 15: true, 16: true, 22: true, 23: true}
			if w, known := want[fn]; known && changes(fn) != w {
				t.Errorf("function %d changes something: %v", fn, changes(fn))
			}
		}
	})
}

func TestLedgerIsBounded(t *testing.T) {
	t.Run("a unit with eight open requests is asked only them", func(t *testing.T) {
		b := bookOf(t)
		for i := range byte(maxDebts) {
			b.waits("another length", reads(0, 20+i), 1, 0, false)
			b.lose(reads(0, 20+i), 0, 5)
		}
		b.waits("a ninth", reads(0, 40), 1, 4, false)
		b.waits("one of the eight", reads(0, 24), 1, 0, false)
	})
	t.Run("strangers' requests push the oldest out", func(t *testing.T) {
		b := bookOf(t)
		for i := range byte(100) {
			b.lose(reads(0, 1+i), float64(i), 200)
		}
		b.open("of a hundred", 2*maxDebts)
		if n := len(b.unit().spent); n != maxSpent {
			t.Errorf("%d are given up", n)
		}
		if got := b.unit().debts[0].req; !bytes.Equal(got, reads(0, 101-2*maxDebts)) {
			t.Errorf("the oldest is % x", got)
		}
	})
	t.Run("so many repetitions are remembered, and the first", func(t *testing.T) {
		b := bookOf(t)
		for i := range 1000 {
			b.lose(reads(0, 2), float64(i), 2000)
		}
		d := b.unit().debts[0]
		if len(d.times) != 2*maxOpen || !d.oldest().Equal(b.at(0)) || !d.newest().Equal(b.at(999)) {
			t.Errorf("%d from %v to %v", len(d.times), d.oldest(), d.newest())
		}
		if !b.unit().full() {
			t.Error("the unit is asked all the same")
		}
	})
}

func TestLedgerAfterALoss(t *testing.T) {
	t.Run("it lasts as long as the newest says, and never less", func(t *testing.T) {
		b := bookOf(t)
		b.lose(reads(0, 2), 0, 5)
		b.lose(reads(0, 2), 1, 3)
		b.waits("another", reads(4, 2), 2, 3, false)
		b.lose(reads(0, 2), 2, 7)
		b.waits("another", reads(4, 2), 3, 4, false)
	})
	t.Run("what was proven before is not proven any more", func(t *testing.T) {
		b := bookOf(t)
		b.lose(reads(0, 2), 0, 5)
		b.answer(reads(9, 3), 1, 1.1, 1)
		b.lose(reads(0, 2), 2, 5)
		b.waits("another", reads(4, 2), 5, 0, true)
	})
	t.Run("nor was a frame seen for it", func(t *testing.T) {
		b := bookOf(t)
		b.lose(reads(0, 2), 0, 5)
		d := &b.unit().debts[0]
		d.seen = true
		b.lose(reads(0, 2), 1, 5)
		if d.seen {
			t.Error("a frame before it counts")
		}
		d.seen = true
		b.answer(reads(0, 2), 2, 2.1, 1)
		if d.seen {
			t.Error("a frame before an answer to the same counts")
		}
	})
}

func TestLedgerAfterTheAnswerToARepetition(t *testing.T) {
	t.Run("the other's answer may come for a window", func(t *testing.T) {
		b := bookOf(t)
		b.lose(reads(0, 2), 0, .1) // damaged
		b.answer(reads(0, 2), .1, .15, 1)
		b.waits("another", reads(4, 2), .15, 1, false)
	})
	t.Run("and as late again as the first may have been", func(t *testing.T) {
		b := bookOf(t)
		b.lose(reads(0, 2), 0, .1)
		b.answer(reads(0, 2), 1.9, 2, .1)
		b.waits("another", reads(4, 2), 2, .1+4-2, false) // not 1.9 + 2*2 - 2: it ends with what was lost
	})
	t.Run("which ends though it is polled", func(t *testing.T) {
		b := bookOf(t)
		b.lose(reads(0, 2), 0, 1)
		for i := range 40 {
			b.answer(reads(0, 2), float64(i)/4+.2, float64(i)/4+.25, 1)
		}
		w, _ := b.a.blocked(reads(4, 2), b.at(10.1))
		if w > 0 {
			t.Errorf("another waits %v ten seconds after the only loss", w)
		}
	})
	t.Run("what was sent before the first proves nothing, what is behind it does", func(t *testing.T) {
		b := bookOf(t)
		b.lose(reads(0, 3), 0, 1)
		b.lose(reads(0, 2), .2, 1)
		b.lose(reads(0, 4), .4, 1)
		b.answer(reads(0, 2), .6, .7, .2) // the answer to that of .2, perhaps
		for i, want := range []bool{true, false, false} {
			if got := b.unit().debts[i].proven; got != want {
				t.Errorf("request %d is proven: %v", i, got)
			}
		}
	})
}

func TestLedgerEnds(t *testing.T) {
	// known is a unit that has a marker, and a loss at 0
	known := func(t *testing.T) *book {
		b := bookOf(t)
		b.answer(reads(0, 10), -1, -.9, 1)
		b.lose(reads(0, 2), 0, 5)
		return b
	}
	t.Run("a unit that is heard owes as long as a marker can tell", func(t *testing.T) {
		b := known(t)
		b.unit().heard = b.at(25)
		b.waits("another", reads(4, 2), 31, 0, true)
		b.unit().review(b.at(54.9))
		b.open("30 s after it was heard", 1)
		b.unit().review(b.at(55))
		b.open("then", 0)
	})
	t.Run("an answer counts as hearing it", func(t *testing.T) {
		b := known(t)
		b.lose(reads(0, 3), -.5, 5) // sent before, and again:
		b.answer(reads(0, 3), 20, 20.1, 1)
		if !b.unit().heard.Equal(b.at(20.1)) {
			t.Errorf("heard %v", b.unit().heard)
		}
		b.unit().review(b.at(31))
		b.open("31 s after the loss", 2)
	})
	t.Run("a unit without a marker owes for five seconds", func(t *testing.T) {
		b := bookOf(t)
		b.lose(reads(0, 2), 0, 1)
		b.waits("another", reads(4, 2), 1, .1+5-1, false)
		b.unit().review(b.at(5.1))
		b.open("then", 0)
	})
	t.Run("what was given up is forgotten 30 s after it was sent", func(t *testing.T) {
		b := bookOf(t)
		b.lose(reads(0, 2), 0, 1)
		for _, c := range []struct {
			now float64
			any bool
		}{{.5, true}, {29, true}, {30.1, false}} {
			if got := b.a.any(b.at(c.now)); got != c.any {
				t.Errorf("at %v s something may come: %v", c.now, got)
			}
		}
	})
	t.Run("with the last of them goes the suspicion", func(t *testing.T) {
		b := known(t)
		b.unit().suspect = 3
		b.waits("another length", reads(4, 3), 6, 0, true)
		b.answer(reads(9, 4), 6, 6.1, 1)
		b.open("proven", 0)
		b.lose(reads(0, 2), 7, 8)
		b.waits("another length", reads(4, 3), 9, 0, false)
	})
	t.Run("suspicion asks for a proof after the window, of its function only", func(t *testing.T) {
		b := known(t)
		b.unit().suspect = 3
		b.waits("another length", reads(4, 3), 4, 0, false)
		b.waits("another function", seal([]byte{1, 4, 0, 4, 0, 3}), 6, 0, false)
	})
	t.Run("an old request is proven before it is repeated", func(t *testing.T) {
		b := known(t)
		b.waits("before", reads(0, 2), 4.9, 0, false)
		b.waits("then", reads(0, 2), 5, 0, true)
		m := &b.unit().mark
		m.asked, m.at = reads(0, 4), b.at(5)
		b.lose(m.asked, 5, 6)
		b.waits("while the marker is on its way", reads(0, 2), 5.5, 0, false)
	})
	t.Run("nothing is asked for a proof while it waits", func(t *testing.T) {
		b := known(t)
		b.lose(seal([]byte{1, 3, 0, 7, 0, 2}), 4, 9)
		b.waits("a third", reads(4, 2), 6, 3, false)
	})
}

func TestLedgerOfLateAnswers(t *testing.T) {
	t.Run("a late answer proves what was sent before its request", func(t *testing.T) {
		b := bookOf(t)
		b.lose(reads(0, 2), 0, 5)
		b.lose(reads(0, 3), 1, 5)
		b.lose(reads(0, 4), 2, 5)
		b.unit().pay(1)
		b.open("paid", 2)
		for i, want := range []bool{true, false} {
			if got := b.unit().debts[i].proven; got != want {
				t.Errorf("request %d is proven: %v", i, got)
			}
		}
	})
	t.Run("it pays one of several times", func(t *testing.T) {
		b := bookOf(t)
		b.lose(reads(0, 2), 0, 5)
		b.lose(reads(0, 2), 1, 5)
		b.unit().pay(0)
		b.open("paid once", 1)
		b.unit().pay(0)
		b.open("paid twice", 0)
	})
	t.Run("to a marker it is the marker's", func(t *testing.T) {
		b := bookOf(t)
		m := &b.unit().mark
		m.asked, m.lost = reads(0, 4), 2
		b.lose(m.asked, 0, 5)
		b.unit().pay(0)
		if m.lost != 0 || len(m.works) != 1 || m.works[0] != (shape{3, 8}) {
			t.Errorf("%+v", m)
		}
	})
	t.Run("the next may be twice as late", func(t *testing.T) {
		b := bookOf(t)
		b.lose(reads(0, 2), 0, 1)
		b.unit().behind(sec(2), b.at(3))
		b.waits("another", reads(4, 2), 3, 4, false)
		b.unit().behind(sec(9), b.at(3))
		b.waits("at most five seconds", reads(4, 2), 3, 5, false)
		b.unit().behind(sec(.1), b.at(3))
		b.waits("never sooner", reads(4, 2), 3, 5, false)
		if d := b.unit().debts[0]; !d.missed.Equal(b.at(3)) {
			t.Errorf("given up %v", d.missed)
		}
	})
	t.Run("the answer to what was given up opens all again", func(t *testing.T) {
		b := bookOf(t)
		b.lose(reads(0, 2), 0, 1)
		b.lose(reads(0, 3), .2, 9)
		b.lose(reads(0, 4), .4, 9)
		b.answer(reads(0, 5), .6, .7, 1)
		b.unit().review(b.at(2))
		b.open("one is proven and over", 2)
		b.unit().revive()
		b.open("again", 3)
		for _, d := range b.unit().debts {
			if d.proven {
				t.Errorf("% x is proven", d.req)
			}
		}
		for i := range byte(maxDebts) {
			b.lose(reads(0, 50+i), 1, 9)
		}
		b.unit().spend(0)
		b.unit().revive()
		if n := len(b.unit().spent); n != 1 {
			t.Errorf("%d stay given up, of a unit with %d open", n, len(b.unit().debts))
		}
	})
	t.Run("the request of longer than five seconds ago was not it", func(t *testing.T) {
		b := bookOf(t)
		b.lose(reads(0, 2), 0, 9)
		b.lose(reads(0, 2), 4, 9)
		d := &b.unit().debts[0]
		if !d.likely(b.at(4.5)).Equal(b.at(0)) || !d.likely(b.at(6)).Equal(b.at(4)) || !d.likely(b.at(20)).Equal(b.at(4)) {
			t.Errorf("%v %v %v", d.likely(b.at(4.5)), d.likely(b.at(6)), d.likely(b.at(20)))
		}
	})
}

// Accounts of closed wires are kept as long as they owe something, and not more
// than so many.
func TestLedgersOfClosedWires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		owing := func() *ledger {
			a := &ledger{}
			a.peer(1).owe(ask, time.Now(), time.Now(), time.Now().Add(time.Second))
			return a
		}
		var d Driver
		d.put("nothing", &ledger{})
		if len(d.kept) != 0 {
			t.Error("one that owes nothing is kept")
		}
		a := owing()
		d.put("a", a)
		if d.account("a") != a || d.account("a") == a {
			t.Error("it is not the account of the wire that is opened again, or of two")
		}
		for i := range 2 * maxKept {
			d.put(fmt.Sprint(i), owing())
		}
		if len(d.kept) != maxKept {
			t.Errorf("%d are kept", len(d.kept))
		}
		time.Sleep(time.Hour)
		d.put("b", owing())
		if len(d.kept) != 1 {
			t.Errorf("an hour later %d are kept", len(d.kept))
		}
	})
}
