package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"busgate/buffer"
	"busgate/devices"
)

func TestWatchdogLimit(t *testing.T) {
	for _, c := range []struct {
		name, usec, pid string
		want            time.Duration
	}{
		{"nobody looks", "", "", 0},
		{"a limit", "60000000", "", time.Minute},
		{"a limit for us", "60000000", strconv.Itoa(os.Getpid()), time.Minute},
		{"a limit for another process", "60000000", "1", 0},
		{"no number", "soon", "", 0},
		{"nothing", "0", "", 0},
	} {
		t.Setenv("WATCHDOG_USEC", c.usec)
		t.Setenv("WATCHDOG_PID", c.pid)
		if got := watchdogLimit(); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// heard notes what the service manager was told, and when.
type heard struct {
	began time.Time
	list  []string
}

func (h *heard) tell(s string) {
	h.list = append(h.list, fmt.Sprintf("%s %s", time.Since(h.began), strings.ReplaceAll(s, "\n", " ")))
}

func TestPulse(t *testing.T) {
	ok := func(context.Context) error { return nil }
	// runs a pulse for two minutes.
	run := func(t *testing.T, limit time.Duration, organs ...organ) (told []string, log string) {
		t.Helper()
		h, s := heard{began: time.Now()}, newScreen()
		p := &pulse{log: slog.New(slog.NewTextHandler(s, nil)), limit: limit, organs: organs, status: func() string { return "fine" }, tell: h.tell, look: func() {}}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		if err := p.Run(ctx); err != nil {
			t.Error(err)
		}
		return h.list, s.String()
	}
	t.Run("it beats at once and then at a quarter of the limit", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			told, log := run(t, 20*time.Second, organ{"a", ok}, organ{"b", ok})
			if len(told) < 24 || told[0] != "0s WATCHDOG=1 STATUS=fine" || told[1] != "5s WATCHDOG=1 STATUS=fine" || log != "" {
				t.Errorf("%q %s", told, log)
			}
		})
	})
	t.Run("without a limit it says how things are each 10 s", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			if told, _ := run(t, 0, organ{"a", ok}); len(told) < 12 || told[1] != "10s WATCHDOG=1 STATUS=fine" {
				t.Errorf("%q", told)
			}
		})
	})
	t.Run("an organ that is stuck stops the pings, and is named once at half of the limit", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			stuck := func(ctx context.Context) error {
				if time.Since(began) >= 10*time.Second {
					<-ctx.Done()
				}
				return nil
			}
			told, log := run(t, 20*time.Second, organ{"a", ok}, organ{"the committer", stuck})
			if want := []string{"0s WATCHDOG=1 STATUS=fine", "5s WATCHDOG=1 STATUS=fine"}; !slices.Equal(told, want) {
				t.Errorf("%q, want %q", told, want)
			}
			if strings.Count(log, "no sign of life from the committer for 10s: no more pings") != 1 || strings.Count(log, "\n") != 1 {
				t.Error(log)
			}
		})
	})
	t.Run("an organ that says what is wrong stops the pings until it is well", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			ill := func(context.Context) error {
				if s := time.Since(began); s >= 10*time.Second && s < time.Minute {
					return errors.New("bus meters has done nothing for 11m")
				}
				return nil
			}
			told, log := run(t, 20*time.Second, organ{"the buses", ill})
			if !slices.Contains(told, "1m0s WATCHDOG=1 STATUS=fine") || slices.Contains(told, "55s WATCHDOG=1 STATUS=fine") || slices.Contains(told, "10s WATCHDOG=1 STATUS=fine") {
				t.Errorf("%q", told)
			}
			if strings.Count(log, "no sign of life from the buses (bus meters has done nothing for 11m)") != 1 {
				t.Error(log)
			}
		})
	})
}

func TestTurns(t *testing.T) {
	for _, c := range []struct {
		name     string
		interval time.Duration
		stretch  float64
		online   bool
		moves    bool // the bus asks its device
		stuckAt  time.Duration
	}{
		{name: "a bus that asks is alive", interval: time.Second, online: true, moves: true},
		{name: "a bus with a device online that asks nobody is stuck", interval: time.Second, online: true, stuckAt: 11 * time.Minute},
		{name: "a slow device is given three intervals", interval: time.Hour, online: true, stuckAt: 181 * time.Minute},
		{name: "... as long as they really are", interval: time.Hour, stretch: 2, online: true, stuckAt: 361 * time.Minute},
		{name: "a bus whose devices are all offline may wait", interval: time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rounds := uint64(0)
				u := &turns{
					intervals: func() map[string]time.Duration { return map[string]time.Duration{"grid": c.interval} },
					fleet: func() ([]devices.BusStatus, []devices.DeviceStatus) {
						if c.moves {
							rounds++
						}
						return []devices.BusStatus{{Name: "meters", Stretch: c.stretch}}, []devices.DeviceStatus{{Name: "grid", Bus: "meters", Online: c.online, Rounds: rounds}}
					},
				}
				began := time.Now()
				for time.Since(began) < 12*time.Hour {
					if err := u.alive(t.Context()); err != nil {
						if at := time.Since(began); at != c.stuckAt || !strings.Contains(err.Error(), "bus meters has done nothing for ") {
							t.Errorf("%v after %v, want after %v", err, at, c.stuckAt)
						}
						return
					}
					time.Sleep(time.Minute)
				}
				if c.stuckAt != 0 {
					t.Error("nobody noticed")
				}
			})
		})
	}
}

// TestStoreAlive: the sign of life of the committer goes all the way through it
// and writes nothing.
func TestStoreAlive(t *testing.T) {
	store, err := buffer.Open(filepath.Join(t.TempDir(), "busgate.db"), buffer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{store: store}
	if err := store.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := store.Stats()
	for range 100 {
		if err := g.storeAlive(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	after := store.Stats()
	if n := after.Commits - before.Commits; n < 100 {
		t.Errorf("%d of 100 went through the committer", n)
	}
	if before.WALBytes != after.WALBytes {
		t.Errorf("the -wal file grew from %d to %d bytes", before.WALBytes, after.WALBytes)
	}
	if err := store.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestPulseOfDaemon: the organs of a whole daemon are alive, and the service
// manager hears what it does.
func TestPulseOfDaemon(t *testing.T) {
	manager := notifySocket(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "busgate.toml")
	text := fmt.Sprintf("[gateway]\nname = \"t\"\ndata_dir = %q\n[web]\nlisten = \"\"\n[broker]\nlisten = \"127.0.0.1:%d\"\n"+
		"[device.meter]\ntcp = \"127.0.0.1:%d\"\nprofile = \"eastron-sdm630\"\n[uplink.cloud]\naddresses = [\"mqtt://127.0.0.1:%d\"]\n",
		filepath.Join(dir, "data"), freePort(t), freePort(t), freePort(t))
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	d := startDaemon(t, file)
	manager.until(t, "WATCHDOG=1\nSTATUS=0 of 1 device online, cloud down", 1)
	manager.until(t, "READY=1", 1)
	d.stop()
	if code := <-d.code; code != exitOK {
		t.Errorf("exit %d:\n%s", code, d.log)
	}
	manager.until(t, "STOPPING=1", 1)
}
