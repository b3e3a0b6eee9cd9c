package sim

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// ask sends one RTU request after the silence that is due and gathers what
// comes until 100 ms pass without a byte.
func ask(t *testing.T, p *Port, l Line, unit byte, pdu ...byte) []byte {
	t.Helper()
	time.Sleep(l.Silence())
	if _, err := p.Write(l.Seal(unit, pdu)); err != nil {
		t.Fatal(err)
	}
	return gather(t, p)
}

func gather(t *testing.T, p *Port) []byte {
	t.Helper()
	p.SetReadTimeout(500 * time.Millisecond)
	var out []byte
	buf := make([]byte, 64)
	for {
		n, err := p.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return out
		}
		out = append(out, buf[:n]...)
		p.SetReadTimeout(100 * time.Millisecond)
	}
}

func open(t *testing.T, b *Bus) *Port {
	t.Helper()
	p, err := b.Open()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func counter(id byte) *Unit {
	u := NewUnit(id)
	u.SetFill(func(tb Table, a uint16) (uint16, bool) { return 1000 + a, tb == Holding })
	return u
}

func TestExchangeTakesItsTimeOnTheWire(t *testing.T) {
	for _, c := range []struct {
		line Line
		n    int
		ta   time.Duration
	}{
		{Line{Baud: 9600, Format: "8N1"}, 1, 0},
		{Line{Baud: 9600, Format: "8E1"}, 10, 30 * time.Millisecond},
		{Line{Baud: 19200, Format: "8N2"}, 60, 5 * time.Millisecond},
		{Line{Baud: 115200, Format: "8N1"}, 120, 0},
	} {
		t.Run(c.line.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := counter(1)
				u.SetAnswerTime(c.ta, 0)
				b := NewBus(c.line, 1, u)
				p := open(t, b)
				begin := time.Now()
				if _, err := p.Write(c.line.Seal(1, []byte{3, 0, 0, 0, byte(c.n)})); err != nil {
					t.Fatal(err)
				}
				buf, got := make([]byte, 300), 0
				for got < 5+2*c.n {
					n, err := p.Read(buf[got:])
					if err != nil {
						t.Fatal(err)
					}
					got += n
				}
				want := time.Duration(8+5+2*c.n)*c.line.Char() + c.line.Silence() + c.ta
				if d := time.Since(begin); d != want {
					t.Errorf("exchange took %v, want %v", d, want)
				}
				if s := b.Stats(); s.GapViolations != 0 || s.Requests != 1 || s.Answers != 1 {
					t.Errorf("stats %+v", s)
				}
			})
		})
	}
}

func TestRequestTooEarlyIsNotHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Line{Baud: 9600}
		b := NewBus(l, 1, counter(1))
		p := open(t, b)
		if got := ask(t, p, l, 1, 3, 0, 0, 0, 1); len(got) != 7 {
			t.Fatalf("first answer % x", got)
		}
		req := l.Seal(1, []byte{3, 0, 0, 0, 1})
		p.Write(req)
		p.SetReadTimeout(200 * time.Millisecond)
		buf := make([]byte, 64)
		if n, _ := p.Read(buf); n != 7 {
			t.Fatalf("%d bytes", n)
		}
		time.Sleep(l.Silence() - l.Char()) // one character too few
		p.Write(req)
		if n, _ := p.Read(buf); n != 0 {
			t.Errorf("a strict unit answered % x", buf[:n])
		}
		if s := b.Stats(); s.GapViolations != 1 {
			t.Errorf("violations %d, want 1", s.GapViolations)
		}
	})
}

