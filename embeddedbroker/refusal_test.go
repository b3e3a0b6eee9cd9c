package embeddedbroker

import (
	"strings"
	"testing"

	"busgate/config"
	"busgate/embeddedbroker/packet"
)

// rejected connects, sends one packet and wants DISCONNECT with the code.
func rejected(t *testing.T, r *rig, what string, code byte, p ...packet.Packet) {
	t.Helper()
	c := r.connect(packet.V5, "bad")
	for _, x := range p {
		c.try(x)
	}
	for {
		d, ok := c.next().(*packet.Disconnect)
		if ok {
			if d.Code != code {
				t.Errorf("%s: DISCONNECT 0x%02X, want 0x%02X", what, d.Code, code)
			}
			break
		}
	}
	c.ended()
}

func TestProtocolErrors(t *testing.T) {
	covers(t, "5", "MQTT-3.1.0-2", "MQTT-3.3.2-8", "MQTT-3.3.2-9", "MQTT-3.2.2-14", "MQTT-3.2.2-15", "MQTT-3.2.2-17",
		"MQTT-3.3.4-6", "MQTT-3.3.4-7", "MQTT-3.8.3-4", "MQTT-3.14.4-2", "MQTT-4.8.2-1", "MQTT-4.8.2-2", "MQTT-4.12.0-7",
		"MQTT-4.13.1-1", "MQTT-4.13.2-1")
	r := start(t, NewMemory())
	alias := func(topic string, a uint16) packet.Packet {
		return &packet.Publish{Topic: []byte(topic), HasAlias: true, Alias: a, QoS: 1, PID: 1}
	}
	rejected(t, r, "UnknownAlias", packet.ProtocolError, alias("", 3))
	rejected(t, r, "alias 0", packet.BadAlias, alias("t", 0))
	rejected(t, r, "alias over the maximum", packet.BadAlias, alias("t", inboundAlias+1))
	rejected(t, r, "second CONNECT", packet.ProtocolError, &packet.Connect{Version: packet.V5, ClientID: "x"})
	rejected(t, r, "SUBACK from a client", packet.ProtocolError, &packet.Suback{PID: 1, Codes: []byte{0}})
	rejected(t, r, "AUTH", packet.ProtocolError, &packet.Auth{Code: 0x18, Props: packet.Props{}.WithBytes(packet.AuthMethod, []byte("m"))})
	rejected(t, r, "subscription id of a client", packet.ProtocolError, &packet.Publish{Topic: []byte("t"), SubIDs: []uint32{1}})
	rejected(t, r, "RetainHandling3", packet.Malformed, &packet.Subscribe{PID: 1, Filters: []packet.Filter{{Filter: "t", RetainHandling: 3}}})
	rejected(t, r, "no-local on a shared subscription", packet.ProtocolError, &packet.Subscribe{PID: 1, Filters: []packet.Filter{{Filter: "$share/g/t", NoLocal: true}}})
	rejected(t, r, "malformed shared subscription", packet.ProtocolError, &packet.Subscribe{PID: 1, Filters: []packet.Filter{{Filter: "$share/g"}}})
	rejected(t, r, "packet over max_packet", packet.TooLarge, &packet.Publish{Topic: []byte("t"), Payload: make([]byte, 1<<20)})
	many := []packet.Packet{}
	for i := range receiveMax + 1 {
		many = append(many, &packet.Publish{Topic: []byte("t"), QoS: 2, PID: uint16(i + 1)})
	}
	rejected(t, r, "one over receive maximum", packet.ReceiveMaxExceeded, many...)
	r.stop()

	r = start(t, NewMemory(), func(c *config.Broker, _ *Options) { c.Retain = false })
	rejected(t, r, "retain when it is off", packet.RetainUnsupported, &packet.Publish{Topic: []byte("t"), Retain: true})
}

