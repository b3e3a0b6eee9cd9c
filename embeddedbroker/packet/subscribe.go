package packet

import "encoding/binary"

// Filter is one line of a SUBSCRIBE.
type Filter struct {
	Filter            string
	QoS               byte
	NoLocal           bool // 5.0
	RetainAsPublished bool // 5.0
	RetainHandling    byte // 0..2, 5.0
}

// Subscribe asks for topics.
type Subscribe struct {
	PID     uint16
	Props   Props
	Filters []Filter
}

// Decode reads the body of a SUBSCRIBE.
func (s *Subscribe) Decode(_ Header, body []byte, version byte) error {
	r := reader{b: body}
	*s = Subscribe{PID: r.u16()}
	if r.err == nil && s.PID == 0 {
		return &Error{Malformed, "SUBSCRIBE with packet id 0"}
	}
	if version == V5 {
		s.Props = r.props(SUBSCRIBE)
	}
	for len(r.b) > 0 {
		f := Filter{Filter: string(r.str())} // [MQTT-3.8.3-1]
		o := r.u8()
		if r.err != nil {
			return r.err
		}
		if !ValidFilter(f.Filter) {
			return &Error{Malformed, "SUBSCRIBE with an empty or malformed filter"}
		}
		f.QoS = o & 3
		if f.QoS == 3 || version != V5 && o&0xFC != 0 || o&0xC0 != 0 || o>>4&3 == 3 {
			return &Error{Malformed, "SUBSCRIBE with bad options"} // [MQTT-3.8.3-4] [MQTT-3.8.3-5]
		}
		f.NoLocal, f.RetainAsPublished, f.RetainHandling = o&4 != 0, o&8 != 0, o>>4&3
		s.Filters = append(s.Filters, f)
	}
	if r.err == nil && len(s.Filters) == 0 {
		return &Error{Malformed, "SUBSCRIBE without a filter"} // [MQTT-3.8.3-2]
	}
	return r.err
}

// Append adds the packet.
func (s *Subscribe) Append(dst []byte, version byte) []byte {
	n := 2
	if version == V5 {
		n += s.Props.size()
	}
	for _, f := range s.Filters {
		n += 3 + len(f.Filter)
	}
	dst = appendHeader(dst, SUBSCRIBE, 2, n)
	dst = binary.BigEndian.AppendUint16(dst, s.PID)
	if version == V5 {
		dst = s.Props.append(dst)
	}
	for _, f := range s.Filters {
		dst = appendString(dst, f.Filter)
		o := f.QoS
		if version == V5 {
			o |= f.RetainHandling << 4
			if f.NoLocal {
				o |= 4
			}
			if f.RetainAsPublished {
				o |= 8
			}
		}
		dst = append(dst, o)
	}
	return dst
}

// Suback answers a SUBSCRIBE with one code a filter.
type Suback struct {
	PID   uint16
	Props Props
	Codes []byte
}

// Decode reads the body of a SUBACK.
func (s *Suback) Decode(_ Header, body []byte, version byte) error {
	r := reader{b: body}
	*s = Suback{PID: r.u16()}
	if version == V5 {
		s.Props = r.props(SUBACK)
	}
	if r.err == nil && len(r.b) == 0 {
		r.fail(Malformed, "SUBACK without a code")
	}
	s.Codes = r.b
	return r.err
}

// Append adds the packet.
func (s *Suback) Append(dst []byte, version byte) []byte {
	return appendCodes(dst, SUBACK, s.PID, s.Props, s.Codes, version)
}

// Unsubscribe takes subscriptions back.
type Unsubscribe struct {
	PID     uint16
	Props   Props
	Filters []string
}

// Decode reads the body of an UNSUBSCRIBE.
func (u *Unsubscribe) Decode(_ Header, body []byte, version byte) error {
	r := reader{b: body}
	*u = Unsubscribe{PID: r.u16()}
	if r.err == nil && u.PID == 0 {
		return &Error{Malformed, "UNSUBSCRIBE with packet id 0"}
	}
	if version == V5 {
		u.Props = r.props(UNSUBSCRIBE)
	}
	for len(r.b) > 0 {
		f := string(r.str()) // [MQTT-3.10.3-1]
		if r.err == nil && !ValidFilter(f) {
			return &Error{Malformed, "UNSUBSCRIBE with an empty or malformed filter"}
		}
		u.Filters = append(u.Filters, f)
	}
	if r.err == nil && len(u.Filters) == 0 {
		return &Error{Malformed, "UNSUBSCRIBE without a filter"} // [MQTT-3.10.3-2]
	}
	return r.err
}

// Append adds the packet.
func (u *Unsubscribe) Append(dst []byte, version byte) []byte {
	n := 2
	if version == V5 {
		n += u.Props.size()
	}
	for _, f := range u.Filters {
		n += 2 + len(f)
	}
	dst = appendHeader(dst, UNSUBSCRIBE, 2, n)
	dst = binary.BigEndian.AppendUint16(dst, u.PID)
	if version == V5 {
		dst = u.Props.append(dst)
	}
	for _, f := range u.Filters {
		dst = appendString(dst, f)
	}
	return dst
}

// Unsuback answers an UNSUBSCRIBE; Codes are there in 5.0 only.
type Unsuback struct {
	PID   uint16
	Props Props
	Codes []byte
}

// Decode reads the body of an UNSUBACK.
func (u *Unsuback) Decode(_ Header, body []byte, version byte) error {
	r := reader{b: body}
	*u = Unsuback{PID: r.u16()}
	if version != V5 {
		return r.end()
	}
	u.Props = r.props(UNSUBACK)
	if r.err == nil && len(r.b) == 0 {
		r.fail(Malformed, "UNSUBACK without a code")
	}
	u.Codes = r.b
	return r.err
}

// Append adds the packet.
func (u *Unsuback) Append(dst []byte, version byte) []byte {
	codes := u.Codes
	if version != V5 {
		codes = nil
	}
	return appendCodes(dst, UNSUBACK, u.PID, u.Props, codes, version)
}

func appendCodes(dst []byte, t Type, pid uint16, props Props, codes []byte, version byte) []byte {
	n := 2 + len(codes)
	if version == V5 {
		n += props.size()
	}
	dst = appendHeader(dst, t, 0, n)
	dst = binary.BigEndian.AppendUint16(dst, pid)
	if version == V5 {
		dst = props.append(dst)
	}
	return append(dst, codes...)
}

// ValidFilter says whether a topic filter is not empty and has its wildcards
// where they may be: '#' alone in the last level, '+' alone in a level
// [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.3-1].
func ValidFilter(f string) bool {
	if f == "" || len(f) > 65535 {
		return false
	}
	for i := range len(f) {
		switch f[i] {
		case '#':
			if i != len(f)-1 || i > 0 && f[i-1] != '/' {
				return false
			}
		case '+':
			if i > 0 && f[i-1] != '/' || i < len(f)-1 && f[i+1] != '/' {
				return false
			}
		}
	}
	return true
}
