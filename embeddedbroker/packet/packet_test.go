package packet

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
)

// wire is one packet as bytes and as a value.
type wire struct {
	name    string
	version byte
	bytes   string // bytes, with blanks between groups
	value   Packet
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	var out []byte
	for f := range strings.FieldsSeq(s) {
		if f[0] == '\'' { // text
			out = append(out, f[1:]...)
			continue
		}
		for i := 0; i+1 < len(f); i += 2 {
			out = append(out, nibble(f[i])<<4|nibble(f[i+1]))
		}
	}
	return out
}

func nibble(c byte) byte {
	if c >= 'a' {
		return c - 'a' + 10
	}
	return c - '0'
}

var wires = []wire{
	{"CONNECT of 3.1", V31, "10 10 0006 'MQIsdp 03 02 003c 0002 'ab", &Connect{Version: V31, CleanStart: true, KeepAlive: 60, ClientID: "ab"}},
	{"CONNECT of 3.1.1", V311, "10 0e 0004 'MQTT 04 00 ffff 0002 'ab", &Connect{Version: V311, KeepAlive: 65535, ClientID: "ab"}},
	{"CONNECT of a bridge", V311, "10 0c 0004 'MQTT 84 02 0000 0000", &Connect{Version: V311, Bridge: true, CleanStart: true}},
	{"CONNECT with everything of 3.1.1", V311, "10 1a 0004 'MQTT 04 f6 0001 0001 'c 0001 'w 0002 'by 0001 'u 0001 'p",
		&Connect{Version: V311, CleanStart: true, KeepAlive: 1, ClientID: "c", HasUser: true, HasPassword: true, User: "u", Password: []byte("p"),
			Will: &Will{Topic: "w", Payload: []byte("by"), QoS: 2, Retain: true}}},
	{"CONNECT of 5.0", V5, "10 13 0004 'MQTT 05 02 003c 05 11 0000000a 0001 'a",
		&Connect{Version: V5, CleanStart: true, KeepAlive: 60, ClientID: "a", Props: Props{}.WithUint(SessionExpiry, 10)}},
	{"CONNECT of 5.0 with will delay and a password alone", V5, "10 1c 0004 'MQTT 05 44 0000 00 0001 'a 05 18 00000002 0001 'w 0000 0001 'p",
		&Connect{Version: V5, ClientID: "a", HasPassword: true, Password: []byte("p"),
			Will: &Will{Topic: "w", Payload: []byte{}, Props: Props{}.WithUint(WillDelay, 2)}}},
	{"CONNACK of 3.1.1", V311, "20 02 01 00", &Connack{SessionPresent: true}},
	{"CONNACK of 5.0", V5, "20 06 00 87 03 21 03e8", &Connack{Code: 0x87, Props: Props{}.WithUint(ReceiveMaximum, 1000)}},
	{"CONNACK of 5.0 with a session and without properties", V5, "20 03 01 00 00", &Connack{SessionPresent: true}},
	{"PUBLISH at QoS 0", V311, "30 06 0001 't 'abc", &Publish{Topic: []byte("t"), Payload: []byte("abc")}},
	{"PUBLISH at QoS 1 with DUP and RETAIN", V311, "3b 05 0001 't 0102", &Publish{Dup: true, QoS: 1, Retain: true, PID: 258, Topic: []byte("t"), Payload: []byte{}}},
	{"PUBLISH of 5.0 without properties", V5, "34 06 0001 't 0001 00", &Publish{QoS: 2, PID: 1, Topic: []byte("t"), Payload: []byte{}}},
	{"PUBLISH of 5.0 by alias", V5, "30 07 0000 03 23 0005 'x", &Publish{HasAlias: true, Alias: 5, Topic: []byte{}, Payload: []byte("x")}},
	{"PUBLISH of 5.0 from a server", V5, "30 15 0001 't 10 02 00000007 0b 05 0b 8001 01 01 03 0001 'j 'x",
		&Publish{Topic: []byte("t"), HasExpiry: true, Expiry: 7, SubIDs: []uint32{5, 128}, Props: Props{}.WithUint(PayloadFormat, 1).WithBytes(ContentType, []byte("j")), Payload: []byte("x")}},
	{"PUBACK of 3.1.1", V311, "40 02 0007", &Ack{Type: PUBACK, PID: 7}},
	{"PUBACK of 5.0 without a code", V5, "40 02 0007", &Ack{Type: PUBACK, PID: 7}},
	{"PUBREC of 5.0 with a code", V5, "50 03 0007 97", &Ack{Type: PUBREC, PID: 7, Code: 0x97}},
	{"PUBREL of 5.0 with a reason", V5, "62 08 0007 92 04 1f 0001 'x", &Ack{Type: PUBREL, PID: 7, Code: 0x92, Props: Props{}.WithBytes(ReasonString, []byte("x"))}},
	{"PUBCOMP", V311, "70 02 ffff", &Ack{Type: PUBCOMP, PID: 65535}},
	{"SUBSCRIBE of 3.1.1", V311, "82 0a 0001 0001 'a 01 0001 '# 02", &Subscribe{PID: 1, Filters: []Filter{{Filter: "a", QoS: 1}, {Filter: "#", QoS: 2}}}},
	{"SUBSCRIBE of 5.0", V5, "82 09 0001 02 0b 01 0001 'a 2d", &Subscribe{PID: 1, Props: Props{}.WithUint(SubscriptionID, 1),
		Filters: []Filter{{Filter: "a", QoS: 1, NoLocal: true, RetainAsPublished: true, RetainHandling: 2}}}},
	{"SUBACK", V311, "90 04 0001 02 80", &Suback{PID: 1, Codes: []byte{2, 0x80}}},
	{"SUBACK of 5.0", V5, "90 04 0001 00 87", &Suback{PID: 1, Codes: []byte{0x87}}},
	{"UNSUBSCRIBE", V311, "a2 05 0001 0001 'a", &Unsubscribe{PID: 1, Filters: []string{"a"}}},
	{"UNSUBACK of 3.1.1", V311, "b0 02 0001", &Unsuback{PID: 1}},
	{"UNSUBACK of 5.0", V5, "b0 04 0001 00 11", &Unsuback{PID: 1, Codes: []byte{0x11}}},
	{"PINGREQ", V311, "c0 00", &Ping{Type: PINGREQ}},
	{"PINGRESP", V5, "d0 00", &Ping{Type: PINGRESP}},
	{"DISCONNECT of 3.1.1", V311, "e0 00", &Disconnect{}},
	{"DISCONNECT of 5.0 with a code", V5, "e0 01 04", &Disconnect{Code: 4}},
	{"DISCONNECT of 5.0 with an expiry", V5, "e0 07 00 05 11 00000000", &Disconnect{Props: Props{}.WithUint(SessionExpiry, 0)}},
	{"AUTH", V5, "f0 06 18 04 15 0001 'm", &Auth{Code: 0x18, Props: Props{}.WithBytes(AuthMethod, []byte("m"))}},
}

