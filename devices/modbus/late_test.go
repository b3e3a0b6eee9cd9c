package modbus

import (
	"bytes"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"busgate/devices"
)

// tardy is a line whose unit does not answer in time, and what it tells.
type tardy struct {
	*Line
	t    *testing.T
	s    *script
	told []time.Duration // how late answers came
	sent time.Time       // the end of the first request
}

// tardyLine has lost the answers to reqs when fn is called.
func tardyLine(t *testing.T, fn func(l *tardy), reqs ...[]byte) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &script{}
		l := &tardy{t: t, s: s}
		l.Line = scripted(s)
		l.late = func(_ byte, after time.Duration) { l.told = append(l.told, after) }
		for _, req := range reqs {
			if ans, err := l.exchange(t.Context(), req, wait); !errors.Is(err, devices.ErrNoAnswer) {
				t.Fatalf("% x: % x %v", req, ans, err)
			}
			if l.sent.IsZero() {
				l.sent = l.last.sent
			}
		}
		fn(l)
	})
}

// comes lets a frame come and hears it.
func (l *tardy) comes(f []byte) {
	l.t.Helper()
	l.s.now = append(l.s.now, f)
	if err := l.listen(0); err != nil {
		l.t.Fatal(err)
	}
}

func (l *tardy) debts() []debt { return l.owes.peer(1).debts }

func (l *tardy) wants(late, foreign uint64, debts int) {
	l.t.Helper()
	if l.counts.Late != late || l.counts.Foreign != foreign || len(l.debts()) != debts {
		l.t.Errorf("late %d, foreign %d, %d open; want %d, %d, %d", l.counts.Late, l.counts.Foreign, len(l.debts()), late, foreign, debts)
	}
}

var longer = seal([]byte{1, 3, 0, 50, 0, 3}) // another read than ask, of another length

func TestLateHowLate(t *testing.T) {
	for _, c := range []struct {
		fact string
		do   func(l *tardy)
		want time.Duration
	}{
		{"heard as it comes", func(l *tardy) { time.Sleep(300 * time.Millisecond) }, 400 * time.Millisecond},
		{"nobody listened for an hour: it came while it was expected", func(*tardy) { time.Sleep(time.Hour) }, 1100 * time.Millisecond},
		{"or since somebody listened last", func(l *tardy) {
			time.Sleep(3 * time.Second)
			l.listen(0)
			time.Sleep(time.Hour)
		}, 3100 * time.Millisecond},
	} {
		t.Run(c.fact, func(t *testing.T) {
			tardyLine(t, func(l *tardy) {
				c.do(l)
				l.dirty = false
				l.comes(answer)
				if len(l.told) != 1 || l.told[0] != c.want {
					t.Errorf("%v late, want %v", l.told, c.want)
				}
				l.wants(1, 0, 0)
				if !l.quiet.Equal(time.Now()) || !l.owes.peer(1).heard.Equal(time.Now()) || !l.dirty {
					t.Errorf("quiet %v, heard %v, dirty %v", l.quiet, l.owes.peer(1).heard, l.dirty)
				}
			}, ask)
		})
	}
	t.Run("that to a repetition is as late as the first may have been", func(t *testing.T) {
		tardyLine(t, func(l *tardy) {
			l.s.answers = [][][]byte{{answer}}
			time.Sleep(700 * time.Millisecond)
			if _, err := l.exchange(t.Context(), ask, wait); err != nil {
				t.Fatal(err)
			}
			behind := l.last.end.Sub(l.sent)
			l.comes(answer)
			if len(l.told) != 1 || l.told[0] != behind || behind < 700*time.Millisecond {
				t.Errorf("%v late, want %v", l.told, behind)
			}
		}, ask)
	})
}

