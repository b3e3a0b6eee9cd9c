package buffer

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestRareSessionKeepsItsRecordsOnly: of all that an uplink has drained only
// what an offline session wants stays, and reading that decodes nothing else.
func TestRareSessionKeepsItsRecordsOnly(t *testing.T) {
	s := open(t, temp(t), Options{sys: quiet()})
	up := consumer(t, s, "up", ConsumerOptions{Window: 1024})
	rare := consumer(t, s, "rare", ConsumerOptions{Kind: SessionLog})
	n := 0
	for range 400 {
		var rs []Record
		for range 50 {
			n++
			r := Record{Lane: LaneLAN, Topic: "t", Payload: append(fmt.Append(nil, n, " "), random(200)...), To: []ConsumerID{up.ID()}}
			if n%1000 == 0 {
				r.To = append(r.To, rare.ID())
			}
			rs = append(rs, r)
		}
		s.AppendLazy(rs)
		if err := s.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := drained(t, up); len(got) != n {
		t.Fatal(len(got))
	}
	for range 3 {
		if err := s.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if st := s.Stats(); st.Records > 20+int64(s.sys.youngest)*50 || st.Segments > 22 {
		t.Errorf("%d records in %d segments are left", st.Records, st.Segments)
	}
	before := s.Stats().Reads
	rs, _, err := rare.ReadFrom(0, 1000, 1<<20)
	if err != nil || len(rs) != 20 {
		t.Fatal(len(rs), err)
	}
	for i, r := range rs {
		if r.Seq%1000 != rs[0].Seq%1000 || i > 0 && r.Seq <= rs[i-1].Seq {
			t.Errorf("record %d is %d", i, r.Seq)
		}
	}
	if reads := s.Stats().Reads - before; reads > 20 {
		t.Errorf("%d segments were read for 20 records", reads)
	}
}

func TestSmallSegmentsAreJoined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := temp(t)
		began := time.Now()
		sys := quiet()
		sys.mono = func() time.Duration { return time.Since(began) + time.Hour }
		s := open(t, path, Options{sys: sys})
		c := consumer(t, s, "c", ConsumerOptions{Stream: "c", Window: 1024})
		other := consumer(t, s, "other", ConsumerOptions{Stream: "other", Window: 1024})
		n := 0
		for range 3000 {
			n++
			wait(t, numbered(s, c, false, n))
			if n%7 == 0 {
				wait(t, numbered(s, other, false, n))
			}
		}
		leased := there(t, c, 20)
		before := s.Stats().Segments
		time.Sleep(30 * time.Second)
		s.Sync(t.Context())
		if got := s.Stats().Segments; got != before {
			t.Errorf("%d of %d segments after half a minute", got, before)
		}
		for range 20 {
			time.Sleep(10 * time.Second)
			s.Sync(t.Context())
		}
		if got := s.Stats().Segments; got > s.sys.manySmall {
			t.Errorf("%d segments are left of %d", got, before)
		}
		shut(t, s)
		s = open(t, path, Options{sys: sys})
		c = consumer(t, s, "c", ConsumerOptions{Stream: "c", Window: 1024})
		again := there(t, c, 20)
		if len(again) == 0 || again[0].Ord != leased[0].Ord || again[0].Seq != leased[0].Seq {
			t.Error("the leased records did not come again")
		}
		c.Rewind()
		if got := drained(t, c); !slices.Equal(got, upTo(n)) {
			t.Errorf("%d records of %d came, or in another order", len(got), n)
		}
		shut(t, s)
	})
}