// split cuts one packet off b.
func split(b []byte, version byte) (Packet, error) {
	h, n, err := ReadHeader(b)
	if err != nil {
		return nil, err
	}
	if n == 0 || len(b) != n+h.Length {
		return nil, errors.New("not one whole packet")
	}
	return Decode(h, b[n:], version)
}

func TestBytesAndValues(t *testing.T) {
	covers(t, "5", "MQTT-2.2.1-2", "MQTT-2.2.2-1", "MQTT-3.2.2-1")
	covers(t, "311", "MQTT-2.3.1-5")
	for _, w := range wires {
		b := unhex(t, w.bytes)
		got, err := split(b, w.version)
		if err != nil {
			t.Errorf("%s: decode: %v", w.name, err)
			continue
		}
		if !reflect.DeepEqual(got, w.value) {
			t.Errorf("%s: decoded\n %+v, want\n %+v", w.name, got, w.value)
		}
		if enc := w.value.Append(nil, w.version); !bytes.Equal(enc, b) {
			t.Errorf("%s: encoded\n %x, want\n %x", w.name, enc, b)
		}
	}
}

func TestEveryTruncationIsRefused(t *testing.T) {
	for _, w := range wires {
		b := unhex(t, w.bytes)
		h, n, _ := ReadHeader(b)
		_, publish := w.value.(*Publish)
		for cut := range len(b) - n {
			h.Length = cut
			p, err := Decode(h, b[n:n+cut], w.version)
			if err == nil && !publish && !reflect.DeepEqual(p, w.value) && !shorter(p, w.version) {
				t.Errorf("%s: %d of %d bytes decode to %+v", w.name, cut, len(b)-n, p)
			}
		}
	}
}

// shorter says whether a packet may really end earlier: lists and the optional
// tail of 5.0.
func shorter(p Packet, version byte) bool {
	switch p.(type) {
	case *Ack, *Disconnect, *Auth:
		return version == V5
	case *Subscribe, *Suback, *Unsubscribe, *Unsuback:
		return true
	}
	return false
}

