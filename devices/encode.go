package devices

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"math/big"
	"regexp"
	"strconv"
	"strings"
	"time"

	"busgate/config"
)

// Refusal is a command that cannot be done: Code is the word of a Result.
type Refusal struct{ Code, Text string }

func (e *Refusal) Error() string { return e.Text }

// number is what a command may be: finite, and short enough to be computed exactly.
var number = regexp.MustCompile(`^[+-]?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,2})?$`)

// Encode turns the text of a command into the raw bytes that Decode would read
// back as that value. power is that of a scale register, 0 without one. mask is
// nil when all of raw counts, else its set bits are what the point owns of the
// register. The error is a *Refusal with the code out-of-range.
func Encode(p *config.Point, text string, power int) (raw, mask []byte, err error) {
	text = strings.TrimSpace(text)
	if p.Table == "coil" || p.Bit >= 0 || p.Type == "bool" {
		return encodeBool(p, text)
	}
	switch p.Type {
	case "string", "hex":
		raw, err = encodeText(p, text)
		return raw, nil, err
	case "unix32", "unix64":
		if t, err := time.Parse(time.RFC3339, text); err == nil {
			text = strconv.FormatInt(t.Unix(), 10)
		}
	}
	value, enum, err := parse(p, text)
	if err != nil {
		return nil, nil, err
	}
	if !enum {
		if f, _ := value.Float64(); p.Min != nil && f < *p.Min || p.Max != nil && f > *p.Max {
			return nil, nil, &Refusal{"out-of-range", p.Name + " must be " + permitted(p)}
		}
		value.Sub(value, ratOf(p.Offset))
		value.Quo(value, scaleOf(p, power))
	}
	b := make([]byte, Size(p))
	switch p.Type {
	case "float32":
		f, _ := value.Float32()
		if math.IsInf(float64(f), 0) {
			return nil, nil, &Refusal{"out-of-range", p.Name + " does not fit " + p.Type}
		}
		binary.BigEndian.PutUint32(b, math.Float32bits(f))
	case "float64":
		f, _ := value.Float64()
		binary.BigEndian.PutUint64(b, math.Float64bits(f))
	case "float16":
		return nil, nil, &Refusal{"out-of-range", p.Name + " cannot be written as float16"}
	default:
		return encodeInteger(p, value, power, b)
	}
	reorder(b, p.Order)
	return b, nil, nil
}

// parse reads a number or an enum word.
func parse(p *config.Point, text string) (v *big.Rat, enum bool, err error) {
	for _, w := range p.Enum {
		if strings.EqualFold(w.Text, text) || strconv.FormatInt(w.N, 10) == text {
			return new(big.Rat).SetInt64(w.N), true, nil
		}
	}
	if len(p.Enum) == 0 && number.MatchString(text) {
		if v, ok := new(big.Rat).SetString(text); ok {
			return v, false, nil
		}
	}
	return nil, false, &Refusal{"out-of-range", fmt.Sprintf("%s cannot be %q; allowed: %s", p.Name, cut(text), permitted(p))}
}

// permitted is what a command may be: "0 to 100 %", "off, on".
func permitted(p *config.Point) string {
	switch {
	case len(p.Enum) > 0:
		words := make([]string, len(p.Enum))
		for i, w := range p.Enum {
			words[i] = w.Text
		}
		return strings.Join(words, ", ")
	case p.Min != nil && p.Max != nil:
		return allowed(p)
	case p.Min != nil:
		return "at least " + withUnit(human(Float64Value(*p.Min)), p.Unit)
	case p.Max != nil:
		return "at most " + withUnit(human(Float64Value(*p.Max)), p.Unit)
	}
	return "a number"
}

func cut(s string) string {
	if r := []rune(s); len(r) > 64 {
		return string(r[:64]) + "…"
	}
	return s
}

func ratOf(d config.Decimal) *big.Rat {
	r := new(big.Rat).SetInt64(d.M)
	p := new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(max(d.E, -d.E))), nil))
	if d.E < 0 {
		return r.Quo(r, p)
	}
	return r.Mul(r, p)
}

func scaleOf(p *config.Point, power int) *big.Rat {
	m := p.Scale
	if m.M == 0 {
		m.M, m.E = 1, 0
	}
	m.E += power
	return ratOf(m)
}

func encodeBool(p *config.Point, text string) (raw, mask []byte, err error) {
	on := false
	switch low := strings.ToLower(text); {
	case low == "on" || low == "true" || low == "1":
		on = true
	case low == "off" || low == "false" || low == "0":
	default:
		known := false
		for _, w := range p.Enum {
			if strings.EqualFold(w.Text, text) {
				on, known = w.N != 0, true
			}
		}
		if !known {
			what := "on, off"
			if len(p.Enum) > 0 {
				what = permitted(p)
			}
			return nil, nil, &Refusal{"out-of-range", fmt.Sprintf("%s cannot be %q; allowed: %s", p.Name, cut(text), what)}
		}
	}
	if p.Table == "coil" {
		if on {
			return []byte{1}, nil, nil
		}
		return []byte{0}, nil, nil
	}
	raw = make([]byte, Size(p))
	if p.Bit < 0 {
		if on {
			raw[len(raw)-1] = 1
		}
		reorder(raw, p.Order)
		return raw, nil, nil
	}
	mask = make([]byte, len(raw))
	at := len(raw) - 1 - p.Bit/8
	mask[at] = 1 << (p.Bit % 8)
	if on {
		raw[at] = mask[at]
	}
	reorder(raw, p.Order)
	reorder(mask, p.Order)
	return raw, mask, nil
}

