package embeddedbroker

import (
	"testing"
	"testing/synctest"
	"time"

	"busgate/embeddedbroker/packet"
)

func TestWillAtTheEndOfAConnection(t *testing.T) {
	covers(t, "5", "MQTT-3.1.2-7", "MQTT-3.1.2-8", "MQTT-3.1.2-10", "MQTT-3.1.2-14", "MQTT-3.1.2-15", "MQTT-3.14.4-3")
	covers(t, "311", "MQTT-3.1.2-8", "MQTT-3.1.2-10", "MQTT-3.1.2-12", "MQTT-3.1.2-16", "MQTT-3.1.2-17", "MQTT-3.14.4-3")
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory())
		w := r.connect(packet.V5, "watch")
		w.subscribe("will/#", 2)
		for _, v := range versions {
			c := r.connect(v, "c", will("will/a", "gone", 1, true))
			c.send(&packet.Disconnect{})
			c.ended()
			synctest.Wait()
			w.silent() // a DISCONNECT deletes the will

			r.connect(v, "c").close()
			synctest.Wait()
			w.silent() // nor is there one for those who gave none

			gone := n("gone", int(v))
			c = r.connect(v, "c", will("will/a", gone, 1, true))
			c.close()
			if m := w.take("will/a", gone); m.QoS != 1 || m.Retain {
				t.Errorf("version %d: %+v", v, m)
			}
			c = r.connect(v, "c", will("will/b", "", 0, false), keep(10))
			nap(20 * time.Second)
			w.take("will/b", "") // an empty payload is one
			c.close()
			r.connect(v, "c", will("will/d", "passing", 1, false)).close()
			w.take("will/d", "passing")
			late := r.connect(v, "late")
			late.subscribe("will/#", 1)
			if m := late.take("will/a", gone); !m.Retain {
				t.Errorf("version %d: the retained will has no RETAIN", v)
			}
			late.ping()
			late.silent() // the others are not retained
			late.close()

			c = r.connect(v, "c", persistent, will("will/e", "once", 0, false))
			c.close()
			w.take("will/e", "once")
			c = r.connect(v, "c", persistent)
			c.close()
			synctest.Wait()
			w.silent() // it went with that connection
			r.connect(v, "c", persistent, will("will/e", "once", 0, false)).close()
			w.take("will/e", "once")
			r.b.DropSession("c")
			synctest.Wait()
			w.silent() // it was published
			c = r.connect(v, "c", persistent, will("will/e", "never", 0, false))
			c.send(&packet.Disconnect{})
			c.ended()
			synctest.Wait()
			r.b.DropSession("c")
			synctest.Wait()
			w.silent() // it was deleted, not put off to the end of the session
		}
		c := r.connect(packet.V5, "c", will("will/c", "asked", 0, false))
		c.send(&packet.Disconnect{Code: packet.DisconnectWithWill})
		w.take("will/c", "asked")
	})
}

func TestWillProperties(t *testing.T) {
	covers(t, "5", "MQTT-3.1.3-10")
	r := start(t, NewMemory())
	w := r.connect(packet.V5, "watch")
	w.subscribe("w", 1)
	props := packet.Props{}.WithUint(packet.PayloadFormat, 1).WithUint(packet.MessageExpiry, 30).WithBytes(packet.ContentType, []byte("x/y")).
		WithBytes(packet.ResponseTopic, []byte("r")).WithBytes(packet.CorrelationData, []byte{1, 2}).WithUser("a", "b").WithUser("a", "c")
	c := r.connect(packet.V5, "c", will("w", "gone", 1, false), func(p *packet.Connect) { p.Will.Props = props.WithUint(packet.WillDelay, 0) })
	c.close()
	m := w.take("w", "gone")
	if want := props.Without(packet.MessageExpiry); string(m.Props) != string(want) || !m.HasExpiry || m.Expiry != 30 {
		t.Errorf("got % x expiry %d, want % x", m.Props, m.Expiry, want)
	}
}

