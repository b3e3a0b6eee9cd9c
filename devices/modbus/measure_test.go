package modbus

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	gb "github.com/goburrow/modbus"
	"golang.org/x/sys/unix"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/sim"
)

// TestMeasureLine compares masters on one simulated bus behind a pseudo
// terminal: the share of the wire's limit that each reaches when it asks without
// a pause. The raw loop is the control: what the terminal, the simulated bus and
// this machine let through at best, for it spins where others wait. It wants a
// quiet machine and takes under three minutes:
//
//	BUSGATE_MEASURE=1 go test -v -run MeasureLine ./devices/modbus
func TestMeasureLine(t *testing.T) {
	if os.Getenv("BUSGATE_MEASURE") == "" {
		t.Skip("wants a quiet machine: BUSGATE_MEASURE=1 go test -v -run MeasureLine ./devices/modbus")
	}
	const registers = 10
	masters := []struct {
		name  string
		start func(t *testing.T, path string, baud int) (stop func())
	}{
		{"raw loop", rawMaster},
		{"busgate", ourMaster},
		{"pymodbus", func(t *testing.T, path string, baud int) func() {
			return program(t, "/usr/bin/python3", "testdata/master.py", path, strconv.Itoa(baud), strconv.Itoa(registers))
		}},
		{"mbpoll", func(t *testing.T, path string, baud int) func() {
			return program(t, "mbpoll", "-m", "rtu", "-a", "1", "-b", strconv.Itoa(baud), "-P", "none", "-t", "4", "-0", "-r", "0", "-c", strconv.Itoa(registers), "-l", "11", "-o", "1", path)
		}},
	}
	t.Logf("share of the limit, best (worst) of 5; 10 registers, no turnaround; %s", loadAverage())
	for _, baud := range []int{9600, 19200, 115200} {
		line, control := "", 0.0
		for _, m := range masters {
			best, worst := 0.0, 2.0
			for range 5 {
				share := onBus(t, baud, registers, m.start)
				best, worst = max(best, share), min(worst, share)
			}
			line += fmt.Sprintf("   %s %.3f (%.3f)", m.name, best, worst)
			least := map[bool]float64{true: .95, false: .90}[baud <= 19200]
			switch {
			case m.name == "raw loop":
				control = best
			case m.name == "busgate" && best < least && control < least/.98:
				t.Logf("%d baud: %.3f of the limit, wanted are %.2f, but the control has no more than %.3f: this machine is not quiet", baud, best, least, control)
			case m.name == "busgate" && best < least:
				t.Errorf("%d baud: %.3f of the limit, want %.2f; the control has %.3f", baud, best, least, control)
			}
		}
		t.Logf("%6d baud%s", baud, line)
	}
}

// loadAverage says how busy the machine is.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "load unknown"
	}
	return "load " + strings.Join(strings.Fields(string(b))[:3], " ")
}

// rawMaster asks with nothing but read(2), write(2) and poll(2), and spins through
// the silence between two frames.
func rawMaster(t *testing.T, path string, baud int) func() {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		req, buf := seal([]byte{1, 3, 0, 0, 0, 10}), make([]byte, 64)
		gap := sim.Line{Baud: baud, Format: "8N1"}.Silence()
		for !stop.Load() {
			unix.Write(fd, req)
			for have := 0; have < 25; {
				if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000); n <= 0 && stop.Load() {
					return
				}
				if n, err := unix.Read(fd, buf); err == nil {
					have += n
				}
			}
			for end := time.Now().Add(gap); time.Now().Before(end); {
			}
		}
	}()
	return func() { stop.Store(true); <-done; unix.Close(fd) }
}

// onBus lets a master ask a bus for two seconds and says how much of the limit it reached.
func onBus(t *testing.T, baud, registers int, start func(*testing.T, string, int) func()) float64 {
	t.Helper()
	l := sim.Line{Baud: baud, Format: "8N1"}
	u := sim.NewUnit(1)
	u.SetFill(func(_ sim.Table, a uint16) (uint16, bool) { return a, true })
	bus := sim.NewBus(l, 1, u)
	pty, err := sim.NewPty(bus, filepath.Join(t.TempDir(), "port"))
	if err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); pty.Run(ctx) }()
	defer func() { cancel(); <-done }()
	stop := start(t, pty.Path(), baud)
	defer stop()
	next := func(n uint64) (uint64, time.Time) { // the moment of the n-th answer or a later one
		for {
			if s := bus.Stats(); s.Answers >= n {
				return s.Answers, time.Now()
			}
			time.Sleep(100 * time.Microsecond)
		}
	}
	n, begin := next(5)
	m, end := next(n + uint64(2*time.Second/limitOf(l, registers)))
	return float64(m-n) * limitOf(l, registers).Seconds() / end.Sub(begin).Seconds()
}

// limitOf is the shortest time of one exchange: 8 bytes, t3.5, 5+2n bytes, t3.5.
func limitOf(l sim.Line, n int) time.Duration {
	return time.Duration(13+2*n)*l.Char() + 2*l.Silence()
}

