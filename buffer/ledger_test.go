package buffer

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// killedIn gives the files of a store as kill -9 in the next flush would leave
// them, after arm was called.
func killedIn(t *testing.T, sys *system, path string) (arm func(), left string) {
	left = filepath.Join(t.TempDir(), "b.db")
	var armed atomic.Bool
	sys.fdatasync = func(*os.File) error {
		if armed.Swap(false) {
			for _, suffix := range []string{"", "-wal", "-notes"} {
				write(t, left+suffix, read(t, path+suffix))
			}
		}
		return nil
	}
	return func() { armed.Store(true) }, left
}

// TestLedgerIsSavedWithThePosition: a kill right after the commit of a position
// finds the loss that it has passed in the ledger.
func TestLedgerIsSavedWithThePosition(t *testing.T) {
	for _, tt := range []struct {
		fact string
		o    ConsumerOptions
		move func(t *testing.T, s *Store, c *Consumer)
	}{
		{"a lease of an exact uplink", ConsumerOptions{Exact: true}, func(t *testing.T, _ *Store, c *Consumer) {
			if rs, err := c.Next(t.Context(), 10); err != nil || len(rs) != 2 {
				t.Error(rs, err)
			}
		}},
		{"a thousand acknowledgements", ConsumerOptions{}, func(t *testing.T, s *Store, c *Consumer) {
			there(t, c, 10)
			s.mu.Lock()
			s.saveLocked() // as they do
			s.mu.Unlock()
			wait(t, s.Append(nil))
		}},
	} {
		t.Run(tt.fact, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // the second of the housekeeping does not pass
				path, sys := temp(t), quiet()
				arm, left := killedIn(t, sys, path)
				s := open(t, path, Options{sys: sys})
				tt.o.Stream = "c"
				c := consumer(t, s, "c", tt.o)
				s.SetClock(0)
				var rs []Record
				for i := range 4 {
					r := Record{To: []ConsumerID{c.ID()}, Topic: "t", Numbers: []Number{s.Stream("c").Next()}}
					if i%2 == 1 {
						r.Expires = time.UnixMilli(1)
					}
					rs = append(rs, r)
				}
				wait(t, s.Append(rs))
				time.Sleep(2 * time.Second)
				arm()
				tt.move(t, s, c)
				shut(t, s)
				s = open(t, left, Options{sys: quiet()})
				c = consumer(t, s, "c", tt.o)
				n := 0
				for _, l := range s.Losses(c) {
					n += int(l.Dropped)
				}
				if n != 2 {
					t.Errorf("%d of 2 expired records are in the ledger: %+v", n, s.Losses(c))
				}
				shut(t, s)
			})
		})
	}
}

// TestLedgerGoesWithItsConsumer: a kill after Forget leaves no losses to the next
// consumer that gets the slot.
func TestLedgerGoesWithItsConsumer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path, sys := temp(t), quiet()
		arm, left := killedIn(t, sys, path)
		s := open(t, path, Options{sys: sys})
		c := consumer(t, s, "c", ConsumerOptions{})
		wait(t, numbered(s, c, false, 1))
		if n, err := s.DropPending(t.Context(), "c", time.Time{}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		time.Sleep(2 * time.Second)
		arm()
		wait(t, s.Forget("c"))
		shut(t, s)
		s = open(t, left, Options{sys: quiet()})
		s.mu.Lock()
		n := len(s.losses)
		s.mu.Unlock()
		if n != 0 {
			t.Errorf("%d rows of the ledger are nobody's", n)
		}
		shut(t, s)
	})
}

// TestKillWhileAFullDiskMakesRoom: what gave way is in the ledger as soon as it
// is gone.
func TestKillWhileAFullDiskMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path, sys := temp(t), quiet()
		arm, left := killedIn(t, sys, path)
		var full atomic.Bool
		sys.exec = func(query string) error {
			if query == "COMMIT" && full.Swap(false) {
				return syscall.ENOSPC
			}
			return nil
		}
		s := open(t, path, Options{sys: sys, Limits: Limits{MinFreeDisk: -1}})
		c := consumer(t, s, "c", ConsumerOptions{Stream: "c", Window: 1024})
		for n := range 20 {
			wait(t, numbered(s, c, false, n+1))
		}
		time.Sleep(2 * time.Second)
		full.Store(true)
		arm()
		wait(t, numbered(s, c, false, 21))
		shut(t, s)
		s = open(t, left, Options{sys: quiet(), Limits: Limits{MinFreeDisk: -1}})
		c = consumer(t, s, "c", ConsumerOptions{Stream: "c", Window: 1024})
		if lost := ledger(t, s, c, 21, reasonFree); lost == 0 {
			t.Error("nothing gave way")
		}
		shut(t, s)
	})
}

// TestThinnedIsInTheLedger: a kill right after segments were thinned.
func TestThinnedIsInTheLedger(t *testing.T) {
	s := open(t, temp(t), Options{sys: quiet()})
	c := consumer(t, s, "c", ConsumerOptions{Stream: "c", Window: 1024})
	for n := range 4 {
		wait(t, numbered(s, c, false, n+1))
	}
	check := func(s *Store, c *Consumer) {
		t.Helper()
		ls := s.Losses(c)
		if len(ls) != 1 || ls[0].Lo != 1 || ls[0].Hi != 4 || ls[0].Dropped != 1 || ls[0].Kept != 3 || ls[0].Reason != reasonThinned {
			t.Errorf("%+v", ls)
		}
	}
	var left string
	committer(t, s, LaneLive, func(run []*header) error {
		err := s.rewrite(run, func(recs []oldRecord) bool { recs[1].thrown = true; return true }, newDropping())
		left = killedCopy(t, s)
		return err
	})
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	later := killedCopy(t, s)
	check(s, c)
	for _, path := range []string{left, later} {
		s = open(t, path, Options{sys: quiet()})
		c = consumer(t, s, "c", ConsumerOptions{Stream: "c", Window: 1024})
		if got := drained(t, c); fmt.Sprint(got) != "[1 3 4]" {
			t.Error(got)
		}
		check(s, c)
	}
}
