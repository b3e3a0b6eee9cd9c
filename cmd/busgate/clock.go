package main

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"busgate/config/report"
)

// buildDate is when the program was built, RFC 3339 or a date; set by the packager:
// -ldflags "-X main.buildDate=2026-11-20". Where it is not, the time of the commit
// counts.
var buildDate = ""

// leastFloor is a time that has certainly passed, for a build that knows nothing.
var leastFloor = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// buildFloor is a time that has certainly passed: a clock that shows less was never set.
var buildFloor = sync.OnceValue(func() time.Time {
	floor := leastFloor
	later := func(layout, s string) {
		if t, err := time.Parse(layout, s); err == nil && t.After(floor) {
			floor = t.UTC()
		}
	}
	later(time.RFC3339, buildDate)
	later(time.DateOnly, buildDate)
	if bi, ok := debug.ReadBuildInfo(); ok {
		for _, s := range bi.Settings {
			if s.Key == "vcs.time" {
				later(time.RFC3339, s.Value)
			}
		}
	}
	return floor
})

// Sources of the time of day, as gateway/state names them.
const (
	clockUnset = "unset" // not known: readings carry the time since boot
	clockRTC   = "rtc"   // of a hardware clock, and nobody has set it since
	clockNTP   = "ntp"   // set while this kernel runs, by NTP or by hand
)

const (
	clockStep   = time.Second // a change of the offset above it is a step
	clockNear   = time.Hour   // a hardware clock that is further off is another time
	clockImpat  = time.Second // between two looks while it is not known
	clockLook   = time.Minute // ... and while it is
	clockNote   = time.Hour   // between two notes of the time on disk
	clockWho    = "clock"     // in reports
	clockErr    = "clock"     // the stable word
	clockOffset = "offset"    // fact: "<kernel> <ms> <source>"
	clockSeen   = "seen"      // fact: unix ms
)

// clock knows the time of day and whether it can be believed. A machine without
// a hardware clock wakes up in 1970, or where it was switched off; until
// somebody sets its clock its readings carry the time since boot, and the store
// dates them when the true time is known.
//
// It is believed when a time service keeps it (adjtimex), when it was stepped
// while this kernel runs, or when a hardware clock says the same; never when it
// is before the build of this program. now, verify and source may be called from
// any goroutine.
type clock struct {
	k       kernel
	floor   time.Time
	log     *slog.Logger
	ladder  *report.Ladder
	set     func(offset time.Duration) // tells the store
	alert   func(report.Report)        // publishes; may be nil
	changed func()                     // gateway/state has another word; may be nil
	memory  room
	told    bool // Run has begun: who is told of it listens

	mu     sync.Mutex
	word   string        // source
	offset time.Duration // of UTC to CLOCK_BOOTTIME when last looked
	seen   time.Time     // a time of day that was known once
	noted  time.Duration // CLOCK_BOOTTIME of the last note of seen
}

// openClock looks at the clock for the first time. What an earlier process of the
// same start of the kernel knew is still known.
func openClock(k kernel, memory room, log *slog.Logger, ladder *report.Ladder, set func(time.Duration)) *clock {
	c := &clock{k: k, floor: buildFloor(), log: log, ladder: ladder, set: set, memory: memory, word: clockUnset}
	c.offset = k.real() - k.boot()
	if ms, err := strconv.ParseInt(string(memory.Get(clockSeen)), 10, 64); err == nil {
		c.seen = time.UnixMilli(ms).UTC()
	}
	var id, word string
	var ms int64
	if n, _ := fmt.Sscan(string(memory.Get(clockOffset)), &id, &ms, &word); n == 3 && id == k.id() && !c.wall().Before(c.floor) {
		switch before := time.Duration(ms) * time.Millisecond; {
		case (c.offset - before).Abs() > clockStep: // it was set while we did not run
			word = clockNTP
			fallthrough
		case word == clockNTP || word == clockRTC:
			c.word = word
			c.set(c.offset)
		}
	}
	c.look()
	return c
}

// wall is the time of day as the kernel has it, right or wrong.
func (c *clock) wall() time.Time { return time.Unix(0, int64(c.k.real())).UTC() }

// now is the time of day, and whether it can be believed.
func (c *clock) now() (time.Time, bool) { return c.wall(), c.known() }

func (c *clock) known() bool { return c.source() != clockUnset }

// source is ntp, rtc or unset.
func (c *clock) source() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.word
}

