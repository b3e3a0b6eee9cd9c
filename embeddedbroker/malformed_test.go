package embeddedbroker

import (
	"encoding/hex"
	"strings"
	"testing"

	"busgate/config"
	"busgate/embeddedbroker/packet"
)

// bytesOf reads hex where 'x stands for a letter.
func bytesOf(t *testing.T, text string) []byte {
	t.Helper()
	var out []byte
	for word := range strings.FieldsSeq(text) {
		if letters, ok := strings.CutPrefix(word, "'"); ok {
			out = append(out, letters...)
			continue
		}
		b, err := hex.DecodeString(word)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b...)
	}
	return out
}

const closed = -1 // without a word

// TestMalformedOnTheWire sends what breaks a rule to a broker: 5.0 is told the
// code and cut off, 3.x is cut off, and nothing of the packet takes effect.
func TestMalformedOnTheWire(t *testing.T) {
	covers(t, "5", "MQTT-3.14.2-1", "MQTT-4.13.1-1", "MQTT-4.13.2-1")
	covers(t, "311", "MQTT-4.8.0-1", "MQTT-2.2.2-2")
	r := start(t, NewMemory(), func(c *config.Broker, _ *Options) { c.MaxPacket = 2048 })
	w := r.connect(packet.V5, "watch")
	w.subscribe("#", 0)
	for _, x := range []struct {
		name  string
		five  string // after CONNECT; "" = there is no such thing in 5.0
		code  byte
		three string // the same in 3.1.1; "" = there is no such thing
	}{
		{"remaining length of 5 bytes", "30 8080808001", packet.Malformed, "30 8080808001"},
		{"remaining length not in its shortest form", "c0 8000", packet.Malformed, ""},
		{"packet over max_packet, by its header alone", "30 8110", packet.TooLarge, "30 8110"},
		{"packet cut short inside", "30 02 0004", packet.Malformed, "30 02 0004"},
		{"bytes left over", "c0 01 00", packet.Malformed, "c0 01 00"},
		{"bytes left over in UNSUBSCRIBE", "a2 07 0001 00 0001 't 00", packet.Malformed, "a2 06 0001 0001 't 00"},
		{"reserved packet type 0", "00 00", packet.ProtocolError, "00 00"},
		{"second CONNECT", "10 0e 0004 'MQTT 05 02 0000 00 0001 'x", packet.ProtocolError, "10 0d 0004 'MQTT 04 02 0000 0001 'x"},
		{"CONNACK of a client", "20 03 00 00 00", packet.ProtocolError, "20 02 00 00"},
		{"SUBACK of a client", "90 04 0001 00 00", packet.ProtocolError, "90 03 0001 00"},
		{"UNSUBACK of a client", "b0 04 0001 00 00", packet.ProtocolError, "b0 02 0001"},
		{"PINGRESP of a client", "d0 00", packet.ProtocolError, "d0 00"},
		{"PUBREL with flags 0", "60 02 0001", packet.Malformed, "60 02 0001"},
		{"SUBSCRIBE with flags 0", "80 07 0001 00 0001 't 00", packet.Malformed, "80 06 0001 0001 't 00"},
		{"UNSUBSCRIBE with flags 0", "a0 06 0001 00 0001 't", packet.Malformed, "a0 05 0001 0001 't"},
		{"PINGREQ with flags", "c1 00", packet.Malformed, "c1 00"},
		{"PUBLISH at QoS 3", "36 06 0001 't 0001 00", packet.Malformed, "36 05 0001 't 0001"},
		{"PUBLISH with DUP at QoS 0", "38 04 0001 't 00", packet.Malformed, "38 03 0001 't"},
		{"PUBLISH with id 0", "32 06 0001 't 0000 00", packet.ProtocolError, "32 05 0001 't 0000"},
		{"PUBLISH with a property of CONNECT", "30 09 0001 't 05 11 00000001", packet.ProtocolError, ""},
		{"PUBLISH to a/+", "30 06 0003 'a/+ 00", packet.Malformed, "30 05 0003 'a/+"},
		{"PUBLISH to #", "30 04 0001 '# 00", packet.Malformed, "30 03 0001 '#"},
		{"PUBLISH with U+0000", "30 05 0002 7400 00", packet.Malformed, "30 04 0002 7400"},
		{"PUBLISH with bad UTF-8", "30 05 0002 74ff 00", packet.Malformed, "30 04 0002 74ff"},
		{"PUBLISH without topic and alias", "30 03 0000 00", packet.ProtocolError, "30 02 0000"},
		{"PUBLISH with alias 0", "30 07 0001 't 03 23 0000", packet.BadAlias, ""},
		{"PUBLISH with alias 17", "30 07 0001 't 03 23 0011", packet.BadAlias, ""},
		{"PUBLISH with an alias that was not set", "30 06 0000 03 23 0001", packet.ProtocolError, ""},
		{"PUBLISH with a subscription id", "30 06 0001 't 02 0b 01", packet.ProtocolError, ""},
		{"SUBSCRIBE with id 0", "82 07 0000 00 0001 't 00", packet.Malformed, "82 06 0000 0001 't 00"},
		{"SUBSCRIBE without a filter", "82 03 0001 00", packet.Malformed, "82 02 0001"},
		{"SUBSCRIBE with an empty filter", "82 06 0001 00 0000 00", packet.Malformed, "82 05 0001 0000 00"},
		{"SUBSCRIBE to #/a", "82 09 0001 00 0003 '#/a 00", packet.Malformed, "82 08 0001 0003 '#/a 00"},
		{"SUBSCRIBE with a wrong property", "82 0c 0001 05 11 00000001 0001 't 00", packet.Malformed, ""},
		{"SUBSCRIBE at QoS 3", "82 07 0001 00 0001 't 03", packet.Malformed, "82 06 0001 0001 't 03"},
		{"SUBSCRIBE with retain handling 3", "82 07 0001 00 0001 't 30", packet.Malformed, ""},
		{"SUBSCRIBE with option bit 6", "82 07 0001 00 0001 't 40", packet.Malformed, "82 06 0001 0001 't 40"},
		{"SUBSCRIBE with option bit 7", "82 07 0001 00 0001 't 80", packet.Malformed, "82 06 0001 0001 't 80"},
		{"SUBSCRIBE with subscription id 0", "82 09 0001 02 0b00 0001 't 00", packet.Malformed, ""},
		{"UNSUBSCRIBE with id 0", "a2 06 0000 00 0001 't", packet.Malformed, "a2 05 0000 0001 't"},
		{"UNSUBSCRIBE without a filter", "a2 03 0001 00", packet.Malformed, "a2 02 0001"},
		{"UNSUBSCRIBE with an empty filter", "a2 05 0001 00 0000", packet.Malformed, "a2 04 0001 0000"},
		{"UNSUBSCRIBE with #/a", "a2 08 0001 00 0003 '#/a", packet.Malformed, "a2 07 0001 0003 '#/a"},
		{"UNSUBSCRIBE with a wrong property", "a2 0b 0001 05 11 00000001 0001 't", packet.Malformed, ""},
		{"property twice", "30 08 0001 't 04 0101 0101", packet.ProtocolError, ""},
		{"unknown property", "30 06 0001 't 02 7f 00", packet.Malformed, ""},
		{"AUTH without a method", "f0 01 18", packet.ProtocolError, "f0 00"},
		{"AUTH out of the blue", "f0 06 18 04 15 0001 'm", packet.ProtocolError, ""},
		{"DISCONNECT with flags", "e1 00", packet.Malformed, "e1 00"},
	} {
		for _, v := range []byte{packet.V311, packet.V5} {
			text := x.three
			if v == packet.V5 {
				text = x.five
			}
			if text == "" {
				continue
			}
			c := r.connect(v, "bad", persistent, will("bad/will", "gone", 0, false))
			c.raw(bytesOf(t, text)...)
			if v == packet.V5 {
				if d := expect[*packet.Disconnect](c); d.Code != x.code {
					t.Errorf("%s: code 0x%02X, want 0x%02X", x.name, d.Code, x.code)
				}
			}
			c.ended()
			w.receive("bad/will", "gone") // and nothing else came of it
			for _, i := range r.b.Clients() {
				if i.ID == "bad" && i.Subscriptions != 0 {
					t.Errorf("%s: version %d: it subscribed", x.name, v)
				}
			}
		}
	}
	w.ping()
	w.silent()
}

