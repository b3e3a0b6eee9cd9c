package packet

import "encoding/binary"

// Ack is PUBACK, PUBREC, PUBREL or PUBCOMP.
type Ack struct {
	Type  Type
	PID   uint16
	Code  byte // 5.0
	Props Props
}

// Decode reads the body of one of the four.
func (a *Ack) Decode(h Header, body []byte, version byte) error {
	r := reader{b: body}
	*a = Ack{Type: h.Type, PID: r.u16()}
	if r.err == nil && a.PID == 0 {
		return &Error{Malformed, h.Type.String() + " with packet id 0"}
	}
	if version == V5 {
		a.Code, a.Props = r.reason(h.Type)
	}
	if err := r.end(); err != nil {
		return err
	}
	if !validAckCode(h.Type, a.Code) {
		return &Error{Malformed, h.Type.String() + " with a reason code that it does not have"}
	}
	return nil
}

// validAckCode follows tables 3.4.2.1, 3.5.2.1, 3.6.2.1 and 3.7.2.1 of MQTT 5.0.
func validAckCode(t Type, code byte) bool {
	switch code {
	case Success:
		return true
	case PIDNotFound:
		return t == PUBREL || t == PUBCOMP
	case NoMatching, Unspecified, ImplementationError, NotAuthorized, BadTopic, PIDInUse, QuotaExceeded, BadPayloadFormat:
		return t == PUBACK || t == PUBREC
	}
	return false
}

// reason reads the optional reason code and properties at the end of a packet.
func (r *reader) reason(t Type) (code byte, props Props) {
	if r.err != nil || len(r.b) == 0 {
		return 0, nil
	}
	code = r.u8()
	if len(r.b) > 0 {
		props = r.props(t)
	}
	return code, props
}

// Append adds the packet; code and properties are left out when they say nothing.
func (a *Ack) Append(dst []byte, version byte) []byte {
	flags := byte(0)
	if a.Type == PUBREL {
		flags = 2
	}
	if version != V5 || a.Code == 0 && len(a.Props) == 0 {
		dst = append(dst, byte(a.Type)<<4|flags, 2)
		return binary.BigEndian.AppendUint16(dst, a.PID)
	}
	n := 3
	if len(a.Props) > 0 {
		n += a.Props.size()
	}
	dst = appendHeader(dst, a.Type, flags, n)
	dst = append(binary.BigEndian.AppendUint16(dst, a.PID), a.Code)
	if len(a.Props) > 0 {
		dst = a.Props.append(dst)
	}
	return dst
}

// Ping is PINGREQ or PINGRESP.
type Ping struct{ Type Type }

// Decode checks that nothing follows.
func (p *Ping) Decode(h Header, body []byte, _ byte) error {
	p.Type = h.Type
	r := reader{b: body}
	return r.end()
}

// Append adds the packet.
func (p *Ping) Append(dst []byte, _ byte) []byte { return append(dst, byte(p.Type)<<4, 0) }

// Disconnect ends a connection; a server sends it in 5.0 only.
type Disconnect struct {
	Code  byte
	Props Props
}

// Decode reads the body of a DISCONNECT.
func (d *Disconnect) Decode(_ Header, body []byte, version byte) error {
	r := reader{b: body}
	*d = Disconnect{}
	if version == V5 {
		d.Code, d.Props = r.reason(DISCONNECT)
	}
	return r.end()
}

// Append adds the packet.
func (d *Disconnect) Append(dst []byte, version byte) []byte {
	if version != V5 {
		return append(dst, byte(DISCONNECT)<<4, 0)
	}
	return appendReason(dst, DISCONNECT, d.Code, d.Props)
}

// Auth belongs to enhanced authentication, 5.0.
type Auth struct {
	Code  byte
	Props Props
}

// Decode reads the body of an AUTH.
func (a *Auth) Decode(_ Header, body []byte, version byte) error {
	if version != V5 {
		return &Error{ProtocolError, "AUTH before MQTT 5.0"}
	}
	r := reader{b: body}
	*a = Auth{}
	a.Code, a.Props = r.reason(AUTH)
	if err := r.end(); err != nil {
		return err
	}
	if !a.Props.Has(AuthMethod) {
		return &Error{ProtocolError, "AUTH without a method"}
	}
	return nil
}

// Append adds the packet.
func (a *Auth) Append(dst []byte, _ byte) []byte { return appendReason(dst, AUTH, a.Code, a.Props) }

func appendReason(dst []byte, t Type, code byte, props Props) []byte {
	switch {
	case len(props) > 0:
		dst = append(appendHeader(dst, t, 0, 1+props.size()), code)
		return props.append(dst)
	case code != 0:
		return append(dst, byte(t)<<4, 1, code)
	}
	return append(dst, byte(t)<<4, 0)
}
