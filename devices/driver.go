package devices

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"busgate/config"
)

// Driver is a field protocol: devices/modbus and devices/uart. Its methods are
// safe for concurrent use; one Driver serves all buses of its protocol.
type Driver interface {
	// Open opens the wire of one bus. It returns a Trouble when the wire cannot
	// be had (port busy, no permission, connection refused); the fleet reports
	// it and tries again, first after 1 s. Open obeys ctx and does not wait
	// longer than a few seconds.
	Open(ctx context.Context, w Wire) (Field, error)

	// Cost estimates one round of a group of a device of w from the
	// configuration, and from the Memory where there is one: requests sent and
	// time of the bus used. `busgate check` adds them up.
	Cost(w Wire, dev *config.Device, points []int) (requests int, each time.Duration)
}

// Wire is what a Driver opens.
type Wire struct {
	Bus     *config.Bus
	Devices []*config.Device // all on this bus, enabled ones only
	Memory  Memory           // may be nil
	Log     *slog.Logger     // never nil
	Tap     *Tap             // every frame is shown to it; may be nil
}

// Field is one open bus. Only the goroutine of that bus calls it, one call at a
// time (Get and Set may be called from inside pause). A Field may have
// goroutines of its own, which end before Close returns.
//
// Every method returns either nil, a Trouble (the whole bus failed: the fleet
// closes the Field, takes the devices offline and opens a new one), ctx.Err(),
// or an error of the one device: ErrNoAnswer, ErrBadFrame or *Exception.
type Field interface {
	// Poll reads one group of points of a device. Between two exchanges, and
	// while it waits for a busy device, it calls pause: the bus does a waiting
	// write there. An error that is no Trouble stands in Answer.Err.
	Poll(ctx context.Context, g *Group, pause func(context.Context) error) (Answer, error)

	// Wait is how long a Poll of g would have to wait before it may send: an
	// answer that could be mistaken is still on its way. 0 for most protocols.
	Wait(g *Group) time.Duration

	// Probe asks a device that is offline for the cheapest thing it is known to
	// answer, or for the newest frame; any good frame is success.
	Probe(ctx context.Context, dev *config.Device) error

	// ProbeTime is how long a Probe that fails will take.
	ProbeTime(dev *config.Device) time.Duration

	// Set writes raw values in one request. Several items are bits in adjacent
	// coils in rising order, else there is one. No retries: the fleet knows
	// which write may be repeated. Errors as for Get; errors.ErrUnsupported
	// when the protocol has no writes.
	Set(ctx context.Context, dev *config.Device, items []Item) error

	// Get reads one point once more, raw: the bytes that Decode takes. The
	// slice is valid until the next call.
	Get(ctx context.Context, dev *config.Device, p *config.Point) ([]byte, error)

	// Devices changes the list of Wire.Devices after a reload; what was learned
	// about a device whose unit did not change is kept.
	Devices(devs []*config.Device)

	// Counts are the counters of the bus since Open. Unit are those of one
	// device.
	Counts() Counts
	Unit(dev *config.Device) UnitCounts

	// Close releases the wire and waits for what the Field started.
	Close() error
}

// Group is the points of one device that are read together: those with the same interval.
type Group struct {
	Device   *config.Device
	Points   []int // indices into Device.Points, rising
	Interval time.Duration
	Plan     any // the Field's own; nil in a new group. Dropped with the group at a reload
}

// Answer is what one Poll gave.
type Answer struct {
	At     time.Time // end of the last good answer of this poll; zero when none came
	Values []Reading // in the order of Group.Points; Off against At
	Errors []PointError
	Err    error // why the device did not answer: ErrNoAnswer, ErrBadFrame; nil when a good frame or an exception came last
	Heard  bool  // at least one good frame of the device came
	Tries  int   // of the request that Err is about
	Waited time.Duration
	Found  []Finding     // what is wrong with the device though it answers
	Used   time.Duration // time of the bus, without what pause took
}