// ourMaster asks as a bus does.
func ourMaster(t *testing.T, path string, baud int) func() {
	cfg := &config.Bus{Name: "meters", Serial: path, Protocol: "modbus-rtu", Baud: baud, DataBits: 8, Parity: 'N', StopBits: 1,
		Timeout: time.Second, MaxRead: 125, MaxHole: 124, Exclusive: true, RS485: "off"}
	dev := testDevice(1, 0, 9)
	var d Driver
	f, err := d.Open(t.Context(), devices.Wire{Bus: cfg, Devices: []*config.Device{dev}, Log: slog.New(slog.DiscardHandler), Tap: &devices.Tap{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		g := groupOf(dev)
		for ctx.Err() == nil {
			f.Poll(ctx, g, noPause)
		}
	}()
	return func() { cancel(); <-done; f.Close() }
}

// program runs a master that is not ours.
func program(t *testing.T, name string, args ...string) func() {
	c := exec.Command(name, args...)
	if err := c.Start(); err != nil {
		t.Skip(err)
	}
	return func() { c.Process.Kill(); c.Wait() }
}

// TestMeasureGoburrow compares us with the client of goburrow over its own
// transport, which knows one request for each point and sleeps before it reads:
// polls of 10 registers, and the 52 values of an SDM630. The silence before a
// request, which it does not keep, is kept for it, without a moment too much. One
// minute:
//
//	BUSGATE_MEASURE=1 go test -v -run MeasureGoburrow ./devices/modbus
func TestMeasureGoburrow(t *testing.T) {
	if os.Getenv("BUSGATE_MEASURE") == "" {
		t.Skip("wants a quiet machine: BUSGATE_MEASURE=1 go test -v -run MeasureGoburrow ./devices/modbus")
	}
	dev := testDevice(1, 0, 9)
	meter := testDevice(1)
	for _, a := range sdm630 {
		meter.Points = append(meter.Points, point("input", a, "uint32"))
	}
	for _, baud := range []int{9600, 115200} {
		ours, theirs := 0.0, 0.0
		oursMap, theirsMap := 0.0, 0.0
		for range 3 { // the best of each
			ours = max(ours, rounds(t, baud, ourRounds(t, baud, dev)))
			theirs = max(theirs, rounds(t, baud, goburrowRounds(t, baud, func(c gb.Client) error {
				_, err := c.ReadHoldingRegisters(0, 10)
				return err
			})))
			oursMap = max(oursMap, rounds(t, baud, ourRounds(t, baud, meter)))
			theirsMap = max(theirsMap, rounds(t, baud, goburrowRounds(t, baud, func(c gb.Client) error {
				for _, a := range sdm630 {
					if _, err := c.ReadInputRegisters(a, 2); err != nil {
						return err
					}
				}
				return nil
			})))
		}
		t.Logf("%6d baud: 10 registers %.1f polls a second against %.1f of goburrow, x%.2f; 52 points %.2f rounds a second against %.2f, x%.2f; %s",
			baud, ours, theirs, ours/theirs, oursMap, theirsMap, oursMap/theirsMap, loadAverage())
		if oursMap < 3.5*theirsMap || baud == 115200 && ours < 3.5*theirs {
			t.Errorf("%d baud: x%.2f and x%.2f, want x3.5", baud, ours/theirs, oursMap/theirsMap)
		}
	}
}

// rounds is how many rounds a second a master makes on a bus of its own.
func rounds(t *testing.T, baud int, open func(path string) (round func() error, stop func())) float64 {
	t.Helper()
	u := sim.NewUnit(1)
	u.SetFill(func(_ sim.Table, a uint16) (uint16, bool) { return a, true })
	pty, err := sim.NewPty(sim.NewBus(sim.Line{Baud: baud, Format: "8N1"}, 1, u), filepath.Join(t.TempDir(), "port"))
	if err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); pty.Run(ctx) }()
	defer func() { cancel(); <-done }()
	round, stop := open(pty.Path())
	defer stop()
	for range 3 { // until it is in step
		round()
	}
	begin, n, failed := time.Now(), 0, 0
	for n < 3 || time.Since(begin) < time.Second {
		if err := round(); err == nil {
			n++
		} else if failed++; failed > 10 {
			t.Fatal(err)
		}
	}
	return float64(n) / time.Since(begin).Seconds()
}

func ourRounds(t *testing.T, baud int, dev *config.Device) func(string) (func() error, func()) {
	return func(path string) (func() error, func()) {
		cfg := &config.Bus{Name: "meters", Serial: path, Protocol: "modbus-rtu", Baud: baud, DataBits: 8, Parity: 'N', StopBits: 1,
			Timeout: time.Second, Retries: 1, MaxRead: 125, MaxHole: 124, Exclusive: true, RS485: "off"}
		dev := *dev
		dev.AnswerTime = time.Nanosecond
		var d Driver
		f, err := d.Open(t.Context(), devices.Wire{Bus: cfg, Devices: []*config.Device{&dev}, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		g := groupOf(&dev)
		return func() error {
			a, err := f.Poll(t.Context(), g, noPause)
			if err == nil && len(a.Values) != len(g.Points) {
				err = fmt.Errorf("%d values of %d", len(a.Values), len(g.Points))
			}
			return err
		}, func() { f.Close() }
	}
}

func goburrowRounds(t *testing.T, baud int, round func(gb.Client) error) func(string) (func() error, func()) {
	return func(path string) (func() error, func()) {
		h := gb.NewRTUClientHandler(path)
		h.BaudRate, h.DataBits, h.Parity, h.StopBits, h.SlaveId, h.Timeout = baud, 8, "N", 1, 1, time.Second
		if err := h.Connect(); err != nil {
			t.Fatal(err)
		}
		gap := sim.Line{Baud: baud, Format: "8N1"}.Silence()
		c := gb.NewClient2(h, sender(func(adu []byte) ([]byte, error) {
			for end := time.Now().Add(gap); time.Now().Before(end); {
			}
			return h.Send(adu)
		}))
		return func() error { return round(c) }, func() { h.Close() }
	}
}
