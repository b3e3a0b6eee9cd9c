package devices

import (
	"math"
	"math/big"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Kind says what a Value holds.
type Kind uint8

const (
	Null    Kind = iota // nothing; goes with NotAvailable
	Int                 // signed bits * 10^exp
	Uint                // unsigned bits * 10^exp
	Float32             // as the device sent it
	Float64
	Bool
	Text
	List // words, from the flags of a register
)

// Value is what a point measured, without loss: an integer never passes through
// a float64, so a counter above 2^53 keeps its last unit. The zero Value is null.
// A Value is small, immutable and may be copied and kept.
type Value struct {
	kind Kind
	exp  int8
	bits uint64
	text string // Text; List: the words, each followed by a zero byte
}

// IntValue is n * 10^exp.
func IntValue(n int64, exp int) Value {
	if exp != int(int8(exp)) {
		return Float64Value(float64(n) * math.Pow10(exp))
	}
	return Value{kind: Int, exp: int8(exp), bits: uint64(n)}
}

// UintValue is n * 10^exp.
func UintValue(n uint64, exp int) Value {
	if exp != int(int8(exp)) {
		return Float64Value(float64(n) * math.Pow10(exp))
	}
	return Value{kind: Uint, exp: int8(exp), bits: n}
}

// Float32Value is f, or null when f is no finite number.
func Float32Value(f float32) Value {
	if f64 := float64(f); math.IsNaN(f64) || math.IsInf(f64, 0) {
		return Value{}
	}
	return Value{kind: Float32, bits: uint64(math.Float32bits(f))}
}

// Float64Value is f, or null when f is no finite number.
func Float64Value(f float64) Value {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return Value{}
	}
	return Value{kind: Float64, bits: math.Float64bits(f)}
}

// rounded is f in the place of a number that 64 bits cannot hold.
func rounded(f float64) Value {
	v := Float64Value(f)
	if v.kind == Float64 {
		v.exp = 1 // has no other meaning in a float
	}
	return v
}

// Rounded says that v stands for an integer or decimal of more than 64 bits,
// whose last digits are lost.
func (v Value) Rounded() bool { return v.kind == Float64 && v.exp != 0 }

// BoolValue is b.
func BoolValue(b bool) Value {
	if b {
		return Value{kind: Bool, bits: 1}
	}
	return Value{kind: Bool}
}

// TextValue is s.
func TextValue(s string) Value { return Value{kind: Text, text: s} }

// ListValue is a list of words; none is an empty list, not null.
func ListValue(words ...string) Value {
	var b strings.Builder
	for _, w := range words {
		b.WriteString(strings.ReplaceAll(w, "\x00", ""))
		b.WriteByte(0)
	}
	return Value{kind: List, text: b.String()}
}

// Kind is what v holds.
func (v Value) Kind() Kind { return v.kind }

// IsNull says that v holds nothing.
func (v Value) IsNull() bool { return v.kind == Null }

// IsNumber says that Float means something: an integer or a float.
func (v Value) IsNumber() bool { return v.kind >= Int && v.kind <= Float64 }

// Bool is the truth of a Bool; of a number, whether it is not 0.
func (v Value) Bool() bool {
	if v.IsNumber() {
		return v.Float() != 0
	}
	return v.kind == Bool && v.bits != 0
}

// Words are the entries of a List, nil for any other kind.
func (v Value) Words() []string {
	if v.kind != List || v.text == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(v.text, "\x00"), "\x00")
}

// Float is the nearest float64: 0 or 1 for a Bool, NaN for text, lists and null.
func (v Value) Float() float64 {
	switch v.kind {
	case Int:
		return shift10(float64(int64(v.bits)), int(v.exp))
	case Uint:
		return shift10(float64(v.bits), int(v.exp))
	case Float32:
		return float64(math.Float32frombits(uint32(v.bits)))
	case Float64:
		return math.Float64frombits(v.bits)
	case Bool:
		return float64(v.bits)
	}
	return math.NaN()
}

// Equal says that both are the same value: 1.0 equals 1, and a number never
// equals a text. Two nulls are equal.
func (v Value) Equal(w Value) bool {
	if v == w {
		return true
	}
	if !v.IsNumber() || !w.IsNumber() {
		return false
	}
	if v.kind == w.kind && v.exp == w.exp && v.kind <= Uint {
		return false
	}
	return v.rat().Cmp(w.rat()) == 0
}

// rat is the exact number.
func (v Value) rat() *big.Rat {
	r := new(big.Rat)
	switch v.kind {
	case Int:
		r.SetInt64(int64(v.bits))
	case Uint:
		r.SetUint64(v.bits)
	default:
		r.SetFloat64(v.Float())
		return r
	}
	p := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(max(v.exp, -v.exp))), nil)
	if v.exp < 0 {
		return r.Quo(r, new(big.Rat).SetInt(p))
	}
	return r.Mul(r, new(big.Rat).SetInt(p))
}

