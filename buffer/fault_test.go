package buffer

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config/report"
)

// numbered appends records n, n+1 ... for c and returns the ticket.
func numbered(s *Store, c *Consumer, lazy bool, ns ...int) Ticket {
	var rs []Record
	st := s.Stream(c.Name())
	for _, n := range ns {
		rs = append(rs, Record{To: []ConsumerID{c.ID()}, Lane: LaneLive, Topic: "t", Payload: fmt.Append(nil, n), Numbers: []Number{st.Next()}})
	}
	if lazy {
		return s.AppendLazy(rs)
	}
	return s.Append(rs)
}

// drained takes and acknowledges everything that is there.
func drained(t testing.TB, c *Consumer) (ns []int) {
	t.Helper()
	for {
		rs := there(t, c, 100)
		if len(rs) == 0 {
			return ns
		}
		for _, r := range rs {
			var n int
			fmt.Sscan(string(r.Payload), &n)
			ns = append(ns, n)
			c.Ack(r.Ord)
		}
	}
}

func upTo(n int) (ns []int) {
	for i := range n {
		ns = append(ns, i+1)
	}
	return ns
}

// alerts collects what a store says.
type alerts struct {
	mu   sync.Mutex
	text []string
}

func (a *alerts) add(r report.Report) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.text = append(a.text, fmt.Sprint(r.Err, solved(r), ": ", r.Text))
}

func solved(r report.Report) string {
	if r.Solved {
		return " solved"
	}
	return ""
}

func (a *alerts) has(part string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.ContainsFunc(a.text, func(s string) bool { return strings.Contains(s, part) })
}

func TestFailedFlushFiresNoTicketAndLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		sys := quiet()
		sys.fdatasync = func(*os.File) error {
			if broken.Load() {
				return syscall.EIO
			}
			return nil
		}
		var said alerts
		s := open(t, temp(t), Options{sys: sys, Alert: said.add})
		c := consumer(t, s, "c", ConsumerOptions{Stream: "c"})
		wait(t, numbered(s, c, false, 1))
		broken.Store(true)
		k := numbered(s, c, false, 2, 3)
		fired := make(chan error, 1)
		k.Then(func(err error) { fired <- err })
		synctest.Wait()
		if len(fired) > 0 {
			t.Fatal("the ticket fired without a flush")
		}
		if st := s.Stats(); st.State != "read-only" {
			t.Errorf("after three failures the state is %q", st.State)
		}
		if err := numbered(s, c, false, 99).Err(); !errors.Is(err, ErrReadOnly) {
			t.Errorf("an append with a waiter got %v", err)
		}
		s.Stream("c").next.Add(^uint64(0)) // that number was never used
		lazy := numbered(s, c, true, 4, 5)
		if lazy.Err() != nil || !errors.Is(lazy.Wait(t.Context()), ErrReadOnly) {
			t.Error("a lazy append is kept in RAM, and is not on disk")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if rs := there(t, c, 10); len(rs) != 1 {
			t.Errorf("from the disk: %d", len(rs))
		}
		if rs := there(t, c, 10); len(rs) != 2 || string(rs[0].Payload) != "2" {
			t.Errorf("from RAM: %v", rs)
		}
		broken.Store(false)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if err := <-fired; err != nil {
			t.Error(err)
		}
		if st := s.Stats(); st.State != "ok" {
			t.Error(st.State)
		}
		c.Rewind()
		if got := drained(t, c); fmt.Sprint(got) != "[1 2 3 4 5]" {
			t.Error(got)
		}
		if !said.has("read-only: the disk fails: flush") || !said.has("read-only solved: ") {
			t.Error(said.text)
		}
		shut(t, s)
	})
}

