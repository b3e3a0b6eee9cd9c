package modbus

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/sim"
)

// TestMeasureLine compares masters on one simulated bus behind a pseudo
// terminal: the share of the wire's limit that each reaches when it asks without
// a pause. It wants a quiet machine and takes two minutes:
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
		{"busgate", ourMaster},
		{"pymodbus", func(t *testing.T, path string, baud int) func() {
			return program(t, "/usr/bin/python3", "testdata/master.py", path, strconv.Itoa(baud), strconv.Itoa(registers))
		}},
		{"mbpoll", func(t *testing.T, path string, baud int) func() {
			return program(t, "mbpoll", "-m", "rtu", "-a", "1", "-b", strconv.Itoa(baud), "-P", "none", "-t", "4", "-0", "-r", "0", "-c", strconv.Itoa(registers), "-l", "11", "-o", "1", path)
		}},
	}
	t.Logf("share of the limit, best (worst) of 5; 10 registers, no turnaround")
	for _, baud := range []int{9600, 19200, 115200} {
		line := ""
		for _, m := range masters {
			best, worst := 0.0, 2.0
			for range 5 {
				share := onBus(t, baud, registers, m.start)
				best, worst = max(best, share), min(worst, share)
			}
			line += "   " + m.name + " " + strconv.FormatFloat(best, 'f', 3, 64) + " (" + strconv.FormatFloat(worst, 'f', 3, 64) + ")"
			if least := map[bool]float64{true: .95, false: .90}[baud <= 19200]; m.name == "busgate" && best < least {
				t.Errorf("%d baud: %.3f of the limit, want %.2f", baud, best, least)
			}
		}
		t.Logf("%6d baud%s", baud, line)
	}
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
