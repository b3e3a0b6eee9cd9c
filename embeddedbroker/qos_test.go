package embeddedbroker

import (
	"testing"
	"testing/synctest"
	"time"

	"busgate/embeddedbroker/packet"
)

func TestIDSpaces(t *testing.T) {
	for _, v := range versions {
		// The client's id 1 and ours are two things.
		r := start(t, NewMemory())
		c := r.connect(v, "c", persistent)
		c.subscribe("in", 1)
		r.connect(v, "pub").publish("in", "x", 1, 9)
		m := c.receive("in", "x")
		if m.PID != 1 {
			t.Fatalf("id %d", m.PID)
		}
		c.publish("out", "y", 1, 1)
		c.publish("out", "z", 2, 1)
		c.close()
		c = r.connect(v, "c", persistent)
		if m = c.take("in", "x"); !m.Dup || m.PID != 1 {
			t.Errorf("version %d: redelivered as %+v", v, m)
		}
		r.stop()
	}
}

func TestResendOrder(t *testing.T) {
	covers(t, "5", "MQTT-2.2.1-4", "MQTT-3.1.2-5", "MQTT-3.3.1-1", "MQTT-4.3.2-1", "MQTT-4.3.2-3", "MQTT-4.3.3-1", "MQTT-4.3.3-3",
		"MQTT-4.4.0-1", "MQTT-4.6.0-1")
	covers(t, "311", "MQTT-2.3.1-4", "MQTT-3.3.1-1", "MQTT-4.3.2-1", "MQTT-4.3.3-1", "MQTT-4.4.0-1", "MQTT-4.6.0-1")
	for _, v := range versions {
		r := start(t, NewMemory())
		c := r.connect(v, "c", persistent)
		c.subscribe("t", 2)
		p := r.connect(v, "pub")
		for i := range 20 {
			p.publish("t", n("", i), byte(1+i%2), uint16(i+1))
		}
		for i := range 20 { // each open, each with an id of its own
			if m := c.receive("t", n("", i)); m.Dup || m.PID != uint16(i+1) {
				t.Fatalf("version %d message %d: dup %v id %d", v, i, m.Dup, m.PID)
			}
		}
		for range 2 {
			c.close()
			c = r.connect(v, "c", persistent)
			for i := range 20 {
				if m := c.receive("t", n("", i)); !m.Dup || m.PID != uint16(i+1) || m.QoS != byte(1+i%2) {
					t.Fatalf("version %d message %d: dup %v id %d QoS %d", v, i, m.Dup, m.PID, m.QoS)
				}
			}
		}
		c.ping()
		c.silent()
		r.stop()
	}
}

// However long an answer is due, only a reconnect is a reason to send again.
func TestNothingIsRepeatedWithoutAReconnect(t *testing.T) {
	covers(t, "5", "MQTT-4.4.0-1")
	synctest.Test(t, func(t *testing.T) {
		for _, v := range versions {
			r := start(t, NewMemory())
			c := r.connect(v, "c", persistent)
			c.subscribe("t", 2)
			p := r.connect(v, "pub")
			for i, qos := range []byte{1, 2, 2} {
				p.publish("t", n("", i), qos, 1)
				c.receive("t", n("", i))
			}
			c.send(&packet.Ack{Type: packet.PUBREC, PID: 3})
			c.acked(packet.PUBREL, 3)
			nap(24 * time.Hour)
			c.silent()
			c.close()
			c = r.connect(v, "c", persistent)
			synctest.Wait()
			c.mu.Lock()
			again := len(c.got)
			c.mu.Unlock()
			if again != 3 { // also what is older than a release that is owed
				t.Fatalf("version %d: %d packets come again, want 3", v, again)
			}
			c.acked(packet.PUBREL, 3)
			c.receive("t", "0")
			c.receive("t", "1")
			nap(24 * time.Hour)
			c.silent()
			r.stop()
		}
	})
}

func TestQos2Dup(t *testing.T) {
	covers(t, "5", "MQTT-4.3.3-10", "MQTT-4.3.3-12")
	covers(t, "311", "MQTT-4.3.3-2")
	for _, v := range versions {
		r := start(t, NewMemory())
		s := r.connect(v, "sub")
		s.subscribe("t", 2)
		p := r.connect(v, "pub", persistent)
		m := &packet.Publish{Topic: []byte("t"), QoS: 2, PID: 5, Payload: []byte("x")}
		p.send(m)
		p.acked(packet.PUBREC, 5)
		p.close()
		p = r.connect(v, "pub", persistent)
		m.Dup = true
		p.send(m)
		p.acked(packet.PUBREC, 5)
		p.send(&packet.Ack{Type: packet.PUBREL, PID: 5})
		p.acked(packet.PUBCOMP, 5)
		p.publish("t", "y", 2, 5)
		s.take("t", "x")
		s.take("t", "y")
		r.stop()
	}
}

