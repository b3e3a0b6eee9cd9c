package embeddedbroker

import (
	"testing"
	"testing/synctest"

	"busgate/embeddedbroker/packet"
)

func TestSharedSubscription(t *testing.T) {
	covers(t, "5", "MQTT-4.8.2-3")
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
