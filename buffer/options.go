package buffer

import (
	"errors"
	"log/slog"
	"time"

	"busgate/config/report"
)

// What Append, Next and Consumer can answer.
var (
	ErrFull             = errors.New("store full")
	ErrReadOnly         = errors.New("store read-only")
	ErrClosed           = errors.New("store closed")
	ErrForgotten        = errors.New("consumer forgotten")
	ErrTooManyConsumers = errors.New("too many consumers: 1024 is the limit")
	ErrTooLarge         = errors.New("record too large")
)

// InUseError is the one case in which Open fails for good.
type InUseError struct {
	Path string
	PID  int // 0: not known
}

// Policy says what happens when the store is full.
type Policy uint8

const (
	DropOldest Policy = iota // whole segments, lowest lane first
	Thin                     // thin out the oldest thinnable records, then DropOldest
	Reject                   // appends fail with ErrFull
)

// Keep says which record of neighbours survives thinning.
type Keep uint8

const (
	KeepFirst  Keep = iota
	KeepLast        // the newer of each two
	KeepMinMax      // both extremes of each four
)

// Limits bound the store. Zero values mean the default in parentheses.
type Limits struct {
	MaxBytes         int64         // used pages of the file (512 MiB)
	MaxMessages      int64         // records in the file (20,000,000)
	MaxAge           time.Duration // (0: off)
	MinFreeDisk      int64         // (256 MiB); negative: off
	MaxRetained      int           // topics (50,000)
	MaxRetainedBytes int64         // (16 MiB)
	WhenFull         Policy
	Keep             Keep
	Sync             time.Duration // lazy records are on disk after this (1 s)
}

// Options of Open. All are optional.
type Options struct {
	Limits
	Log        *slog.Logger        // nil: silent
	Alert      func(report.Report) // told each edge that is logged; must not block
	MaxMessage int                 // topic + payload + props of one record (1 MiB)
	Reserve    int64               // bytes kept for a full disk in a file of their own (8 MiB); negative: none
	Full       bool                // durability "full": SQLite flushes every commit itself, for cards that tear blocks

	// Value reads the quantity of a record for KeepMinMax; false: not a number.
	Value func(*Record) (float64, bool)

	sys *system // what tests replace: clock, flush, statfs
}

// Kind of a consumer.
type Kind uint8

const (
	Uplink     Kind = iota // reads with Next, numbered leases, Ack
	SessionLog             // reads with ReadFrom by sequence number, Settle
)

// ConsumerOptions are given at each start; only Kind and Stream are stored.
type ConsumerOptions struct {
	Kind Kind

	Window int    // open leases of an uplink, 1..8192 (100; 20 with Exact)
	Exact  bool   // leases are on disk before Next returns
	Stream string // the stream that numbers its records, for the loss ledger

	QuotaBytes   int64 // negative: none (uplink none, session 64 MiB)
	QuotaRecords int64 // negative: none (uplink none, session 100,000)
}
