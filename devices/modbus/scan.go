package modbus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"busgate/config"
	"busgate/devices"
)

// Setting is how characters travel on a serial line. The zero Setting is that
// of a network endpoint, which has none.
type Setting struct {
	Baud   int    // bit/s
	Format string // "8N1"
}

// DefaultSettings are those that devices come with, the likeliest first.
func DefaultSettings() []Setting {
	list := []Setting{{9600, "8N1"}, {9600, "8E1"}, {19200, "8E1"}, {19200, "8N1"}}
	for _, baud := range []int{38400, 57600, 115200, 4800, 2400} {
		list = append(list, Setting{baud, "8N1"}, Setting{baud, "8E1"})
	}
	return list
}

// Outcome is what came of a setting.
type Outcome uint8

const (
	Silence    Outcome = iota // not one byte
	Answers                   // at least one unit
	Noise                     // bytes, but no frame: a wrong setting
	Impossible                // the port cannot be set to it
)

// Scan is a search for units on one wire. Its functions are called one at a
// time from the goroutine of Driver.Scan.
type Scan struct {
	Bus      *config.Bus       // the wire; baud, format and timeout are those of the search
	Settings []Setting         // in order, at least one; of a tcp bus none
	Units    []uint8           // in order; nil = 1 to 10 at every setting, then the others
	Timeout  time.Duration     // for an answer; 0 = three times the slowest seen, 100 ms to 2 s
	Fast     bool              // units 1 to 10 only, and the first setting that answers ends it
	Profiles []*config.Profile // to recognise models by
	Log      *slog.Logger

	Begin func(s Setting, units []uint8) // a setting is tried for these units; once or twice
	Found func(Sighting)                 // a unit
	Done  func(Setting, Outcome)         // nothing more comes at this setting
}

// Sighting is a unit that answers.
type Sighting struct {
	Setting Setting
	Unit    uint8
	Answer  string        // to the first question: "input 0 = 17254", "exception 2 to input 0", "damaged answers"
	Took    time.Duration // from the end of the question to the first byte of the answer
	EveryID bool          // it answers to every unit number
	Damaged bool          // only damaged answers came, as from two units with one number
	Fits    []Fit         // profiles that fit, none or one; more when they cannot be told apart
}

// Fit is a profile whose probe fits.
type Fit struct {
	Profile *config.Profile
	Point   *config.Point // nil for a probe of raw registers
	Value   devices.Value
}

const (
	firstUnits = 10
	lastUnit   = 247 // Modbus over serial line v1.02, 2.2
	minPatient = 100 * time.Millisecond
	maxPatient = 2 * time.Second
	// firstPatience is for the first answer over a network, which a gateway may have to ask for.
	firstPatience = 300 * time.Millisecond
	// linger is how long is listened after the last question for an answer that comes late.
	linger = 400 * time.Millisecond
)

// Scan searches a wire, which it opens and locks for each setting anew. It only
// reads: function 04, then 03, for register 0 of each unit, and what tells the
// profiles apart of those that answer. Any answer proves a unit, an exception
// too, unless a gateway gives it for a unit that is silent.
//
// The error is nil when the search came to its end, the context's, or a
// devices.Trouble of the wire.
func (d *Driver) Scan(ctx context.Context, sc Scan) error {
	if sc.Bus.TCP != "" {
		sc.Settings = []Setting{{}}
	}
	s := &scanner{driver: d, Scan: sc, outcome: make([]Outcome, len(sc.Settings)), seen: map[sighted]bool{}}
	passes := s.passes()
	for i, units := range passes {
		for _, k := range s.order() {
			if s.outcome[k] > Answers {
				continue
			}
			if err := s.at(ctx, k, units); err != nil {
				return err
			}
			if i == len(passes)-1 || s.outcome[k] > Answers {
				s.Done(s.Settings[k], s.outcome[k])
			}
			if s.Fast && s.outcome[k] == Answers {
				return nil
			}
		}
	}
	return nil
}

