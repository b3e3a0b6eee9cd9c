package embeddedbroker

import (
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/embeddedbroker/packet"
)

// looking is a Store that does something once when a session reads.
type looking struct {
	*Memory
	hook func()
}

func (l *looking) Read(c ConsumerID, from Seq, w *Window) error {
	if hook := l.hook; hook != nil {
		l.hook = nil
		hook()
	}
	return l.Memory.Read(c, from, w)
}

// A SUBSCRIBE that is obeyed between the moment at which the writer has taken the
// answers and that at which it collects messages: its SUBACK is first all the same.
func TestSubackIsBeforeItsRetainedMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &looking{Memory: NewMemory()}
		r := start(t, store)
		r.b.Local("x").Publish(&Message{Topic: "t", Payload: []byte("kept"), Retain: true}, nil)
		c := r.dial(packet.V311)
		store.hook = func() { // the writer has CONNACK in its hands
			c.try(&packet.Subscribe{PID: 1, Filters: []packet.Filter{{Filter: "t"}}})
			synctest.Wait()
		}
		c.send(&packet.Connect{Version: packet.V311, ClientID: "c"})
		expect[*packet.Connack](c)
		expect[*packet.Suback](c)
		c.receive("t", "kept")
	})
}

// Retained messages wait with the SUBACK of a volatile client, whose answers wait
// for the disk behind what it published.
func TestSubackBehindAnAnswerThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFaulty()
		r := start(t, f)
		r.connect(packet.V311, "keeper", persistent).subscribe("durable", 1)
		r.b.Local("x").Publish(&Message{Topic: "t", Payload: []byte("kept"), Retain: true}, nil)
		c := r.connect(packet.V311, "c")
		f.set(func(f *faulty) { f.hold = true })
		c.send(&packet.Publish{Topic: []byte("durable"), QoS: 1, PID: 1})
		c.send(&packet.Subscribe{PID: 2, Filters: []packet.Filter{{Filter: "t"}}})
		synctest.Wait()
		c.silent()
		f.flush()
		c.acked(packet.PUBACK, 1)
		expect[*packet.Suback](c)
		c.receive("t", "kept")
	})
}

type wakerFunc func()

func (f wakerFunc) wake() { f() }

// When the entry of a SUBSCRIBE is released, and with it the retained messages, its
// SUBACK is among the answers already.
func TestSubackIsThereWhenItsEntryIsReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFaulty()
		r := start(t, f)
		c := r.connect(packet.V311, "c", persistent)
		server := r.server("c")
		f.set(func(f *faulty) { f.hold = true })
		c.send(&packet.Subscribe{PID: 1, Filters: []packet.Filter{{Filter: "t"}}})
		synctest.Wait()
		left := -1
		r.b.rel.await(f.waiting[0].seq, wakerFunc(func() {
			server.mu.Lock()
			defer server.mu.Unlock()
			left = server.slots.n
		}))
		f.flush()
		if left != 0 {
			t.Errorf("%d answers wait when the entry is released", left)
		}
		expect[*packet.Suback](c)
	})
}

// session is what the broker has of a client.
func (r *rig) session(id string) *session {
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	return r.b.sessions[id]
}

// server is the broker's end of a client's connection.
func (r *rig) server(id string) *conn {
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	return r.b.sessions[id].conn
}

// early is a Store whose commits can be read before anybody is told of them.
type early struct{ *faulty }

func (e early) Read(c ConsumerID, from Seq, w *Window) error { return e.Memory.Read(c, from, w) }

// A session that reads from the store passes nothing that is not released.
func TestWhatIsReadWaitsForItsRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFaulty()
		r := start(t, early{f})
		c := r.connect(packet.V311, "c", persistent)
		c.subscribe("t", 1)
		p := r.connect(packet.V311, "pub")
		server := r.server("c")
		server.sess.mu.Lock()
		server.sess.behind = true
		server.sess.mu.Unlock()
		f.set(func(f *faulty) { f.hold = true })
		p.send(&packet.Publish{Topic: []byte("t"), QoS: 1, PID: 1, Payload: []byte("x")})
		synctest.Wait()
		server.wake() // it reads
		synctest.Wait()
		c.silent()
		f.flush()
		p.acked(packet.PUBACK, 1)
		c.take("t", "x")
	})
}

// The answer to a message that a session gets twice, by an own and a shared
// subscription, waits for the disk, also when the session may not keep the second.
func TestAnswerWaitsForTheFirstCopyToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFaulty()
		r := start(t, f, func(c *config.Broker, _ *Options) { c.QueueFull, c.MaxQueued = queueEndSession, 1 })
		c := r.connect(packet.V311, "c", persistent)
		c.subscribe("t", 1)
		c.subscribe("$share/g/t", 1)
		p := r.connect(packet.V311, "pub")
		f.set(func(f *faulty) { f.hold = true })
		p.send(&packet.Publish{Topic: []byte("t"), QoS: 1, PID: 1, Payload: []byte("x")})
		synctest.Wait()
		p.silent()
		f.flush()
		p.acked(packet.PUBACK, 1)
		c.take("t", "x")
	})
}

