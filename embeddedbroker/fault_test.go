package embeddedbroker

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"busgate/embeddedbroker/packet"
)

// faulty is a Store that flushes when the test says so, and fails when it says so.
type faulty struct {
	*Memory

	mu       sync.Mutex
	hold     bool
	refuse   error // of Append
	reading  error // of Read
	fail     error // of the commit
	waiting  []completed
	released Seq
	waits    int // entries that somebody waits for
}

type completed struct {
	done Completion
	seq  Seq
}

func newFaulty() *faulty { return &faulty{Memory: NewMemory()} }

func (f *faulty) Append(e *Entry) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse != nil && e.Msg != nil && len(e.Targets) > 0 {
		return f.refuse
	}
	own := *e
	own.Done = nil
	if err := f.Memory.Append(&own); err != nil {
		return err
	}
	e.Seq = own.Seq
	if e.Wait {
		f.waits++
	}
	f.waiting = append(f.waiting, completed{e.Done, e.Seq})
	if !f.hold {
		f.flushLocked()
	}
	return nil
}

func (f *faulty) flushLocked() {
	for _, c := range f.waiting {
		f.released = c.seq
		if c.done != nil {
			c.done.Committed(c.seq, f.fail)
		}
	}
	f.waiting = nil
}

// flush commits what waits.
func (f *faulty) flush() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flushLocked()
}

// set changes what the store does.
func (f *faulty) set(change func(*faulty)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// Read gives committed entries only.
func (f *faulty) Read(c ConsumerID, from Seq, w *Window) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.reading != nil {
		return f.reading
	}
	if err := f.Memory.Read(c, from, w); err != nil {
		return err
	}
	for i, d := range w.Deliveries {
		if d.Seq > f.released {
			w.Deliveries, w.Next = w.Deliveries[:i], d.Seq
			break
		}
	}
	w.Next = max(from, min(w.Next, f.released+1))
	return nil
}

func TestNoAnswerBeforeTheFlush(t *testing.T) {
	covers(t, "311", "MQTT-4.6.0-3")
	synctest.Test(t, func(t *testing.T) {
		f := newFaulty()
		r := start(t, f)
		s := r.connect(packet.V311, "sub", persistent)
		s.subscribe("t", 2)
		live := r.connect(packet.V311, "live")
		live.subscribe("t", 0)
		p := r.connect(packet.V311, "pub", persistent)
		f.set(func(f *faulty) { f.hold = true })
		p.send(&packet.Publish{Topic: []byte("t"), QoS: 1, PID: 1, Payload: []byte("1")})
		p.send(&packet.Publish{Topic: []byte("t"), QoS: 2, PID: 2, Payload: []byte("2")})
		p.send(&packet.Publish{Topic: []byte("other"), QoS: 1, PID: 3, Payload: []byte("3")})
		p.send(&packet.Subscribe{PID: 4, Filters: []packet.Filter{{Filter: "x"}}})
		synctest.Wait()
		p.silent()
		s.silent()
		live.silent() // the router never shows what the disk may forget
		f.flush()
		p.acked(packet.PUBACK, 1)
		p.acked(packet.PUBREC, 2)
		p.acked(packet.PUBACK, 3)
		expect[*packet.Suback](p)
		f.set(func(f *faulty) { f.hold = false })
		s.take("t", "1")
		s.take("t", "2")
		live.receive("t", "1")
		live.receive("t", "2")
	})
}

func TestReaderGoesOnWhileAnswersWait(t *testing.T) {
	covers(t, "311", "MQTT-4.6.0-2", "MQTT-4.6.0-3", "MQTT-4.6.0-5", "MQTT-4.6.0-6")
	synctest.Test(t, func(t *testing.T) {
		f := newFaulty()
		r := start(t, f)
		var subs []*client
		for i := range byte(6) {
			s := r.connect(packet.V311, n("sub", int(i)), []option{clean, persistent}[i%2])
			s.subscribe("t", i/2)
			subs = append(subs, s)
		}
		p := r.connect(packet.V311, "pub")
		f.set(func(f *faulty) { f.hold = true })
		topic := func(i int) string { return []string{"t", "t", "nobody"}[i%3] } // whose answer needs no disk
		for i := range 100 {
			p.send(&packet.Publish{Topic: []byte(topic(i)), QoS: byte(1 + i%2), PID: uint16(i + 1), Payload: []byte(n("", i))})
		}
		p.ping() // the reader is not parked, and PINGRESP does not wait
		f.set(func(f *faulty) { f.hold = false })
		f.flush()
		for i := range 100 {
			p.acked([]packet.Type{packet.PUBACK, packet.PUBREC}[i%2], uint16(i+1))
		}
		for _, s := range subs {
			for i := range 100 {
				if topic(i) == "t" {
					s.receive("t", n("", i))
				}
			}
		}
	})
}