func TestLateAnswerKeepsTheOthersOpen(t *testing.T) {
	tardyLine(t, func(l *tardy) {
		time.Sleep(800 * time.Millisecond)
		l.comes(answer)
		l.wants(1, 0, 1)
		if got, want := l.debts()[0].until, time.Now().Add(2*l.told[0]); !got.Equal(want) {
			t.Errorf("the other may come for %v, want %v", time.Until(got), time.Until(want))
		}
	}, ask, longer)
}

// On a wire with strangers an answer that comes late may be theirs.
func TestLateAnswerOnAWireWithStrangers(t *testing.T) {
	tardyLine(t, func(l *tardy) {
		l.comes(seal([]byte{7, 3, 0, 9, 0, 1})) // somebody asks unit 7
		if !l.others.Equal(time.Now()) {
			t.Fatal("the stranger was not noticed")
		}
		l.comes(answer)
		l.wants(1, 1, 1)
		l.comes(answer)
		l.wants(1, 1, 1) // heard of already
		l.owes.peer(1).debts[0].seen = false
		l.owes.peer(1).debts[0].until = time.Now().Add(2 * strangersLast)
		time.Sleep(strangersLast)
		l.comes(answer)
		l.wants(2, 1, 1)
		l.owes.peer(1).debts[0].seen = false
		time.Sleep(time.Second)
		l.comes(answer) // the stranger was never heard again
		l.wants(3, 1, 0)
	}, ask)
}

// What another master asks our unit is open, too, and what it writes is written.
func TestLateAnswersToStrangers(t *testing.T) {
	tardyLine(t, func(l *tardy) {
		l.comes(seal([]byte{1, 3, 0, 99, 0, 4}))
		l.wants(0, 1, 2)
		time.Sleep(2 * time.Second)
		again := func() bool { _, prove := l.owes.blocked(ask, time.Now()); return !prove && l.owing(ask) == 0 }
		if !again() {
			t.Error("after their read ours may not go again")
		}
		l.comes(seal([]byte{1, 16, 0, 5, 0, 1, 2, 0, 9}))
		l.wants(0, 2, 3)
		if l.owes.peer(1).equal(&l.debts()[0], ask) {
			t.Error("the answer from before their write is as good as one from after it")
		}
	}, ask)
}

func TestLateAnswerToWhatWasGivenUp(t *testing.T) {
	tardyLine(t, func(l *tardy) {
		p := l.owes.peer(1)
		for len(p.debts) > 0 {
			p.spend(0)
		}
		time.Sleep(2 * time.Second)
		l.comes(answer)
		l.wants(1, 0, 1) // the other is expected again
		if d := l.debts(); len(d) != 1 || !bytes.Equal(d[0].req, longer) || !d[0].until.Equal(time.Now().Add(2*l.told[0])) {
			t.Errorf("%+v", d)
		}
		if !p.heard.Equal(time.Now()) || l.told[0] < 2*time.Second || len(p.spent) != 0 {
			t.Errorf("heard %v, told %v, %d given up", p.heard, l.told, len(p.spent))
		}
		l.comes(answer) // once only
		l.wants(1, 1, 1)
	}, ask, longer)
	t.Run("behind the gap before a request", func(t *testing.T) {
		tardyLine(t, func(l *tardy) {
			l.owes.peer(1).spend(0)
			good := seal([]byte{1, 3, 6, 0, 1, 0, 2, 0, 3})
			l.s.answers = [][][]byte{{answer, good}}
			if ans, err := l.exchange(t.Context(), longer, wait); err != nil || !bytes.Equal(ans, good) {
				t.Errorf("% x %v", ans, err)
			}
			l.wants(1, 0, 0)
		}, ask)
	})
}

func TestLateExceptionOfAnybody(t *testing.T) {
	tardyLine(t, func(l *tardy) {
		time.Sleep(time.Second)
		l.comes(seal([]byte{1, 0x83, 2}))
		l.wants(1, 0, 2)
		if p := l.owes.peer(1); p.suspect != 3 || !p.heard.Equal(time.Now()) || !l.quiet.Equal(time.Now()) || len(l.told) != 0 {
			t.Errorf("suspect %d, heard %v, told %v", p.suspect, p.heard, l.told)
		}
	}, ask, longer)
}

