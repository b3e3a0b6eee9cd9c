package devices

import (
	"context"
	"time"

	"busgate/config/report"
)

// Instant is a moment of acquisition. Mono counts from the boot of the kernel
// (CLOCK_BOOTTIME); Wall is UTC and zero while the clock is not known.
type Instant struct {
	Mono time.Duration
	Wall time.Time
}

// Quality says whether a device itself calls a value usable.
type Quality uint8

const (
	Good         Quality = iota
	NotAvailable         // a sentinel, NaN or infinity: sent as null
)

// Reading is one value of one point.
type Reading struct {
	Point   string
	Value   Value
	Off     time.Duration // <= 0: how long before Round.At its answer ended
	Quality Quality
}

// PointError says why a point has no reading in a round. Code is one of
// no-answer bad-frame exception out-of-range unsupported bus-gone busy expired refused.
type PointError struct{ Point, Code, Text string }

// Round is what one poll of one device gave. At is the end of its last answer
// and never re-stamped. A point that failed is absent from Values and named in
// Errors. The receiver owns the slices.
type Round struct {
	Device string
	Seq    uint64 // from 1 per device and process
	At     Instant
	Values []Reading
	Errors []PointError
}

// Health is a change of what is known about a device: it went online or
// offline, or the failure that its error topic carries was said again.
type Health struct {
	Device string
	Online bool
	Report report.Report // Report.Err == "" when nothing is wrong
}

// Sink takes what the fleet finds out. Take is called from bus goroutines, for
// one device never concurrently. At recovery Take comes before Health, so that
// nobody reads an old value as fresh; at loss only Health comes.
type Sink interface {
	Take(ctx context.Context, r Round) error
	Health(ctx context.Context, h Health)
}

// Command asks for one write. Until is on the monotonic clock; zero means no limit.
type Command struct {
	Device, Point string
	Text          string // the value as the client wrote it: 42.5, on, an enum word
	ID            string // "" = always new
	Until         time.Duration
}

// Result answers a Command. Code is "" on success, else a word such as
// out-of-range, not-writable, unknown-point, expired, refused, timeout,
// exception-N, differs or unknown; Text says it in a sentence.
type Result struct {
	Value Value // as read back
	Code  string
	Text  string
	Took  time.Duration
}

// Memory keeps learned facts (turnaround, illegal gaps) over a restart. It is
// safe for concurrent use. Save does not wait for a disk: a fact that a crash
// loses is learned again. It may keep v.
type Memory interface {
	Load(key string) ([]byte, error) // nil, nil when unknown
	Save(key string, v []byte)
}
