package modbus

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/sim"
)

func tcpBus(addr string) *config.Bus {
	return &config.Bus{Name: "roof", TCP: addr, Protocol: "modbus-tcp", Timeout: 300 * time.Millisecond, Retries: 1, MaxRead: 125, MaxHole: 124}
}

// onTCP runs fn with a field over connections to a simulated server, in virtual time.
func onTCP(t *testing.T, cfg *config.Bus, faults sim.TCPFaults, fn func(t *testing.T, f *field, srv *sim.TCP, dials *atomic.Int32)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		srv := sim.NewTCP(5, counting(1, 1000), counting(2, 5000))
		srv.SetFaults(faults)
		var dials atomic.Int32
		f := &field{bus: cfg, log: slog.New(slog.DiscardHandler), timing: timingOf(cfg)}
		f.Devices(nil)
		tcp := newTCP(cfg.TCP, func(context.Context) (net.Conn, error) {
			dials.Add(1)
			near, far := net.Pipe()
			wg.Go(func() { srv.ServeConn(ctx, far) })
			if cfg.Protocol == "modbus-udp" {
				return &datagrams{Conn: near}, nil
			}
			return near, nil
		}, f.late)
		tcp.datagrams = cfg.Protocol == "modbus-udp"
		f.setLink(tcp, &tcpPackager{})
		fn(t, f, srv, &dials)
		f.Close()
		cancel()
		wg.Wait()
	})
}

func TestTCPNeverGivesAnotherRegistersValue(t *testing.T) {
	for name, faults := range map[string]sim.TCPFaults{
		"late":                {Late: .05, LateBy: 400 * time.Millisecond},
		"lost":                {Lose: .02},
		"overtaking":          {Swap: true},
		"wrong transactions":  {WrongID: .02},
		"wrong units":         {WrongUnit: .02},
		"in two pieces":       {Split: 1},
		"half frames":         {Half: .02},
		"resets":              {Reset: .02},
		"everything together": {Late: .02, LateBy: 350 * time.Millisecond, Lose: .01, WrongID: .01, WrongUnit: .01, Reset: .01},
	} {
		t.Run(name, func(t *testing.T) {
			onTCP(t, tcpBus("192.168.10.40:502"), faults, func(t *testing.T, f *field, _ *sim.TCP, dials *atomic.Int32) {
				u1, u2 := f.unitOf(testDevice(1)), f.unitOf(testDevice(2))
				good := 0
				for i := range 1500 {
					u, base := u1, 1000
					if i%2 == 1 {
						u, base = u2, 5000
					}
					addr := i % 300
					raw, err := f.read(t.Context(), u, span{"holding", addr, addr + 5}, patience{timeout: 300 * time.Millisecond})
					if errors.Is(err, devices.ErrNoAnswer) || errors.Is(err, devices.ErrBadFrame) {
						continue
					}
					if err != nil {
						t.Fatal(err)
					}
					good++
					if got := int(binary.BigEndian.Uint16(raw)); got != base+addr {
						t.Fatalf("read %d: register %d of unit %d gave %d", i, addr, u.dev.UnitID, got)
					}
				}
				t.Logf("%d good of 1500, %d connections, %+v", good, dials.Load(), f.Counts())
				if good < 1300 {
					t.Errorf("%d good of 1500", good)
				}
				if strings.HasPrefix(name, "late") && f.Counts().Late < 25 {
					t.Errorf("late answers are dropped, not waited for: %+v", f.Counts())
				}
				if name == "late" && dials.Load() != 1 {
					t.Errorf("%d connections: a late answer is no reason for a new one", dials.Load())
				}
			})
		})
	}
}

func TestTCPHeader(t *testing.T) {
	for name, answer := range map[string][]byte{
		"another protocol": {0, 1, 0, 1, 0, 5, 1, 3, 2, 0, 7},
		"too short":        {0, 1, 0, 0, 0, 2, 1, 3},
		"too long":         {0, 1, 0, 0, 0, 255, 1, 3, 2, 0, 7},
		"unknown id":       {0, 99, 0, 0, 0, 5, 1, 3, 2, 0, 7},
		"other byte count": {0, 1, 0, 0, 0, 5, 1, 3, 4, 0, 7},
		"other function":   {0, 1, 0, 0, 0, 5, 1, 4, 2, 0, 7},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				dials := 0
				tcp := newTCP("x:502", func(context.Context) (net.Conn, error) { dials++; return near, nil }, nil)
				var wg sync.WaitGroup
				wg.Go(func() {
					var b [64]byte
					far.Read(b[:])
					far.Write(answer)
				})
				_, err := tcp.exchange(t.Context(), []byte{9, 9, 0, 0, 0, 6, 1, 3, 0, 0, 0, 1}, patience{timeout: time.Second})
				if !errors.Is(err, devices.ErrBadFrame) {
					t.Errorf("%v", err)
				}
				if tcp.conn != nil {
					t.Error("a connection out of step stays open")
				}
				wg.Wait()
			})
		})
	}
}

func TestTCPThatIsSilentIsConnectedAnew(t *testing.T) {
	onTCP(t, tcpBus("192.168.10.40:502"), sim.TCPFaults{Lose: 1}, func(t *testing.T, f *field, srv *sim.TCP, dials *atomic.Int32) {
		u := f.unitOf(testDevice(1))
		for range 6 {
			if _, err := f.read(t.Context(), u, span{"holding", 0, 1}, patience{timeout: 100 * time.Millisecond}); !errors.Is(err, devices.ErrNoAnswer) {
				t.Fatal(err)
			}
		}
		if n := dials.Load(); n != 2 {
			t.Errorf("%d connections for 6 timeouts, want 2", n)
		}
	})
}

func TestTCPPeerThatServesOnlyOneClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tcp := newTCP("192.168.10.40:502", func(context.Context) (net.Conn, error) {
			near, far := net.Pipe()
			far.Close()
			return near, nil
		}, nil)
		_, err := tcp.exchange(t.Context(), []byte{9, 9, 0, 0, 0, 6, 1, 3, 0, 0, 0, 1}, patience{timeout: time.Second})
		tr, ok := errors.AsType[devices.Trouble](err)
		if !ok || tr.Word() != "tcp-limit" || tr.Text() != "192.168.10.40 closes the connection at once: many devices serve only one client. Is another program connected?" {
			t.Errorf("%v", err)
		}
	})
}

func TestTCPWriteWhoseConnectionDiesIsNotRepeated(t *testing.T) {
	onTCP(t, tcpBus("192.168.10.40:502"), sim.TCPFaults{}, func(t *testing.T, f *field, srv *sim.TCP, dials *atomic.Int32) {
		dev := testDevice(1, 7)
		if _, err := f.Get(t.Context(), dev, &dev.Points[0]); err != nil {
			t.Fatal(err)
		}
		srv.SetFaults(sim.TCPFaults{Reset: 1})
		err := f.Set(t.Context(), dev, []devices.Item{{Point: &dev.Points[0], Raw: []byte{0, 5}}})
		if !errors.Is(err, devices.ErrNoAnswer) {
			t.Errorf("%v", err)
		}
		if n := dials.Load(); n != 1 {
			t.Errorf("%d connections: the write went out twice", n)
		}
	})
}

func TestUnreachable(t *testing.T) {
	const addr = "127.0.0.1:1" // a port that was just closed somebody else may have by now
	var d Driver
	for _, protocol := range []string{"modbus-tcp", "modbus-rtu"} {
		cfg := tcpBus(addr)
		cfg.Protocol = protocol
		_, err := d.Open(t.Context(), devices.Wire{Bus: cfg, Log: slog.New(slog.DiscardHandler)})
		tr, ok := errors.AsType[devices.Trouble](err)
		if !ok || tr.Word() != "unreachable" || tr.Text() != addr+" does not answer (connection refused): is Modbus TCP switched on there?" {
			t.Errorf("%s: %v", protocol, err)
		}
	}
	for err, want := range map[error]string{
		syscall.EHOSTUNREACH:                         "192.168.10.40:502 does not answer (no route): is Modbus TCP switched on there?",
		syscall.ETIMEDOUT:                            "192.168.10.40:502 does not answer (timed out): is Modbus TCP switched on there?",
		&net.DNSError{Name: "sun", IsNotFound: true}: "192.168.10.40:502 does not answer (the name sun is not known): is Modbus TCP switched on there?",
	} {
		if got := unreachable("192.168.10.40:502", &net.OpError{Op: "dial", Err: err}).Text(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// Over real sockets: Modbus TCP and RTU over TCP.
func TestTCPServer(t *testing.T) {
	for _, protocol := range []string{"modbus-tcp", "modbus-rtu"} {
		t.Run(protocol, func(t *testing.T) {
			listen := sim.ListenTCP
			if protocol == "modbus-rtu" {
				listen = sim.ListenRTU
			}
			srv, err := listen("127.0.0.1:0", 1, counting(1, 1000))
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() { srv.Run(ctx) })
			defer wg.Wait()
			defer cancel()
			cfg := tcpBus(srv.Addr())
			cfg.Protocol, cfg.Timeout = protocol, 5*time.Second
			dev := testDevice(1, 3, 4, 50)
			var d Driver
			f, err := d.Open(ctx, devices.Wire{Bus: cfg, Devices: []*config.Device{dev}, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			a, err := f.Poll(ctx, groupOf(dev), noPause)
			if err != nil || texts(a) != "holding-3=1003\nholding-4=1004\nholding-50=1050" {
				t.Errorf("%v %s", err, texts(a))
			}
			cancel()
			wg.Wait()
			_, err = f.Poll(t.Context(), groupOf(dev), noPause)
			if tr, ok := errors.AsType[devices.Trouble](err); !ok || tr.Word() != "unreachable" {
				t.Errorf("after the server has gone: %v", err)
			}
		})
	}
}

// FuzzTCP: whatever a peer sends, nothing panics and the exchange ends.
func FuzzTCP(f *testing.F) {
	f.Add([]byte{0, 1, 0, 0, 0, 5, 1, 3, 2, 0, 7})
	f.Add([]byte{0, 1, 0, 0, 0, 3, 1, 0x83, 2})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		synctest.Test(t, func(t *testing.T) {
			near, far := net.Pipe()
			first := true
			tcp := newTCP("x:502", func(context.Context) (net.Conn, error) {
				if !first {
					return nil, errors.New("gone")
				}
				first = false
				return near, nil
			}, nil)
			var wg sync.WaitGroup
			wg.Go(func() {
				var b [64]byte
				far.Read(b[:])
				far.Write(p)
				far.Close()
			})
			ans, err := tcp.exchange(t.Context(), []byte{0, 1, 0, 0, 0, 6, 1, 3, 0, 0, 0, 1}, patience{timeout: time.Second})
			if err == nil && (ans[6] != 1 || len(ans) != 11 && ans[7]&0x80 == 0) {
				t.Fatalf("% x is no answer", ans)
			}
			tcp.Close()
			wg.Wait()
		})
	})
}
