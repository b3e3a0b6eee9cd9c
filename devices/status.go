package devices

import (
	"log/slog"
	"slices"
	"time"
)

// BusStatus is what the status page and the metrics show of a bus.
type BusStatus struct {
	Name     string
	Open     bool
	Devices  int       // those that are asked
	Online   int       // of them
	Since    time.Time // of Open, or of the trouble
	Err      string    // word of what is wrong, "" when nothing is
	Text     string
	U        float64 // share of its time that the bus needs, over the last minute
	Stretch  float64 // of all intervals; 1 = as configured
	Counts   Counts  // since the start
	Errors1h uint64  // answers that came damaged or not at all, in the last hour
	Reopened uint64
	FDHigh   uint64 // times that the port got a descriptor above 1023 and was closed again
	Queue    int    // commands that wait
	Refused  uint64 // commands refused because too many waited
	Guest    string // who has the bus for itself, so that polls wait; "" for nobody
	Dropped  uint64 // frames that somebody who watched the bus did not take in time
	SinkSlow uint64 // rounds that the sink took longer than 1 s for
	RTT50    time.Duration
	RTT95    time.Duration
	Polls    PollTimes // since the start
}

// PollBounds are the upper bounds of PollTimes.Counts, rising.
var PollBounds = [...]time.Duration{
	5 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond,
	200 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second,
}

// PollTimes are how long polls of one device had a bus. Polls that did not use
// it are left out.
type PollTimes struct {
	Counts [len(PollBounds) + 1]uint64 // by PollBounds, each with its bound, and those above all
	Sum    time.Duration
}

func (p *PollTimes) note(took time.Duration) {
	if took > 0 {
		i, _ := slices.BinarySearch(PollBounds[:], took)
		p.Counts[i]++
		p.Sum += took
	}
}

// DeviceStatus is what the status page and the metrics show of a device.
type DeviceStatus struct {
	Name, Bus   string
	Unit        uint8
	Online      bool
	LastGood    time.Time // zero: never
	Rounds      uint64    // asked
	Failed      uint64    // without any answer
	Missed      uint64    // turns that never came
	RangeErrors uint64
	EnumUnknown uint64 // numbers that no word of an enum stands for
	Rounded     uint64 // values of more than 64 bits, whose last digits are lost
	Err         string // word of what is wrong, "" when nothing is
	LastError   string // text of the newest failure, also when it is over
	Counts      UnitCounts
}

// Status is a picture of all buses and devices, each list in the order of the
// names of the buses. It does not wait for a bus.
func (f *Fleet) Status() ([]BusStatus, []DeviceStatus) {
	var buses []BusStatus
	var devs []DeviceStatus
	for _, b := range f.sorted() {
		b.mu.Lock()
		s := b.shown
		s.Queue, s.Refused = len(b.queue), b.refused
		buses = append(buses, s)
		devs = append(devs, b.shownOf...)
		b.mu.Unlock()
	}
	return buses, devs
}

// show makes the picture; the goroutine of the bus calls it after each step.
func (b *bus) show() {
	worst := b.problem
	if worst.Err == "" {
		worst, _ = b.noted(slog.LevelDebug)
	}
	s := BusStatus{Name: b.name, Open: b.field != nil, Devices: len(b.devs), Since: b.opened, Err: worst.Err, Text: worst.Text,
		U: b.load.u, Stretch: b.load.stretch, Counts: b.sum, Reopened: b.reopens, FDHigh: b.fdHigh, SinkSlow: b.sinkSlow, Polls: b.polls}
	if b.field != nil {
		s.Counts.add(b.field.Counts())
	} else {
		s.Since = b.problem.Since
	}
	s.Errors1h = b.errors.lastHour(time.Since(b.born), s.Counts.Bad+s.Counts.Timeouts)
	list := make([]DeviceStatus, len(b.devs))
	for i, d := range b.devs {
		if b.field != nil {
			d.counts = b.field.Unit(d.cfg)
		}
		list[i] = d.status()
		if d.online {
			s.Online++
		}
		s.RTT50 = max(s.RTT50, d.counts.RTT50)
		s.RTT95 = max(s.RTT95, d.counts.RTT95)
	}
	s.Dropped = b.tap.Dropped()
	b.mu.Lock()
	s.Guest = b.guest
	b.shown, b.shownOf = s, list
	b.mu.Unlock()
}

func (d *device) status() DeviceStatus {
	s := DeviceStatus{Name: d.cfg.Name, Bus: d.bus.name, Unit: d.cfg.UnitID, Online: d.online, LastGood: d.good,
		Rounds: d.rounds, Failed: d.failures, Missed: d.missed, RangeErrors: d.rangeErrors, EnumUnknown: d.enumUnknown, Rounded: d.rounded,
		Err: d.worst().Err, LastError: d.lastError, Counts: d.counts}
	for _, g := range d.groups {
		s.Missed += g.missed
	}
	return s
}

// hourly turns a counter that rises into how much of it came in the last hour,
// by minutes.
type hourly struct {
	total  uint64
	minute int // of the newest bucket
	counts [60]uint64
}

// lastHour notes that the counter stands at total, at a time that never goes back.
func (h *hourly) lastHour(at time.Duration, total uint64) (n uint64) {
	minute := int(at / time.Minute)
	for range min(minute-h.minute, len(h.counts)) {
		h.minute++
		h.counts[h.minute%len(h.counts)] = 0
	}
	h.minute = minute
	h.counts[minute%len(h.counts)] += total - h.total
	h.total = total
	for _, c := range h.counts {
		n += c
	}
	return n
}
