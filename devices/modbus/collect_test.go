package modbus

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"busgate/devices"
	"busgate/devices/sim"
)

// script is a port whose far end answers each request with the next list of
// chunks. It writes at most short bytes at once, if that is not 0.
type script struct {
	answers [][][]byte
	now     [][]byte
	sent    []byte
	short   int
	timeout time.Duration
	request int       // length of a request; 0: 8
	babble  bool      // never silent
	rest    time.Time // then the second chunk comes
}

func (s *script) SetReadTimeout(d time.Duration) error { s.timeout = d; return nil }
func (s *script) Close() error                         { return nil }

func (s *script) Write(p []byte) (int, error) {
	if s.short > 0 && len(p) > s.short {
		p = p[:s.short]
	}
	s.sent = append(s.sent, p...)
	if len(s.answers) > 0 && len(s.sent)%max(s.request, 8) == 0 {
		s.now, s.answers = append(s.now, s.answers[0]...), s.answers[1:]
	}
	return len(p), nil
}

func (s *script) Read(p []byte) (int, error) {
	if s.babble {
		time.Sleep(min(s.timeout, time.Millisecond))
		p[0] = 0x55
		return 1, nil
	}
	if len(s.now) == 0 {
		time.Sleep(s.timeout)
		return 0, nil
	}
	if d := time.Until(s.rest); d > 0 && len(s.now) == 1 {
		time.Sleep(min(d, s.timeout))
		if d > s.timeout {
			return 0, nil
		}
	}
	n := copy(p, s.now[0])
	if n == len(s.now[0]) {
		s.now = s.now[1:]
	} else {
		s.now[0] = s.now[0][n:]
	}
	return n, nil
}

var (
	ask    = seal([]byte{1, 3, 0, 5, 0, 2})
	answer = seal([]byte{1, 3, 4, 0, 7, 0, 8})
	wait   = patience{timeout: 100 * time.Millisecond, window: time.Second}
)

func scripted(s *script) *Line {
	return newLine(s, timing{char: time.Millisecond, gap: 4 * time.Millisecond, silence: 60 * time.Millisecond}, nil)
}

func join(parts ...[]byte) []byte { return slices.Concat(parts...) }

func TestWhatStandsBeforeAnAnswer(t *testing.T) {
	other := seal([]byte{2, 3, 4, 9, 9, 9, 9})
	broken := bytes.Clone(answer)
	broken[4] ^= 1
	tests := []struct {
		name   string
		chunks [][]byte
		want   error
		counts devices.Counts
	}{
		{"nothing", [][]byte{answer}, nil, devices.Counts{Good: 1}},
		{"byte by byte", slices.Collect(slices.Chunk(answer, 1)), nil, devices.Counts{Good: 1}},
		{"a stray byte", [][]byte{join([]byte{0}, answer)}, nil, devices.Counts{Good: 1, Stray: 1}},
		{"eight stray bytes", [][]byte{join([]byte("12345678"), answer)}, nil, devices.Counts{Good: 1, Stray: 1}},
		{"nine stray bytes are too many", [][]byte{join([]byte("123456789"), answer)}, devices.ErrBadFrame, devices.Counts{Bad: 1}},
		{"our own unit number as a stray byte", [][]byte{join([]byte{1}, answer)}, nil, devices.Counts{Good: 1, Stray: 1}},
		{"an answer of another unit", [][]byte{other, answer}, nil, devices.Counts{Good: 1, Foreign: 1}},
		{"both in one piece", [][]byte{join(other, answer)}, nil, devices.Counts{Good: 1, Foreign: 1}},
		{"a request of another master", [][]byte{seal([]byte{4, 3, 0, 0, 0, 1}), answer}, nil, devices.Counts{Good: 1, Foreign: 1}},
		{"a long request of another master", [][]byte{seal([]byte{4, 16, 0, 0, 0, 1, 2, 0, 9}), answer}, nil, devices.Counts{Good: 1, Foreign: 1}},
		{"our own request, from an adapter that hears itself", [][]byte{ask, answer}, nil, devices.Counts{Good: 1, Echo: 1}},
		{"an answer of another length", [][]byte{seal([]byte{1, 3, 2, 0, 7})}, devices.ErrNoAnswer, devices.Counts{Foreign: 1, Timeouts: 1}},
		{"a damaged answer", [][]byte{broken}, devices.ErrBadFrame, devices.Counts{Bad: 1}},
		{"an answer that breaks off", [][]byte{answer[:6]}, devices.ErrBadFrame, devices.Counts{Bad: 1}},
		{"nothing at all", nil, devices.ErrNoAnswer, devices.Counts{Timeouts: 1}},
		{"an exception", [][]byte{seal([]byte{1, 0x83, 2})}, nil, devices.Counts{Good: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := scripted(&script{answers: [][][]byte{tt.chunks}})
				ans, err := l.exchange(t.Context(), ask, wait)
				if !errors.Is(err, tt.want) {
					t.Errorf("% x, %v", ans, err)
				}
				if err == nil && ans[1] < 0x80 && !bytes.Equal(ans, answer) {
					t.Errorf("% x", ans)
				}
				c := l.counts
				c.BytesIn, c.BytesOut, c.Stale, c.Requests = 0, 0, 0, 0
				c.Sizes, c.StrayByte, c.Intruders, c.Intruder = devices.Counts{}.Sizes, 0, 0, devices.Intruder{} // see tap_test.go
				if c != tt.counts {
					t.Errorf("counted %+v, want %+v", c, tt.counts)
				}
			})
		})
	}
}

