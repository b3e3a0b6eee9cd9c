package devices

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"busgate/config"
)

// RangeError says that the bytes of a point hold no usable value: a number
// outside min and max, or digits that are none. The point then has no reading;
// its PointError has the code out-of-range.
type RangeError struct{ Text string }

func (e *RangeError) Error() string { return e.Text }

// errShort is a broken invariant of a protocol: fewer bytes than Size says.
var errShort = errors.New("too few bytes for the type")

// Size is the number of bytes that Decode takes for a point of a register
// table: two a register, big-endian words in the order of their addresses, or 1
// for a coil or discrete input.
func Size(p *config.Point) int { return 2 * Words(p) }

// Words is the number of registers of p. A coil or discrete input counts 1.
func Words(p *config.Point) int {
	switch p.Type {
	case "string", "hex":
		return max(p.Length, 1)
	}
	return max(1, (width(p.Type)+1)/2)
}

// width is the number of bytes that carry the value.
func width(typ string) int {
	switch typ {
	case "int8", "uint8", "bcd8":
		return 1
	case "int24", "uint24", "bcd24":
		return 3
	case "int32", "uint32", "sm32", "float32", "bcd32", "mod10k32", "unix32":
		return 4
	case "int48", "uint48", "mod10k48":
		return 6
	case "int64", "uint64", "float64", "mod10k64", "unix64":
		return 8
	}
	return 2 // bool, int16, uint16, sm16, float16, bcd16, sunssf
}

// Decode turns the raw bytes of p into its value: order, raw, sentinel, scale,
// offset, enum or flags, min and max. Registers come as Size says, a coil or
// discrete input as one byte 0 or 1; a sensor's frame may give just the bytes
// of the type (3 for uint24). Text takes raw as a whole.
//
// NotAvailable comes with a null Value: a sentinel, NaN or infinity. A
// *RangeError says that there is no value. Decode does not keep raw, and does
// not allocate for numbers.
func Decode(p *config.Point, raw []byte) (Value, Quality, error) {
	return DecodeScaled(p, raw, 0)
}

// NoScale is the power of ten of a scale register that says "not implemented".
const NoScale = math.MinInt

// DecodeScaled is Decode for a point with a scale register: the value is
// multiplied by 10^power. NoScale, or a power outside -10..10, makes it NotAvailable.
func DecodeScaled(p *config.Point, raw []byte, power int) (Value, Quality, error) {
	if power < -10 || power > 10 {
		return Value{}, NotAvailable, nil
	}
	switch p.Table {
	case "coil", "discrete":
		if len(raw) < 1 {
			return Value{}, NotAvailable, errShort
		}
		return finishBool(p, raw[0] != 0)
	}
	switch p.Type {
	case "string", "hex":
		return decodeText(p, raw)
	}
	var room [8]byte
	b, err := ordered(p, raw, &room)
	if err != nil {
		return Value{}, NotAvailable, err
	}
	switch p.Type {
	case "float16":
		return decodeFloat(p, half(binary.BigEndian.Uint16(b)), uint64(binary.BigEndian.Uint16(b)), power)
	case "float32":
		u := binary.BigEndian.Uint32(b)
		return decodeFloat(p, math.Float32frombits(u), uint64(u), power)
	case "float64":
		u := binary.BigEndian.Uint64(b)
		f := math.Float64frombits(u)
		if invalidFloat(p, f, u) {
			return Value{}, NotAvailable, nil
		}
		return DecodeNumber(p, f, power)
	}
	neg, mag, pattern, err := integer(p, b)
	if err != nil {
		return Value{}, NotAvailable, err
	}
	if invalidInt(p, neg, mag, pattern) {
		return Value{}, NotAvailable, nil
	}
	switch {
	case p.Bit >= 0:
		return finishBool(p, pattern>>p.Bit&1 != 0)
	case p.Type == "bool":
		return finishBool(p, pattern != 0)
	case len(p.Bits) == 2:
		neg, mag = false, pattern>>p.Bits[0]&(1<<(p.Bits[1]-p.Bits[0]+1)-1)
	case len(p.Flags) > 0:
		return flags(p, pattern), Good, nil
	}
	switch p.Type {
	case "sunssf":
		if pattern == 0x8000 {
			return Value{}, NotAvailable, nil
		}
	case "unix32", "unix64":
		return decodeTime(p, neg, mag)
	}
	return DecodeInteger(p, neg, mag, power)
}

// ordered brings raw into the order ABCD and cuts it to the bytes of the type.
func ordered(p *config.Point, raw []byte, room *[8]byte) ([]byte, error) {
	w := width(p.Type)
	if len(raw) == 2 && w == 1 && p.Table != "" {
		if p.Byte == "high" {
			return raw[:1], nil
		}
		return raw[1:], nil
	}
	n := w
	if p.Table != "" {
		n = Size(p)
	}
	if len(raw) < n {
		return nil, errShort
	}
	raw = raw[:n]
	b := room[:n]
	copy(b, raw)
	reorder(b, p.Order)
	return b[len(b)-w:], nil
}