// String is how people read v: 230.1, true, run; null for nothing.
func (v Value) String() string {
	switch v.kind {
	case Text:
		return v.text
	case List:
		return strings.Join(v.Words(), ", ")
	}
	return string(v.AppendJSON(nil, -1))
}

// AppendJSON appends v as JSON. digits is how many decimals a number gets;
// negative means as many as the value has: those of its scale, or the shortest
// text that gives the same float. There is no exponent for 1e-6 <= |v| < 1e15,
// and integers of 64 bit stand in full. It does not allocate when dst has room.
func (v Value) AppendJSON(dst []byte, digits int) []byte {
	switch v.kind {
	case Int:
		n := int64(v.bits)
		if n < 0 {
			return appendDecimal(dst, true, uint64(-n), int(v.exp), digits)
		}
		return appendDecimal(dst, false, uint64(n), int(v.exp), digits)
	case Uint:
		return appendDecimal(dst, false, v.bits, int(v.exp), digits)
	case Float32:
		return appendFloat(dst, v.Float(), 32, digits)
	case Float64:
		return appendFloat(dst, v.Float(), 64, digits)
	case Bool:
		return strconv.AppendBool(dst, v.bits != 0)
	case Text:
		return appendQuoted(dst, v.text)
	case List:
		dst = append(dst, '[')
		for i, rest := 0, v.text; rest != ""; i++ {
			var w string
			w, rest, _ = strings.Cut(rest, "\x00")
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendQuoted(dst, w)
		}
		return append(dst, ']')
	}
	return append(dst, "null"...)
}

// appendDecimal appends mag * 10^exp with its sign.
func appendDecimal(dst []byte, neg bool, mag uint64, exp, digits int) []byte {
	var room [20]byte
	s := strconv.AppendUint(room[:0], mag, 10)
	if digits >= 0 && -exp > digits {
		s = roundDigits(s, -exp-digits)
		exp = -digits
	}
	zero := len(s) == 1 && s[0] == '0'
	if neg && !zero {
		dst = append(dst, '-')
	}
	point := len(s) + exp // digits before the decimal point
	switch {
	case zero && exp >= 0:
		dst = append(dst, '0')
	case !zero && (exp > 0 && point > 15 || point < -5):
		dst = append(dst, s[0])
		if len(s) > 1 {
			dst = append(append(dst, '.'), s[1:]...)
		}
		dst = append(dst, 'e')
		return strconv.AppendInt(dst, int64(point-1), 10)
	case exp >= 0:
		dst = append(dst, s...)
		dst = appendZeros(dst, exp)
	case point <= 0:
		dst = append(dst, '0', '.')
		dst = appendZeros(dst, -point)
		dst = append(dst, s...)
	default:
		dst = append(dst, s[:point]...)
		dst = append(append(dst, '.'), s[point:]...)
	}
	if digits > max(-exp, 0) {
		if exp >= 0 {
			dst = append(dst, '.')
		}
		dst = appendZeros(dst, digits-max(-exp, 0))
	}
	return dst
}

// roundDigits drops the last n digits of s, half away from zero.
func roundDigits(s []byte, n int) []byte {
	if n > len(s) {
		return append(s[:0], '0')
	}
	up := s[len(s)-n] >= '5'
	s = s[:len(s)-n]
	for i := len(s) - 1; up && i >= 0; i-- {
		if up = s[i] == '9'; up {
			s[i] = '0'
		} else {
			s[i]++
		}
	}
	if up {
		s = append(s, 0)
		copy(s[1:], s)
		s[0] = '1'
	}
	if len(s) == 0 {
		s = append(s, '0')
	}
	return s
}

func appendZeros(dst []byte, n int) []byte {
	for range n {
		dst = append(dst, '0')
	}
	return dst
}

func appendFloat(dst []byte, f float64, size, digits int) []byte {
	a := math.Abs(f)
	switch {
	case a == 0:
		f = 0 // not -0
	case a >= 1e15 || a < 1e-6 && digits < 0:
		return strconv.AppendFloat(dst, f, 'e', -1, size)
	}
	from := len(dst)
	dst = strconv.AppendFloat(dst, f, 'f', digits, size)
	if text := dst[from:]; f < 0 && strings.Trim(string(text), "-0.") == "" {
		return append(dst[:from], text[1:]...) // -0.0 is 0.0
	}
	return dst
}

// appendQuoted appends s as a JSON string (RFC 8259, 7); bytes that are no
// UTF-8 become U+FFFD.
func appendQuoted(dst []byte, s string) []byte {
	const hexDigits = "0123456789abcdef"
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		case c == '\t':
			dst = append(dst, '\\', 't')
		case c < 0x20 || c == 0x7f:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		case c < utf8.RuneSelf:
			dst = append(dst, c)
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			dst = utf8.AppendRune(dst, r)
			i += n
			continue
		}
		i++
	}
	return append(dst, '"')
}

// shift10 is f * 10^e, divided where that is the more exact way.
func shift10(f float64, e int) float64 {
	if e < 0 {
		return f / math.Pow10(-e)
	}
	return f * math.Pow10(e)
}
