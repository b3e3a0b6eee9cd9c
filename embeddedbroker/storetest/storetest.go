// Package storetest is the conformance suite for implementations of
// embeddedbroker.Store: what the broker relies on, as tests.
package storetest

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"busgate/embeddedbroker"
)

// Harness opens the implementation under test.
type Harness struct {
	// Open returns an empty store, or with reopen the one of the last call as a
	// new process would find it after an orderly end.
	Open func(t *testing.T, reopen bool) embeddedbroker.Store
}

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, Harness)
	}{
		{"completions come in the order of Seq", order},
		{"a window holds what its bounds allow, in order", window},
		{"settled deliveries are left out", settled},
		{"each consumer has its own number, QoS, flags and ids", targets},
		{"every part of a message survives", message},
		{"sessions, subscriptions and packet ids survive", sessions},
		{"a dropped session leaves nothing", dropped},
		{"retained messages survive, empty ones delete", retained},
		{"a resumed consumer finds its messages", resumed},
		{"a settle before the commit counts", early},
		{"a session over its quota loses its oldest", quota},
		{"random operations agree with a model", model},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, h) })
	}
}

// log gathers completions.
type log struct {
	mu   sync.Mutex
	cond sync.Cond
	seqs []embeddedbroker.Seq
	errs []error
}

func newLog() *log {
	l := &log{}
	l.cond.L = &l.mu
	return l
}

func (l *log) Committed(seq embeddedbroker.Seq, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seqs = append(l.seqs, seq)
	l.errs = append(l.errs, err)
	l.cond.Broadcast()
}

// wait returns when n completions came.
func (l *log) wait(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.seqs) < n {
		l.cond.Wait()
	}
}

// put appends an entry and waits for the flush.
func put(t *testing.T, s embeddedbroker.Store, e embeddedbroker.Entry) embeddedbroker.Seq {
	t.Helper()
	l := newLog()
	e.Wait, e.Done = true, l
	if err := s.Append(&e); err != nil {
		t.Fatalf("append: %v", err)
	}
	l.wait(1)
	if l.errs[0] != nil || l.seqs[0] != e.Seq {
		t.Fatalf("completed with %d %v, want %d", l.seqs[0], l.errs[0], e.Seq)
	}
	return e.Seq
}

func msg(topic, payload string) *embeddedbroker.Message {
	return &embeddedbroker.Message{Topic: topic, Payload: []byte(payload), QoS: 1, From: "pub"}
}

// open makes an empty store with one session.
func open(t *testing.T, h Harness, client string) (embeddedbroker.Store, embeddedbroker.ConsumerID) {
	t.Helper()
	s := h.Open(t, false)
	if err := s.Restore(embeddedbroker.ConsumerOptions{}, &visitor{}); err != nil {
		t.Fatal(err)
	}
	return s, register(t, s, client, embeddedbroker.ConsumerOptions{})
}

func register(t *testing.T, s embeddedbroker.Store, client string, o embeddedbroker.ConsumerOptions) embeddedbroker.ConsumerID {
	t.Helper()
	id, err := s.Register("session/"+client, o)
	if err != nil || id == 0 {
		t.Fatalf("register: %d %v", id, err)
	}
	put(t, s, embeddedbroker.Entry{Ops: []embeddedbroker.Op{embeddedbroker.SaveSession{
		Session: embeddedbroker.Session{Client: client, Consumer: id, Version: 4, Expiry: time.Hour, NextOrd: 1}}}})
	return id
}

func to(id embeddedbroker.ConsumerID, ord uint64) []embeddedbroker.Target {
	return []embeddedbroker.Target{{Consumer: id, Ord: ord, QoS: 1}}
}

// read gives everything from a place on, window by window.
func read(t *testing.T, s embeddedbroker.Store, id embeddedbroker.ConsumerID, from embeddedbroker.Seq) []embeddedbroker.Delivery {
	t.Helper()
	var all []embeddedbroker.Delivery
	w := embeddedbroker.Window{MaxMessages: 7, MaxBytes: 1 << 20}
	for {
		if err := s.Read(id, from, &w); err != nil {
			t.Fatalf("read: %v", err)
		}
		if len(w.Deliveries) == 0 {
			return all
		}
		all = append(all, w.Deliveries...)
		if w.Next <= from {
			t.Fatalf("Next is %d after %d", w.Next, from)
		}
		from = w.Next
	}
}

