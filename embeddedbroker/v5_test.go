package embeddedbroker

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/embeddedbroker/packet"
)

func TestAnnounce(t *testing.T) {
	covers(t, "5", "MQTT-3.1.2-28", "MQTT-3.1.3-7", "MQTT-4.12.0-6")
	r := start(t, NewMemory(), func(c *config.Broker, _ *Options) { c.Retain = false; c.SessionExpiry = time.Hour })
	c := r.connect(packet.V5, "", prop(packet.SessionExpiry, 0xFFFFFFFF), func(p *packet.Connect) { p.CleanStart = false })
	want := map[byte]uint32{packet.RetainAvailable: 0, packet.MaximumPacketSize: 1 << 20, packet.ReceiveMaximum: receiveMax,
		packet.TopicAliasMaximum: inboundAlias, packet.SessionExpiry: 3600}
	for id, v := range want {
		if got, ok := c.ack.Props.Uint(id); !ok || got != v {
			t.Errorf("property 0x%02X: %d %v, want %d", id, got, ok, v)
		}
	}
	for _, id := range []byte{packet.ResponseInfo, packet.AuthMethod, packet.ReasonString} { // neither asked for nor used
		if c.ack.Props.Has(id) {
			t.Errorf("property 0x%02X is announced", id)
		}
	}
	if id, _ := c.ack.Props.Bytes(packet.AssignedClientID); !strings.HasPrefix(string(id), "auto-") {
		t.Errorf("assigned client id %q", id)
	}
	d := r.connect(packet.V5, "named", prop(packet.SessionExpiry, 10))
	if d.ack.Props.Has(packet.AssignedClientID) || d.ack.Props.Has(packet.SessionExpiry) {
		t.Error("what the client asked for is announced")
	}
}

func TestEmptyClientID(t *testing.T) {
	covers(t, "5", "MQTT-3.1.3-6", "MQTT-3.1.3-7", "MQTT-3.2.2-16")
	covers(t, "311", "MQTT-3.1.3-6", "MQTT-3.1.3-7", "MQTT-3.1.3-8", "MQTT-3.2.2-5")
	r := start(t, NewMemory())
	for _, x := range []struct {
		version byte
		clean   bool
		code    byte
	}{{packet.V31, true, 2}, {packet.V311, false, 2}, {packet.V311, true, 0}, {packet.V5, false, 0}} {
		c := r.dial(x.version)
		hello := &packet.Connect{Version: x.version, CleanStart: x.clean}
		if x.version == packet.V5 {
			persistent(hello)
		}
		c.send(hello)
		if a := expect[*packet.Connack](c); a.Code != x.code {
			t.Errorf("version %d clean %v: code %d, want %d", x.version, x.clean, a.Code, x.code)
		} else if x.version == packet.V5 {
			id, _ := a.Props.Bytes(packet.AssignedClientID)
			again := r.dial(packet.V5)
			again.send(&packet.Connect{Version: packet.V5})
			if other, _ := expect[*packet.Connack](again).Props.Bytes(packet.AssignedClientID); len(id) == 0 || bytes.Equal(id, other) {
				t.Errorf("assigned %q and %q", id, other)
			}
			if back := r.connect(packet.V5, string(id), persistent); !back.ack.SessionPresent {
				t.Errorf("%q is not the name of the session", id)
			}
		} else if x.code == 0 {
			again := r.dial(x.version)
			again.send(&packet.Connect{Version: x.version, CleanStart: true})
			expect[*packet.Connack](again)
			c.ping() // it was not taken over
		}
		if x.code != 0 {
			c.ended()
		}
	}
}

func TestPropertiesTravelUnchanged(t *testing.T) {
	covers(t, "5", "MQTT-3.1.2-29", "MQTT-3.3.2-4", "MQTT-3.3.2-15", "MQTT-3.3.2-16", "MQTT-3.3.2-17", "MQTT-3.3.2-18",
		"MQTT-3.3.2-20")
	r := start(t, NewMemory())
	props := packet.Props{}.WithUser("z", "1").WithUint(packet.PayloadFormat, 1).WithUser("a", "2").WithBytes(packet.ContentType, []byte("c")).
		WithBytes(packet.ResponseTopic, []byte("r/t")).WithBytes(packet.CorrelationData, []byte{0, 255}).WithUser("z", "3")
	p := r.connect(packet.V5, "pub")
	for _, open := range []option{clean, persistent} {
		c := r.connect(packet.V5, "c", open)
		c.subscribe("t", 1)
		if !c.ack.SessionPresent {
			p.send(&packet.Publish{Topic: []byte("t"), QoS: 1, PID: 3, Props: props, Payload: []byte("x")})
			if a := p.acked(packet.PUBACK, 3); len(a.Props) > 0 {
				t.Errorf("PUBACK has % x", a.Props)
			}
		}
		if m := c.take("t", "x"); !bytes.Equal(m.Props, props) {
			t.Errorf("got % x, want % x", m.Props, props)
		}
		c.close()
	}
	old := r.connect(packet.V311, "old")
	old.subscribe("t", 1)
	p.send(&packet.Publish{Topic: []byte("t"), Props: props, Payload: []byte("x")})
	old.receive("t", "x")
}

