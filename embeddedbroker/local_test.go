package embeddedbroker

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"busgate/config"
	"busgate/embeddedbroker/packet"
)

// inbox gathers what a local subscription gets.
type inbox struct {
	mu  sync.Mutex
	got []string
}

func (i *inbox) take(m *Message) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.got = append(i.got, fmt.Sprintf("%s=%s %v", m.Topic, m.Payload, m.Retain))
}

func (i *inbox) all() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.got)
}

func want(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("got %q, want %q", got, want)
	}
}

func TestLocalSubscribe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory())
		l := r.b.Local("poller")
		for _, x := range []string{"b", "a"} {
			if err := l.Publish(&Message{Topic: "t/" + x, Payload: []byte(x), Retain: true, Kind: KindReading}, nil); err != nil {
				t.Fatal(err)
			}
		}
		var in inbox
		cancel := l.Subscribe("t/#", 0, in.take)
		r.connect(packet.V5, "c").publish("t/c", "c", 1, 1)
		synctest.Wait()
		want(t, in.all(), "t/a=a true", "t/b=b true", "t/c=c false")
		cancel()
		l.Publish(&Message{Topic: "t/d"}, nil)
		synctest.Wait()
		if len(in.all()) != 3 {
			t.Error("called after cancel")
		}
		if err := l.Publish(&Message{Topic: "t/+"}, nil); err == nil {
			t.Error("a wildcard in a topic")
		}
		if got := r.b.Retained("t/#"); len(got) != 2 || got[0].Topic != "t/a" {
			t.Errorf("retained %v", got)
		}
	})
}

func TestLocalQueueRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory())
		l := r.b.Local("x")
		gate := make(chan struct{})
		var console, commands inbox
		slow := func(in *inbox) func(*Message) {
			return func(m *Message) { <-gate; in.take(m) }
		}
		l.Subscribe("t/#", 0, slow(&console))
		l.Subscribe("set/#", 1, slow(&commands))
		l.Publish(&Message{Topic: "t/first", Payload: []byte("0")}, nil)
		synctest.Wait() // its call hangs
		for i := range 2 * localQueue {
			l.Publish(&Message{Topic: fmt.Sprint("t/", i%500), Payload: []byte(fmt.Sprint(i))}, nil)
		}
		c := r.connect(packet.V5, "c")
		refused := 0
		for i := range localQueue + 10 {
			c.send(&packet.Publish{Topic: []byte("set/x"), QoS: 1, PID: 1, Payload: []byte(fmt.Sprint(i))})
			if c.acked(packet.PUBACK, 1).Code == packet.QuotaExceeded {
				refused++
			}
		}
		l.Publish(&Message{Topic: "set/x", Payload: []byte("late")}, nil) // cannot be refused
		if n := r.b.Stats().DroppedLocal; n != localQueue+1 {
			t.Errorf("%d counted", n)
		}
		close(gate)
		synctest.Wait()
		got := console.all()
		if len(got) != localQueue+1 || got[len(got)-1] != fmt.Sprintf("t/%d=%d false", 2047%500, 2047) {
			t.Errorf("%d messages, last %s", len(got), got[len(got)-1])
		}
		if n := len(commands.all()); refused == 0 || n+refused != localQueue+10 || commands.all()[1] != "set/x=1 false" {
			t.Errorf("%d commands taken, %d refused: some were lost in silence", n, refused)
		}
	})
}

func TestConsumerGetsWhatItWants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFaulty()
		r := start(t, f)
		l := r.b.Local("bridge")
		id, err := l.Consumer("cloud", []string{"a/#", "a/+"}, func(m *Message) bool { return m.Kind != KindDown })
		if err != nil || id == 0 {
			t.Fatal(id, err)
		}
		f.set(func(f *faulty) { f.hold = true })
		done := newDone()
		l.Publish(&Message{Topic: "a/1", QoS: 1, Kind: KindStatus}, done)
		l.Publish(&Message{Topic: "a/2", Kind: KindReading}, nil)
		l.Publish(&Message{Topic: "a/3", Kind: KindDown}, nil)
		l.Publish(&Message{Topic: "b", Kind: KindReading}, nil)
		r.connect(packet.V311, "c").publish("a/4", "lan", 0, 0)
		synctest.Wait()
		if done.count() != 0 {
			t.Error("told before the flush")
		}
		f.flush()
		if done.count() != 1 || done.err != nil {
			t.Errorf("told %d times, %v", done.count(), done.err)
		}
		if u := f.Usage(id); u.Messages != 3 { // one copy each, whatever the number of filters
			t.Errorf("%+v", u)
		}
		other := newDone()
		if err := l.Publish(&Message{Topic: "nobody"}, other); err != nil || other.count() != 1 {
			t.Errorf("nobody wants it: %v, told %d times", err, other.count())
		}
		f.set(func(f *faulty) { f.hold, f.refuse = false, ErrFull })
		if err := l.Publish(&Message{Topic: "a/5"}, done); !errors.Is(err, ErrFull) {
			t.Errorf("full: %v", err)
		}
		if err := l.Publish(&Message{Topic: "a/5"}, nil); err != nil || r.b.Stats().DroppedFull != 1 {
			t.Errorf("full, lazy: %v", err)
		}
		f.set(func(f *faulty) { f.refuse = nil })
		if _, err := l.Consumer("cloud", []string{"b"}, nil); err != nil {
			t.Fatal(err)
		}
		l.Publish(&Message{Topic: "a/6"}, nil)
		l.Publish(&Message{Topic: "b"}, nil)
		if u := f.Usage(id); u.Messages != 4 {
			t.Errorf("%+v", u)
		}
		l.RemoveConsumer("cloud")
		l.Publish(&Message{Topic: "b"}, nil)
		if u := f.Usage(id); u.Messages != 0 {
			t.Errorf("%+v", u)
		}
	})
}

