package buffer

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"
)

const (
	houseEvery   = time.Second           // cursors, trims and counters are saved after this
	saveWait     = 10 * time.Millisecond // or cursors after this, when many deliveries were acknowledged
	trimMost     = 64                    // rows of a transaction: its commit is to be no longer than others ...
	trimHurry    = 256                   // ... unless somebody waits for the housekeeping
	walPages     = 1000                  // written before a checkpoint
	measureEvery = time.Minute           // without other work
)

// commit is what one transaction writes. It may run again after a failure:
// every statement gives the same result twice.
type commit struct {
	b       *batch
	segs    []segment
	rows    []op // consumers, streams, losses, meta
	trims   []*header
	tries   int
	healthy bool // the failure was not the connection's
}

// segment is a row to insert.
type segment struct {
	h    *header
	raw  []byte
	need []byte
	data []byte
}

// takeBatchLocked swaps the batch and gathers what else is due.
func (s *Store) takeBatchLocked(house bool) *commit {
	t := &commit{b: s.batch}
	s.batch, s.committing = newBatch(), t.b
	s.batch.thens = make([]func(error), 0, len(t.b.thens)) // mostly as many as before
	s.room.Broadcast()
	s.commitTopsLocked(t.b.tops)
	// A row of the ledger is saved with the position of its consumer, never
	// before or after it.
	save := house || !s.saveAt.IsZero() || s.owing && len(t.b.save)+len(t.b.drops) > 0
	s.saveAt = time.Time{}
	s.takeRowsLocked(t, save, house)
	if !house {
		return t
	}
	most := trimMost
	switch {
	case s.closing:
		most = len(s.trims)
	case s.hurry:
		most = trimHurry
	}
	s.hurry, s.dirtySince = false, time.Time{}
	s.takeTrimsLocked(t, most)
	return t
}

// takeRowsLocked adds the positions of consumers: of those that t must save,
// and with save of all that have moved, with the ledger. With house the streams
// go with them, too.
func (s *Store) takeRowsLocked(t *commit, save, house bool) {
	for _, c := range s.slots {
		if c != nil && (t.b.save[c] || save && c.dirty) {
			t.rows = append(t.rows, op{sqlConsumer, c.row()})
			c.dirty, c.acks = false, 0
		}
	}
	for _, st := range s.streams {
		if st.dirty && (house || !st.saved) {
			t.rows = append(t.rows, st.row())
			st.dirty, st.saved = false, true
		}
	}
	if save {
		s.takeLossesLocked(t)
	}
}

// takeTrimsLocked adds at most so many rows to delete, and what must be saved
// with them besides positions, ledger and streams.
func (s *Store) takeTrimsLocked(t *commit, most int) {
	upTo := max(t.b.last, s.head)
	t.rows = append(t.rows, op{sqlMeta, []any{metaNextSeq, "next_seq", s.nextSeq}},
		op{sqlMeta, []any{metaStreamsUpTo, "streams_upto", upTo}})
	for _, b := range s.boots {
		if b.dirty {
			t.rows = append(t.rows, op{sqlBoot, b.row()})
			b.dirty = false
		}
	}
	n := min(len(s.trims), most)
	t.trims = append(t.trims, s.trims[:n]...)
	if s.trims = s.trims[n:]; len(s.trims) > 0 {
		s.dirtyLocked()
	}
}

func (s *Store) takeLossesLocked(t *commit) {
	for _, id := range s.lossesGone {
		t.rows = append(t.rows, op{sqlNoLoss, []any{id}})
	}
	s.lossesGone, s.owing = nil, false
	for _, l := range s.losses {
		if l.dirty {
			t.rows = append(t.rows, l.row())
			l.dirty = false
		}
	}
}

// perform writes t, flushes it, makes it visible and fires its tickets. What
// fails is kept for another try with the same numbers, except at the end.
func (s *Store) perform(t *commit, last bool) {
	began := time.Now()
	s.pack(t)
	err := s.write(t)
	if err == nil && (!t.b.empty() || s.unflushed && t.b.waiters > 0) {
		err = s.flush()
	}
	if err != nil && last && wounded(err) && s.replace(t, err) == nil { // the rescue is for the next start
		if err = s.write(t); err == nil {
			err = s.flush()
		}
	}
	if err != nil && !last {
		s.trouble(t, err)
		return
	}
	if err == nil {
		s.recovered()
	}
	s.mu.Lock()
	if err == nil {
		s.visibleLocked(t)
	}
	t.b.err, t.b.fired = err, true
	for _, fn := range t.b.thens {
		s.fireLocked(then{fn, err})
	}
	t.b.thens, t.b.ops, t.b.at = nil, nil, nil
	s.expect, s.servedAt = t.b.waiters+s.batch.waiters, time.Now()
	if t.b.waiters > 0 {
		s.pace += (s.servedAt.Sub(began) - s.pace) / 4
	}
	s.committing = nil
	s.mu.Unlock()
	close(t.b.done)
	if err == nil && s.walPages >= s.checkpointAt() {
		s.walPages = 0
		s.checkpoint("PASSIVE")
	}
}

