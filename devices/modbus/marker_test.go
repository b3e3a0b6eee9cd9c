package modbus

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"
)

func TestLedgerOfMarkers(t *testing.T) {
	// asking is a unit whose marker, two registers, was sent at 2 and lost
	asking := func(t *testing.T) (*book, *marking) {
		b := bookOf(t)
		b.answer(reads(0, 10), -1, -.9, 1)
		b.lose(reads(0, 3), 0, 1)
		m := &b.unit().mark
		m.asked, m.at = reads(0, 2), b.at(2)
		b.lose(m.asked, 2, 9)
		return b, m
	}
	t.Run("one that is passed over is counted once for each time", func(t *testing.T) {
		b, m := asking(t)
		b.answer(reads(0, 20), 1.9, 3, 1)
		if m.lost != 0 {
			t.Error("an answer to what was sent before it counts")
		}
		b.answer(reads(0, 20), 3, 3.1, 1)
		b.answer(reads(0, 20), 4, 4.1, 1)
		if m.lost != 1 {
			t.Errorf("%d times", m.lost)
		}
		b.answer(m.asked, 5, 5.1, 1)
		if m.lost != 1 {
			t.Errorf("%d times, one of them by itself", m.lost)
		}
	})
	t.Run("three times are enough, if it never worked", func(t *testing.T) {
		b, m := asking(t)
		for i := range maxPassed {
			if m.asked == nil {
				t.Fatalf("given up after %d", i)
			}
			m.counted = false
			m.passed(b.at(3))
		}
		if m.asked != nil || len(m.unfit) != 1 || m.unfit[0] != (shape{3, 4}) || !m.since.Equal(b.at(3)) || m.lost != 0 {
			t.Errorf("%+v", m)
		}
		if got := b.unit().marker(reads(0, 3)); !bytes.Equal(got, reads(0, 4)) {
			t.Errorf("the next marker is % x", got)
		}
	})
	t.Run("one that worked is not given up", func(t *testing.T) {
		b, m := asking(t)
		m.answered()
		m.answered()
		for range 10 {
			m.counted = false
			m.passed(b.at(3))
		}
		if m.asked == nil || len(m.unfit) != 0 || len(m.works) != 1 {
			t.Errorf("%+v", m)
		}
	})
	t.Run("three that do not work are the end for an hour", func(t *testing.T) {
		b, m := asking(t)
		m.unfit, m.since = []shape{{3, 4}, {3, 8}, {3, 2}}, b.at(3)
		if got := b.unit().marker(reads(0, 3)); got != nil {
			t.Errorf("% x", got)
		}
		if m.patience() != maxWindow {
			t.Errorf("patience %v", m.patience())
		}
		m.learn(reads(0, 10), b.at(3600))
		if len(m.unfit) != 3 {
			t.Error("they are tried before the hour is over")
		}
		m.learn(reads(0, 10), b.at(3604))
		if len(m.unfit) != 0 || m.patience() != maxSilence {
			t.Errorf("%+v", m)
		}
	})
	t.Run("what is known of a unit", func(t *testing.T) {
		var m marking
		if m.patience() != maxWindow {
			t.Errorf("of one that never answered: %v", m.patience())
		}
		m.learn(writes(0, 1), time.Time{})
		m.learn(seal([]byte{1, 23, 0, 0, 0, 9, 0, 0, 0, 1, 2, 0, 0}), time.Time{})
		if m.any != nil {
			t.Errorf("a write teaches % x", m.any)
		}
		m.learn(reads(0, 1), time.Time{})
		bit := seal([]byte{1, 1, 0, 0, 0, 8})
		m.learn(bit, time.Time{})
		if m.wide != nil || !bytes.Equal(m.any, bit) {
			t.Errorf("%+v", m)
		}
		m.asked = reads(0, 2)
		m.learn(m.asked, time.Time{})
		if m.wide != nil {
			t.Error("a marker teaches itself")
		}
		m.learn(reads(0, 6), time.Time{})
		if !bytes.Equal(m.wide, reads(0, 6)) {
			t.Errorf("%+v", m)
		}
	})
	for _, c := range []struct {
		fact string
		make func(b *book)
		req  []byte // is asked then
		want []byte
	}{
		{"whole values first", func(b *book) {}, reads(0, 3), reads(0, 2)},
		{"not the length of what is open", func(b *book) { b.lose(reads(8, 2), 0, 5) }, reads(0, 3), reads(0, 4)},
		{"never longer than what was read", func(b *book) {
			b.unit().mark.learn(reads(0, 3), b.at(0))
			b.lose(reads(8, 2), 0, 5)
		}, reads(0, 3), reads(0, 1)},
		{"bits by eight", func(b *book) { b.unit().mark.learn(seal([]byte{1, 2, 0, 5, 0, 100}), b.at(0)) }, reads(0, 3), seal([]byte{1, 2, 0, 5, 0, 16})},
		{"the one on its way again", func(b *book) {
			b.unit().mark.asked = reads(0, 5)
			b.lose(reads(0, 5), 0, 5)
		}, reads(0, 3), reads(0, 5)},
		{"but not for what looks like it", func(b *book) {
			b.unit().mark.asked = reads(0, 5)
			b.lose(reads(0, 5), 0, 5)
		}, reads(3, 5), reads(0, 2)},
		{"not one that does not work", func(b *book) { b.unit().mark.unfit = []shape{{3, 4}} }, reads(0, 3), reads(0, 4)},
		{"another function, of single registers", func(b *book) { b.unit().mark = marking{any: reads(6, 1)} }, reads(0, 1), seal([]byte{1, 4, 0, 6, 0, 1})},
		{"what is open again, if that does not work either", func(b *book) {
			b.unit().mark = marking{any: reads(6, 1), unfit: []shape{{4, 2}}}
			b.lose(writes(0, 1), 0, 5)
			b.lose(reads(7, 9), 0, 5)
		}, reads(0, 1), reads(7, 9)},
		{"not if its shape is that of what is asked", func(b *book) {
			b.unit().mark = marking{any: reads(6, 1), unfit: []shape{{4, 2}}}
			b.lose(reads(7, 1), 0, 5)
		}, reads(0, 1), nil},
		{"not from before a write", func(b *book) {
			b.unit().mark = marking{any: reads(6, 1), unfit: []shape{{4, 2}}}
			b.lose(reads(7, 9), 0, 5)
			b.a.sent(writes(0, 1))
		}, reads(0, 1), nil},
		{"nor what does not work", func(b *book) {
			b.unit().mark = marking{any: reads(6, 1), unfit: []shape{{4, 2}, {3, 18}}}
			b.lose(reads(7, 9), 0, 5)
		}, reads(0, 1), nil},
	} {
		t.Run(c.fact, func(t *testing.T) {
			b := bookOf(t)
			b.unit().mark.learn(reads(0, 10), b.at(-1))
			c.make(b)
			if got := b.unit().marker(c.req); !bytes.Equal(got, c.want) {
				t.Errorf("the marker is % x, want % x", got, c.want)
			}
		})
	}
}