func TestReadOnlyKeepsTheNewestReadings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := temp(t)
		var broken atomic.Bool
		var tries []time.Duration
		began := time.Now()
		sys := quiet()
		sys.exec = func(query string) error {
			if broken.Load() && query == "BEGIN IMMEDIATE" {
				tries = append(tries, time.Since(began))
				return fmt.Errorf("%s: %w", query, syscall.EROFS)
			}
			return nil
		}
		s := open(t, path, Options{sys: sys})
		c := consumer(t, s, "c", ConsumerOptions{Stream: "c"})
		time.Sleep(2 * time.Second)
		broken.Store(true)
		began = time.Now()
		numbered(s, c, false, 0)
		n := 0
		for range 80 { // 8 MiB of readings
			for range 100 {
				n++
				s.AppendLazy([]Record{{To: []ConsumerID{c.ID()}, Lane: LaneLive, Payload: append(fmt.Append(nil, n, " "), make([]byte, 1000)...),
					Numbers: []Number{s.Stream("c").Next()}}})
			}
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if got := fmt.Sprint(tries[:7]); got != "[0s 1s 3s 7s 15s 31s 1m3s]" {
			t.Errorf("tries at %s", got)
		}
		size := 0
		for _, g := range s.ram {
			size += len(g.raw)
		}
		if size > maxRAM || size < maxRAM*3/4 {
			t.Errorf("%d bytes in RAM", size)
		}
		broken.Store(false)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		shut(t, s)
		s = open(t, path, Options{sys: quiet()})
		c = consumer(t, s, "c", ConsumerOptions{Stream: "c", Window: 1024})
		got := drained(t, c)
		lost := uint64(0)
		for _, l := range s.Losses(c) {
			if l.Reason != reasonFailed {
				t.Errorf("%+v", l)
			}
			lost += l.Dropped
		}
		if int(lost)+len(got) != n+1 || got[len(got)-1] != n || lost == 0 {
			t.Errorf("%d kept, %d in the ledger, %d were appended", len(got), lost, n+1)
		}
		shut(t, s)
	})
}

func TestReadOnlyConnectionIsNoticed(t *testing.T) {
	s := open(t, temp(t), Options{sys: quiet()})
	c := consumer(t, s, "c", ConsumerOptions{})
	s.io.Lock()
	err := s.db.run("PRAGMA query_only=1") // SQLite answers 8 from now on
	s.io.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	wait(t, numbered(s, c, false, 1)) // the next try opens a new connection
	if got := drained(t, c); len(got) != 1 {
		t.Error(got)
	}
}

func TestStartWithoutADisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := temp(t)
		s := open(t, path, Options{sys: quiet()})
		c := consumer(t, s, "old", ConsumerOptions{Stream: "c"})
		wait(t, numbered(s, c, false, 1, 2, 3))
		wait(t, s.Append(nil, Session{Client: "x", Data: []byte("d")}, Subscription{Client: "x", Filter: "f"}))
		shut(t, s)

		var broken atomic.Bool
		broken.Store(true)
		sys := quiet()
		sys.exec = func(query string) error {
			if broken.Load() {
				return syscall.EROFS
			}
			return nil
		}
		s = open(t, path, Options{sys: sys})
		if st := s.Stats(); st.State != "read-only" {
			t.Fatal(st.State)
		}
		c = consumer(t, s, "old", ConsumerOptions{Stream: "c"})
		numbered(s, c, true, 4, 5)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := drained(t, c); fmt.Sprint(got) != "[4 5]" {
			t.Error("from RAM", got)
		}
		numbered(s, c, true, 6)
		broken.Store(false)
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if got := drained(t, c); fmt.Sprint(got) != "[6 1 2 3]" {
			t.Error("after the disk came back", got)
		}
		shut(t, s)
		s = open(t, path, Options{sys: quiet()})
		var got []Change
		s.Load(func(c Change) error { got = append(got, c); return nil })
		if fmt.Sprint(got) != "[{x [100] false} {x f [] false}]" {
			t.Error(got)
		}
		shut(t, s)
	})
}