// scanner is a Scan while it runs.
type scanner struct {
	Scan
	driver  *Driver
	outcome []Outcome // of each setting so far
	seen    map[sighted]bool
	slowest time.Duration // longest time that an answer took

	// at the setting of the moment
	setting Setting
	field   *field
	frames  bool    // a good frame came
	damaged []uint8 // units after whose question came bytes that are no frame
}

type sighted struct {
	setting Setting
	unit    uint8
}

// passes are the units that are asked at every setting, one list after another:
// the likely ones first, for a whole pass takes a minute a setting.
func (s *scanner) passes() [][]uint8 {
	if s.Units != nil {
		return [][]uint8{s.Units}
	}
	var likely, rest []uint8
	for u := 1; u <= lastUnit; u++ {
		if u <= firstUnits {
			likely = append(likely, uint8(u))
		} else {
			rest = append(rest, uint8(u))
		}
	}
	if s.Bus.Protocol == "modbus-tcp" { // of a device that is no gateway: Modbus messaging on TCP v1.0b, 4.4.1.2
		likely = append(likely, 255, 0)
	}
	switch {
	case s.Fast:
		return [][]uint8{likely}
	case len(s.Settings) == 1:
		return [][]uint8{append(likely, rest...)}
	}
	return [][]uint8{likely, rest}
}

// order is the settings, those that answered first.
func (s *scanner) order() []int {
	var yes, no []int
	for k := range s.Settings {
		if s.outcome[k] == Answers {
			yes = append(yes, k)
		} else {
			no = append(no, k)
		}
	}
	return append(yes, no...)
}

// at tries one setting.
func (s *scanner) at(ctx context.Context, k int, units []uint8) error {
	s.setting, s.frames, s.damaged = s.Settings[k], s.outcome[k] == Answers, nil
	bus := *s.Bus
	bus.Retries = 1
	if bus.TCP == "" {
		f := s.setting.Format
		bus.Baud, bus.DataBits, bus.Parity, bus.StopBits = s.setting.Baud, int(f[0]-'0'), f[1], int(f[2]-'0')
	}
	opened, err := s.driver.Open(ctx, devices.Wire{Bus: &bus, Log: s.Log})
	if t, ok := errors.AsType[devices.Trouble](err); ok && t.Word() == "port-settings" && len(s.Settings) > 1 {
		s.outcome[k] = Impossible
		return nil
	}
	if err != nil {
		return err
	}
	s.field = opened.(*field)
	defer s.field.Close()
	s.Begin(s.setting, units)
	err = s.sweep(ctx, units)
	if s.found() {
		s.outcome[k] = Answers
	}
	if errors.Is(err, errNoise) {
		s.outcome[k] = Noise
		return nil
	}
	return err
}

// found says that a unit answers at the setting of the moment.
func (s *scanner) found() bool {
	for key := range s.seen {
		if key.setting == s.setting {
			return true
		}
	}
	return false
}

// errNoise ends a setting at which bytes come that form no frame.
var errNoise = errors.New("bytes, but no frame")

// sweep asks each unit in turn. An answer that comes late, while the next unit
// is asked, proves its unit as well: that is asked again with more patience.
func (s *scanner) sweep(ctx context.Context, units []uint8) error {
	if done, err := s.everyID(ctx); done || err != nil {
		return err
	}
	silent := false
	for _, id := range units {
		found, err := s.ask(ctx, id)
		if err != nil {
			return err
		}
		silent = silent || !found
		if err := s.latecomers(ctx); err != nil {
			return err
		}
	}
	if silent && s.Bus.Protocol != "modbus-tcp" {
		if err := s.listen(ctx); err != nil {
			return err
		}
		if err := s.latecomers(ctx); err != nil {
			return err
		}
	}
	for _, id := range s.damaged {
		if key := (sighted{s.setting, id}); !s.seen[key] {
			s.seen[key] = true
			s.Found(Sighting{Setting: s.setting, Unit: id, Answer: "damaged answers", Damaged: true})
		}
	}
	return nil
}

// listen waits for what the last unit may still say.
func (s *scanner) listen(ctx context.Context) error {
	timer := time.NewTimer(linger)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
	}
	s.field.link.owing(seal([]byte{lastUnit, 4, 0, 0, 0, 1})) // looks through what has come
	return nil
}

