package buffer

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// filler appends records of a kilobyte that do not compress.
type filler struct {
	s    *Store
	to   []*Consumer
	lane uint8
	n    int
}

func (f *filler) records(count int) (rs []Record) {
	for range count {
		f.n++
		r := Record{Lane: f.lane, Topic: "t", Payload: append(fmt.Append(nil, f.n, " "), random(1000)...)}
		for _, c := range f.to {
			r.To = append(r.To, c.ID())
			if st := f.s.Stream(c.o.Stream); st != nil {
				r.Numbers = append(r.Numbers, st.Next())
			}
		}
		rs = append(rs, r)
	}
	return rs
}

func (f *filler) add(t testing.TB, commits, count int) {
	t.Helper()
	for range commits {
		wait(t, f.s.Append(f.records(count)))
	}
	if err := f.s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// ledger checks that the losses of a consumer and what it still gets are all
// numbers 1..n, without overlap, and returns how many were lost. The losses are
// read last: a bound may take more while the rest is read.
func ledger(t testing.TB, s *Store, c *Consumer, n int, reason string) int {
	t.Helper()
	seen := map[int]string{}
	note := func(i int, what string) {
		if was := seen[i]; was != "" {
			t.Fatalf("number %d is %s and %s", i, was, what)
		}
		seen[i] = what
	}
	last := 0
	for _, i := range drained(t, c) {
		note(i, "there")
		if i < last {
			t.Errorf("%d follows %d", i, last)
		}
		last = i
	}
	lost := 0
	for _, l := range s.Losses(c) {
		if l.Reason != reason || int(l.Hi-l.Lo)+1 != int(l.Dropped) {
			t.Errorf("%+v", l)
		}
		for i := l.Lo; i <= l.Hi; i++ {
			note(int(i), "lost")
			lost++
		}
	}
	if len(seen) != n || last != n {
		t.Errorf("%d of %d are accounted for, the last is %d", len(seen), n, last)
	}
	return lost
}

func TestDropOldest(t *testing.T) {
	for _, c := range []struct {
		fact   string
		limits Limits
		reason string
	}{
		{"max_bytes", Limits{MaxBytes: 2 << 20, MinFreeDisk: -1}, reasonBytes},
		{"max_messages", Limits{MaxMessages: 1500, MinFreeDisk: -1}, reasonMessages},
		{"min_free_disk", Limits{MinFreeDisk: 1 << 60}, reasonFree},
	} {
		t.Run(c.fact, func(t *testing.T) {
			path := temp(t)
			s := open(t, path, Options{sys: quiet(), Limits: c.limits})
			up := consumer(t, s, "up", ConsumerOptions{Stream: "up", Window: 1024})
			exact := consumer(t, s, "exact", ConsumerOptions{Stream: "exact", Exact: true})
			f := filler{s: s, to: []*Consumer{up, exact}, lane: LaneLive}
			f.add(t, 10, 25)
			first := there(t, exact, 20) // leased: these must stay
			f.add(t, 150, 80)
			if c.limits.MaxBytes != 0 {
				s.measure()
				s.mu.Lock()
				used := s.usedLocked()
				s.mu.Unlock()
				if used > c.limits.MaxBytes+256<<10 {
					t.Errorf("%d KiB in use", used>>10)
				}
			}
			if st := s.Stats(); c.limits.MaxMessages != 0 && st.Records > c.limits.MaxMessages {
				t.Errorf("%d messages", st.Records)
			}
			shut(t, s)
			s = open(t, path, Options{sys: quiet(), Limits: c.limits})
			up = consumer(t, s, "up", ConsumerOptions{Stream: "up", Window: 1024})
			exact = consumer(t, s, "exact", ConsumerOptions{Stream: "exact", Exact: true})
			if lost := ledger(t, s, up, f.n, c.reason); lost < 4000 {
				t.Errorf("%d lost", lost)
			}
			again := there(t, exact, 20)
			if len(again) != len(first) || again[0].Seq != first[0].Seq || !again[0].Dup {
				t.Errorf("of %d leased records %d came again", len(first), len(again))
			}
			exact.Rewind()
			if lost := ledger(t, s, exact, f.n, c.reason); lost < 4000 {
				t.Errorf("%d lost", lost)
			}
		})
	}
}

func TestTheLowestLaneGoesFirst(t *testing.T) {
	s := open(t, temp(t), Options{sys: quiet(), Limits: Limits{MaxMessages: 100, MinFreeDisk: -1}})
	c := consumer(t, s, "c", ConsumerOptions{Window: 1024})
	for l := range lanes {
		f := filler{s: s, to: []*Consumer{c}, lane: uint8(l)}
		f.add(t, 10, 4)
	}
	st := s.Stats()
	if got := []int64{st.Lanes[0].Records, st.Lanes[1].Records, st.Lanes[2].Records, st.Lanes[3].Records}; !slices.Equal(got, []int64{40, 40, 20, 0}) {
		t.Error(got)
	}
}

func TestMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		sys := quiet()
		sys.mono = func() time.Duration { return time.Since(began) + time.Minute }
		path := temp(t)
		s := open(t, path, Options{sys: sys, Limits: Limits{MaxAge: time.Hour, MinFreeDisk: -1}})
		c := consumer(t, s, "c", ConsumerOptions{Stream: "c", Window: 1024})
		f := filler{s: s, to: []*Consumer{c}, lane: LaneLive}
		f.add(t, 1, 10) // without a clock
		time.Sleep(30 * time.Minute)
		s.SetClock(100000 * time.Hour)
		f.add(t, 1, 10)
		time.Sleep(29 * time.Minute)
		if n, _ := c.Pending(); n != 20 {
			t.Errorf("%d wait before an hour", n)
		}
		time.Sleep(3 * time.Minute)
		if n, _ := c.Pending(); n != 10 {
			t.Errorf("%d wait after an hour", n)
		}
		time.Sleep(31 * time.Minute)
		if n, _ := c.Pending(); n != 0 {
			t.Errorf("%d wait after another", n)
		}
		if ls := s.Losses(c); len(ls) != 1 || ls[0].Dropped != 20 || ls[0].Reason != reasonAge {
			t.Errorf("%+v", ls)
		}
		shut(t, s)
	})
}

