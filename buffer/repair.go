package buffer

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Bounds of what is kept of damage.
const (
	asideSegments = 16      // files in quarantine/
	asideBytes    = 4 << 20 // of them
	asideFiles    = 2       // sets of a whole store
)

// wounded says whether an error is about the content of the file.
func wounded(err error) bool {
	c := code(err)
	return c == codeCorrupt || c == codeNotADB || errors.Is(err, errSegment) || errors.Is(err, errMissing) || errors.Is(err, errDamaged)
}

// damaged deals with a segment that could not be read: it is read once more,
// and then taken from its consumers, with a row of the ledger for each, and
// its bytes are set aside. nil: the reader goes on. Other errors are returned.
// The caller holds no lock.
func (s *Store) damaged(h *header, cause error) error {
	if !wounded(cause) {
		return cause
	}
	s.io.Lock()
	defer s.io.Unlock()
	s.mu.Lock()
	dead := h.dead
	s.mu.Unlock()
	if dead {
		return nil
	}
	if _, err := s.fetch(h); !wounded(err) { // nil, or it is the disk and not the segment
		return err
	}
	s.keepBytes(h.id())
	s.mu.Lock()
	for slot := range slotsOf(union(h.needs)) {
		if c := s.slots[slot]; c != nil && c.needsLocked(h) {
			s.loseSegmentLocked(c, h)
		}
	}
	if !h.dead { // a consumer with too many gaps still holds it
		s.retireLocked(h)
	}
	s.count.damaged++
	s.hurryLocked() // if the row cannot even be deleted, the whole file goes
	s.mu.Unlock()
	s.fail("buffer-damaged", slog.LevelError, fmt.Sprintf("a segment of %s is damaged (%v): %d records are lost; what is left of them is in %s",
		filepath.Base(s.path), cause, h.n, s.quarantine()))
	return nil
}

// loseSegmentLocked takes a segment that cannot be read from a consumer,
// leases included. The caller owns the connection, too.
func (s *Store) loseSegmentLocked(c *Consumer, h *header) {
	n, size := c.pendingLocked()
	for i := range c.open {
		if e := &c.open[i]; c.kind == Uplink && e.lane == h.lane && e.seq >= h.first && e.seq <= h.last && e.state != stateDone {
			c.finishLocked(e)
			s.count.leasesLost++
		}
	}
	c.skipLocked(int(h.lane), h.first, h.last)
	c.settleLocked(1 << h.lane)
	c.gen++
	s.recount(c)
	after, left := c.pendingLocked()
	s.loseLocked(c, int64(h.boot), 0, 0, uint64(max(n-after, 0)), 0, max(size-left, 0), reasonCorrupt)
}

// recount computes what waits for a consumer from the segments. The caller
// owns the connection and Store.mu, or nobody else knows the store yet.
func (s *Store) recount(c *Consumer) {
	c.n, c.bytes, c.parts, c.untidy = 0, 0, nil, c.kind == SessionLog
	var done [lanes][]uint64 // finished ahead of an older one
	for _, e := range c.open {
		if c.kind == Uplink && e.state == stateDone {
			done[e.lane] = append(done[e.lane], e.seq)
		}
	}
	for l := range s.lanes {
		slices.Sort(done[l])
		for h := range s.lanes[l].neededBy(c) {
			n, size := needsOf(h.needs, c.slot)
			c.n += n
			c.bytes += size
			if c.kind == Uplink && c.partialLocked(h, done[l]) {
				s.countPartial(c, h, done[l])
			}
		}
	}
}

// partialLocked says whether an uplink may have finished some records of a
// segment that it needs.
func (c *Consumer) partialLocked(h *header, done []uint64) bool {
	for _, hd := range c.heads[h.lane] {
		for _, at := range [...]uint64{hd.lo, hd.done} {
			if h.first < at && at <= h.last {
				return true
			}
		}
	}
	i, _ := slices.BinarySearch(done, h.first)
	return i < len(done) && done[i] <= h.last
}

// countPartial takes off what an uplink has finished of a segment.
func (s *Store) countPartial(c *Consumer, h *header, done []uint64) {
	raw := h.ram
	if raw == nil {
		raw = s.cache.get(h)
	}
	if raw == nil {
		var err error
		if raw, err = s.fetch(h); err != nil {
			return // the reader finds it, too
		}
	}
	new(mark).walk(h, raw, c.slot, 0, func(v *view) bool { // fetch has verified it
		if _, found := slices.BinarySearch(done, v.seq); found || c.finishedLocked(int(h.lane), v.seq) {
			c.n--
			c.bytes -= int64(v.size)
		}
		return true
	})
}

