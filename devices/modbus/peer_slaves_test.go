package modbus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"busgate/config"
	"busgate/devices"
)

// serialBus is a bus at 19200 8N1 on a terminal.
func serialBus(path string, timeout time.Duration) *config.Bus {
	return &config.Bus{Name: "meters", Serial: path, Protocol: "modbus-rtu", Baud: 19200, DataBits: 8, Parity: 'N', StopBits: 1,
		Timeout: timeout, Retries: 1, MaxRead: 125, MaxHole: 124, Exclusive: true, RS485: "off"}
}

// answering opens a bus as soon as unit 1 answers on it.
func answering(t *testing.T, cfg *config.Bus, dev *config.Device) *field {
	t.Helper()
	var d Driver
	var f devices.Field
	tap := &devices.Tap{}
	t.Cleanup(func() {
		if past, _, _ := tap.Watch(); t.Failed() {
			for _, f := range past {
				t.Logf("%s out=%v %s rtt %v: % x", f.At.Format("05.000"), f.Out, f.Mark, f.RTT, f.Data)
			}
		}
	})
	until(t, func() bool {
		opened, err := d.Open(t.Context(), devices.Wire{Bus: cfg, Devices: []*config.Device{dev}, Log: slog.New(slog.DiscardHandler), Tap: tap})
		if err != nil {
			return false
		}
		if f = opened; f.Probe(t.Context(), dev) == nil {
			return true
		}
		f.Close()
		return false
	})
	t.Cleanup(func() { f.Close() })
	return f.(*field)
}

// startPeer starts the slave of libmodbus behind a pair of terminals, or on a port.
func startPeer(t *testing.T, rtu bool) *config.Bus {
	t.Helper()
	need(t, "gcc", "pkg-config", "socat")
	bin := libmodbusServer(t)
	if rtu {
		ours, theirs := ptys(t)
		run(t, bin, "rtu", theirs)
		return serialBus(ours, 400*time.Millisecond)
	}
	port := freePort(t)
	run(t, bin, "tcp", port)
	cfg := tcpBus("127.0.0.1:" + port)
	cfg.Timeout = 400 * time.Millisecond
	return cfg
}

// The slave of libmodbus with exceptions, slow bytes, late answers and wrong ids.
func TestPeerSlaveThatMisbehaves(t *testing.T) {
	for _, rtu := range []bool{true, false} {
		t.Run(map[bool]string{true: "RTU", false: "TCP"}[rtu], func(t *testing.T) {
			cfg := startPeer(t, rtu)
			dev := testDevice(1, 0)
			f := answering(t, cfg, dev)
			get := func(addr uint16) (int, error) {
				p := point("holding", addr, "uint16")
				raw, err := f.Get(t.Context(), dev, &p)
				if err != nil {
					return 0, err
				}
				return int(raw[0])<<8 | int(raw[1]), nil
			}
			good := func(after string) {
				t.Helper()
				for _, a := range []uint16{7, 300, 8} {
					if v, err := get(a); err != nil || v != int(a)+100 {
						t.Errorf("after %s: holding %d is %d, %v", after, a, v, err)
					}
				}
			}
			for code := 1; code <= 11; code++ {
				_, err := get(uint16(416 + code))
				if x, ok := errors.AsType[*devices.Exception](err); !ok || int(x.Code) != code {
					t.Errorf("exception %d: %v", code, err)
				}
			}
			good("exceptions")
			if _, err := get(400); err == nil || err.Error() != "exception 6, busy" {
				t.Errorf("busy: %v", err)
			}
			if _, err := get(401); !errors.Is(err, devices.ErrNoAnswer) && !errors.Is(err, devices.ErrBadFrame) {
				t.Errorf("an answer of another unit: %v", err)
			}
			good("a wrong unit")
			if rtu {
				if v, err := get(403); errors.Is(err, devices.ErrBadFrame) || errors.Is(err, devices.ErrNoAnswer) { // this machine is so busy that 5 ms became 60
					t.Logf("slow bytes: %v", err)
					<-time.After(2 * time.Second)
				} else if err != nil || v != 7 {
					t.Errorf("slow bytes: %d, %v", v, err)
				}
				good("slow bytes")
			}
			for range 5 { // 700 ms against a timeout of 400 ms: no answer, or the right one
				if v, err := get(402); err == nil && v != 502 || err != nil && !errors.Is(err, devices.ErrNoAnswer) {
					t.Errorf("a late answer: %d, %v", v, err)
				}
				good("a late answer")
			}
			if c := f.Counts(); c.Late == 0 || rtu && c.Foreign == 0 {
				t.Errorf("%+v", c)
			}
		})
	}
}

