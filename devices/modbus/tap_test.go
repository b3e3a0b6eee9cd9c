package modbus

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/devices"
)

func TestWhoIsAnIntruder(t *testing.T) {
	for _, c := range []struct {
		name    string
		frame   []byte
		foreign uint64
		want    devices.Intruder
		n       uint64
	}{
		{"a read of another master", seal([]byte{4, 3, 0, 16, 0, 2}), 1, devices.Intruder{Unit: 4, Request: true}, 1},
		{"its answer", seal([]byte{4, 3, 4, 0, 1, 0, 2}), 1, devices.Intruder{Unit: 4}, 1},
		{"a write of several", seal([]byte{4, 16, 0, 0, 0, 1, 2, 0, 9}), 1, devices.Intruder{Unit: 4, Request: true}, 1},
		{"coils", seal([]byte{4, 15, 0, 0, 0, 4, 1, 5}), 1, devices.Intruder{Unit: 4, Request: true}, 1},
		{"an exception", seal([]byte{4, 0x83, 2}), 1, devices.Intruder{Unit: 4}, 1},
		{"a read of a unit that we ask, too", seal([]byte{1, 3, 0, 16, 0, 2}), 1, devices.Intruder{Unit: 1, Request: true}, 1},
		{"an answer of a unit that we ask: it may be ours", seal([]byte{1, 3, 2, 0, 7}), 1, devices.Intruder{}, 0},
		{"our own request", ask, 1, devices.Intruder{}, 0},
		{"a wrong check", append(seal([]byte{4, 3, 0, 16, 0, 2})[:7], 0), 0, devices.Intruder{}, 0},
		{"a read of too much", seal([]byte{4, 3, 0, 16, 0, 126}), 0, devices.Intruder{}, 0},
		{"an answer of half a register", seal([]byte{4, 3, 3, 0, 16, 0}), 0, devices.Intruder{}, 0},
		{"noise whose check fits", seal([]byte{0x55, 0x77, 0x99}), 0, devices.Intruder{}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := scripted(&script{answers: [][][]byte{{answer}}})
				if _, err := l.exchange(t.Context(), ask, wait); err != nil {
					t.Fatal(err)
				}
				l.sift(c.frame)
				if l.counts.Foreign != c.foreign || l.counts.Intruders != c.n || l.counts.Intruder != c.want {
					t.Errorf("foreign %d, intruders %d, %+v", l.counts.Foreign, l.counts.Intruders, l.counts.Intruder)
				}
			})
		})
	}
}

// ears hears chunks, each 1 ms after the other, and a long silence at the end or
// for a nil chunk.
func ears(chunks ...[]byte) []devices.Frame {
	var out []devices.Frame
	now := time.Unix(0, 0)
	e := &ear{timing: timing{char: time.Millisecond, gap: 4 * time.Millisecond}, emit: func(f devices.Frame) { out = append(out, f) }}
	for _, c := range append(chunks, nil) {
		now = now.Add(time.Millisecond)
		e.hear(c, now)
	}
	return out
}

func TestListenerCutsFrames(t *testing.T) {
	req, ans := seal([]byte{4, 3, 0, 16, 0, 2}), seal([]byte{4, 3, 4, 0, 1, 0, 2})
	long := seal(append([]byte{1, 4, 200}, make([]byte, 200)...))
	identity := seal([]byte{1, 0x2B, 0x0E, 1, 1, 0, 0, 1, 0, 3, 'A', 'B', 'C'})
	for _, c := range []struct {
		name   string
		chunks [][]byte
		want   string // o: good request or answer, a: an answer, x: bytes
	}{
		{"request and answer", [][]byte{req, ans}, "o a"},
		{"in one piece", [][]byte{join(req, ans, req, ans)}, "o a o a"},
		{"byte by byte", slices.Collect(slices.Chunk(join(req, ans), 1)), "o a"},
		{"a stray byte first", [][]byte{join([]byte{0}, req), nil}, "x o"},
		{"a damaged one", [][]byte{join(req[:5], []byte{9}, req[6:]), nil, req}, "x o"},
		{"a damaged one, and a good one right behind it", [][]byte{join(req[:5], []byte{9}, req[6:], ans), nil}, "x o"},
		{"a long answer in pieces", [][]byte{seal([]byte{1, 4, 0, 0, 0, 100}), long[:12], long[12:100], long[100:]}, "o a"},
		{"an identity", [][]byte{seal([]byte{1, 0x2B, 0x0E, 1, 0}), nil, identity}, "o a"},
		{"noise", [][]byte{[]byte("hello, world"), nil}, "x"},
		{"an endless stream", slices.Repeat([][]byte{bytes.Repeat([]byte{0x55}, 64)}, 17), "x x x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := make([]string, 0, 4)
			for _, f := range ears(c.chunks...) {
				switch {
				case f.Mark == devices.MarkCRC:
					got = append(got, "x")
				case f.RTT > 0:
					got = append(got, "a")
				default:
					got = append(got, "o")
				}
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("heard %v, want %s", got, c.want)
			}
		})
	}
}

