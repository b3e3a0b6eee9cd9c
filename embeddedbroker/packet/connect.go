package packet

import (
	"encoding/binary"
	"fmt"
)

// Connect is the first packet of a client.
type Connect struct {
	Version     byte // V31, V311 or V5
	Bridge      bool // level | 0x80: a mosquitto bridge that wants no echo
	CleanStart  bool // 3.x: clean session
	KeepAlive   uint16
	ClientID    string
	Will        *Will
	HasUser     bool
	HasPassword bool
	User        string
	Password    []byte
	Props       Props
}

// Will is the message that a server publishes for a client that is gone.
type Will struct {
	Topic   string
	Payload []byte
	QoS     byte
	Retain  bool
	Props   Props
}

// Decode reads the body of a CONNECT. Version is set as soon as it is known,
// also when an error is returned: the answer depends on it.
func (c *Connect) Decode(_ Header, body []byte, _ byte) error {
	*c = Connect{}
	r := reader{b: body}
	if err := c.decodeLevel(&r); err != nil {
		return err
	}
	flags := r.u8()
	c.KeepAlive = r.u16()
	if r.err == nil {
		if err := c.checkFlags(flags); err != nil {
			return err
		}
	}
	c.CleanStart = flags&2 != 0
	if c.Version == V5 {
		c.Props = r.props(CONNECT)
	}
	c.ClientID = string(r.str()) // [MQTT-3.1.3-4]
	if flags&4 != 0 {
		w := &Will{QoS: flags >> 3 & 3, Retain: flags&32 != 0}
		if c.Version == V5 {
			w.Props = r.props(willSet)
		}
		w.Topic = string(r.str()) // [MQTT-3.1.3-11]
		w.Payload = r.bin()
		if r.err == nil && (w.Topic == "" || !ValidTopic(w.Topic)) {
			return &Error{Malformed, "will topic is empty or holds a wildcard"}
		}
		c.Will = w
	}
	if c.HasUser = flags&128 != 0; c.HasUser {
		c.User = string(r.str()) // [MQTT-3.1.3-12]
	}
	if c.HasPassword = flags&64 != 0; c.HasPassword {
		c.Password = r.bin()
	}
	return r.end()
}

// decodeLevel reads protocol name and level.
func (c *Connect) decodeLevel(r *reader) error {
	name := string(r.str())
	level := r.u8()
	if r.err != nil {
		return &Error{0, "CONNECT ends before the protocol level"}
	}
	bare := level &^ 0x80
	switch {
	case name != "MQTT" && name != "MQIsdp":
		return &Error{0, fmt.Sprintf("protocol name %.16q", name)} // [MQTT-3.1.2-1]
	case name == "MQIsdp" && bare == V31, name == "MQTT" && (bare == V311 || level == V5):
	default:
		c.Version = V311
		if name == "MQTT" && level > V5 {
			c.Version = V5
		}
		return &Error{BadVersion, fmt.Sprintf("protocol level %d", level)} // [MQTT-3.1.2-2]
	}
	c.Version, c.Bridge = bare, level&0x80 != 0
	return nil
}

func (c *Connect) checkFlags(flags byte) error {
	will := flags&4 != 0
	switch {
	case flags&1 != 0 && c.Version != V31:
		return &Error{Malformed, "reserved flag of CONNECT is set"} // [MQTT-3.1.2-3]
	case !will && flags&0x38 != 0:
		return &Error{Malformed, "will flags without a will"} // [MQTT-3.1.2-11] [MQTT-3.1.2-13]
	case flags&0x18 == 0x18:
		return &Error{Malformed, "will with QoS 3"} // [MQTT-3.1.2-12]
	case c.Version != V5 && flags&0xC0 == 0x40:
		return &Error{Malformed, "password without a user name"} // 3.1.1 [MQTT-3.1.2-22]
	}
	return nil
}

// Append adds the packet in the form of c.Version; version is ignored.
func (c *Connect) Append(dst []byte, _ byte) []byte {
	name, level, flags := "MQTT", c.Version, byte(0)
	if c.Version == V31 {
		name = "MQIsdp"
	}
	if c.Bridge {
		level |= 0x80
	}
	n := 2 + len(name) + 4 + 2 + len(c.ClientID)
	if c.CleanStart {
		flags |= 2
	}
	if w := c.Will; w != nil {
		flags |= 4 | w.QoS<<3
		if w.Retain {
			flags |= 32
		}
		n += 4 + len(w.Topic) + len(w.Payload)
		if c.Version == V5 {
			n += w.Props.size()
		}
	}
	if c.HasUser {
		flags |= 128
		n += 2 + len(c.User)
	}
	if c.HasPassword {
		flags |= 64
		n += 2 + len(c.Password)
	}
	if c.Version == V5 {
		n += c.Props.size()
	}
	dst = appendHeader(dst, CONNECT, 0, n)
	dst = append(appendString(dst, name), level, flags)
	dst = binary.BigEndian.AppendUint16(dst, c.KeepAlive)
	if c.Version == V5 {
		dst = c.Props.append(dst)
	}
	dst = appendString(dst, c.ClientID)
	if w := c.Will; w != nil {
		if c.Version == V5 {
			dst = w.Props.append(dst)
		}
		dst = appendString(appendString(dst, w.Topic), w.Payload)
	}
	if c.HasUser {
		dst = appendString(dst, c.User)
	}
	if c.HasPassword {
		dst = appendString(dst, c.Password)
	}
	return dst
}

// Connack answers a CONNECT.
type Connack struct {
	SessionPresent bool
	Code           byte // return code (3.x) or reason code (5.0)
	Props          Props
}

// Decode reads the body of a CONNACK.
func (c *Connack) Decode(_ Header, body []byte, version byte) error {
	r := reader{b: body}
	*c = Connack{}
	flags := r.u8()
	c.Code = r.u8()
	if flags > 1 {
		r.fail(Malformed, "reserved flags of CONNACK are set") // [MQTT-3.2.2-1]
	}
	c.SessionPresent = flags == 1
	if version == V5 {
		c.Props = r.props(CONNACK)
	}
	return r.end()
}

// Append adds the packet.
func (c *Connack) Append(dst []byte, version byte) []byte {
	n, flags := 2, byte(0)
	if c.SessionPresent {
		flags = 1
	}
	if version == V5 {
		n += c.Props.size()
	}
	dst = append(appendHeader(dst, CONNACK, 0, n), flags, c.Code)
	if version == V5 {
		dst = c.Props.append(dst)
	}
	return dst
}
