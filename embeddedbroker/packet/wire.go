package packet

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
)

// reader walks over a body. After the first failure every read gives zero and
// err keeps the reason, so that decoders read straight on and look once.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(code byte, text string) {
	if r.err == nil {
		r.err = &Error{code, text}
	}
	r.b = nil
}

func (r *reader) u8() byte {
	if len(r.b) < 1 {
		r.fail(Malformed, "packet ends inside a byte field")
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) u16() uint16 {
	if len(r.b) < 2 {
		r.fail(Malformed, "packet ends inside a two byte field")
		return 0
	}
	v := binary.BigEndian.Uint16(r.b)
	r.b = r.b[2:]
	return v
}

func (r *reader) u32() uint32 {
	if len(r.b) < 4 {
		r.fail(Malformed, "packet ends inside a four byte field")
		return 0
	}
	v := binary.BigEndian.Uint32(r.b)
	r.b = r.b[4:]
	return v
}

// varint reads a variable byte integer in its shortest form.
func (r *reader) varint() uint32 {
	var v uint32
	for i := range 4 {
		c := r.u8()
		if r.err != nil {
			return 0
		}
		v |= uint32(c&0x7f) << (7 * i)
		if c < 0x80 {
			if i > 0 && c == 0 {
				r.fail(Malformed, "variable byte integer not in its shortest form") // [MQTT-1.5.5-1]
				return 0
			}
			return v
		}
	}
	r.fail(Malformed, "variable byte integer of more than four bytes")
	return 0
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.fail(Malformed, "packet ends inside a field")
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

// bin reads binary data with a two byte length.
func (r *reader) bin() []byte { return r.take(int(r.u16())) }

// str reads a UTF-8 string [MQTT-1.5.4-1] [MQTT-1.5.4-2].
func (r *reader) str() []byte {
	v := r.bin()
	if !validString(v) {
		r.fail(Malformed, "string is not UTF-8 or holds U+0000")
		return nil
	}
	return v
}

// end fails when bytes are left over.
func (r *reader) end() error {
	if r.err == nil && len(r.b) != 0 {
		r.fail(Malformed, "bytes left over at the end of the packet")
	}
	return r.err
}

// validString is the rule for every UTF-8 string: well formed, without
// surrogates (which utf8.Valid refuses) and without U+0000.
func validString(b []byte) bool {
	return utf8.Valid(b) && bytes.IndexByte(b, 0) < 0
}

// sizeVarint is how many bytes the shortest form of v has.
func sizeVarint(v int) int { return max(1, (bits.Len(uint(v))+6)/7) }

func appendVarint(dst []byte, v int) []byte {
	for v >= 0x80 {
		dst = append(dst, byte(v)|0x80)
		v >>= 7
	}
	return append(dst, byte(v))
}

func appendString[T ~string | ~[]byte](dst []byte, s T) []byte {
	dst = append(dst, byte(len(s)>>8), byte(len(s)))
	return append(dst, s...)
}

// appendHeader adds a fixed header.
func appendHeader(dst []byte, t Type, flags byte, length int) []byte {
	return appendVarint(append(dst, byte(t)<<4|flags), length)
}