func TestOverlappingSubscriptionsGiveOneCopy(t *testing.T) {
	covers(t, "5", "MQTT-3.3.4-2", "MQTT-3.3.4-3", "MQTT-3.3.4-4")
	covers(t, "311", "MQTT-3.3.5-1")
	r := start(t, NewMemory())
	c := r.connect(packet.V5, "c")
	sub := func(filter string, qos byte, id uint32, rap bool) {
		t.Helper()
		c.subscribeWith(packet.Props{}.WithUint(packet.SubscriptionID, id), packet.Filter{Filter: filter, QoS: qos, RetainAsPublished: rap})
	}
	sub("a/#", 0, 7, false)
	sub("a/+", 2, 300, true)
	sub("b/#", 1, 9, false)
	p := r.connect(packet.V5, "pub")
	p.send(&packet.Publish{Topic: []byte("a/b"), QoS: 1, PID: 1, Retain: true, Payload: []byte("x")})
	p.acked(packet.PUBACK, 1)
	m := c.take("a/b", "x")
	slices.Sort(m.SubIDs)
	if m.QoS != 1 || !m.Retain || !slices.Equal(m.SubIDs, []uint32{7, 300}) {
		t.Errorf("%+v", m)
	}
	sub("c/#", 2, 1, false) // the highest comes first here
	sub("c/+", 0, 2, false)
	p.publish("c/d", "y", 1, 2)
	if m := c.take("c/d", "y"); m.QoS != 1 {
		t.Errorf("QoS %d", m.QoS)
	}
	c.ping()
	c.silent()
	sub("a/b", 1, 11, false) // the retained one, for this subscription alone
	if m := c.take("a/b", "x"); !m.Retain || !slices.Equal(m.SubIDs, []uint32{11}) {
		t.Errorf("%+v", m)
	}
	c = r.connect(packet.V5, "sleeper", persistent) // what the store keeps has them too
	sub("s/#", 1, 7, false)
	sub("s/+", 1, 300, false)
	c.close()
	p.publish("s/b", "z", 1, 3)
	c = r.connect(packet.V5, "sleeper", persistent)
	m = c.take("s/b", "z")
	if slices.Sort(m.SubIDs); !slices.Equal(m.SubIDs, []uint32{7, 300}) {
		t.Errorf("%+v", m)
	}
	for _, v := range versions { // without ids: the highest QoS, be it first or last
		c := r.connect(v, n("plain", int(v)))
		c.subscribeWith(nil, packet.Filter{Filter: "d/#", QoS: 2}, packet.Filter{Filter: "d/+"}, packet.Filter{Filter: "e/#"}, packet.Filter{Filter: "e/+", QoS: 2})
		for _, topic := range []string{"d/x", "e/x"} {
			p.publish(topic, "x", 1, 1)
			if m := c.take(topic, "x"); m.QoS != 1 {
				t.Errorf("version %d: %s at QoS %d", v, topic, m.QoS)
			}
		}
		c.ping()
		c.silent()
	}
}

