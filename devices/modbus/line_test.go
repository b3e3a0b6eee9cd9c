package modbus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"busgate/devices"
	"busgate/devices/sim"
)

// readWords makes one read of holding registers over the real client.
func readWords(t *testing.T, f *field, u *unit, addr, n int) ([]byte, error) {
	t.Helper()
	return f.read(t.Context(), u, span{"holding", addr, addr + n}, u.patience(f.bus, f.timing))
}

// hostile makes n reads on a bus with everything that goes wrong and returns
// how many were good, and how many of those held another register's value.
func hostile(t *testing.T, n int, faults sim.Faults, timeout time.Duration, noOwed bool) (good, wrong int, c devices.Counts) {
	t.Helper()
	return hostileOn(t, sim.Line{Baud: 19200, Format: "8E1"}, n, faults, timeout, noOwed)
}

func hostileOn(t *testing.T, l sim.Line, n int, faults sim.Faults, timeout time.Duration, noOwed bool) (good, wrong int, c devices.Counts) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		bus := sim.NewBus(l, 7, counting(1, 1000), counting(2, 5000))
		bus.Unit(1).SetAnswerTime(10*time.Millisecond, 2*time.Millisecond)
		bus.SetFaults(faults)
		cfg := testBus(l)
		cfg.Timeout = timeout
		if l.ASCII {
			cfg.Protocol = "modbus-ascii"
		}
		dev := testDevice(1, 0)
		f := openSim(t, &Driver{noOwed: noOwed}, cfg, bus, dev)
		u := f.unitOf(dev)
		for i := range n {
			addr := i % 500
			p := patience{timeout: timeout, window: 400 * time.Millisecond} // as before anything was learned
			raw, err := f.read(t.Context(), u, span{"holding", addr, addr + 10}, p)
			switch {
			case errors.Is(err, devices.ErrNoAnswer) || errors.Is(err, devices.ErrBadFrame):
				continue
			case err != nil:
				t.Fatal(err)
			}
			good++
			for k := range 10 {
				if int(binary.BigEndian.Uint16(raw[2*k:])) != 1000+addr+k {
					wrong++
					break
				}
			}
		}
		c = f.Counts()
	})
	return good, wrong, c
}

func TestHostileBusNeverGivesAnotherRegistersValue(t *testing.T) {
	tests := []struct {
		name   string
		faults sim.Faults
	}{
		{"late, lost, flipped and foreign frames", sim.Faults{BitError: 0.002, Lose: 0.01, Late: 0.03, LateBy: 170 * time.Millisecond, Foreign: 0.02, Stray: 0.01}},
		{"late by 220 ms at a timeout of 150 ms", sim.Faults{Late: 0.03, LateBy: 220 * time.Millisecond}},
		{"cut and late", sim.Faults{Cut: 0.02, Late: 0.05, LateBy: 190 * time.Millisecond}},
		{"noise, and the answer late", sim.Faults{Noise: 0.03, LateBy: 220 * time.Millisecond, Lose: 0.01, BitError: 0.001}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			good, wrong, c := hostile(t, 20000, tt.faults, 150*time.Millisecond, false)
			t.Logf("good %d wrong %d, %+v", good, wrong, c)
			if wrong != 0 {
				t.Errorf("%d of %d good reads held another register's value", wrong, good)
			}
			if good < 15000 {
				t.Errorf("only %d good reads of 20000", good)
			}
			if c.Late == 0 {
				t.Error("no late answer was seen: the test tests nothing")
			}
		})
	}
	t.Run("without the owed rule values are wrong", func(t *testing.T) {
		good, wrong, _ := hostile(t, 20000, tests[1].faults, 150*time.Millisecond, true)
		t.Logf("good %d wrong %d", good, wrong)
		if wrong == 0 {
			t.Error("the simulated bus is not hostile enough to show what the owed rule is for")
		}
	})
}

