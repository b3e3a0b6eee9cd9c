package buffer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// committer runs fn between two commits with the living segments of a lane.
func committer(t *testing.T, s *Store, l int, fn func(run []*header) error) {
	t.Helper()
	err := s.do(t.Context(), func() error {
		s.mu.Lock()
		run := slices.Clone(s.lanes[l].segs)
		s.mu.Unlock()
		return fn(run)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestLeasedBeforeItIsThinned: somebody takes a record after the segments to be
// thinned were chosen.
func TestLeasedBeforeItIsThinned(t *testing.T) {
	s := open(t, temp(t), Options{sys: quiet()})
	c := consumer(t, s, "c", ConsumerOptions{Stream: "c", Window: 1024})
	for n := range 4 {
		wait(t, numbered(s, c, false, n+1))
	}
	committer(t, s, LaneLive, func(run []*header) error {
		there(t, c, 1)
		return s.rewrite(run, func(recs []oldRecord) bool { recs[0].thrown = true; return true }, newDropping())
	})
	c.Rewind()
	if got := drained(t, c); fmt.Sprint(got) != "[1 2 3 4]" || len(s.Losses(c)) != 0 {
		t.Error(got, s.Losses(c))
	}
}

// TestReadBetweenCommitAndSwap: whoever gets the connection after the rows were
// replaced finds the new headers.
func TestReadBetweenCommitAndSwap(t *testing.T) {
	s := open(t, temp(t), Options{sys: quiet()})
	c := consumer(t, s, "c", ConsumerOptions{Kind: SessionLog})
	for n := range 3 {
		wait(t, s.Append([]Record{{To: []ConsumerID{c.ID()}, Lane: LaneLAN, Payload: fmt.Append(nil, n)}}))
	}
	committer(t, s, LaneLAN, func(run []*header) error {
		w := &rewriting{s: s, run: run, wants: map[int]*standing{}}
		if !w.begin() {
			t.Error("a run that nobody holds was refused")
		}
		defer w.end()
		if err := w.read(); err != nil {
			return err
		}
		w.build()
		s.mu.Lock()
		s.cache = cache{}
		s.mu.Unlock()
		if err := w.write(nil); err != nil {
			return err
		}
		if rs, _, err := c.ReadFrom(0, 9, 1<<20); err != nil || len(rs) != 3 {
			t.Error(len(rs), err)
		}
		return nil
	})
	if ls := s.Losses(c); len(ls) != 0 {
		t.Error(ls)
	}
}

// TestDamageInARunThatIsJoined takes the damaged segment only.
func TestDamageInARunThatIsJoined(t *testing.T) {
	s := open(t, temp(t), Options{sys: quiet()})
	c := consumer(t, s, "c", ConsumerOptions{Stream: "c", Window: 1024})
	for n := range 3 {
		wait(t, numbered(s, c, false, n+1))
	}
	committer(t, s, LaneLive, func(run []*header) error {
		s.io.Lock()
		err := s.db.exec("UPDATE seg SET data=zeroblob(length(data)) WHERE id=?", run[1].id())
		s.io.Unlock()
		s.mu.Lock()
		s.cache = cache{}
		s.mu.Unlock()
		if err != nil {
			return err
		}
		if err := s.rewrite(run, nil, nil); !wounded(err) {
			t.Error("joined over the damage:", err)
		}
		return nil
	})
	if got := drained(t, c); fmt.Sprint(got) != "[1 3]" {
		t.Error(got)
	}
	if ls := s.Losses(c); len(ls) != 1 || ls[0].Dropped != 1 || ls[0].Reason != reasonCorrupt {
		t.Errorf("%+v", ls)
	}
}

// TestDiskFailsAtTheSecondLook: a segment that reads badly is read again. When
// the disk fails then, that says nothing of the segment.
func TestDiskFailsAtTheSecondLook(t *testing.T) {
	path := temp(t)
	var reads atomic.Int64
	sys := quiet()
	sys.exec = func(query string) error {
		if query == sqlSelectSeg && reads.Add(1) == 2 {
			return syscall.EIO
		}
		return nil
	}
	s := open(t, path, Options{sys: quiet()})
	c := consumer(t, s, "c", ConsumerOptions{})
	wait(t, numbered(s, c, false, 1))
	shut(t, s)
	s = open(t, path, Options{sys: sys})
	c = consumer(t, s, "c", ConsumerOptions{})
	s.mu.Lock()
	h := s.lanes[LaneLive].segs[0]
	h.n++ // it does not look as it should
	s.mu.Unlock()
	if _, err := poll(c, false, 1); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	s.mu.Lock()
	h.n--
	s.mu.Unlock()
	if got := drained(t, c); len(got) != 1 || s.Stats().Damaged != 0 {
		t.Errorf("%v came, %d segments were given up", got, s.Stats().Damaged)
	}
}

// TestClockSetDuringARead: the records of one read are dated as it began.
func TestClockSetDuringARead(t *testing.T) {
	path := temp(t)
	s := open(t, path, Options{sys: quiet()})
	c := consumer(t, s, "c", ConsumerOptions{})
	wait(t, numbered(s, c, false, 1, 2))
	shut(t, s)
	sys := quiet()
	var armed atomic.Bool
	sys.exec = func(query string) error {
		if query == sqlSelectSeg && armed.Swap(false) {
			s.SetClock(time.Hour)
		}
		return nil
	}
	s = open(t, path, Options{sys: sys})
	c = consumer(t, s, "c", ConsumerOptions{})
	armed.Store(true)
	for _, r := range there(t, c, 9) {
		if r.Clock != NoTime || !r.At.IsZero() {
			t.Errorf("dated %s, %s", r.At, r.Clock)
		}
	}
	c.Rewind()
	if rs := there(t, c, 9); len(rs) != 2 || rs[0].Clock != Redated {
		t.Error("not dated afterwards", rs)
	}
}

// TestReadOnlyKeepsNobodyWaiting: what needs no disk goes on without it.
func TestReadOnlyKeepsNobodyWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		s, c, lazy := breaking(t, &broken)
		back := make(chan error, 2)
		go func() { // a session that comes, and comes again
			for range 2 {
				_, err := s.Consumer("lan", ConsumerOptions{Kind: SessionLog})
				back <- err
			}
		}()
		synctest.Wait()
		if len(back) != 2 {
			t.Error("to resume a consumer waits for the disk")
		}
		time.Sleep(20 * time.Second) // the tries are far apart by now
		numbered(s, c, true, 3)
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		if rs := drained(t, c); fmt.Sprint(rs) != "[1 2 3]" {
			t.Error("from RAM", rs)
		}
		broken.Store(false)
		wait(t, lazy)
		shut(t, s)
	})
}

