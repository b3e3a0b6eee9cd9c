package sim

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Faults is what goes wrong. The zero value is a good wire. Shares are
// probabilities, 0..1, drawn from the seed of the bus. A Unit has its own
// Faults beside those of its Bus; both act.
type Faults struct {
	Dead      bool          // no answer, no talk
	Lose      float64       // answers that never come
	Damage    float64       // answers with one bit wrong
	BitError  float64       // characters with one bit wrong
	Cut       float64       // answers that lose some bytes in the middle
	Late      float64       // answers that come LateBy later
	LateBy    time.Duration //
	Noise     float64       // answers in whose place noise comes; they come LateBy later
	Foreign   float64       // answers before which a good frame of another unit comes
	Stray     float64       // answers that StrayByte precedes
	StrayByte byte          //
	Except    float64       // answers that are exception Code instead
	Code      byte          //
	Double    bool          // two units answer under one address

	// These belong to the bus; on a Unit they have no meaning.
	Echo         bool          // the adapter hears what it sends
	Silent       bool          // no byte ever arrives
	WrongBaud    bool          // bytes arrive but are nonsense
	SecondMaster time.Duration // another master asks unit 4 this often
}

// Stats is the truth about a bus, against which a reader can be judged.
type Stats struct {
	Requests      uint64        // frames of the port's side that the silence ended
	Answers       uint64        // frames of units put on the wire
	Wire          time.Duration // time that characters of both sides took
	GapViolations uint64        // requests that began before t3.5 of silence
	Collisions    uint64        // requests or answers that another one overlapped
	BadRequests   uint64        // requests with a wrong check
	Unheard       uint64        // requests to a unit that is not there or is dead
	Lost          uint64
	Damaged       uint64
	Late          uint64
	Foreign       uint64
	Stray         uint64
	Exceptions    uint64
	Talks         uint64 // frames of a talker
	Overrun       uint64 // bytes dropped because nobody read them
}

// Inject switches one fault on, written as busgate demo --fault takes it:
//
//	crc=5%  dead=2  dead=all  late=1200ms  busy=10%  exception=4  noise
//	noise=00-first  double=1  silent  wrong-baud  second-master  echo
//	lose=10%  cross-talk=10%  cut=5%
//
// It adds to the faults that are on.
func (b *Bus) Inject(text string) error {
	name, arg, _ := strings.Cut(text, "=")
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.faults
	var err error
	switch name {
	case "crc":
		f.Damage, err = share(arg, 0.05)
	case "lose":
		f.Lose, err = share(arg, 0.10)
	case "cross-talk":
		f.Foreign, err = share(arg, 0.10)
	case "cut":
		f.Cut, err = share(arg, 0.05)
	case "busy":
		f.Except, err = share(arg, 0.10)
		f.Code = 6
	case "exception":
		var n uint64
		n, err = strconv.ParseUint(arg, 10, 7)
		f.Except, f.Code = 1, byte(n)
	case "late":
		f.LateBy, err = time.ParseDuration(arg)
		f.Late = 1
	case "noise":
		if arg == "00-first" {
			f.Stray, f.StrayByte = 1, 0
		} else {
			f.BitError, err = share(arg, 0.005)
		}
	case "dead", "double":
		return b.injectUnitLocked(name, arg)
	case "silent":
		f.Silent = true
	case "wrong-baud":
		f.WrongBaud = true
	case "second-master":
		f.SecondMaster = 7 * time.Second
	case "echo":
		f.Echo = true
	default:
		return fmt.Errorf("inject %q: no such fault of a bus", text)
	}
	if err != nil {
		return fmt.Errorf("inject %q: %w", text, err)
	}
	b.setFaultsLocked(f)
	return nil
}

// injectUnitLocked switches a fault of one unit on, or of all.
func (b *Bus) injectUnitLocked(name, arg string) error {
	if name == "dead" && arg == "all" {
		b.faults.Dead = true
		return nil
	}
	id, err := strconv.ParseUint(arg, 10, 8)
	if err != nil {
		return fmt.Errorf("inject %s=%s: %w", name, arg, err)
	}
	u := b.units[byte(id)]
	if u == nil {
		return fmt.Errorf("inject %s=%s: there is no unit %d", name, arg, id)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if name == "dead" {
		u.faults.Dead = true
	} else {
		u.faults.Double = true
	}
	return nil
}

// share reads "5%" or "0.05".
func share(s string, otherwise float64) (float64, error) {
	if s == "" {
		return otherwise, nil
	}
	num, percent := strings.CutSuffix(s, "%")
	v, err := strconv.ParseFloat(num, 64)
	if err != nil {
		return 0, err
	}
	if percent {
		v /= 100
	}
	if !(v >= 0 && v <= 1) {
		return 0, fmt.Errorf("%s is not from 0%% to 100%%", s)
	}
	return v, nil
}