// verify is now for certificates: while the clock is not known, the latest time
// that has certainly passed, so that less is never verified.
func (c *clock) verify() (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.wall()
	if c.word != clockUnset {
		return now, true
	}
	for _, t := range []time.Time{c.floor, c.seen} {
		if t.After(now) {
			now = t
		}
	}
	return now, false
}

// Run looks at the clock at each step, each second while it is not known, and
// each minute after that.
func (c *clock) Run(ctx context.Context) error {
	c.told = true
	c.look()
	stepped := make(chan struct{}, 1)
	wait, stop, err := c.k.steps()
	if err != nil {
		c.log.Warn("clock: a step of the clock is noticed only within a minute", "err", err)
	} else {
		var wg sync.WaitGroup
		defer wg.Wait()
		defer stop()
		wg.Go(func() {
			for wait() == nil {
				select {
				case stepped <- struct{}{}:
				default:
				}
			}
		})
	}
	for {
		every := clockImpat
		if c.known() {
			every = clockLook
		}
		t := time.NewTimer(every)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-stepped:
		case <-t.C:
		}
		t.Stop()
		c.look()
	}
}

// look asks the kernel and tells what is another than before.
func (c *clock) look() {
	now, offset, synced := c.wall(), c.k.real()-c.k.boot(), c.k.synced()
	c.mu.Lock()
	was, step := c.word, offset-c.offset
	stepped := step.Abs() > clockStep
	c.offset = offset
	switch {
	case now.Before(c.floor):
		c.word = clockUnset
	case synced || stepped:
		c.word = clockNTP
	case was == clockUnset && now.After(c.seen.Add(-clockNear)) && c.k.hardware(now):
		c.word = clockRTC
	}
	word := c.word
	known := word != clockUnset
	if known {
		c.seen = now
	}
	note := known && (was != word || stepped || c.k.boot()-c.noted >= clockNote)
	if note {
		c.noted = c.k.boot()
	}
	c.mu.Unlock()

	if note || was != word {
		c.keep(now, offset, word)
	}
	switch {
	case !known && c.told:
		c.complain(now)
	case !known:
	case was == clockUnset:
		c.set(offset)
		c.solve(step)
	case stepped: // for what is stamped from now on
		c.set(offset)
		c.log.Info("clock: stepped by " + signed(step))
	}
	if was != word && c.told && c.changed != nil {
		c.changed()
	}
}

// keep notes what another process may need: the offset holds while this kernel
// runs, the time for ever.
func (c *clock) keep(now time.Time, offset time.Duration, word string) {
	c.memory.Keep(clockOffset, fmt.Appendf(nil, "%s %d %s", c.k.id(), offset.Milliseconds(), word), nil)
	if word != clockUnset {
		c.memory.Keep(clockSeen, strconv.AppendInt(nil, now.UnixMilli(), 10), nil)
	}
}

// complain says that the clock is not set, on the ladder.
func (c *clock) complain(now time.Time) {
	why := "and this computer has no clock that runs while it is off"
	if now.Before(c.floor) {
		why = "before busgate was built (" + c.floor.Format(time.DateOnly) + ")"
	}
	r, edge := c.ladder.Fail(report.Report{Err: clockErr, Level: slog.LevelWarn, Who: clockWho,
		Text: fmt.Sprintf("this computer believes it is %s, %s, and NTP has not set it. Readings go on and get their true time later; TLS uplinks wait for the clock. "+
			"See: timedatectl", now.Format(time.DateOnly), why)})
	if edge && c.alert != nil {
		c.alert(r)
	}
}

func (c *clock) solve(step time.Duration) {
	r, said := c.ladder.Solve(clockErr, clockWho, func(time.Duration, uint64) string {
		by := "set"
		if c.source() == clockNTP && c.k.synced() {
			by = "set by NTP"
		}
		if step.Abs() > clockStep {
			by += " (" + signed(step) + ")"
		}
		return by + "; what waits is re-dated"
	})
	if said && c.alert != nil {
		c.alert(r)
	}
}

// signed is a step as people say it: +626d, -3s.
func signed(d time.Duration) string {
	sign := "+"
	if d < 0 {
		sign, d = "-", -d
	}
	if days := d / (24 * time.Hour); days > 0 {
		return fmt.Sprintf("%s%dd", sign, days)
	}
	return sign + report.Duration(d)
}