// TestLazyTicketFiresWhenTheDiskIsBack, although its records went to RAM and
// nothing else is to be written.
func TestLazyTicketFiresWhenTheDiskIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		s, _, lazy := breaking(t, &broken)
		fired := make(chan error, 1)
		lazy.Then(func(err error) { fired <- err })
		broken.Store(false)
		time.Sleep(5 * time.Second) // the next try, and the housekeeping of the minute not yet
		synctest.Wait()
		if len(fired) != 1 || <-fired != nil {
			t.Error("it did not fire")
		}
		shut(t, s)
	})
}

// breaking is a store that has just begun to keep readings in RAM, with record 1
// of a waiter and record 2, which was appended meanwhile and which nobody waits
// for.
func breaking(t *testing.T, broken *atomic.Bool) (s *Store, c *Consumer, lazy Ticket) {
	sys := quiet()
	s = open(t, temp(t), Options{sys: sys})
	c = consumer(t, s, "c", ConsumerOptions{Stream: "c"})
	time.Sleep(2 * time.Second) // all is saved
	synctest.Wait()
	first := true
	sys.exec = func(query string) error {
		if !broken.Load() || query != "BEGIN IMMEDIATE" {
			return nil
		}
		if first {
			first, lazy = false, numbered(s, c, true, 2)
		}
		return syscall.EROFS
	}
	broken.Store(true)
	numbered(s, c, false, 1)
	synctest.Wait()
	if st := s.Stats().State; st != "read-only" {
		t.Fatal(st)
	}
	return s, c, lazy
}

