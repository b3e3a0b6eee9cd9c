package packet

import "encoding/binary"

// Publish is an application message on its way. Topic, Payload and Props point
// into the packet that was decoded.
type Publish struct {
	Dup    bool
	QoS    byte // 0..2
	Retain bool
	PID    uint16 // 0 at QoS 0
	Topic  []byte

	Alias     uint16 // topic alias, 5.0
	HasAlias  bool
	Expiry    uint32 // message expiry interval in seconds, 5.0
	HasExpiry bool
	SubIDs    []uint32 // only from a server
	Props     Props    // all others, in their order: they travel on unchanged

	Payload []byte
}

// Decode reads the body of a PUBLISH.
func (p *Publish) Decode(h Header, body []byte, version byte) error {
	r := reader{b: body}
	*p = Publish{Dup: h.Flags&8 != 0, QoS: h.Flags >> 1 & 3, Retain: h.Flags&1 != 0}
	if p.QoS == 3 {
		return &Error{Malformed, "PUBLISH with QoS 3"} // [MQTT-3.3.1-4]
	}
	if p.QoS == 0 && p.Dup {
		return &Error{Malformed, "PUBLISH with DUP at QoS 0"} // [MQTT-3.3.1-2]
	}
	p.Topic = r.str() // [MQTT-3.3.2-1]
	if p.QoS > 0 {
		p.PID = r.u16()
		if r.err == nil && p.PID == 0 {
			return &Error{ProtocolError, "PUBLISH with packet id 0"} // [MQTT-2.2.1-3]
		}
	}
	if r.err == nil && !ValidTopic(p.Topic) {
		return &Error{Malformed, "PUBLISH topic holds a wildcard"} // [MQTT-3.3.2-2]
	}
	if version == V5 {
		if raw := r.props(PUBLISH); r.err == nil {
			p.splitProps(raw)
		}
	}
	if r.err == nil && len(p.Topic) == 0 && !p.HasAlias {
		return &Error{ProtocolError, "PUBLISH without topic and without alias"}
	}
	p.Payload = r.b
	return r.err
}

// splitProps takes out what belongs to this hop only. Without such properties
// the rest is the raw slice itself.
func (p *Publish) splitProps(raw Props) {
	own := false
	for q := raw; len(q) > 0; {
		id, v, rest := q.split()
		switch id {
		case TopicAlias:
			p.Alias, p.HasAlias, own = binary.BigEndian.Uint16(v), true, true
		case MessageExpiry:
			p.Expiry, p.HasExpiry, own = binary.BigEndian.Uint32(v), true, true
		case SubscriptionID:
			p.SubIDs, own = append(p.SubIDs, number(id, v)), true
		}
		q = rest
	}
	if !own {
		p.Props = raw
		return
	}
	for q := raw; len(q) > 0; {
		id, v, rest := q.split()
		if id != TopicAlias && id != MessageExpiry && id != SubscriptionID {
			p.Props = append(append(p.Props, id), v...)
		}
		q = rest
	}
}

// propsSize is the length of all properties, without their length field.
func (p *Publish) propsSize() int {
	n := len(p.Props)
	if p.HasExpiry {
		n += 5
	}
	if p.HasAlias {
		n += 3
	}
	for _, id := range p.SubIDs {
		n += 1 + sizeVarint(int(id))
	}
	return n
}

// Size is the length of the encoded packet in bytes, with a topic of n bytes.
func (p *Publish) Size(version byte, n int) int {
	n = p.bodySize(version, n)
	return 1 + sizeVarint(n) + n
}

func (p *Publish) bodySize(version byte, topic int) int {
	n := 2 + topic + len(p.Payload)
	if p.QoS > 0 {
		n += 2
	}
	if version == V5 {
		ps := p.propsSize()
		n += sizeVarint(ps) + ps
	}
	return n
}

// Append adds the packet; it allocates only to grow dst.
func (p *Publish) Append(dst []byte, version byte) []byte {
	dst = p.appendStart(dst, len(p.Topic), version)
	return p.appendRest(appendString(dst, p.Topic), version)
}

// AppendTopic is Append with the topic given as a string instead of p.Topic.
func (p *Publish) AppendTopic(dst []byte, topic string, version byte) []byte {
	dst = p.appendStart(dst, len(topic), version)
	return p.appendRest(appendString(dst, topic), version)
}

// appendStart adds the fixed header of a packet with a topic of n bytes.
func (p *Publish) appendStart(dst []byte, n int, version byte) []byte {
	flags := p.QoS << 1
	if p.Dup {
		flags |= 8
	}
	if p.Retain {
		flags |= 1
	}
	return appendHeader(dst, PUBLISH, flags, p.bodySize(version, n))
}

// appendRest adds what follows the topic.
func (p *Publish) appendRest(dst []byte, version byte) []byte {
	if p.QoS > 0 {
		dst = binary.BigEndian.AppendUint16(dst, p.PID)
	}
	if version == V5 {
		dst = appendVarint(dst, p.propsSize())
		if p.HasExpiry {
			dst = binary.BigEndian.AppendUint32(append(dst, MessageExpiry), p.Expiry)
		}
		if p.HasAlias {
			dst = binary.BigEndian.AppendUint16(append(dst, TopicAlias), p.Alias)
		}
		for _, id := range p.SubIDs {
			dst = appendVarint(append(dst, SubscriptionID), int(id))
		}
		dst = append(dst, p.Props...)
	}
	return append(dst, p.Payload...)
}

// ValidTopic says whether a topic name holds no wildcard. It may be empty: an
// alias can stand for it.
func ValidTopic[T ~string | ~[]byte](t T) bool {
	for i := range len(t) {
		if t[i] == '+' || t[i] == '#' {
			return false
		}
	}
	return true
}