func ords(ds []embeddedbroker.Delivery) []uint64 {
	out := []uint64{}
	for _, d := range ds {
		out = append(out, d.Ord)
	}
	return out
}

func same[T comparable](t *testing.T, what string, got, want []T) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

func order(t *testing.T, h Harness) {
	s, id := open(t, h, "a")
	l := newLog()
	var want []embeddedbroker.Seq
	for i := range 200 {
		e := embeddedbroker.Entry{Done: l, Wait: i%3 == 0}
		switch i % 4 {
		case 0, 1:
			e.Msg, e.Targets = msg("t", fmt.Sprint(i)), to(id, uint64(i+1))
		case 2:
			e.Ops = []embeddedbroker.Op{embeddedbroker.MarkIn{Client: "a", PID: uint16(i)}}
		}
		if err := s.Append(&e); err != nil {
			t.Fatal(err)
		}
		want = append(want, e.Seq)
	}
	put(t, s, embeddedbroker.Entry{})
	l.wait(200)
	same(t, "completions", l.seqs, want)
	if !slices.IsSorted(want) || slices.Compact(want)[0] == 0 {
		t.Fatalf("numbers %v", want)
	}
}

func window(t *testing.T, h Harness) {
	s, id := open(t, h, "a")
	for i := range 20 {
		put(t, s, embeddedbroker.Entry{Msg: msg("t", string(make([]byte, 1000))), Targets: to(id, uint64(i+1))})
	}
	w := embeddedbroker.Window{MaxMessages: 5, MaxBytes: 1 << 20}
	if err := s.Read(id, 0, &w); err != nil || len(w.Deliveries) != 5 {
		t.Fatalf("by count: %d %v", len(w.Deliveries), err)
	}
	w = embeddedbroker.Window{MaxMessages: 100, MaxBytes: 3500}
	if err := s.Read(id, w.Next, &w); err != nil || len(w.Deliveries) < 1 || len(w.Deliveries) > 4 {
		t.Fatalf("by bytes: %d %v", len(w.Deliveries), err)
	}
	w = embeddedbroker.Window{MaxMessages: 100, MaxBytes: 10}
	if err := s.Read(id, 0, &w); err != nil || len(w.Deliveries) != 1 {
		t.Fatalf("one message may pass: %d %v", len(w.Deliveries), err)
	}
	want := []uint64{}
	for i := range 20 {
		want = append(want, uint64(i+1))
	}
	same(t, "all", ords(read(t, s, id, 0)), want)
	if err := s.Read(id+500, 0, &w); err != nil || len(w.Deliveries) != 0 {
		t.Fatalf("nobody: %d %v", len(w.Deliveries), err)
	}
}

func settled(t *testing.T, h Harness) {
	s, id := open(t, h, "a")
	var seqs []embeddedbroker.Seq
	for i := range 10 {
		seqs = append(seqs, put(t, s, embeddedbroker.Entry{Msg: msg("t", fmt.Sprint(i)), Targets: to(id, uint64(i+1))}))
	}
	s.Settle(id, seqs[2], []embeddedbroker.Seq{seqs[4], seqs[7]})
	put(t, s, embeddedbroker.Entry{Ops: []embeddedbroker.Op{embeddedbroker.MarkOut{Consumer: id, Seq: seqs[5], PID: 6}}})
	got := slices.DeleteFunc(ords(read(t, s, id, 0)), func(o uint64) bool { return o == 6 }) // may be there or not
	same(t, "after settle", got, []uint64{3, 4, 7, 9, 10})
	s.Settle(id, seqs[9]+1, nil)
	same(t, "after all", ords(read(t, s, id, 0)), []uint64{})
	if u := s.Usage(id); u.Messages != 0 {
		t.Fatalf("usage after all: %+v", u)
	}
}