// A gateway that works on its requests one by one and loses sight of time now and
// then, on a wire on which all else goes wrong, too.
func TestHostileBusWithAQueue(t *testing.T) {
	run := func(noOwed bool) (good, wrong int, c devices.Counts) {
		synctest.Test(t, func(t *testing.T) {
			l := sim.Line{Baud: 19200, Format: "8E1"}
			u := counting(1, 1000)
			u.SetQueue(true)
			bus := sim.NewBus(l, 7, u)
			bus.SetFaults(sim.Faults{BitError: 0.001, Lose: 0.005, Foreign: 0.01, Stray: 0.01, Cut: 0.003, Noise: 0.005, LateBy: 220 * time.Millisecond})
			cfg := testBus(l)
			cfg.Timeout = 150 * time.Millisecond
			dev := testDevice(1, 0)
			f := openSim(t, &Driver{noOwed: noOwed}, cfg, bus, dev)
			for i := range 10000 {
				u.SetAnswerTime(10*time.Millisecond, 2*time.Millisecond)
				if i%20 == 0 {
					u.SetAnswerTime(time.Duration(100+i%1900)*time.Millisecond, 0)
				}
				addr := 10 * (i % 50)
				raw, _, err := f.again(t.Context(), f.unitOf(dev), span{"holding", addr, addr + 5})
				if errors.Is(err, devices.ErrNoAnswer) || errors.Is(err, devices.ErrBadFrame) {
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				good++
				for k := range 5 {
					if int(binary.BigEndian.Uint16(raw[2*k:])) != 1000+addr+k {
						wrong++
						break
					}
				}
			}
			c = f.Counts()
		})
		return good, wrong, c
	}
	good, wrong, c := run(false)
	t.Logf("good %d wrong %d of %d requests, %d late, %d damaged, %d timeouts", good, wrong, c.Requests, c.Late, c.Bad, c.Timeouts)
	if wrong != 0 || good < 8000 || c.Late < 200 {
		t.Errorf("good %d wrong %d, %+v", good, wrong, c)
	}
	_, wrong, _ = run(true)
	t.Logf("%d wrong with the rule off", wrong)
	if wrong == 0 {
		t.Error("with the rule off nothing is wrong: the test tests nothing")
	}
}

// A unit that always answers after the timeout, and two registers in turn: each
// answer stands for a request that was given up.
func TestAnswersThatAreAlwaysLateAreNeverTakenForOthers(t *testing.T) {
	for _, late := range []time.Duration{160, 240, 290, 310, 440, 700} {
		t.Run(fmt.Sprint(late*time.Millisecond), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := sim.Line{Baud: 19200, Format: "8E1"}
				bus := sim.NewBus(l, 7, counting(1, 1000))
				bus.Unit(1).SetAnswerTime(late*time.Millisecond, 20*time.Millisecond)
				cfg := testBus(l)
				cfg.Timeout = 150 * time.Millisecond
				dev := testDevice(1, 0)
				f := openSim(t, &Driver{}, cfg, bus, dev)
				u := f.unitOf(dev)
				good := 0
				for i := range 200 {
					addr := 100 * (i % 2)
					raw, _, err := f.again(t.Context(), u, span{"holding", addr, addr + 10})
					if err != nil {
						continue
					}
					good++
					if got := int(binary.BigEndian.Uint16(raw)); got != 1000+addr {
						t.Fatalf("read %d: register %d gave %d", i, addr, got)
					}
				}
				t.Logf("%d good of 200, timeout now %v", good, u.timeout(cfg, f.timing))
			})
		})
	}
}