// crowded is a Store that is busy once, at the second message, unless that belongs
// to the first.
type crowded struct {
	*Memory
	messages int
}

func (s *crowded) Append(e *Entry) error {
	if e.Msg != nil && len(e.Targets) > 0 && !e.Part {
		if s.messages++; s.messages == 2 {
			return ErrBusy
		}
	}
	return s.Memory.Append(e)
}

// A store that is busy between the two copies of a message does not make the
// others get it twice.
func TestBusyStoreBetweenTwoCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, &crowded{Memory: NewMemory()})
		c, other := r.connect(packet.V5, "c", persistent), r.connect(packet.V5, "other", persistent)
		c.subscribe("t", 2)
		c.subscribe("$share/g/t", 2)
		other.subscribe("t", 2)
		r.connect(packet.V5, "pub", persistent).publish("t", "x", 2, 1)
		synctest.Wait()
		other.take("t", "x")
		one, two := c.receive("t", "x"), c.receive("t", "x")
		c.complete(one)
		c.complete(two)
		for _, x := range []*client{c, other} {
			x.ping()
			x.silent()
		}
	})
}

// noting is a Store that remembers the marks of packet ids.
type noting struct {
	*Memory
	mu    sync.Mutex
	marks []Op
}

func (n *noting) Append(e *Entry) error {
	n.mu.Lock()
	for _, op := range e.Ops {
		switch op.(type) {
		case MarkIn, MarkOut:
			n.marks = append(n.marks, op)
		}
	}
	n.mu.Unlock()
	return n.Memory.Append(e)
}

func (n *noting) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.marks)
}

// PUBREC and PUBREL change the memory and the store in one step: a connection
// that is superseded in the middle has changed both or nothing. Else PUBREL would
// leave on the new connection before its note is on disk, or a late note would
// forget an id that was opened anew.
func TestSupersededInTheMiddleOfAnAnswer(t *testing.T) {
	store := &noting{Memory: NewMemory()}
	r := start(t, store)
	c := r.connect(packet.V311, "c", persistent)
	c.subscribe("t", 2)
	r.connect(packet.V311, "pub").publish("t", "x", 2, 1)
	m := c.receive("t", "x")
	c.send(&packet.Publish{Topic: []byte("other"), QoS: 2, PID: 5})
	c.acked(packet.PUBREC, 5)
	old := r.server("c")
	s := old.sess
	state := func() (open bool, f flightState) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.in[5], s.flights.at(0).state
	}
	supersede := func(by *conn) {
		r.b.mu.Lock()
		defer r.b.mu.Unlock()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.conn = by
	}
	for _, a := range []packet.Ack{{Type: packet.PUBREC, PID: m.PID}, {Type: packet.PUBREL, PID: 5}} {
		before := store.count()
		old.mu.Lock() // it gets as far as to its place among the answers
		done := make(chan struct{})
		go func() {
			defer close(done)
			old.onAck(&a)
		}()
		for range 10_000 {
			runtime.Gosched()
		}
		open, f := state()
		changed := !open || f != sent
		supersede(&conn{b: r.b, dead: true})
		old.mu.Unlock()
		<-done
		if n := store.count() - before; changed != (n > 0) || n > 0 {
			t.Errorf("%v: changed in memory: %v; %d notes after another connection has taken over", a.Type, changed, n)
		}
		if open, f := state(); !open || f != sent {
			t.Errorf("%v of a superseded connection changes the session", a.Type)
		}
		supersede(old)
	}
}

// A session that ends while its client comes back is there no more, or ends under
// the new connection; it never goes on outside the table.
func TestSessionThatEndsBesideAReconnect(t *testing.T) {
	r := start(t, NewMemory())
	back := func() *conn {
		_, b := net.Pipe()
		c := newConn(r.b, b)
		c.id = "c"
		if _, err := r.b.attach(c, &packet.Connect{Version: packet.V311, ClientID: "c"}, time.Hour); err != nil {
			t.Error(err)
		}
		return c
	}
	others := func() { // sync.Mutex hands itself on to whoever waits for more than 1 ms
		for began := time.Now(); time.Since(began) < 2*time.Millisecond; {
			runtime.Gosched()
		}
	}
	for range 20 {
		back()
		var c *conn
		var wg sync.WaitGroup
		r.b.mu.Lock() // both wait for it, and are let in one after the other
		wg.Go(func() { c = back() })
		others()
		wg.Go(func() { r.b.DropSession("c") })
		others()
		r.b.mu.Unlock()
		r.b.mu.Lock()
		others()
		r.b.mu.Unlock()
		wg.Wait()
		r.b.mu.Lock()
		outside := c.sess.conn == c && c.sess.ended()
		r.b.mu.Unlock()
		if outside {
			t.Fatal("a client has a session that is not in the table")
		}
	}
}