func (s *Store) quarantine() string { return filepath.Join(s.dir(), "quarantine") }

// keepBytes copies what can be read of a row into the quarantine.
func (s *Store) keepBytes(id int64) {
	var data []byte
	s.db.query(sqlSelectSeg, func(v []driver.Value) error { data = blob(v[2]); return nil }, id)
	if len(data) == 0 {
		return
	}
	dir := s.quarantine()
	if os.MkdirAll(dir, 0o750) != nil {
		return
	}
	size := int64(len(data))
	names, _ := filepath.Glob(filepath.Join(dir, "seg-*"))
	for _, name := range names {
		if st, err := os.Stat(name); err == nil {
			size += st.Size()
		}
	}
	if len(names) < asideSegments && size <= asideBytes {
		os.WriteFile(filepath.Join(dir, fmt.Sprintf("seg-%d", id)), data, 0o640) // a copy for the curious: nothing depends on it
	}
}

// A store that is put aside is a set of files. It is named asideRescue until
// the new file knows of its rescue, so that a crash on the way loses neither,
// and asideKept from then on.
const (
	asideRescue = ".damaged-"
	asideKept   = ".corrupt-"
)

// setAside renames the files of the store to a set of that kind and returns its
// name. Its caller owns the connection.
func (s *Store) setAside(kind string) (string, error) {
	if s.db != nil {
		s.db.close() // its complaints are known
		s.db = nil
	}
	s.wal.close()
	stamp := time.Now().UTC().Format("20060102T150405Z")
	to := ""
	for n := 1; ; n++ {
		to = s.beside(fmt.Sprintf("%s%s-%d.db", kind, stamp, n))
		_, err := os.Lstat(to)
		_, other := os.Lstat(s.kept(to))
		if errors.Is(err, os.ErrNotExist) && errors.Is(other, os.ErrNotExist) {
			break
		}
	}
	if err := s.renameSet(s.path, to); err != nil {
		return "", fmt.Errorf("set %s aside: %w", s.path, err)
	}
	return to, nil
}

