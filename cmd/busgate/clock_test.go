package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"busgate/buffer"
	"busgate/config/report"
)

// fakeKernel is a machine whose clock and boot the test sets. CLOCK_BOOTTIME is
// the time since the machine was made, plus up.
type fakeKernel struct {
	mu     sync.Mutex
	start  time.Time
	up     time.Duration
	offset time.Duration // of CLOCK_REALTIME to CLOCK_BOOTTIME
	ntp    bool
	hw     bool
	boot   string
	step   chan struct{}
}

func newFakeKernel() *fakeKernel {
	return &fakeKernel{start: time.Now(), boot: "k1", step: make(chan struct{}, 1)}
}

func (f *fakeKernel) mono() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.up + time.Since(f.start)
}

func (f *fakeKernel) real() time.Duration {
	up := f.mono()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.offset + up
}

// set makes the clock show t, as settimeofday does.
func (f *fakeKernel) set(t time.Time) {
	up := f.mono()
	f.mu.Lock()
	f.offset = time.Duration(t.UnixNano()) - up
	f.mu.Unlock()
	select {
	case f.step <- struct{}{}:
	default:
	}
}

func (f *fakeKernel) flag(p *bool, v bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	*p = v
}

func (f *fakeKernel) kernel() kernel {
	flag := func(p *bool) bool { f.mu.Lock(); defer f.mu.Unlock(); return *p }
	return kernel{
		real: f.real, boot: f.mono, synced: func() bool { return flag(&f.ntp) },
		hardware: func(time.Time) bool { return flag(&f.hw) },
		id:       func() string { f.mu.Lock(); defer f.mu.Unlock(); return f.boot },
		steps: func() (func() error, func(), error) {
			over := make(chan struct{})
			return func() error {
				select {
				case <-f.step:
					return nil
				case <-over:
					return io.EOF
				}
			}, func() { close(over) }, nil
		},
	}
}

// clockBench is a clock on a fake kernel with a store for its facts.
type clockBench struct {
	t       *testing.T
	f       *fakeKernel
	store   *buffer.Store
	facts   *facts
	log     *screen
	offsets []time.Duration
	c       *clock
}

func newClockBench(t *testing.T) *clockBench {
	s, err := buffer.Open(filepath.Join(t.TempDir(), "busgate.db"), buffer.Options{Reserve: -1, Limits: buffer.Limits{MinFreeDisk: -1}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(t.Context()) })
	b := &clockBench{t: t, f: newFakeKernel(), store: s, log: newScreen()}
	if b.facts, err = loadFacts(s); err != nil {
		t.Fatal(err)
	}
	return b
}

// open starts the process anew.
func (b *clockBench) open() {
	log := slog.New(slog.NewTextHandler(b.log, nil))
	b.offsets = nil
	b.c = openClock(b.f.kernel(), b.facts.room("clock"), log, report.NewLadder(log), func(d time.Duration) { b.offsets = append(b.offsets, d) })
	b.c.told = true
}

func (b *clockBench) want(word string, sets int) {
	b.t.Helper()
	b.c.look()
	if b.c.source() != word || len(b.offsets) != sets {
		b.t.Errorf("the clock is %s and the store was told %d times, want %s and %d", b.c.source(), len(b.offsets), word, sets)
	}
}

// aDay is one that has certainly passed the floor.
var aDay = leastFloor.AddDate(1, 0, 0)

func TestClockIsBelievedOnlyOnEvidence(t *testing.T) {
	for name, c := range map[string]struct {
		before func(b *clockBench) // the process opens the clock
		after  func(b *clockBench) // while it runs
		word   string
		sets   int
	}{
		"1970":                       {nil, nil, clockUnset, 0},
		"1970, however synchronised": {func(b *clockBench) { b.f.ntp = true }, nil, clockUnset, 0},
		"1970, with a hardware clock that agrees": {func(b *clockBench) { b.f.hw = true }, nil, clockUnset, 0},
		"the time of the last shutdown":           {func(b *clockBench) { b.f.set(aDay) }, nil, clockUnset, 0},
		"a time service keeps it":                 {func(b *clockBench) { b.f.set(aDay); b.f.ntp = true }, nil, clockNTP, 1},
		"a hardware clock says the same":          {func(b *clockBench) { b.f.set(aDay); b.f.hw = true }, nil, clockRTC, 1},
		"a time service takes it over":            {func(b *clockBench) { b.f.set(aDay) }, func(b *clockBench) { b.f.flag(&b.f.ntp, true) }, clockNTP, 1},
		"it is stepped":                           {nil, func(b *clockBench) { b.f.set(aDay) }, clockNTP, 1},
		"it is stepped to before the build":       {nil, func(b *clockBench) { b.f.set(leastFloor.AddDate(-1, 0, 0)) }, clockUnset, 0},
		"a known one steps": {func(b *clockBench) { b.f.set(aDay); b.f.hw = true },
			func(b *clockBench) { b.f.set(aDay.Add(time.Hour)) }, clockNTP, 2},
		"a known one loses its time service": {func(b *clockBench) { b.f.set(aDay); b.f.ntp = true },
			func(b *clockBench) { b.f.flag(&b.f.ntp, false) }, clockNTP, 1},
		"a known one is set to 1970": {func(b *clockBench) { b.f.set(aDay); b.f.ntp = true },
			func(b *clockBench) { b.f.set(time.Unix(0, 0)) }, clockUnset, 1},
		"slewing is no step": {func(b *clockBench) { b.f.set(aDay) },
			func(b *clockBench) { b.f.set(aDay.Add(900 * time.Millisecond)) }, clockUnset, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newClockBench(t)
				if c.before != nil {
					c.before(b)
				}
				b.open()
				if c.after != nil {
					c.after(b)
				}
				b.want(c.word, c.sets)
			})
		})
	}
}