func TestNoLocalAndRetainAsPublished(t *testing.T) {
	covers(t, "5", "MQTT-3.3.1-12", "MQTT-3.3.1-13", "MQTT-3.8.3-3")
	covers(t, "311", "MQTT-3.3.1-9")
	r := start(t, NewMemory())
	c := r.connect(packet.V5, "c")
	c.subscribeWith(nil, packet.Filter{Filter: "t", QoS: 1, NoLocal: true}, packet.Filter{Filter: "u", QoS: 0, NoLocal: true})
	c.subscribe("u/#", 1)
	other := r.connect(packet.V5, "other")
	other.subscribeWith(nil, packet.Filter{Filter: "#", QoS: 0, RetainAsPublished: true})
	var plain []*client
	for _, v := range versions {
		plain = append(plain, r.connect(v, n("plain", int(v))))
		plain[len(plain)-1].subscribe("#", 0)
	}
	c.publish("t", "own", 0, 0)
	c.publish("u", "both", 0, 0)
	c.receive("u", "both") // the subscription without no-local still wants it
	c.send(&packet.Publish{Topic: []byte("k"), Retain: true, Payload: []byte("kept")})
	c.subscribeWith(nil, packet.Filter{Filter: "k", NoLocal: true})
	c.ping()
	c.silent() // its own, also where it is retained
	for _, w := range []struct{ topic, payload string }{{"t", "own"}, {"u", "both"}, {"k", "kept"}} {
		if m := other.receive(w.topic, w.payload); m.Retain != (w.topic == "k") {
			t.Errorf("%s: RETAIN %v to one that asked for it", w.topic, m.Retain)
		}
		for _, p := range plain {
			if m := p.receive(w.topic, w.payload); m.Retain {
				t.Errorf("%s: RETAIN to an established subscription of version %d", w.topic, p.version)
			}
		}
	}
	other.send(&packet.Publish{Topic: []byte("t"), QoS: 1, PID: 1, Payload: []byte("foreign")})
	other.find(packet.PUBACK, 1)
	c.take("t", "foreign")
}

func TestRetainHandling(t *testing.T) {
	covers(t, "5", "MQTT-3.3.1-9", "MQTT-3.3.1-10", "MQTT-3.3.1-11", "MQTT-3.8.4-4", "MQTT-3.11.3-1",
		"MQTT-3.11.3-2")
	r := start(t, NewMemory())
	p := r.connect(packet.V5, "pub")
	for _, topic := range []string{"r/b", "r/a", "r"} {
		p.send(&packet.Publish{Topic: []byte(topic), Retain: true, QoS: 1, PID: 1, Payload: []byte(topic)})
		p.acked(packet.PUBACK, 1)
	}
	c := r.connect(packet.V5, "c")
	ask := func(handling byte) {
		c.subscribeWith(nil, packet.Filter{Filter: "r/#", QoS: 0, RetainHandling: handling})
	}
	all := func() {
		t.Helper()
		for _, topic := range []string{"r", "r/a", "r/b"} { // ParentLevel, in topic order
			if m := c.receive(topic, topic); !m.Retain || m.QoS != 0 {
				t.Errorf("%+v", m)
			}
		}
	}
	none := func() {
		t.Helper()
		c.ping()
		c.silent()
	}
	ask(2)
	none()
	ask(1) // not new
	none()
	ask(0)
	all()
	c.send(&packet.Unsubscribe{PID: 9, Filters: []string{"r/#", "never"}})
	if a := expect[*packet.Unsuback](c); !bytes.Equal(a.Codes, []byte{0, packet.NoSubscription}) {
		t.Errorf("codes % x", a.Codes)
	}
	ask(1)
	all()
	p.send(&packet.Publish{Topic: []byte("r/a"), Retain: true})
	c.receive("r/a", "")
	c.subscribeWith(nil, packet.Filter{Filter: "r/a"})
	none()
}

func TestRetainFlagNewSub(t *testing.T) {
	covers(t, "5", "MQTT-3.3.1-5")
	covers(t, "311", "MQTT-3.3.1-5", "MQTT-3.3.1-6", "MQTT-3.3.1-8")
	store := NewMemory()
	r := start(t, store)
	p := r.connect(packet.V311, "pub")
	p.send(&packet.Publish{Topic: []byte("r"), Retain: true, QoS: 1, PID: 1, Payload: []byte("former")})
	p.acked(packet.PUBACK, 1)
	p.send(&packet.Publish{Topic: []byte("r"), Retain: true, QoS: 2, PID: 1, Payload: []byte("x")})
	p.acked(packet.PUBREC, 1)
	p.send(&packet.Publish{Topic: []byte("s"), Retain: true, QoS: 1, PID: 2, Payload: []byte("y")})
	p.acked(packet.PUBACK, 2)
	for range 2 {
		for _, v := range versions {
			for i, open := range []option{clean, persistent} {
				c := r.connect(v, "c", open)
				if i == 1 { // one that is repeated says so too
					c.subscribe("s", 1)
					c.receive("s", "y")
					c.close()
					c = r.connect(v, "c", open)
					if m := c.take("s", "y"); !m.Retain || !m.Dup {
						t.Errorf("version %d: repeated as %+v", v, m)
					}
					c.send(&packet.Unsubscribe{PID: 1, Filters: []string{"s"}})
					expect[*packet.Unsuback](c)
				}
				c.subscribe("r", 1)
				if m := c.take("r", "x"); !m.Retain || m.QoS != 1 {
					t.Errorf("version %d %d: %+v", v, i, m)
				}
				c.subscribe("+", 2) // each that matches, with its own QoS
				for _, w := range []struct {
					topic, payload string
					qos            byte
				}{{"r", "x", 2}, {"s", "y", 1}} {
					if m := c.take(w.topic, w.payload); !m.Retain || m.QoS != w.qos {
						t.Errorf("version %d %d: %+v", v, i, m)
					}
				}
				c.ping()
				c.close()
				r.b.DropSession("c")
			}
		}
		r.stop()
		r = start(t, store) // a retained message of a client is on disk
	}
}

