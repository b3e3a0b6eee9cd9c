package main

import (
	"log/slog"
	"path/filepath"
	"testing"

	"busgate/buffer"
	"busgate/devices"
)

// What a bus has learned is there after a restart, and apart from what other
// rooms keep under the same name.
func TestLearnedFactsSurviveARestart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "busgate.db")
	open := func() (*buffer.Store, devices.Memory, room) {
		s, err := buffer.Open(file, buffer.Options{Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		f, err := loadFacts(s)
		if err != nil {
			t.Fatal(err)
		}
		return s, learned{f.room("devices")}, f.room("bridge")
	}
	s, bus, bridge := open()
	if v, err := bus.Load("modbus//dev/ttyUSB0/1"); v != nil || err != nil {
		t.Errorf("before anything was kept: %q, %v", v, err)
	}
	bus.Save("modbus//dev/ttyUSB0/1", []byte("turnaround"))
	if err := bridge.Save("modbus//dev/ttyUSB0/1", []byte("other")); err != nil {
		t.Fatal(err)
	}
	if v, _ := bus.Load("modbus//dev/ttyUSB0/1"); string(v) != "turnaround" {
		t.Errorf("at once: %q", v)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s, bus, bridge = open()
	defer s.Close(t.Context())
	if v, _ := bus.Load("modbus//dev/ttyUSB0/1"); string(v) != "turnaround" {
		t.Errorf("after the restart: %q", v)
	}
	if v, _ := bridge.Load("modbus//dev/ttyUSB0/1"); string(v) != "other" {
		t.Errorf("the bridge's: %q", v)
	}
}
