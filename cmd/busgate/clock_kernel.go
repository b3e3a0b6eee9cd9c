package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Where the kernel shows its hardware clocks and which start of it this is.
const (
	rtcDir     = "/sys/class/rtc"
	rtcReading = "since_epoch" // seconds
	bootIDFile = "/proc/sys/kernel/random/boot_id"
)

// kernel is what the clock asks of the machine; tests replace it.
type kernel struct {
	real     func() time.Duration                               // CLOCK_REALTIME, since 1970
	boot     func() time.Duration                               // CLOCK_BOOTTIME
	synced   func() bool                                        // a time service keeps the clock
	hardware func(now time.Time) bool                           // a clock that runs while the machine is off says the same
	id       func() string                                      // of this start of the kernel; never empty
	steps    func() (wait func() error, stop func(), err error) // wait returns at each step, an error after stop
}

var realKernel = kernel{
	real: func() time.Duration { return clockGet(unix.CLOCK_REALTIME) }, boot: bootTime, synced: kernelSynced,
	hardware: func(now time.Time) bool { return hardwareAgrees(rtcDir, runtime.GOARCH, now) }, id: kernelID, steps: watchSteps,
}

// clockGet reads a clock of the kernel. These clocks cannot fail on Linux.
func clockGet(id int32) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// bootTime is the time since the kernel booted, sleep included.
func bootTime() time.Duration { return clockGet(unix.CLOCK_BOOTTIME) }

// kernelSynced asks adjtimex(2); STA_UNSYNC is cleared by whoever keeps the
// clock: systemd-timesyncd, chrony, ntpd, PTP.
func kernelSynced() bool {
	const staUnsync, timeError = 0x40, 5
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	return err == nil && state != timeError && t.Status&staUnsync == 0
}

// hardwareAgrees compares the time of day with the hardware clocks. That one of
// them set the time at boot says nothing: its battery may be empty, and then
// systemd restores the time of the last shutdown. On a PC the kernel has a
// persistent clock even where it shows no device: that of the hypervisor.
func hardwareAgrees(dir, arch string, now time.Time) bool {
	found, err := filepath.Glob(filepath.Join(dir, "rtc*", rtcReading))
	if err != nil || len(found) == 0 {
		return arch == "amd64" || arch == "386"
	}
	for _, f := range found {
		b, err := os.ReadFile(f)
		s, perr := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		if cmp.Or(err, perr) == nil && now.Sub(time.Unix(s, 0)).Abs() <= clockNear {
			return true
		}
	}
	return false
}

func kernelID() string {
	b, err := os.ReadFile(bootIDFile)
	if err != nil {
		return "unknown-" + strconv.Itoa(os.Getpid())
	}
	return strings.TrimSpace(string(b))
}

// watchSteps waits for steps of CLOCK_REALTIME with a timer that the kernel
// cancels at each (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET).
func watchSteps() (wait func() error, stop func(), err error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, nil, fmt.Errorf("watch the clock: %w", err)
	}
	f := os.NewFile(uintptr(fd), "clock")
	arm := func() error {
		in := unix.NsecToTimespec(int64(clockGet(unix.CLOCK_REALTIME) + 24*time.Hour)) // an early end does no harm
		return unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &unix.ItimerSpec{Value: in}, nil)
	}
	if err := arm(); err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("watch the clock: %w", err)
	}
	b := make([]byte, 8)
	wait = func() error {
		if _, err := f.Read(b); err != nil && !errors.Is(err, unix.ECANCELED) {
			return err
		}
		return arm()
	}
	return wait, func() { f.Close() }, nil
}
