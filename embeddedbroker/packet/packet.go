package packet

import "fmt"

// Type is the control packet type, the high four bits of the first byte.
type Type byte

// The control packets (MQTT 5.0, 2.1.2).
const (
	CONNECT Type = iota + 1
	CONNACK
	PUBLISH
	PUBACK
	PUBREC
	PUBREL
	PUBCOMP
	SUBSCRIBE
	SUBACK
	UNSUBSCRIBE
	UNSUBACK
	PINGREQ
	PINGRESP
	DISCONNECT
	AUTH
)

var typeNames = [16]string{"reserved", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP",
	"SUBSCRIBE", "SUBACK", "UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH"}

// String is the name as the standard writes it.
func (t Type) String() string { return typeNames[t&15] }

// Protocol levels as they stand in CONNECT.
const (
	V31  byte = 3
	V311 byte = 4
	V5   byte = 5
)

// MaxLength is the largest remaining length that four bytes can say.
const MaxLength = 268435455

// Reason codes of MQTT 5.0, 2.4, and the return codes of a 3.x CONNACK.
const (
	Success             byte = 0x00
	DisconnectWithWill  byte = 0x04
	NoMatching          byte = 0x10
	NoSubscription      byte = 0x11
	Unspecified         byte = 0x80
	Malformed           byte = 0x81
	ProtocolError       byte = 0x82
	ImplementationError byte = 0x83
	BadVersion          byte = 0x84
	BadClientID         byte = 0x85
	BadLogin            byte = 0x86
	NotAuthorized       byte = 0x87
	ServerUnavailable   byte = 0x88
	ServerBusy          byte = 0x89
	ServerShutdown      byte = 0x8B
	BadAuthMethod       byte = 0x8C
	KeepAliveTimeout    byte = 0x8D
	TakenOver           byte = 0x8E
	BadFilter           byte = 0x8F
	BadTopic            byte = 0x90
	PIDInUse            byte = 0x91
	PIDNotFound         byte = 0x92
	ReceiveMaxExceeded  byte = 0x93
	BadAlias            byte = 0x94
	TooLarge            byte = 0x95
	QuotaExceeded       byte = 0x97
	AdminAction         byte = 0x98
	BadPayloadFormat    byte = 0x99
	RetainUnsupported   byte = 0x9A
	QoSUnsupported      byte = 0x9B
	SharedUnsupported   byte = 0x9E

	Refused3Version  byte = 1
	Refused3ClientID byte = 2
	Refused3Server   byte = 3
	Refused3Login    byte = 4
	Refused3NotAuth  byte = 5
)

// Error is a packet that breaks the standard. Code is the reason code that MQTT
// 5.0 answers with; 0 means that the connection is closed without an answer.
type Error struct {
	Code byte
	Text string
}

func (e *Error) Error() string {
	if e.Code == 0 {
		return e.Text
	}
	return fmt.Sprintf("%s (0x%02X)", e.Text, e.Code)
}

// Header is the fixed header.
type Header struct {
	Type   Type
	Flags  byte // low four bits of the first byte
	Length int  // bytes of the body
	Long   bool // the length was not written in the shortest form
}

// ReadHeader reads the fixed header at the start of b and says how many bytes
// it has. n == 0 with a nil error: b is too short to tell.
func ReadHeader(b []byte) (h Header, n int, err error) {
	if len(b) < 2 {
		return h, 0, nil
	}
	h.Type, h.Flags = Type(b[0]>>4), b[0]&15
	for i := 1; i < 5; i++ {
		if i >= len(b) {
			return h, 0, nil
		}
		h.Length |= int(b[i]&0x7f) << (7 * (i - 1))
		if b[i] < 0x80 {
			h.Long = i > 1 && b[i] == 0
			return h, i + 1, nil
		}
	}
	return h, 0, &Error{Malformed, "remaining length of more than four bytes"}
}

// CheckFlags judges the flag bits of every packet but PUBLISH, whose flags mean
// something. A server says fromClient for what it receives.
func CheckFlags(h Header, version byte) error {
	want := byte(0)
	switch h.Type {
	case 0:
		return &Error{ProtocolError, "packet type 0 is reserved"}
	case PUBLISH:
		return nil
	case PUBREL, SUBSCRIBE, UNSUBSCRIBE:
		want = 2 // [MQTT-3.6.1-1] [MQTT-3.8.1-1] [MQTT-3.10.1-1]
		if version == V31 {
			if h.Flags&^8 == 2 { // 3.1 has a DUP bit here
				return nil
			}
		}
	}
	if h.Flags != want {
		return &Error{Malformed, fmt.Sprintf("%s with flags %04b", h.Type, h.Flags)} // [MQTT-2.2.2-2]
	}
	return nil
}

// Packet is any decoded control packet.
type Packet interface {
	// Append adds the whole packet, as the given protocol level writes it.
	Append(dst []byte, version byte) []byte
}

// Decode reads one body. The slices of the result point into body. version is
// the level agreed in CONNECT; it does not matter for CONNECT itself.
func Decode(h Header, body []byte, version byte) (Packet, error) {
	if err := CheckFlags(h, version); err != nil {
		return nil, err
	}
	if h.Long && version == V5 {
		return nil, &Error{Malformed, "remaining length not in its shortest form"} // [MQTT-1.5.5-1]
	}
	var p interface {
		Packet
		Decode(h Header, body []byte, version byte) error
	}
	switch h.Type {
	case CONNECT:
		p = &Connect{}
	case CONNACK:
		p = &Connack{}
	case PUBLISH:
		p = &Publish{}
	case PUBACK, PUBREC, PUBREL, PUBCOMP:
		p = &Ack{}
	case SUBSCRIBE:
		p = &Subscribe{}
	case SUBACK:
		p = &Suback{}
	case UNSUBSCRIBE:
		p = &Unsubscribe{}
	case UNSUBACK:
		p = &Unsuback{}
	case PINGREQ, PINGRESP:
		p = &Ping{}
	case DISCONNECT:
		p = &Disconnect{}
	default:
		p = &Auth{}
	}
	if err := p.Decode(h, body, version); err != nil {
		return nil, err
	}
	return p, nil
}