// The retry is answered by the late answer to the first try; its own answer is
// still to come, and must not be taken for that of the next register.
func TestAnswerOfARetryThatComesTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := sim.Line{Baud: 19200, Format: "8E1"}
		bus := sim.NewBus(l, 7, counting(1, 1000))
		bus.Unit(1).SetAnswerTime(220*time.Millisecond, 0)
		dev := testDevice(1, 0)
		f := openSim(t, &Driver{}, testBus(l), bus, dev)
		u := f.unitOf(dev)
		p := patience{timeout: 150 * time.Millisecond, window: 150 * time.Millisecond} // as learned from quicker days
		if _, err := f.read(t.Context(), u, span{"holding", 5, 6}, p); !errors.Is(err, devices.ErrNoAnswer) {
			t.Fatal(err)
		}
		if raw, err := f.read(t.Context(), u, span{"holding", 5, 6}, p); err != nil || binary.BigEndian.Uint16(raw) != 1005 {
			t.Fatalf("%x %v", raw, err)
		}
		p.timeout = time.Second
		if raw, err := f.read(t.Context(), u, span{"holding", 6, 7}, p); err != nil || binary.BigEndian.Uint16(raw) != 1006 {
			t.Errorf("register 6 gives %x, %v", raw, err)
		}
	})
}

func TestBytesSinceTheLastExchangeAreNotTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := sim.Line{Baud: 19200, Format: "8E1"}
		bus := sim.NewBus(l, 7, counting(1, 1000))
		dev := testDevice(1, 0)
		cfg := testBus(l)
		f := openSim(t, &Driver{}, cfg, bus, dev)
		u := f.unitOf(dev)
		p := patience{timeout: 100 * time.Millisecond, window: 100 * time.Millisecond}
		bus.SetFaults(sim.Faults{Late: 1, LateBy: 150 * time.Millisecond})
		if _, err := f.read(t.Context(), u, span{"holding", 5, 6}, p); !errors.Is(err, devices.ErrNoAnswer) {
			t.Fatal(err)
		}
		bus.SetFaults(sim.Faults{})
		if _, err := f.read(t.Context(), u, span{"holding", 5, 6}, p); err != nil { // the retry is answered, the first answer comes after it
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		bus.Unit(1).Set(sim.Holding, 5, 77)
		raw, err := f.read(t.Context(), u, span{"holding", 5, 6}, p)
		if err != nil || binary.BigEndian.Uint16(raw) != 77 {
			t.Errorf("a minute later: %x, %v", raw, err)
		}
		if u.counts.RTT50 < 0 || u.ta < 0 {
			t.Errorf("answers before their requests: %v", u.counts.RTT50)
		}
	})
}

func TestLineUsesTheWholeWire(t *testing.T) {
	for _, baud := range []int{1200, 9600, 19200, 38400, 115200} {
		for _, n := range []int{1, 10, 60, 125} {
			for _, ta := range []time.Duration{0, 5 * time.Millisecond, 30 * time.Millisecond} {
				t.Run(fmt.Sprintf("%d baud %d registers %v", baud, n, ta), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						l := sim.Line{Baud: baud, Format: "8E1", Chunk: 1}
						bus := sim.NewBus(l, 1, counting(1, 0))
						bus.Unit(1).SetAnswerTime(ta, 0)
						dev := testDevice(1, 0)
						cfg := testBus(l)
						cfg.Timeout = 2 * time.Second
						f := openSim(t, &Driver{}, cfg, bus, dev)
						u := f.unitOf(dev)
						var start time.Time
						const rounds = 30
						for i := range rounds + 1 {
							if i == 1 {
								start = time.Now()
							}
							if _, err := readWords(t, f, u, i, n); err != nil {
								t.Fatal(err)
							}
						}
						used := time.Since(start)
						limit := time.Duration(rounds) * f.timing.readTime("holding", n, ta)
						if ratio := float64(limit) / float64(used); ratio < .995 || ratio > 1.005 {
							t.Errorf("limit / used = %.4f (%v of %v)", ratio, limit, used)
						}
						if s := bus.Stats(); s.GapViolations != 0 || s.Collisions != 0 {
							t.Errorf("%d gap violations, %d collisions", s.GapViolations, s.Collisions)
						}
					})
				})
			}
		}
	}
}

