package buffer

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"syscall"
	"time"

	"busgate/config/report"
)

// state of the disk.
type state uint8

const (
	stateOK       state = iota
	stateFull           // the reserve is spent
	stateReadOnly       // nothing is written: readings are kept in RAM
)

func (st state) String() string { return [...]string{"ok", "disk-full", "read-only"}[st] }

const (
	maxRAM      = 4 << 20 // of readings kept while the disk does not write
	maxTries    = 3       // failures in a row before that
	maxRetry    = time.Minute
	reliefPages = 16 << 20 // bytes freed in the file when the disk is full
)

// trouble decides what follows a transaction that failed. No ticket of t
// fires; it is kept with its numbers for another try.
func (s *Store) trouble(t *commit, err error) {
	t.tries++
	s.mu.Lock()
	s.failed, s.retryAt = t, time.Now()
	st := s.state
	s.mu.Unlock()
	switch c := code(err); {
	case c == codeCorrupt || c == codeNotADB:
		if t.tries <= maxTries {
			if err := s.replace(t, err); err == nil {
				t.healthy = true
				return
			}
		}
	case c == codeFull || errors.Is(err, syscall.ENOSPC):
		if t.tries <= maxTries {
			s.makeRoom(t)
			return
		}
	}
	if st == stateReadOnly || t.tries >= maxTries || code(err) == codeReadOnly || errors.Is(err, syscall.EROFS) || errors.Is(err, ErrReadOnly) {
		s.readOnly(err)
	} else {
		s.fail("flush", slog.LevelError, fmt.Sprintf("the disk refuses to write (%v); nothing is acknowledged until it does; trying again", err))
	}
	s.mu.Lock()
	if s.state == stateReadOnly {
		s.retryAt = time.Now().Add(s.backoff)
		s.backoff = min(2*s.backoff, maxRetry)
	}
	s.mu.Unlock()
}

// readOnly goes over to keeping readings in RAM.
func (s *Store) readOnly(err error) {
	s.mu.Lock()
	if s.state != stateReadOnly {
		s.state, s.backoff = stateReadOnly, time.Second
	}
	s.room.Broadcast()
	s.mu.Unlock()
	s.expose()
	why := "the disk fails: " + err.Error()
	switch c := code(err); {
	case c == codeReadOnly || errors.Is(err, syscall.EROFS):
		why = "the file system is read-only (worn SD card?)"
	case s.outOfRoom(err):
		why = "the disk is full, and the buffer has nothing more to give up: others fill it. Free space in " + s.dir()
	}
	s.fail("read-only", slog.LevelError, why+". Keeping the newest readings in memory (4 MiB): a restart loses them; QoS 1 and 2 publishes are not acknowledged")
}

// expose hands the segments that wait for the disk to the readers, from RAM.
// The oldest are lost at maxRAM.
func (s *Store) expose() {
	s.mu.Lock()
	t := s.failed
	fresh := &commit{b: &batch{segs: s.batch.segs, last: s.batch.last}}
	s.batch.emptied()
	s.room.Broadcast()
	s.mu.Unlock()
	for _, t := range []*commit{t, fresh} {
		if t == nil {
			continue
		}
		s.pack(t)
		s.mu.Lock()
		for _, g := range t.segs {
			if g.h.ram == nil {
				g.h.ram = g.raw
				s.ram = append(s.ram, g)
				s.ramBytes += g.h.space()
				s.addSegmentLocked(g.h)
			}
		}
		s.head = max(s.head, t.b.last+1)
		t.segs = nil
		s.mu.Unlock()
	}
	s.boundRAM()
}

// emptied takes the records out of a batch that goes on with its changes.
func (b *batch) emptied() {
	b.segs, b.open = nil, [lanes]*builder{}
	b.bytes, b.entries, b.large = 0, min(1, b.entries), false // its tickets are still to fire
	b.began = time.Now()
}