func TestReject(t *testing.T) {
	s := open(t, temp(t), Options{sys: quiet(), Limits: Limits{MaxMessages: 100, MinFreeDisk: -1, WhenFull: Reject}})
	c := consumer(t, s, "c", ConsumerOptions{Stream: "c", Window: 1024})
	f := filler{s: s, to: []*Consumer{c}, lane: LaneLAN}
	f.add(t, 11, 10)
	err := s.Append(f.records(1)).Wait(t.Context())
	if !errors.Is(err, ErrFull) || err.Error() != "store full: 110 of max_messages 100" {
		t.Error(err)
	}
	wait(t, s.Append(nil, Session{Client: "x"})) // what is not a message goes on
	wait(t, s.Append([]Record{{Topic: "nobody wants it"}}))
	wait(t, s.AppendLazy(f.records(3))) // dropped as the newest, and counted
	if ls := s.Losses(c); len(ls) != 1 || ls[0].Lo != 112 || ls[0].Hi != 114 || ls[0].Dropped != 3 {
		t.Errorf("%+v", ls)
	}
	drained(t, c) // all of them: segments go whole, and nothing says how the appends were grouped
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	wait(t, s.Append(f.records(1)))
}

func TestQuotaTakesFromOneSessionOnly(t *testing.T) {
	for _, q := range []ConsumerOptions{
		{Kind: SessionLog, QuotaRecords: 100},
		{Kind: SessionLog, QuotaBytes: 100 << 10, QuotaRecords: -1},
	} {
		s := open(t, temp(t), Options{sys: quiet(), Limits: Limits{MinFreeDisk: -1}})
		lan := consumer(t, s, "lan", q)
		other := consumer(t, s, "other", ConsumerOptions{Kind: SessionLog})
		f := filler{s: s, to: []*Consumer{lan, other}, lane: LaneLAN}
		f.add(t, 50, 10)
		n, bytes := lan.Pending()
		if n > 100 || n < 80 || bytes > 105<<10 {
			t.Errorf("%d records, %d bytes wait", n, bytes)
		}
		rs, _, err := lan.ReadFrom(0, 1000, 1<<30)
		if err != nil || len(rs) != n {
			t.Errorf("%d of %d read: %v", len(rs), n, err)
		}
		ls := s.Losses(lan)
		if len(ls) != 1 || int(ls[0].Dropped) != f.n-n || ls[0].Reason != reasonQuota {
			t.Errorf("%+v", ls)
		}
		if n, _ := other.Pending(); n != f.n || len(s.Losses(other)) != 0 {
			t.Errorf("the other session has %d of %d", n, f.n)
		}
	}
}

func TestSmallTablesAreBounded(t *testing.T) {
	s := open(t, temp(t), Options{sys: quiet(), Limits: Limits{MaxRetained: 3, MaxRetainedBytes: 1000}})
	for i := range 3 {
		wait(t, s.Append(nil, Retained{Topic: fmt.Sprint(i)}))
	}
	if err := s.Append(nil, Retained{Topic: "3"}).Err(); !errors.Is(err, ErrFull) {
		t.Error("a fourth topic:", err)
	}
	wait(t, s.Append(nil, Retained{Topic: "2", Payload: make([]byte, 900)})) // a known topic
	if err := s.Append(nil, Retained{Topic: "1", Payload: make([]byte, 200)}).Err(); !errors.Is(err, ErrFull) {
		t.Error("more bytes:", err)
	}
	wait(t, s.Append(nil, Retained{Topic: "2", Gone: true}, Retained{Topic: "2", Gone: true}))
	wait(t, s.Append(nil, Retained{Topic: "1", Payload: make([]byte, 200)}))
	for i := range 10 {
		s.AppendLazy(nil, Fact{Key: fmt.Sprint(i), Value: make([]byte, 1<<20)})
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := s.Stats(); st.Facts != 3 || st.Retained != 2 {
		t.Errorf("%d facts, %d retained", st.Facts, st.Retained)
	}
}