// FuzzListener: no byte is lost, and a good request after a silence is found
// whatever came before it.
func FuzzListener(f *testing.F) {
	f.Add([]byte("hello"), uint8(3))
	f.Add(seal([]byte{4, 3, 0, 16, 0, 2}), uint8(1))
	f.Add(join(seal([]byte{1, 4, 0, 0, 0, 100}), seal(append([]byte{1, 4, 200}, make([]byte, 200)...))), uint8(50))
	req := seal([]byte{77, 3, 0, 16, 0, 2})
	f.Fuzz(func(t *testing.T, noise []byte, size uint8) {
		if len(noise) > 4*bufSize {
			return
		}
		var chunks [][]byte
		for c := range slices.Chunk(noise, max(1, int(size))) {
			chunks = append(chunks, c)
		}
		var all []byte
		var last devices.Frame
		for _, x := range ears(append(chunks, nil, req)...) {
			all = append(all, x.Data...)
			last = x
		}
		if !bytes.Equal(all, join(noise, req)) {
			t.Errorf("% x became % x", join(noise, req), all)
		}
		if last.Mark != devices.MarkOK || !bytes.Equal(last.Data, req) {
			t.Errorf("the request was not found: % x %s", last.Data, last.Mark)
		}
	})
}

func TestExplain(t *testing.T) {
	in := func(p ...byte) devices.Frame { return devices.Frame{Data: seal(p), Mark: devices.MarkOK} }
	out := func(p ...byte) devices.Frame { return devices.Frame{Data: seal(p), Out: true, Mark: devices.MarkOK} }
	for _, c := range []struct {
		name   string
		frames []devices.Frame
		kind   string
		want   string
	}{
		{"a read", []devices.Frame{out(1, 4, 0, 0, 0, 52)}, "request", "reads input 0..51"},
		{"its answer", []devices.Frame{out(1, 4, 0, 10, 0, 2), in(1, 4, 4, 0, 7, 1, 0)}, "answer", "input 10..11 = 7 256"},
		{"many registers", []devices.Frame{out(1, 3, 0, 0, 0, 10), in(1, 3, 20, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1)}, "answer", "holding 0..9 = 1 1 1 1 1 1 1 1 and 2 more"},
		{"coils", []devices.Frame{out(3, 1, 0, 0, 0, 4), in(3, 1, 1, 5)}, "answer", "coil 0..3 = on off on off"},
		{"an answer to nobody", []devices.Frame{in(4, 3, 4, 0, 1, 0, 2)}, "answer", "1 2"},
		{"an exception", []devices.Frame{out(1, 3, 0, 0, 0, 1), in(1, 0x83, 2)}, "exception", "exception 2, illegal data address"},
		{"a coil is written", []devices.Frame{out(3, 5, 0, 2, 0xFF, 0)}, "request", "writes coil 2 = on"},
		{"and says so", []devices.Frame{out(3, 5, 0, 2, 0xFF, 0), in(3, 5, 0, 2, 0xFF, 0)}, "answer", "has written coil 2 = on"},
		{"a register is written", []devices.Frame{out(3, 6, 0x13, 0x8F, 3, 32)}, "request", "writes holding 5007 = 800"},
		{"several", []devices.Frame{out(3, 16, 0, 0, 0, 2, 4, 0, 1, 0, 2)}, "request", "writes holding 0..1 = 1 2"},
		{"and they say so", []devices.Frame{out(3, 16, 0, 0, 0, 2, 4, 0, 1, 0, 2), in(3, 16, 0, 0, 0, 2)}, "answer", "has written holding 0..1"},
		{"coils are written", []devices.Frame{out(3, 15, 0, 0, 0, 3, 1, 5)}, "request", "writes coil 0..2 = on off on"},
		{"who are you", []devices.Frame{out(1, 0x2B, 0x0E, 1, 0)}, "request", "asks who it is"},
		{"I am", []devices.Frame{out(1, 0x2B, 0x0E, 1, 0), in(1, 0x2B, 0x0E, 1, 1, 0, 0, 2, 0, 3, 'A', 'B', 'C', 1, 1, 'D')}, "answer", `is "ABC D"`},
		{"silence", []devices.Frame{out(1, 4, 0, 0, 0, 52), {Mark: devices.MarkSilence}}, "silence", "no answer"},
		{"damaged", []devices.Frame{{Data: []byte{1, 2, 3}, Mark: devices.MarkCRC}}, "bytes", "01 02 03"},
		{"another function", []devices.Frame{out(1, 8, 0, 0, 1, 2)}, "request", "asks 00 00 01 02"},
		{"a listener hears a read", []devices.Frame{in(4, 3, 0, 16, 0, 2)}, "request", "reads holding 16..17"},
		{"too short for anything", []devices.Frame{{Data: []byte{1}, Mark: devices.MarkOK}}, "bytes", "01"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var x Explainer
			var e Explained
			for _, f := range c.frames {
				e = x.Explain(f)
			}
			if e.Kind != c.kind || e.Text != c.want {
				t.Errorf("%s: %q, want %s: %q", e.Kind, e.Text, c.kind, c.want)
			}
		})
	}
}