// PUBREL leaves in the order in which PUBREC came, whatever the ids say.
func TestReleasesComeInTheOrderOfTheirReceipts(t *testing.T) {
	covers(t, "5", "MQTT-4.6.0-4")
	covers(t, "311", "MQTT-4.6.0-4")
	synctest.Test(t, func(t *testing.T) {
		for _, v := range versions {
			f := newFaulty()
			r := start(t, f)
			c := r.connect(v, "c", persistent)
			c.subscribe("t", 2)
			p := r.connect(v, "pub")
			for i := range 3 {
				p.publish("t", n("", i), 2, 1)
				c.receive("t", n("", i))
			}
			f.set(func(f *faulty) { f.hold = true })
			order := []uint16{2, 3, 1}
			for _, pid := range order {
				c.send(&packet.Ack{Type: packet.PUBREC, PID: pid})
			}
			synctest.Wait()
			c.silent() // they wait for the disk, together
			f.set(func(f *faulty) { f.hold = false })
			f.flush()
			for _, pid := range order {
				c.acked(packet.PUBREL, pid)
			}
			r.stop()
		}
	})
}

func TestReleaseIsResentInsteadOfTheMessage(t *testing.T) {
	covers(t, "5", "MQTT-4.3.3-5", "MQTT-4.3.3-6")
	covers(t, "311", "MQTT-4.3.3-1")
	for _, v := range versions {
		store := NewMemory()
		r := start(t, store)
		c := r.connect(v, "c", persistent)
		c.subscribe("t", 2)
		p := r.connect(v, "pub")
		p.publish("t", "1", 2, 1)
		p.publish("t", "2", 2, 1)
		m := c.receive("t", "1")
		c.receive("t", "2")
		c.send(&packet.Ack{Type: packet.PUBREC, PID: m.PID})
		c.acked(packet.PUBREL, m.PID)
		for restart := range 3 {
			c.close()
			if restart == 1 { // also after a restart of the process
				r.stop()
				r = start(t, store)
			}
			c = r.connect(v, "c", persistent)
			c.acked(packet.PUBREL, m.PID)
			if two := c.receive("t", "2"); !two.Dup || two.PID != 2 {
				t.Errorf("version %d: %+v", v, two)
			}
		}
		c.send(&packet.Ack{Type: packet.PUBCOMP, PID: m.PID})
		c.ping() // it has arrived
		c.close()
		c = r.connect(v, "c", persistent)
		c.take("t", "2")
		c.ping()
		c.silent()
		r.stop()
	}
}

// The mark of an inbound id is on disk before PUBREC: a client that did not get
// that PUBREC repeats to the next process.
func TestQos2DupOverARestart(t *testing.T) {
	store := NewMemory()
	r := start(t, store)
	s := r.connect(packet.V311, "sub", persistent)
	s.subscribe("t", 2)
	p := r.connect(packet.V311, "pub", persistent)
	m := &packet.Publish{Topic: []byte("t"), QoS: 2, PID: 5, Payload: []byte("x")}
	p.send(m)
	p.acked(packet.PUBREC, 5)
	r.stop()
	r = start(t, store)
	p = r.connect(packet.V311, "pub", persistent)
	m.Dup = true
	p.send(m)
	p.acked(packet.PUBREC, 5)
	p.send(&packet.Ack{Type: packet.PUBREL, PID: 5})
	p.acked(packet.PUBCOMP, 5)
	r.stop()
	r = start(t, store)
	p = r.connect(packet.V311, "pub", persistent)
	p.publish("t", "y", 2, 5) // and the mark went with PUBREL
	s = r.connect(packet.V311, "sub", persistent)
	s.take("t", "x")
	s.take("t", "y")
	s.ping()
	s.silent()
}

func TestUnknownAcks(t *testing.T) {
	r := start(t, NewMemory())
	for _, v := range versions {
		c := r.connect(v, "c")
		c.send(&packet.Ack{Type: packet.PUBACK, PID: 9})
		c.send(&packet.Ack{Type: packet.PUBCOMP, PID: 9})
		c.send(&packet.Ack{Type: packet.PUBREC, PID: 9})
		if a := c.acked(packet.PUBREL, 9); v == packet.V5 && a.Code != packet.PIDNotFound {
			t.Errorf("PUBREL 0x%02X", a.Code)
		}
		c.send(&packet.Ack{Type: packet.PUBREL, PID: 9})
		if a := c.acked(packet.PUBCOMP, 9); a.Code != 0 {
			t.Errorf("PUBCOMP 0x%02X", a.Code)
		}
		c.close()
	}
	if n := r.b.Stats().UnknownAcks; n != 9 {
		t.Errorf("counted %d", n)
	}
}

