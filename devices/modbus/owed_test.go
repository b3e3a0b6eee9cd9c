package modbus

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

// A unit that works on its requests one by one is behind as soon as one takes
// longer than the timeout: its answers to k come while k + n is asked.
func TestSlaveWithAQueue(t *testing.T) {
	run := func(t *testing.T, work, timeout, window time.Duration, noOwed bool) *asker {
		var a *asker
		synctest.Test(t, func(t *testing.T) {
			slow := 0
			c := newClerk(1, func(r *rand.Rand) time.Duration { // each tenth takes long
				if slow++; slow%10 == 0 {
					return work
				}
				return 5 * time.Millisecond
			})
			a = askerOf(t, c, patience{timeout: timeout, window: window})
			a.l.noOwed = noOwed
			for i := range 400 {
				a.read(3, uint16(2*(i%7)), 2)
				if i%5 == 0 {
					a.read(3, uint16(2*(i%7)), 1)
				}
			}
		})
		return a
	}
	wrong := 0
	for _, work := range []time.Duration{100, 200, 300, 400, 900, 2500, 8000, 25000} {
		for _, timeout := range []time.Duration{60, 120, 250, 1000} {
			for _, window := range []time.Duration{50, 400, 1000, 5000} {
				name := fmt.Sprintf("work of %d ms, timeout %d ms, window %d ms", int64(work), int64(timeout), int64(window))
				a := run(t, work*time.Millisecond, timeout*time.Millisecond, window*time.Millisecond, false)
				a.t = t
				a.report(name)
				if work <= 400 && a.good < 300 {
					t.Errorf("%s: %d good", name, a.good)
				}
				if work >= 300 && timeout < 250 && window == 400 {
					wrong += run(t, work*time.Millisecond, timeout*time.Millisecond, window*time.Millisecond, true).wrong
				}
			}
		}
	}
	t.Logf("with the rule off %d values are another register's", wrong)
	if wrong == 0 {
		t.Error("with the rule off nothing is wrong: the test tests nothing")
	}
}

// A damaged answer says nothing about whose it was: the true one may come later.
func TestDamagedThenLate(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   []byte // what comes at once
		work time.Duration
	}{
		{"noise", []byte{0x55, 0xAA, 0x12}, 400 * time.Millisecond},
		{"half of an answer of another unit", []byte{9, 3, 4, 0}, 400 * time.Millisecond},
		{"a damaged answer of another unit", []byte{9, 3, 4, 0, 7, 0, 7, 1, 1}, 700 * time.Millisecond},
		{"a damaged answer of another length", []byte{1, 3, 6, 0, 7, 0, 7, 0, 8, 1, 1}, 300 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newClerk(1, always(10*time.Millisecond))
				a := askerOf(t, c, patience{timeout: 150 * time.Millisecond, window: time.Second})
				a.read(3, 0, 2)
				c.work = func() time.Duration { return tt.work }
				c.say(time.Now().Add(10*time.Millisecond), tt.in)
				a.tries = 1
				if a.read(3, 10, 2) {
					t.Fatal("noise was taken for an answer")
				}
				c.work = func() time.Duration { return 10 * time.Millisecond }
				for i := range uint16(10) {
					if !a.read(3, 20+2*i, 2) {
						t.Errorf("register %d was not read", 20+2*i)
					}
				}
				a.report(tt.name)
				if a.l.counts.Late == 0 {
					t.Error("the late answer was not seen for what it is")
				}
			})
		})
	}
}

// A write is confirmed by its own answer, not by that to an earlier one.
func TestLateEchoOfAnEarlierWrite(t *testing.T) {
	for _, fn := range []byte{6, 16} {
		for _, work := range []time.Duration{200, 400, 1500, 4000} {
			synctest.Test(t, func(t *testing.T) {
				c := newClerk(1, always(10*time.Millisecond))
				a := askerOf(t, c, patience{timeout: 150 * time.Millisecond, window: 300 * time.Millisecond})
				a.read(3, 0, 2)
				for range 5 {
					c.work = func() time.Duration { return work * time.Millisecond }
					a.write(fn, 0x8000, 1)
					c.work = func() time.Duration { return 10 * time.Millisecond }
					for _, w := range []uint16{2, 1, 2, 1, 0x0102, 0x0103} {
						a.write(fn, 0x8000, w)
					}
					time.Sleep(work * time.Millisecond)
				}
				a.report(fmt.Sprintf("function %d, %d ms", fn, int64(work)))
			})
		}
	}
}

// What was read before a write is not what is read after it.
func TestReadBackIsNotTheAnswerFromBeforeTheWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClerk(1, always(10*time.Millisecond))
		a := askerOf(t, c, patience{timeout: 150 * time.Millisecond, window: 300 * time.Millisecond})
		a.read(3, 0x8000, 2)
		c.work = func() time.Duration { return 400 * time.Millisecond }
		req := seal([]byte{1, 3, 0x80, 0, 0, 1})
		if _, err := a.l.exchange(t.Context(), req, a.p); err == nil {
			t.Fatal("an answer came")
		}
		c.work = func() time.Duration { return 10 * time.Millisecond }
		for range 3 { // until it is confirmed
			a.write(6, 0x8000, 80)
		}
		for range 4 {
			if ans, err := a.l.exchange(t.Context(), req, a.p); err == nil && ans[4] != 80 {
				t.Fatalf("wrote 80, reads %d", ans[4])
			}
		}
		a.report("a read-back")
	})
}

