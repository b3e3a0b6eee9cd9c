package embeddedbroker

import (
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/embeddedbroker/packet"
)

func TestRetainedIsReplacedByRetainedOnly(t *testing.T) {
	covers(t, "5", "MQTT-3.3.1-6", "MQTT-3.3.1-7", "MQTT-3.3.1-8")
	covers(t, "311", "MQTT-3.1.2-7", "MQTT-3.3.1-7", "MQTT-3.3.1-10", "MQTT-3.3.1-11", "MQTT-3.3.1-12")
	for _, v := range versions {
		r := start(t, NewMemory())
		p := r.connect(v, "pub", persistent)
		w := r.connect(v, "watch")
		w.subscribe("t", 0)
		keep := func(payload string, qos byte) {
			p.send(&packet.Publish{Topic: []byte("t"), Retain: true, Payload: []byte(payload), QoS: qos, PID: uint16(qos)})
			if qos > 0 {
				p.acked(packet.PUBACK, 1)
			}
			w.receive("t", payload)
		}
		look := func(want string, qos byte) {
			t.Helper()
			p.ping()
			c := r.connect(v, "look")
			c.subscribe("t", 2)
			if want == "" {
				c.ping()
				c.silent()
			} else if m := c.take("t", want); m.QoS != qos {
				t.Errorf("QoS %d, want %d", m.QoS, qos)
			}
			c.close()
		}
		keep("1", 1)
		look("1", 1)
		keep("2", 0)
		look("2", 0)
		p.publish("t", "3", 0, 0)
		p.publish("t", "", 0, 0)
		w.receive("t", "3")
		w.receive("t", "")
		look("2", 0)
		p.send(&packet.Disconnect{})
		p.ended()
		r.b.DropSession("pub")
		p = r.connect(v, "pub")
		look("2", 0) // it belongs to no session
		keep("", 0)
		look("", 0)
		r.stop()
	}
}

func TestClientIDs(t *testing.T) {
	covers(t, "5", "MQTT-3.1.3-2", "MQTT-3.1.3-5")
	covers(t, "311", "MQTT-3.1.3-2", "MQTT-3.1.3-5")
	r := start(t, NewMemory())
	r.connect(packet.V311, "other", persistent)
	for _, v := range versions {
		ids := []string{"a", "A", "0123456789abcdefghijklm", "nopqrstuvwxyzABCDEFGHI", "JKLMNOPQRSTUVWXYZ", "nopqrstuvwxyzABCDEFGHI ",
			"a-very-long-one-with-much-more-than-23-bytes-ä", "a-very-long-one-with-much-more-than-23-bytes-a\u0308"}
		for _, id := range ids {
			c := r.connect(v, id, persistent)
			if c.close(); c.ack.SessionPresent {
				t.Errorf("version %d: %q has the session of another", v, id)
			}
		}
		for _, id := range ids {
			if c := r.connect(v, id, persistent); c.ack.SessionPresent != (v != packet.V31) {
				t.Errorf("version %d: the session of %q is gone", v, id)
			}
			r.b.DropSession(id)
		}
	}
}

func TestIDsAreFreeAfterTheAnswer(t *testing.T) {
	covers(t, "5", "MQTT-3.3.1-3", "MQTT-4.3.2-5")
	covers(t, "311", "MQTT-3.3.1-3")
	for _, v := range versions {
		r := start(t, NewMemory())
		s := r.connect(v, "sub")
		s.subscribe("t", 2)
		p := r.connect(v, "pub", persistent)
		for i := range 3 {
			p.publish("t", n("q", i), byte(1+i%2), 9)
			s.take("t", n("q", i))
		}
		p.send(&packet.Publish{Dup: true, Topic: []byte("t"), QoS: 1, PID: 9, Payload: []byte("new")})
		p.acked(packet.PUBACK, 9)
		if m := s.take("t", "new"); m.Dup {
			t.Error("DUP of the publisher is handed on")
		}
		r.stop()
	}
}

func TestNegativeAnswersEndADelivery(t *testing.T) {
	covers(t, "5", "MQTT-4.4.0-2", "MQTT-4.8.2-6")
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory())
		a := r.connect(packet.V5, "a", persistent, prop(packet.ReceiveMaximum, 1))
		b := r.connect(packet.V5, "b")
		a.subscribe("$share/g/t", 2)
		p := r.connect(packet.V5, "pub")
		for i := range 4 {
			p.publish("t", n("", i), byte(1+i%2), 1)
		}
		b.subscribe("$share/g/t", 2)
		for i := range 4 {
			m := a.receive("t", n("", i))
			typ := packet.PUBACK
			if m.QoS == 2 {
				typ = packet.PUBREC
			}
			a.send(&packet.Ack{Type: typ, PID: m.PID, Code: packet.Unspecified})
		}
		a.ping()
		a.close()
		a = r.connect(packet.V5, "a", persistent)
		a.ping()
		a.silent()
		b.ping()
		b.silent()
	})
}

