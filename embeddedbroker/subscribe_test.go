package embeddedbroker

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"busgate/embeddedbroker/packet"
)

func TestDeliveriesThatWereBegunSurviveUnsubscribe(t *testing.T) {
	covers(t, "5", "MQTT-3.10.4-2", "MQTT-3.10.4-3", "MQTT-3.10.4-4")
	covers(t, "311", "MQTT-3.10.4-2", "MQTT-3.10.4-3", "MQTT-3.10.4-4")
	for _, v := range versions {
		store := NewMemory()
		r := start(t, store)
		c := r.connect(v, "c", persistent)
		c.subscribe("t", 2)
		p := r.connect(v, "pub")
		p.publish("t", "1", 2, 1)
		p.publish("t", "2", 1, 1)
		p.publish("t", "3", 2, 1)
		m := c.receive("t", "1")
		c.receive("t", "2")
		c.receive("t", "3")
		c.send(&packet.Unsubscribe{PID: 7, Filters: []string{"t"}})
		if u := expect[*packet.Unsuback](c); u.PID != 7 {
			t.Errorf("id %d", u.PID)
		}
		p.publish("t", "4", 2, 1)
		c.complete(m)
		c.ping()
		c.silent()
		c.close()
		c = r.connect(v, "c", persistent) // the others are as open as before
		for _, payload := range []string{"2", "3"} {
			if m := c.take("t", payload); !m.Dup {
				t.Errorf("version %d: %+v", v, m)
			}
		}
		r.stop()
		r = start(t, store)
		c = r.connect(v, "c", persistent)
		r.connect(v, "pub").publish("t", "5", 2, 1) // nor does it come back with a restart
		c.ping()
		c.silent()
		r.stop()
	}
}

