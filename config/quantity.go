package config

import (
	"errors"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"
)

var errForm = errors.New("not of this form")

var durationUnits = []struct {
	name string
	is   time.Duration
}{{"ms", time.Millisecond}, {"us", time.Microsecond}, {"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}}

// parseDuration reads "500ms", "1.5s", "1h30m", "30d". Units must not repeat.
func parseDuration(s string) (time.Duration, error) {
	var sum time.Duration
	seen := map[string]bool{}
	if s == "" {
		return 0, errForm
	}
	for s != "" {
		digits := len(s) - len(strings.TrimLeft(s, "0123456789."))
		num, rest := s[:digits], s[digits:]
		letters := len(rest) - len(strings.TrimLeft(rest, "umshd"))
		unit := rest[:letters]
		s = rest[letters:]
		var size time.Duration
		for _, u := range durationUnits {
			if u.name == unit {
				size = u.is
			}
		}
		v, err := exact(num, int64(size))
		if size == 0 || seen[unit] || err != nil || v > math.MaxInt64-int64(sum) || v%int64(time.Microsecond) != 0 {
			return 0, errForm
		}
		seen[unit] = true
		sum += time.Duration(v)
	}
	return sum, nil
}

// exact is num * unit when that is a whole number in 64 bits.
func exact(num string, unit int64) (int64, error) {
	if num == "" || len(num) > 20 || strings.HasPrefix(num, ".") || strings.HasSuffix(num, ".") {
		return 0, errForm
	}
	r, ok := new(big.Rat).SetString(num)
	if !ok {
		return 0, errForm
	}
	r.Mul(r, new(big.Rat).SetInt64(unit))
	if !r.IsInt() || !r.Num().IsInt64() {
		return 0, errForm
	}
	return r.Num().Int64(), nil
}

// formatDuration is the inverse of parseDuration, in the largest units that fit: 90m -> "1h30m".
func formatDuration(d time.Duration) string {
	if d == 0 {
		return "0s"
	}
	var b strings.Builder
	for _, u := range []struct {
		name string
		is   time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}, {"ms", time.Millisecond}, {"us", time.Microsecond}} {
		if n := d / u.is; n > 0 {
			b.WriteString(strconv.FormatInt(int64(n), 10) + u.name)
			d -= n * u.is
		}
	}
	return b.String()
}

var sizeUnits = []struct {
	name string
	is   int64
}{{"GiB", 1 << 30}, {"GB", 1e9}, {"MiB", 1 << 20}, {"MB", 1e6}, {"KiB", 1 << 10}, {"kB", 1e3}}

// parseSize reads "64kB", "1.5MB", "256KiB" as bytes.
func parseSize(s string) (int64, error) {
	digits := len(s) - len(strings.TrimLeft(s, "0123456789."))
	for _, u := range sizeUnits {
		if strings.TrimPrefix(s[digits:], " ") == u.name {
			return exact(s[:digits], u.is)
		}
	}
	return 0, errForm
}

// formatSize is the inverse of parseSize.
func formatSize(n int64) string {
	if n == 0 {
		return "0kB"
	}
	for _, u := range sizeUnits {
		if n%u.is == 0 {
			return strconv.FormatInt(n/u.is, 10) + u.name
		}
	}
	return decimalText(Decimal{n, -3}) + "kB"
}

// maxDigits bounds the digits of a decimal: its product with a 64-bit register
// stays inside 128 bits.
const maxDigits = 18

// maxExponent bounds the power of ten of a decimal either way.
const maxExponent = 30

// parseDecimal reads a TOML number (decimal, whole or not) without passing through float64.
func parseDecimal(raw string) (Decimal, error) {
	s := strings.ReplaceAll(strings.TrimPrefix(raw, "+"), "_", "")
	exp := 0
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		n, err := strconv.Atoi(strings.TrimPrefix(s[i+1:], "+"))
		if err != nil {
			return Decimal{}, errForm
		}
		s, exp = s[:i], n
	}
	whole, frac, _ := strings.Cut(s, ".")
	exp -= len(frac)
	m, err := strconv.ParseInt(whole+frac, 10, 64)
	if err != nil || len(strings.TrimLeft(whole+frac, "-0")) > maxDigits || exp < -maxExponent || exp > maxExponent {
		return Decimal{}, errForm
	}
	return Decimal{m, exp}, nil
}

// decimalText prints a decimal so that parseDecimal gives it back.
func decimalText(d Decimal) string {
	s := strconv.FormatInt(d.M, 10)
	if d.E > 0 {
		return s + "e" + strconv.Itoa(d.E)
	}
	if d.E == 0 {
		return s
	}
	neg := ""
	if d.M < 0 {
		neg, s = "-", s[1:]
	}
	if pad := 1 - d.E - len(s); pad > 0 {
		s = strings.Repeat("0", pad) + s
	}
	return neg + s[:len(s)+d.E] + "." + s[len(s)+d.E:]
}

func decimalFloat(d Decimal) float64 {
	f, err := strconv.ParseFloat(strconv.FormatInt(d.M, 10)+"e"+strconv.Itoa(d.E), 64)
	if err != nil {
		return math.Inf(1) // not reached: both parts are bounded
	}
	return f
}

// parseHex reads "42 4D" or "424d"; empty text is nil.
func parseHex(s string) ([]byte, error) {
	var out []byte
	digits := strings.ReplaceAll(s, " ", "")
	if len(digits)%2 != 0 {
		return nil, errForm
	}
	for i := 0; i < len(digits); i += 2 {
		n, err := strconv.ParseUint(digits[i:i+2], 16, 8)
		if err != nil {
			return nil, errForm
		}
		out = append(out, byte(n))
	}
	return out, nil
}

// parseNumber reads a whole number as a key or in quotes: 16, -1, 0x10. A number
// above the signed range is taken as the bit pattern of an unsigned one.
func parseNumber(s string) (int64, error) {
	if n, err := strconv.ParseInt(s, 0, 64); err == nil {
		return n, nil
	}
	n, err := strconv.ParseUint(s, 0, 64)
	return int64(n), err
}