type doneLog struct {
	mu  sync.Mutex
	n   int
	err error
}

func newDone() *doneLog { return &doneLog{} }

func (d *doneLog) Committed(_ Seq, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.n++
	d.err = err
}

func (d *doneLog) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.n
}

func TestRetainedOfTheGatewayStaysInMemory(t *testing.T) {
	store := NewMemory()
	r := start(t, store)
	l := r.b.Local("poller")
	l.Publish(&Message{Topic: "state", Payload: []byte("1"), Retain: true, Kind: KindReading}, nil)
	l.Publish(&Message{Topic: "down", Payload: []byte("2"), Retain: true, Kind: KindDown}, nil)
	r.connect(packet.V311, "c").t.Helper()
	r.stop()
	r = start(t, store)
	if got := r.b.Retained("#"); len(got) != 1 || got[0].Topic != "down" {
		t.Errorf("%v", got)
	}
}

func TestQueueFullPolicies(t *testing.T) {
	for _, policy := range []string{queueRefuse, queueEndSession, queueDropOldest} {
		r := start(t, NewMemory(), func(c *config.Broker, _ *Options) { c.QueueFull, c.MaxQueued = policy, 10 })
		s := r.connect(packet.V311, "sub", persistent)
		s.subscribe("t", 1)
		s.send(&packet.Disconnect{})
		s.ended()
		p := r.connect(packet.V5, "pub")
		refused := 0
		for i := range 15 {
			p.send(&packet.Publish{Topic: []byte("t"), QoS: 1, PID: 1, Payload: []byte(n("", i))})
			if p.acked(packet.PUBACK, 1).Code == packet.QuotaExceeded {
				refused++
			}
		}
		x := r.b.Stats()
		s = r.connect(packet.V311, "sub", persistent)
		switch policy {
		case queueRefuse:
			if refused != 5 {
				t.Errorf("%s: %d refused", policy, refused)
			}
			s.take("t", "0")
		case queueEndSession:
			if s.ack.SessionPresent || x.SessionsEndedFull != 1 || refused != 0 {
				t.Errorf("%s: present %v, %+v", policy, s.ack.SessionPresent, x)
			}
		default:
			if x.DroppedQuota != 5 {
				t.Errorf("%s: %+v", policy, x)
			}
			s.take("t", "5")
		}
		r.stop()
	}
}

// However much comes while a subscription waits for the disk, the releaser is asked
// to wake it once.
func TestWaitingSubscriptionAsksOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFaulty()
		r := start(t, f)
		l := r.b.Local("x")
		if _, err := l.Consumer("cloud", []string{"t"}, nil); err != nil {
			t.Fatal(err)
		}
		var in inbox
		l.Subscribe("#", 0, in.take)
		f.set(func(f *faulty) { f.hold = true })
		l.Publish(&Message{Topic: "t", QoS: 1, Payload: []byte("held")}, newDone())
		const more = 3 * localQueue
		for i := range more {
			l.Publish(&Message{Topic: "u", Payload: []byte(fmt.Sprint(i))}, nil)
		}
		r.b.rel.mu.Lock()
		if n := len(r.b.rel.waiting); n != 1 {
			t.Errorf("%d wait for the flush", n)
		}
		r.b.rel.mu.Unlock()
		f.flush()
		synctest.Wait()
		got := in.all()
		if len(got) != localQueue || got[0] != "t=held false" || got[len(got)-1] != fmt.Sprintf("u=%d false", more-1) {
			t.Errorf("%d messages, from %s to %s", len(got), got[0], got[len(got)-1])
		}
	})
}