// pack compresses what the batch of t has collected. Readers get a copy of the
// records as long as they are: the buffer they lay in is used again.
func (s *Store) pack(t *commit) {
	for _, sb := range t.b.segs {
		g := segment{raw: bytes.Clone(sb.raw), need: appendNeeds(nil, sb.needs), data: s.deflate.pack(sb.raw)}
		g.h = &header{first: sb.first, last: sb.last, ts: sb.ts, needs: sb.needs, n: uint32(sb.n),
			size: uint32(len(g.need) + len(g.data)), raw: uint32(len(sb.raw)), boot: uint32(sb.boot), lane: sb.lane}
		t.segs = append(t.segs, g)
	}
	s.mu.Lock()
	for _, sb := range t.b.segs {
		s.vacateLocked(sb.raw)
	}
	s.mu.Unlock()
	t.b.segs, t.b.open = nil, [lanes]*builder{}
}

// write runs the transaction.
func (s *Store) write(t *commit) error {
	if len(t.segs)+len(t.b.ops)+len(t.rows)+len(t.trims) == 0 {
		return nil
	}
	s.io.Lock()
	defer s.io.Unlock()
	if s.db == nil {
		return ErrReadOnly
	}
	err := s.db.transaction(func() error {
		for _, h := range t.trims { // first: on a full disk their pages are needed
			if err := s.db.exec(sqlDeleteSeg, h.id()); err != nil {
				return err
			}
		}
		for i := range t.segs {
			if err := s.db.exec(sqlInsertSeg, t.segs[i].row()...); err != nil {
				return err
			}
		}
		for _, ops := range [][]op{t.b.ops, t.rows} {
			for _, o := range ops {
				if err := s.db.exec(o.query, o.args...); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("commit %s: %w", s.path, err)
	}
	s.unflushed = true
	s.walPages += t.pages()
	return nil
}

// row is the arguments of sqlInsertSeg.
func (g *segment) row() []any {
	h := g.h
	return []any{h.id(), h.last, h.n, h.ts, h.boot, h.raw, g.need, checksum(g.need, g.data), g.data}
}

// pages estimates what t adds to the -wal file: small rows share the last page
// of their table, large ones touch the list of free pages, too.
func (t *commit) pages() int {
	n := 1 + (len(t.rows)+15)/16 + len(t.b.ops)/4 + len(t.trims)/2
	bytes := int64(0)
	for _, g := range t.segs {
		bytes += g.h.space()
		if g.h.space() > pageSize {
			n++
		}
	}
	return n + int(bytes/pageSize)
}

// flush makes what is committed durable.
func (s *Store) flush() error {
	if !s.o.Full {
		began := time.Now()
		if err := s.wal.flush(); err != nil {
			return err
		}
		s.flushed(time.Since(began))
	}
	s.unflushed = false
	return nil
}

// visibleLocked hands the committed segments to the readers.
func (s *Store) visibleLocked(t *commit) {
	for _, g := range t.segs {
		if g.h.ram == nil {
			s.cache.put(g.h, g.raw)
			g.h.born = s.sys.mono()
			s.count.appended += int64(g.h.size)
			s.addSegmentLocked(g.h)
			continue
		}
		g.h.ram = nil // the readers know it already
		s.ramBytes -= g.h.space()
		if g.h.dead {
			s.trimLocked(g.h)
		}
	}
	s.ram = slices.DeleteFunc(s.ram, func(g segment) bool { return g.h.ram == nil })
	s.head = max(s.head, t.b.last+1)
	for _, c := range t.b.drops {
		s.leaving[c.slot] = false
	}
	if len(t.trims) > 0 {
		for _, h := range t.trims {
			s.trimSpace -= h.space()
		}
		for l := range s.lanes {
			s.lanes[l].sweep()
		}
	}
	s.count.commits++
}

// checkpointAt is how many pages the -wal file may take: half of the reserve at
// most, or a full disk could not take them into the database.
func (s *Store) checkpointAt() int {
	if s.o.Reserve > 0 {
		return min(walPages, int(s.o.Reserve/pageSize/2))
	}
	return walPages
}

// checkpoint moves pages from the -wal file into the database.
func (s *Store) checkpoint(mode string) error {
	s.io.Lock()
	defer s.io.Unlock()
	if s.db == nil {
		return nil
	}
	_, err := s.db.value("PRAGMA wal_checkpoint(" + mode + ")")
	return err
}

// Sync waits until everything appended and acknowledged so far is on disk.
func (s *Store) Sync(ctx context.Context) error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return ErrClosed
	}
	s.batch.last = max(s.batch.last, s.nextSeq-1)
	s.hurry = true
	s.queuedLocked(1, true)
	t := Ticket{s: s, b: s.batch}
	s.mu.Unlock()
	return t.Wait(ctx)
}