// Another master asks our unit: its answer looks like ours.
func TestAnswerToAnotherMaster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClerk(3, always(10*time.Millisecond))
		c.master = .1
		a := askerOf(t, c, patience{timeout: 150 * time.Millisecond, window: 300 * time.Millisecond})
		for i := range 2000 {
			a.read(3, uint16(2*(i%7)), uint16(1+i%3))
		}
		t.Logf("%d good of %d", a.good, a.sent)
		a.report("a second master")
		if a.good < 1500 || a.l.counts.Foreign == 0 {
			t.Errorf("%d good, %+v", a.good, a.l.counts)
		}
	})
}

// The account is kept when the wire is opened anew.
func TestDebtsSurviveReopening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClerk(1, always(10*time.Millisecond))
		var d Driver
		open := func() *asker {
			a := askerOf(t, c, patience{timeout: 150 * time.Millisecond, window: time.Second})
			f := &field{bus: testBus9600(), timing: a.l.timing}
			a.l = d.line(c, f)
			return a
		}
		a := open()
		a.read(3, 0, 2)
		c.work = func() time.Duration { return 500 * time.Millisecond }
		a.tries = 1
		a.read(3, 10, 2)
		a.l.Close()
		c.work = func() time.Duration { return 10 * time.Millisecond }
		b := open()
		b.tries = 5
		if !b.read(3, 20, 2) {
			t.Error("no answer")
		}
		b.report("after reopening")
		if b.l.counts.Late == 0 {
			t.Error("the late answer was not seen for what it is")
		}
		if len(d.kept) != 0 {
			t.Errorf("%d accounts are kept of wires that are open", len(d.kept))
		}
		b.l.Close()
		time.Sleep(time.Hour)
		d.put("elsewhere", &ledger{})
		if len(d.kept) != 0 {
			t.Errorf("%d accounts are kept that owe nothing", len(d.kept))
		}
	})
}

// TestNothingIsEverTakenForAnother draws what goes wrong by lot.
func TestNothingIsEverTakenForAnother(t *testing.T) {
	good, sent, late, wrong := 0, 0, uint64(0), 0
	for seed := range uint64(300) {
		for _, noOwed := range []bool{false, true} {
			if noOwed && seed >= 60 {
				continue
			}
			synctest.Test(t, func(t *testing.T) {
				r := rand.New(rand.NewPCG(seed, 5))
				c := newClerk(seed, always(0))
				p, addrs, widths := hostility(c, r)
				a := askerOf(t, c, p)
				a.l.noOwed = noOwed
				for range 300 {
					addr, n := addrs[r.IntN(len(addrs))], widths[r.IntN(len(widths))]
					switch k := r.IntN(40); {
					case k == 0:
						time.Sleep(time.Duration(r.IntN(6000)) * time.Millisecond)
					case k == 1:
						a.read(3, 0x7000, n) // an exception
					case k == 2 && !c.only1:
						a.write([]byte{6, 16}[r.IntN(2)], 0x8000, uint16(1+r.IntN(3)))
					case k < 6:
						a.read(4, addr, n)
					default:
						a.read(3, addr, n)
					}
				}
				if noOwed {
					wrong += a.wrong
					return
				}
				a.report(fmt.Sprint("seed ", seed))
				good, sent, late = good+a.good, sent+a.sent, late+a.l.counts.Late
			})
		}
	}
	t.Logf("%d good reads in %d requests, %d late answers; with the rule off %d wrong values in a fifth of that", good, sent, late, wrong)
	if wrong == 0 || late < 500 || good < 40000 {
		t.Errorf("%d good of %d, %d late, %d wrong with the rule off", good, sent, late, wrong)
	}
}

// An exception that two open requests explain strikes off neither.
func TestExceptionThatNobodyOwns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := scripted(&script{})
		for _, req := range [][]byte{ask, seal([]byte{1, 3, 0, 5, 0, 3})} {
			if _, err := l.exchange(t.Context(), req, wait); err == nil {
				t.Fatal("an answer came")
			}
		}
		l.sift(seal([]byte{1, 0x83, 2}))
		if n := len(l.owes.peer(1).debts); n != 2 || l.counts.Late != 1 {
			t.Errorf("%d are open, %+v", n, l.counts)
		}
		l.sift(answer)
		if n := len(l.owes.peer(1).debts); n != 1 || l.counts.Late != 2 {
			t.Errorf("after the answer to one %d are open, %+v", n, l.counts)
		}
	})
}

// An exception is not taken as long as it may answer something else, and then it is.
func TestExceptionIsTakenWhenNothingElseIsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		exception := seal([]byte{1, 0x83, 2})
		s := &script{answers: [][][]byte{nil, {exception}, {exception}}}
		l := scripted(s)
		l.exchange(t.Context(), ask, wait)
		other := seal([]byte{1, 3, 0, 5, 0, 3})
		if ans, err := l.exchange(t.Context(), other, wait); err == nil {
			t.Errorf("taken: % x", ans)
		}
		time.Sleep(maxWindow + time.Second)
		if ans, err := l.exchange(t.Context(), other, wait); err != nil || !bytes.Equal(ans, exception) {
			t.Errorf("% x, %v", ans, err)
		}
	})
}

// The answer to an equal request of long ago is not what the register holds now.
func TestOldAnswerToAnEqualRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answers: [][][]byte{nil, {answer}, {answer}}}
		l := scripted(s)
		p := patience{timeout: 100 * time.Millisecond, window: 10 * time.Second}
		l.exchange(t.Context(), ask, p)
		time.Sleep(maxStale)
		if ans, err := l.exchange(t.Context(), ask, p); err == nil {
			t.Errorf("% x was taken, %v late", ans, maxStale)
		}
		if _, err := l.exchange(t.Context(), ask, p); err != nil || l.counts.Late != 1 {
			t.Errorf("%v, %+v", err, l.counts)
		}
	})
}
