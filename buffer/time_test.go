package buffer

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// flushes counts flushes and makes each take a while.
func counting(n *atomic.Int64, takes time.Duration) *system {
	sys := quiet()
	sys.fdatasync = func(*os.File) error {
		time.Sleep(takes)
		n.Add(1)
		return nil
	}
	return sys
}

func TestLazyRecordsAreCommittedAfterSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		s := open(t, temp(t), Options{Limits: Limits{Sync: 3 * time.Second}, sys: counting(&n, 0)})
		c := consumer(t, s, "c", ConsumerOptions{})
		time.Sleep(5 * time.Second)
		before, began := n.Load(), time.Now()
		k := s.AppendLazy([]Record{{To: []ConsumerID{c.ID()}}})
		var at time.Duration
		k.Then(func(error) { at = time.Since(began) })
		time.Sleep(3*time.Second - 1)
		synctest.Wait()
		if n.Load() != before || len(there(t, c, 1)) != 0 {
			t.Error("committed too early")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if at != 3*time.Second || n.Load() != before+1 || len(there(t, c, 1)) != 1 {
			t.Errorf("fired after %v, %d flushes", at, n.Load()-before)
		}
		shut(t, s)
	})
}

func TestLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		s := open(t, temp(t), Options{sys: counting(&n, 10*time.Millisecond)})
		c := consumer(t, s, "c", ConsumerOptions{})
		time.Sleep(5 * time.Second)
		one := func(k Ticket) time.Duration {
			began := time.Now()
			wait(t, k)
			return time.Since(began)
		}
		rec := []Record{{To: []ConsumerID{c.ID()}}}
		if d := one(s.Append(rec)); d != 10*time.Millisecond {
			t.Errorf("a single waiter waited %v, not for one flush", d)
		}
		first, k2, before := s.Append(rec), s.Append(rec), n.Load()
		for first.b != k2.b { // the committer was quicker than the second append: once more
			wait(t, k2)
			one(s.Append(rec))
			before = n.Load()
			first, k2 = s.Append(rec), s.Append(rec)
		}
		if d := one(k2); d != 10*time.Millisecond || n.Load() != before+1 {
			t.Errorf("two waiters waited %v and %d flushes, not for one flush", d, n.Load()-before)
		}
		first, before = s.Append(rec), n.Load()
		time.Sleep(2 * time.Millisecond)
		if d := one(s.Append(rec)); d != 10*time.Millisecond || n.Load() != before+1 {
			t.Errorf("when all were back the last of them waited %v and %d flushes, not for one flush", d, n.Load()-before)
		}
		wait(t, first)
		if d := one(s.Append(rec)); d != 15*time.Millisecond {
			t.Errorf("after a shared commit the only waiter that came back waited %v, not linger and flush", d)
		}
		if d := one(s.Append(rec)); d != 10*time.Millisecond {
			t.Errorf("after a commit of its own a waiter waited %v", d)
		}
		if d := one(s.AppendLazy(rec)); d != 10*time.Millisecond {
			t.Errorf("Wait for a lazy append took %v: it asks for a commit now", d)
		}
		big := make([]Record, 70)
		for i := range big {
			big[i] = Record{To: rec[0].To, Payload: make([]byte, 1000)}
		}
		k := s.AppendLazy(big)
		began := time.Now()
		k.Then(func(error) {
			if d := time.Since(began); d != 10*time.Millisecond {
				t.Errorf("64 KiB waited %v", d)
			}
		})
		time.Sleep(time.Second)
		shut(t, s)
	})
}

func TestCursorsAreSavedAfterASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		s := open(t, temp(t), Options{sys: counting(&n, 0)})
		c := consumer(t, s, "c", ConsumerOptions{})
		rs := make([]Record, 10)
		for i := range rs {
			rs[i].To = []ConsumerID{c.ID()}
		}
		wait(t, s.Append(rs))
		time.Sleep(5 * time.Second)
		before := n.Load()
		for _, r := range there(t, c, 10) {
			c.Ack(r.Ord)
		}
		pos := func() int64 {
			s.io.Lock()
			defer s.io.Unlock()
			v, _ := s.db.integer("SELECT pos0 FROM consumer")
			return v
		}
		old := pos()
		time.Sleep(time.Second - 1)
		synctest.Wait()
		if pos() != old {
			t.Error("saved too early")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if pos() != int64(rs[0].Seq)+old+10 {
			t.Errorf("position %d, was %d", pos(), old)
		}
		if n.Load() != before {
			t.Error("a transaction without records was flushed")
		}
		if st := s.Stats(); st.Segments != 0 {
			t.Errorf("%d segments are left", st.Segments)
		}
		shut(t, s)
	})
}

// kernel is a machine whose boot and clock the test sets.
func kernel(id string, mono *monotonic) *system {
	sys := quiet()
	sys.bootID = func() string { return id }
	sys.mono = func() time.Duration { return time.Duration(mono.Load()) }
	return sys
}

// monotonic is a clock that the store reads whenever it likes.
type monotonic struct{ atomic.Int64 }

func (m *monotonic) set(d time.Duration) { m.Store(int64(d)) }
func (m *monotonic) add(d time.Duration) { m.Add(int64(d)) }