// Every read at its largest, and one more than that.
func TestPeerLargestReads(t *testing.T) {
	for _, rtu := range []bool{true, false} {
		t.Run(map[bool]string{true: "RTU", false: "TCP"}[rtu], func(t *testing.T) {
			cfg := startPeer(t, rtu)
			cfg.Timeout = 2 * time.Second
			dev := testDevice(1, 0)
			f := answering(t, cfg, dev)
			u := f.unitOf(dev)
			for _, c := range []struct {
				table string
				n     int
			}{{"holding", 125}, {"input", 125}, {"coil", 500}, {"discrete", 500}, {"holding", 1}, {"coil", 1}} {
				raw, _, err := f.again(t.Context(), u, span{c.table, 0, c.n})
				if err != nil {
					t.Errorf("%s %d: %v", c.table, c.n, err)
					continue
				}
				for i := range c.n {
					if isBits(c.table) {
						if got := raw[i/8]>>(i%8)&1 == 1; got != (i%3 == 0) {
							t.Fatalf("%s %d is %v", c.table, i, got)
						}
					} else if got := int(raw[2*i])<<8 | int(raw[2*i+1]); got != i+100 {
						t.Fatalf("%s %d is %d", c.table, i, got)
					}
				}
			}
			_, _, err := f.again(t.Context(), u, span{"holding", 450, 550})
			if x, ok := errors.AsType[*devices.Exception](err); !ok || x.Code != 2 {
				t.Errorf("beyond the map: %v", err)
			}
		})
	}
}

// What was written with every function is there in the eyes of another master.
func TestPeerMbpollSeesWhatWasWritten(t *testing.T) {
	need(t, "mbpoll")
	cfg := startPeer(t, false)
	dev := testDevice(1, 0)
	f := answering(t, cfg, dev)
	_, port, _ := strings.Cut(cfg.TCP, ":")
	for _, c := range []struct {
		p    config.Point
		many bool
		text string
		eyes []string // of mbpoll
		want string
	}{
		{point("coil", 10, "bool"), false, "true", []string{"-t", "0", "-r", "10"}, "[10]: \t1"},
		{point("coil", 12, "bool"), true, "false", []string{"-t", "0", "-r", "12"}, "[12]: \t0"},
		{point("holding", 20, "uint16"), false, "4711", []string{"-t", "4", "-r", "20"}, "[20]: \t4711"},
		{point("holding", 21, "uint16"), true, "815", []string{"-t", "4", "-r", "21"}, "[21]: \t815"},
		{point("holding", 30, "float32"), false, "230.5", []string{"-t", "4:float", "-B", "-r", "30"}, "[30]: \t230.5"},
		{point("holding", 32, "int32"), false, "-70000", []string{"-t", "4:int", "-B", "-r", "32"}, "[32]: \t-70000"},
	} {
		raw, mask, err := devices.Encode(&c.p, c.text, 0)
		if err != nil {
			t.Fatal(err)
		}
		target := *dev
		if c.many {
			target.WriteFC = 16
		}
		if err := f.Set(t.Context(), &target, []devices.Item{{Point: &c.p, Raw: raw, Mask: mask}}); err != nil {
			t.Errorf("%s = %s: %v", c.p.Name, c.text, err)
			continue
		}
		f.Close() // the server serves one
		out, err := exec.Command("mbpoll", append(append([]string{"-m", "tcp", "-p", port, "-a", "1", "-0", "-1", "-c", "1"}, c.eyes...), "127.0.0.1")...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%s = %s: %v\n%s", c.p.Name, c.text, err, out)
		}
		f = answering(t, cfg, dev)
	}
}