func TestBytesLeftOverAreRefused(t *testing.T) {
	for _, w := range wires {
		b := unhex(t, w.bytes)
		h, n, _ := ReadHeader(b)
		switch w.value.(type) {
		case *Publish, *Suback, *Unsuback: // their last field takes everything
			continue
		case *Subscribe, *Unsubscribe, *Ack, *Disconnect, *Auth:
		}
		if p, err := Decode(h, append(b[n:], 0), w.version); err == nil && !shorter(w.value, w.version) {
			t.Errorf("%s: one byte too many decodes to %+v", w.name, p)
		}
	}
}

// malformed are packets that break a rule, and the code of 5.0 for each.
var malformed = []struct {
	name    string
	version byte
	bytes   string
	code    byte
}{
	{"remaining length of five bytes", V5, "30 8080808001", Malformed},
	{"remaining length not in shortest form", V5, "30 8600 0001 't 00 'ab", Malformed},
	{"packet type 0", V5, "00 00", ProtocolError},
	{"PUBREL with flags 0", V5, "60 02 0001", Malformed},
	{"PUBREL with DUP in 3.1.1", V311, "6a 02 0001", Malformed},
	{"SUBSCRIBE with flags 0", V5, "80 07 0001 00 0001 'a 00", Malformed},
	{"UNSUBSCRIBE with flags 0", V5, "a0 06 0001 00 0001 'a", Malformed},
	{"SUBSCRIBE with flags 0 in 3.1.1", V311, "80 06 0001 0001 'a 00", Malformed},
	{"SUBSCRIBE with DUP in 3.1.1", V311, "8a 06 0001 0001 'a 00", Malformed},
	{"UNSUBSCRIBE with flags 0 in 3.1.1", V311, "a0 05 0001 0001 'a", Malformed},
	{"PUBACK with flags in 3.1.1", V311, "41 02 0001", Malformed},
	{"PINGREQ with flags", V5, "c1 00", Malformed},
	{"PINGREQ with a body", V5, "c0 01 00", Malformed},
	{"CONNECT with the reserved bit", V5, "10 0e 0004 'MQTT 05 03 003c 00 0001 'a", Malformed},
	{"CONNECT with will QoS 3", V311, "10 0d 0004 'MQTT 04 1c 003c 0001 'a", Malformed},
	{"CONNECT with will retain and no will", V311, "10 0d 0004 'MQTT 04 20 003c 0001 'a", Malformed},
	{"CONNECT with a password and no user in 3.1.1", V311, "10 10 0004 'MQTT 04 40 003c 0001 'a 0001 'p", Malformed},
	{"CONNECT with a wrong name", V311, "10 0d 0004 'MQTX 04 00 003c 0001 'a", 0},
	{"CONNECT with level 6", V5, "10 0d 0004 'MQTT 06 00 003c 0001 'a", BadVersion},
	{"CONNECT with level 2", V311, "10 0d 0004 'MQTT 02 00 003c 0001 'a", BadVersion},
	{"CONNECT with Receive Maximum 0", V5, "10 11 0004 'MQTT 05 00 003c 03 21 0000 0001 'a", ProtocolError},
	{"CONNECT with Maximum Packet Size 0", V5, "10 13 0004 'MQTT 05 00 003c 05 27 00000000 0001 'a", ProtocolError},
	{"CONNECT with Request Problem Information 2", V5, "10 10 0004 'MQTT 05 00 003c 02 17 02 0001 'a", ProtocolError},
	{"CONNECT with a property twice", V5, "10 12 0004 'MQTT 05 00 003c 04 1701 1701 0001 'a", ProtocolError},
	{"CONNECT with authentication data alone", V5, "10 12 0004 'MQTT 05 00 003c 04 16 0001 00 0001 'a", ProtocolError},
	{"CONNECT with an unknown property", V5, "10 10 0004 'MQTT 05 00 003c 02 7f 00 0001 'a", Malformed},
	{"PUBLISH at QoS 3", V5, "36 06 0001 't 0001 00", Malformed},
	{"PUBLISH with DUP at QoS 0", V5, "38 04 0001 't 00", Malformed},
	{"PUBLISH with id 0", V5, "32 06 0001 't 0000 00", ProtocolError},
	{"PUBLISH with a property of CONNECT", V5, "30 09 0001 't 05 11 00000001", ProtocolError},
	{"PUBLISH with an unknown property", V5, "30 06 0001 't 02 7f 00", Malformed},
	{"PUBLISH with +", V5, "30 06 0003 'a/+ 00", Malformed},
	{"PUBLISH with #", V311, "30 03 0001 '#", Malformed},
	{"PUBLISH with U+0000", V311, "30 03 0001 00", Malformed},
	{"PUBLISH with U+0000 in 5.0", V5, "30 04 0001 00 00", Malformed},
	{"PUBLISH whose properties have a length in two bytes that needs one", V5, "30 05 0001 't 8000", Malformed},
	{"PUBLISH with bad UTF-8", V311, "30 03 0001 ff", Malformed},
	{"PUBLISH with a surrogate", V311, "30 05 0003 eda080", Malformed},
	{"PUBLISH without topic and alias", V5, "30 03 0000 00", ProtocolError},
	{"PUBLISH with an empty topic in 3.1.1", V311, "30 02 0000", ProtocolError},
	{"PUBLISH with a truncated topic", V5, "30 02 0004", Malformed},
	{"PUBLISH whose properties are longer than it", V5, "30 05 0001 't 05 01", Malformed},
	{"PUBLISH with payload format 2", V5, "30 06 0001 't 02 01 02", ProtocolError},
	{"PUBLISH with a wildcard in its response topic", V5, "30 0a 0001 't 06 08 0003 'a/# ", ProtocolError},
	{"PUBLISH with an empty response topic", V5, "30 07 0001 't 03 08 0000", ProtocolError},
	{"PUBLISH with bad UTF-8 in its response topic", V5, "30 08 0001 't 04 08 0001 ff", Malformed},
	{"PUBLISH with bad UTF-8 in its content type", V5, "30 08 0001 't 04 03 0001 ff", Malformed},
	{"PUBLISH with bad UTF-8 in the key of a user property", V5, "30 0b 0001 't 07 26 0001 ff 0001 'v", Malformed},
	{"PUBLISH with U+0000 in the value of a user property", V5, "30 0b 0001 't 07 26 0001 'k 0001 00", Malformed},
	{"CONNECT with bad UTF-8 in its client id", V5, "10 0e 0004 'MQTT 05 00 003c 00 0001 ff", Malformed},
	{"CONNECT with bad UTF-8 in its will topic", V311, "10 12 0004 'MQTT 04 04 003c 0001 'a 0001 ff 0000", Malformed},
	{"CONNECT with bad UTF-8 in its user name", V311, "10 10 0004 'MQTT 04 80 003c 0001 'a 0001 ff", Malformed},
	{"CONNECT with bad UTF-8 in the content type of its will", V5, "10 18 0004 'MQTT 05 04 003c 00 0001 'a 04 03 0001 ff 0001 'w 0000", Malformed},
	{"SUBSCRIBE with bad UTF-8", V5, "82 07 0001 00 0001 ff 00", Malformed},
	{"SUBSCRIBE with U+0000", V5, "82 07 0001 00 0001 00 00", Malformed},
	{"UNSUBSCRIBE with bad UTF-8", V5, "a2 06 0001 00 0001 ff", Malformed},
	{"DISCONNECT with flags", V311, "e1 00", Malformed},
	{"AUTH with flags", V5, "f1 06 18 04 15 0001 'm", Malformed},
	{"PUBREL with a code of PUBACK", V5, "62 03 0001 10", Malformed},
	{"PUBCOMP with a code of PUBACK", V5, "70 03 0001 10", Malformed},
	{"PUBREC with an unknown code", V5, "50 03 0001 7f", Malformed},
	{"PUBACK with id 0", V5, "40 02 0000", Malformed},
	{"PUBACK with a code of PUBREL", V5, "40 03 0001 92", Malformed},
	{"SUBSCRIBE with id 0", V5, "82 07 0000 00 0001 'a 00", Malformed},
	{"SUBSCRIBE without a filter", V5, "82 03 0001 00", Malformed},
	{"SUBSCRIBE with an empty filter", V5, "82 06 0001 00 0000 00", Malformed},
	{"SUBSCRIBE with #/a", V5, "82 09 0001 00 0003 '#/a 00", Malformed},
	{"SUBSCRIBE with a#", V5, "82 08 0001 00 0002 'a# 00", Malformed},
	{"SUBSCRIBE with #a in 3.1.1", V311, "82 07 0001 0002 '#a 00", Malformed},
	{"SUBSCRIBE with +a", V5, "82 08 0001 00 0002 '+a 00", Malformed},
	{"SUBSCRIBE with a/+b/c in 3.1.1", V311, "82 0b 0001 0006 'a/+b/c 00", Malformed},
	{"SUBSCRIBE with a+", V5, "82 08 0001 00 0002 'a+ 00", Malformed},
	{"SUBSCRIBE with a wrong property", V5, "82 0c 0001 05 11 00000001 0001 'a 00", Malformed},
	{"SUBSCRIBE with QoS 3", V311, "82 06 0001 0001 'a 03", Malformed},
	{"SUBSCRIBE with options in 3.1.1", V311, "82 06 0001 0001 'a 04", Malformed},
	{"SUBSCRIBE with retain handling 3", V5, "82 07 0001 00 0001 'a 30", Malformed},
	{"SUBSCRIBE with option bit 6", V5, "82 07 0001 00 0001 'a 40", Malformed},
	{"SUBSCRIBE with subscription id 0", V5, "82 09 0001 02 0b00 0001 'a 00", Malformed},
	{"UNSUBSCRIBE with id 0", V5, "a2 06 0000 00 0001 'a", Malformed},
	{"UNSUBSCRIBE without a filter", V5, "a2 03 0001 00", Malformed},
	{"UNSUBSCRIBE with an empty filter", V5, "a2 05 0001 00 0000", Malformed},
	{"AUTH without a method", V5, "f0 01 18", ProtocolError},
	{"AUTH in 3.1.1", V311, "f0 00", ProtocolError},
	{"DISCONNECT of 3.1.1 with a body", V311, "e0 01 00", Malformed},
}

