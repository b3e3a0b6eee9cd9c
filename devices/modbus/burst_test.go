package modbus

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/sim"
)

// everything is what goes wrong on a bad network, all at once.
var everything = sim.TCPFaults{Late: .02, LateBy: 350 * time.Millisecond, Lose: .01, WrongID: .01, WrongUnit: .01, Reset: .005, Half: .005, Split: .3}

// far is a device whose points need a request each.
func far(unit uint8) *config.Device {
	return testDevice(unit, 0, 400, 800, 1200, 1600, 2000, 2400, 2800)
}

// rightValues counts the readings of a poll, and those that are another
// register's; registers hold their address plus base.
func rightValues(dev *config.Device, a devices.Answer, base int) (good, wrong int) {
	for _, r := range a.Values {
		good++
		want, _ := strconv.Atoi(strings.TrimPrefix(r.Point, "holding-"))
		if r.Value.String() != strconv.Itoa(want+base) {
			wrong++
		}
	}
	return good, wrong
}

func TestTCPHostileNetworkNeverGivesAnotherRegistersValue(t *testing.T) {
	for _, tt := range []struct {
		name     string
		protocol string
		pipeline int
		noIDs    bool
	}{
		{"one request at a time", "modbus-tcp", 1, false},
		{"four in flight", "modbus-tcp", 4, false},
		{"sixteen in flight", "modbus-tcp", 16, false},
		{"datagrams", "modbus-udp", 1, false},
		{"datagrams, four in flight", "modbus-udp", 4, false},
		{"without transaction ids values are wrong", "modbus-tcp", 1, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := tcpBus("192.168.10.40:502")
			cfg.Protocol, cfg.Pipeline = tt.protocol, tt.pipeline
			faults := everything
			if tt.protocol == "modbus-udp" { // a datagram comes whole or not
				faults.Half, faults.Split, faults.Reset = 0, 0, 0
			}
			if tt.noIDs { // what is left when only time is against us
				faults = sim.TCPFaults{Late: .02, LateBy: 350 * time.Millisecond}
			}
			onTCP(t, cfg, faults, func(t *testing.T, f *field, srv *sim.TCP, dials *atomic.Int32) {
				f.link.(*TCP).noIDs = tt.noIDs
				for id := range byte(2) {
					srv.Unit(id+1).SetAnswerTime(time.Millisecond, 0) // a pipe has no room: answers must not wait for requests
				}
				dev1, dev2 := far(1), far(2)
				g1, g2 := groupOf(dev1), groupOf(dev2)
				good, wrong, polls := 0, 0, 20000/len(dev1.Points)
				for i := range polls {
					dev, g, base := dev1, g1, 1000
					if i%2 == 1 {
						dev, g, base = dev2, g2, 5000
					}
					a, err := f.Poll(t.Context(), g, noPause)
					if err != nil {
						t.Fatal(err)
					}
					right, bad := rightValues(dev, a, base)
					good, wrong = good+right, wrong+bad
				}
				c := f.Counts()
				t.Logf("%d good of %d, WRONG %d; %d late, %d damaged, %d timeouts, %d connections", good, polls*len(dev1.Points), wrong, c.Late, c.Bad, c.Timeouts, dials.Load())
				switch {
				case tt.noIDs && wrong == 0:
					t.Error("nothing is wrong without ids: the test tests nothing")
				case tt.noIDs:
				case wrong != 0:
					t.Errorf("%d values of another register", wrong)
				case good < 17000 || c.Late == 0:
					t.Errorf("good %d, %+v", good, c)
				}
			})
		})
	}
}

func TestRequestsInFlight(t *testing.T) {
	round := func(pipeline int, think time.Duration) (took time.Duration) {
		cfg := tcpBus("192.168.10.40:502")
		cfg.Pipeline = pipeline
		onTCP(t, cfg, sim.TCPFaults{}, func(t *testing.T, f *field, srv *sim.TCP, _ *atomic.Int32) {
			dev := far(1)
			g := groupOf(dev)
			begin := time.Now()
			for range 10 {
				srv.SetFaults(sim.TCPFaults{Late: 1, LateBy: think}) // the way there and back
				if a, err := f.Poll(t.Context(), g, noPause); err != nil || len(a.Values) != 8 {
					t.Fatalf("%v %s", err, texts(a))
				}
			}
			took = time.Since(begin)
			if c := f.unitOf(dev).counts; c.Requests != 80 || c.Good != 80 {
				t.Errorf("%+v", c)
			}
		})
		return took
	}
	one, four := round(1, 50*time.Millisecond), round(4, 50*time.Millisecond)
	t.Logf("8 requests over a way of 50 ms: %v one by one, %v with four in flight, x%.2f", one/10, four/10, float64(one)/float64(four))
	if ratio := float64(one) / float64(four); ratio < 3.9 || ratio > 4.1 {
		t.Errorf("four in flight are %.2f times as fast", ratio)
	}
}