func targets(t *testing.T, h Harness) {
	s, a := open(t, h, "a")
	b := register(t, s, "b", embeddedbroker.ConsumerOptions{})
	put(t, s, embeddedbroker.Entry{Msg: msg("t", "x"), Targets: []embeddedbroker.Target{
		{Consumer: a, Ord: 70000, QoS: 2, Retain: true, SubIDs: []uint32{1, 268435455}}, {Consumer: b, Ord: 3, QoS: 1, Shared: true}}})
	put(t, s, embeddedbroker.Entry{Msg: msg("t", "y"), Targets: to(b, 4)})
	da, db := read(t, s, a, 0), read(t, s, b, 0)
	if len(da) != 1 || da[0].Ord != 70000 || da[0].QoS != 2 || !da[0].Retain || da[0].Shared || !slices.Equal(da[0].SubIDs, []uint32{1, 268435455}) {
		t.Errorf("a: %+v", da)
	}
	if len(db) != 2 || db[0].Ord != 3 || db[0].QoS != 1 || db[0].Retain || !db[0].Shared || db[1].Shared || db[0].SubIDs != nil || string(db[1].Msg.Payload) != "y" {
		t.Errorf("b: %+v", db)
	}
}

func message(t *testing.T, h Harness) {
	s, id := open(t, h, "a")
	at := time.Date(2026, 11, 21, 6, 1, 2, 123e6, time.UTC)
	want := embeddedbroker.Message{Topic: "a/ä", Payload: []byte{0, 1, 255}, QoS: 2, Retain: true, Expires: at.AddDate(50, 0, 0),
		Props: []byte{1, 1, 38, 0, 1, 'k', 0, 1, 'v'}, Kind: embeddedbroker.KindDown, From: "x", Mono: 12345 * time.Millisecond, Wall: at}
	put(t, s, embeddedbroker.Entry{Msg: &want, Targets: to(id, 1)})
	put(t, s, embeddedbroker.Entry{Msg: &embeddedbroker.Message{Topic: "b", Kind: embeddedbroker.KindReading}, Targets: to(id, 2)})
	ds := read(t, s, id, 0)
	if len(ds) != 2 {
		t.Fatalf("%d deliveries", len(ds))
	}
	got := *ds[0].Msg
	if got.Topic != want.Topic || string(got.Payload) != string(want.Payload) || got.QoS != 2 || !got.Retain ||
		!got.Expires.Equal(want.Expires) || string(got.Props) != string(want.Props) || got.Kind != want.Kind || got.From != "x" ||
		got.Mono != want.Mono || !got.Wall.Equal(at) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if m := ds[1].Msg; m.Topic != "b" || len(m.Payload) != 0 || len(m.Props) != 0 || !m.Expires.IsZero() || m.Kind != embeddedbroker.KindReading {
		t.Errorf("got %+v", m)
	}
}

// visitor gathers what Restore hands out.
type visitor struct {
	sessions []embeddedbroker.Session
	subs     map[string][]embeddedbroker.Subscription
	in       map[string][]uint16
	out      map[string][]embeddedbroker.MarkOut
	retained map[string]*embeddedbroker.Message
}

func (v *visitor) Session(s embeddedbroker.Session, subs []embeddedbroker.Subscription, in []uint16, out []embeddedbroker.MarkOut) error {
	if v.subs == nil {
		v.subs, v.in, v.out = map[string][]embeddedbroker.Subscription{}, map[string][]uint16{}, map[string][]embeddedbroker.MarkOut{}
	}
	v.sessions = append(v.sessions, s)
	v.subs[s.Client], v.in[s.Client], v.out[s.Client] = subs, in, out
	return nil
}

func (v *visitor) Retained(m *embeddedbroker.Message) error {
	if v.retained == nil {
		v.retained = map[string]*embeddedbroker.Message{}
	}
	v.retained[m.Topic] = m
	return nil
}

func restore(t *testing.T, h Harness) (embeddedbroker.Store, *visitor) {
	t.Helper()
	s, v := h.Open(t, true), &visitor{}
	if err := s.Restore(embeddedbroker.ConsumerOptions{}, v); err != nil {
		t.Fatal(err)
	}
	return s, v
}