// What is read away before a request is looked through as well.
func TestLateAnswerInFrontOfARequest(t *testing.T) {
	for _, c := range []struct {
		fact  string
		dirty bool
		gap   time.Duration
	}{{"while it was quiet", false, 0}, {"in the drain after a loss", true, 0}, {"in the gap", false, 50 * time.Millisecond}} {
		t.Run(c.fact, func(t *testing.T) {
			tardyLine(t, func(l *tardy) {
				good := seal([]byte{1, 3, 6, 0, 1, 0, 2, 0, 3})
				l.s.answers = [][][]byte{{good}}
				l.dirty = c.dirty
				l.s.now = [][]byte{answer}
				if c.dirty { // what is in the driver goes first
					l.s.now = [][]byte{{0x55}, answer}
				}
				if c.gap > 0 {
					l.timing.gap, l.quiet = c.gap, time.Now()
				}
				if ans, err := l.exchange(t.Context(), longer, wait); err != nil || !bytes.Equal(ans, good) {
					t.Errorf("% x %v", ans, err)
				}
				l.wants(1, 0, 0)
			}, ask)
		})
	}
}

func TestLateJunkIsBounded(t *testing.T) {
	tardyLine(t, func(l *tardy) {
		noise := bytes.Repeat([]byte{0x55}, 200)
		for range 50 {
			l.comes(noise)
		}
		if len(l.junk) > bufSize || cap(l.junk) > bufSize {
			t.Errorf("%d bytes of %d are kept", len(l.junk), cap(l.junk))
		}
		l.comes(answer)
		l.wants(1, 0, 0)
	}, ask)
}

// A unit with so many open requests is listened to as long as if it were asked, and
// no more.
func TestLateUnitIsGivenTime(t *testing.T) {
	tardyLine(t, func(l *tardy) {
		p := l.owes.peer(1)
		for range maxOpen {
			p.owe(ask, time.Now(), time.Now(), time.Now().Add(time.Hour))
		}
		asked, begin := l.counts.Requests, time.Now()
		if _, err := l.exchange(t.Context(), ask, wait); !errors.Is(err, devices.ErrNoAnswer) {
			t.Error(err)
		}
		if l.counts.Requests != asked || time.Since(begin) != wait.timeout {
			t.Errorf("asked %d times, waited %v", l.counts.Requests-asked, time.Since(begin))
		}
	}, ask)
}

// A marker that was lost many times before proves nothing until as many answers
// came. One exchange waits for some of them, and does not send the request that
// would need the proof.
func TestLateMarkers(t *testing.T) {
	tardyLine(t, func(l *tardy) {
		p := l.owes.peer(1)
		p.mark.learn(reads(0, 10), time.Now())
		p.mark.asked = reads(0, 2)
		lose := func(req []byte) { p.owe(req, time.Now(), time.Now(), time.Now().Add(time.Second)) }
		for range 2*maxProofs - 1 {
			lose(p.mark.asked)
		}
		time.Sleep(time.Second)
		lose(longer)
		time.Sleep(2 * time.Second)
		for range 2 * maxProofs {
			l.s.answers = append(l.s.answers, [][]byte{seal([]byte{1, 3, 4, 0, 0, 0, 0})})
		}
		l.s.answers = append(l.s.answers, [][]byte{seal([]byte{1, 3, 6, 0, 1, 0, 2, 0, 3})})
		other := seal([]byte{1, 3, 0, 9, 0, 3})
		if ans, err := l.exchange(t.Context(), other, wait); !errors.Is(err, devices.ErrNoAnswer) || l.counts.Requests != maxProofs {
			t.Errorf("% x %v after %d markers", ans, err, l.counts.Requests)
		}
		if ans, err := l.exchange(t.Context(), other, wait); err != nil || len(ans) != 11 || l.counts.Requests != 2*maxProofs+1 {
			t.Errorf("% x %v after %d requests", ans, err, l.counts.Requests)
		}
	})
}