func TestMalformed(t *testing.T) {
	covers(t, "5", "MQTT-1.5.4-1", "MQTT-1.5.4-2", "MQTT-1.5.5-1", "MQTT-1.5.7-1", "MQTT-2.1.3-1", "MQTT-3.1.2-3",
		"MQTT-3.1.2-11", "MQTT-3.1.2-12", "MQTT-3.1.2-13", "MQTT-3.1.3-4", "MQTT-3.1.3-11", "MQTT-3.3.1-4", "MQTT-3.3.2-1",
		"MQTT-3.3.2-2", "MQTT-3.3.2-13", "MQTT-3.3.2-14", "MQTT-3.3.2-19", "MQTT-3.6.1-1",
		"MQTT-3.8.1-1", "MQTT-3.8.3-1", "MQTT-3.8.3-2", "MQTT-3.8.3-5", "MQTT-3.10.1-1", "MQTT-3.10.3-1", "MQTT-3.10.3-2",
		"MQTT-3.14.1-1", "MQTT-3.15.1-1", "MQTT-4.7.0-1", "MQTT-4.7.1-1", "MQTT-4.7.1-2", "MQTT-4.7.3-1", "MQTT-4.7.3-2")
	covers(t, "311", "MQTT-1.5.3-1", "MQTT-1.5.3-2", "MQTT-2.2.2-1", "MQTT-2.3.1-1", "MQTT-3.1.2-11", "MQTT-3.1.2-13",
		"MQTT-3.1.2-14", "MQTT-3.1.2-15", "MQTT-3.1.2-22", "MQTT-3.1.3-4", "MQTT-3.1.3-10", "MQTT-3.3.1-4", "MQTT-3.3.2-1",
		"MQTT-3.3.2-2", "MQTT-3.6.1-1", "MQTT-3.8.1-1", "MQTT-3.8.3-1", "MQTT-3.8.3-3", "MQTT-3.8.3-4", "MQTT-3.10.1-1",
		"MQTT-3.10.3-1", "MQTT-3.10.3-2", "MQTT-3.14.1-1", "MQTT-4.7.1-1", "MQTT-4.7.1-2", "MQTT-4.7.1-3", "MQTT-4.7.3-1",
		"MQTT-4.7.3-2")
	for _, c := range malformed {
		_, err := split(unhex(t, c.bytes), c.version)
		var bad *Error
		if !errors.As(err, &bad) || bad.Code != c.code {
			t.Errorf("%s: got %v, want code 0x%02X", c.name, err, c.code)
		}
	}
}