func sessions(t *testing.T, h Harness) {
	s, id := open(t, h, "a")
	w := &embeddedbroker.Will{Msg: embeddedbroker.Message{Topic: "w", Payload: []byte("gone"), QoS: 1, Props: []byte{1, 1}}, Delay: time.Minute, Expires: true, Lifetime: time.Hour}
	left := time.Date(2026, 11, 21, 6, 0, 0, 0, time.UTC)
	want := embeddedbroker.Session{Client: "a", Consumer: id, User: "u", Version: 5, Expiry: -1, Left: left, Sent: 9, NextOrd: 66000, Will: w}
	seq := put(t, s, embeddedbroker.Entry{Msg: msg("t", "x"), Targets: to(id, 7)})
	put(t, s, embeddedbroker.Entry{Ops: []embeddedbroker.Op{
		embeddedbroker.SaveSession{Session: want},
		embeddedbroker.SaveSubscription{Client: "a", Subscription: embeddedbroker.Subscription{Filter: "a/#", QoS: 1}},
		embeddedbroker.SaveSubscription{Client: "a", Subscription: embeddedbroker.Subscription{Filter: "gone", QoS: 1}},
		embeddedbroker.SaveSubscription{Client: "a", Subscription: embeddedbroker.Subscription{Filter: "a/#", QoS: 2, NoLocal: true, RetainAsPublished: true, RetainHandling: 2, ID: 77}},
		embeddedbroker.DropSubscription{Client: "a", Filter: "gone"},
		embeddedbroker.MarkIn{Client: "a", PID: 1}, embeddedbroker.MarkIn{Client: "a", PID: 65535},
		embeddedbroker.MarkOut{Consumer: id, Seq: seq, PID: 7},
	}})
	put(t, s, embeddedbroker.Entry{Ops: []embeddedbroker.Op{embeddedbroker.MarkIn{Client: "a", PID: 1, Drop: true}}})
	_, v := restore(t, h)
	if len(v.sessions) != 1 {
		t.Fatalf("%d sessions", len(v.sessions))
	}
	got := v.sessions[0]
	if got.Will == nil || got.Will.Msg.Topic != "w" || string(got.Will.Msg.Payload) != "gone" || got.Will.Delay != time.Minute || !got.Will.Expires || got.Will.Lifetime != time.Hour || string(got.Will.Msg.Props) != string(w.Msg.Props) {
		t.Errorf("will %+v", got.Will)
	}
	if !got.Left.Equal(left) {
		t.Errorf("left %v", got.Left)
	}
	got.Will, got.Left = w, left
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	same(t, "subscriptions", v.subs["a"], []embeddedbroker.Subscription{{Filter: "a/#", QoS: 2, NoLocal: true, RetainAsPublished: true, RetainHandling: 2, ID: 77}})
	same(t, "inbound ids", v.in["a"], []uint16{65535})
	same(t, "outbound marks", v.out["a"], []embeddedbroker.MarkOut{{Consumer: id, Seq: seq, PID: 7}})
}

func dropped(t *testing.T, h Harness) {
	s, id := open(t, h, "a")
	put(t, s, embeddedbroker.Entry{Msg: msg("t", "x"), Targets: to(id, 1), Ops: []embeddedbroker.Op{
		embeddedbroker.MarkIn{Client: "a", PID: 4},
		embeddedbroker.SaveSubscription{Client: "a", Subscription: embeddedbroker.Subscription{Filter: "t"}}}})
	put(t, s, embeddedbroker.Entry{Ops: []embeddedbroker.Op{embeddedbroker.DropSession{Client: "a", Consumer: id}}})
	again := register(t, s, "a", embeddedbroker.ConsumerOptions{})
	if ds := read(t, s, again, 0); len(ds) != 0 {
		t.Errorf("the new session finds %d messages of the old one", len(ds))
	}
	put(t, s, embeddedbroker.Entry{Msg: msg("t", "y"), Targets: to(again, 1)})
	s, v := restore(t, h)
	if len(v.sessions) != 1 || len(v.subs["a"]) != 0 || len(v.in["a"]) != 0 {
		t.Fatalf("got %+v", v)
	}
	if ds := read(t, s, v.sessions[0].Consumer, 0); len(ds) != 1 || string(ds[0].Msg.Payload) != "y" {
		t.Errorf("got %+v", ds)
	}
}