// An exception is no proof that a register can be read; a broadcast is answered by
// nobody, so that nothing is open after one that could not be sent.
func TestLateWhatIsNotLearned(t *testing.T) {
	tardyLine(t, func(l *tardy) {
		l.s.answers = [][][]byte{{seal([]byte{1, 0x83, 2})}}
		if _, err := l.exchange(t.Context(), ask, wait); err != nil {
			t.Fatal(err)
		}
		if m := l.owes.peer(1).mark; m.any != nil {
			t.Errorf("% x", m.any)
		}
		l.port = broken{l.s}
		if _, err := l.exchange(t.Context(), seal([]byte{0, 6, 0, 1, 0, 1}), wait); err == nil {
			t.Error("it was sent")
		}
		if n := len(l.owes.peer(0).debts); n != 0 {
			t.Errorf("%d answers to a broadcast are open", n)
		}
		if _, err := l.exchange(t.Context(), seal([]byte{3, 3, 0, 1, 0, 1}), wait); err == nil {
			t.Error("it was sent")
		}
		if n := len(l.owes.peer(3).debts); n != 1 {
			t.Errorf("of what may have been sent in part %d are open", n)
		}
		l.port = deaf{l.s}
		if _, err := l.exchange(t.Context(), seal([]byte{4, 3, 0, 1, 0, 1}), wait); err == nil {
			t.Error("it was answered")
		}
		if n := len(l.owes.peer(4).debts); n != 1 {
			t.Errorf("of what was sent before the port died %d are open", n)
		}
	})
}

// broken is a port that cannot write.
type broken struct{ *script }

func (broken) Write([]byte) (int, error) { return 0, errors.New("input/output error") }

// deaf is a port that dies after the next request.
type deaf struct{ *script }

func (d deaf) Read(p []byte) (int, error) {
	if bytes.Contains(d.sent, seal([]byte{4, 3, 0, 1, 0, 1})) {
		return 0, errors.New("input/output error")
	}
	return d.script.Read(p)
}

// Bytes that begin as the answer were the answer: the next request of its shape
// need not wait, if nothing else is open and there are enough of them.
func TestLateAfterADamagedAnswer(t *testing.T) {
	hurt := bytes.Clone(answer)
	hurt[4] ^= 1
	for _, c := range []struct {
		fact string
		in   []byte
		lost [][]byte // before
		want time.Duration
	}{
		{"the answer, hurt", hurt, nil, 0},
		{"its beginning", answer[:3], nil, 0},
		{"too little to tell", answer[:2], nil, time.Second},
		{"the answer to something else", []byte{1, 3, 6, 0, 1, 0, 2, 9, 9, 9, 9}, nil, time.Second},
		{"though another is open", hurt, [][]byte{longer}, time.Second},
	} {
		t.Run(c.fact, func(t *testing.T) {
			tardyLine(t, func(l *tardy) {
				l.s.answers = [][][]byte{{c.in}}
				if _, err := l.exchange(t.Context(), ask, wait); !errors.Is(err, devices.ErrBadFrame) {
					t.Fatal(err)
				}
				i := len(l.debts()) - 1
				if d := l.debts()[i]; !bytes.Equal(d.req, ask) || max(0, time.Until(d.until)) != c.want {
					t.Errorf("% x may be answered for %v, want %v", d.req, time.Until(d.until), c.want)
				}
			}, c.lost...)
		})
	}
}

// A stray byte in front does not make an answer ours that is another's.
func TestLateAnswerBehindAStrayByte(t *testing.T) {
	exception := seal([]byte{1, 0x83, 2})
	tardyLine(t, func(l *tardy) {
		l.s.answers = [][][]byte{{join([]byte{0}, exception)}}
		if ans, err := l.exchange(t.Context(), longer, wait); err == nil {
			t.Errorf("% x is taken, which may answer the other", ans)
		}
	}, ask)
}