func TestConnectErrors(t *testing.T) {
	covers(t, "5", "MQTT-3.1.0-1", "MQTT-3.1.2-1", "MQTT-3.1.2-2", "MQTT-3.1.4-1", "MQTT-3.2.2-7", "MQTT-3.2.2-8", "MQTT-3.14.0-1",
		"MQTT-4.12.0-1")
	covers(t, "311", "MQTT-3.1.0-1", "MQTT-3.1.2-1", "MQTT-3.1.2-2", "MQTT-3.1.2-3", "MQTT-3.1.4-1", "MQTT-3.2.2-6",
		"MQTT-2.2.2-2")
	r := start(t, NewMemory())
	for _, x := range []struct {
		name    string
		version byte
		raw     string
		code    int // -1 = closed without a word
	}{
		{"level 6", packet.V5, "\x10\x0f\x00\x04MQTT\x06\x02\x00\x00\x00\x00\x02id", int(packet.BadVersion)},
		{"level 2", packet.V311, "\x10\x0e\x00\x04MQTT\x02\x02\x00\x00\x00\x02id", 1},
		{"wrong name", packet.V311, "\x10\x0e\x00\x04MQTX\x04\x02\x00\x00\x00\x02id", -1},
		{"reserved bit in 5.0", packet.V5, "\x10\x0f\x00\x04MQTT\x05\x03\x00\x00\x00\x00\x02id", int(packet.Malformed)},
		{"reserved bit in 3.1.1", packet.V311, "\x10\x0e\x00\x04MQTT\x04\x03\x00\x00\x00\x02id", -1},
		{"authentication method", packet.V5, "\x10\x13\x00\x04MQTT\x05\x02\x00\x00\x04\x15\x00\x01m\x00\x02id", int(packet.BadAuthMethod)},
		{"PUBLISH first", packet.V311, "\x30\x03\x00\x01t", -1},
		{"PINGREQ first", packet.V5, "\xc0\x00", -1},
		{"CONNECT of 256 MiB", packet.V311, "\x10\xff\xff\xff\x7f", -1},
		{"PUBLISH of 256 MiB", packet.V311, "\x30\xff\xff\xff\x7f", -1},
		{"length of five bytes", packet.V311, "\x10\x80\x80\x80\x80\x01", -1},
	} {
		c := r.dial(x.version)
		c.raw([]byte(x.raw)...)
		if x.code >= 0 {
			if a := expect[*packet.Connack](c); int(a.Code) != x.code {
				t.Errorf("%s: code 0x%02X, want 0x%02X", x.name, a.Code, x.code)
			}
		}
		c.ended()
	}
}

func TestSysPublish(t *testing.T) {
	covers(t, "311", "MQTT-3.3.5-2")
	reserved := func(_ *config.Broker, o *Options) {
		o.Reserved = func(topic string) bool { return strings.HasSuffix(topic, "/state") }
	}
	r := start(t, NewMemory(), reserved)
	w := r.connect(packet.V5, "w")
	w.subscribe("#", 0)
	w.subscribe("$SYS/#", 0)
	for _, topic := range []string{"$SYS/broker/version", "$share/g/t", "busgate/x/y/state"} {
		c := r.connect(packet.V5, "c")
		c.send(&packet.Publish{Topic: []byte(topic), QoS: 1, PID: 1, Payload: []byte("x")})
		if a := c.acked(packet.PUBACK, 1); a.Code != packet.NotAuthorized {
			t.Errorf("%s: 0x%02X", topic, a.Code)
		}
		c.close()
		c = r.connect(packet.V311, "c")
		c.publish(topic, "x", 1, 1)
		c.publish(topic, "x", 2, 2)
		c.publish(topic, "x", 0, 0)
		c.ping()
		c.close()
	}
	w.ping()
	w.silent()
	if s := r.b.Stats(); s.RefusedReserved != 12 {
		t.Errorf("counted %d", s.RefusedReserved)
	}
	c := r.connect(packet.V311, "c")
	c.publish("$SYS/broker/connection/bridge1/state", "1", 1, 1)
	w.receive("$SYS/broker/connection/bridge1/state", "1")
}

func TestPacketsTooLargeForTheClientAreNotSent(t *testing.T) {
	r := start(t, NewMemory())
	c := r.dial(packet.V5)
	c.send(&packet.Connect{Version: packet.V5, ClientID: "c", CleanStart: true, Props: packet.Props{}.WithUint(packet.MaximumPacketSize, 4)})
	c.ended()
	c = r.connect(packet.V5, "c", prop(packet.MaximumPacketSize, 40))
	many := &packet.Subscribe{PID: 1}
	for range 50 {
		many.Filters = append(many.Filters, packet.Filter{Filter: "t"})
	}
	c.send(many)
	if d := expect[*packet.Disconnect](c); d.Code != packet.TooLarge {
		t.Errorf("code 0x%02X", d.Code)
	}
	c = r.connect(packet.V5, "c", prop(packet.MaximumPacketSize, 40))
	none := &packet.Unsubscribe{PID: 1}
	for range 50 {
		none.Filters = append(none.Filters, "t")
	}
	c.send(none)
	if d := expect[*packet.Disconnect](c); d.Code != packet.TooLarge {
		t.Errorf("code 0x%02X", d.Code)
	}
	c.ended()
}
