package devices

import (
	"encoding/json"
	"math"
	"math/big"
	"strings"
	"testing"
)

func TestValueJSON(t *testing.T) {
	tests := []struct {
		name   string
		v      Value
		digits int
		want   string
	}{
		{"null", Value{}, -1, "null"},
		{"an integer", IntValue(-42, 0), -1, "-42"},
		{"the largest unsigned of 64 bit in full", UintValue(math.MaxUint64, 0), -1, "18446744073709551615"},
		{"the smallest signed of 64 bit in full", IntValue(math.MinInt64, 0), -1, "-9223372036854775808"},
		{"a counter above 2^53 keeps its last unit", UintValue(1<<53+1, 0), -1, "9007199254740993"},
		{"a scale of 0.1", IntValue(2301, -1), -1, "230.1"},
		{"a scale of 0.1 keeps its zero", IntValue(2300, -1), -1, "230.0"},
		{"less than one", IntValue(-7, -3), -1, "-0.007"},
		{"a scale of 1000", IntValue(15, 3), -1, "15000"},
		{"zero with a scale", IntValue(0, -2), -1, "0.00"},
		{"zero with a large scale", IntValue(0, 6), -1, "0"},
		{"more digits", IntValue(2301, -1), 3, "230.100"},
		{"more digits of an integer", IntValue(5, 0), 2, "5.00"},
		{"fewer digits round half away from zero", IntValue(-2345, -3), 2, "-2.35"},
		{"fewer digits carry", IntValue(9996, -3), 2, "10.00"},
		{"no digits", IntValue(2399, -1), 0, "240"},
		{"digits of next to nothing", IntValue(4, -3), 1, "0.0"},
		{"no minus before zero", IntValue(-4, -3), 1, "0.0"},
		{"1e-6 has no exponent", IntValue(1, -6), -1, "0.000001"},
		{"below it has", IntValue(12, -8), -1, "1.2e-7"},
		{"below 1e15 has no exponent", IntValue(999, 12), -1, "999000000000000"},
		{"1e15 has", IntValue(1, 15), -1, "1e15"},
		{"64 bit with decimals has none", UintValue(math.MaxUint64, -1), -1, "1844674407370955161.5"},
		{"float32 has its shortest text", Float32Value(230.1), -1, "230.1"},
		{"float32 third", Float32Value(1.0 / 3), -1, "0.33333334"},
		{"float64 third", Float64Value(1.0 / 3), -1, "0.3333333333333333"},
		{"float with digits", Float64Value(2.345), 1, "2.3"},
		{"float -0", Float64Value(math.Copysign(0, -1)), -1, "0"},
		{"float rounds to no -0", Float64Value(-0.04), 1, "0.0"},
		{"float 1e-6", Float64Value(1e-6), -1, "0.000001"},
		{"float below", Float64Value(9.5e-7), -1, "9.5e-07"},
		{"float below 1e15", Float64Value(1e15 - 1), -1, "999999999999999"},
		{"float 1e15", Float64Value(1e15), -1, "1e+15"},
		{"float32 large", Float32Value(3e20), -1, "3e+20"},
		{"NaN is null", Float64Value(math.NaN()), -1, "null"},
		{"infinity is null", Float32Value(float32(math.Inf(1))), -1, "null"},
		{"true", BoolValue(true), 2, "true"},
		{"text", TextValue("a\"b\\c\n\x01é€😀\xff"), -1, `"a\"b\\c\n\u0001é€😀` + "�" + `"`},
		{"words", ListValue("overheat", "fan \"2\""), -1, `["overheat","fan \"2\""]`},
		{"no word", ListValue(), -1, "[]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := string(tt.v.AppendJSON([]byte("x"), tt.digits))
			if got != "x"+tt.want {
				t.Errorf("got %s, want %s", got[1:], tt.want)
			}
			if !json.Valid([]byte(got[1:])) {
				t.Errorf("%s is no JSON", got[1:])
			}
		})
	}
}

func TestValueString(t *testing.T) {
	for want, v := range map[string]Value{"230.1": IntValue(2301, -1), "run": TextValue("run"), "a, b": ListValue("a", "b"), "": ListValue(), "null": {}, "false": BoolValue(false)} {
		if v.String() != want {
			t.Errorf("%q, want %q", v.String(), want)
		}
	}
	if w := ListValue("a", "b\x00c").Words(); len(w) != 2 || w[1] != "bc" {
		t.Errorf("words %q", w)
	}
}

func TestValueEqual(t *testing.T) {
	equal := [][2]Value{
		{IntValue(10, -1), IntValue(1, 0)}, {IntValue(1, 0), UintValue(1, 0)}, {IntValue(5, -1), Float64Value(.5)},
		{{}, {}}, {Float32Value(.5), Float64Value(.5)}, {TextValue("a"), TextValue("a")}, {IntValue(0, -3), IntValue(0, 7)},
	}
	differ := [][2]Value{
		{IntValue(10, -1), IntValue(10, 0)}, {UintValue(math.MaxUint64, 0), Float64Value(math.MaxUint64)}, {TextValue("1"), IntValue(1, 0)},
		{BoolValue(true), IntValue(1, 0)}, {{}, IntValue(0, 0)}, {Float32Value(.1), Float64Value(.1)}, {IntValue(-1, 0), UintValue(math.MaxUint64, 0)},
		{TextValue("a"), ListValue("a")},
	}
	for _, p := range equal {
		if !p[0].Equal(p[1]) || !p[1].Equal(p[0]) {
			t.Errorf("%v and %v are not equal", p[0], p[1])
		}
	}
	for _, p := range differ {
		if p[0].Equal(p[1]) || p[1].Equal(p[0]) {
			t.Errorf("%v and %v are equal", p[0], p[1])
		}
	}
}

// FuzzValueText: the text of an integer with a power of ten is exactly that
// number, and with digits it is that number rounded.
func FuzzValueText(f *testing.F) {
	f.Add(int64(2301), int8(-1), int8(-1))
	f.Add(int64(math.MinInt64), int8(-20), int8(3))
	f.Add(int64(-995), int8(-3), int8(2))
	f.Add(int64(1), int8(40), int8(0))
	f.Fuzz(func(t *testing.T, n int64, exp, digits int8) {
		if exp < -40 || exp > 40 || digits > 12 {
			return
		}
		v := IntValue(n, int(exp))
		text := string(v.AppendJSON(nil, int(digits)))
		if !json.Valid([]byte(text)) {
			t.Fatalf("%s is no JSON", text)
		}
		got, ok := new(big.Rat).SetString(text)
		if !ok {
			t.Fatalf("%s is no number", text)
		}
		want := v.rat()
		if digits < 0 {
			if got.Cmp(want) != 0 {
				t.Fatalf("%d * 10^%d is printed as %s", n, exp, text)
			}
			return
		}
		half := new(big.Rat).SetFrac(big.NewInt(1), new(big.Int).Mul(big.NewInt(2), new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(digits)), nil)))
		diff := new(big.Rat).Sub(got, want)
		if diff.Abs(diff).Cmp(half) > 0 {
			t.Fatalf("%d * 10^%d with %d digits is printed as %s", n, exp, digits, text)
		}
		if _, frac, _ := strings.Cut(text, "."); !strings.Contains(text, "e") && len(frac) != int(digits) {
			t.Fatalf("%s has not %d decimals", text, digits)
		}
	})
}
