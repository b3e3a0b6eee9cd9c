package main

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHeld: a user without access to the daemon is sent to its socket only when
// somebody has the port.
func TestHeld(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ttyUSB0")
	if held(file) {
		t.Error("a port that is not there is held")
	}
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if held(file) {
		t.Error("a port that nobody locked is held")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	if !held(file) {
		t.Error("a locked port is not held")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if held(file) {
		t.Error("asking has locked the port")
	}
}