func TestDUPIsAllowedInRelAndSubscribeOf31(t *testing.T) {
	for _, b := range []string{"6a 02 0001", "8a 06 0001 0001 'a 00", "aa 05 0001 0001 'a"} {
		if _, err := split(unhex(t, b), V31); err != nil {
			t.Errorf("%s: %v", b, err)
		}
	}
}

func TestPropsAccessors(t *testing.T) {
	p := Props{}.WithUint(TopicAlias, 3).WithUser("k", "v").WithUint(SubscriptionID, 128).WithUser("k", "w").WithBytes(ResponseTopic, []byte("r"))
	if v, ok := p.Uint(SubscriptionID); !ok || v != 128 {
		t.Errorf("subscription id %d %v", v, ok)
	}
	if v, ok := p.Bytes(ResponseTopic); !ok || string(v) != "r" {
		t.Errorf("response topic %q %v", v, ok)
	}
	if p.Has(ContentType) || !p.Has(TopicAlias) {
		t.Error("Has")
	}
	var users []string
	for k, v := range p.User() {
		users = append(users, k+"="+v)
	}
	if !reflect.DeepEqual(users, []string{"k=v", "k=w"}) {
		t.Errorf("user properties %v", users)
	}
	if q := p.Without(TopicAlias, SubscriptionID); q.Has(TopicAlias) || !q.Has(ResponseTopic) {
		t.Errorf("Without: %x", q)
	}
}