func TestReceiveMaximum(t *testing.T) {
	covers(t, "5", "MQTT-3.3.4-9", "MQTT-3.3.4-10", "MQTT-4.9.0-1", "MQTT-4.9.0-2", "MQTT-4.9.0-3")
	r := start(t, NewMemory())
	for _, open := range []option{clean, persistent} {
		c := r.connect(packet.V5, "c", open, prop(packet.ReceiveMaximum, 5))
		c.subscribe("t", 2)
		p := r.connect(packet.V5, "pub")
		for i := range 50 {
			p.publish("t", n("", i), byte(1+i%2), uint16(i+1))
		}
		var held []*packet.Publish
		for i := range 50 {
			if len(held) == 5 {
				c.ping()
				c.silent() // the window is full
				if i == 5 {
					p.publish("t", "at once", 0, 0)
					c.receive("t", "at once") // QoS 0 passes a full window and what waits behind it
					c.subscribe("other", 0)
				}
				m := held[0]
				held = held[1:]
				if m.QoS == 2 { // its place is taken until PUBCOMP
					c.send(&packet.Ack{Type: packet.PUBREC, PID: m.PID})
					c.acked(packet.PUBREL, m.PID)
					c.ping()
					c.silent()
					c.send(&packet.Ack{Type: packet.PUBCOMP, PID: m.PID})
				} else {
					c.complete(m)
				}
			}
			held = append(held, c.receive("t", n("", i)))
		}
		p.publish("t", "0", 0, 0)
		c.receive("t", "0") // QoS 0 passes a full window
		c.close()
		c = r.connect(packet.V5, "c", open, prop(packet.ReceiveMaximum, 2))
		if c.ack.SessionPresent { // what counts is the maximum of this connection
			held = nil
			for i := 45; i < 50; i++ {
				if len(held) == 2 {
					c.ping()
					c.silent()
					c.complete(held[0])
					held = held[1:]
				}
				held = append(held, c.receive("t", n("", i)))
			}
		}
		c.close()
		p.close()
		r.b.DropSession("c")
	}
}

func TestMaxInflightHoldsBack3x(t *testing.T) {
	r := start(t, NewMemory())
	c := r.connect(packet.V311, "c")
	c.subscribe("t", 1)
	p := r.connect(packet.V311, "pub")
	for i := range 150 {
		p.publish("t", n("", i), 1, uint16(i+1))
	}
	var first *packet.Publish
	for i := range 100 {
		if m := c.receive("t", n("", i)); i == 0 {
			first = m
		}
	}
	c.ping()
	c.silent()
	c.complete(first)
	c.receive("t", "100")
	c.ping()
	c.silent()
}

func TestOversizeForClient(t *testing.T) {
	covers(t, "5", "MQTT-3.1.2-24", "MQTT-3.1.2-25")
	r := start(t, NewMemory())
	for _, open := range []option{clean, persistent} {
		c := r.connect(packet.V5, "c", open, prop(packet.MaximumPacketSize, 40))
		c.subscribe("t", 1)
		p := r.connect(packet.V5, "pub")
		p.publish("t", "0123456789012345678901234567890123456789", 1, 1)
		p.publish("t", "small", 1, 2)
		if m := c.take("t", "small"); m.PID != 2 {
			t.Errorf("id %d: a skipped message keeps its own", m.PID)
		}
		p.publish("t", "0123456789012345678901234567890123456789", 1, 1)
		p.publish("t", "last", 1, 2) // what comes behind it says that it was dealt with
		c.take("t", "last")
		c.ping()
		if i := r.b.Clients()[0]; i.Inflight != 0 || i.Queued != 0 {
			t.Errorf("%+v", i)
		}
		c.close()
		p.close()
		r.b.DropSession("c")
	}
}

func TestStalledSubscriber(t *testing.T) {
	synctest.Test(t, testStalledSubscriber) // without a clock, whatever the machine does
}

func testStalledSubscriber(t *testing.T) {
	const total = 10_000
	r := start(t, NewMemory())
	c := r.connect(packet.V311, "c", persistent)
	c.subscribe("t", 1)
	c.mu.Lock()
	c.hold = true
	c.mu.Unlock()
	zero := r.connect(packet.V311, "zero")
	zero.subscribe("t", 0)
	zero.mu.Lock()
	zero.hold = true
	zero.mu.Unlock()
	p := r.connect(packet.V311, "pub")
	payload := string(make([]byte, 512))
	for i := range total {
		p.publish("t", payload, 1, uint16(i+1)) // nobody makes it wait
	}
	for _, x := range []*client{c, zero} {
		x.mu.Lock()
		x.hold = false
		x.cond.Broadcast()
		x.mu.Unlock()
	}
	for range total {
		c.take("t", payload)
	}
	if s := r.b.Stats(); s.Dropped == 0 {
		t.Errorf("QoS 0 for a client that does not read: %+v", s)
	}
}

func TestVolatileClientFarBehindIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory())
		c := r.connect(packet.V5, "c")
		c.subscribe("t", 1)
		l := r.b.Local("poller")
		for range hardMessages + 200 {
			l.Publish(&Message{Topic: "t", Payload: []byte("x"), QoS: 1, Kind: KindReading}, nil)
		}
		for {
			p := c.next()
			if d, ok := p.(*packet.Disconnect); ok {
				if d.Code != packet.QuotaExceeded {
					t.Errorf("code 0x%02X", d.Code)
				}
				break
			}
		}
		if s := r.b.Stats(); s.SlowClosed != 1 {
			t.Errorf("%+v", s)
		}
	})
}