func TestClockOverARestart(t *testing.T) {
	for name, c := range map[string]struct {
		first, between func(b *clockBench)
		word           string
	}{
		"known in the same kernel: still known":         {func(b *clockBench) { b.f.set(aDay) }, nil, clockNTP},
		"known in another kernel: not known":            {func(b *clockBench) { b.f.set(aDay) }, func(b *clockBench) { b.f.boot = "k2" }, clockUnset},
		"set while the process did not run":             {nil, func(b *clockBench) { b.f.set(aDay) }, clockNTP},
		"set to before the build while it did not run":  {nil, func(b *clockBench) { b.f.set(leastFloor.Add(-time.Hour)) }, clockUnset},
		"a hardware clock that fell back behind itself": {func(b *clockBench) { b.f.set(aDay) }, func(b *clockBench) { b.f.boot, b.f.hw = "k2", true; b.f.set(aDay.AddDate(0, -2, 0)) }, clockUnset},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newClockBench(t)
				b.open()
				if c.first != nil {
					c.first(b)
				}
				b.c.look()
				b.c.keep(b.c.wall(), b.c.k.real()-b.c.k.boot(), b.c.source())
				if c.between != nil {
					c.between(b)
				}
				b.open()
				b.want(c.word, len(b.offsets))
			})
		})
	}
}

// TestUnknownClockVerifiesNoLess: certificates are held against the latest time
// that has certainly passed.
func TestUnknownClockVerifiesNoLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newClockBench(t)
		b.open()
		if now, known := b.c.verify(); known || !now.Equal(buildFloor()) {
			t.Errorf("a new machine verifies against %v, %v; want the time of the build", now, known)
		}
		b.f.set(aDay)
		b.want(clockNTP, 1)
		b.f.boot = "k2"
		b.f.set(time.Unix(0, 0))
		b.open()
		if now, known := b.c.verify(); known || now.Sub(aDay).Abs() > time.Second {
			t.Errorf("verifies against %v, %v; want what was known before, %v", now, known, aDay)
		}
	})
}

func TestClockSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newClockBench(t)
		b.open()
		var alerts []report.Report
		b.c.alert = func(r report.Report) { alerts = append(alerts, r) }
		b.c.look()
		time.Sleep(time.Second)
		b.c.look()
		b.f.flag(&b.f.ntp, true)
		b.f.set(time.Unix(0, 0).AddDate(0, 0, 626).AddDate(56, 0, 0))
		b.c.look()
		for _, want := range []string{
			"this computer believes it is 1970-01-01, before busgate was built (" + buildFloor().Format(time.DateOnly) + "), and NTP has not set it. Readings go on and get their true time later; TLS uplinks wait for the clock",
			"clock: set by NTP (+", "; what waits is re-dated",
		} {
			if strings.Count(b.log.String(), want) != 1 {
				t.Errorf("%q is not once in\n%s", want, b.log)
			}
		}
		if len(alerts) != 2 || alerts[0].Err != "clock" || alerts[0].Solved || !alerts[1].Solved {
			t.Errorf("alerts %+v", alerts)
		}
	})
}

func TestHardwareClock(t *testing.T) {
	now := aDay
	for name, c := range map[string]struct {
		files []string
		arch  string
		want  bool
	}{
		"a Pi without one":                     {nil, "arm64", false},
		"a PC that shows none":                 {nil, "amd64", true},
		"it agrees":                            {[]string{fmt.Sprint(now.Unix() + 3)}, "arm64", true},
		"its battery is empty":                 {[]string{"3"}, "arm64", false},
		"a PC with an empty battery":           {[]string{"3"}, "amd64", false},
		"one of two agrees":                    {[]string{"3", fmt.Sprint(now.Unix()) + "\n"}, "arm", true},
		"it cannot be read":                    {[]string{""}, "arm", false},
		"it shows the local time of Kathmandu": {[]string{fmt.Sprint(now.Unix() + 20700)}, "arm", false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for i, s := range c.files {
				d := filepath.Join(dir, fmt.Sprint("rtc", i))
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
				write(t, filepath.Join(d, rtcReading), s)
			}
			if got := hardwareAgrees(dir, c.arch, now); got != c.want {
				t.Errorf("%v", got)
			}
		})
	}
}

// TestRealKernelSeesNoStepWithoutOne: the timer of the real kernel waits, and
// ends when it is told to.
func TestRealKernelSeesNoStepWithoutOne(t *testing.T) {
	wait, stop, err := watchSteps()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- wait() }()
	stop()
	if err := <-ended; err == nil {
		t.Error("a step, though nobody set the clock")
	}
	if id := kernelID(); id == "" || id != kernelID() {
		t.Errorf("kernel %q", id)
	}
	_ = kernelSynced()
}

func TestOnlyAComputerThatHasJustStartedWaits(t *testing.T) {
	for up, want := range map[time.Duration]time.Duration{time.Second: 10 * time.Second, 3*time.Minute - 1: 10 * time.Second, 3 * time.Minute: 0, 100 * time.Hour: 0} {
		if got := firstDelay(up); got != want {
			t.Errorf("up for %v: %v, want %v", up, got, want)
		}
	}
}