func TestBegunQoS2IsCompletedAfterExpiryAndReconnect(t *testing.T) {
	covers(t, "5", "MQTT-4.3.3-7", "MQTT-4.3.3-13", "MQTT-4.8.2-4")
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory())
		a := r.connect(packet.V5, "a", persistent)
		a.subscribe("$share/g/t", 2)
		b := r.connect(packet.V5, "b")
		p := r.connect(packet.V5, "pub", persistent)
		p.send(&packet.Publish{Topic: []byte("t"), QoS: 2, PID: 1, Payload: []byte("x"), HasExpiry: true, Expiry: 5})
		p.acked(packet.PUBREC, 1)
		a.receive("t", "x")
		a.close()
		b.subscribe("$share/g/t", 2)
		time.Sleep(time.Minute)
		a = r.connect(packet.V5, "a", persistent)
		if m := a.take("t", "x"); !m.Dup || m.Expiry != 0 {
			t.Errorf("%+v", m)
		}
		p.send(&packet.Publish{Dup: true, Topic: []byte("t"), QoS: 2, PID: 1, Payload: []byte("x")})
		p.acked(packet.PUBREC, 1) // the id is open although the message has expired
		b.ping()
		b.silent()
		a.ping()
		a.silent()
		p.send(&packet.Ack{Type: packet.PUBREL, PID: 1})
		p.acked(packet.PUBCOMP, 1)
	})
}

func TestNothingFollowsARefusedConnectOrADisconnect(t *testing.T) {
	covers(t, "5", "MQTT-3.1.4-6", "MQTT-3.2.2-6", "MQTT-3.14.4-1")
	covers(t, "311", "MQTT-3.1.4-5", "MQTT-3.2.2-4")
	r := start(t, NewMemory(), func(c *config.Broker, _ *Options) { c.MaxKeepAlive = time.Minute })
	w := r.connect(packet.V5, "w")
	w.subscribe("#", 0)
	for _, v := range versions {
		// There is a session, and the CONNECT that asks for it is refused.
		c := r.connect(v, "c", persistent, keep(60))
		c.close()
		known := &packet.Connect{Version: v, ClientID: "c", KeepAlive: 61}
		if v == packet.V5 {
			known.Props = packet.Props{}.WithBytes(packet.AuthMethod, []byte("m"))
		}
		c = r.dial(v)
		c.send(known)
		if a := expect[*packet.Connack](c); a.Code == 0 || a.SessionPresent {
			t.Errorf("version %d: %+v", v, a)
		}
		c = r.dial(v)
		bad := (&packet.Connect{Version: v, ClientID: ""}).Append(nil, 0)
		if v == packet.V5 {
			bad = (&packet.Connect{Version: v, Props: packet.Props{}.WithBytes(packet.AuthMethod, []byte("m"))}).Append(nil, 0)
		}
		c.raw(append(bad, (&packet.Publish{Topic: []byte("t"), Payload: []byte("x")}).Append(nil, v)...)...)
		if a := expect[*packet.Connack](c); a.Code == 0 || a.SessionPresent {
			t.Errorf("version %d: %+v", v, a)
		}
		c.ended()
		c = r.connect(v, "c", persistent, keep(60))
		c.raw(append((&packet.Disconnect{}).Append(nil, v), (&packet.Publish{Topic: []byte("t")}).Append(nil, v)...)...)
		c.ended() // and no DISCONNECT for a DISCONNECT
	}
	w.ping()
	w.silent()
}

func TestCleanStartDiscardsTheSession(t *testing.T) {
	covers(t, "5", "MQTT-3.1.2-4", "MQTT-3.1.4-4", "MQTT-3.2.2-2")
	covers(t, "311", "MQTT-3.1.2-6", "MQTT-3.1.4-3", "MQTT-3.2.2-1")
	for _, v := range versions {
		r := start(t, NewMemory())
		c := r.connect(v, "c", persistent)
		c.subscribe("t", 1)
		r.connect(v, "pub").publish("t", "old", 1, 1)
		c.receive("t", "old")
		c.close()
		if c = r.connect(v, "c"); c.ack.SessionPresent { // clean start
			t.Errorf("version %d: session present", v)
		}
		c.ping()
		c.silent()
		c.close()
		if c = r.connect(v, "c", persistent); c.ack.SessionPresent {
			t.Errorf("version %d: a session that ended with its connection is there", v)
		}
		r.connect(v, "pub").publish("t", "new", 1, 1)
		c.ping()
		c.silent()
		r.stop()
	}
}