func TestFailuresInFlight(t *testing.T) {
	cfg := tcpBus("192.168.10.40:502")
	cfg.Pipeline = 4
	t.Run("a refused register costs only its point", func(t *testing.T) {
		onTCP(t, cfg, sim.TCPFaults{}, func(t *testing.T, f *field, srv *sim.TCP, _ *atomic.Int32) {
			srv.Unit(1).Refuse(sim.Holding, 800, 800, 2)
			dev := far(1)
			a, err := f.Poll(t.Context(), groupOf(dev), noPause)
			if err != nil || len(a.Values) != 7 || len(a.Errors) != 1 || a.Errors[0].Code != "unsupported" {
				t.Errorf("%v %s", err, texts(a))
			}
		})
	})
	t.Run("a silent unit costs two time-outs, not one for each request", func(t *testing.T) {
		onTCP(t, cfg, sim.TCPFaults{Lose: 1}, func(t *testing.T, f *field, _ *sim.TCP, _ *atomic.Int32) {
			begin := time.Now()
			a, err := f.Poll(t.Context(), groupOf(far(1)), noPause)
			if err != nil || a.Heard || !errors.Is(a.Err, devices.ErrNoAnswer) || len(a.Errors) != 8 || a.Tries != 2 {
				t.Errorf("%v %+v", err, a)
			}
			if d := time.Since(begin); d > 700*time.Millisecond {
				t.Errorf("after %v", d)
			}
		})
	})
	t.Run("a dead connection is a trouble of the bus", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			tcp := newTCP("192.168.10.40:502", func(context.Context) (net.Conn, error) {
				near, far := net.Pipe()
				far.Close()
				return near, nil
			}, nil)
			f := &field{bus: cfg, log: slog.New(slog.DiscardHandler), timing: timingOf(cfg)}
			f.Devices(nil)
			f.setLink(tcp, &tcpPackager{})
			_, err := f.Poll(t.Context(), groupOf(far(1)), noPause)
			if tr, ok := errors.AsType[devices.Trouble](err); !ok || tr.Word() != "tcp-limit" {
				t.Errorf("%v", err)
			}
		})
	})
}

// What comes while four requests are in flight, of which the third is answered.
func TestWhoseAnswerInFlight(t *testing.T) {
	adu := func(id uint16, pdu ...byte) []byte {
		return append([]byte{byte(id >> 8), byte(id), 0, 0, 0, byte(len(pdu))}, pdu...)
	}
	for _, tt := range []struct {
		name   string
		ans    []byte
		flight int // 0: to none of them
		bad    bool
		counts devices.Counts
	}{
		{"the answer to the oldest", adu(9, 1, 3, 2, 0, 7), 1, false, devices.Counts{Good: 1}},
		{"the answer to the newest", adu(12, 1, 3, 2, 0, 7), 4, false, devices.Counts{Good: 1}},
		{"an exception", adu(10, 1, 0x83, 2), 2, false, devices.Counts{Good: 1}},
		{"the answer that was there before", adu(11, 1, 3, 2, 0, 7), 0, false, devices.Counts{Late: 1}},
		{"an older one of this connection", adu(8, 1, 3, 2, 0, 7), 0, false, devices.Counts{Late: 1}},
		{"one from before this connection", adu(7, 1, 3, 2, 0, 7), 0, true, devices.Counts{}},
		{"one that was not asked yet", adu(13, 1, 3, 2, 0, 7), 0, true, devices.Counts{}},
		{"another unit", adu(10, 2, 3, 2, 0, 7), 0, false, devices.Counts{Foreign: 1}},
		{"another byte count", adu(10, 1, 3, 4, 0, 7, 0, 8), 0, true, devices.Counts{}},
		{"another function", adu(10, 1, 4, 2, 0, 7), 0, true, devices.Counts{}},
		{"bytes behind it", adu(10, 1, 3, 2, 0, 7, 9), 0, true, devices.Counts{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			link := newTCP("x:502", nil, nil)
			flights := make([]flight, 4)
			for i := range flights {
				f := &flights[i]
				f.id = uint16(9 + i)
				f.sent = adu(f.id, 1, 3, 0, byte(i), 0, 1)
			}
			flights[2].done = true
			link.asked = 5 // 8 to 12
			f, err := link.flightOf(tt.ans, flights)
			if tt.bad != errors.Is(err, devices.ErrBadFrame) || !tt.bad && err != nil {
				t.Errorf("error %v", err)
			}
			for i := range flights {
				if at := i + 1; (f == &flights[i]) != (at == tt.flight) || flights[i].done != (at == tt.flight || at == 3) {
					t.Errorf("flight %d: taken %v, done %v", at, f == &flights[i], flights[i].done)
				}
			}
			if link.counts != tt.counts {
				t.Errorf("counted %+v, want %+v", link.counts, tt.counts)
			}
			if f != nil && string(f.ans) != string(tt.ans) {
				t.Errorf("% x", f.ans)
			}
		})
	}
	t.Run("another unit twice in a row ends the connection", func(t *testing.T) {
		link := newTCP("x:502", nil, nil)
		flights := []flight{{id: 1, sent: adu(1, 1, 3, 0, 0, 0, 1)}}
		link.asked = 1
		if _, err := link.flightOf(adu(1, 2, 3, 2, 0, 7), flights); err != nil {
			t.Error(err)
		}
		if _, err := link.flightOf(adu(1, 2, 3, 2, 0, 7), flights); !errors.Is(err, devices.ErrBadFrame) {
			t.Error(err)
		}
	})
}

