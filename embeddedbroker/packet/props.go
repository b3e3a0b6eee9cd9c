package packet

import (
	"encoding/binary"
	"fmt"
	"iter"
	"slices"
)

// Property identifiers (MQTT 5.0, 2.2.2.2).
const (
	PayloadFormat     byte = 0x01
	MessageExpiry     byte = 0x02
	ContentType       byte = 0x03
	ResponseTopic     byte = 0x08
	CorrelationData   byte = 0x09
	SubscriptionID    byte = 0x0B
	SessionExpiry     byte = 0x11
	AssignedClientID  byte = 0x12
	ServerKeepAlive   byte = 0x13
	AuthMethod        byte = 0x15
	AuthData          byte = 0x16
	RequestProblem    byte = 0x17
	WillDelay         byte = 0x18
	RequestResponse   byte = 0x19
	ResponseInfo      byte = 0x1A
	ServerReference   byte = 0x1C
	ReasonString      byte = 0x1F
	ReceiveMaximum    byte = 0x21
	TopicAliasMaximum byte = 0x22
	TopicAlias        byte = 0x23
	MaximumQoS        byte = 0x24
	RetainAvailable   byte = 0x25
	UserProperty      byte = 0x26
	MaximumPacketSize byte = 0x27
	WildcardAvailable byte = 0x28
	SubIDAvailable    byte = 0x29
	SharedAvailable   byte = 0x2A
)

// kind of the value of a property.
type kind byte

const (
	unknown  kind = iota
	flag          // one byte, 0 or 1
	two           // two bytes
	twoSet        // two bytes, not 0
	four          // four bytes
	fourSet       // four bytes, not 0
	variable      // variable byte integer, not 0
	text
	binaryData
	pair
)

// willSet is the place of the will's properties beside the packet types.
const willSet Type = 0

// in makes the set of packets that allow a property.
func in(ts ...Type) (m uint16) {
	for _, t := range ts {
		m |= 1 << t
	}
	return m
}

var property = [0x2B]struct {
	kind kind
	in   uint16
}{
	PayloadFormat:     {flag, in(PUBLISH, willSet)},
	MessageExpiry:     {four, in(PUBLISH, willSet)},
	ContentType:       {text, in(PUBLISH, willSet)},
	ResponseTopic:     {text, in(PUBLISH, willSet)},
	CorrelationData:   {binaryData, in(PUBLISH, willSet)},
	SubscriptionID:    {variable, in(PUBLISH, SUBSCRIBE)},
	SessionExpiry:     {four, in(CONNECT, CONNACK, DISCONNECT)},
	AssignedClientID:  {text, in(CONNACK)},
	ServerKeepAlive:   {two, in(CONNACK)},
	AuthMethod:        {text, in(CONNECT, CONNACK, AUTH)},
	AuthData:          {binaryData, in(CONNECT, CONNACK, AUTH)},
	RequestProblem:    {flag, in(CONNECT)},
	WillDelay:         {four, in(willSet)},
	RequestResponse:   {flag, in(CONNECT)},
	ResponseInfo:      {text, in(CONNACK)},
	ServerReference:   {text, in(CONNACK, DISCONNECT)},
	ReasonString:      {text, in(CONNACK, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK, DISCONNECT, AUTH)},
	ReceiveMaximum:    {twoSet, in(CONNECT, CONNACK)},
	TopicAliasMaximum: {two, in(CONNECT, CONNACK)},
	TopicAlias:        {two, in(PUBLISH)},
	MaximumQoS:        {flag, in(CONNACK)},
	RetainAvailable:   {flag, in(CONNACK)},
	UserProperty:      {pair, 0xFFFF &^ in(PINGREQ, PINGRESP)},
	MaximumPacketSize: {fourSet, in(CONNECT, CONNACK)},
	WildcardAvailable: {flag, in(CONNACK)},
	SubIDAvailable:    {flag, in(CONNACK)},
	SharedAvailable:   {flag, in(CONNACK)},
}

// Props are the properties of one packet as they stand on the wire, without
// their length, already judged: accessors trust them. nil is none.
type Props []byte

// props reads the length and the properties of a packet of type t.
func (r *reader) props(t Type) Props {
	n := r.varint()
	if r.err != nil {
		return nil
	}
	raw := r.take(int(n))
	if r.err != nil || n == 0 {
		return nil
	}
	if err := checkProps(raw, t); err != nil {
		r.fail(err.Code, err.Text)
		return nil
	}
	return Props(raw)
}