// Finding is something wrong with a device that answers: Err is a stable word
// such as illegal-address, Text the sentence without the device's name. It must
// be found again in each round as long as it lasts; a round of the same group
// without it solves it.
type Finding struct {
	Err   string
	Level slog.Level
	Text  string
	Once  bool   // said once, not again as long as it lasts
	Key   string // of the configuration that would mend it, such as device.inverter: its place is added to Text
}

// Item is one raw value to write.
type Item struct {
	Point *config.Point
	Raw   []byte // as Encode gave them, len == Size(Point); one byte for a coil
	Mask  []byte // nil: all bits; else the bits of Raw that count, the others keep what the device has
}

// Errors of a device that did not do what it was asked.
var (
	ErrNoAnswer = errors.New("no answer")
	ErrBadFrame = errors.New("damaged answer")
)

// Exception is a refusal by the device itself: a sign of life.
type Exception struct {
	Function byte
	Code     byte   // Modbus AP v1.1b3, 7: 1 illegal function, 2 illegal data address ...
	Text     string // "exception 2, illegal data address"
}

func (e *Exception) Error() string { return e.Text }

// Trouble is an error of a whole bus in words for people. Drivers return it (or
// an error that wraps it) from Open and from any method of a Field.
type Trouble interface {
	error
	Word() string // stable: port-gone, port-busy, port-permission, port-missing, unreachable, tcp-limit
	Text() string // one sentence for people, without the name of the bus
}

// Counts are the counters of one bus since its Field was opened.
type Counts struct {
	BytesIn, BytesOut uint64
	Requests          uint64
	Good              uint64 // answers that fit, exceptions among them
	Bad               uint64 // answers with a wrong check, or broken off
	Timeouts          uint64
	Foreign           uint64 // good frames that nobody here asked for
	Late              uint64 // answers after their time, thrown away
	Stray             uint64 // frames accepted behind stray bytes
	Stale             uint64 // bytes thrown away before a request
	Echo              uint64 // own requests heard again, from an adapter that hears itself
	Exceptions        uint64
	Overrun           uint64 // bytes dropped because a buffer was full
	Skipped           uint64 // good frames of a sensor that a newer one replaced before they were taken
	Unchecked         uint64 // good frames of a sensor that had no check

	StrayByte byte     // that stood before a frame, the newest
	Intruders uint64   // good frames that only another master can have caused
	Intruder  Intruder // the newest
	// Sizes are the answers by their length in bytes on the wire: up to 8, 16,
	// 32, 64, 128, and longer.
	Sizes [6]Share
	UART  UARTErrors
}

// Share is how many of some answers came whole and how many damaged.
type Share struct{ Good, Bad uint64 }

// SizeClass is the place in Counts.Sizes of an answer of n bytes.
func SizeClass(n int) int {
	class := 0
	for limit := 8; n > limit && class < len(Counts{}.Sizes)-1; limit *= 2 {
		class++
	}
	return class
}

// Intruder is a frame that another master caused.
type Intruder struct {
	Unit    byte
	Request bool // else the answer of the unit to somebody else
}

// UARTErrors are the counters of the kernel since the port was opened, as far
// as its driver has any.
type UARTErrors struct{ Parity, Framing, Overrun uint64 }

// UnitCounts are the counters of one device, and what was measured about it.
type UnitCounts struct {
	Requests, Good, Bad, Timeouts, Late, Exceptions uint64
	TooLate                                         uint64        // answers that came later than twice the configured timeout
	Latest                                          time.Duration // median of the newest of those
	Skipped                                         uint64        // frames that a newer one replaced before they were taken
	Heard                                           time.Time     // its last good frame, also a late one; zero: never
	RTT50, RTT95                                    time.Duration
	Turnaround                                      time.Duration // median from the end of the request to the first byte
	Timeout                                         time.Duration // in force now
}