func retained(t *testing.T, h Harness) {
	s, _ := open(t, h, "a")
	keep := func(topic, payload string) {
		m := msg(topic, payload)
		m.Retain, m.QoS, m.Props, m.Kind = true, 2, []byte{1, 1}, embeddedbroker.KindDown
		put(t, s, embeddedbroker.Entry{Msg: m, Ops: []embeddedbroker.Op{embeddedbroker.SaveRetained{}}})
	}
	keep("a", "1")
	keep("b", "2")
	keep("c", "3")
	keep("b", "")
	keep("a", "4")
	put(t, s, embeddedbroker.Entry{Ops: []embeddedbroker.Op{embeddedbroker.DropRetained{Topic: "c"}}})
	_, v := restore(t, h)
	if m := v.retained["a"]; len(v.retained) != 1 || m == nil || string(m.Payload) != "4" || m.QoS != 2 || !m.Retain ||
		string(m.Props) != "\x01\x01" || m.Kind != embeddedbroker.KindDown || m.From != "pub" {
		t.Fatalf("got %+v", v.retained)
	}
}

func resumed(t *testing.T, h Harness) {
	s, id := open(t, h, "a")
	var last embeddedbroker.Seq
	for i := range 30 {
		last = put(t, s, embeddedbroker.Entry{Msg: msg("t", fmt.Sprint(i)), Targets: to(id, uint64(i+1))})
	}
	s.Settle(id, 0, nil)
	s, v := restore(t, h)
	if len(v.sessions) != 1 || v.sessions[0].Consumer != id {
		t.Fatalf("got %+v", v.sessions)
	}
	ds := read(t, s, id, 0)
	if len(ds) != 30 || ds[29].Seq != last || ds[0].Ord != 1 {
		t.Fatalf("got %d", len(ds))
	}
	if seq := put(t, s, embeddedbroker.Entry{}); seq <= last {
		t.Fatalf("number %d after %d", seq, last)
	}
}

func early(t *testing.T, h Harness) {
	s, id := open(t, h, "a")
	e := embeddedbroker.Entry{Msg: msg("t", "x"), Targets: to(id, 1)}
	if err := s.Append(&e); err != nil {
		t.Fatal(err)
	}
	f := embeddedbroker.Entry{Msg: msg("t", "y"), Targets: to(id, 2)}
	if err := s.Append(&f); err != nil {
		t.Fatal(err)
	}
	s.Settle(id, e.Seq+1, nil)
	put(t, s, embeddedbroker.Entry{})
	same(t, "left", ords(read(t, s, id, 0)), []uint64{2})
}

func quota(t *testing.T, h Harness) {
	s := h.Open(t, false)
	if err := s.Restore(embeddedbroker.ConsumerOptions{}, &visitor{}); err != nil {
		t.Fatal(err)
	}
	id := register(t, s, "a", embeddedbroker.ConsumerOptions{MaxMessages: 50})
	other := register(t, s, "b", embeddedbroker.ConsumerOptions{})
	for i := range 400 {
		e := embeddedbroker.Entry{Msg: msg("t", fmt.Sprint(i)), Targets: append(to(id, uint64(i+1)), to(other, uint64(i+1))...)}
		if err := s.Append(&e); err != nil {
			t.Fatal(err)
		}
		if i%20 == 19 {
			put(t, s, embeddedbroker.Entry{})
		}
	}
	put(t, s, embeddedbroker.Entry{})
	got := ords(read(t, s, id, 0))
	if len(got) == 0 || len(got) > 400 || got[len(got)-1] != 400 || !slices.IsSorted(got) {
		t.Fatalf("got %v", got)
	}
	u := s.Usage(id)
	if len(got) > 100 || int(u.Dropped) != 400-len(got) {
		t.Errorf("%d left, usage %+v", len(got), u)
	}
	if n := len(read(t, s, other, 0)); n != 400 {
		t.Errorf("the other session has %d", n)
	}
}
