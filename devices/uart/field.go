package uart

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"busgate/config"
	"busgate/devices"
)

const (
	idleAfter = 20 * time.Millisecond // silence that ends a frame of kind idle
	readSlice = 100 * time.Millisecond
)

// Field is one open line with its sensors. One goroutine reads it from Open to
// Close; the fleet's calls take what it found.
type Field struct {
	bus  *config.Bus
	log  *slog.Logger
	tap  *devices.Tap // may be nil
	port Port
	stop chan struct{}
	wg   sync.WaitGroup
	news chan struct{} // one token: something arrived, or the line failed

	mu       sync.Mutex
	stations []*station
	err      error // the line failed
	bytesIn  uint64
	bytesOut uint64
	lastIn   time.Time
	quiet    bool   // no byte for the time of idle
	polls    uint64 // and probes
	noisy    uint64 // ... that brought bytes but no frame, not even a damaged one
	timeouts uint64
	asked    time.Time // end of the request that is waited for; zero: none
	answered time.Time // its first byte
	shown    time.Time // end of the last frame on the tap
}

var _ devices.Field = (*Field)(nil)

func newField(w devices.Wire, p Port) *Field {
	f := &Field{bus: w.Bus, log: w.Log, tap: w.Tap, port: p, stop: make(chan struct{}), news: make(chan struct{}, 1)}
	f.Devices(w.Devices)
	f.wg.Go(f.read)
	return f
}

// read feeds every station until Close or until the line fails.
func (f *Field) read() {
	buf := make([]byte, 1024)
	wait := f.idle()
	for {
		select {
		case <-f.stop:
			return
		default:
		}
		n, err := 0, f.port.SetReadTimeout(wait)
		if err == nil {
			n, err = f.port.Read(buf)
		}
		quiet, news := f.heard(buf[:n], err)
		wait = readSlice
		if !quiet {
			wait = f.idle() // to notice when the silence begins
		}
		if news {
			select {
			case f.news <- struct{}{}:
			default:
			}
		}
		if err != nil {
			return
		}
	}
}

// heard takes what one Read gave: quiet says that the line is silent, news that
// a frame ended or the line failed.
func (f *Field) heard(b []byte, err error) (quiet, news bool) {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
	if len(b) > 0 {
		f.bytesIn += uint64(len(b))
		f.lastIn = now
		if !f.asked.IsZero() && f.answered.IsZero() {
			f.answered = now
		}
	}
	quiet = len(b) == 0 && now.Sub(f.lastIn) >= f.idle()
	news = quiet && !f.quiet
	f.quiet = quiet
	for _, st := range f.stations {
		news = st.feed(b, quiet, now) || news
	}
	return quiet, news || err != nil
}

// idle is the silence that ends a frame: 20 ms, more on a line so slow that two
// characters may be that far apart.
func (f *Field) idle() time.Duration { return max(idleAfter, 4*charTime(f.bus)) }

// Set is errors.ErrUnsupported: sensors take no values.
func (f *Field) Set(context.Context, *config.Device, []devices.Item) error {
	return errors.ErrUnsupported
}

// Get is errors.ErrUnsupported.
func (f *Field) Get(context.Context, *config.Device, *config.Point) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

// Devices changes the sensors; what did not change keeps what it has heard. One
// that makes no sense is left out and logged.
func (f *Field) Devices(devs []*config.Device) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var next []*station
	for _, d := range devs {
		st, err := newStation(d)
		if err != nil {
			f.log.Error("sensor left out", "bus", f.bus.Name, "device", d.Name, "err", err)
			continue
		}
		if f.tap != nil {
			st.show = f.shower(len(next) == 0)
		}
		if old := f.stationLocked(d.Name); old != nil {
			st.inherit(old)
		}
		next = append(next, st)
	}
	f.stations = next
}

// shower gives what a station hears to the tap. Several stations of one line hear
// the same: only the first tells of what is lost. f.mu is held when it is called.
func (f *Field) shower(first bool) func(b []byte, mark devices.Mark, at time.Time) {
	return func(b []byte, mark devices.Mark, at time.Time) {
		if !first && mark != devices.MarkOK {
			return
		}
		x := devices.Frame{At: at, Data: b, Mark: mark}
		if mark == devices.MarkOK && !f.asked.IsZero() && f.answered.After(f.asked) {
			x.RTT = f.answered.Sub(f.asked)
		}
		f.noteLocked(x)
	}
}

// noteLocked shows a frame, with the silence that was before it as far as the
// reads of the line tell.
func (f *Field) noteLocked(x devices.Frame) {
	if !f.shown.IsZero() {
		x.Gap = max(0, x.At.Sub(f.shown)-time.Duration(len(x.Data))*charTime(f.bus))
	}
	f.shown = x.At
	f.tap.Note(x)
}

func (f *Field) station(dev *config.Device) *station {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stationLocked(dev.Name)
}

func (f *Field) stationLocked(name string) *station {
	for _, st := range f.stations {
		if st.dev.Name == name {
			return st
		}
	}
	return nil
}

// Counts are the counters since Open. Requests are the polls and probes, also of
// talkers, which are not asked; a poll that brought bytes but nothing like a
// frame counts as a bad one.
func (f *Field) Counts() devices.Counts {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := devices.Counts{BytesIn: f.bytesIn, BytesOut: f.bytesOut, Requests: f.polls, Timeouts: f.timeouts, Bad: f.noisy}
	for _, st := range f.stations {
		c.Good += st.stream.good
		c.Bad += st.stream.bad
		c.Stale += st.stream.stale
		c.Overrun += st.stream.overrun
		c.Skipped += st.skipped
		c.Unchecked += st.unchecked
	}
	return c
}

// Unit are the counters of one sensor.
func (f *Field) Unit(dev *config.Device) devices.UnitCounts {
	st := f.station(dev)
	if st == nil {
		return devices.UnitCounts{}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	u := devices.UnitCounts{Requests: st.requests, Good: st.stream.good, Bad: st.stream.bad, Timeouts: st.timeouts, Skipped: st.skipped, Heard: st.heard, Timeout: f.bus.Timeout}
	if len(st.trips) > 0 {
		sorted := slices.Sorted(slices.Values(st.trips))
		u.RTT50, u.RTT95 = sorted[len(sorted)/2], sorted[len(sorted)*95/100]
		u.Turnaround = slices.Sorted(slices.Values(st.first))[len(st.first)/2]
	}
	return u
}

// Close ends the reader and closes the line.
func (f *Field) Close() error {
	close(f.stop)
	err := f.port.Close()
	f.wg.Wait()
	return err
}
