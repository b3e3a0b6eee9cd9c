package buffer

import (
	"fmt"
	"sync/atomic"
	"time"
)

// Stream numbers records 1, 2, 3 ... in each boot, so that a receiver can prove
// that it has them all. A stream must be dense for each consumer that gets it:
// draw the number after filtering.
type Stream struct {
	id   StreamID
	name string
	next atomic.Uint64

	// guarded by Store.mu
	boot  int64  // of last
	last  uint64 // highest number committed in boot
	dirty bool
	saved bool // it has a row
}

// Next draws a number. Safe for concurrent use.
func (st *Stream) Next() Number { return Number{st.id, st.next.Add(1)} }

// ID is the stream's name in Number.Stream.
func (st *Stream) ID() StreamID { return st.id }

func (st *Stream) idOrZero() StreamID {
	if st == nil {
		return 0
	}
	return st.id
}

// row is the statement that saves st.
func (st *Stream) row() op {
	return op{sqlStream, []any{uint32(st.id), st.name, st.boot, st.last}}
}

// Stream finds or creates a stream; nil for the empty name. Names come from the
// configuration: nothing bounds their number.
func (s *Store) Stream(name string) *Stream {
	if name == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.streams {
		if st.name == name {
			return st
		}
	}
	st := &Stream{id: StreamID(len(s.streams) + 1), name: name, boot: s.boot.id, dirty: true}
	s.streams = append(s.streams, st)
	s.dirtyLocked()
	return st
}

// commitTopsLocked notes the highest numbers that a batch brought to disk.
func (s *Store) commitTopsLocked(tops []Number) {
	for _, t := range tops {
		if int(t.Stream) > len(s.streams) || t.Stream == 0 {
			continue
		}
		st := s.streams[t.Stream-1]
		if st.boot != s.boot.id {
			st.boot, st.last = s.boot.id, 0
		}
		if t.N > st.last {
			st.last, st.dirty = t.N, true
		}
	}
}

// Closing gives, for the process before this one, the highest number of each
// stream that reached the disk. A receiver that has 1..last of each but for the
// ranges of the loss ledger has everything. boot is empty in a new file.
func (s *Store) Closing() (boot string, last map[string]uint64) { return s.closingBoot, s.closingLast }

// Boot names this process in the records: "<epoch>-<counter>". The epoch is
// random and as old as the file.
func (s *Store) Boot() string { return s.boot.label }

// boot is a row of the table: one start of the process.
type boot struct {
	id      int64
	label   string
	kernel  string // kernel boot id; "" is never the same as another
	offset  time.Duration
	quality Quality
	dirty   bool
}

// bootLocked is a copy of a boot for those who read without Store.mu, which
// SetClock changes under it; the zero boot when it is not known.
func (s *Store) bootLocked(id uint32) (b boot) {
	if known := s.boots[int64(id)]; known != nil {
		b = *known
	}
	return b
}

func sameKernel(a, b *boot) bool { return a == b || a.kernel != "" && a.kernel == b.kernel }

// SetClock says that UTC is offset after the Unix epoch plus CLOCK_BOOTTIME.
// The first call dates all records of this start of the kernel that were
// stamped without a clock, those of earlier processes too. A later call holds
// for records appended from then on.
func (s *Store) SetClock(offset time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock = clock{known: true, offset: offset}
	for _, b := range s.boots {
		if sameKernel(b, s.boot) && b.quality == NoTime {
			b.offset, b.quality, b.dirty = offset, Redated, true
		}
	}
	s.dirtyLocked()
}

func bootLabel(epoch string, id int64) string { return fmt.Sprintf("%s-%d", epoch, id) }