func TestAnswerLength(t *testing.T) {
	tests := []struct {
		name   string
		req, f []byte
		want   int
	}{
		{"coils: 5 and the byte count", []byte{1, 1, 0, 0, 0, 10}, []byte{1, 1, 2}, 7},
		{"coils: another byte count is not ours", []byte{1, 1, 0, 0, 0, 10}, []byte{1, 1, 1}, -1},
		{"discrete inputs", []byte{1, 2, 0, 0, 0, 8}, []byte{1, 2, 1}, 6},
		{"holding registers", []byte{1, 3, 0, 0, 0, 2}, []byte{1, 3, 4}, 9},
		{"holding registers: another byte count is not ours", []byte{1, 3, 0, 0, 0, 2}, []byte{1, 3, 6}, -1},
		{"input registers", []byte{1, 4, 0, 0, 0, 125}, []byte{1, 4, 250}, 255},
		{"write coil repeats the request", []byte{1, 5, 0, 7, 0xFF, 0}, []byte{1, 5, 0, 7, 0xFF}, 8},
		{"write coil: another address is not ours", []byte{1, 5, 0, 7, 0xFF, 0}, []byte{1, 5, 0, 8}, -1},
		{"write register", []byte{1, 6, 0, 7, 1, 2}, []byte{1, 6, 0, 7, 1, 2}, 8},
		{"write register: another value is not ours", []byte{1, 6, 0, 7, 1, 2}, []byte{1, 6, 0, 7, 1, 3}, -1},
		{"write coils", []byte{1, 15, 0, 7, 0, 3, 1, 7}, []byte{1, 15, 0, 7, 0, 3}, 8},
		{"write registers", []byte{1, 16, 0, 7, 0, 1, 2, 0, 1}, []byte{1, 16, 0, 7, 0, 1}, 8},
		{"mask write", []byte{1, 22, 0, 7, 0, 1, 0, 2}, []byte{1, 22, 0, 7, 0, 1, 0, 2}, 10},
		{"mask write: another mask is not ours", []byte{1, 22, 0, 7, 0, 1, 0, 2}, []byte{1, 22, 0, 7, 0, 1, 0, 3}, -1},
		{"read and write registers", []byte{1, 23, 0, 0, 0, 3, 0, 0}, []byte{1, 23, 6}, 11},
		{"FIFO queue: a count of two bytes", []byte{1, 24, 0, 0}, []byte{1, 24, 0, 6}, 12},
		{"FIFO queue: more is needed", []byte{1, 24, 0, 0}, []byte{1, 24, 0}, 0},
		{"report server id", []byte{1, 0x11}, []byte{1, 0x11, 9}, 14},
		{"read file record", []byte{1, 0x14}, []byte{1, 0x14, 4}, 9},
		{"write file record", []byte{1, 0x15}, []byte{1, 0x15, 4}, 9},
		{"comm event log", []byte{1, 0x0C}, []byte{1, 0x0C, 8}, 13},
		{"identification walks the objects", []byte{1, 0x2B, 0x0E, 1, 0},
			[]byte{1, 0x2B, 0x0E, 1, 1, 0, 0, 2, 0, 3, 'a', 'b', 'c', 1, 1, 'x'}, 18},
		{"identification: more is needed", []byte{1, 0x2B, 0x0E, 1, 0}, []byte{1, 0x2B, 0x0E, 1, 1, 0, 0, 2, 0, 3, 'a'}, 0},
		{"an exception has 5 bytes", []byte{1, 3, 0, 0, 0, 2}, []byte{1, 0x83, 2}, 5},
		{"an exception of another function is not ours", []byte{1, 3, 0, 0, 0, 2}, []byte{1, 0x84, 2}, -1},
		{"another unit is not ours", []byte{1, 3, 0, 0, 0, 2}, []byte{2}, -1},
		{"nothing yet", []byte{1, 3, 0, 0, 0, 2}, nil, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := answerLen(tt.req, tt.f); got != tt.want {
				t.Errorf("answerLen = %d, want %d", got, tt.want)
			}
		})
	}
}
