package devices

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"strings"
	"time"

	"busgate/config"
	"busgate/config/report"
)

// DecodeInteger is the second half of Decode, for a raw integer that a protocol
// has found itself (the text of a frame, SML): scale, offset, enum, min and max
// of p applied to ±mag * 10^power. A result of more than 64 bits becomes a
// float64 that is Rounded.
func DecodeInteger(p *config.Point, neg bool, mag uint64, power int) (Value, Quality, error) {
	m, e := p.Scale.M, p.Scale.E+power
	if m == 0 { // a point built in code: no scale
		m, e = 1, power
	}
	if m < 0 {
		neg, m = !neg, -m
	}
	hi, lo := bits.Mul64(mag, uint64(m))
	v, ok := Value{}, hi == 0
	if ok {
		v, ok = addDecimal(neg, lo, e, p.Offset)
	}
	if !ok {
		f := float64(mag)
		if neg {
			f = -f
		}
		if v = rounded(shift10(f*float64(m), e) + p.Offset.Float()); v.IsNull() {
			return v, NotAvailable, nil // beyond any float
		}
	}
	if len(p.Enum) > 0 && v.exp == 0 && v.kind <= Uint {
		if w, ok := word(p.Enum, int64(v.bits)); ok {
			return TextValue(w), Good, nil
		}
	}
	return v, Good, inRange(p, v)
}

// addDecimal is ±mag * 10^e + d, exact, and false when that takes more than 64 bits.
func addDecimal(neg bool, mag uint64, e int, d config.Decimal) (Value, bool) {
	if e != int(int8(e)) {
		return Value{}, false
	}
	oneg, omag := d.M < 0, uint64(max(d.M, -d.M))
	if omag != 0 {
		ok := true
		for ; ok && e > d.E; e-- {
			mag, ok = times10(mag)
		}
		for ; ok && d.E > e; d.E-- {
			omag, ok = times10(omag)
		}
		if !ok {
			return Value{}, false
		}
		switch {
		case neg == oneg:
			var carry uint64
			if mag, carry = bits.Add64(mag, omag, 0); carry != 0 {
				return Value{}, false
			}
		case mag >= omag:
			mag -= omag
		default:
			mag, neg = omag-mag, oneg
		}
	}
	if !neg || mag == 0 {
		if mag > math.MaxInt64 {
			return UintValue(mag, e), true
		}
		return IntValue(int64(mag), e), true
	}
	if mag > 1<<63 {
		return Value{}, false
	}
	return IntValue(-int64(mag), e), true
}

func times10(n uint64) (uint64, bool) {
	hi, lo := bits.Mul64(n, 10)
	return lo, hi == 0
}

// decodeFloat keeps an unscaled float32 as it is; scaled it has 7 significant digits.
func decodeFloat(p *config.Point, f float32, pattern uint64, power int) (Value, Quality, error) {
	if invalidFloat(p, float64(f), pattern) {
		return Value{}, NotAvailable, nil
	}
	if power == 0 && plain(p) && len(p.Enum) == 0 {
		v := Float32Value(f)
		if v.IsNull() {
			return v, NotAvailable, nil
		}
		return v, Good, inRange(p, v)
	}
	v, q, err := DecodeNumber(p, float64(f), power)
	if v.kind == Float64 {
		v = Float64Value(significant(v.Float(), 7))
	}
	return v, q, err
}

// DecodeNumber is the second half of Decode for a raw float64.
func DecodeNumber(p *config.Point, f float64, power int) (Value, Quality, error) {
	if !plain(p) || power != 0 {
		m := p.Scale
		if m.M == 0 {
			m.M, m.E = 1, 0
		}
		f = shift10(f*float64(m.M), m.E+power)
		if p.Offset.M != 0 {
			f += p.Offset.Float()
		}
	}
	v := Float64Value(f)
	if v.IsNull() {
		return v, NotAvailable, nil
	}
	if len(p.Enum) > 0 && f == math.Trunc(f) && math.Abs(f) < 1<<53 {
		if w, ok := word(p.Enum, int64(f)); ok {
			return TextValue(w), Good, nil
		}
	}
	return v, Good, inRange(p, v)
}