// hanging is a Store that is busy as long as the test wants.
type hanging struct {
	*Memory
	busy atomic.Bool
}

func (h *hanging) Busy() bool { return h.busy.Load() }

// What changes the durable state of a session waits while too much waits for the
// disk, and the others do not notice. A CONNECT is refused after a while.
func TestBusyStoreHoldsUpOnlyWhoChangesState(t *testing.T) {
	for _, v := range versions {
		synctest.Test(t, func(t *testing.T) {
			store, j := &hanging{Memory: NewMemory()}, &journal{}
			r := start(t, store, func(_ *config.Broker, o *Options) { o.Log = slog.New(j) })
			defer r.stop()
			c := r.connect(v, "c", persistent)
			c.subscribe("old", 0)
			other := r.connect(v, "other")
			other.subscribe("t", 0)
			store.busy.Store(true)
			for _, ask := range []struct {
				p      packet.Packet
				answer func()
			}{
				{&packet.Subscribe{PID: 1, Filters: []packet.Filter{{Filter: "a"}, {Filter: "b"}}}, func() { expect[*packet.Suback](c) }},
				{&packet.Unsubscribe{PID: 2, Filters: []string{"a", "old"}}, func() { expect[*packet.Unsuback](c) }},
			} {
				was := r.hung()
				c.send(ask.p)
				time.Sleep(time.Minute)
				c.silent()
				if got := r.hung(); got != was {
					t.Errorf("version %d: %d subscriptions, %d before", v, got, was)
				}
				other.publish("t", "x", 0, 0)
				other.take("t", "x")
				other.subscribe(n("fresh/", was), 0)
				store.busy.Store(false)
				ask.answer()
				store.busy.Store(true)
			}
			late := r.dial(v)
			began := time.Now()
			late.send(&packet.Connect{Version: v, ClientID: "late", CleanStart: v == packet.V5, Props: packet.Props(nil).WithUint(packet.SessionExpiry, 60)})
			a := expect[*packet.Connack](late)
			want := byte(packet.Refused3Server)
			if v == packet.V5 {
				want = packet.ServerBusy
			}
			if d := time.Since(began); a.Code != want || d < fullWait || d > fullWait+fullRetry {
				t.Errorf("version %d: code 0x%02X after %v", v, a.Code, d)
			}
			patient := r.dial(v)
			patient.send(&packet.Connect{Version: v, ClientID: "patient", CleanStart: v == packet.V5, Props: packet.Props(nil).WithUint(packet.SessionExpiry, 60)})
			time.Sleep(fullWait / 2)
			store.busy.Store(false)
			if a := expect[*packet.Connack](patient); a.Code != 0 {
				t.Errorf("version %d: code 0x%02X", v, a.Code)
			}
			if j.about(`client "late" is refused: for 10s too much has waited for the disk`) != 1 {
				t.Errorf("version %d: %s", v, j.all())
			}
			if s := r.b.Stats(); s.Withheld != 4 || s.RefusedConnects != 1 {
				t.Errorf("version %d: %d waited, %d refused", v, s.Withheld, s.RefusedConnects)
			}
		})
	}
}

// Filters of a length that nobody needs are dealt with a few at a time, and are
// work like long topics.
func TestLongFiltersAreToil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory())
		defer r.stop()
		c := r.connect(packet.V311, "c", persistent)
		long := strings.Repeat("x", 30<<10)
		began := time.Now()
		const rounds, each = 20, 8
		for k := range rounds {
			s, u := &packet.Subscribe{PID: 1}, &packet.Unsubscribe{PID: 2}
			for i := range each {
				s.Filters = append(s.Filters, packet.Filter{Filter: n(long, i)})
				u.Filters = append(u.Filters, s.Filters[i].Filter)
			}
			c.send(s)
			if k == 0 {
				time.Sleep(breath / 2)
				if got := r.hung(); got != bytesAtOnce/len(long)+1 {
					t.Errorf("%d filters of %d bytes in one go", got, len(long))
				}
			}
			expect[*packet.Suback](c)
			c.send(u)
			expect[*packet.Unsuback](c)
		}
		want := 2*rounds*each*(filterToil+lengthy(long)) - toilBurst
		if d := time.Since(began); d < want-toilRest || d > want+toilRest {
			t.Errorf("took %v, want some %v", d, want)
		}
	})
}