// latecomers asks the units again whose answer came too late.
func (s *scanner) latecomers(ctx context.Context) error {
	for n := range 256 {
		id := uint8(n)
		u := s.field.units[id]
		if u == nil || u.counts.Late == 0 || s.seen[sighted{s.setting, id}] {
			continue
		}
		u.counts.Late = 0
		s.slowest = max(s.slowest, u.latest)
		if _, err := s.ask(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// ask looks whether a unit is there and what it is.
func (s *scanner) ask(ctx context.Context, id uint8) (found bool, err error) {
	answer, took, err := s.knock(ctx, id)
	if err != nil || answer == "" {
		return false, err
	}
	return true, s.report(ctx, Sighting{Setting: s.setting, Unit: id, Answer: answer, Took: took})
}

func (s *scanner) report(ctx context.Context, x Sighting) error {
	key := sighted{s.setting, x.Unit}
	if s.seen[key] {
		return nil
	}
	s.seen[key] = true
	fits, err := s.identify(ctx, x.Unit)
	if err == nil || ctx.Err() != nil { // what was found is kept also at the end
		x.Fits = fits
		s.Found(x)
	}
	return err
}

// knock asks a unit for its register 0 and says what it answered, "" for nothing.
func (s *scanner) knock(ctx context.Context, id uint8) (answer string, took time.Duration, err error) {
	damaged := 0
	for _, table := range []string{"input", "holding"} {
		where := span{table, 0, 1}
		for try := 0; try < 2; try++ {
			u := s.field.unitOf(&config.Device{UnitID: id, MaxRead: 125})
			raw, err := s.field.read(ctx, u, where, patience{timeout: s.timeout(), window: maxWindow})
			x, refused := errors.AsType[*devices.Exception](err)
			switch {
			case refused && (x.Code == exGatewayPath || x.Code == exGatewayTarget):
				s.heard()
				return "", 0, nil
			case refused:
				return fmt.Sprintf("exception %d to %s", x.Code, where), s.heard(), nil
			case err == nil:
				return fmt.Sprintf("%s = %d", where, binary.BigEndian.Uint16(raw)), s.heard(), nil
			case errors.Is(err, devices.ErrNoAnswer):
			case errors.Is(err, devices.ErrBadFrame):
				damaged++
				continue // once more: a single one may be noise, or a late answer
			default:
				return "", 0, err
			}
			break
		}
	}
	if damaged >= 2 {
		s.damaged = append(s.damaged, id)
		if len(s.damaged) >= 2 && !s.frames { // one alone may be two units with one number
			return "", 0, errNoise
		}
	}
	return "", 0, nil
}

// heard notes a good frame and how long it took to come.
func (s *scanner) heard() time.Duration {
	s.frames = true
	x := s.field.link.timings()
	took := max(x.first.Sub(x.sent), 0) // a pseudo terminal answers sooner than the wire could
	s.slowest = max(s.slowest, took)
	return took
}

// timeout is how long an answer may take.
func (s *scanner) timeout() time.Duration {
	if s.Timeout > 0 {
		return s.Timeout
	}
	if s.Bus.TCP != "" { // no latency on top: answers that come late are known as such
		if s.slowest == 0 {
			return firstPatience
		}
		return min(max(3*s.slowest, minPatient), maxPatient)
	}
	return min(max(3*s.slowest, minPatient), maxPatient) + s.field.timing.latency
}

// everyID finds out whether a Modbus TCP device takes no notice of the unit
// number, as many without a bus behind them do: it would be found 249 times.
func (s *scanner) everyID(ctx context.Context) (bool, error) {
	if s.Bus.Protocol != "modbus-tcp" || s.Units != nil {
		return false, nil
	}
	var first Sighting
	for _, id := range []uint8{1, 83, 166, 247} {
		answer, took, err := s.knock(ctx, id)
		if err != nil || answer == "" {
			return false, err
		}
		if id == 1 {
			first = Sighting{Setting: s.setting, Unit: 1, Answer: answer, EveryID: true, Took: took}
		}
	}
	return true, s.report(ctx, first)
}