// Before CONNACK the code goes into it, if the protocol level is known.
func TestMalformedConnectOnTheWire(t *testing.T) {
	covers(t, "5", "MQTT-3.1.2-3", "MQTT-3.1.4-1", "MQTT-3.14.0-1")
	covers(t, "311", "MQTT-3.1.2-3", "MQTT-3.1.4-1", "MQTT-3.2.2-6")
	r := start(t, NewMemory())
	for _, x := range []struct {
		name, bytes string
		code        int
	}{
		{"reserved bit, 5.0", "10 0e 0004 'MQTT 05 03 003c 00 0001 'a", int(packet.Malformed)},
		{"reserved bit, 3.1.1", "10 0d 0004 'MQTT 04 03 003c 0001 'a", closed},
		{"will QoS 3, 5.0", "10 0e 0004 'MQTT 05 1c 003c 00 0001 'a", int(packet.Malformed)},
		{"will QoS 3, 3.1.1", "10 0d 0004 'MQTT 04 1c 003c 0001 'a", closed},
		{"will retain without will, 5.0", "10 0e 0004 'MQTT 05 20 003c 00 0001 'a", int(packet.Malformed)},
		{"will retain without will, 3.1.1", "10 0d 0004 'MQTT 04 20 003c 0001 'a", closed},
		{"will QoS without will, 5.0", "10 0e 0004 'MQTT 05 08 003c 00 0001 'a", int(packet.Malformed)},
		{"wrong name", "10 0d 0004 'MQTX 04 02 003c 0001 'a", closed},
		{"name of 3.1 with level 4", "10 0f 0006 'MQIsdp 04 02 003c 0001 'a", 1},
		{"level 6", "10 0e 0004 'MQTT 06 02 003c 00 0001 'a", int(packet.BadVersion)},
		{"level 3 with the name of 3.1.1", "10 0d 0004 'MQTT 03 02 003c 0001 'a", 1},
		{"Receive Maximum 0", "10 11 0004 'MQTT 05 02 003c 03 21 0000 0001 'a", int(packet.ProtocolError)},
		{"Maximum Packet Size 0", "10 13 0004 'MQTT 05 02 003c 05 27 00000000 0001 'a", int(packet.ProtocolError)},
		{"Request Problem Information 2", "10 10 0004 'MQTT 05 02 003c 02 17 02 0001 'a", int(packet.ProtocolError)},
		{"property twice", "10 12 0004 'MQTT 05 02 003c 04 1701 1701 0001 'a", int(packet.ProtocolError)},
		{"unknown property", "10 10 0004 'MQTT 05 02 003c 02 7f 00 0001 'a", int(packet.Malformed)},
		{"bytes left over, 5.0", "10 0f 0004 'MQTT 05 02 003c 00 0001 'a 00", int(packet.Malformed)},
		{"bytes left over, 3.1.1", "10 0e 0004 'MQTT 04 02 003c 0001 'a 00", closed},
		{"cut short inside, 5.0", "10 0d 0004 'MQTT 05 02 003c 00 0002 'a", int(packet.Malformed)},
		{"flags of the header", "11 0d 0004 'MQTT 04 02 003c 0001 'a", closed},
		{"length not in its shortest form, 5.0", "10 8e00 0004 'MQTT 05 02 003c 00 0001 'a", int(packet.Malformed)},
		{"AUTH first", "f0 06 18 04 15 0001 'm", closed},
		{"SUBSCRIBE first", "82 06 0001 0001 't 00", closed},
	} {
		v := packet.V311
		if strings.Contains(x.bytes, "'MQTT 05") || strings.Contains(x.bytes, "'MQTT 06") {
			v = packet.V5
		}
		c := r.dial(v)
		c.raw(bytesOf(t, x.bytes)...)
		if x.code != closed {
			if a := expect[*packet.Connack](c); int(a.Code) != x.code || a.SessionPresent {
				t.Errorf("%s: code 0x%02X, want 0x%02X", x.name, a.Code, x.code)
			}
		}
		c.ended()
	}
	if got := r.b.Clients(); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

func TestPayloadFormatIsCheckedOnlyWhenAsked(t *testing.T) {
	r := start(t, NewMemory())
	bad := func(qos byte) *packet.Publish {
		return &packet.Publish{Topic: []byte("t"), QoS: qos, PID: 3, Payload: []byte{0xff}, Props: packet.Props{}.WithUint(packet.PayloadFormat, 1)}
	}
	for _, check := range []bool{false, true} {
		cfg := testConfig()
		cfg.CheckFormat = check
		if err := r.b.Update(cfg); err != nil {
			t.Fatal(err)
		}
		w := r.connect(packet.V5, "w")
		w.subscribe("t", 0)
		c := r.connect(packet.V5, "c")
		for qos, typ := range map[byte]packet.Type{0: 0, 1: packet.PUBACK, 2: packet.PUBREC} {
			c.send(bad(qos))
			if qos > 0 {
				if a := c.acked(typ, 3); check != (a.Code == packet.BadPayloadFormat) {
					t.Errorf("checked %v QoS %d: 0x%02X", check, qos, a.Code)
				}
			}
			if !check {
				w.receive("t", "\xff")
			}
			if qos == 2 && !check {
				c.send(&packet.Ack{Type: packet.PUBREL, PID: 3})
				c.acked(packet.PUBCOMP, 3)
			}
		}
		fine := bad(1)
		fine.Payload = []byte("ä")
		c.send(fine)
		c.acked(packet.PUBACK, 3)
		w.receive("t", "ä")
		w.ping()
		w.silent()
		c.close()
		w.close()
	}
}
