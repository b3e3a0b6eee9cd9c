package modbus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"busgate/devices"
	"busgate/devices/sim"
)

// feed is a port that hands over chunks, then silence.
type feed struct {
	chunks  [][]byte
	sent    []byte
	timeout time.Duration
}

func (f *feed) SetReadTimeout(d time.Duration) error { f.timeout = d; return nil }
func (f *feed) Close() error                         { return nil }
func (f *feed) Write(p []byte) (int, error) {
	n := min(len(p), 5) // short writes
	f.sent = append(f.sent, p[:n]...)
	return n, nil
}
func (f *feed) Read(p []byte) (int, error) {
	if len(f.chunks) == 0 {
		time.Sleep(f.timeout)
		return 0, nil
	}
	n := copy(p, f.chunks[0])
	if f.chunks[0] = f.chunks[0][n:]; len(f.chunks[0]) == 0 {
		f.chunks = f.chunks[1:]
	}
	return n, nil
}

func TestASCIIFrames(t *testing.T) {
	good := seal([]byte{1, 3, 2, 0, 7})
	bad := bytes.Clone(good)
	bad[5], bad[6] = ^bad[5], ^bad[6]
	tests := []struct {
		name string
		in   []string
		want [][]byte
	}{
		{"a line", []string{":0103020007F3\r\n"}, [][]byte{good}},
		{"in lower case", []string{":0103020007f3\r\n"}, [][]byte{good}},
		{"with parity bits left in", []string{"\xBA\xB01\xB0302\xB0007F\xB3\r\n"}, [][]byte{good}},
		{"character by character", []string{":", "0", "1", "0", "3", "0", "2", "0", "0", "0", "7", "F", "3", "\r", "\n"}, [][]byte{good}},
		{"two at once", []string{":0103020007F3\r\n:0103020007F3\r\n"}, [][]byte{good, good}},
		{"a wrong LRC", []string{":0103020007F2\r\n"}, [][]byte{bad}},
		{"a colon begins anew", []string{":01030:0103020007F3\r\n"}, [][]byte{good}},
		{"characters before a line", []string{"\x00U:0103020007F3\r\n"}, [][]byte{good}},
		{"a line that breaks off", []string{":010302"}, [][]byte{{0}}},
		{"no digit", []string{":01030200G7F3\r\n"}, [][]byte{{0}}},
		{"an odd number of digits", []string{":0103020007F\r\n"}, [][]byte{{0}}},
		{"too short to be one", []string{":01FF\r\n"}, [][]byte{{0}}},
		{"no line at all", []string{"hello\r\n"}, [][]byte{{0}}},
		{"only line ends", []string{"\r\n\r\n"}, nil},
		{"a line without end", []string{":" + string(bytes.Repeat([]byte("01"), 400))}, [][]byte{{0}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &feed{}
				for _, s := range tt.in {
					f.chunks = append(f.chunks, []byte(s))
				}
				p := newASCIIPort(f)
				p.SetReadTimeout(100 * time.Millisecond)
				var got [][]byte
				var buf [300]byte
				for {
					n, err := p.Read(buf[:])
					if err != nil {
						t.Fatal(err)
					}
					if n == 0 {
						break
					}
					got = append(got, bytes.Clone(buf[:n]))
				}
				if fmt.Sprintf("%x", got) != fmt.Sprintf("%x", tt.want) {
					t.Errorf("got %x, want %x", got, tt.want)
				}
			})
		})
	}
	f := &feed{}
	if n, err := newASCIIPort(f).Write(seal([]byte{0x11, 3, 0, 0x6B, 0, 3})); n != 8 || err != nil || string(f.sent) != ":1103006B00037E\r\n" {
		t.Errorf("%d %v %q", n, err, f.sent) // the example of Modbus AP, in ASCII
	}
}

// asciiLine is the wire of the tests with ASCII.
var asciiLine = sim.Line{Baud: 9600, Format: "7E1", ASCII: true}

