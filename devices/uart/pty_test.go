//go:build linux

package uart

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/sim"
)

// The whole way: a real terminal, the serial library, the shipped profile.
func TestRealTerminal(t *testing.T) {
	b := sim.NewTalker(sim.Line{}, 1, 400*time.Millisecond, sim.NMEA(1))
	pty, err := sim.NewPty(b, filepath.Join(t.TempDir(), "gps"))
	if err != nil {
		t.Skipf("no pseudo terminals here: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- pty.Run(ctx) }()
	defer func() { cancel(); <-done }()

	dev := profiled(t, "nmea-gps")
	bus := *serial9600
	bus.Serial, bus.Exclusive, bus.RS485, bus.Timeout = pty.Path(), true, "off", 5*time.Second
	wire := devices.Wire{Bus: &bus, Devices: []*config.Device{dev}, Log: slog.New(slog.DiscardHandler)}
	d := &Driver{}
	f, err := d.Open(ctx, wire)
	if err != nil {
		t.Fatal(err)
	}
	g := &devices.Group{Device: dev, Interval: time.Second, Points: []int{0, 1, 2, 3, 4, 5, 6, 7}}
	r := &reader{t, f, g, &bus}
	a := r.poll()
	for len(a.Values) < len(g.Points) && a.Err == nil { // the first burst may be cut
		a = r.poll()
	}
	if got := text(r, a); !strings.HasPrefix(got, "lat=52.5") || !strings.Contains(got, "lon=13.4") {
		t.Errorf("%s (%v)", got, a.Err)
	}

	pty.Unplug()
	for err = nil; err == nil; _, err = f.Poll(ctx, g, nil) {
	}
	if tr, ok := errors.AsType[devices.Trouble](err); !ok || tr.Word() != "port-gone" {
		t.Errorf("unplugged: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err = d.Open(ctx, wire); fmt.Sprintf("%T", err) != "*port.Error" {
		t.Errorf("open while unplugged: %v", err)
	}
	if err := pty.Replug(); err != nil {
		t.Fatal(err)
	}
	if f, err = d.Open(ctx, wire); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Probe(ctx, dev); err != nil {
		t.Errorf("probe after it came back: %v", err)
	}
}