func TestReaderStopsAtItsOwnUnansweredInput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFaulty()
		r := start(t, f)
		s := r.connect(packet.V311, "sub", persistent)
		s.subscribe("t", 1)
		p := r.connect(packet.V311, "pub")
		other := r.connect(packet.V311, "other")
		f.set(func(f *faulty) { f.hold = true })
		big := make([]byte, 100<<10)
		sent := make(chan int, 1)
		go func() {
			for i := range 30 {
				p.nc.Write((&packet.Publish{Topic: []byte("t"), QoS: 1, PID: uint16(i + 1), Payload: big}).Append(nil, packet.V311))
			}
			sent <- 30
		}()
		synctest.Wait()
		select {
		case <-sent:
			t.Error("3 MB were taken without an answer")
		default:
		}
		other.ping() // nobody else is held
		f.set(func(f *faulty) { f.hold = false; f.flushLocked() })
		for i := range 30 {
			p.acked(packet.PUBACK, uint16(i+1))
		}
		<-sent
	})
}

func TestPositionInTheOrderOfAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFaulty()
		r := start(t, f)
		r.connect(packet.V5, "sub", persistent).subscribe("t", 1)
		p := r.connect(packet.V5, "pub")
		f.set(func(f *faulty) { f.hold = true })
		p.send(&packet.Publish{Topic: []byte("t"), QoS: 1, PID: 1})
		p.send(&packet.Publish{Topic: []byte("nobody"), QoS: 1, PID: 2}) // needs no flush, but not before its turn
		synctest.Wait()
		p.silent()
		f.flush()
		p.acked(packet.PUBACK, 1)
		if a := p.acked(packet.PUBACK, 2); a.Code != packet.NoMatching {
			t.Errorf("code 0x%02X, want 0x10", a.Code)
		}
	})
}

func TestFullStore(t *testing.T) {
	covers(t, "5", "MQTT-3.4.2-1", "MQTT-3.5.2-1")
	covers(t, "311", "MQTT-4.8.0-2")
	synctest.Test(t, func(t *testing.T) {
		f := newFaulty()
		r := start(t, f)
		s := r.connect(packet.V5, "sub", persistent)
		s.subscribe("t", 1)
		live := r.connect(packet.V5, "live")
		live.subscribe("t", 0)
		f.set(func(f *faulty) { f.refuse = ErrFull })

		p := r.connect(packet.V5, "five")
		p.send(&packet.Publish{Topic: []byte("t"), QoS: 1, PID: 1, Payload: []byte("a")})
		if a := p.acked(packet.PUBACK, 1); a.Code != packet.QuotaExceeded {
			t.Errorf("5.0 is answered 0x%02X", a.Code)
		}
		f.set(func(f *faulty) { f.refuse = ErrReadOnly })
		p.send(&packet.Publish{Topic: []byte("t"), QoS: 2, PID: 2, Payload: []byte("b")})
		if a := p.acked(packet.PUBREC, 2); a.Code != packet.ImplementationError {
			t.Errorf("5.0 is answered 0x%02X", a.Code)
		}
		synctest.Wait()
		live.silent() // refused as a whole
		p.publish("t", "zero", 0, 0)
		live.receive("t", "zero")
		p.send(&packet.Publish{Topic: []byte("volatile"), QoS: 1, PID: 3})
		p.acked(packet.PUBACK, 3)

		f.set(func(f *faulty) { f.refuse = ErrFull })
		old := r.connect(packet.V311, "old")
		began := time.Now()
		old.send(&packet.Publish{Topic: []byte("t"), QoS: 1, PID: 1, Payload: []byte("c")})
		time.Sleep(5 * time.Second)
		synctest.Wait()
		old.silent()
		f.set(func(f *faulty) { f.refuse = nil })
		old.acked(packet.PUBACK, 1)
		f.set(func(f *faulty) { f.refuse = ErrFull })
		old.send(&packet.Publish{Topic: []byte("t"), QoS: 1, PID: 2, Payload: []byte("d")})
		old.ended()
		if d := time.Since(began); d < 15*time.Second || d > 16*time.Second {
			t.Errorf("3.1.1 was held for %v", d)
		}
		live.receive("t", "c")
		s.receive("t", "zero")
		s.take("t", "c")
		if x := r.b.Stats(); x.RefusedFull == 0 || x.Withheld == 0 {
			t.Errorf("stats %+v", x)
		}
	})
}

func TestFailedReadEndsTheConnection(t *testing.T) {
	f := newFaulty()
	r := start(t, f)
	r.connect(packet.V5, "sub", persistent).subscribe("t", 1)
	s := r.connect(packet.V5, "sub", persistent)
	s.send(&packet.Disconnect{})
	s.ended()
	r.connect(packet.V5, "pub").publish("t", "x", 1, 1)
	f.set(func(f *faulty) { f.reading = ErrReadOnly })
	s = r.connect(packet.V5, "sub", persistent)
	if d := expect[*packet.Disconnect](s); d.Code != packet.ImplementationError {
		t.Errorf("code 0x%02X", d.Code)
	}
	f.set(func(f *faulty) { f.reading = nil })
	r.connect(packet.V5, "sub", persistent).take("t", "x")
}