// boundRAM drops the oldest readings that are only in RAM.
func (s *Store) boundRAM() {
	sum := newDropping()
	for i := 0; ; i++ {
		s.mu.Lock()
		size := 0
		s.sweepRAMLocked()
		for _, g := range s.ram {
			size += len(g.raw)
		}
		if size <= maxRAM || i >= len(s.ram) {
			s.mu.Unlock()
			break
		}
		var h *header
		for _, g := range s.ram {
			if !s.heldLocked(g.h) {
				h = g.h
				break
			}
		}
		s.mu.Unlock()
		if h == nil {
			break
		}
		s.drop(h, reasonFailed, sum)
	}
}

// sweepRAMLocked forgets segments in RAM that nobody needs any more.
func (s *Store) sweepRAMLocked() {
	kept := s.ram[:0]
	for _, g := range s.ram {
		if g.h.dead {
			s.ramBytes -= g.h.space()
			continue
		}
		kept = append(kept, g)
	}
	clear(s.ram[len(kept):])
	s.ram = kept
}

// reopen replaces the connection after an error: what the old one believes of
// the -wal file may be wrong. It brings all that is committed into the
// database, whose own flush tells the truth.
func (s *Store) reopen() error {
	s.io.Lock()
	defer s.io.Unlock()
	s.wal.close()
	d, odd, err := openDB(s.path, s.sys, s.o.Full)
	if err != nil {
		return fmt.Errorf("open store %s: %w", s.path, err)
	}
	epoch, err := d.value("SELECT value FROM meta WHERE id=?", metaEpoch)
	if err == nil {
		if text(epoch) != s.epoch {
			err = fmt.Errorf("%w: it is another store (epoch %q)", errDamaged, text(epoch))
		} else {
			err = d.emptyWAL()
		}
	}
	if err != nil {
		return fmt.Errorf("open store %s: %w", s.path, errors.Join(err, d.close()))
	}
	if s.db != nil {
		s.db.close() // it has nothing of its own
	}
	s.db = d
	s.mu.Lock()
	s.count.pragmas = odd
	s.mu.Unlock()
	return nil
}

// again tries a failed transaction once more, with all that waits in RAM.
func (s *Store) again(t *commit, closing bool) {
	err := s.mend(t)
	if err != nil && !closing {
		s.trouble(t, err)
		return
	}
	s.mu.Lock()
	s.sweepRAMLocked()
	t.segs = append(append([]segment(nil), s.ram...), t.segs...)
	s.mu.Unlock()
	s.perform(t, closing)
}

// mend makes the connection usable again.
func (s *Store) mend(t *commit) error {
	s.mu.Lock()
	fresh := s.epoch == ""
	s.mu.Unlock()
	if fresh {
		return s.adopt()
	}
	if t.healthy {
		t.healthy = false
		return nil
	}
	err := s.reopen()
	if c := code(err); c == codeCorrupt || c == codeNotADB || errors.Is(err, errDamaged) || errors.Is(err, fs.ErrNotExist) {
		return s.replace(t, err)
	}
	return err
}

// recovered says that the disk writes again.
func (s *Store) recovered() {
	s.mu.Lock()
	was := s.state
	if was == stateReadOnly {
		s.state = stateOK
		if s.spent {
			s.state = stateFull
		}
	}
	s.mu.Unlock()
	s.solve("flush", "the disk writes again")
	if was == stateReadOnly {
		s.solve("read-only", "the file system can be written again")
	}
}

// rest notes an error of work that may as well be done later: the next commit
// meets what is behind it.
func (s *Store) rest(err error) {
	if err != nil {
		s.mu.Lock()
		s.count.postponed++
		s.mu.Unlock()
	}
}

// fail reports a failure; solve that it is over. Both say edges only.
func (s *Store) fail(err string, level slog.Level, text string) {
	r, edge := s.reports.Fail(report.Report{Err: err, Level: level, Who: "buffer", Text: text})
	if edge && s.o.Alert != nil {
		s.o.Alert(r)
	}
}

func (s *Store) solve(err, text string) {
	if !s.reports.Lasts(err, "buffer") {
		return
	}
	r, edge := s.reports.Solve(err, "buffer", func(lasted time.Duration, _ uint64) string {
		return text + " after " + report.Duration(lasted)
	})
	if edge && s.o.Alert != nil {
		s.o.Alert(r)
	}
}
