package embeddedbroker

import (
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"busgate/embeddedbroker/packet"
)

func TestMembersOfAGroupGetTheirOwnQoS(t *testing.T) {
	covers(t, "5", "MQTT-4.8.2-3")
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory())
		var members []*client
		for qos := range byte(3) {
			c := r.connect(packet.V5, n("m", int(qos)))
			c.subscribe("$share/g/t", qos)
			members = append(members, c)
		}
		p := r.connect(packet.V5, "pub")
		for i := range 9 {
			p.publish("t", n("", i), 2, 1)
			if m := members[i%3].take("t", n("", i)); m.QoS != byte(i%3) {
				t.Errorf("QoS %d for a member that subscribed with %d", m.QoS, i%3)
			}
			synctest.Wait()
		}
	})
}

func TestSharedSubscription(t *testing.T) {
	synctest.Test(t, testSharedSubscription)
}

func testSharedSubscription(t *testing.T) {
	r := start(t, NewMemory())
	a, b, alone := r.connect(packet.V5, "a"), r.connect(packet.V311, "b"), r.connect(packet.V5, "alone")
	a.subscribe("$share/g/t/#", 1)
	b.subscribe("$share/g/t/#", 1)
	alone.subscribe("t/#", 1)
	p := r.connect(packet.V5, "pub")
	for i := range 10 {
		p.publish("t/x", n("", i), 1, uint16(i+1))
		alone.take("t/x", n("", i))
		c := a
		if i%2 == 1 {
			c = b
		}
		c.take("t/x", n("", i))
		c.ping()
	}
	b.close()
	synctest.Wait()
	p.publish("t/x", "rest", 1, 1)
	a.take("t/x", "rest")
	p.send(&packet.Publish{Topic: []byte("t/r"), Retain: true, QoS: 1, PID: 2, Payload: []byte("r")})
	p.acked(packet.PUBACK, 2)
	a.take("t/r", "r")
	c := r.connect(packet.V5, "c")
	c.subscribe("$share/g/t/#", 1)
	c.ping()
	c.silent() // no retained messages for shared subscriptions
}

func TestMessagesOfAMemberThatLeftGoToAnother(t *testing.T) {
	covers(t, "5", "MQTT-4.8.2-5")
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory())
		a := r.connect(packet.V5, "a", prop(packet.ReceiveMaximum, 2))
		a.subscribe("$share/g/t", 2)
		p := r.connect(packet.V5, "pub")
		p.publish("t", "one", 1, 1)
		p.publish("t", "two", 2, 2)
		p.publish("t", "three", 2, 3)
		a.receive("t", "one")
		a.receive("t", "two")
		b := r.connect(packet.V5, "b")
		b.subscribe("$share/g/t", 2)
		a.close()
		b.take("t", "one")
		b.take("t", "three")
		b.ping()
		b.silent() // "two" was begun at QoS 2
	})
}

// A client with an own and a shared subscription gets a copy of each, and both
// are deliveries of their own: also for the store.
func TestOwnAndSharedSubscriptionGiveTwoCopies(t *testing.T) {
	covers(t, "5", "MQTT-3.3.4-5")
	for _, open := range []option{clean, persistent} {
		r := start(t, NewMemory())
		c := r.connect(packet.V5, "c", open)
		for i, f := range []packet.Filter{{Filter: "t", QoS: 1}, {Filter: "$share/g/t", QoS: 2}, {Filter: "$share/h/+", QoS: 2}} {
			c.subscribeWith(packet.Props{}.WithUint(packet.SubscriptionID, uint32(i+1)), f)
		}
		p := r.connect(packet.V5, "pub")
		p.publish("t", "x", 2, 1)
		var got []*packet.Publish
		var ids []uint32 // each carries its own
		for range 3 {
			m := c.receive("t", "x")
			got, ids = append(got, m), append(ids, m.SubIDs...)
		}
		if len(ids) == 0 || ids[0] != 1 || len(got[1].SubIDs) != 1 || len(got[2].SubIDs) != 1 {
			t.Errorf("ids %v", ids)
		}
		if slices.Sort(ids); !slices.Equal(ids, []uint32{1, 2, 3}) {
			t.Errorf("ids %v", ids)
		}
		if got[0].QoS != 1 || got[1].QoS != 2 || got[2].QoS != 2 || got[1].PID == got[0].PID || got[1].PID == got[2].PID {
			t.Fatalf("%+v %+v %+v", got[0], got[1], got[2])
		}
		c.complete(got[0])
		c.complete(got[2])
		c.ping()
		c.close()
		c = r.connect(packet.V5, "c", open)
		if c.ack.SessionPresent {
			if m := c.take("t", "x"); !m.Dup || m.PID != got[1].PID {
				t.Errorf("%+v", m)
			}
		}
		c.ping()
		c.silent()
		r.stop()
	}
}