// fleetOn polls unit 1 of a bus each 100 ms; rounds gives the last value of each.
func fleetOn(t *testing.T, cfg *config.Bus) (rounds func() []int, health func() string) {
	t.Helper()
	dev := testDevice(1, 7, 300)
	dev.Interval, dev.Backoff = 100*time.Millisecond, time.Second
	sink := &peerSink{}
	f, err := devices.New(&config.Config{Buses: map[string]*config.Bus{"meters": cfg}, Devices: map[string]*config.Device{"grid": dev}}, sink,
		devices.Options{Drivers: map[string]devices.Driver{"modbus-rtu": &Driver{}, "modbus-tcp": &Driver{}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); f.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return sink.values, sink.state
}

// A server that is killed in mid-poll and started again, over TCP and RTU.
func TestPeerServerThatRestarts(t *testing.T) {
	need(t, "gcc", "pkg-config", "socat")
	bin := libmodbusServer(t)
	for _, rtu := range []bool{true, false} {
		t.Run(map[bool]string{true: "RTU", false: "TCP"}[rtu], func(t *testing.T) {
			var cfg *config.Bus
			args := []string{"tcp", freePort(t)}
			if rtu {
				ours, theirs := ptys(t)
				cfg, args = serialBus(ours, 300*time.Millisecond), []string{"rtu", theirs}
			} else {
				cfg = tcpBus("127.0.0.1:" + args[1])
				cfg.Timeout = 300 * time.Millisecond
			}
			rounds, health := fleetOn(t, cfg)
			for turn := range 3 {
				server := exec.Command(bin, args...)
				if err := server.Start(); err != nil {
					t.Fatal(err)
				}
				had := len(rounds())
				until(t, func() bool { return health() == "online" && len(rounds()) >= had+10 })
				server.Process.Kill()
				server.Wait()
				until(t, func() bool { return health() != "online" })
				for i, v := range rounds() {
					if v != 107400 {
						t.Fatalf("turn %d: round %d holds %d", turn, i, v)
					}
				}
			}
		})
	}
}

// The terminal goes and comes back under the same name, as an adapter does.
func TestPeerTerminalThatIsUnplugged(t *testing.T) {
	need(t, "gcc", "pkg-config", "socat")
	bin := libmodbusServer(t)
	dir := t.TempDir()
	ours, theirs := filepath.Join(dir, "usb-FTDI-port0"), filepath.Join(dir, "far")
	rounds, health := fleetOn(t, serialBus(ours, 300*time.Millisecond))
	for turn := range 3 {
		wire := exec.Command("socat", "pty,raw,echo=0,link="+ours, "pty,raw,echo=0,link="+theirs)
		if err := wire.Start(); err != nil {
			t.Fatal(err)
		}
		until(t, func() bool { return exec.Command("test", "-e", theirs).Run() == nil })
		server := exec.Command(bin, "rtu", theirs)
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		had := len(rounds())
		until(t, func() bool { return health() == "online" && len(rounds()) >= had+10 })
		wire.Process.Kill()
		wire.Wait()
		until(t, func() bool { return health() == "offline port-gone" })
		server.Process.Kill()
		server.Wait()
		for i, v := range rounds() {
			if v != 107400 {
				t.Fatalf("turn %d: round %d holds %d", turn, i, v)
			}
		}
	}
}

// peerSink keeps what the rounds held: holding 7 * 1000 + holding 300.
type peerSink struct {
	mu  sync.Mutex
	all []int
	now string // online, or offline and why
}

func (s *peerSink) Take(_ context.Context, r devices.Round) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := 0
	for _, x := range r.Values {
		v = 1000*v + int(x.Value.Float())
	}
	s.all = append(s.all, v)
	return nil
}

func (s *peerSink) Health(_ context.Context, h devices.Health) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = "online"
	if !h.Online {
		s.now = fmt.Sprint("offline ", h.Report.Err)
	}
}

func (s *peerSink) values() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]int(nil), s.all...)
}

func (s *peerSink) state() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}