func TestALateExceptionIsNotTheAnswerToAnotherRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answers: [][][]byte{nil, {seal([]byte{1, 0x83, 2}), answer}}}
		l := scripted(s)
		if _, err := l.exchange(t.Context(), seal([]byte{1, 3, 0, 9, 0, 30}), wait); !errors.Is(err, devices.ErrNoAnswer) {
			t.Fatal(err)
		}
		if ans, err := l.exchange(t.Context(), ask, wait); err != nil || !bytes.Equal(ans, answer) {
			t.Errorf("% x %v", ans, err)
		}
		if l.counts.Late != 1 {
			t.Errorf("%+v", l.counts)
		}
	})
}

func TestTheSameRequestMayGoAtOnceAnotherWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{}
		l := scripted(s)
		l.exchange(t.Context(), ask, wait)
		if d := l.owing(ask); d != 0 {
			t.Errorf("the same waits %v", d)
		}
		other := seal([]byte{1, 3, 0, 50, 0, 2})
		if d := l.owing(other); d <= 0 || d > time.Second {
			t.Errorf("another register of the same length waits %v", d)
		}
		if d := l.owing(seal([]byte{1, 3, 0, 50, 0, 3})); d != 0 {
			t.Errorf("another length waits %v", d)
		}
		if d := l.owing(seal([]byte{2, 3, 0, 50, 0, 2})); d != 0 {
			t.Errorf("another unit waits %v", d)
		}
		s.now = [][]byte{answer} // it comes after all
		if d := l.owing(other); d != 0 || l.counts.Late != 1 {
			t.Errorf("after the late answer it still waits %v: %+v", d, l.counts)
		}
	})
}

func TestALineThatIsNeverSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{babble: true}
		l := scripted(s)
		for range 3 {
			if _, err := l.exchange(t.Context(), ask, wait); !errors.Is(err, devices.ErrBadFrame) {
				t.Error(err)
			}
		}
		if len(s.sent) != 0 {
			t.Errorf("sent % x over the noise", s.sent)
		}
		s.babble, s.answers = false, [][][]byte{{answer}}
		time.Sleep(muteAfter)
		if ans, err := l.exchange(t.Context(), ask, wait); err != nil || !bytes.Equal(ans, answer) {
			t.Errorf("% x %v", ans, err)
		}
	})
}

// An adapter hands over the end of a long answer 30 ms after its beginning.
func TestTheRestOfADamagedAnswerDoesNotSpoilTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		damaged := bytes.Clone(answer)
		damaged[5] ^= 8
		s := &script{answers: [][][]byte{{damaged, []byte("the rest of it, long enough")}, {answer}}, rest: time.Now().Add(100 * time.Millisecond)}
		l := scripted(s)
		if _, err := l.exchange(t.Context(), ask, wait); !errors.Is(err, devices.ErrBadFrame) {
			t.Fatal(err)
		}
		if ans, err := l.exchange(t.Context(), ask, wait); err != nil || !bytes.Equal(ans, answer) {
			t.Errorf("% x %v", ans, err)
		}
	})
}

func TestShortWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{short: 3, answers: [][][]byte{{answer}}}
		if ans, err := scripted(s).exchange(t.Context(), ask, wait); err != nil || !bytes.Equal(ans, answer) || !bytes.Equal(s.sent, ask) {
			t.Errorf("% x %v", ans, err)
		}
	})
}

func TestBroadcast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := sim.Line{Baud: 19200, Format: "8E1"}
		u := counting(1, 0)
		bus := sim.NewBus(l, 1, u)
		dev := testDevice(0, 7)
		f := openSim(t, &Driver{}, testBus(l), bus, dev)
		begin := time.Now()
		if err := f.Set(t.Context(), dev, []devices.Item{{Point: &dev.Points[0], Raw: []byte{0, 42}}}); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin); d < 100*time.Millisecond {
			t.Errorf("the units had only %v", d)
		}
		if w, _ := u.Get(sim.Holding, 7); w != 42 {
			t.Errorf("the unit holds %d", w)
		}
	})
}

// FuzzCollect: whatever arrives, the exchange ends, gives nothing that is not an
// answer, and the next one works.
func FuzzCollect(f *testing.F) {
	f.Add([]byte{1, 3, 4, 0, 7, 0, 8, 0, 0}, uint8(3))
	f.Add(join(seal([]byte{2, 3, 2, 0, 1}), answer), uint8(5))
	f.Add(bytes.Repeat([]byte{1, 3, 4}, 300), uint8(12))
	f.Add(join([]byte{0}, answer, answer), uint8(1))
	f.Fuzz(func(t *testing.T, p []byte, size uint8) {
		if len(p) > 2000 {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			s := &script{answers: [][][]byte{slices.Collect(slices.Chunk(p, int(size%32)+1)), {answer}}}
			l := scripted(s)
			begin := time.Now()
			ans, err := l.exchange(t.Context(), ask, wait)
			if err == nil && (crc(ans) != 0 || answerLen(ask, ans) != len(ans)) {
				t.Fatalf("% x is no answer", ans)
			}
			if err != nil && !errors.Is(err, devices.ErrNoAnswer) && !errors.Is(err, devices.ErrBadFrame) {
				t.Fatal(err)
			}
			if d := time.Since(begin); d > 10*time.Second {
				t.Fatalf("it took %v", d)
			}
			time.Sleep(muteAfter)
			for range 40 { // what is left is read away
				if ans, err = l.exchange(t.Context(), ask, wait); err == nil {
					break
				}
				s.answers = [][][]byte{{answer}}
				time.Sleep(muteAfter)
			}
			if err != nil || crc(ans) != 0 {
				t.Fatalf("afterwards: % x %v", ans, err)
			}
		})
	})
}