func TestRedating(t *testing.T) {
	path := temp(t)
	var mono monotonic
	mono.set(10 * time.Second)
	offset := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Sub(time.Unix(0, 0))
	put := func(s *Store, name string) {
		c := consumer(t, s, "c", ConsumerOptions{})
		wait(t, s.Append([]Record{{To: []ConsumerID{c.ID()}, Topic: name}}))
		mono.add(10 * time.Second)
	}
	s := open(t, path, Options{sys: kernel("K0", &mono)})
	put(s, "other kernel, never dated")
	shut(t, s)

	mono.set(100 * time.Second)
	s = open(t, path, Options{sys: kernel("K1", &mono)})
	put(s, "before the restart")
	shut(t, s)
	s = open(t, path, Options{sys: kernel("K1", &mono)})
	put(s, "before the clock")
	s.SetClock(offset)
	put(s, "with the clock")
	s.SetClock(offset + time.Hour) // a step
	put(s, "after the step")
	boot := s.Boot()
	shut(t, s)

	mono.set(1000 * time.Second)
	s = open(t, path, Options{sys: kernel("K1", &mono)})
	at := func(d time.Duration) string {
		return time.Unix(0, 0).Add(offset + d).UTC().Format(time.RFC3339)
	}
	want := []string{
		"other kernel, never dated 0001-01-01T00:00:00Z none 10s",
		fmt.Sprintf("before the restart %s redated 1m40s", at(100*time.Second)),
		fmt.Sprintf("before the clock %s redated 1m50s", at(110*time.Second)),
		fmt.Sprintf("with the clock %s clock 2m0s", at(120*time.Second)),
		fmt.Sprintf("after the step %s clock 2m10s", at(130*time.Second+time.Hour)),
	}
	c := consumer(t, s, "c", ConsumerOptions{})
	var boots []string
	for i := 0; ; {
		rs := there(t, c, 10)
		if len(rs) == 0 {
			break
		}
		for _, r := range rs {
			if got := fmt.Sprint(r.Topic, " ", r.At.Format(time.RFC3339), " ", r.Clock, " ", r.Mono); got != want[i] {
				t.Errorf("got  %s\nwant %s", got, want[i])
			}
			boots = append(boots, r.Boot)
			i++
		}
	}
	if len(boots) != 5 || boots[2] != boot || boots[0] == boots[1] || s.Boot() == boot {
		t.Errorf("boots %v; then %s, now %s", boots, boot, s.Boot())
	}
}

func TestExpiredRecordsAreSkippedAndCounted(t *testing.T) {
	var mono monotonic
	mono.set(time.Hour)
	sys := kernel("K", &mono)
	path := temp(t)
	s := open(t, path, Options{sys: sys})
	c := consumer(t, s, "c", ConsumerOptions{Stream: "cloud"})
	now := time.Unix(0, 0).Add(time.Hour)
	st := s.Stream("cloud")
	var rs []Record
	for i := range 6 {
		r := Record{To: []ConsumerID{c.ID()}, Topic: fmt.Sprint(i), Numbers: []Number{st.Next()}}
		if i%2 == 1 {
			r.Expires = now.Add(time.Minute)
		}
		rs = append(rs, r)
	}
	wait(t, s.Append(rs))
	if got := there(t, c, 2); len(got) != 2 || got[1].Topic != "1" {
		t.Fatal("expired while the clock is not known", got)
	}
	s.SetClock(0)
	mono.add(2 * time.Minute)
	var got []string
	for _, r := range there(t, c, 10) {
		got = append(got, r.Topic)
		c.Ack(r.Ord)
	}
	if fmt.Sprint(got) != "[2 4]" {
		t.Error(got)
	}
	c.Rewind()
	if again := there(t, c, 10); len(again) != 2 || again[1].Topic != "1" || !again[1].Dup {
		t.Error("a lease must not expire", again)
	}
	c.Ack(1, 2)
	want := "[{cloud 4 4 1} {cloud 6 6 1}]"
	show := func(ls []Loss) string {
		var out []struct {
			s      string
			lo, hi uint64
			n      uint64
		}
		for _, l := range ls {
			if l.Reason != reasonExpired || l.Consumer != "c" || l.Boot != s.Boot() {
				t.Errorf("%+v", l)
			}
			out = append(out, struct {
				s      string
				lo, hi uint64
				n      uint64
			}{l.Stream, l.Lo, l.Hi, l.Dropped})
		}
		return fmt.Sprint(out)
	}
	if got := show(s.Losses(c)); got != want {
		t.Error(got)
	}
	if n, b := c.Pending(); n != 0 || b != 0 {
		t.Error(n, b)
	}
	s.Told(s.Losses(c)[0].ID)
	shut(t, s)
	s = open(t, path, Options{sys: sys})
	c = consumer(t, s, "c", ConsumerOptions{Stream: "cloud"})
	if ls := s.Losses(c); len(ls) != 1 || ls[0].Lo != 6 {
		t.Error("after a restart", ls)
	}
	boot, last := s.Closing()
	if boot == s.Boot() || fmt.Sprint(last) != "map[cloud:6]" {
		t.Error(boot, last)
	}
}

func TestAppendAfterClose(t *testing.T) {
	s := open(t, temp(t), Options{sys: quiet()})
	c := consumer(t, s, "c", ConsumerOptions{})
	var fired atomic.Int64
	var committed, refused int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			k := s.Append([]Record{{To: []ConsumerID{c.ID()}}})
			k.Then(func(error) { fired.Add(1) })
			if k.Err() != nil {
				refused++
				return
			}
			committed++
		}
	}()
	shut(t, s)
	<-done
	if refused != 1 || fired.Load() != committed+1 {
		t.Errorf("%d committed, %d refused, %d fired", committed, refused, fired.Load())
	}
	if err := s.Append(nil).Wait(t.Context()); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if _, err := c.Next(t.Context(), 1); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}
