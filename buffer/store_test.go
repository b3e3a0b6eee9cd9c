package buffer

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
)

// open opens a store that the test closes unless it did so itself.
func open(t testing.TB, path string, o Options) *Store {
	t.Helper()
	if o.Reserve == 0 {
		o.Reserve = -1
	}
	s, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := audit(s); err != nil {
			t.Error(err)
		}
		if err := s.Close(context.Background()); err != nil && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
	return s
}

func temp(t testing.TB) string { return filepath.Join(t.TempDir(), "b.db") }

func shut(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func consumer(t testing.TB, s *Store, name string, o ConsumerOptions) *Consumer {
	t.Helper()
	c, err := s.Consumer(name, o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func wait(t testing.TB, k Ticket) {
	t.Helper()
	if err := k.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// there is what Next gives without waiting.
func there(t testing.TB, c *Consumer, max int) []Record {
	t.Helper()
	rs, err := poll(c, false, max)
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

func TestAppendNextAckReopen(t *testing.T) {
	path := temp(t)
	s := open(t, path, Options{})
	c := consumer(t, s, "cloud", ConsumerOptions{})
	for i := range 10 {
		wait(t, s.Append([]Record{{To: []ConsumerID{c.ID()}, Topic: "a", Payload: fmt.Appendf(nil, "%d", i), Lane: 2}}))
	}
	rs := there(t, c, 100)
	rs = append(rs, there(t, c, 100)...)
	if len(rs) == 0 || string(rs[0].Payload) != "0" || rs[0].Ord != 1 {
		t.Fatalf("%+v", rs)
	}
	c.Ack(rs[0].Ord)
	shut(t, s)
	s = open(t, path, Options{})
	c = consumer(t, s, "cloud", ConsumerOptions{})
	if n, _ := c.Pending(); n != 9 {
		t.Fatal(n)
	}
	var got []uint64
	for {
		rs := there(t, c, 3)
		if len(rs) == 0 {
			break
		}
		for _, r := range rs {
			got = append(got, r.Ord)
			c.Ack(r.Ord)
		}
	}
	if fmt.Sprint(got) != "[2 3 4 5 6 7 8 9 10]" {
		t.Fatal(got)
	}
	if n, b := c.Pending(); n != 0 || b != 0 {
		t.Fatal(n, b)
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.io.Lock()
	defer s.io.Unlock()
	if n, _ := s.db.integer("SELECT count(*) FROM seg"); n != 0 {
		t.Fatal(n)
	}
}

func TestSessionReadsBySeq(t *testing.T) {
	path := temp(t)
	s := open(t, path, Options{})
	c := consumer(t, s, "lan", ConsumerOptions{Kind: SessionLog})
	for i := range 20 {
		wait(t, s.Append([]Record{{To: []ConsumerID{c.ID()}, Topic: "a", Lane: uint8(i % 4)}}, Session{Client: "x"}, Subscription{Client: "x", Filter: "a/#"}, Inbound{Client: "x", ID: uint16(i)}, Retained{Topic: "t"}, Fact{Key: "k"}))
	}
	rs, next, err := c.ReadFrom(1, 7, 1<<20)
	if err != nil || len(rs) != 7 {
		t.Fatal(rs, err)
	}
	rs2, _, err := c.ReadFrom(next, 100, 1<<20)
	if err != nil || len(rs2) != 13 || rs2[0].Seq <= rs[6].Seq {
		t.Fatal(len(rs2), err)
	}
	c.Settle(rs[3].Seq, []uint64{rs[5].Seq})
	wait(t, s.Append(nil, Released{c.ID(), rs[4].Seq, 77}))
	shut(t, s)
	s = open(t, path, Options{})
	c = consumer(t, s, "lan", ConsumerOptions{Kind: SessionLog})
	var got []Change
	s.Load(func(c Change) error { got = append(got, c); return nil })
	if len(got) != 1+1+20+1+1+1 {
		t.Fatal(got)
	}
	rs, _, err = c.ReadFrom(0, 100, 1<<20)
	if err != nil || len(rs) != 16 {
		t.Fatal(len(rs), err)
	}
}

func TestInUse(t *testing.T) {
	path := temp(t)
	open(t, path, Options{})
	_, err := Open(path, Options{})
	if e, ok := errors.AsType[*InUseError](err); !ok || e.PID == 0 {
		t.Fatal(err)
	}
}
