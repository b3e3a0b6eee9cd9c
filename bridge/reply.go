package bridge

import (
	"encoding/binary"
	"strings"

	"busgate/embeddedbroker"
)

// Properties of an MQTT 5 publish that travel with the message [MQTT 5.0, 2.2.2.2].
const (
	propPayloadFormat = 0x01
	propExpiry        = 0x02
	propContentType   = 0x03
	propResponseTopic = 0x08
	propCorrelation   = 0x09
	propUser          = 0x26
)

// maxReply bounds what a command may ask to be sent back with each answer.
const maxReply = 1 << 10

// replyTo is where else an answer goes: request and response [MQTT 5.0, 4.10].
type replyTo struct {
	topic       string // "" = nowhere else
	correlation []byte // nil = none
}

// parseReply finds response topic and correlation data among the properties of
// a message. Properties that make no sense, or are too long, mean no reply.
func parseReply(props []byte) replyTo {
	var r replyTo
	for len(props) > 0 {
		id := props[0]
		props = props[1:]
		n := 0 // of the fields: fixed bytes, or length-prefixed ones
		switch id {
		case propPayloadFormat:
			props, n = skip(props, 1), 0
		case propExpiry:
			props, n = skip(props, 4), 0
		case propContentType, propResponseTopic, propCorrelation:
			n = 1
		case propUser:
			n = 2
		default:
			return replyTo{}
		}
		for range n {
			if len(props) < 2 {
				return replyTo{}
			}
			l := int(binary.BigEndian.Uint16(props))
			if len(props) < 2+l {
				return replyTo{}
			}
			switch id {
			case propResponseTopic:
				r.topic = string(props[2 : 2+l])
			case propCorrelation:
				r.correlation = props[2 : 2+l : 2+l]
			}
			props = props[2+l:]
		}
	}
	if r.topic == "" || len(r.topic)+len(r.correlation) > maxReply {
		return replyTo{}
	}
	return r
}

func skip(p []byte, n int) []byte { return p[min(n, len(p)):] }

// props are the properties of the answer.
func (r replyTo) props() []byte {
	if r.correlation == nil {
		return nil
	}
	p := binary.BigEndian.AppendUint16([]byte{propCorrelation}, uint16(len(r.correlation)))
	return append(p, r.correlation...)
}

// allowed says that an answer may go to the topic: no filter, nothing of the
// broker, no topic that only the gateway itself may write, and no command, or a
// client could make the gateway say what the client must not.
func (r replyTo) allowed(base string) bool {
	if r.topic == "" || strings.HasPrefix(r.topic, "$") || strings.ContainsAny(r.topic, "+#\x00") {
		return false
	}
	p, ours := parseTopic(base, r.topic)
	return !ours || !p.reserved() && !p.command()
}

// answer is the message that goes to the response topic.
func (b *Bridge) answer(r replyTo, payload []byte) *embeddedbroker.Message {
	m := b.message(r.topic, payload, false)
	m.Props = r.props()
	return m
}
