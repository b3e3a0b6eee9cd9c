package embeddedbroker

import (
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/embeddedbroker/packet"
)

// A client that takes no byte is closed; who publishes to it does not notice.
func TestStuckClientIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, x := range []struct {
			keep  uint16
			limit time.Duration
		}{{0, writeTime}, {60, 90 * time.Second}} {
			r := start(t, NewMemory())
			c := r.connect(packet.V5, "c", keep(x.keep))
			c.subscribe("t", 0)
			c.mu.Lock()
			c.hold = true
			c.mu.Unlock()
			p := r.connect(packet.V5, "pub")
			p.publish("t", "first", 0, 0) // which its reader takes before it holds
			synctest.Wait()
			p.publish("t", "second", 0, 0)
			began := time.Now()
			for r.b.Stats().Clients > 1 && time.Since(began) < time.Hour {
				nap(time.Second)
				if x.keep > 0 {
					c.raw(byte(packet.PINGREQ)<<4, 0) // it is alive, and reads nothing
				}
			}
			if d := time.Since(began); d < x.limit || d > x.limit+3*time.Second {
				t.Errorf("keep-alive %d: closed after %v, want %v", x.keep, d, x.limit)
			}
			if n := r.b.Stats().SlowClosed; n != 1 {
				t.Errorf("keep-alive %d: counted %d", x.keep, n)
			}
			c.mu.Lock()
			c.hold = false
			c.cond.Broadcast()
			c.mu.Unlock()
			r.stop()
		}
	})
}

// Without a clock the time that a session slept before a start does not count:
// it might be years.
func TestExpiryOverARestartWithoutAClock(t *testing.T) {
	for _, known := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			store := NewMemory()
			r := start(t, store)
			c := r.connect(packet.V5, "c", persistent)
			c.send(&packet.Disconnect{})
			c.ended()
			r.stop()
			nap(2 * time.Hour) // the session has one
			r = start(t, store, func(_ *config.Broker, o *Options) { o.ClockKnown = func() bool { return known } })
			nap(time.Second)
			if c := r.connect(packet.V5, "c", persistent); c.ack.SessionPresent == known {
				t.Errorf("clock known %v: session present %v", known, c.ack.SessionPresent)
			}
		})
	}
}

// A will is judged again when it is published, and an empty retained one deletes.
func TestWillsFollowTheRulesOfTheDay(t *testing.T) {
	r := start(t, NewMemory())
	p := r.connect(packet.V5, "pub")
	p.send(&packet.Publish{Topic: []byte("w"), Retain: true, QoS: 1, PID: 1, Payload: []byte("kept")})
	p.acked(packet.PUBACK, 1)
	w := r.connect(packet.V5, "watch")
	w.subscribe("w", 0)
	w.receive("w", "kept")
	r.connect(packet.V5, "a", will("w", "", 1, true)).close()
	w.receive("w", "")
	if got := r.b.Retained("w"); len(got) != 0 {
		t.Errorf("%q is kept", got[0].Payload)
	}
	c := r.connect(packet.V5, "b", will("w", "gone", 0, false))
	cfg := testConfig()
	cfg.ACL = map[string][]config.Rule{"*": {{Verb: "read", Filter: "#"}, {Verb: "write", Filter: "other"}}}
	if err := r.b.Update(cfg); err != nil {
		t.Fatal(err)
	}
	c.close()
	for r.b.Stats().Clients > 2 {
		w.ping()
	}
	w.ping()
	w.silent()
	if n := r.b.Stats().RefusedACL; n != 1 {
		t.Errorf("counted %d", n)
	}
}