// A device that says the same answer for ever does not hold the bus.
func TestOneAnswerForEverInFlight(t *testing.T) {
	cfg := tcpBus("192.168.10.40:502")
	cfg.Pipeline, cfg.Retries = 4, 0
	synctest.Test(t, func(t *testing.T) {
		var wg sync.WaitGroup
		tcp := newTCP(cfg.TCP, func(context.Context) (net.Conn, error) {
			near, far := net.Pipe()
			wg.Go(func() {
				var ask [12]byte
				if _, err := io.ReadFull(far, ask[:]); err != nil {
					return
				}
				wg.Go(func() { io.Copy(io.Discard, far) })
				ans := append(append([]byte(nil), ask[:5]...), 5, ask[6], ask[7], 2, 0, 7)
				for range 1000 { // else the test ends when its time is over
					if _, err := far.Write(ans); err != nil {
						return
					}
					time.Sleep(cfg.Timeout / 2)
				}
			})
			return near, nil
		}, nil)
		f := &field{bus: cfg, log: slog.New(slog.DiscardHandler), timing: timingOf(cfg)}
		f.Devices(nil)
		f.setLink(tcp, &tcpPackager{})
		begin := time.Now()
		a, err := f.Poll(t.Context(), groupOf(testDevice(1, 0, 400, 800, 1200)), noPause)
		if took := time.Since(begin); err != nil || len(a.Values) != 1 || took > 2*cfg.Timeout {
			t.Errorf("%v after %v: %s", err, took, texts(a))
		}
		f.Close()
		wg.Wait()
	})
}

// Over a real socket: a server that answers each datagram twice.
func TestUDP(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := counting(1, 1000)
	var wg sync.WaitGroup
	wg.Go(func() {
		var b [300]byte
		for {
			n, from, err := conn.ReadFrom(b[:])
			if err != nil {
				return
			}
			out := append([]byte(nil), b[:7]...)
			out = append(out, u.Serve(b[7:n], time.Now())...)
			binary.BigEndian.PutUint16(out[4:], uint16(len(out)-6))
			conn.WriteTo(out, from)
			conn.WriteTo(out, from)
		}
	})
	cfg := tcpBus(conn.LocalAddr().String())
	cfg.Protocol, cfg.Timeout = "modbus-udp", 5*time.Second
	dev := testDevice(1, 3, 400, 800)
	var d Driver
	opened, err := d.Open(t.Context(), devices.Wire{Bus: cfg, Devices: []*config.Device{dev}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	for range 50 {
		if a, err := opened.Poll(t.Context(), groupOf(dev), noPause); err != nil || texts(a) != "holding-3=1003\nholding-400=1400\nholding-800=1800" {
			t.Fatalf("%v %s", err, texts(a))
		}
	}
	if c := opened.Counts(); c.Late == 0 {
		t.Errorf("the second answers: %+v", c)
	}
	if err := opened.Set(t.Context(), dev, []devices.Item{{Point: &dev.Points[0], Raw: []byte{0, 1}}}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a write over UDP: %v", err)
	}
	conn.Close()
	wg.Wait()
	_, err = opened.Poll(t.Context(), groupOf(dev), noPause)
	if tr, ok := errors.AsType[devices.Trouble](err); !ok || tr.Word() != "unreachable" {
		t.Errorf("after the server has gone: %v", err)
	}
}