// A unit is asked its marker with patience, for it may be behind; then the
// suspicion is gone, and an exception that more than one request explains is not
// its answer.
func TestLineAsksAMarker(t *testing.T) {
	exception := seal([]byte{1, 0x83, 2})
	for _, c := range []struct {
		fact   string
		answer [][]byte
		lost   int
		works  int
		ok     bool
	}{
		{"answered", [][]byte{seal([]byte{1, 3, 4, 0, 7, 0, 8})}, 0, 1, true},
		{"silent", nil, 0, 0, false},
		{"refused, or what was before it", [][]byte{exception}, 1, 0, false},
	} {
		t.Run(c.fact, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := scripted(&script{answers: [][][]byte{nil, c.answer}})
				unit := l.owes.peer(1)
				unit.mark.learn(reads(0, 10), time.Now())
				unit.suspect, unit.mark.counted = 4, true
				if _, err := l.exchange(t.Context(), reads(0, 3), wait); err == nil {
					t.Fatal("an answer came")
				}
				begin := time.Now()
				err := l.prove(t.Context(), reads(4, 3), wait)
				m := &unit.mark
				if (err == nil) != c.ok || m.lost != c.lost || len(m.works) != c.works || !bytes.Equal(m.asked, reads(0, 2)) {
					t.Errorf("%v, %+v", err, m)
				}
				if m.at.Before(begin) {
					t.Errorf("sent %v, begun %v", m.at, begin)
				}
				if c.answer == nil && time.Since(begin) < 2*wait.timeout {
					t.Errorf("it was waited for %v only", time.Since(begin))
				}
				if unit.suspect == 4 {
					t.Error("the suspicion stays")
				}
			})
		})
	}
}