func TestTopicAlias(t *testing.T) {
	covers(t, "5", "MQTT-3.1.2-26", "MQTT-3.1.2-27", "MQTT-3.3.2-11", "MQTT-3.3.2-12")
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory())
		c := r.connect(packet.V5, "c", prop(packet.TopicAliasMaximum, 2))
		c.subscribe("#", 0)
		p := r.connect(packet.V5, "pub")
		p.send(&packet.Publish{Topic: []byte("a"), HasAlias: true, Alias: 1, Payload: []byte("1")})
		p.send(&packet.Publish{HasAlias: true, Alias: 1, Payload: []byte("2")})
		p.send(&packet.Publish{Topic: []byte("b"), HasAlias: true, Alias: 1, Payload: []byte("3")})
		p.send(&packet.Publish{HasAlias: true, Alias: 1, Payload: []byte("4")})
		p.publish("c", "5", 0, 0)
		p.publish("c", "6", 0, 0)
		for _, w := range []struct {
			topic, payload string
			alias          uint16
		}{{"a", "1", 1}, {"", "2", 1}, {"b", "3", 2}, {"", "4", 2}, {"c", "5", 0}, {"c", "6", 0}} {
			if m := c.receive(w.topic, w.payload); m.Alias != w.alias {
				t.Errorf("%+v: alias %d", w, m.Alias)
			}
		}
		none, zero := r.connect(packet.V5, "none"), r.connect(packet.V5, "zero", prop(packet.TopicAliasMaximum, 0))
		none.subscribe("#", 0)
		zero.subscribe("c", 0)
		p.publish("c", "7", 0, 0)
		for _, x := range []*client{none, zero} {
			if m := x.receive("c", "7"); m.HasAlias {
				t.Error("an alias for a client that takes none")
			}
		}
		for a := range uint16(inboundAlias) { // all that was announced
			p.send(&packet.Publish{Topic: []byte(n("t", int(a))), HasAlias: true, Alias: a + 1, Payload: []byte("set")})
			none.receive(n("t", int(a)), "set")
		}
		for a := range uint16(inboundAlias) {
			p.send(&packet.Publish{HasAlias: true, Alias: a + 1, Payload: []byte("used")})
			none.receive(n("t", int(a)), "used")
		}
	})
}

func TestAliasesEndWithTheConnection(t *testing.T) {
	covers(t, "5", "MQTT-3.3.2-7")
	r := start(t, NewMemory())
	alias := &packet.Publish{Topic: []byte("a"), HasAlias: true, Alias: 1}
	c := r.connect(packet.V5, "c", persistent, prop(packet.TopicAliasMaximum, 1))
	c.subscribe("a", 0)
	c.send(alias)
	if m := c.receive("a", ""); m.Alias != 1 {
		t.Errorf("%+v", m)
	}
	c.close()
	c = r.connect(packet.V5, "c", persistent, prop(packet.TopicAliasMaximum, 1))
	r.connect(packet.V5, "pub").publish("a", "", 0, 0)
	if m := c.receive("a", ""); m.Alias != 1 { // with the topic: ours are new too
		t.Errorf("%+v", m)
	}
	c.send(&packet.Publish{HasAlias: true, Alias: 1})
	if d := expect[*packet.Disconnect](c); d.Code != packet.ProtocolError {
		t.Errorf("code 0x%02X", d.Code)
	}
}

func TestBridgeBit(t *testing.T) {
	r := start(t, NewMemory())
	c := r.connect(packet.V311, "bridge", func(p *packet.Connect) { p.Bridge = true })
	c.subscribe("t", 0)
	c.publish("t", "own", 0, 0)
	c.ping()
	c.silent()
	p := r.connect(packet.V311, "p")
	p.send(&packet.Publish{Topic: []byte("t"), Retain: true, Payload: []byte("x")})
	if m := c.receive("t", "x"); !m.Retain {
		t.Error("RETAIN is cleared for a bridge")
	}
}
