package buffer

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"busgate/config/report"
)

// A full disk takes no DELETE and no checkpoint either, so nothing could be
// freed: the reserve is a file of real bytes that is given up then. It is at
// least as large as the -wal file may become.
const defaultReserve = walLimit

func (s *Store) dir() string { return filepath.Dir(s.path) }

// beside is the path of a file that belongs to the store: busgate.reserve
// beside busgate.db.
func (s *Store) beside(suffix string) string {
	return strings.TrimSuffix(s.path, filepath.Ext(s.path)) + suffix
}

// keepReserve writes the reserve when it is missing and the disk has room for
// it twice and for what is to stay free.
func (s *Store) keepReserve() {
	if s.o.Reserve <= 0 {
		return
	}
	path := s.beside(".reserve")
	if st, err := os.Stat(path); err == nil && st.Size() == s.o.Reserve {
		s.reserveKept()
		return
	}
	s.mu.Lock()
	keep := max(s.limits.MinFreeDisk, 0)
	s.mu.Unlock()
	if free, err := s.sys.free(s.dir()); err != nil || free < 2*s.o.Reserve+keep {
		return
	}
	if err := s.writeReserve(path); err != nil {
		os.Remove(path)
		return
	}
	s.reserveKept()
}

func (s *Store) writeReserve(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for i := range block {
		block[i] = byte(i*7 + i>>8) // no file system may take it for a hole
	}
	for left := s.o.Reserve; left > 0; left -= int64(len(block)) {
		if _, err := f.Write(block[:min(left, int64(len(block)))]); err != nil {
			return err
		}
	}
	return s.sys.fdatasync(f)
}

func (s *Store) reserveKept() {
	s.mu.Lock()
	s.spent = false
	if s.state == stateFull {
		s.state = stateOK
	}
	s.mu.Unlock()
	s.solve("disk-full", "the disk has room again")
}

// outOfRoom says whether an error is that of a full disk. Where it hits the index
// of the -wal file SQLite calls it one of I/O, and the disk has to be asked.
func (s *Store) outOfRoom(err error) bool {
	const index = 32 << 10 // of the -wal file, at least
	switch c := code(err); {
	case c == codeFull || errors.Is(err, syscall.ENOSPC):
		return true
	case c == codeIO:
		free, err := s.sys.free(s.dir())
		return err == nil && free < index
	}
	return false
}

// spendReserve gives the reserve up; false: there was none.
func (s *Store) spendReserve() bool {
	err := os.Remove(s.beside(".reserve"))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spent = true
	if s.state == stateOK {
		s.state = stateFull
	}
	return err == nil
}

// makeRoom answers a full disk: it gives up the reserve, moves the -wal file
// into the database and drops the oldest segments, so that t has pages to go
// to.
func (s *Store) makeRoom(t *commit) {
	s.spendReserve()
	s.mu.Lock()
	wanted := min(reliefPages, s.space/2)
	reject := s.limits.WhenFull == Reject
	t.healthy = true // the connection is sound
	s.mu.Unlock()
	if err := s.checkpoint("TRUNCATE"); err != nil && code(err) != codeFull {
		t.healthy = false
	}
	sum := newDropping()
	for freed := int64(0); freed < wanted && !reject; {
		s.mu.Lock()
		h := s.victimLocked()
		s.mu.Unlock()
		if h == nil {
			break
		}
		s.drop(h, reasonFree, sum)
		freed += h.space()
	}
	s.mu.Lock()
	s.takeRowsLocked(t, true, true) // what is deleted stands in the ledger
	s.takeTrimsLocked(t, len(s.trims))
	s.mu.Unlock()
	s.measure()
	s.sayDiskFull(sum.n)
}

func (s *Store) sayDiskFull(dropped int) {
	s.mu.Lock()
	free := s.use.free
	s.mu.Unlock()
	s.fail("disk-full", slog.LevelError, fmt.Sprintf("the disk is full (%d MiB left in %s): the oldest readings now make room for new ones; "+
		"%s dropped. Free space, or lower max_bytes in [buffer]", free>>20, s.dir(), report.Count(dropped)))
}