// TestThin fills a store to its bound: the newest readings are all there, the
// older the fewer, nothing that must not be thinned is missing, and the ledger
// says how many went.
func TestThin(t *testing.T) {
	for _, c := range []struct {
		keep Keep
		fact string
	}{{KeepFirst, "first"}, {KeepLast, "last"}, {KeepMinMax, "minmax"}} {
		t.Run(c.fact, func(t *testing.T) {
			o := Options{sys: quiet(), Limits: Limits{MaxBytes: 2 << 20, MinFreeDisk: -1, WhenFull: Thin, Keep: c.keep}}
			o.Value = func(r *Record) (v float64, ok bool) {
				_, err := fmt.Sscan(string(r.Payload), &v)
				return float64(int(v) * 7919 % 1000), err == nil
			}
			s := open(t, temp(t), o)
			up := consumer(t, s, "up", ConsumerOptions{Stream: "up", Window: 1024})
			n, others := 0, 0
			for range 400 {
				var rs []Record
				for range 20 {
					n++
					rs = append(rs, Record{Lane: LaneLive, Topic: fmt.Sprint("t", n%2), Payload: append(fmt.Append(nil, n, " "), random(500)...),
						To: []ConsumerID{up.ID()}, Numbers: []Number{s.Stream("up").Next()}, Thinnable: n%10 != 0})
					if n%10 == 0 {
						others++
					}
				}
				wait(t, s.Append(rs))
			}
			if st := s.Stats(); st.Rewritten == 0 {
				t.Fatal("nothing was thinned")
			}
			s.Sync(t.Context())
			got, levels := map[int]bool{}, map[uint8]int{}
			first, plain := 0, 0
			for {
				rs := there(t, up, 100)
				if len(rs) == 0 {
					break
				}
				for _, r := range rs {
					var i int
					fmt.Sscan(string(r.Payload), &i)
					got[i] = true
					levels[r.Level]++
					if r.Level > 0 {
						first = max(first, i)
					}
					if !r.Thinnable {
						plain++
					}
					up.Ack(r.Ord)
				}
			}
			dropped, kept := 0, 0
			for _, l := range s.Losses(up) {
				if l.Reason != reasonThinned && l.Reason != reasonBytes {
					t.Errorf("%+v", l)
				}
				dropped += int(l.Dropped)
				kept += int(l.Kept)
			}
			if dropped+len(got) != n {
				t.Errorf("%d dropped and %d there are not %d", dropped, len(got), n)
			}
			if len(levels) < 4 || plain < others/3 {
				t.Errorf("levels %v; %d of %d that must not be thinned", levels, plain, others)
			}
			half, quarter := 0, 0
			for i := range got {
				if i > n/2 {
					half++
				}
				if i > n*3/4 {
					quarter++
				}
			}
			if quarter < n/4*6/10 || half-quarter > quarter {
				t.Errorf("of the newest quarter %d are there, of the one before %d", quarter, half-quarter)
			}
			t.Logf("%d of %d: levels %v, dropped %d", len(got), n, slices.Sorted(maps.Keys(levels)), dropped)
		})
	}
}

func TestMinMaxKeepsTheExtremes(t *testing.T) {
	s := &Store{o: Options{Value: func(r *Record) (float64, bool) { return float64(len(r.Payload)), len(r.Payload) > 0 }}}
	for _, c := range []struct {
		values [4]int
		kept   string
	}{
		{[4]int{5, 1, 9, 4}, "[1 2]"},
		{[4]int{9, 5, 4, 1}, "[0 3]"},
		{[4]int{3, 3, 3, 3}, "[0 2]"}, // all the same: as first
		{[4]int{3, 0, 7, 1}, "[0 2]"}, // one is no number
	} {
		var g []*oldRecord
		for _, v := range c.values {
			g = append(g, &oldRecord{Record: Record{Payload: make([]byte, v), Level: 2}})
		}
		s.throwGroup(g, KeepMinMax)
		var kept []int
		for i, r := range g {
			if !r.thrown {
				kept = append(kept, i)
				if r.Level != 3 {
					t.Errorf("level %d", r.Level)
				}
			}
		}
		if fmt.Sprint(kept) != c.kept {
			t.Errorf("%v: kept %v, not %s", c.values, kept, c.kept)
		}
	}
}