func TestQoS2DeliveryWaitsForTheFlushAndLazyQoS1DoesNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFaulty()
		r := start(t, f)
		one := r.connect(packet.V311, "one", persistent)
		one.subscribe("a", 1)
		two := r.connect(packet.V311, "two", persistent)
		two.subscribe("b", 2)
		l := r.b.Local("poller")
		f.set(func(f *faulty) { f.hold = true })
		if err := l.Publish(&Message{Topic: "a", Payload: []byte("1"), QoS: 1, Kind: KindReading}, nil); err != nil {
			t.Fatal(err)
		}
		one.receive("a", "1")
		if err := l.Publish(&Message{Topic: "b", Payload: []byte("2"), QoS: 2, Kind: KindReading}, nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		two.silent()
		f.flush()
		two.receive("b", "2")
	})
}

func TestOrderOfOnePublisherOverTheFlush(t *testing.T) {
	covers(t, "5", "MQTT-4.6.0-5", "MQTT-4.6.0-6")
	synctest.Test(t, func(t *testing.T) {
		for _, v := range versions {
			f := newFaulty()
			r := start(t, f)
			r.connect(v, "keeper", persistent).subscribe("t", 1)
			s, zero := r.connect(v, "sub"), r.connect(v, "zero")
			s.subscribe("t", 2)
			zero.subscribe("t", 0)
			other := r.connect(v, "other")
			other.subscribe("u", 1)
			p := r.connect(v, "pub")
			f.set(func(f *faulty) { f.hold = true })
			p.send(&packet.Publish{Topic: []byte("t"), QoS: 1, PID: 1, Payload: []byte("1")})
			p.send(&packet.Publish{Topic: []byte("t"), QoS: 0, Payload: []byte("2")})
			p.send(&packet.Publish{Topic: []byte("u"), QoS: 0, Payload: []byte("3")}) // needs no disk, but is later
			p.send(&packet.Publish{Topic: []byte("t"), QoS: 2, PID: 2, Payload: []byte("4")})
			p.send(&packet.Publish{Topic: []byte("t"), QoS: 2, PID: 3, Payload: []byte("5")})
			synctest.Wait()
			s.silent()
			zero.silent()
			other.silent()
			f.set(func(f *faulty) { f.hold = false })
			f.flush()
			for _, payload := range []string{"1", "2", "4", "5"} {
				s.receive("t", payload)
				zero.receive("t", payload)
			}
			other.receive("u", "3")
			r.stop()
		}
	})
}

// AckRunsAhead: an acknowledgement says that the message is on its way. With a
// disk that takes 10 ms, a window of 100 and a subscriber that reads, messages
// arrive with their acknowledgement, however long it goes on: no queue grows
// behind it.
func TestAckDoesNotRunAheadOfDelivery(t *testing.T) {
	const window, rounds, disk = 100, 60, 10 * time.Millisecond
	for _, open := range []option{clean, persistent} {
		for _, qos := range []byte{1, 2} {
			synctest.Test(t, func(t *testing.T) {
				f := newFaulty()
				r := start(t, f)
				s := r.connect(packet.V5, "sub", open)
				s.subscribe("t", qos)
				keeper := r.connect(packet.V311, "keeper", persistent) // somebody durable wants it
				keeper.subscribe("t", 1)
				keeper.close()
				synctest.Wait()
				f.set(func(f *faulty) { f.hold = true })
				p := r.connect(packet.V5, "pub")
				for round := range rounds {
					began := time.Now()
					for i := range window {
						p.send(&packet.Publish{Topic: []byte("t"), QoS: qos, PID: uint16(i + 1), Payload: []byte(n("", round*window+i))})
					}
					synctest.Wait()
					p.silent() // nothing is acknowledged before it is on disk
					nap(disk)
					f.flush()
					typ := packet.PUBACK
					if qos == 2 {
						typ = packet.PUBREC
					}
					for i := range window {
						p.find(typ, uint16(i+1))
					}
					var got []*packet.Publish
					for i := range window {
						got = append(got, s.receive("t", n("", round*window+i)))
					}
					for _, m := range got {
						s.send(&packet.Ack{Type: typ, PID: m.PID})
					}
					if d := time.Since(began); d != disk {
						t.Fatalf("round %d: delivered after %v, the disk takes %v", round, d, disk)
					}
					f.flush()
					if qos == 2 {
						for i := range window {
							p.send(&packet.Ack{Type: packet.PUBREL, PID: uint16(i + 1)})
						}
						synctest.Wait()
						f.flush()
						for i := range window {
							p.find(packet.PUBCOMP, uint16(i+1))
						}
						synctest.Wait()
						f.flush()
						s.mu.Lock()
						releases := s.got
						s.got = nil
						s.mu.Unlock()
						for _, x := range releases {
							s.send(&packet.Ack{Type: packet.PUBCOMP, PID: x.(*packet.Ack).PID})
						}
						synctest.Wait()
					}
				}
				f.set(func(f *faulty) { f.hold = false })
				f.flush()
			})
		}
	}
}