func TestExplainedHoldsAPoint(t *testing.T) {
	var x Explainer
	x.Explain(devices.Frame{Data: seal([]byte{1, 4, 0, 10, 0, 4}), Out: true, Mark: devices.MarkOK})
	e := x.Explain(devices.Frame{Data: seal([]byte{1, 4, 8, 0, 1, 0, 2, 0, 3, 0, 4}), Mark: devices.MarkOK})
	p := point("input", 11, "uint32")
	if raw, ok := e.Holds(&p); !ok || !bytes.Equal(raw, []byte{0, 2, 0, 3}) {
		t.Errorf("% x %v", raw, ok)
	}
	for _, q := range []config.Point{point("input", 13, "uint32"), point("holding", 11, "uint16"), point("input", 9, "uint16")} {
		if raw, ok := e.Holds(&q); ok {
			t.Errorf("%s %d: % x", q.Table, q.Addr, raw)
		}
	}
}

// FuzzExplain: whatever comes, it is put into words.
func FuzzExplain(f *testing.F) {
	f.Add([]byte{1, 4, 0, 0, 0, 52, 0, 0}, []byte{1, 4, 2, 0, 0, 0, 0}, true)
	f.Add([]byte{1, 0x2B, 0x0E, 1, 0, 0, 0}, []byte{1, 0x2B, 14, 1, 1, 0, 0, 9, 0, 200, 1, 1}, false)
	f.Add([]byte{1, 15, 0, 0, 7, 208, 1, 5}, []byte{1, 0x8F}, false)
	f.Fuzz(func(t *testing.T, a, b []byte, tcp bool) {
		x := Explainer{TCP: tcp}
		for _, fr := range []devices.Frame{{Data: a, Out: true, Mark: devices.MarkOK}, {Data: b, Mark: devices.MarkOK}, {Data: a, Mark: devices.MarkForeign}} {
			e := x.Explain(fr)
			p := point("input", 0, "uint16")
			e.Holds(&p)
			if e.Kind == "" {
				t.Errorf("% x: %+v", fr.Data, e)
			}
		}
	})
}

func TestGuestsMayOnlyRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := scripted(&script{answers: [][][]byte{{answer}}})
		f := &field{bus: testBus9600(), link: l, units: map[byte]*unit{}}
		if _, err := Ask(t.Context(), f, Question{ADU: seal([]byte{1, 6, 0, 0, 0, 1}), Timeout: time.Second}); err == nil || !strings.Contains(err.Error(), "a guest may only read") {
			t.Errorf("a write: %v", err)
		}
		if _, err := Ask(t.Context(), f, Question{ADU: []byte{1, 3}}); err == nil {
			t.Error("half a frame was sent")
		}
		if _, err := Ask(t.Context(), f, Question{ADU: seal([]byte{1, 3}), Timeout: time.Second}); err == nil {
			t.Error("a read of nothing was sent")
		}
		r, err := Ask(t.Context(), f, Question{ADU: ask, Timeout: time.Second})
		if err != nil || !bytes.Equal(r.ADU, answer) || r.Failure != "" {
			t.Errorf("%+v %v", r, err)
		}
		r, err = Ask(t.Context(), f, Question{ADU: seal([]byte{2, 3, 0, 0, 0, 1}), Timeout: time.Second})
		if err != nil || r.Failure != "no-answer" {
			t.Errorf("%+v %v", r, err)
		}
	})
}

func TestWhatAGuestMayAsk(t *testing.T) {
	mbap := func(pdu ...byte) []byte { return append([]byte{0, 1, 0, 0, 0, byte(len(pdu))}, pdu...) }
	for _, tt := range []struct {
		name string
		adu  []byte
		tcp  bool
		want bool
	}{
		{"a read", seal([]byte{1, 3, 0, 0, 0, 1}), false, true},
		{"a read over TCP", mbap(0, 4, 0, 0, 0, 1), true, true},
		{"who are you", seal([]byte{1, 0x2B, 0x0E, 1, 0}), false, true},
		{"what are you", seal([]byte{1, 0x11}), false, true},
		{"what are you, over TCP", mbap(1, 0x11), true, true},
		{"a write", seal([]byte{1, 6, 0, 0, 0, 1}), false, false},
		{"a read without address", seal([]byte{1, 3}), false, false},
		{"a read without count", seal([]byte{1, 3, 0, 0}), false, false},
		{"a read with more", seal([]byte{1, 3, 0, 0, 0, 1, 0}), false, false},
		{"a read without its check", []byte{1, 3, 0, 0, 0, 1}, false, false},
		{"a read without address over TCP", mbap(1, 3), true, false},
		{"a read of all units", seal([]byte{0, 3, 0, 0, 0, 1}), false, false},
		{"a unit alone", []byte{1}, false, false},
		{"a header alone", mbap(1), true, false},
		{"nothing", nil, true, false},
	} {
		if got := harmless(tt.adu, tt.tcp); got != tt.want {
			t.Errorf("%s, % x: %v", tt.name, tt.adu, got)
		}
	}
}

func testBus9600() *config.Bus {
	return &config.Bus{Name: "meters", Serial: "/dev/ttyUSB0", Protocol: "modbus-rtu", Baud: 9600, DataBits: 8, Parity: 'N', StopBits: 1}
}

// An answer that comes when nobody expects it any more is late, and nobody else's.
func TestAnswerThatNobodyExpects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late := time.Duration(0)
		l := newLine(&script{answers: [][][]byte{nil}}, timing{char: time.Millisecond, gap: 4 * time.Millisecond, silence: 60 * time.Millisecond},
			func(_ byte, after time.Duration) { late = after })
		if _, err := l.exchange(t.Context(), ask, wait); err == nil {
			t.Fatal("an answer came")
		}
		time.Sleep(9 * time.Second)
		if d, _ := l.owes.blocked(seal([]byte{1, 3, 0, 9, 0, 2}), time.Now()); d != 0 {
			t.Errorf("still owed for %v", d)
		}
		l.sift(answer)
		if l.counts.Late != 1 || l.counts.Foreign != 0 || late < 9*time.Second || late > 10*time.Second {
			t.Errorf("late %d by %v, foreign %d", l.counts.Late, late, l.counts.Foreign)
		}
		l.sift(answer)
		if l.counts.Late != 1 || l.counts.Foreign != 1 || l.counts.Intruders != 0 {
			t.Errorf("a second one: late %d, foreign %d, intruders %d", l.counts.Late, l.counts.Foreign, l.counts.Intruders)
		}
	})
}
