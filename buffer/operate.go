package buffer

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"busgate/config/report"
)

// do runs a job on the committer, between two commits.
func (s *Store) do(ctx context.Context, job func() error) error {
	done := make(chan error, 1)
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return ErrClosed
	}
	s.jobs = append(s.jobs, func() { done <- job() })
	s.mu.Unlock()
	signal(s.wake)
	select {
	case err := <-done:
		return err
	case <-s.gone:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Export calls fn for the committed records that wait for a consumer, or for
// anybody when name is empty, lane by lane and in order, leased ones too. With
// a period, given in UTC, only those that arrived in [from, to); zero is open,
// and a record without time belongs to the open period only. It reads one
// segment at a time and changes nothing. fn must not call the store.
func (s *Store) Export(ctx context.Context, name string, from, to time.Time, fn func(*Record) error) error {
	s.mu.Lock()
	c := s.names[name]
	s.mu.Unlock()
	if c == nil && name != "" {
		return fmt.Errorf("export: no consumer %q", name)
	}
	for l := range lanes {
		for next := uint64(0); ; {
			if err := ctx.Err(); err != nil {
				return err
			}
			rs, after, err := s.window(c, l, next)
			if err != nil {
				return fmt.Errorf("export: %w", err)
			}
			if after == 0 {
				break
			}
			next = after
			for i := range rs {
				if r := &rs[i]; within(r.At, from, to) {
					if err := fn(r); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

func within(at, from, to time.Time) bool {
	if at.IsZero() {
		return from.IsZero() && to.IsZero()
	}
	return (from.IsZero() || !at.Before(from)) && (to.IsZero() || at.Before(to))
}

// window decodes the first segment of a lane at or above next; after is where
// to go on, 0 at the end.
func (s *Store) window(c *Consumer, l int, next uint64) (rs []Record, after uint64, err error) {
	s.mu.Lock()
	var h *header
	for _, o := range s.lanes[l].segs[s.lanes[l].find(next):] {
		if !o.dead && (c == nil || o.has(c.slot) && c.needsLocked(o)) {
			h = o
			break
		}
	}
	if h == nil {
		s.mu.Unlock()
		return nil, 0, nil
	}
	k := collector{s: s, boot: s.bootLocked(h.boot)}
	var mine [maxNeeds]bool
	st := &standing{}
	if c != nil {
		mine, st = h.mine(c.slot), c.standingLocked(l)
	}
	s.mu.Unlock()
	raw, err := s.load(h)
	if err != nil {
		return nil, h.first, s.damaged(h, err) // gone, or written anew: look again
	}
	cur := newCursor(raw, h.first)
	for v := (view{}); cur.next(&v) == nil; {
		if v.seq >= next && (c == nil || mine[v.set] && needs(st.heads, v.seq, v.seq) && !st.settled[v.seq]) {
			k.take(&v).Lane = h.lane
		}
	}
	return k.rs, h.last + 1, nil
}

// DropPending takes what waits for a consumer from it: everything, or whole
// segments whose newest record arrived before a time. What is leased stays.
// The loss is in the ledger; it is on disk when DropPending returns.
func (s *Store) DropPending(ctx context.Context, name string, before time.Time) (records int, err error) {
	s.mu.Lock()
	c := s.names[name]
	s.mu.Unlock()
	if c == nil {
		return 0, fmt.Errorf("drop: no consumer %q", name)
	}
	sum := newDropping()
	err = s.do(ctx, func() error {
		for l := range lanes {
			for {
				h := s.droppable(c, l, before)
				if h == nil {
					break
				}
				raw, err := s.load(h)
				if err != nil {
					if err := s.damaged(h, err); err != nil {
						return err
					}
					continue
				}
				s.mu.Lock()
				if !h.dead && c.needsLocked(h) && !c.holdsLocked(h) {
					s.dropForLocked(c, h, raw, reasonOperator, sum)
				}
				s.mu.Unlock()
			}
		}
		return nil
	})
	if err == nil {
		err = s.Sync(ctx)
	}
	return sum.n, err
}

func (s *Store) droppable(c *Consumer, l int, before time.Time) *header {
	s.mu.Lock()
	defer s.mu.Unlock()
	for h := range s.lanes[l].neededBy(c) {
		if !c.holdsLocked(h) && (before.IsZero() || h.ts > 0 && fromMillis(h.ts).Before(before)) {
			return h
		}
	}
	return nil
}

// Backup writes a copy of the file, as of now, without stopping commits. The
// file must not exist.
func (s *Store) Backup(ctx context.Context, file string) error {
	if _, err := os.Lstat(file); err == nil {
		return fmt.Errorf("backup: %s exists", file)
	}
	if err := s.Sync(ctx); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	d, _, err := openDB(s.path, s.sys, s.o.Full)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	err = d.exec("VACUUM INTO ?", file)
	if err = errors.Join(err, d.close()); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	return flushFile(file)
}

// flushFile makes a file durable that SQLite has not open.
func flushFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Compact makes the file as small as what is in it. Commits wait meanwhile. It
// needs free space of the size that is in use, and tells both sizes of the file.
func (s *Store) Compact(ctx context.Context) (before, after int64, err error) {
	err = s.do(ctx, func() error {
		s.measure()
		s.mu.Lock()
		before = s.use.file
		used, free := s.usedLocked(), s.use.free
		s.mu.Unlock()
		if free >= 0 && free < used {
			return fmt.Errorf("compact: it needs %d MiB of free disk, there are %d MiB", used>>20+1, free>>20)
		}
		if err := s.compact(); err != nil {
			return fmt.Errorf("compact: %w", err)
		}
		s.measure()
		s.mu.Lock()
		after = s.use.file
		s.mu.Unlock()
		return nil
	})
	return before, after, err
}

func (s *Store) compact() error {
	s.io.Lock()
	defer s.io.Unlock()
	if s.db == nil {
		return ErrReadOnly
	}
	file := s.path + ".compact"
	os.Remove(file) // of an attempt that was cut short
	defer os.Remove(file)
	if err := s.db.emptyWAL(); err != nil {
		return err
	}
	if err := s.db.exec("VACUUM INTO ?", file); err != nil {
		return err
	}
	if err := quickCheck(file, s.sys); err != nil {
		return err
	}
	if err := flushFile(file); err != nil {
		return err
	}
	// All is in the file: the -wal file has nothing, and must not meet the new one.
	s.wal.close()
	s.db.close()
	s.db = nil
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(s.path + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := os.Rename(file, s.path); err != nil {
		return err
	}
	if err := s.sys.syncDir(s.dir()); err != nil {
		return err
	}
	d, _, err := openDB(s.path, s.sys, s.o.Full)
	s.db = d // without it the next commit opens it
	s.unflushed = true
	return err
}

// quickCheck asks SQLite whether a file is sound.
func quickCheck(file string, sys *system) error {
	d, _, err := openDB(file, sys, false)
	if err != nil {
		return err
	}
	var bad []string
	err = d.query("PRAGMA quick_check(5)", func(v []driver.Value) error {
		if t := text(v[0]); t != "ok" {
			bad = append(bad, t)
		}
		return nil
	})
	if err == nil && len(bad) > 0 {
		err = fmt.Errorf("%w: %s", errDamaged, strings.Join(bad, "; "))
	}
	if err == nil {
		err = d.run("PRAGMA journal_mode=DELETE") // no -wal file is left beside it
	}
	return errors.Join(err, d.close())
}

// Checked is what Check found.
type Checked struct {
	Segments, Records int
	Problems          []string // at most 20
}

// Check reads everything: the structure of the file and the checksum of every
// segment, one at a time. It changes nothing.
func (s *Store) Check(ctx context.Context) (c Checked, err error) {
	err = s.do(ctx, func() error {
		s.io.Lock()
		defer s.io.Unlock()
		if s.db == nil {
			return ErrReadOnly
		}
		return s.db.query("PRAGMA quick_check(20)", func(v []driver.Value) error {
			if t := text(v[0]); t != "ok" {
				c.Problems = append(c.Problems, t)
			}
			return nil
		})
	})
	if wounded(err) {
		c.Problems, err = append(c.Problems, err.Error()), nil
	}
	if err != nil {
		return c, fmt.Errorf("check: %w", err)
	}
	for l := range lanes {
		for next := uint64(0); ; {
			s.mu.Lock()
			var h *header
			for _, o := range s.lanes[l].segs[s.lanes[l].find(next):] {
				if !o.dead && o.ram == nil {
					h = o
					break
				}
			}
			s.mu.Unlock()
			if h == nil {
				break
			}
			next = h.last + 1
			if err := ctx.Err(); err != nil {
				return c, err
			}
			s.io.Lock()
			_, err := s.fetch(h)
			s.io.Unlock()
			s.mu.Lock()
			if !h.dead { // else it went while we looked
				c.Segments++
				c.Records += int(h.n)
				if err != nil && len(c.Problems) < 20 {
					c.Problems = append(c.Problems, report.Line(err.Error()))
				}
			}
			s.mu.Unlock()
		}
	}
	return c, nil
}