// reorder turns bytes of the given order into ABCD and back: each order is its
// own inverse. An odd number of bytes has no words; it is only turned around.
func reorder(b []byte, order string) {
	n := len(b)
	switch {
	case order == "DCBA", order == "BADC" && n%2 == 1:
		for i := range n / 2 {
			b[i], b[n-1-i] = b[n-1-i], b[i]
		}
	case order == "BADC":
		for i := 0; i+1 < n; i += 2 {
			b[i], b[i+1] = b[i+1], b[i]
		}
	case order == "CDAB" && n%2 == 0:
		for i, j := 0, n-2; i < j; i, j = i+2, j-2 {
			b[i], b[i+1], b[j], b[j+1] = b[j], b[j+1], b[i], b[i+1]
		}
	}
}

// integer reads b, big-endian, as the type says. pattern is the bits as they came.
func integer(p *config.Point, b []byte) (neg bool, mag, pattern uint64, err error) {
	for _, c := range b {
		pattern = pattern<<8 | uint64(c)
	}
	sign := uint64(1) << (8*len(b) - 1)
	switch p.Type {
	case "int8", "int16", "int24", "int32", "int48", "int64", "sunssf":
		if pattern&sign != 0 {
			return true, (sign-1)&^pattern + 1, pattern, nil
		}
	case "sm16", "sm32":
		return pattern&sign != 0, pattern &^ sign, pattern, nil
	case "bcd8", "bcd16", "bcd24", "bcd32":
		for i := len(b)*8 - 4; i >= 0; i -= 4 {
			d := pattern >> i & 15
			if d > 9 {
				if invalidInt(p, false, pattern, pattern) {
					return false, pattern, pattern, nil
				}
				return false, 0, pattern, &RangeError{fmt.Sprintf("%s 0x%0*X is no BCD number; not published", p.Name, 2*len(b), pattern)}
			}
			mag = mag*10 + d
		}
		return false, mag, pattern, nil
	case "mod10k32", "mod10k48", "mod10k64":
		for i := 0; i+1 < len(b); i += 2 {
			w := uint64(b[i])<<8 | uint64(b[i+1])
			if w > 9999 {
				if invalidInt(p, false, pattern, pattern) {
					return false, pattern, pattern, nil
				}
				return false, 0, pattern, &RangeError{fmt.Sprintf("%s has a word of %d, more than 9999; not published", p.Name, w)}
			}
			mag = mag*10000 + w
		}
		return false, mag, pattern, nil
	}
	return false, pattern, pattern, nil
}

// invalidInt says that the raw value is a sentinel, written as the number or as its pattern.
func invalidInt(p *config.Point, neg bool, mag, pattern uint64) bool {
	for _, s := range p.Invalid {
		if uint64(s) == pattern || neg && s < 0 && uint64(-s) == mag {
			return true
		}
	}
	return false
}

func invalidFloat(p *config.Point, f float64, pattern uint64) bool {
	for _, s := range p.Invalid {
		if uint64(s) == pattern || float64(s) == f {
			return true
		}
	}
	return false
}

// flags is the words of the set bits, from the lowest; a set bit without a word is left out.
func flags(p *config.Point, pattern uint64) Value {
	var set []string
	for _, w := range p.Flags {
		if w.N >= 0 && w.N < 64 && pattern>>w.N&1 != 0 {
			set = append(set, w.Text)
		}
	}
	return ListValue(set...)
}

// decodeTime is RFC 3339 in UTC; 0 is a clock that was never set.
func decodeTime(p *config.Point, neg bool, mag uint64) (Value, Quality, error) {
	const year9999 = 253402300799
	if mag == 0 {
		return Value{}, NotAvailable, nil
	}
	if neg || mag > year9999 {
		return Value{}, NotAvailable, &RangeError{fmt.Sprintf("%s %d is no time; not published", p.Name, mag)}
	}
	return TextValue(time.Unix(int64(mag), 0).UTC().Format(time.RFC3339)), Good, nil
}

// decodeText reads text or hex. Orders that swap the bytes of a word swap them here too.
func decodeText(p *config.Point, raw []byte) (Value, Quality, error) {
	b := append([]byte(nil), raw...)
	if p.Table != "" && (p.Order == "BADC" || p.Order == "DCBA") {
		reorder(b, "BADC")
	}
	if p.Type == "hex" {
		return TextValue(fmt.Sprintf("%X", b)), Good, nil
	}
	if p.Table != "" && (p.Byte == "high" || p.Byte == "low") {
		at, n := 0, 0
		if p.Byte == "low" {
			at = 1
		}
		for ; at < len(b); at += 2 {
			b[n] = b[at]
			n++
		}
		b = b[:n]
	}
	if i := strings.IndexByte(string(b), 0); i >= 0 {
		b = b[:i]
	}
	s := strings.Trim(string(b), " ")
	if !utf8.ValidString(s) { // then it is Latin-1: each byte is its code point
		r := make([]rune, len(s))
		for i := range len(s) {
			r[i] = rune(s[i])
		}
		s = string(r)
	}
	return TextValue(s), Good, nil
}