func TestSecondConnectCloses(t *testing.T) {
	covers(t, "5", "MQTT-3.2.0-2")
	covers(t, "311", "MQTT-3.1.0-2", "MQTT-4.8.0-1")
	r := start(t, NewMemory())
	for _, v := range versions {
		c := r.connect(v, "c")
		c.send(&packet.Connect{Version: v, ClientID: "c", CleanStart: true})
		if v == packet.V5 {
			expect[*packet.Disconnect](c)
		}
		c.ended() // without a second CONNACK
		c = r.connect(v, "c")
		c.raw(0x36, 3, 0, 1, 't') // QoS 3
		if v == packet.V5 {
			expect[*packet.Disconnect](c)
		}
		c.ended()
	}
}

func TestRetainedWillWhereRetainIsOff(t *testing.T) {
	covers(t, "5", "MQTT-3.2.2-13")
	r := start(t, NewMemory(), func(c *config.Broker, _ *Options) { c.Retain = false })
	c := r.dial(packet.V5)
	c.send(&packet.Connect{Version: packet.V5, ClientID: "c", CleanStart: true, Will: &packet.Will{Topic: "w", Retain: true}})
	if a := expect[*packet.Connack](c); a.Code != packet.RetainUnsupported {
		t.Errorf("code 0x%02X", a.Code)
	}
	c.ended()
	old := r.connect(packet.V311, "old")
	old.send(&packet.Publish{Topic: []byte("t"), Retain: true, Payload: []byte("x")})
	old.ping()
	if got := r.b.Retained("#"); len(got) != 0 {
		t.Errorf("%v is retained", got[0])
	}
}

func TestIDIsFreeAfterANegativePUBREC(t *testing.T) {
	covers(t, "5", "MQTT-4.3.3-9")
	f := newFaulty()
	r := start(t, f)
	s := r.connect(packet.V5, "sub", persistent)
	s.subscribe("t", 2)
	p := r.connect(packet.V5, "pub")
	f.set(func(f *faulty) { f.refuse = ErrFull })
	m := &packet.Publish{Topic: []byte("t"), QoS: 2, PID: 5, Payload: []byte("x")}
	p.send(m)
	if a := p.acked(packet.PUBREC, 5); a.Code != packet.QuotaExceeded {
		t.Errorf("code 0x%02X", a.Code)
	}
	f.set(func(f *faulty) { f.refuse = nil })
	p.publish("t", "y", 2, 5)
	s.take("t", "y")
}

func TestRouteCacheIsBounded(t *testing.T) {
	tr := newTrie(func(*session, string) bool { return true })
	for range 1000 {
		tr.add(&sub{filter: "#", sess: &session{}, Subscription: Subscription{Filter: "#"}})
	}
	for i := range 1000 {
		tr.route(n("t", i))
	}
	if tr.wishes > maxWishes || len(tr.routes) > maxWishes/1000 {
		t.Errorf("%d wishes in %d routes", tr.wishes, len(tr.routes))
	}
}

// A retained message that is on disk stays known as such when its successor is not
// kept there: deleted is deleted, also after a restart.
func TestDeletedRetainedMessageStaysDeleted(t *testing.T) {
	f := newFaulty()
	r := start(t, f)
	if _, err := r.b.Local("bridge").Consumer("cloud", []string{"t"}, nil); err != nil {
		t.Fatal(err)
	}
	p := r.connect(packet.V5, "pub")
	keep := func(payload string, qos byte) {
		p.send(&packet.Publish{Topic: []byte("t"), Retain: true, Payload: []byte(payload), QoS: qos, PID: uint16(qos)})
	}
	keep("old", 1)
	p.acked(packet.PUBACK, 1)
	f.set(func(f *faulty) { f.refuse = ErrFull })
	keep("new", 0)
	p.ping()
	f.set(func(f *faulty) { f.refuse = nil })
	keep("", 1)
	p.acked(packet.PUBACK, 1)
	r.stop()
	r = start(t, f)
	if got := r.b.Retained("t"); len(got) != 0 {
		t.Errorf("%q is back", got[0].Payload)
	}
}