func TestEncodingAllocatesNothing(t *testing.T) {
	p := Publish{QoS: 1, PID: 7, Topic: []byte("a/b/c"), Payload: make([]byte, 128), HasExpiry: true, Expiry: 5}
	buf := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() { buf = p.AppendTopic(buf[:0], "a/b/c", V5) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if len(buf) != p.Size(V5, 5) {
		t.Errorf("Size says %d, it is %d", p.Size(V5, 5), len(buf))
	}
}

func FuzzDecode(f *testing.F) {
	for _, w := range wires {
		f.Add(unhex(f, w.bytes), w.version)
	}
	f.Fuzz(func(t *testing.T, b []byte, version byte) {
		version = V31 + version%3
		h, n, err := ReadHeader(b)
		if err != nil || n == 0 || len(b) < n+h.Length {
			return
		}
		body := b[n : n+h.Length]
		p, err := Decode(h, body, version)
		if err != nil {
			return
		}
		if c, ok := p.(*Connect); ok {
			version = c.Version
		}
		// What was accepted says the same after another round.
		enc := p.Append(nil, version)
		again, err := split(enc, version)
		if err != nil {
			t.Fatalf("%x decodes to %+v, whose bytes %x do not decode: %v", b, p, enc, err)
		}
		if twice := again.Append(nil, version); !bytes.Equal(enc, twice) {
			t.Fatalf("%x encodes to %x and then to %x", b, enc, twice)
		}
	})
}

func FuzzRoundTrip(f *testing.F) {
	f.Add("a/b", []byte("x"), uint16(1), byte(1), uint32(7), uint16(3), "k", "v", true)
	f.Fuzz(func(t *testing.T, topic string, payload []byte, pid uint16, bits byte, expiry uint32, alias uint16, key, value string, expires bool) {
		if !validString([]byte(topic)) || !ValidTopic(topic) || topic == "" || len(topic) > 65535 || pid == 0 ||
			!validString([]byte(key)) || !validString([]byte(value)) || len(key) > 1000 || len(value) > 1000 {
			return
		}
		p := &Publish{QoS: bits % 3, Retain: bits&4 != 0, Topic: []byte(topic), Payload: append([]byte{}, payload...)}
		if p.QoS > 0 {
			p.PID, p.Dup = pid, bits&8 != 0
		}
		version := V311
		if bits&16 != 0 {
			version = V5
			p.HasAlias, p.Alias = alias != 0, alias
			if p.HasExpiry = expires; expires {
				p.Expiry = expiry
			}
			p.Props = Props{}.WithUser(key, value)
		}
		got, err := split(p.Append(nil, version), version)
		if err != nil || !reflect.DeepEqual(got, p) {
			t.Fatalf("got %+v %v, want %+v", got, err, p)
		}
	})
}

func BenchmarkDecodePublish(b *testing.B) {
	p := Publish{QoS: 1, PID: 7, Topic: []byte("plant/a/state"), Payload: make([]byte, 128)}
	wire := p.Append(nil, V311)
	b.ReportAllocs()
	var got Publish
	for b.Loop() {
		h, n, _ := ReadHeader(wire)
		if err := got.Decode(h, wire[n:], V311); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncodePublish(b *testing.B) {
	p := Publish{QoS: 1, PID: 7, Payload: make([]byte, 128)}
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		buf = p.AppendTopic(buf[:0], "plant/a/state", V311)
	}
}
