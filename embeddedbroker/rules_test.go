package embeddedbroker

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/embeddedbroker/packet"
)

func TestDeliveriesThatWereBegunSurviveUnsubscribe(t *testing.T) {
	covers(t, "5", "MQTT-3.10.4-2", "MQTT-3.10.4-3", "MQTT-3.10.4-4")
	covers(t, "311", "MQTT-3.10.4-2", "MQTT-3.10.4-3", "MQTT-3.10.4-4")
	for _, v := range versions {
		r := start(t, NewMemory())
		c := r.connect(v, "c", persistent)
		c.subscribe("t", 2)
		p := r.connect(v, "pub")
		p.publish("t", "1", 2, 1)
		m := c.receive("t", "1")
		c.send(&packet.Unsubscribe{PID: 7, Filters: []string{"t"}})
		if u := expect[*packet.Unsuback](c); u.PID != 7 {
			t.Errorf("id %d", u.PID)
		}
		p.publish("t", "2", 2, 1)
		c.complete(m)
		c.ping()
		c.silent()
		r.stop()
	}
}

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

func TestNamesAreNotNormalised(t *testing.T) {
	covers(t, "5", "MQTT-1.5.4-3", "MQTT-3.10.4-1", "MQTT-4.7.3-4")
	covers(t, "311", "MQTT-1.5.3-3", "MQTT-4.7.3-4", "MQTT-3.10.4-1")
	r := start(t, NewMemory())
	for _, v := range versions {
		c := r.connect(v, "c")
		for _, f := range []string{"a/b", "a//b", "A/b", "\ufeffa/b", "a/b/"} {
			c.subscribe(f, 0)
			c.publish(f, f, 0, 0)
			c.receive(f, f)
		}
		c.publish("/a/b", "x", 0, 0)
		c.ping()
		c.silent()
		near := []string{"a/B", "a/+", "/a/b", "\ufeffA/b", "a/b//", "#"}
		c.send(&packet.Unsubscribe{PID: 1, Filters: near}) // like the others, and none of them
		if u := expect[*packet.Unsuback](c); v == packet.V5 && string(u.Codes) != strings.Repeat("\x11", len(near)) {
			t.Errorf("codes % x", u.Codes)
		}
		for _, f := range []string{"a/b", "a//b", "A/b", "\ufeffa/b", "a/b/"} {
			c.publish(f, f, 0, 0)
			c.receive(f, f)
		}
		c.close()
	}
}

func TestClientIDs(t *testing.T) {
	covers(t, "5", "MQTT-3.1.3-2", "MQTT-3.1.3-5")
	covers(t, "311", "MQTT-3.1.3-2", "MQTT-3.1.3-5")
	r := start(t, NewMemory())
	r.connect(packet.V311, "other", persistent)
	for _, v := range versions {
		for _, id := range []string{"a", "0123456789abcdefghijklm", "nopqrstuvwxyzABCDEFGHI", "JKLMNOPQRSTUVWXYZ", "a-very-long-one-with-much-more-than-23-bytes-ä"} {
			c := r.connect(v, id, persistent)
			if c.close(); c.ack.SessionPresent {
				t.Errorf("version %d: %q has the session of another", v, id)
			}
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
		b.ping()
		b.silent()
		p.send(&packet.Ack{Type: packet.PUBREL, PID: 1}) // the sequence goes on although the message has expired
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

func TestAnswersCarryTheirIDs(t *testing.T) {
	covers(t, "5", "MQTT-2.2.1-6", "MQTT-3.8.4-2", "MQTT-3.8.4-3", "MQTT-3.8.4-5", "MQTT-3.8.4-6", "MQTT-3.10.4-5",
		"MQTT-3.10.4-6")
	covers(t, "311", "MQTT-2.3.1-7", "MQTT-3.8.4-2", "MQTT-3.8.4-4", "MQTT-3.8.4-5", "MQTT-3.10.4-5", "MQTT-3.10.4-6")
	r := start(t, NewMemory())
	for _, v := range versions {
		c := r.connect(v, "c")
		c.send(&packet.Subscribe{PID: 65535, Filters: []packet.Filter{{Filter: "a", QoS: 2}, {Filter: "b", QoS: 0}, {Filter: "a", QoS: 1}}})
		if s := expect[*packet.Suback](c); s.PID != 65535 || string(s.Codes) != "\x02\x00\x01" {
			t.Errorf("%+v", s)
		}
		c.send(&packet.Publish{Topic: []byte("a"), QoS: 2, PID: 3}) // the last filter replaced the first
		c.find(packet.PUBREC, 3)
		if m := c.receive("a", ""); m.QoS != 1 {
			t.Errorf("QoS %d", m.QoS)
		}
		c.send(&packet.Unsubscribe{PID: 1, Filters: []string{"never", "a"}})
		if u := expect[*packet.Unsuback](c); u.PID != 1 {
			t.Errorf("%+v", u)
		}
		c.publish("a", "gone", 0, 0) // behind one that never was
		c.ping()
		c.silent()
		c.close()
	}
}

func TestSubscribingAgainReplacesAndInterruptsNothing(t *testing.T) {
	covers(t, "311", "MQTT-3.8.4-3")
	covers(t, "5", "MQTT-3.8.4-3", "MQTT-3.8.4-4")
	for _, v := range versions {
		r := start(t, NewMemory())
		p := r.connect(v, "pub")
		p.send(&packet.Publish{Topic: []byte("r/1"), Retain: true, QoS: 1, PID: 1, Payload: []byte("kept")})
		p.acked(packet.PUBACK, 1)
		c := r.connect(v, "c", persistent)
		c.subscribe("r/+", 1)
		c.take("r/1", "kept")
		p.publish("r/2", "open", 1, 1)
		open := c.receive("r/2", "open")
		for qos := range byte(3) {
			c.subscribe("r/+", qos)
			if m := c.take("r/1", "kept"); !m.Retain || m.QoS != min(qos, 1) {
				t.Errorf("version %d: %+v", v, m)
			}
			p.publish("r/3", "once", 2, 2)
			if m := c.take("r/3", "once"); m.QoS != qos {
				t.Errorf("version %d: QoS %d, want %d", v, m.QoS, qos)
			}
		}
		c.ping()
		c.silent()
		c.close()
		c = r.connect(v, "c", persistent)
		if m := c.take("r/2", "open"); !m.Dup || m.PID != open.PID {
			t.Errorf("version %d: %+v", v, m)
		}
		r.stop()
	}
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

func TestSubscriptionsOfASessionAreBounded(t *testing.T) {
	r := start(t, NewMemory())
	c := r.connect(packet.V5, "c")
	many := &packet.Subscribe{PID: 1}
	for i := range maxSubscriptions + 2 {
		many.Filters = append(many.Filters, packet.Filter{Filter: n("t/", i)})
	}
	c.send(many)
	s := expect[*packet.Suback](c)
	if s.Codes[maxSubscriptions-1] != 0 || s.Codes[maxSubscriptions] != packet.QuotaExceeded {
		t.Errorf("codes 0x%02X 0x%02X", s.Codes[maxSubscriptions-1], s.Codes[maxSubscriptions])
	}
	if x := r.b.Stats(); x.Subscriptions != maxSubscriptions {
		t.Errorf("%d subscriptions", x.Subscriptions)
	}
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