// What waits for a persistent member goes to the others when its session ends,
// however that happens; what was begun at QoS 2 does not.
func TestEstateOfAPersistentMember(t *testing.T) {
	const total = 700 // several windows
	for _, how := range []string{"expires", "starts clean", "dropped by hand"} {
		synctest.Test(t, func(t *testing.T) {
			f := newFaulty()
			r := start(t, f)
			a := r.connect(packet.V5, "a", persistent, prop(packet.ReceiveMaximum, 4))
			a.subscribe("$share/g/t/+", 2)
			a.subscribe("own", 1)
			p := r.connect(packet.V5, "pub")
			for i := range total {
				p.publish(n("t/", i%3), n("", i), byte(1+i%2), 1)
			}
			p.publish("own", "mine", 1, 1)
			var begun []*packet.Publish
			for i := range 4 {
				begun = append(begun, a.receive(n("t/", i%3), n("", i)))
			}
			a.complete(begun[0])
			a.send(&packet.Ack{Type: packet.PUBREC, PID: begun[1].PID})
			a.find(packet.PUBREL, begun[1].PID)
			a.receive("t/1", "4") // in the place of the first; 2 and 4 are not acknowledged, 3 is begun
			a.close()
			synctest.Wait()
			b, c := r.connect(packet.V311, "b"), r.connect(packet.V5, "c", persistent)
			b.subscribe("$share/g/t/+", 2)
			c.subscribe("$share/g/t/+", 1)
			f.set(func(f *faulty) { f.refuse = ErrBusy }) // at first the store takes nothing more
			switch how {
			case "expires":
				nap(3601 * time.Second)
			case "starts clean":
				go func() { nap(time.Second); f.set(func(f *faulty) { f.refuse = nil }) }()
				a = r.connect(packet.V5, "a", persistent, clean)
				a.ping()
				a.silent()
			default:
				r.b.DropSession("a")
			}
			nap(time.Second)
			f.set(func(f *faulty) { f.refuse = nil })
			nap(time.Minute)
			got := map[string]int{}
			last := map[*client]int{}
			for _, x := range []*client{b, c} {
				for {
					synctest.Wait()
					x.mu.Lock()
					none := len(x.got) == 0
					x.mu.Unlock()
					if none {
						break
					}
					m := expect[*packet.Publish](x)
					i, _ := strconv.Atoi(string(m.Payload))
					if got[string(m.Payload)]++; i < last[x] {
						t.Fatalf("%s: %d comes after %d", how, i, last[x])
					}
					last[x] = i
					x.complete(m)
				}
			}
			for i := range total {
				want := 1
				if i == 0 || i == 1 || i == 3 {
					want = 0
				}
				if got[n("", i)] != want {
					t.Errorf("%s: message %d came %d times, want %d", how, i, got[n("", i)], want)
				}
			}
			if got["mine"] != 0 || len(last) != 2 {
				t.Errorf("%s: %v", how, last)
			}
			r.b.mu.Lock()
			if len(r.b.estates) != 0 {
				t.Errorf("%s: an estate is left", how)
			}
			r.b.mu.Unlock()
			if how != "starts clean" && f.sessions["a"] != nil {
				t.Errorf("%s: the session is in the store", how)
			}
		})
	}
}

// An estate that a stop cuts short goes on after the next start.
func TestEstateOverARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFaulty()
		r := start(t, f)
		a := r.connect(packet.V5, "a", persistent)
		a.subscribe("$share/g/t", 1)
		a.close()
		synctest.Wait()
		b := r.connect(packet.V311, "b", persistent)
		p := r.connect(packet.V5, "pub")
		for i := range 10 {
			p.publish("t", n("", i), 1, 1)
		}
		b.subscribe("$share/g/t", 1)
		f.set(func(f *faulty) { f.refuse = ErrBusy })
		nap(3601 * time.Second)
		r.stop()
		f.set(func(f *faulty) { f.refuse = nil })
		r = start(t, f)
		nap(time.Second)
		b = r.connect(packet.V311, "b", persistent)
		for i := range 10 {
			b.take("t", n("", i))
		}
		b.ping()
		b.silent()
		if f.sessions["a"] != nil {
			t.Error("the session is in the store")
		}
	})
}
