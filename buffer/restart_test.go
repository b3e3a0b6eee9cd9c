package buffer

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
)

// killedCopy gives the files of a running store as kill -9 would leave them.
func killedCopy(t *testing.T, s *Store) string {
	t.Helper()
	s.io.Lock()
	defer s.io.Unlock()
	to := filepath.Join(t.TempDir(), "b.db")
	write(t, to, read(t, s.path))
	write(t, to+"-wal", read(t, s.path+"-wal"))
	write(t, to+"-notes", read(t, s.path+"-notes"))
	return to
}

func TestNumbersGoOnAfterAKill(t *testing.T) {
	s := open(t, temp(t), Options{sys: quiet()})
	c := consumer(t, s, "c", ConsumerOptions{Stream: "c", Window: 1024})
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	for n := range 10 { // within the second before next_seq and the streams are saved
		wait(t, numbered(s, c, false, n+1))
	}
	boot := s.Boot()
	s = open(t, killedCopy(t, s), Options{sys: quiet()})
	if was, last := s.Closing(); was != boot || fmt.Sprint(last) != "map[c:10]" {
		t.Errorf("closing numbers of %s: %v", was, last)
	}
	c = consumer(t, s, "c", ConsumerOptions{Stream: "c", Window: 1024})
	wait(t, numbered(s, c, false, 11))
	if got := drained(t, c); !slices.Equal(got, upTo(11)) {
		t.Error(got)
	}
}

func TestSalvageReadsTheWAL(t *testing.T) {
	db, wal := damageStore(t, true)
	path := filepath.Join(t.TempDir(), "x.db")
	count := func() (n int) {
		p, err := openPages(path)
		if err != nil {
			t.Fatal(err)
		}
		defer p.close()
		buf := make([]byte, pageSize)
		for no := uint32(1); no <= p.n; no++ {
			for _, c := range p.cells(no, buf) {
				if _, cols, err := p.row(c, buf); err == nil && shape(cols) == "niiiiibib" {
					n += int(cols[2].(int64))
				}
			}
		}
		return n
	}
	write(t, path, db)
	if n := count(); n != 150 {
		t.Errorf("%d records in the file alone", n)
	}
	write(t, path+"-wal", wal)
	if n := count(); n != damageRecords {
		t.Errorf("%d records with the -wal file", n)
	}
	wal[len(wal)*3/4] ^= 1 // what follows is not committed
	write(t, path+"-wal", wal)
	if n := count(); n <= 150 || n >= damageRecords {
		t.Errorf("%d records with a damaged -wal file", n)
	}
}

// TestLiveFirst goes through an outage: the newest readings first, the backlog
// beside them, everything once; leases come again after Rewind and restart.
func TestLiveFirst(t *testing.T) {
	path := temp(t)
	s := open(t, path, Options{sys: quiet()})
	o := ConsumerOptions{Stream: "c", Window: 1024}
	c := consumer(t, s, "c", o)
	state := func(n int) {
		wait(t, s.Append([]Record{{To: []ConsumerID{c.ID()}, Lane: LaneState, Payload: fmt.Append(nil, n)}}))
	}
	texts := func(rs []Record) (out string) {
		for _, r := range rs {
			out += string(r.Payload) + " "
		}
		return out
	}
	backlog := func(n int) []Record {
		t.Helper()
		rs, err := poll(c, true, n)
		if err != nil {
			t.Fatal(err)
		}
		return rs
	}
	wait(t, numbered(s, c, false, 1, 2, 3, 4))
	state(100)
	c.Live()
	if rs := backlog(2); texts(rs) != "1 2 " {
		t.Error("backlog", texts(rs))
	}
	if rs := there(t, c, 9); texts(rs) != "100 " {
		t.Error("states are not jumped over:", texts(rs))
	}
	wait(t, numbered(s, c, false, 5, 6))
	live := there(t, c, 9)
	if texts(live) != "5 6 " {
		t.Error("live", texts(live))
	}
	c.Ack(live[0].Ord, live[1].Ord)
	c.Live() // nothing new was left behind: no second gap
	c.Rewind()
	if rs := there(t, c, 9); texts(rs) != "1 2 " || !rs[0].Dup {
		t.Error("after a rewind", texts(rs))
	}
	if rs := there(t, c, 9); texts(rs) != "100 " {
		t.Error("after a rewind", texts(rs))
	}
	wait(t, numbered(s, c, false, 7, 8))
	c.Live()
	wait(t, numbered(s, c, false, 9))
	if rs := there(t, c, 9); texts(rs) != "9 " {
		t.Error("live after another outage", texts(rs))
	}
	if rs := backlog(3); texts(rs) != "3 4 " {
		t.Error("backlog", texts(rs))
	}
	if n := len(c.heads[LaneLive]); n != 3 {
		t.Errorf("%d heads after two jumps", n)
	}
	shut(t, s)
	s = open(t, path, Options{sys: quiet()})
	c = consumer(t, s, "c", o)
	var got []string
	for {
		rs := there(t, c, 9)
		if len(rs) == 0 {
			break
		}
		for _, r := range rs {
			got = append(got, fmt.Sprint(string(r.Payload), "/", r.Ord))
			c.Ack(r.Ord)
		}
	}
	// The open leases in the order of their numbers, then what nobody had.
	if fmt.Sprint(got) != "[1/1 2/2 100/3 9/6 3/7 4/8 7/9 8/10]" {
		t.Error(got)
	}
	if n, _ := c.Pending(); n != 0 || len(c.heads[LaneLive]) != 1 {
		t.Error("not one head again", n, c.heads[LaneLive])
	}
}

