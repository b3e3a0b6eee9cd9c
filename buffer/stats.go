package buffer

import (
	"fmt"
	"log/slog"
	"maps"
	"math/bits"
	"slices"
	"time"

	"busgate/config/report"
)

// counters since the start. Guarded by Store.mu.
type counters struct {
	commits, reads, unwanted uint64
	acksUnknown, leasesLost  uint64
	ledgerOverflow           uint64
	liveSuspended            uint64
	damaged                  uint64
	losses                   map[string]uint64
	flushes                  uint64
	flushTime                time.Duration
	slowest                  time.Duration
	window                   time.Time // lately counts since then
	lately                   [16]int   // flushes by their time, see percentile
	rescued                  uint64
	rewritten                uint64 // segments
	postponed                uint64 // rewrites that failed
	appended                 int64  // bytes of segments
	asides                   []string
	pragmas                  []string
}

func (c *counters) lost(reason string, n uint64) {
	if c.losses == nil {
		c.losses = map[string]uint64{}
	}
	c.losses[reason] += n
}

// flushed counts a flush, and says when the disk is slow: the 95th percentile
// of five minutes is above a second.
func (s *Store) flushed(d time.Duration) {
	s.mu.Lock()
	c := &s.count
	c.flushes++
	c.flushTime += d
	c.slowest = max(c.slowest, d)
	if c.window.IsZero() {
		c.window = time.Now()
	}
	c.lately[min(bits.Len64(uint64(d.Milliseconds()/10)), len(c.lately)-1)]++
	if time.Since(c.window) < slowWindow {
		s.mu.Unlock()
		return
	}
	p95 := percentile(c.lately[:])
	c.window, c.lately = time.Time{}, [16]int{}
	s.mu.Unlock()
	if p95 > time.Second {
		s.fail("slow-disk", slog.LevelWarn, fmt.Sprintf("the disk needs up to %s for a flush (p95): publishes wait that long. A worn card does this", report.Duration(p95)))
		return
	}
	s.solve("slow-disk", "the disk is fast again")
}

const slowWindow = 5 * time.Minute

// percentile is the upper end of the class that holds the 95th percentile of
// counts in classes of 0, 10, 20, 40 ms and so on.
func percentile(counts []int) time.Duration {
	total := 0
	for _, n := range counts {
		total += n
	}
	seen := 0
	for i, n := range counts {
		if seen += n; seen*100 >= total*95 {
			return 10 * time.Millisecond << i
		}
	}
	return 0
}

// Stats is a snapshot. Counters begin with the process.
type Stats struct {
	State     string // "ok", "disk-full", "read-only"
	Consumers []ConsumerStats
	Lanes     [lanes]LaneStats
	Segments  int
	Records   int64
	Bytes     int64 // of the segments' rows
	Sessions  int
	Retained  int
	Facts     int

	FileBytes   int64         // size of the database at the last look, within a minute
	UsedBytes   int64         // of it, in use
	WALBytes    int64         // size of the -wal file
	FreeDisk    int64         // at the last look; -1: not known
	ReserveKept bool          // the reserve for a full disk is there
	Waiting     time.Duration // how long the oldest waiter has been waiting for the disk

	Commits        uint64
	Flushes        uint64
	FlushTime      time.Duration // of all flushes
	SlowestFlush   time.Duration
	Reads          uint64            // segments read from the disk
	Unwanted       uint64            // appended records that no consumer wanted
	Lost           map[string]uint64 // by reason of the loss ledger
	Ledger         int               // rows of the loss ledger
	LedgerOverflow uint64            // rows that had to go untold
	AcksUnknown    uint64
	NotesFailed    uint64   // acks that could not be noted: a kill may repeat them
	LiveSuspended  uint64   // times that live first fell back to first in, first out
	LeasesLost     uint64   // leased records that were gone when they were to be repeated
	Damaged        uint64   // segments set aside
	Asides         []string // damaged files put aside
	Rescued        uint64   // records that came back from them
	Rewritten      uint64   // segments joined, squeezed or thinned
	Postponed      uint64   // times that this failed and was left for later
	Pragmas        []string // that did not stick
}

// LaneStats is what one lane holds.
type LaneStats struct {
	Segments int
	Records  int64
}

// ConsumerStats is what waits for one consumer.
type ConsumerStats struct {
	ID      ConsumerID
	Name    string
	Kind    Kind
	Records int
	Bytes   int64 // before deflate
	Leased  int
	Window  int
	Exact   bool
	Lost    map[string]uint64 // by reason, since the start
	Oldest  time.Time         // newest arrival of the oldest segment; zero: nothing, or not known
}

// Stats tells how the store is. It costs a walk over the segments.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &s.count
	st := Stats{State: s.state.String(), Segments: s.segments, Records: s.records, Bytes: s.stored,
		Sessions: len(s.tables.sessions), Retained: len(s.tables.retained), Facts: len(s.tables.facts),
		Commits: c.commits, Flushes: c.flushes, FlushTime: c.flushTime, SlowestFlush: c.slowest,
		Reads: c.reads, Unwanted: c.unwanted, Lost: maps.Clone(c.losses), Ledger: len(s.losses),
		LedgerOverflow: c.ledgerOverflow, AcksUnknown: c.acksUnknown, LeasesLost: c.leasesLost, NotesFailed: s.notes.failed.Load(), LiveSuspended: c.liveSuspended, Damaged: c.damaged, Asides: slices.Clone(c.asides), Rescued: c.rescued, Rewritten: c.rewritten, Postponed: c.postponed, Pragmas: c.pragmas}
	st.UsedBytes, st.FreeDisk, st.ReserveKept = s.usedLocked(), s.use.free, s.o.Reserve > 0 && !s.spent
	st.FileBytes = max(s.use.file, st.UsedBytes) // what was written since the last look is in use
	if wal, err := stat(s.path + "-wal"); err == nil {
		st.WALBytes = wal.Size
	}
	st.Waiting = s.waitingLocked(time.Now())
	for l := range s.lanes {
		for _, h := range s.lanes[l].segs {
			if !h.dead {
				st.Lanes[l].Segments++
				st.Lanes[l].Records += int64(h.n)
			}
		}
	}
	for _, c := range s.slots {
		if c == nil {
			continue
		}
		cs := ConsumerStats{ID: c.ID(), Name: c.name, Kind: c.kind, Leased: len(c.open), Window: c.o.Window, Exact: c.o.Exact, Lost: maps.Clone(c.lost)}
		cs.Records, cs.Bytes = c.pendingLocked()
		cs.Oldest = c.oldestLocked()
		st.Consumers = append(st.Consumers, cs)
	}
	return st
}

// waitingLocked is how long somebody has been waiting for the disk.
func (s *Store) waitingLocked(now time.Time) (d time.Duration) {
	for _, b := range []*batch{s.batch, s.committing} {
		if b != nil && b.waiters > 0 {
			d = max(d, now.Sub(b.waiting))
		}
	}
	return d
}

// Oldest is the newest arrival in the oldest segment that waits for the
// consumer; zero: nothing waits, or its time is not known.
func (c *Consumer) Oldest() time.Time {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return c.oldestLocked()
}

func (c *Consumer) oldestLocked() (oldest time.Time) {
	for l := range lanes {
		if h := c.findLocked(l, c.posLocked(l), noEnd); h != nil && h.ts > 0 {
			if t := fromMillis(h.ts); oldest.IsZero() || t.Before(oldest) {
				oldest = t
			}
		}
	}
	return oldest
}