func TestWillDelay(t *testing.T) {
	covers(t, "5", "MQTT-3.1.3-9")
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory())
		w := r.connect(packet.V5, "watch")
		w.subscribe("w", 0)
		delayed := func(seconds uint32) option {
			return func(p *packet.Connect) {
				p.Will = &packet.Will{Topic: "w", Payload: []byte("gone"), Props: packet.Props{}.WithUint(packet.WillDelay, seconds)}
			}
		}
		expiry := func(s uint32) option {
			return func(p *packet.Connect) { p.CleanStart = false; p.Props = p.Props.WithUint(packet.SessionExpiry, s) }
		}
		wait := func(what string, want time.Duration) {
			t.Helper()
			began := time.Now()
			m := w.receive("w", "gone")
			if d := time.Since(began); d != want {
				t.Errorf("%s: after %v, want %v", what, d, want)
			}
			if m.HasExpiry {
				t.Errorf("%s: an expiry of %d was invented", what, m.Expiry)
			}
		}
		r.connect(packet.V5, "c", expiry(100), delayed(30)).close()
		wait("delay", 30*time.Second)
		r.connect(packet.V5, "c", expiry(10), delayed(30)).close()
		wait("the session ends first", 10*time.Second)
		r.connect(packet.V5, "c", delayed(30)).close()
		wait("the session ends with the connection", 0)

		r.connect(packet.V5, "c", expiry(100), delayed(30)).close()
		nap(20 * time.Second)
		c := r.connect(packet.V5, "c", expiry(100))
		nap(40 * time.Second)
		w.silent() // the client came back
		c.close()

		r.connect(packet.V5, "c", expiry(100), delayed(30)).close()
		nap(time.Second)
		c = r.connect(packet.V5, "c") // a clean start ends the session
		wait("clean start", 0)
		c.close()
	})
}

func TestWillAndTakeover(t *testing.T) {
	covers(t, "5", "MQTT-3.1.4-3")
	covers(t, "311", "MQTT-3.1.4-2")
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory())
		w := r.connect(packet.V311, "watch")
		w.subscribe("w", 0)
		for _, v := range versions {
			a := r.connect(v, "c", persistent, will("w", "gone", 0, false))
			b := r.connect(v, "c", persistent, will("w", "gone", 0, false))
			if v == packet.V5 {
				if d := expect[*packet.Disconnect](a); d.Code != packet.TakenOver {
					t.Errorf("code 0x%02X", d.Code)
				}
			}
			a.ended()
			synctest.Wait()
			w.silent() // the session goes on
			r.connect(v, "c")
			w.receive("w", "gone") // the session ended
			b.t.Log("taken over")
			r.connect(v, "c", persistent, will("w", "gone", 0, false)) // a volatile one had no will
			synctest.Wait()
			w.silent()
			r.b.DropSession("c")
			w.receive("w", "gone")
		}
	})
}

func TestWillAfterACrashAndAfterACleanStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := NewMemory()
		r := start(t, store)
		c := r.connect(packet.V311, "c", persistent, will("w", "gone", 1, false))
		c.ping()
		crashed := start(t, store) // a second process on what the first one left on disk
		w := crashed.connect(packet.V311, "watch")
		w.subscribe("w", 1)
		began := time.Now()
		w.take("w", "gone")
		if d := time.Since(began); d != crashGrace {
			t.Errorf("after %v", d)
		}
		crashed.stop()
		r.stop()

		store = NewMemory()
		r = start(t, store)
		k := r.connect(packet.V311, "keeper", persistent)
		k.subscribe("w", 1)
		k.close()
		synctest.Wait()
		r.connect(packet.V311, "c", persistent, will("w", "gone", 1, false))
		r.stop()
		r = start(t, store)
		r.connect(packet.V311, "keeper", persistent).take("w", "gone")
		nap(2 * crashGrace)
	})
}

// A will that was published, at once or after its delay, is in the store no more.
func TestPublishedWillIsGoneAfterARestart(t *testing.T) {
	covers(t, "5", "MQTT-3.1.2-10")
	covers(t, "311", "MQTT-3.1.2-10")
	synctest.Test(t, func(t *testing.T) {
		store := NewMemory()
		r := start(t, store)
		w := r.connect(packet.V5, "watch")
		w.subscribe("w", 0)
		for _, v := range versions {
			r.connect(v, n("c", int(v)), persistent, will("w", "gone", 0, false)).close()
			w.receive("w", "gone")
		}
		r.connect(packet.V5, "delayed", persistent, will("w", "late", 0, false), func(p *packet.Connect) {
			p.Will.Props = packet.Props{}.WithUint(packet.WillDelay, 30)
		}).close()
		nap(time.Minute)
		w.receive("w", "late")
		nap(time.Minute)
		crashed := start(t, store) // on what the first process left on disk
		w = crashed.connect(packet.V5, "watch")
		w.subscribe("w", 0)
		nap(3 * crashGrace)
		w.silent()
	})
}