// TestSegmentJoinedAcrossAJump joins segments on both sides of the place that
// Live jumped to.
func TestSegmentJoinedAcrossAJump(t *testing.T) {
	s := open(t, temp(t), Options{sys: quiet()})
	c := consumer(t, s, "c", ConsumerOptions{Stream: "c", Window: 1024})
	wait(t, numbered(s, c, false, 1, 2))
	c.Live()
	wait(t, numbered(s, c, false, 3, 4))
	joinLane(t, s, LaneLive)
	if rs := there(t, c, 9); len(rs) != 2 || string(rs[0].Payload) != "3" {
		t.Error(rs)
	} else {
		c.Ack(rs[0].Ord, rs[1].Ord)
	}
	rs, err := poll(c, true, 9)
	if err != nil || len(rs) != 2 || string(rs[0].Payload) != "1" {
		t.Fatal(rs, err)
	}
	if more, err := poll(c, true, 9); err != nil || len(more) != 0 {
		t.Error(more, err)
	}
	c.Ack(rs[0].Ord, rs[1].Ord)
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := s.Stats(); st.Segments != 0 {
		t.Errorf("%d segments are left", st.Segments)
	}
}

// joinLane makes one segment of a lane, on the committer.
func joinLane(t *testing.T, s *Store, l int) {
	t.Helper()
	err := s.do(t.Context(), func() error {
		s.mu.Lock()
		run := slices.Clone(s.lanes[l].segs)
		s.mu.Unlock()
		return s.rewrite(run, nil, nil)
	})
	if err != nil || len(s.lanes[l].segs) != 1 {
		t.Fatal(len(s.lanes[l].segs), err)
	}
}

// TestSegmentRetiredWhileItIsRewritten: its deletion is due under the id that
// the new row has.
func TestSegmentRetiredWhileItIsRewritten(t *testing.T) {
	path := temp(t)
	s := open(t, path, Options{sys: quiet()})
	a := consumer(t, s, "a", ConsumerOptions{Kind: SessionLog})
	b := consumer(t, s, "b", ConsumerOptions{Kind: SessionLog})
	first := s.Append([]Record{{To: []ConsumerID{a.ID()}, Lane: LaneLAN, Payload: []byte("1")}})
	wait(t, first)
	wait(t, s.Append([]Record{{To: []ConsumerID{b.ID()}, Lane: LaneLAN, Payload: []byte("2")}}))
	err := s.do(t.Context(), func() error {
		s.mu.Lock()
		run := slices.Clone(s.lanes[LaneLAN].segs)
		s.mu.Unlock()
		return s.rewrite(run, func([]oldRecord) bool {
			a.Settle(first.Seq()+1, nil) // the first segment is needed no more
			return true
		}, nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	shut(t, s)
	s = open(t, path, Options{sys: quiet()})
	b = consumer(t, s, "b", ConsumerOptions{Kind: SessionLog})
	if rs, _, err := b.ReadFrom(0, 9, 1<<20); err != nil || len(rs) != 1 || string(rs[0].Payload) != "2" {
		t.Error(rs, err)
	}
}

// TestNothingIsLeasedWhileItIsThinned: a lease of a record that is being thrown
// away could not come again.
func TestNothingIsLeasedWhileItIsThinned(t *testing.T) {
	s := open(t, temp(t), Options{sys: quiet()})
	c := consumer(t, s, "c", ConsumerOptions{Stream: "c", Window: 1024})
	for n := range 4 {
		wait(t, numbered(s, c, false, n+1))
	}
	err := s.do(t.Context(), func() error {
		s.mu.Lock()
		run := slices.Clone(s.lanes[LaneLive].segs)
		s.mu.Unlock()
		return s.rewrite(run, func(recs []oldRecord) bool {
			if rs := there(t, c, 9); len(rs) != 0 {
				t.Error("leased meanwhile:", rs)
			}
			recs[1].thrown = true
			return true
		}, newDropping())
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := drained(t, c); fmt.Sprint(got) != "[1 3 4]" {
		t.Error(got)
	}
	ls := s.Losses(c)
	if len(ls) != 1 || ls[0].Lo != 1 || ls[0].Hi != 4 || ls[0].Dropped != 1 || ls[0].Kept != 3 || ls[0].Reason != reasonThinned {
		t.Errorf("%+v", ls)
	}
}