// encodeInteger writes an exact raw integer into b.
func encodeInteger(p *config.Point, v *big.Rat, power int, b []byte) (raw, mask []byte, err error) {
	lo, hi := rawRange(p)
	if !v.IsInt() {
		step, _ := scaleOf(p, power).Float64()
		return nil, nil, &Refusal{"out-of-range", fmt.Sprintf("%s must be in steps of %s", p.Name, withUnit(human(Float64Value(math.Abs(step))), p.Unit))}
	}
	n := v.Num()
	if n.Cmp(lo) < 0 || n.Cmp(hi) > 0 {
		from, to := engineering(p, lo, power), engineering(p, hi, power)
		if from > to {
			from, to = to, from
		}
		return nil, nil, &Refusal{"out-of-range", fmt.Sprintf("%s must be %s to %s", p.Name, human(Float64Value(from)), withUnit(human(Float64Value(to)), p.Unit))}
	}
	w := width(p.Type)
	pattern := bitsOf(p, n, w)
	if len(p.Bits) == 2 {
		pattern <<= p.Bits[0]
		m := (uint64(1)<<(p.Bits[1]-p.Bits[0]+1) - 1) << p.Bits[0]
		mask = make([]byte, len(b))
		put(mask, w, m)
	}
	if w == 1 {
		mask = make([]byte, 2)
		at := 1
		if p.Byte == "high" {
			at = 0
		}
		mask[at], b[at] = 0xFF, byte(pattern)
		return b, mask, nil
	}
	put(b, w, pattern)
	if n.Sign() < 0 && len(b) > w {
		b[0] = 0xFF // 24 bit in two registers: the sign goes on
	}
	reorder(b, p.Order)
	reorder(mask, p.Order)
	return b, mask, nil
}

// put writes the w low bytes of pattern at the end of b, big-endian.
func put(b []byte, w int, pattern uint64) {
	for i := range w {
		b[len(b)-1-i] = byte(pattern >> (8 * i))
	}
}

// bitsOf is the pattern of a raw integer in its type.
func bitsOf(p *config.Point, n *big.Int, w int) uint64 {
	mag := new(big.Int).Abs(n).Uint64()
	switch p.Type {
	case "sm16", "sm32":
		if n.Sign() < 0 {
			return mag | 1<<(8*w-1)
		}
		return mag
	case "bcd8", "bcd16", "bcd24", "bcd32":
		var out uint64
		for i := 0; mag > 0; i += 4 {
			out |= mag % 10 << i
			mag /= 10
		}
		return out
	case "mod10k32", "mod10k48", "mod10k64":
		var out uint64
		for i := 0; mag > 0; i += 16 {
			out |= mag % 10000 << i
			mag /= 10000
		}
		return out
	}
	if n.Sign() < 0 {
		return -mag
	}
	return mag
}

// rawRange is the smallest and largest raw integer of a type.
func rawRange(p *config.Point) (lo, hi *big.Int) {
	w := uint(8 * width(p.Type))
	one := big.NewInt(1)
	top := func(n uint) *big.Int { return new(big.Int).Sub(new(big.Int).Lsh(one, n), one) }
	ten := func(n int) *big.Int {
		return new(big.Int).Sub(new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(n)), nil), one)
	}
	switch {
	case len(p.Bits) == 2:
		return new(big.Int), top(uint(p.Bits[1] - p.Bits[0] + 1))
	case strings.HasPrefix(p.Type, "int") || p.Type == "sunssf":
		return new(big.Int).Neg(new(big.Int).Lsh(one, w-1)), top(w - 1)
	case strings.HasPrefix(p.Type, "sm"):
		return new(big.Int).Neg(top(w - 1)), top(w - 1)
	case strings.HasPrefix(p.Type, "bcd"):
		return new(big.Int), ten(int(w) / 4)
	case strings.HasPrefix(p.Type, "mod10k"):
		return new(big.Int), ten(int(w) / 4)
	}
	return new(big.Int), top(w)
}

// engineering is a raw integer as people see it.
func engineering(p *config.Point, raw *big.Int, power int) float64 {
	r := new(big.Rat).SetInt(raw)
	r.Mul(r, scaleOf(p, power))
	r.Add(r, ratOf(p.Offset))
	f, _ := r.Float64()
	return f
}

func encodeText(p *config.Point, text string) ([]byte, error) {
	b := make([]byte, Size(p))
	src := []byte(text)
	if p.Type == "hex" {
		var err error
		if src, err = hex.DecodeString(text); err != nil {
			return nil, &Refusal{"out-of-range", fmt.Sprintf("%s cannot be %q; allowed: bytes in hexadecimal", p.Name, cut(text))}
		}
	}
	room, step, at := len(b), 1, 0
	if p.Type == "string" && (p.Byte == "high" || p.Byte == "low") {
		room, step = len(b)/2, 2
		if p.Byte == "low" {
			at = 1
		}
	}
	if len(src) > room {
		return nil, &Refusal{"out-of-range", fmt.Sprintf("%s must be at most %d bytes long", p.Name, room)}
	}
	for i, c := range src {
		b[at+i*step] = c
	}
	if p.Order == "BADC" || p.Order == "DCBA" {
		reorder(b, "BADC")
	}
	return b, nil
}