// checkProps judges the properties of a packet of type t: known, allowed,
// complete, at most once, value in range.
func checkProps(raw []byte, t Type) *Error {
	r := reader{b: raw}
	var seen uint64
	for len(r.b) > 0 {
		id := r.u8()
		if int(id) >= len(property) || property[id].kind == unknown {
			return &Error{Malformed, fmt.Sprintf("unknown property 0x%02X", id)}
		}
		if property[id].in&(1<<t) == 0 {
			code := ProtocolError
			if t == SUBSCRIBE || t == UNSUBSCRIBE {
				code = Malformed
			}
			return &Error{code, fmt.Sprintf("property 0x%02X is not allowed in %s", id, placeName(t))}
		}
		again := id == UserProperty || id == SubscriptionID && t == PUBLISH
		if seen&(1<<id) != 0 && !again {
			return &Error{ProtocolError, fmt.Sprintf("property 0x%02X given twice", id)}
		}
		seen |= 1 << id
		ok := true
		if id == ResponseTopic {
			t := r.str()
			ok = len(t) > 0 && ValidTopic(t) // [MQTT-3.3.2-14]
		} else {
			ok = r.value(property[id].kind)
		}
		if !ok && r.err == nil {
			code := ProtocolError
			if t == SUBSCRIBE {
				code = Malformed
			}
			return &Error{code, fmt.Sprintf("value of property 0x%02X out of range", id)}
		}
	}
	if r.err != nil {
		return r.err.(*Error)
	}
	if seen&(1<<AuthData) != 0 && seen&(1<<AuthMethod) == 0 {
		return &Error{ProtocolError, "authentication data without a method"} // MQTT 5.0, 3.1.2.11.10
	}
	return nil
}

func placeName(t Type) string {
	if t == willSet {
		return "a will"
	}
	return t.String()
}

// value reads one value and says whether it is in range.
func (r *reader) value(k kind) bool {
	switch k {
	case flag:
		return r.u8() <= 1
	case two:
		r.u16()
	case twoSet:
		return r.u16() != 0
	case four:
		r.u32()
	case fourSet:
		return r.u32() != 0
	case variable:
		return r.varint() != 0
	case text:
		r.str()
	case binaryData:
		r.bin()
	default:
		r.str()
		r.str()
	}
	return true
}

// split cuts the first property off p: its id, its value with its own length
// bytes, and the rest. p is not empty and was judged.
func (p Props) split() (id byte, value []byte, rest Props) {
	id = p[0]
	n := 1
	switch property[id].kind {
	case flag:
		n = 2
	case two, twoSet:
		n = 3
	case four, fourSet:
		n = 5
	case variable:
		for n = 1; p[n] >= 0x80; n++ {
		}
		n++
	case text, binaryData:
		n = 3 + int(binary.BigEndian.Uint16(p[1:]))
	default:
		n = 3 + int(binary.BigEndian.Uint16(p[1:]))
		n += 2 + int(binary.BigEndian.Uint16(p[n:]))
	}
	return id, p[1:n], p[n:]
}

// Uint is the value of a numeric property, of whatever width.
func (p Props) Uint(id byte) (v uint32, ok bool) {
	for len(p) > 0 {
		got, value, rest := p.split()
		if got == id {
			return number(id, value), true
		}
		p = rest
	}
	return 0, false
}

func number(id byte, value []byte) uint32 {
	if property[id].kind == variable {
		r := reader{b: value}
		return r.varint()
	}
	v := uint32(0)
	for _, c := range value {
		v = v<<8 | uint32(c)
	}
	return v
}

// Bytes is the value of a string or binary property, part of p.
func (p Props) Bytes(id byte) (v []byte, ok bool) {
	for len(p) > 0 {
		got, value, rest := p.split()
		if got == id {
			return value[2:], true
		}
		p = rest
	}
	return nil, false
}

// User walks over the user properties in order.
func (p Props) User() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for len(p) > 0 {
			id, v, rest := p.split()
			p = rest
			if id != UserProperty {
				continue
			}
			k := 2 + int(binary.BigEndian.Uint16(v))
			if !yield(string(v[2:k]), string(v[k+2:])) {
				return
			}
		}
	}
}

// Has says whether the property is there.
func (p Props) Has(id byte) bool {
	_, ok := p.find(id)
	return ok
}

func (p Props) find(id byte) (value []byte, ok bool) {
	for len(p) > 0 {
		got, v, rest := p.split()
		if got == id {
			return v, true
		}
		p = rest
	}
	return nil, false
}

// WithUint adds a numeric property in the width that the standard gives it.
func (p Props) WithUint(id byte, v uint32) Props {
	p = append(p, id)
	switch property[id].kind {
	case flag:
		return append(p, byte(v))
	case two, twoSet:
		return binary.BigEndian.AppendUint16(p, uint16(v))
	case variable:
		return appendVarint(p, int(v))
	}
	return binary.BigEndian.AppendUint32(p, v)
}

// WithBytes adds a string or binary property of at most 65535 bytes.
func (p Props) WithBytes(id byte, v []byte) Props { return appendString(append(p, id), v) }

// WithUser adds a user property.
func (p Props) WithUser(key, value string) Props {
	return appendString(appendString(append(p, UserProperty), key), value)
}

// size is the room of the properties with their length.
func (p Props) size() int { return sizeVarint(len(p)) + len(p) }

// append writes the length and the properties.
func (p Props) append(dst []byte) []byte {
	return append(appendVarint(dst, len(p)), p...)
}

// Without copies the properties except the given ones; nil when none are left.
func (p Props) Without(ids ...byte) Props {
	var out Props
	for len(p) > 0 {
		id, v, rest := p.split()
		if !slices.Contains(ids, id) {
			out = append(append(out, id), v...)
		}
		p = rest
	}
	return out
}