func TestOverlapCollides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Line{Baud: 9600}
		b := NewBus(l, 1, counter(1))
		p := open(t, b)
		req := l.Seal(1, []byte{3, 0, 0, 0, 20})
		p.Write(req)
		time.Sleep(time.Duration(len(req)+10) * l.Char()) // into the answer
		p.Write(req)
		got := gather(t, p)
		if CRC16(got) == 0 || len(got) != 45 {
			t.Errorf("%d bytes with crc %04x", len(got), CRC16(got))
		}
		if s := b.Stats(); s.Collisions != 1 || s.Answers != 1 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestFaults(t *testing.T) {
	good := Line{}.Seal(1, []byte{3, 2, 0x03, 0xEF}) // holding 7 is 1007
	for _, c := range []struct {
		name  string
		fault Faults
		want  func(got []byte) bool
		stat  func(Stats) bool
	}{
		{"none", Faults{}, func(g []byte) bool { return bytes.Equal(g, good) }, func(s Stats) bool { return s.Damaged == 0 }},
		{"dead", Faults{Dead: true}, func(g []byte) bool { return g == nil }, func(s Stats) bool { return s.Unheard == 1 }},
		{"silent", Faults{Silent: true}, func(g []byte) bool { return g == nil }, func(s Stats) bool { return s.Answers == 0 }},
		{"lost", Faults{Lose: 1}, func(g []byte) bool { return g == nil }, func(s Stats) bool { return s.Lost == 1 }},
		{"one bit", Faults{Damage: 1}, func(g []byte) bool { return len(g) == 7 && CRC16(g) != 0 }, func(s Stats) bool { return s.Damaged == 1 }},
		{"bits everywhere", Faults{BitError: 1}, func(g []byte) bool { return len(g) == 7 && CRC16(g) != 0 }, func(s Stats) bool { return s.Damaged == 1 }},
		{"cut", Faults{Cut: 1}, func(g []byte) bool { return len(g) < 7 }, func(s Stats) bool { return s.Damaged == 1 }},
		{"stray byte first", Faults{Stray: 1}, func(g []byte) bool { return bytes.Equal(g, append([]byte{0}, good...)) }, func(s Stats) bool { return s.Stray == 1 }},
		{"foreign first", Faults{Foreign: 1}, func(g []byte) bool { return len(g) == 14 && g[0] == 2 && CRC16(g[:7]) == 0 && bytes.Equal(g[7:], good) }, func(s Stats) bool { return s.Foreign == 1 }},
		{"exception", Faults{Except: 1, Code: 6}, func(g []byte) bool { return bytes.Equal(g, Line{}.Seal(1, []byte{0x83, 6})) }, func(s Stats) bool { return s.Exceptions == 1 }},
		{"echo", Faults{Echo: true}, func(g []byte) bool { return len(g) == 15 && bytes.Equal(g[8:], good) }, func(s Stats) bool { return s.Answers == 1 }},
		{"wrong baud", Faults{WrongBaud: true}, func(g []byte) bool { return len(g) > 3 && CRC16(g) != 0 }, func(s Stats) bool { return s.Damaged == 1 }},
		{"double unit", Faults{Double: true}, func(g []byte) bool { return len(g) > 7 && CRC16(g) != 0 }, func(s Stats) bool { return s.Damaged == 1 }},
		{"late", Faults{Late: 1, LateBy: 300 * time.Millisecond}, func(g []byte) bool { return bytes.Equal(g, good) }, func(s Stats) bool { return s.Late == 1 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for _, where := range []string{"bus", "unit"} {
					u := counter(1)
					b := NewBus(Line{}, 3, u)
					if where == "bus" {
						b.SetFaults(c.fault)
					} else if c.fault.Echo || c.fault.Silent || c.fault.WrongBaud {
						continue
					} else {
						u.SetFaults(c.fault)
					}
					begin := time.Now()
					got := ask(t, open(t, b), b.Line(), 1, 3, 0, 7, 0, 1)
					if !c.want(got) {
						t.Errorf("%s: got % x", where, got)
					}
					if !c.stat(b.Stats()) {
						t.Errorf("%s: stats %+v", where, b.Stats())
					}
					if late := time.Since(begin) > 400*time.Millisecond; c.fault.Late > 0 && !late {
						t.Errorf("%s: not late", where)
					}
				}
			})
		})
	}
}

func TestSecondMasterIsHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBus(Line{}, 5, counter(1))
		p := open(t, b)
		if err := b.Inject("second-master"); err != nil {
			t.Fatal(err)
		}
		p.SetReadTimeout(time.Minute)
		buf := make([]byte, 8)
		if n, _ := p.Read(buf); n != 8 || buf[0] != 4 || CRC16(buf) != 0 {
			t.Errorf("heard % x", buf[:n])
		}
	})
}

func TestInjectTellsWhatItCannotDo(t *testing.T) {
	b := NewBus(Line{}, 1, counter(2))
	for _, text := range []string{"crc=5%", "dead=2", "dead=all", "late=1200ms", "busy=10%", "exception=4", "noise", "noise=00-first", "double=2", "silent", "wrong-baud", "second-master", "echo"} {
		if err := b.Inject(text); err != nil {
			t.Error(err)
		}
	}
	for _, text := range []string{"crc=200%", "dead=3", "dead=x", "late=soon", "unplug", ""} {
		if err := b.Inject(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

func TestUnplugEndsTheOpenPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBus(Line{}, 1, counter(1))
		p := open(t, b)
		go func() { time.Sleep(time.Second); b.Unplug() }()
		if _, err := p.Read(make([]byte, 8)); !errors.Is(err, syscall.EIO) {
			t.Errorf("read: %v", err)
		}
		if _, err := p.Write([]byte{1}); !errors.Is(err, syscall.EIO) {
			t.Errorf("write: %v", err)
		}
		if _, err := b.Open(); !errors.Is(err, syscall.ENOENT) {
			t.Errorf("open while unplugged: %v", err)
		}
		b.Replug()
		q := open(t, b)
		if _, err := b.Open(); !errors.Is(err, syscall.EBUSY) {
			t.Errorf("second open: %v", err)
		}
		if got := ask(t, q, b.Line(), 1, 3, 0, 7, 0, 1); len(got) != 7 {
			t.Errorf("after replug: % x", got)
		}
		if _, err := p.Read(make([]byte, 8)); !errors.Is(err, syscall.EIO) {
			t.Errorf("old port: %v", err)
		}
		go func() { time.Sleep(time.Second); q.Close() }()
		q.SetReadTimeout(-1)
		if _, err := q.Read(make([]byte, 8)); !errors.Is(err, os.ErrClosed) {
			t.Errorf("closed: %v", err)
		}
	})
}

func TestASCIIFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Line{ASCII: true, Format: "7E1"}
		b := NewBus(l, 1, counter(1))
		got := ask(t, open(t, b), l, 1, 3, 0, 7, 0, 1)
		if string(got) != ":01030203EF08\r\n" {
			t.Errorf("got %q", got)
		}
	})
}

func TestLatencyTimerHoldsBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Line{Baud: 115200, Latency: 16 * time.Millisecond}
		b := NewBus(l, 1, counter(1))
		p := open(t, b)
		begin := time.Now()
		p.Write(l.Seal(1, []byte{3, 0, 0, 0, 10}))
		n, _ := p.Read(make([]byte, 64))
		if d := time.Since(begin); n != 25 || d != 16*time.Millisecond {
			t.Errorf("%d bytes after %v", n, d)
		}
	})
}

func TestTwoRunsOfOneSeedAreEqual(t *testing.T) {
	run := func(seed uint64) (out []byte) {
		synctest.Test(t, func(t *testing.T) {
			b := NewBus(Line{}, seed, NewSDM630(1, seed))
			b.SetFaults(Faults{Damage: 0.1, Lose: 0.05, Cut: 0.05, Foreign: 0.05, Stray: 0.1, SecondMaster: 3 * time.Second})
			p := open(t, b)
			for range 50 {
				out = append(out, ask(t, p, b.Line(), 1, 4, 0, 0, 0, 60)...)
			}
		})
		return out
	}
	a, b, c := run(7), run(7), run(8)
	if !bytes.Equal(a, b) {
		t.Error("one seed gave two runs")
	}
	if bytes.Equal(a, c) {
		t.Error("two seeds gave one run")
	}
}

func TestUnreadBytesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewTalker(Line{}, 1, time.Second, NMEA(1))
		p := open(t, b)
		time.Sleep(10 * time.Minute)
		p.SetReadTimeout(0)
		n, _ := p.Read(make([]byte, 100000))
		if s := b.Stats(); n > maxUnread || n < maxUnread/2 || s.Overrun == 0 || s.Talks != 600 {
			t.Errorf("%d bytes wait, stats %+v", n, s)
		}
	})
}

func TestWaveNeverCountsBackwards(t *testing.T) {
	w := newWave(rand.New(rand.NewPCG(1, 2)), 300, 100, 3*time.Minute)
	last := -1.0
	sum := 0.0
	for s := range 3600 {
		at := time.Duration(s) * time.Second
		v := w.at(at)
		if v < 199 || v > 401 {
			t.Fatalf("%v is outside", v)
		}
		if w.sum(at) <= last {
			t.Fatalf("counter fell at %v", at)
		}
		last = w.sum(at)
		sum += (v + w.at(at+time.Second)) / 2
	}
	if exact := w.sum(time.Hour); math.Abs(sum-exact) > exact/1e4 {
		t.Errorf("integral %v, summed %v", exact, sum)
	}
}

func TestMeterValuesBelongTogether(t *testing.T) {
	u := NewSDM630(1, 1)
	read := func(a uint16) float64 {
		p := u.Serve([]byte{4, byte(a >> 8), byte(a), 0, 2}, u.start.Add(90*time.Second))
		if len(p) != 6 {
			t.Fatalf("register %#x: % x", a, p)
		}
		return float64(math.Float32frombits(binary.BigEndian.Uint32(p[2:])))
	}
	var p, kwh float64
	for i := range uint16(3) {
		v, a, w, pf := read(2*i), read(6+2*i), read(12+2*i), read(30+2*i)
		if math.Abs(v*a*pf-w) > 0.01 || v < 220 || v > 240 {
			t.Errorf("L%d: %v V * %v A * %v is not %v W", i+1, v, a, pf, w)
		}
		p += w
		kwh += read(0x15A + 2*i)
	}
	if got := read(0x34); math.Abs(got-p) > 0.01 {
		t.Errorf("total %v W, phases %v W", got, p)
	}
	if got := read(0x48); math.Abs(got-kwh) > 0.01 {
		t.Errorf("total %v kWh, phases %v kWh", got, kwh)
	}
	if got := u.Serve([]byte{4, 1, 0x80, 0, 1}, u.start); !bytes.Equal(got, []byte{0x84, 2}) {
		t.Errorf("beyond the map: % x", got)
	}
}