// DecodeLong is DecodeNumber for a number that was written with more digits than
// 64 bits hold: the value is Rounded.
func DecodeLong(p *config.Point, f float64) (Value, Quality, error) {
	v, q, err := DecodeNumber(p, f, 0)
	if v.kind == Float64 {
		v = rounded(v.Float())
	}
	return v, q, err
}

// plain says that p has neither scale nor offset.
func plain(p *config.Point) bool {
	s := p.Scale
	return p.Offset.M == 0 && (s.M == 0 || s.M == 1 && s.E == 0)
}

// significant rounds f to n significant decimal digits.
func significant(f float64, n int) float64 {
	if f == 0 || math.IsNaN(f) || math.IsInf(f, 0) {
		return f
	}
	d := n - 1 - int(math.Floor(math.Log10(math.Abs(f))))
	if d < -300 || d > 300 {
		return f
	}
	if d < 0 {
		p := math.Pow10(-d)
		return math.Round(f/p) * p
	}
	return math.Round(f*math.Pow10(d)) / math.Pow10(d)
}

// half is a float16 (IEEE 754 binary16) as a float32; every one of them fits.
func half(u uint16) float32 {
	exp, frac := int(u>>10&31), float64(u&0x3FF)
	var f float64
	switch exp {
	case 0:
		f = math.Ldexp(frac, -24)
	case 31:
		f = math.Inf(1)
		if frac != 0 {
			f = math.NaN()
		}
	default:
		f = math.Ldexp(frac+1024, exp-25)
	}
	if u&0x8000 != 0 {
		f = -f
	}
	return float32(f)
}

func finishBool(p *config.Point, b bool) (Value, Quality, error) {
	n := int64(0)
	if b {
		n = 1
	}
	if w, ok := word(p.Enum, n); ok {
		return TextValue(w), Good, nil
	}
	return BoolValue(b), Good, nil
}

func word(words []config.Word, n int64) (string, bool) {
	for i := range words {
		if words[i].N == n {
			return words[i].Text, true
		}
	}
	return "", false
}

// inRange checks min and max.
func inRange(p *config.Point, v Value) error {
	if p.Min == nil && p.Max == nil || !v.IsNumber() {
		return nil
	}
	f := v.Float()
	if (p.Min == nil || f >= *p.Min) && (p.Max == nil || f <= *p.Max) {
		return nil
	}
	return &RangeError{fmt.Sprintf("%s %s is %s; not published", p.Name, withUnit(human(v), p.Unit), outside(p))}
}

// outside is "outside 0 to 300 cm".
func outside(p *config.Point) string {
	switch {
	case p.Max == nil:
		return "below " + withUnit(human(Float64Value(*p.Min)), p.Unit)
	case p.Min == nil:
		return "above " + withUnit(human(Float64Value(*p.Max)), p.Unit)
	}
	return "outside " + allowed(p)
}

// allowed is "0 to 300 cm".
func allowed(p *config.Point) string {
	return human(Float64Value(*p.Min)) + " to " + withUnit(human(Float64Value(*p.Max)), p.Unit)
}

// human is a number with a gap between thousands: 6 553.5.
func human(v Value) string {
	s := v.String()
	whole, rest, _ := strings.Cut(s, ".")
	if strings.ContainsAny(s, "eE") || len(whole) < 4 {
		return s
	}
	var n int64
	if _, err := fmt.Sscan(whole, &n); err != nil {
		return s
	}
	if whole = report.Count(n); rest != "" {
		whole += "." + rest
	}
	return whole
}

func withUnit(s, unit string) string {
	if unit == "" {
		return s
	}
	return s + " " + unit
}

// Power is what the bytes of a scale register say (SunSpec sunssf): a power of
// ten, or NoScale.
func Power(raw []byte) int {
	if len(raw) < 2 {
		return NoScale
	}
	n := int(int16(binary.BigEndian.Uint16(raw)))
	if n < -10 || n > 10 {
		return NoScale
	}
	return n
}

// Tries is "2 tries of 500 ms".
func Tries(n int, each time.Duration) string {
	s := fmt.Sprintf("%d tries of ", n)
	if n == 1 {
		s = "1 try of "
	}
	if each >= time.Second && each%(100*time.Millisecond) == 0 {
		return s + fmt.Sprintf("%g s", each.Seconds())
	}
	return s + fmt.Sprintf("%d ms", each.Round(time.Millisecond)/time.Millisecond)
}