func TestASCIIOnABus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := counting(1, 1000)
		bus := sim.NewBus(asciiLine, 1, u)
		cfg := testBus(asciiLine)
		cfg.Protocol = "modbus-ascii"
		dev := testDevice(1, 3, 4, 50)
		dev.Points = append(dev.Points, point("coil", 9, "bool"))
		u.SetBit(sim.Coil, 9, true)
		f := openSim(t, &Driver{}, cfg, bus, dev)
		a, err := f.Poll(t.Context(), groupOf(dev), noPause)
		if err != nil || texts(a) != "holding-3=1003\nholding-4=1004\nholding-50=1050\ncoil-9=true" {
			t.Errorf("%v %s", err, texts(a))
		}
		if err := f.Set(t.Context(), dev, []devices.Item{{Point: &dev.Points[0], Raw: []byte{0, 42}}}); err != nil {
			t.Error(err)
		}
		if w, _ := u.Get(sim.Holding, 3); w != 42 {
			t.Errorf("the unit holds %d", w)
		}
		u.Refuse(sim.Holding, 50, 50, 2)
		if _, err := f.Get(t.Context(), dev, &dev.Points[2]); err == nil || err.Error() != "exception 2, illegal data address" {
			t.Errorf("%v", err)
		}
		u.SetFaults(sim.Faults{Dead: true})
		if _, err := f.Get(t.Context(), dev, &dev.Points[0]); !errors.Is(err, devices.ErrNoAnswer) {
			t.Errorf("%v", err)
		}
		if s := bus.Stats(); s.BadRequests != 0 || s.Requests == 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestASCIIHostileBusNeverGivesAnotherRegistersValue(t *testing.T) {
	faults := sim.Faults{Damage: 0.05, Lose: 0.01, Late: 0.03, LateBy: 220 * time.Millisecond, Foreign: 0.02, Stray: 0.01}
	good, wrong, c := hostileOn(t, asciiLine, 20000, faults, 150*time.Millisecond, false)
	t.Logf("good %d of 20000, wrong %d; %d late, %d foreign, %d damaged, %d stray", good, wrong, c.Late, c.Foreign, c.Bad, c.Stray)
	if wrong != 0 || good < 15000 || c.Late == 0 || c.Bad == 0 || c.Foreign == 0 {
		t.Errorf("good %d wrong %d %+v", good, wrong, c)
	}
	good, wrong, _ = hostileOn(t, asciiLine, 20000, sim.Faults{Late: 0.03, LateBy: 220 * time.Millisecond}, 150*time.Millisecond, true)
	t.Logf("owed rule off: good %d of 20000, WRONG %d", good, wrong)
	if wrong == 0 {
		t.Error("without the owed rule no value is wrong: the test tests nothing")
	}
}

func TestASCIIUsesTheWholeWire(t *testing.T) {
	for _, baud := range []int{9600, 19200, 115200} {
		for _, n := range []int{1, 10, 60, 125} {
			synctest.Test(t, func(t *testing.T) {
				l := sim.Line{Baud: baud, Format: "7E1", ASCII: true, Chunk: 1}
				bus := sim.NewBus(l, 1, counting(1, 0))
				cfg := testBus(l)
				cfg.Protocol, cfg.Timeout = "modbus-ascii", 2*time.Second
				dev := testDevice(1, 0)
				f := openSim(t, &Driver{}, cfg, bus, dev)
				u := f.unitOf(dev)
				var start time.Time
				const rounds = 30
				for i := range rounds + 1 {
					if i == 1 {
						start = time.Now()
					}
					raw, err := readWords(t, f, u, i, n)
					if err != nil || int(binary.BigEndian.Uint16(raw)) != i {
						t.Fatal(err)
					}
				}
				limit := time.Duration(rounds) * time.Duration(28+4*n) * f.timing.char
				ratio := float64(limit) / float64(time.Since(start))
				t.Logf("%6d baud %3d registers: limit/used %.4f", baud, n, ratio)
				if ratio < .995 || ratio > 1.005 {
					t.Errorf("limit / used = %.4f", ratio)
				}
			})
		}
	}
}

// FuzzASCII: whatever arrives, the exchange ends, gives nothing that is not an
// answer, and the next one works.
func FuzzASCII(f *testing.F) {
	f.Add([]byte(":0103040007000 8F9\r\n"), uint8(3))
	f.Add([]byte("::01030400070008E9\r\n"), uint8(1))
	f.Add(bytes.Repeat([]byte(":01"), 300), uint8(12))
	f.Add([]byte("\x00\xFF:0203020001F8\r\n:01030400070008E9\r\n"), uint8(5))
	whole := []byte(":01030400070008E9\r\n")
	f.Fuzz(func(t *testing.T, p []byte, size uint8) {
		if len(p) > 2000 {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			s := &script{answers: [][][]byte{slices.Collect(slices.Chunk(p, int(size%32)+1)), {whole}}, request: 17}
			l := newLine(newASCIIPort(s), timing{char: time.Millisecond, silence: 60 * time.Millisecond, ascii: true}, nil)
			begin := time.Now()
			ans, err := l.exchange(t.Context(), ask, wait)
			if err == nil && (crc(ans) != 0 || answerLen(ask, ans) != len(ans)) {
				t.Fatalf("% x is no answer", ans)
			}
			if err != nil && !errors.Is(err, devices.ErrNoAnswer) && !errors.Is(err, devices.ErrBadFrame) {
				t.Fatal(err)
			}
			if d := time.Since(begin); d > 20*time.Second {
				t.Fatalf("it took %v", d)
			}
			time.Sleep(muteAfter)
			for range 40 { // what is left is read away
				if ans, err = l.exchange(t.Context(), ask, wait); err == nil {
					break
				}
				s.answers = [][][]byte{{whole}}
				time.Sleep(muteAfter)
			}
			if err != nil || crc(ans) != 0 {
				t.Fatalf("afterwards: % x %v", ans, err)
			}
		})
	})
}
