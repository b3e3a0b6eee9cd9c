package uart

import (
	"errors"
	"reflect"
	"time"

	"busgate/config"
	"busgate/devices"
)

// station is one sensor: its stream, and for each point the newest value.
type station struct {
	dev    *config.Device
	stream stream
	show   func(b []byte, mark devices.Mark, at time.Time) // for those who watch; nil: nobody
	picks  []pick
	cells  []cell

	frames    uint64 // good ones so far; the number of the newest
	skipped   uint64 // good ones of which a value was replaced before a poll took it
	unchecked uint64 // good ones whose protocol may leave the check out, and did
	heard     time.Time
	bad       share
	judged    [2]uint64 // bad frames and lost bytes at the last poll or probe

	requests, timeouts uint64
	trips              []time.Duration // of the last 64 answers of a polled sensor
	first              []time.Duration // to their first byte
	next               int
}

// cell is the newest value of one point.
type cell struct {
	v     devices.Value
	q     devices.Quality
	err   error
	at    time.Time
	frame uint64 // which frame it came from; 0: none yet
	taken bool   // by a poll
}

func newStation(dev *config.Device) (*station, error) {
	if dev.Frame == nil {
		return nil, errors.New("a UART device needs a frame, or a profile that has one")
	}
	f := dev.Frame
	fr, err := newFramer(f, len(f.Request) == 0)
	if err != nil {
		return nil, err
	}
	check, err := newCheck(f)
	if err != nil {
		return nil, err
	}
	st := &station{dev: dev, stream: stream{framer: fr, check: check}, cells: make([]cell, len(dev.Points))}
	for i := range dev.Points {
		pk, err := newPick(f, &dev.Points[i])
		if err != nil {
			return nil, err
		}
		st.picks = append(st.picks, pk)
	}
	return st, nil
}

// inherit keeps what the station of the same device had heard before a reload,
// as far as its frame and points are the same.
func (st *station) inherit(old *station) {
	if !reflect.DeepEqual(st.dev.Frame, old.dev.Frame) {
		return
	}
	dev, picks, cells, show := st.dev, st.picks, st.cells, st.show
	if reflect.DeepEqual(dev.Points, old.dev.Points) {
		cells = old.cells
	}
	*st = *old
	st.dev, st.picks, st.cells, st.show = dev, picks, cells, show
}

// feed takes bytes that came at now and reports whether a good frame ended.
func (st *station) feed(b []byte, quiet bool, now time.Time) bool {
	good, bad := st.stream.good, st.stream.bad
	st.stream.lost = st.watched(now)
	st.stream.feed(b, quiet, func(raw []byte) { st.take(raw, now) })
	st.bad.add(now, st.stream.good-good, st.stream.bad-bad)
	return st.stream.good > good
}

// watched shows what is lost of the bytes that came at now.
func (st *station) watched(now time.Time) func(b []byte, damaged bool) {
	if st.show == nil {
		return nil
	}
	return func(b []byte, damaged bool) {
		mark := devices.MarkStray
		if damaged {
			mark = devices.MarkCRC
		}
		st.show(b, mark, now)
	}
}

// take puts the values of a good frame into the cells.
func (st *station) take(raw []byte, now time.Time) {
	st.frames++
	st.heard = now
	if st.show != nil {
		st.show(raw, devices.MarkOK, now)
	}
	if bare(st.dev.Frame, raw) {
		st.unchecked++
	}
	f := newFrame(st.dev.Frame, raw)
	replaced := false
	for i, pk := range st.picks {
		v, q, ok, err := pk(f)
		if !ok {
			continue
		}
		c := &st.cells[i]
		replaced = replaced || c.frame > 0 && !c.taken
		*c = cell{v: v, q: q, err: err, at: now, frame: st.frames}
	}
	if replaced {
		st.skipped++
	}
}

// fresh counts the points of the group that have a value newer than the frame last.
func (st *station) fresh(points []int, last uint64) (n int) {
	for _, i := range points {
		if st.cells[i].frame > last {
			n++
		}
	}
	return n
}

// taken is the newest frame that polls have taken a value of the group from.
func (st *station) taken(points []int) (last uint64) {
	for _, i := range points {
		if c := &st.cells[i]; c.taken {
			last = max(last, c.frame)
		}
	}
	return last
}

// collect moves what is newer than the frame last into an answer.
func (st *station) collect(points []int, last uint64) devices.Answer {
	var a devices.Answer
	for _, i := range points {
		if c := &st.cells[i]; c.frame > last && c.at.After(a.At) {
			a.At = c.at
		}
	}
	for _, i := range points {
		c := &st.cells[i]
		if c.frame <= last {
			continue
		}
		c.taken = true
		name := st.dev.Points[i].Name
		if c.err != nil {
			a.Errors = append(a.Errors, devices.PointError{Point: name, Code: "out-of-range", Text: c.err.Error()})
			continue
		}
		a.Values = append(a.Values, devices.Reading{Point: name, Value: c.v, Quality: c.q, Off: c.at.Sub(a.At)})
	}
	a.Heard = !a.At.IsZero()
	return a
}

// trip notes how long an answer took from the end of the request.
func (st *station) trip(first, whole time.Duration) {
	if len(st.trips) < 64 {
		st.trips, st.first = append(st.trips, whole), append(st.first, first)
		return
	}
	st.trips[st.next], st.first[st.next] = whole, first
	st.next = (st.next + 1) % 64
}

// share counts good and bad frames of the last hour, by minutes.
type share struct {
	minute int64 // of the newest bucket
	counts [60]struct{ good, bad uint64 }
}

func (s *share) add(now time.Time, good, bad uint64) {
	m := now.Unix() / 60
	if m-s.minute >= 60 {
		s.counts = [60]struct{ good, bad uint64 }{}
		s.minute = m
	}
	for s.minute < m {
		s.minute++
		s.counts[s.minute%60] = struct{ good, bad uint64 }{}
	}
	c := &s.counts[m%60]
	c.good += good
	c.bad += bad
}

// percent is the share of bad frames of the last hour, and how many there were.
func (s *share) percent(now time.Time) (percent float64, bad uint64) {
	s.add(now, 0, 0)
	var good uint64
	for _, c := range s.counts {
		good += c.good
		bad += c.bad
	}
	if good+bad == 0 {
		return 0, 0
	}
	return 100 * float64(bad) / float64(good+bad), bad
}