// A session over its quota loses its oldest messages, and that is said with
// name, number and time, once for each ladder step.
func TestQuotaIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, j := watched(t, func(c *config.Broker, _ *Options) { c.MaxQueued = 100 })
		c := r.connect(packet.V5, "laptop", persistent)
		c.subscribe("t", 1)
		c.close()
		p := r.connect(packet.V5, "pub")
		for i := range 412 {
			p.publish("t", n("", i), 1, 1)
		}
		nap(2 * lookInterval)
		if n := j.about(`broker: session "laptop" (last seen 20s ago) is over its quota: 312 oldest messages dropped since`) + j.about(`broker: session "laptop" (last seen 10s ago) is over its quota: 312 oldest messages dropped since`); n != 1 {
			t.Errorf("%d lines\n%s", n, j.all())
		}
		c = r.connect(packet.V5, "laptop", persistent)
		for i := range 100 {
			c.take("t", n("", 312+i))
		}
		c.ping()
		c.silent()
		if s := r.b.Stats(); s.DroppedQuota != 312 {
			t.Errorf("counted %d", s.DroppedQuota)
		}
	})
}

// Who waits for its password to be checked leaves the queue when it is cut off,
// and is told when that takes too long.
func TestHashingHasABound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := usersFile(t, "joe:"+HashPassword([]byte("secret"), 1))
		r := start(t, NewMemory(), func(c *config.Broker, _ *Options) { c.Anonymous, c.Users = false, path })
		g := r.b.gate
		g.mu.Lock()
		g.hashing.busy = hashesAtOnce // for ever
		g.mu.Unlock()
		kicked, patient := r.dial(packet.V5), r.dial(packet.V5)
		for _, c := range []*client{kicked, patient} {
			c.send(&packet.Connect{Version: packet.V5, ClientID: "c", CleanStart: true, HasUser: true, User: "joe", HasPassword: true, Password: []byte("secret")})
		}
		synctest.Wait()
		g.mu.Lock()
		if n := len(g.hashing.queue); n != 2 {
			t.Fatalf("%d wait", n)
		}
		g.pushOutLocked(func(*conn) bool { return true })
		g.mu.Unlock()
		began := time.Now()
		kicked.ended()
		if d := time.Since(began); d != 0 {
			t.Errorf("cut off after %v", d)
		}
		if a := expect[*packet.Connack](patient); a.Code != packet.ServerBusy || time.Since(began) != hashWait {
			t.Errorf("code 0x%02X after %v", a.Code, time.Since(began))
		}
		synctest.Wait()
		g.mu.Lock()
		if n := len(g.hashing.queue); n != 0 {
			t.Errorf("%d wait", n)
		}
		g.hashedLocked(&hasher{})
		g.mu.Unlock()
		if code := r.dial(packet.V5).login("joe", "secret"); code != 0 {
			t.Errorf("with room again: 0x%02X", code)
		}
	})
}

// An answer of the wrong kind completes nothing.
func TestAnswerOfTheWrongKind(t *testing.T) {
	covers(t, "5", "MQTT-4.3.2-3", "MQTT-4.3.3-3")
	covers(t, "311", "MQTT-4.3.2-1", "MQTT-4.3.3-1")
	for _, v := range versions {
		r := start(t, NewMemory())
		c := r.connect(v, "c", persistent)
		c.subscribe("t", 2)
		p := r.connect(v, "pub")
		p.publish("t", "one", 1, 1)
		p.publish("t", "two", 2, 2)
		one, two := c.receive("t", "one"), c.receive("t", "two")
		c.send(&packet.Ack{Type: packet.PUBACK, PID: two.PID})
		c.send(&packet.Ack{Type: packet.PUBCOMP, PID: two.PID}) // before its PUBREC
		c.send(&packet.Ack{Type: packet.PUBCOMP, PID: one.PID})
		c.send(&packet.Ack{Type: packet.PUBREC, PID: one.PID})
		if a := c.acked(packet.PUBREL, one.PID); v == packet.V5 && a.Code != packet.PIDNotFound {
			t.Errorf("PUBREL 0x%02X", a.Code)
		}
		c.ping()
		if n := r.b.Stats().UnknownAcks; n != 4 {
			t.Errorf("version %d: counted %d", v, n)
		}
		c.close()
		c = r.connect(v, "c", persistent)
		for _, m := range []*packet.Publish{one, two} {
			if again := c.take("t", string(m.Payload)); !again.Dup || again.PID != m.PID {
				t.Errorf("version %d: %+v", v, again)
			}
		}
		r.stop()
	}
}