// TestCompactBesideAReader: while somebody else reads the file, not all of the
// -wal file can be brought into it.
func TestCompactBesideAReader(t *testing.T) {
	path := temp(t)
	s := open(t, path, Options{sys: quiet()})
	c := consumer(t, s, "c", ConsumerOptions{Stream: "c"})
	wait(t, numbered(s, c, false, 1))
	other, _, err := openDB(path, quiet(), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(other.run("BEGIN"), other.run("SELECT count(*) FROM seg")); err != nil {
		t.Fatal(err)
	}
	wait(t, numbered(s, c, false, 2))
	s.io.Lock()
	err = s.db.run("PRAGMA busy_timeout=1")
	s.io.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Compact(t.Context()); err == nil || !strings.Contains(err.Error(), "another reader") {
		t.Error(err)
	}
	if err := errors.Join(other.run("COMMIT"), other.close()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Compact(t.Context()); err != nil {
		t.Error(err)
	}
	if got := drained(t, c); fmt.Sprint(got) != "[1 2]" {
		t.Error(got)
	}
}

// TestCloseBesideNext: nobody waits for a store that is closed.
func TestCloseBesideNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, temp(t), Options{sys: quiet()})
		c := consumer(t, s, "c", ConsumerOptions{})
		got := make(chan error, 1)
		go func() {
			_, err := c.Next(context.Background(), 1)
			got <- err
		}()
		synctest.Wait()
		shut(t, s)
		synctest.Wait()
		if err := <-got; !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
}

// TestRewrittenWhileItIsRead writes a segment anew after a reader has chosen it
// and before it has its row.
func TestRewrittenWhileItIsRead(t *testing.T) {
	for _, tt := range []struct {
		fact string
		read func(t *testing.T, s *Store, up, lan *Consumer) (n int)
		want int
	}{
		{"exported", func(t *testing.T, s *Store, _, _ *Consumer) (n int) {
			err := s.Export(t.Context(), "lan", time.Time{}, time.Time{}, func(*Record) error { n++; return nil })
			if err != nil {
				t.Error(err)
			}
			return n
		}, 2},
		{"by a session", func(t *testing.T, _ *Store, _, lan *Consumer) int {
			rs, _, err := lan.ReadFrom(0, 9, 1<<20)
			if err != nil {
				t.Error(err)
			}
			return len(rs)
		}, 2},
		{"by an uplink", func(t *testing.T, _ *Store, up, _ *Consumer) int { return len(drained(t, up)) }, 1},
	} {
		t.Run(tt.fact, func(t *testing.T) {
			path := temp(t)
			s := open(t, path, Options{sys: quiet()})
			consumers := func(s *Store) (up, lan, gone *Consumer) {
				return consumer(t, s, "up", ConsumerOptions{Window: 1024}), consumer(t, s, "lan", ConsumerOptions{Kind: SessionLog}), consumer(t, s, "gone", ConsumerOptions{Kind: SessionLog})
			}
			up, lan, gone := consumers(s)
			wait(t, s.Append([]Record{{To: []ConsumerID{lan.ID(), gone.ID()}, Lane: LaneLAN}, {To: []ConsumerID{lan.ID()}, Lane: LaneLAN}, {To: []ConsumerID{up.ID()}, Lane: LaneLAN}}))
			shut(t, s)
			var armed atomic.Bool
			sys := quiet()
			s = open(t, path, Options{sys: sys})
			up, lan, gone = consumers(s)
			gone.Settle(1<<40, nil) // the new row has the same records, and their sets other numbers
			sys.exec = func(query string) error {
				if query == sqlSelectSeg && armed.Swap(false) {
					s.io.Unlock() // the reader has it and has not asked yet
					defer s.io.Lock()
					committer(t, s, LaneLAN, func(run []*header) error { return s.rewrite(run, nil, nil) })
				}
				return nil
			}
			armed.Store(true)
			if n := tt.read(t, s, up, lan); n != tt.want || armed.Load() {
				t.Errorf("%d came, want %d", n, tt.want)
			}
			if ls := append(s.Losses(up), s.Losses(lan)...); len(ls) != 0 || s.Stats().Damaged != 0 {
				t.Errorf("%+v, %d given up", ls, s.Stats().Damaged)
			}
		})
	}
}
