package main

import (
	"time"

	"golang.org/x/sys/unix"
)

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

// buildFloor is a time that has certainly passed: a clock that shows less was never set.
var buildFloor = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// wallClock is the time of day and whether it can be believed.
func wallClock() (time.Time, bool) {
	now := time.Now()
	return now, now.After(buildFloor)
}

func clockKnown() bool {
	_, known := wallClock()
	return known
}