func TestNamesAreNotNormalised(t *testing.T) {
	covers(t, "5", "MQTT-1.5.4-3", "MQTT-3.10.4-1", "MQTT-4.7.3-4")
	covers(t, "311", "MQTT-1.5.3-3", "MQTT-4.7.3-4", "MQTT-3.10.4-1")
	r := start(t, NewMemory())
	names := []string{"a/b", "a//b", "A/b", "\ufeffa/b", "a/b/", "/a/b", "a/\u00e4", "a/a\u0308", "a /b", "a%2Fb"}
	for _, v := range versions {
		for _, own := range names { // like the others, and none of them
			c := r.connect(v, "c")
			c.subscribe(own, 0)
			for _, f := range names {
				c.publish(f, f, 0, 0)
			}
			c.receive(own, own)
			c.ping()
			c.silent()
			c.close()
		}
		c := r.connect(v, "c")
		for _, f := range []string{"a/b", "a//b", "A/b", "\ufeffa/b", "a/b/"} {
			c.subscribe(f, 0)
		}
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
		c.publish("b", "", 0, 0)
		c.receive("b", "")
		c.send(&packet.Unsubscribe{PID: 300, Filters: []string{"never", "nor this"}})
		if u := expect[*packet.Unsuback](c); u.PID != 300 {
			t.Errorf("%+v", u)
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
		store := NewMemory()
		r := start(t, store)
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
		if v == packet.V5 { // all of the former goes, not its QoS alone
			c.subscribeWith(packet.Props{}.WithUint(packet.SubscriptionID, 7), packet.Filter{Filter: "o", NoLocal: true, RetainAsPublished: true})
			c.subscribeWith(nil, packet.Filter{Filter: "o"})
			c.send(&packet.Publish{Topic: []byte("o"), Retain: true, Payload: []byte("own")})
			if m := c.receive("o", "own"); m.Retain || m.SubIDs != nil {
				t.Errorf("%+v", m)
			}
		}
		r.stop()
		r = start(t, store)
		c = r.connect(v, "c", persistent)
		r.connect(v, "pub").publish("r/4", "late", 2, 1)
		if m := c.take("r/4", "late"); m.QoS != 2 { // as it was replaced
			t.Errorf("version %d: QoS %d after a restart", v, m.QoS)
		}
		r.stop()
	}
}

func TestSubscriptionsOfASessionAreBounded(t *testing.T) {
	for v, no := range map[byte]byte{packet.V31: 0, packet.V311: 0x80, packet.V5: packet.QuotaExceeded} {
		r := start(t, NewMemory())
		c := r.connect(v, "c")
		many := &packet.Subscribe{PID: 1}
		for i := range maxSubscriptions + 2 {
			many.Filters = append(many.Filters, packet.Filter{Filter: n("t/", i)})
		}
		c.send(many)
		s := expect[*packet.Suback](c)
		if s.Codes[maxSubscriptions-1] != 0 || s.Codes[maxSubscriptions] != no {
			t.Errorf("version %d: codes 0x%02X 0x%02X", v, s.Codes[maxSubscriptions-1], s.Codes[maxSubscriptions])
		}
		if x := r.b.Stats(); x.Subscriptions != maxSubscriptions {
			t.Errorf("version %d: %d subscriptions", v, x.Subscriptions)
		}
		r.stop()
	}
}

// many are filters that take several turns.
func many() (fs []packet.Filter, names []string) {
	for i := range 10 * filtersAtOnce {
		names = append(names, n("f/", i))
		fs = append(fs, packet.Filter{Filter: names[i], QoS: 1})
	}
	return fs, names
}

// hung is how many subscriptions all clients together have.
func (r *rig) hung() int {
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	return r.b.subs.count
}

// A large SUBSCRIBE takes turns with the others. What its client gets still comes
// behind SUBACK: the retained messages, and what is published meanwhile after
// the retained one of the same topic.
func TestALargeSubscribeTakesTurns(t *testing.T) {
	for _, v := range versions {
		for _, opts := range [][]option{nil, {persistent}} {
			synctest.Test(t, func(t *testing.T) {
				r := start(t, NewMemory())
				defer r.stop()
				fs, names := many()
				l := r.b.Local("x")
				keep := func(topic string) {
					if err := l.Publish(&Message{Topic: topic, Payload: []byte("kept"), QoS: 1, Retain: true}, nil); err != nil {
						t.Fatal(err)
					}
				}
				first, last := names[0], names[len(names)-1]
				keep(first)
				keep(last)
				c := r.connect(v, "c", opts...)
				c.send(&packet.Subscribe{PID: 1, Filters: fs})
				time.Sleep(9*breath/2 + breath/4)
				if got := r.hung(); got != 5*filtersAtOnce {
					t.Errorf("version %d: after %v there are %d of %d", v, 9*breath/2, got, len(fs))
				}
				if err := l.Publish(&Message{Topic: first, Payload: []byte("live"), QoS: 1}, nil); err != nil {
					t.Fatal(err)
				}
				if a := expect[*packet.Suback](c); len(a.Codes) != len(fs) || r.hung() != len(fs) {
					t.Errorf("version %d: %d codes, %d subscriptions", v, len(a.Codes), r.hung())
				}
				c.take(first, "kept")
				c.take(first, "live")
				c.take(last, "kept")
				c.send(&packet.Unsubscribe{PID: 2, Filters: names})
				time.Sleep(9*breath/2 + breath/4)
				if got := r.hung(); got != 5*filtersAtOnce {
					t.Errorf("version %d: after %v there are still %d of %d", v, 9*breath/2, got, len(fs))
				}
				if a := expect[*packet.Unsuback](c); v == packet.V5 && len(a.Codes) != len(fs) || r.hung() != 0 {
					t.Errorf("version %d: %d codes, %d subscriptions", v, len(a.Codes), r.hung())
				}
				c.ping()
				c.silent()
			})
		}
	}
}

// Whoever takes the session in the middle of it finds what the store will have.
func TestALargeSubscribeIsOvertaken(t *testing.T) {
	for _, unsubscribe := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			store := NewMemory()
			r := start(t, store)
			fs, names := many()
			c := r.connect(packet.V5, "c", persistent)
			c.send(&packet.Subscribe{PID: 1, Filters: fs})
			if unsubscribe {
				expect[*packet.Suback](c)
				c.send(&packet.Unsubscribe{PID: 2, Filters: names})
			}
			time.Sleep(9*breath/2 + breath/4)
			d := r.connect(packet.V5, "c", persistent)
			if !d.ack.SessionPresent {
				t.Error("the session is gone")
			}
			expect[*packet.Disconnect](c)
			c.ended()
			d.ping()
			was := r.hung()
			if was != 5*filtersAtOnce {
				t.Errorf("%d subscriptions", was)
			}
			r.stop()
			r = start(t, store)
			defer r.stop()
			if got := r.hung(); got != was {
				t.Errorf("%d subscriptions after a restart, %d before", got, was)
			}
		})
	}
}

// Who subscribes to many retained messages waits before the next packet.
func TestRetainedMessagesAreToil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, j := watched(t)
		l := r.b.Local("x")
		const kept = 1000
		for i := range kept {
			if err := l.Publish(&Message{Topic: n("t/", i), Payload: []byte("x"), Retain: true}, nil); err != nil {
				t.Fatal(err)
			}
		}
		c := r.connect(packet.V311, "c")
		began := time.Now()
		const rounds = 200
		for range rounds {
			c.subscribe("t/+", 0)
			for range kept {
				expect[*packet.Publish](c)
			}
		}
		want := rounds*(filterToil+kept*retainedToil) - toilBurst
		if d := time.Since(began); d < want-toilRest || d > want+toilRest {
			t.Errorf("%d retained messages took %v, want some %v", rounds*kept, d, want)
		}
		if j.about("is slowed") == 0 {
			t.Errorf("nobody is told\n%s", j.all())
		}
	})
}