// renameSet renames a store, durably. The -wal file goes first: a new database
// must never meet an old one.
func (s *Store) renameSet(from, to string) error {
	for _, suffix := range []string{"-wal", "-shm", ""} {
		if err := os.Rename(from+suffix, to+suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := s.sys.syncDir(s.dir()); err != nil {
		return err
	}
	s.forgetOldSets()
	return nil
}

// finishAside goes on with a setAside that a crash has interrupted: the -wal
// file has gone ahead.
func (s *Store) finishAside() {
	names, _ := filepath.Glob(s.beside(asideRescue + "*.db-wal"))
	for _, name := range names {
		to := strings.TrimSuffix(name, "-wal")
		if _, err := os.Lstat(to); errors.Is(err, os.ErrNotExist) {
			s.renameSet(s.path, to) // if not, what opens is as good as what can be had
		}
	}
}

// kept is the name of a set once its rescue is noted.
func (s *Store) kept(name string) string {
	return filepath.Join(s.dir(), strings.Replace(filepath.Base(name), asideRescue, asideKept, 1))
}

// forgetOldSets removes all but the last sets that were put aside.
func (s *Store) forgetOldSets() {
	names, _ := filepath.Glob(s.beside(asideKept + "*.db"))
	slices.Sort(names)
	for _, name := range names[:max(len(names)-asideFiles, 0)] {
		for _, suffix := range []string{"", "-wal", "-shm"} {
			os.Remove(name + suffix)
		}
	}
}

// replace puts the file aside and goes on with a new one, made of what RAM
// knows; the records are rescued in the background. Of the transaction t only
// its batch is still to be written. The committer calls it.
func (s *Store) replace(t *commit, cause error) error {
	s.io.Lock()
	defer s.io.Unlock()
	aside, err := s.setAside(asideRescue)
	if err != nil {
		return err
	}
	known := s.forgetDisk(t)
	s.mu.Lock()
	s.epoch = "" // until there is a new file: without one, the next try is adopt's
	s.mu.Unlock()
	if err := s.renew(); err != nil {
		return err
	}
	s.sayAside(aside, cause)
	s.startSalvage(aside, known)
	return nil
}

func (s *Store) sayAside(aside string, cause error) {
	what := "is damaged"
	if _, ok := errors.AsType[*versionError](cause); ok {
		what = "was written by a newer busgate"
	}
	s.mu.Lock()
	s.count.asides = append(s.count.asides, filepath.Base(s.kept(aside)))
	s.mu.Unlock()
	s.fail("buffer-damaged", slog.LevelError, fmt.Sprintf("%s %s (%v); moved to %s; going on with a new one",
		filepath.Base(s.path), what, cause, filepath.Base(s.kept(aside))))
}

// forgetDisk takes everything that was on the disk only out of RAM and returns
// what the consumers had and wanted.
func (s *Store) forgetDisk(t *commit) map[int]*Consumer {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := map[int]*Consumer{}
	for slot, c := range s.slots {
		if c == nil {
			continue
		}
		old := &Consumer{slot: slot, name: c.name, kind: c.kind, start: c.start, n: c.n, open: slices.Clone(c.open)}
		for l := range lanes {
			old.heads[l] = slices.Clone(c.heads[l])
		}
		known[slot] = old
	}
	s.trims, s.trimSpace, s.aged = nil, 0, nil
	t.trims, t.rows = nil, nil
	s.tables.lose(slices.Concat(t.b.ops, s.batch.ops))
	for l := range s.lanes {
		for _, h := range s.lanes[l].segs {
			if h.ram == nil && !h.dead {
				h.dead = true
				s.uncountLocked(h)
			}
		}
		s.lanes[l].sweep()
	}
	for _, c := range s.slots {
		if c == nil {
			continue
		}
		for i := range c.open {
			e := &c.open[i]
			if c.kind == Uplink && e.state == stateSent && s.lanes[e.lane].holder(e.seq) == nil {
				e.state = stateDone // rescued under another number, or lost
			}
		}
		c.gen++
		c.settleLocked(1<<lanes - 1)
		s.recount(c)
		c.wakeUp()
	}
	return known
}

// renew makes the file anew with what RAM knows of consumers, streams, boots
// and losses.
func (s *Store) renew() error {
	d, odd, err := openDB(s.path, s.sys, s.o.Full)
	if err != nil {
		return fmt.Errorf("new store %s: %w", s.path, err)
	}
	if err := d.migrate(); err != nil {
		return fmt.Errorf("new store %s: %w", s.path, errors.Join(err, d.close()))
	}
	s.mu.Lock()
	s.count.pragmas = odd
	epoch := newEpoch()
	ops := []op{{sqlMeta, []any{metaEpoch, "epoch", epoch}}, {sqlMeta, []any{metaNextSeq, "next_seq", s.nextSeq}},
		{sqlMeta, []any{metaBoot, "boot", s.boot.id}}}
	for _, c := range s.slots {
		if c != nil {
			ops = append(ops, op{sqlConsumer, c.row()})
		}
	}
	for _, b := range s.boots {
		ops = append(ops, op{sqlBoot, b.row()})
	}
	for _, st := range s.streams {
		st.saved, st.dirty = false, true // until it is known that the file has it
		ops = append(ops, st.row())
	}
	for _, l := range s.losses {
		l.dirty = true
		ops = append(ops, l.row())
	}
	s.dirtyLocked()
	s.mu.Unlock()
	err = d.transaction(func() error { return d.all(ops) })
	if err == nil {
		err = s.sys.syncDir(s.dir())
	}
	if err != nil {
		return fmt.Errorf("new store %s: %w", s.path, errors.Join(err, d.close()))
	}
	s.mu.Lock()
	s.epoch = epoch
	s.mu.Unlock()
	s.db, s.unflushed = d, true
	return nil
}

// adopt makes the first file of a store that could not be opened at its start.
// A file that lies there is rescued into the new one.
func (s *Store) adopt() error {
	s.io.Lock()
	defer s.io.Unlock()
	if st, err := os.Stat(s.path); err == nil && st.Size() > 0 {
		if err := s.probe(); err != nil && !wounded(err) {
			return err
		}
		if _, err := s.setAside(asideRescue); err != nil {
			return err
		}
	}
	if err := s.renew(); err != nil {
		return err
	}
	return s.resumeSalvage()
}

// probe says whether the file can be written.
func (s *Store) probe() error {
	d, _, err := openDB(s.path, s.sys, s.o.Full)
	if err != nil {
		return err
	}
	defer d.close() // nothing was written
	return d.transaction(func() error { return nil })
}
