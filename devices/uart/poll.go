package uart

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"busgate/config"
	"busgate/config/report"
	"busgate/devices"
)

const (
	patience  = 3 * time.Second // a talker's first frame after the line was opened
	fewestBad = 5               // damaged frames before they are worth a word
)

// place is what a Group remembers.
type place struct {
	last  uint64 // newest frame it has seen
	fails int    // polls without a frame
}

// Poll takes what is new since the last poll of this group. A talker that has
// nothing new gets the time-out of the bus to say something; a polled sensor is
// asked.
func (f *Field) Poll(ctx context.Context, g *devices.Group, _ func(context.Context) error) (devices.Answer, error) {
	st := f.station(g.Device)
	if st == nil {
		return devices.Answer{}, fmt.Errorf("device %s is not on bus %s", g.Device.Name, f.bus.Name)
	}
	begin := time.Now()
	asks := len(g.Device.Frame.Request) > 0
	f.mu.Lock()
	f.polls++
	pl, _ := g.Plan.(*place)
	if pl == nil {
		pl = &place{last: st.taken(g.Points)}
		g.Plan = pl
	}
	if asks {
		pl.last = st.frames
	}
	silent := st.heard.IsZero()
	f.mu.Unlock()
	var err error
	tries := 1
	if asks {
		tries, err = f.ask(ctx, st, g.Points, pl.last)
	} else {
		limit := f.bus.Timeout
		if silent && pl.fails == 0 {
			limit = max(limit, min(g.Interval, patience))
		}
		err = f.await(ctx, limit, func() bool { // a burst of several frames is taken whole
			n := st.fresh(g.Points, pl.last)
			return n == len(g.Points) || n > 0 && f.quiet
		})
	}
	if err != nil && !errors.Is(err, devices.ErrNoAnswer) {
		return devices.Answer{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	a := st.collect(g.Points, pl.last)
	pl.last = st.frames
	a.Tries, a.Waited = tries, time.Since(begin)
	if asks {
		a.Used = a.Waited
	}
	noise := f.noiseLocked(st, a.Heard)
	if !a.Heard {
		pl.fails++
		var why devices.Finding
		why, a.Err = f.silenceLocked(st, g, pl.fails, noise)
		a.Found = append(a.Found, why)
		return a, nil
	}
	pl.fails = 0
	if percent, n := st.bad.percent(time.Now()); percent > 1 && n >= fewestBad {
		a.Found = append(a.Found, devices.Finding{Err: "bad-checksum", Level: slog.LevelWarn,
			Text: fmt.Sprintf("%.1f %% of frames have a wrong checksum; baud right? cable short?", percent)})
	}
	return a, nil
}

// ask sends the request and waits for a good frame, with the retries of the bus.
func (f *Field) ask(ctx context.Context, st *station, points []int, last uint64) (tries int, err error) {
	for tries = 1; ; tries++ {
		f.mu.Lock()
		st.stream.reset()
		st.requests++
		f.asked, f.answered = time.Time{}, time.Time{}
		f.mu.Unlock()
		n, err := f.port.Write(st.dev.Frame.Request)
		f.mu.Lock()
		f.bytesOut += uint64(n)
		end := time.Now().Add(time.Duration(n) * charTime(f.bus))
		f.asked = end
		if n > 0 {
			f.noteLocked(devices.Frame{At: end, Out: true, Data: st.dev.Frame.Request[:n], Mark: devices.MarkOK})
		}
		f.mu.Unlock()
		if err != nil {
			return tries, err
		}
		err = f.await(ctx, time.Until(end)+f.bus.Timeout, func() bool { return st.fresh(points, last) > 0 })
		f.mu.Lock()
		if err == nil {
			st.trip(max(f.answered.Sub(end), 0), max(st.heard.Sub(end), 0))
		} else if errors.Is(err, devices.ErrNoAnswer) {
			st.timeouts++
			f.timeouts++
			f.noteLocked(devices.Frame{At: time.Now(), RTT: time.Since(end), Mark: devices.MarkSilence})
		}
		f.asked = time.Time{}
		f.mu.Unlock()
		if !errors.Is(err, devices.ErrNoAnswer) || tries > f.bus.Retries {
			return tries, err
		}
	}
}

// await waits until done, which is called with the lock held, or ErrNoAnswer.
func (f *Field) await(ctx context.Context, limit time.Duration, done func() bool) error {
	t := time.NewTimer(max(limit, 0))
	defer t.Stop()
	for {
		f.mu.Lock()
		ok, err := done(), f.err
		f.mu.Unlock()
		switch {
		case ok:
			return nil
		case err != nil:
			return err
		}
		select {
		case <-f.news:
		case <-t.C:
			return devices.ErrNoAnswer
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// silenceLocked is why a sensor gave nothing, with the finding that says so to
// people. noise: bytes came, but no good frame.
func (f *Field) silenceLocked(st *station, g *devices.Group, fails int, noise bool) (devices.Finding, error) {
	kind := g.Device.Frame.Kind + " frames"
	switch g.Device.Frame.Kind {
	case "nmea", "sml", "p1":
		kind = strings.ToUpper(g.Device.Frame.Kind)
	case "line":
		kind = "lines of text"
	}
	on := fmt.Sprintf("%d %s", f.bus.Baud, f.bus.Format())
	if f.bus.TCP != "" {
		on = f.bus.TCP
	}
	since := time.Duration(fails) * g.Interval
	long := report.Duration(since)
	if since < 2*time.Minute && since%time.Second == 0 {
		long = fmt.Sprintf("%d s", since/time.Second)
	}
	err, text := devices.ErrNoAnswer, fmt.Sprintf("no data for %s (%s, %s)", long, kind, on)
	if noise {
		err, text = devices.ErrBadFrame, fmt.Sprintf("bytes but no good frame for %s (%s, %s): baud or format right?", long, kind, on)
	}
	if !st.heard.IsZero() {
		text += fmt.Sprintf("; last good reading %s ago", report.Duration(time.Since(st.heard)))
	}
	return devices.Finding{Err: "no-data", Level: slog.LevelWarn, Text: text}, err
}

// noiseLocked says that since the last poll or probe bytes came which were no
// good frame. A round without any frame, good or damaged, counts as a bad one.
func (f *Field) noiseLocked(st *station, heard bool) bool {
	lost := [2]uint64{st.stream.bad, st.stream.stale + st.stream.overrun}
	noise := lost != st.judged
	if noise && !heard && lost[0] == st.judged[0] {
		f.noisy++
	}
	st.judged = lost
	return noise
}

// Wait is 0: nothing of a sensor can be mistaken.
func (f *Field) Wait(*devices.Group) time.Duration { return 0 }

// Probe waits for any good frame that came since the last one was taken, or
// asks, with the retries of the bus.
func (f *Field) Probe(ctx context.Context, dev *config.Device) error {
	st := f.station(dev)
	if st == nil {
		return fmt.Errorf("device %s is not on bus %s", dev.Name, f.bus.Name)
	}
	f.mu.Lock()
	f.polls++
	last := st.frames
	f.mu.Unlock()
	var err error
	if len(dev.Frame.Request) > 0 {
		all := make([]int, len(dev.Points))
		for i := range all {
			all[i] = i
		}
		_, err = f.ask(ctx, st, all, last)
	} else {
		err = f.await(ctx, f.bus.Timeout, func() bool {
			return slices.ContainsFunc(st.cells, func(c cell) bool { return c.frame > 0 && !c.taken })
		})
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.noiseLocked(st, err == nil)
	return err
}

// ProbeTime is the time-out, for each try of a polled sensor.
func (f *Field) ProbeTime(dev *config.Device) time.Duration {
	if dev.Frame != nil && len(dev.Frame.Request) > 0 {
		return time.Duration(f.bus.Retries+1) * f.bus.Timeout
	}
	return f.bus.Timeout
}
